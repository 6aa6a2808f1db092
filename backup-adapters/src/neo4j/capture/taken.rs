//! What a capture has taken, as a stream and a report.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupSource, CHUNK_BYTES, CaptureReport,
    Evidence, OpContext, ReadOutcome,
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt, stream};
use tokio::io::AsyncReadExt;

use super::super::mode::CaptureMode;
use super::clones::copies;
use super::{DATA, Found, TRANSACTIONS, phase, remove_all};
use crate::tree::capture::{self, Job};
use crate::tree::roots::{Root, RootKind};
use crate::tree::rules::{Excluded, RuleSpec};
use crate::tree::write::OnChange;

/// What a capture has taken; the server is back.
pub(super) struct Taken {
    pub(super) mode: CaptureMode,
    pub(super) found: Found,
    pub(super) what: What,
    /// To be removed once it was read.
    pub(super) remove: Vec<PathBuf>,
    pub(super) from: DateTime<Utc>,
    pub(super) to: DateTime<Utc>,
    pub(super) interruption: Duration,
    pub(super) exit_codes: BTreeMap<String, i64>,
    pub(super) after: Option<Evidence>,
    pub(super) warnings: Vec<String>,
}

pub(super) enum What {
    /// Databases and their dumps, with lengths.
    Dumps(Vec<(String, PathBuf, u64)>),
    /// Copies of the data and of the logs, and the folders that they are in.
    Files(Vec<Root>, Vec<PathBuf>),
}

impl What {
    pub(super) fn files(bases: &[PathBuf]) -> Self {
        let (data, logs) = copies(bases);
        let root = |path, member: &str| Root { path, member: member.to_owned(), kind: RootKind::Dir };
        Self::Files(vec![root(data, DATA), root(logs, TRANSACTIONS)], bases.to_vec())
    }
}

pub(super) fn list_dumps(dir: &std::path::Path) -> Result<Vec<(String, PathBuf, u64)>, AdapterError> {
    let list = || {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let bytes = entry.metadata()?.len();
            if let Some(database) = name.strip_suffix(".dump")
                && bytes > 0
            {
                all.push((database.to_owned(), entry.path(), bytes));
            }
        }
        all.sort();
        Ok(all)
    };
    list().map_err(|e| AdapterError::io("cannot list the dumps", e))
}

impl Taken {
    pub(super) fn source(self, cx: &OpContext, mut warnings: Vec<String>, occupied: u64) -> BackupSource {
        warnings.extend(self.warnings.iter().cloned());
        // The server runs again: what takes its time from now on is no interruption.
        phase(cx, "storing what was captured");
        let major = u64::from(self.found.major());
        let (artifacts, running) = match &self.what {
            What::Dumps(dumps) => {
                let of = |(database, path, bytes): &(String, PathBuf, u64)| {
                    let name = ArtifactName::sanitized(database);
                    let artifact = Artifact::stream(name, "dump", file(path.clone(), *bytes, cx.clone()))
                        .with_size_hint(*bytes)
                        .with_attribute("database", database.as_str())
                        .with_attribute("major", major)
                        .with_attribute("occupied", occupied);
                    Ok(artifact)
                };
                (dumps.iter().map(of).collect::<Vec<_>>(), None)
            }
            What::Files(roots, bases) => {
                let job = Job {
                    roots: roots.clone(),
                    bases: bases.clone(),
                    rules: RuleSpec::default(),
                    excluded: Excluded::default(),
                    on_change: OnChange::Fail,
                };
                let (stream, running) = capture::start(cx, job);
                let artifact = Artifact::stream(ArtifactName::sanitized("files"), "tar", stream)
                    .with_attribute("major", major)
                    .with_attribute("occupied", occupied)
                    .with_attribute("databases", self.databases());
                (vec![Ok(artifact)], Some(running))
            }
        };
        BackupSource::new(stream::iter(artifacts), move |outcome| async move {
            let whole = match running {
                Some(running) => running.ended().await.is_some(),
                None => true,
            };
            let removed = remove_all(self.remove.clone()).await;
            if outcome == ReadOutcome::Complete && !whole {
                return Err(AdapterError::new(AdapterErrorKind::Other, "the archive was not completed"));
            }
            if let Err(e) = removed {
                warnings.push(e.to_string());
            }
            Ok(self.report(warnings))
        })
    }

    fn databases(&self) -> serde_json::Value {
        let names = self.found.facts.iter().flat_map(|f| &f.databases).map(|d| d.name.clone());
        names.collect::<Vec<_>>().into()
    }

    fn report(self, warnings: Vec<String>) -> CaptureReport {
        let mut report = CaptureReport::new(self.mode.name(), self.mode.consistency(), self.from, self.to);
        report.interruption_ms = u64::try_from(self.interruption.as_millis()).unwrap_or(u64::MAX);
        report.exit_codes = self.exit_codes;
        report.evidence = self.found.before;
        for (name, count) in self.after.unwrap_or_default().counts {
            if report.evidence.counts.get(&name) != Some(&count) {
                report.evidence.counts_after.insert(name, count);
            }
        }
        report.service_version = self.found.version;
        if let Some(facts) = &self.found.facts {
            report.evidence.notes.insert("edition".into(), facts.edition.clone());
            let names: Vec<&str> = facts.databases.iter().map(|d| d.name.as_str()).collect();
            report.evidence.notes.insert("databases".into(), names.join(", "));
        }
        report.image = self.found.container.image;
        report.warnings = warnings;
        report
    }
}

/// The bytes of a file that has `bytes` of them.
fn file(
    path: PathBuf,
    bytes: u64,
    cx: OpContext,
) -> impl Stream<Item = Result<Bytes, AdapterError>> + Send + 'static {
    let failed = move |path: &PathBuf, e| AdapterError::io(format!("cannot read `{}`", path.display()), e);
    stream::once(async move {
        let opened = tokio::fs::File::open(&path).await.map_err(|e| failed(&path, e));
        let begin = opened.map(|file| (file, path, 0_u64, cx));
        match begin {
            Err(e) => stream::iter([Err(e)]).boxed(),
            Ok(begin) => stream::try_unfold(begin, move |(mut file, path, at, cx)| async move {
                cx.check_alive()?;
                let mut piece = vec![0; CHUNK_BYTES];
                let mut filled = 0;
                while let Some(rest) = piece.get_mut(filled..).filter(|r| !r.is_empty()) {
                    match file.read(rest).await.map_err(|e| failed(&path, e))? {
                        0 => break,
                        n => filled += n,
                    }
                }
                piece.truncate(filled);
                let at = at + filled as u64;
                match filled {
                    0 if at == bytes => Ok(None),
                    0 => Err(AdapterError::new(
                        AdapterErrorKind::Changed,
                        format!("`{}` has {at} bytes, not {bytes}", path.display()),
                    )),
                    _ => Ok(Some((Bytes::from(piece), (file, path, at, cx)))),
                }
            })
            .boxed(),
        }
    })
    .flatten()
}
