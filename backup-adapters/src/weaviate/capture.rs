//! From a server to a stream: its own backup, whose files are collected, and what it holds before and after.

mod made;
mod report;
mod second;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backup_core::runtime::Announced;
use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupSource, CaptureReport, Evidence, OpContext,
    ReadOutcome,
};
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, stream};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::api::Api;
use super::census::Schema;
use super::files::{Files, archive_of};
use super::job::{Job, Kind, phase};
use super::model;
use super::server::{self, Backups, Facts, Server};
use super::{CaptureMode, Inactive, export, reclaim, tenants};

/// How long the end of a capture may take: the run waits for it.
const END: Duration = Duration::from_secs(7);

/// How often a count is tried again because a collection came or went meanwhile.
const TRIES: u32 = 5;

/// Everything that the capture of one run knows and holds.
struct State {
    api: Api,
    facts: Facts,
    /// Where the server's own backup lies; `None` for an export.
    files: Option<Arc<dyn Files>>,
    told: Arc<std::sync::Mutex<export::Told>>,
    job: Job,
    /// The server was asked to begin.
    begun: bool,
    woken: Option<(Announced, BTreeMap<String, Vec<String>>)>,
    before: Option<(Schema, Evidence)>,
    taken: BTreeSet<String>,
    asked: DateTime<Utc>,
    done: DateTime<Utc>,
    server_ms: u128,
    warnings: Vec<String>,
    notes: BTreeMap<String, String>,
}

/// Captures the data of `server`.
pub(super) async fn open(
    server: &Server,
    how: CaptureMode,
    mode: Inactive,
    cx: &OpContext,
) -> Result<BackupSource, AdapterError> {
    let api = server.connect(cx).await?;
    let facts = server::facts(&api, cx).await?;
    let backups = facts.backups(server, how)?;
    server::check_rights(&api, cx, backups.is_some()).await?;
    let mut warnings = Vec::new();
    let files = match &backups {
        Some(backups) => {
            let files = server.files(cx, backups, &reclaim::backup_id(cx)).await?;
            warnings = reclaim::sweep(&api, cx, &*files, backups.backend()).await?;
            Some(files)
        }
        None => {
            let why = match how {
                CaptureMode::Export => "as `capture` says".to_owned(),
                _ => format!("because it has no module {}: {}", server::MODULE, server::REMEDY),
            };
            let what = format!(
                "{server} is exported object by object while it is written to, {why}. Users and roles are not in this backup"
            );
            cx.warn(what.as_str());
            warnings.push(what);
            None
        }
    };
    if let Some(docker) = &server.container
        && files.is_some()
        && cx.within(docker.env("CLUSTER_HOSTNAME")).await??.is_none()
    {
        warnings.push(format!(
            "{server} takes its node's name from its container, which is another one once that is made anew: set \
             CLUSTER_HOSTNAME={} in it, or restores need that",
            facts.node
        ));
    }
    let now = cx.clock.now();
    let state = State {
        job: Job {
            backend: backups.as_ref().map_or(server::FOLDER, Backups::backend),
            id: reclaim::backup_id(cx),
            kind: Kind::Create,
        },
        api,
        facts,
        files,
        told: Arc::default(),
        begun: false,
        woken: None,
        before: None,
        taken: BTreeSet::new(),
        asked: now,
        done: now,
        server_ms: 0,
        warnings,
        notes: BTreeMap::new(),
    };
    let state = Arc::new(Mutex::new(state));
    let (ours, context, of) = (Arc::clone(&state), cx.clone(), server.clone());
    let artifacts = stream::once(async move { ours.lock().await.capture(&ours, &of, mode, &context).await });
    let (server, cx) = (server.clone(), cx.clone());
    Ok(BackupSource::new(artifacts, async move |outcome| {
        state.lock().await.release(&server, &cx, outcome).await
    }))
}

/// What is there, counted. Collections may come and go meanwhile.
async fn census(api: &Api, cx: &OpContext) -> Result<(Schema, Evidence), AdapterError> {
    let mut tries = 0;
    loop {
        let schema = Schema::read(api, cx).await?;
        match schema.count(api, cx).await {
            Err(e) if e.kind() == AdapterErrorKind::Changed && tries < TRIES => tries += 1,
            counted => return Ok((schema, counted?)),
        }
    }
}

impl State {
    async fn capture(
        &mut self,
        ours: &Arc<Mutex<Self>>,
        server: &Server,
        mode: Inactive,
        cx: &OpContext,
    ) -> Result<Artifact, AdapterError> {
        cx.check_alive()?;
        let mut schema = Schema::read(&self.api, cx).await?;
        for (class, tenants) in schema.away() {
            self.warnings.push(format!(
                "{} tenants of `{class}` are offloaded and not in this backup, e.g. `{}`",
                tenants.len(),
                tenants.first().map(String::as_str).unwrap_or_default()
            ));
        }
        let inactive = schema.inactive();
        let wake = tenants::decide(&self.api, mode, &inactive)?;
        if wake {
            phase(cx, "activating tenants");
            let announced = tenants::announce(server, cx, inactive.clone()).await?;
            self.woken = Some((announced, inactive.clone()));
            tenants::set(&self.api, cx, &inactive, "HOT").await?;
        } else {
            for (class, tenants) in &inactive {
                self.warnings.push(format!(
                    "{} inactive tenants of `{class}` are not in this backup, e.g. `{}`",
                    tenants.len(),
                    tenants.first().map(String::as_str).unwrap_or_default()
                ));
            }
        }
        phase(cx, "counting");
        let counted = census(&self.api, cx).await?;
        schema = counted.0.clone();
        self.notes = schema.dimensions(&self.api, cx).await;
        self.before = Some(counted);
        let name = ArtifactName::sanitized(cx.service.as_str());
        self.asked = cx.clock.now();
        let artifact = if self.files.is_none() {
            let (api, told) = (self.api.clone(), Arc::clone(&self.told));
            let body = export::stream(api, cx.clone(), self.job.id.clone(), &schema, told);
            Artifact::stream(name, "tar", body).with_attribute(export::FORM, export::EXPORT)
        } else if schema.classes.is_empty() {
            self.warnings.push(
                "the server holds no collections; users and roles alone it does not back up".to_owned(),
            );
            self.done = self.asked;
            let config = serde_json::json!({ "id": self.job.id, "status": "SUCCESS", "nodes": {} });
            let body =
                archive_of(&format!("{}/{}", self.job.id, model::CONFIG), config.to_string().as_bytes())?;
            Artifact::stream(name, "tar", stream::iter([Ok(body)]))
        } else {
            second::over(server, cx).await?;
            self.made(ours, name, schema, cx).await?
        };
        let left = if wake { inactive } else { BTreeMap::new() };
        Ok(artifact
            .with_attribute("backup_id", self.job.id.as_str())
            .with_attribute("node", self.facts.node.as_str())
            .with_attribute("version", self.facts.version.as_str())
            .with_attribute("modules", self.facts.modules.clone())
            .with_attribute("inactive_tenants", serde_json::to_value(left).unwrap_or_default()))
    }

    /// The server's own backup, read while it is written where that is possible.
    async fn made(
        &mut self,
        ours: &Arc<Mutex<Self>>,
        name: ArtifactName,
        schema: Schema,
        cx: &OpContext,
    ) -> Result<Artifact, AdapterError> {
        let files = self.files()?;
        let over = Arc::new(AtomicBool::new(false));
        let followed = files.follow(cx, &self.job.id, &over).await;
        let begun = self.begin(cx).await?;
        let Some(read) = followed else {
            self.finish(cx, &*files, &schema, begun).await?;
            let size = files.size(&self.job.id).await;
            let artifact = Artifact::stream(name, "tar", files.archive(cx, &self.job.id).await?);
            return Ok(match size {
                Some(bytes) => artifact.with_size_hint(bytes),
                None => artifact,
            });
        };
        let (state, cx) = (Arc::clone(ours), cx.clone());
        let finish = async move {
            state.lock().await.finish(&cx, &*files, &schema, begun).await?;
            over.store(true, Ordering::Release);
            Ok(())
        };
        // It has no bytes, only an error if there is one; what is read does not end before it.
        let finish = stream::once(finish).filter_map(async |done: Result<(), _>| done.err().map(Err));
        Ok(Artifact::stream(name, "tar", stream::select(finish, read)))
    }

    fn files(&self) -> Result<Arc<dyn Files>, AdapterError> {
        self.files.clone().ok_or_else(|| AdapterError::unsupported("an export has no files of the server"))
    }

    async fn lull(&mut self, cx: &OpContext) -> Result<(), AdapterError> {
        if let Some((announced, tenants)) = &self.woken {
            tenants::lull(&self.api, cx, tenants).await?;
            announced.undone().await?;
            self.woken = None;
        }
        Ok(())
    }

    /// Ends it: the server is as it was, and keeps no files of ours.
    async fn release(
        &mut self,
        server: &Server,
        run: &OpContext,
        outcome: ReadOutcome,
    ) -> Result<CaptureReport, AdapterError> {
        // Its own time: that of the run may be over, which must not keep us from tidying up.
        let mut cx = run.clone();
        cx.cancel = tokio_util::sync::CancellationToken::new();
        cx.deadline = Some(Instant::now() + END);
        let complete = outcome == ReadOutcome::Complete;
        // A container that died meanwhile has another address once it runs again, and a neighbour may have its old one: what
        // is undone there is undone to the wrong server.
        let again = server.connect(&cx).await.map(|api| std::mem::replace(&mut self.api, api));
        if self.begun {
            let over = complete
                || (again.is_ok() && self.job.cancel(&self.api, &cx, END / 2).await)
                || server.is_stopped().await;
            let gone = match over {
                true => self.files()?.remove(&self.job.id).await,
                false => Err(AdapterError::new(AdapterErrorKind::Conflict, "the server still writes it")),
            };
            if let Err(e) = gone {
                let what = format!("the backup `{}` stays on the server until a later run: {e}", self.job.id);
                run.warn(what.as_str());
                self.warnings.push(what);
            }
        }
        let again = match (again, self.woken.is_some()) {
            (Ok(before), _) => {
                self.lull(&cx).await?;
                // Its pages came from whoever answered.
                if complete && self.files.is_none() && !self.api.is_at(&before) {
                    let what = format!(
                        "{server} was started again at another address while it was exported: run the backup again"
                    );
                    return Err(AdapterError::new(AdapterErrorKind::Changed, what));
                }
                None
            }
            (Err(e), woken) if woken || complete && self.files.is_none() => return Err(e),
            (Err(e), _) => Some(e),
        };
        if self.files.is_none() {
            self.done = run.clock.now();
        }
        let after = match (&self.before, complete, again) {
            (Some(_), true, None) => {
                let mut counting = run.clone();
                counting.deadline = Some(Instant::now() + Duration::from_secs(60));
                Some(census(&self.api, &counting).await)
            }
            (Some(_), true, Some(e)) => Some(Err(e)),
            _ => None,
        };
        self.report(server, after).await
    }
}
