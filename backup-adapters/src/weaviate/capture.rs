//! From a server to a stream: its own backup, whose files are collected, and what it holds before and after.

mod made;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::Announced;
use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupSource, CaptureReport, Evidence, OpContext,
    ReadOutcome,
};
use chrono::{DateTime, Utc};
use futures::stream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::api::Api;
use super::census::Schema;
use super::files::{Files, archive_of};
use super::job::{Job, Kind, phase};
use super::model;
use super::server::{self, Backups, Facts, Server};
use super::{CaptureMode, Inactive, export, reclaim, tenants};
use crate::runtime::DockerRuntime;

/// How long the end of a capture may take: the run waits for it.
const END: Duration = Duration::from_secs(7);

/// The server names the logs of its vector indexes by the second, and a backup leaves out the newest: so the vectors of
/// an index that was made or loaded in the same second are not in it, and their objects are never found by vector again
/// (seen with 1.35). What is to be in the backup is older than this.
const SECOND: Duration = Duration::from_millis(1200);

/// How far beyond the end of a second the clock is waited for, where it is this host's.
const MARGIN: Duration = Duration::from_millis(100);

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
    let artifacts = stream::once(async move { ours.lock().await.capture(&of, mode, &context).await });
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

/// How long it takes until the server's clock shows another second.
fn next_second(server: &Server) -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    match now {
        Ok(now) if server.container.as_ref().is_some_and(DockerRuntime::shares_files) => {
            Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into()) + MARGIN
        }
        _ => SECOND,
    }
}

impl State {
    async fn capture(
        &mut self,
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
        let settled = Instant::now() + next_second(server);
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
            cx.within(tokio::time::sleep_until(settled)).await?;
            let files = self.files()?;
            self.run(cx, &*files, &schema).await?;
            phase(cx, "storing what was captured");
            let size = files.size(&self.job.id).await;
            let body = files.archive(cx, &self.job.id).await?;
            let artifact = Artifact::stream(name, "tar", body);
            match size {
                Some(bytes) => artifact.with_size_hint(bytes),
                None => artifact,
            }
        };
        // They are as they were as soon as the server is done, not once its files are stored. An export still reads them.
        if self.files.is_some() {
            self.lull(cx).await?;
        }
        let left = if wake { inactive } else { BTreeMap::new() };
        Ok(artifact
            .with_attribute("backup_id", self.job.id.as_str())
            .with_attribute("node", self.facts.node.as_str())
            .with_attribute("version", self.facts.version.as_str())
            .with_attribute("modules", self.facts.modules.clone())
            .with_attribute("inactive_tenants", serde_json::to_value(left).unwrap_or_default()))
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
        if self.begun {
            let over =
                complete || self.job.cancel(&self.api, &cx, END / 2).await || server.is_stopped().await;
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
        self.lull(&cx).await?;
        if self.files.is_none() {
            self.done = run.clock.now();
        }
        let after = match (&self.before, complete) {
            (Some(_), true) => {
                let mut counting = run.clone();
                counting.deadline = Some(Instant::now() + Duration::from_secs(60));
                Some(census(&self.api, &counting).await)
            }
            _ => None,
        };
        self.report(server, after).await
    }
}
