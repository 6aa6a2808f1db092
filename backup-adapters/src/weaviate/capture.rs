//! From a server to a stream: its own backup, whose files are collected, and what it holds before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::{Announced, ServiceRuntime as _};
use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupSource, CaptureReport, Consistency,
    Evidence, OpContext, ReadOutcome,
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
use super::server::{self, Facts, Server};
use super::{CaptureMode, Inactive, export, reclaim, tenants};

/// How long the end of a capture may take: the run waits for it.
const END: Duration = Duration::from_secs(7);

/// The server names the logs of its vector indexes by the second, and a backup leaves out the newest: so the vectors of
/// an index that was made or loaded in the same second are not in it, and their objects are never found by vector again
/// (seen with 1.35). What is to be in the backup is older than this.
const SECOND: Duration = Duration::from_millis(1200);

/// How often a count is tried again because a collection came or went meanwhile.
const TRIES: u32 = 5;

/// Everything that the capture of one run knows and holds.
struct State {
    api: Api,
    facts: Facts,
    /// Where the server's own backup lies; `None` for an export.
    files: Option<Files>,
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
    let backups = facts.backups(&api, how)?.map(Path::to_owned);
    server::check_rights(&api, cx, backups.is_some()).await?;
    let mut warnings = Vec::new();
    let files = match &backups {
        Some(backups) => {
            let files = server.files(cx, backups).await?;
            warnings = reclaim::sweep(&api, cx, &files).await?;
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
        job: Job { id: reclaim::backup_id(cx), kind: Kind::Create },
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
        let settled = Instant::now() + SECOND;
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
            self.run(cx, &files, &schema).await?;
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

    fn files(&self) -> Result<Files, AdapterError> {
        self.files.clone().ok_or_else(|| AdapterError::unsupported("an export has no files of the server"))
    }

    /// Lets the server make its backup, and compares it with what is there.
    async fn run(&mut self, cx: &OpContext, files: &Files, schema: &Schema) -> Result<(), AdapterError> {
        phase(cx, "the server makes its backup");
        let began = Instant::now();
        self.begun = true;
        let named = self.job.start(&self.api, cx).await?;
        self.job.wait(&self.api, cx, Some(files)).await?;
        self.server_ms = began.elapsed().as_millis();
        self.done = cx.clock.now();
        let id = &self.job.id;
        let config = model::Config::parse(&files.read(cx, &format!("{id}/{}", model::CONFIG)).await?)?;
        if &config.id != id {
            let what = format!("the server wrote the backup `{}` in the folder of `{id}`", config.id);
            return Err(AdapterError::corrupt(what));
        }
        let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let (mut users, mut roles) = (false, false);
        for node in config.nodes.keys() {
            let bytes = files.read(cx, &format!("{id}/{node}/{}", model::NODE)).await?;
            let node = model::Node::parse(&bytes)?;
            (users, roles) = (users || node.users.is_some(), roles || node.roles.is_some());
            for class in node.classes() {
                let names = class.shards().map(|s| s.name.clone());
                shards.entry(class.name.clone()).or_default().extend(names);
            }
        }
        self.notes.insert("users".to_owned(), if users { "in the backup" } else { "none" }.to_owned());
        self.notes.insert("roles".to_owned(), if roles { "in the backup" } else { "none" }.to_owned());
        self.taken = shards.keys().cloned().collect();
        // Three lists, of which each could be shorter than what is there.
        let after = Schema::read(&self.api, cx).await?;
        let config = config.classes();
        let complete = |class: &str| {
            self.taken.contains(class)
                && config.contains(class)
                && (named.is_empty() || named.contains(class))
        };
        let missing: Vec<&str> =
            schema.names().intersection(&after.names()).copied().filter(|c| !complete(c)).collect();
        if !missing.is_empty() {
            let what = format!(
                "the backup of {} lacks the collections {}: may the user of the API key back up all?",
                self.api.name(),
                missing.join(", ")
            );
            return Err(AdapterError::new(AdapterErrorKind::PermissionDenied, what));
        }
        let (active, still) = (schema.active(), after.active());
        for (class, tenants) in &active {
            let (Some(in_backup), Some(still)) = (shards.get(class), still.get(class)) else { continue };
            let lost = |t: &&String| !in_backup.contains(*t) && still.contains(t);
            if let Some(tenant) = tenants.iter().find(lost) {
                let what = format!("the backup of {} lacks tenant `{tenant}` of `{class}`", self.api.name());
                return Err(AdapterError::corrupt(what));
            }
        }
        Ok(())
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

    async fn report(
        &mut self,
        server: &Server,
        after: Option<Result<(Schema, Evidence), AdapterError>>,
    ) -> Result<CaptureReport, AdapterError> {
        let (mode, consistency) = match self.files {
            Some(_) => ("filesystem", Consistency::Dump),
            None => ("export", Consistency::OnlineUnverified),
        };
        let mut report = CaptureReport::new(mode, consistency, self.asked, self.done);
        if let Some((schema, before)) = self.before.take() {
            report.evidence = before;
            if self.files.is_none() {
                self.exported(&mut report.evidence);
            }
            match after {
                Some(Ok((now, after))) => self.compare(&schema, &now, &mut report, &after),
                // Without a second count the first one is exact only if nobody writes.
                Some(Err(e)) => self.warnings.push(format!("the objects were not counted afterwards: {e}")),
                None => {}
            }
        }
        report.evidence.notes.extend(std::mem::take(&mut self.notes));
        report.evidence.notes.insert("modules".to_owned(), self.facts.modules.join(", "));
        report.evidence.notes.insert("node".to_owned(), self.facts.node.clone());
        report.evidence.notes.insert("server_backup_ms".to_owned(), self.server_ms.to_string());
        report.service_version = Some(self.facts.version.clone());
        if let Some(docker) = &server.container {
            report.image = docker.inspect().await.ok().and_then(|i| i.image);
        }
        report.warnings = std::mem::take(&mut self.warnings);
        Ok(report)
    }

    /// What was exported is known exactly.
    fn exported(&mut self, evidence: &mut Evidence) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(found) = told.evidence() else { return };
        self.warnings.append(&mut told.warnings);
        self.taken = told.collections();
        let counted = std::mem::replace(&mut evidence.counts, found.counts);
        let all_there = ["collections", "tenants"].iter().all(|n| counted.get(*n) == evidence.counts.get(*n));
        // Which of those that are gone could be searched, nobody knows any more.
        if let Some(searchable) = counted.get("searchable").filter(|_| all_there) {
            evidence.counts.insert("searchable".to_owned(), *searchable);
        }
    }

    /// What a count may be anywhere between before and after.
    fn compare(&mut self, before: &Schema, now: &Schema, report: &mut CaptureReport, after: &Evidence) {
        for class in now.names().difference(&before.names()) {
            if !self.taken.contains(*class) {
                self.warnings
                    .push(format!("collection `{class}` was made meanwhile and is not in this backup"));
            }
        }
        let export = self.files.is_none();
        // An export has told of those that it does not hold.
        let deleted = before.names().difference(&now.names()).copied().collect::<Vec<_>>();
        for class in deleted.into_iter().filter(|class| !export || self.taken.contains(*class)) {
            self.warnings.push(format!("collection `{class}` was deleted meanwhile"));
        }
        let inactive = now.inactive();
        let unknown = |name: &str| {
            // Tenants that are asleep again were counted while they were awake.
            name == "searchable" && !inactive.is_empty()
                || inactive.iter().any(|(class, tenants)| {
                    name == format!("objects.{class}")
                        || tenants.iter().any(|t| name == format!("objects.{class}.{t}"))
                })
        };
        for (name, first) in report.evidence.counts.iter().filter(|(n, _)| !export || *n == "searchable") {
            let then = match after.counts.get(name) {
                Some(_) if unknown(name) => *first,
                Some(then) => *then,
                None if unknown(name) => *first,
                // Gone meanwhile: in the backup as a whole, in part, or not at all.
                None => 0,
            };
            if then != *first {
                report.evidence.counts_after.insert(name.clone(), then);
            }
        }
    }
}
