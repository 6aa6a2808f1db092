//! What a fake does, and what it was asked to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;

use crate::adapter::{Capabilities, ContentCheck};
use crate::error::{AdapterError, AdapterErrorKind};
use crate::id::{ArtifactName, RunId};
use crate::metadata::{ArtifactMeta, Evidence};
use crate::runtime::InterruptionKind;
use crate::source::ReadOutcome;
use crate::testkit::FakeRuntime;

/// A fake service's content: chunks by artifact.
pub type Content = BTreeMap<ArtifactName, Vec<Bytes>>;

/// A method or hook that can fail or hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the method or hook of the same name")]
pub enum Step {
    Check,
    Open,
    Release,
    Settle,
    Plan,
    Stage,
    Switch,
    Probe,
    #[serde(rename = "prove-writable")]
    ProveWritable,
    Ask,
    Undo,
    Discard,
    Reclaim,
    #[serde(rename = "bring-back")]
    BringBack,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BringBack => "bring-back",
            Self::ProveWritable => "prove-writable",
            other => return f.pad(&format!("{other:?}").to_lowercase()),
        })
    }
}

/// Something that was asked of the adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// `check`.
    Check,
    /// `open`.
    Open,
    /// A body was read to its end.
    ReadEnd(ArtifactName),
    /// The capture's `release`.
    Release(ReadOutcome),
    /// The capture's `settle`.
    Settle {
        /// Whether the backup was committed.
        committed: bool,
    },
    /// The capture's `settle`, where nobody knows whether the backup was committed.
    SettleUnknown,
    /// `plan_restore`.
    Plan,
    /// `stage`.
    Stage,
    /// `switch`.
    Switch,
    /// `probe`.
    Probe,
    /// `prove_writable`.
    ProveWritable,
    /// `ask`, of this question.
    Ask(String),
    /// `undo`.
    Undo,
    /// `discard`.
    Discard,
    /// `reclaim`.
    Reclaim(Vec<RunId>),
    /// `bring_back`, of this entry.
    BringBack(String),
    /// The call before this one hangs, as the script says.
    Hangs(Step),
}

/// What captures do to the service while they read.
#[derive(Debug, Clone)]
pub enum Interrupts {
    /// Stop or pause it.
    Runtime(FakeRuntime, InterruptionKind),
    /// Pause it, as something of the adapter's own.
    Own(FakeRuntime),
}

/// What a [`FakeAdapter`](super::FakeAdapter) holds and does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Script {
    /// The live content.
    pub live: Content,
    /// Steps that fail.
    pub failing: BTreeSet<Step>,
    /// The image that its captures name.
    pub image: Option<String>,
    /// It runs and does not answer, as a server that reads its log; what a restore would do can be said all the same.
    pub silent: bool,
    /// Steps that hang until the operation is cancelled or its deadline passes.
    pub hanging: BTreeSet<Step>,
    /// The same once they have done their work: of `stage`, `switch` and `undo`.
    pub hanging_after: BTreeSet<Step>,
    /// Steps that panic.
    pub panicking: BTreeSet<Step>,
    /// Bodies that fail in place of a chunk, counted from 0.
    pub fail_at: BTreeMap<ArtifactName, usize>,
    /// Bodies that hang in place of a chunk, counted from 0.
    pub hang_at: BTreeMap<ArtifactName, usize>,
    /// Bodies that panic in place of a chunk, counted from 0.
    pub panic_at: BTreeMap<ArtifactName, usize>,
    /// Reported instead of the true counts.
    pub evidence: Option<Evidence>,
    /// Whether artifacts say how long they will be.
    pub size_hints: bool,
    /// Whether captures have a fingerprint.
    pub fingerprint: bool,
    /// Whether captures ask for a commit only if something changed.
    pub only_if_changed: bool,
    /// What captures do to the service while they read.
    pub interrupts: Option<Interrupts>,
    /// What the adapter declares, and does.
    pub capabilities: Capabilities,
    /// What questions are answered, instead of the truth.
    pub answers: BTreeMap<String, Option<String>>,
    /// Whether scratch cannot be asked, as if no server ran there.
    pub mute_scratch: bool,
    /// Whether there is no such service: it can be neither counted nor restored.
    pub missing: bool,
    /// The container that the service is said to run in.
    pub container: Option<String>,
    /// Whether others read what it restores.
    pub comes_first: bool,
    /// The free space that a restore says it needs, in bytes; `None`: as much as the backup holds.
    pub room: Option<u64>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            live: Content::new(),
            failing: BTreeSet::new(),
            image: None,
            silent: false,
            hanging: BTreeSet::new(),
            hanging_after: BTreeSet::new(),
            panicking: BTreeSet::new(),
            fail_at: BTreeMap::new(),
            hang_at: BTreeMap::new(),
            panic_at: BTreeMap::new(),
            evidence: None,
            size_hints: true,
            fingerprint: false,
            only_if_changed: false,
            interrupts: None,
            capabilities: Capabilities::full().with_ask(),
            answers: BTreeMap::new(),
            mute_scratch: false,
            missing: false,
            container: None,
            comes_first: false,
            room: None,
        }
    }
}

impl Script {
    /// Sets the chunks of one artifact.
    ///
    /// # Panics
    /// When `name` is no valid artifact name.
    pub fn set_artifact<C: Into<Bytes>>(&mut self, artifact: &str, chunks: impl IntoIterator<Item = C>) {
        self.live.insert(name(artifact), chunks.into_iter().map(Into::into).collect());
    }
}

pub(super) fn name(name: &str) -> ArtifactName {
    ArtifactName::new(name).expect("a valid artifact name")
}

/// A content as text, one line for each artifact, whatever its chunks are.
#[must_use]
pub fn text_of(content: &Content) -> String {
    let line = |(name, chunks): (&ArtifactName, &Vec<Bytes>)| {
        format!("{name}: {}\n", chunks.concat().escape_ascii())
    };
    content.iter().map(line).collect()
}

/// As [`text_of`], of a directory that a fake was restored into.
///
/// # Panics
/// When the directory cannot be read.
#[must_use]
pub fn text_of_dir(dir: &Path) -> String {
    text_of(&read_dir(dir).expect("the directory can be read"))
}

pub(super) fn size_of(content: &Content) -> u64 {
    content.values().flatten().map(|chunk| u64::try_from(chunk.len()).unwrap_or(u64::MAX)).sum()
}

pub(super) fn evidence_of(content: &Content) -> Evidence {
    let artifacts = u64::try_from(content.len()).unwrap_or(u64::MAX);
    Evidence::default().with_count("artifacts", artifacts).with_count("bytes", size_of(content))
}

pub(super) fn read_dir(dir: &Path) -> Result<Content, AdapterError> {
    let read = || {
        let mut content = Content::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = ArtifactName::new(entry.file_name().to_string_lossy()).map_err(io::Error::other)?;
            content.insert(name, vec![fs::read(entry.path())?.into()]);
        }
        Ok(content)
    };
    read().map_err(|e| AdapterError::io(format!("cannot read `{}`", dir.display()), e))
}

pub(super) fn write_dir(dir: &Path, content: &Content) -> Result<(), AdapterError> {
    let write = || {
        fs::create_dir_all(dir)?;
        if fs::read_dir(dir)?.next().is_some() {
            return Ok(false);
        }
        for (name, chunks) in content {
            fs::write(dir.join(name.as_str()), chunks.concat())?;
        }
        Ok(true)
    };
    let failed = |e| AdapterError::io(format!("cannot write `{}`", dir.display()), e);
    if write().map_err(failed)? {
        return Ok(());
    }
    Err(AdapterError::new(AdapterErrorKind::Conflict, format!("directory `{}` is not empty", dir.display())))
}

/// Compares the length with what metadata.json says.
pub(super) fn length_check(artifact: &ArtifactMeta) -> Box<dyn ContentCheck> {
    Box::new(LengthCheck { name: artifact.name.clone(), left: artifact.plain_bytes })
}

struct LengthCheck {
    name: ArtifactName,
    left: u64,
}

impl ContentCheck for LengthCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        let bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            AdapterError::corrupt(format!("artifact `{}` is longer than it was", self.name))
        })?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        match self.left {
            0 => Ok(Evidence::default()),
            left => Err(AdapterError::corrupt(format!("artifact `{}` lacks {left} bytes", self.name))),
        }
    }
}

/// Counts the bytes of a file of old scripts, which must end with `end`.
pub(super) fn old_check() -> Box<dyn ContentCheck> {
    Box::new(OldCheck::default())
}

#[derive(Default)]
struct OldCheck {
    bytes: u64,
    tail: Vec<u8>,
}

impl ContentCheck for OldCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.tail.extend_from_slice(bytes);
        self.tail.drain(..self.tail.len().saturating_sub(3));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        match self.tail.as_slice() {
            b"end" => Ok(Evidence::default().with_count("artifacts", 1).with_count("bytes", self.bytes)),
            _ => Err(AdapterError::corrupt("it does not end with `end`")),
        }
    }
}
