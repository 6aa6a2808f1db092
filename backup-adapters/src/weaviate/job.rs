//! One operation of the server's backup API, from its start to its end.
//!
//! That the server accepts an operation says nothing about it: its status does, which comes with HTTP 200 also when it
//! failed. A status that is not known counts as "not done yet".

use std::collections::BTreeSet;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, Event, OpContext};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api::{Api, one_line};
use super::files::Files;

/// How often the status is asked for: at first, and at most. In between, after a tenth of the time that went by.
const POLL: Duration = Duration::from_millis(50);
const POLL_LONG: Duration = Duration::from_secs(2);

/// How long the server may not answer before it counts as gone.
const GONE: Duration = Duration::from_secs(45);

/// How long an operation may show no progress. The server has been seen to say STARTED for ever.
const STALL: Duration = Duration::from_secs(900);

/// The same where a file shows only when it is whole, as objects do: one holds a shard, and takes as long as its upload.
const STALL_UNSEEN: Duration = Duration::from_secs(7200);

/// How long it may be so once the server was silent: one that was restarted at the wrong moment says STARTED for ever, and
/// works on nothing (1.35). Only where its files would show progress.
const STALL_AFTER_SILENCE: Duration = Duration::from_secs(60);

/// How long another backup is waited for where the run has no budget.
const BUSY: Duration = Duration::from_secs(600);

/// Which operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Create,
    Restore,
}

/// A backup on the server, by its id.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Where: the last part of `/v1/backups/…`.
    pub(super) backend: &'static str,
    pub(super) id: String,
    pub(super) kind: Kind,
}

pub(super) fn phase(cx: &OpContext, phase: &str) {
    cx.events.emit(Event::Phase { service: cx.service.clone(), phase: phase.to_owned() });
}

/// Where the backups of a backend are.
pub(super) fn root(backend: &str) -> String {
    format!("/v1/backups/{backend}")
}

impl Job {
    fn path(&self) -> String {
        match self.kind {
            Kind::Create => format!("{}/{}", root(self.backend), self.id),
            Kind::Restore => format!("{}/{}/restore", root(self.backend), self.id),
        }
    }

    fn noun(&self) -> &'static str {
        match self.kind {
            Kind::Create => "backup",
            Kind::Restore => "restore",
        }
    }

    /// Asks the server to begin, and waits while it is busy with another one. The classes that it takes.
    ///
    /// # Errors
    /// `Conflict` if it stays busy, by the other one's id; `PermissionDenied`; what the server says.
    pub(super) async fn start(&self, api: &Api, cx: &OpContext) -> Result<BTreeSet<String>, AdapterError> {
        let patience = cx.remaining().map_or(BUSY, |left| left / 2);
        let until = Instant::now() + patience;
        // Compression is ours to do: faster, and not twice.
        let mut level = Some("NoCompression");
        let mut said_so = false;
        loop {
            let (path, body) = match self.kind {
                Kind::Create => {
                    let level = level.unwrap_or("BestSpeed");
                    (root(self.backend), json!({ "id": self.id, "config": { "CompressionLevel": level } }))
                }
                Kind::Restore => {
                    let body = json!({ "config": { "usersOptions": "all", "rolesOptions": "all" } });
                    (self.path(), body)
                }
            };
            let answer = match api.once(cx, Method::POST, &path, Some(&body)).await {
                Ok(answer) => answer,
                // It may have begun all the same.
                Err(e) if e.kind() == AdapterErrorKind::Unavailable => match self.found(api, cx).await? {
                    true => return Ok(BTreeSet::new()),
                    false if Instant::now() < until => {
                        cx.within(sleep(POLL_LONG)).await?;
                        continue;
                    }
                    false => return Err(e),
                },
                Err(e) => return Err(e),
            };
            let said = answer.message();
            match answer.status {
                200..300 => return Ok(strings(&answer.json()["classes"])),
                // Levels are newer than the API.
                400..500 if level.is_some() && said.contains("ompressionLevel") => level = None,
                422 if said.contains("already in progress") || said.contains("not yet released") => {
                    if Instant::now() > until {
                        let what = format!(
                            "{} is busy with another operation for {} s: {said}; try again later, or cancel that one",
                            api.name(),
                            patience.as_secs()
                        );
                        return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
                    }
                    if !said_so {
                        phase(cx, "waiting for another backup of the server");
                        said_so = true;
                    }
                    cx.within(sleep(POLL_LONG)).await?;
                }
                // An earlier request, whose answer got lost.
                422 if said.contains("already exists") && self.found(api, cx).await? => {
                    return Ok(BTreeSet::new());
                }
                500.. if Instant::now() < until => {
                    if self.found(api, cx).await? {
                        return Ok(BTreeSet::new());
                    }
                    cx.within(sleep(POLL_LONG)).await?;
                }
                _ => return Err(api.refused(&path, &answer)),
            }
        }
    }

    /// Whether the server knows this operation.
    async fn found(&self, api: &Api, cx: &OpContext) -> Result<bool, AdapterError> {
        match api.get(cx, &self.path()).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == AdapterErrorKind::NotFound => Ok(false),
            // Nothing of that id: an older server's way to say so.
            Err(e) if e.kind() == AdapterErrorKind::Other => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Waits until it succeeded. `files` shows progress where the status does not.
    ///
    /// # Errors
    /// `Other` with what the server says if it failed; `Unavailable` if the server is gone; `Timeout` if nothing moves.
    pub(super) async fn wait(
        &self,
        api: &Api,
        cx: &OpContext,
        files: Option<&dyn Files>,
    ) -> Result<(), AdapterError> {
        let began = Instant::now();
        let mut moved = began;
        let mut seen = (String::new(), None);
        let mut silent: Option<Instant> = None;
        let unseen = files.is_some_and(|files| !files.grows());
        let (usual, short) = if unseen { (STALL_UNSEEN, STALL) } else { (STALL, STALL_AFTER_SILENCE) };
        let mut limit = usual;
        let noun = self.noun();
        loop {
            let trouble = match api.once(cx, Method::GET, &self.path(), None).await {
                Ok(answer) if answer.is_success() => {
                    silent = None;
                    let answer = answer.json();
                    let status = answer["status"].as_str().unwrap_or_default().to_owned();
                    let said = one_line(answer["error"].as_str().unwrap_or_default());
                    match status.as_str() {
                        "SUCCESS" => return Ok(()),
                        "FAILED" | "CANCELED" | "CANCELLED" => {
                            let what =
                                format!("{}: the {noun} `{}` ended as {status}: {said}", api.name(), self.id);
                            return Err(AdapterError::new(AdapterErrorKind::Other, what));
                        }
                        _ => {}
                    }
                    let size = match files {
                        Some(files) => files.size(&self.id).await,
                        None => None,
                    };
                    let now = (status, size);
                    if now != seen {
                        (seen, moved) = (now, Instant::now());
                    }
                    None
                }
                // While the server writes the status anew, it may miss it for a moment.
                Ok(answer) if answer.status == 404 || answer.status >= 500 => {
                    Some(api.refused(&self.path(), &answer))
                }
                Ok(answer) => return Err(api.refused(&self.path(), &answer)),
                Err(e) if e.kind() == AdapterErrorKind::Unavailable => Some(e),
                Err(e) => return Err(e),
            };
            if let Some(trouble) = trouble {
                let since = *silent.get_or_insert_with(Instant::now);
                if trouble.kind() == AdapterErrorKind::Unavailable {
                    limit = short;
                }
                if since.elapsed() > GONE {
                    let what =
                        format!("{} does not tell about the {noun} `{}` any more", api.name(), self.id);
                    return Err(AdapterError::new(trouble.kind(), what).with_source(trouble));
                }
            } else if moved.elapsed() > if seen.1.is_some() { limit } else { usual } {
                let what = format!(
                    "{}: the {noun} `{}` has said {} for {} s and nothing moves",
                    api.name(),
                    self.id,
                    seen.0,
                    moved.elapsed().as_secs()
                );
                return Err(AdapterError::new(AdapterErrorKind::Timeout, what));
            }
            cx.within(sleep((began.elapsed() / 10).clamp(POLL, POLL_LONG))).await?;
        }
    }

    /// Whether the server says that it is over, in whatever way; `None` if it does not answer.
    pub(super) async fn is_over(&self, api: &Api, cx: &OpContext) -> Option<bool> {
        let answer = api.once(cx, Method::GET, &self.path(), None).await.ok()?;
        if !answer.is_success() {
            return (answer.status < 500).then_some(true);
        }
        let status = answer.json()["status"].as_str().unwrap_or_default().to_owned();
        Some(matches!(status.as_str(), "SUCCESS" | "FAILED" | "CANCELED" | "CANCELLED"))
    }

    /// Asks the server to cancel it and waits until it is over, or `limit` has passed. Whether it is over.
    pub(super) async fn cancel(&self, api: &Api, cx: &OpContext, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        // What was never begun, or has ended, cannot be cancelled: the status tells.
        let _refused = api.once(cx, Method::DELETE, &self.path(), None).await;
        loop {
            if self.is_over(api, cx).await == Some(true) {
                return true;
            }
            if Instant::now() + POLL > until || cx.within(sleep(POLL)).await.is_err() {
                return false;
            }
        }
    }
}

fn strings(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
