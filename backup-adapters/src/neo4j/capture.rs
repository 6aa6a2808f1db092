//! Captures: what the server says before and after, the interruption in between, and the stream.

mod clones;
mod online;
mod taken;
mod taking;

use std::path::PathBuf;
use std::time::Duration;

use backup_core::runtime::{Inspection, RunState};
use backup_core::{AdapterError, AdapterErrorKind, BackupSource, Event, Evidence, OpContext};

pub(super) use self::clones::reclaim;
use self::clones::try_clone;
use self::taking::Taking;
use super::Neo4j;
use super::mode::{CaptureMode, choose};
use super::places::{self, Places};
use super::replica;
use super::server::{self, Facts};
use super::tools;
use crate::on_disk::blocking;
use crate::runtime::docker::Purpose;

/// How long an interruption may last that nothing else limits.
const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// The folders of an archive of files.
pub(super) const DATA: &str = "data";
pub(super) const TRANSACTIONS: &str = "transactions";

/// What was found before the interruption.
pub(super) struct Found {
    pub(super) container: Inspection,
    /// `None` if the server does not run.
    pub(super) facts: Option<Facts>,
    /// As the server tells, or its programs.
    pub(super) version: Option<String>,
    pub(super) places: Places,
    before: Evidence,
    warnings: Vec<String>,
}

impl Found {
    pub(super) fn major(&self) -> u32 {
        self.version.as_deref().map_or(5, server::major)
    }
}

/// Tells people what happens.
pub(super) fn phase(cx: &OpContext, phase: &str) {
    cx.events.emit(Event::Phase { service: cx.service.clone(), phase: phase.to_owned() });
}

pub(super) async fn look(neo4j: &Neo4j, cx: &OpContext) -> Result<Found, AdapterError> {
    let server = &neo4j.server;
    places::same_host(server)?;
    let container = places::inspect(server, cx).await?;
    let (mut before, mut warnings, mut facts) = (Evidence::default(), Vec::new(), None);
    match container.state {
        RunState::Running => {
            let mut bolt = server.connect(cx).await?;
            let read = Facts::read(cx, &mut bolt).await?;
            before = server::evidence(cx, &mut bolt, &read.databases).await?;
            bolt.close(cx).await;
            if neo4j.capture == CaptureMode::Online {
                online::refuse(server, &read)?;
            }
            facts = Some(read);
        }
        RunState::Stopped => {
            warnings.push(format!("{server} does not run: what it holds was not counted"));
        }
        state => {
            let doing = if state == RunState::Paused { "is paused" } else { "is about to end" };
            let what = format!("{server} {doing}, and not by this program");
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
    }
    let version = match &facts {
        Some(facts) => Some(facts.version.clone()),
        // Without it, the newer names of programs and settings are tried.
        None => tools::version(server, cx, None, Purpose::Work).await.ok(),
    };
    let places = Places::find(server, cx, &container, facts.as_ref()).await?;
    Ok(Found { container, facts, version, places, before, warnings })
}

/// Captures the server.
pub(super) async fn open(neo4j: &Neo4j, cx: &OpContext) -> Result<BackupSource, AdapterError> {
    let mut found = look(neo4j, cx).await?;
    let (data, logs) = (found.places.data.clone(), found.places.transactions.clone());
    let bytes = tokio::task::spawn_blocking(move || {
        let outside = if logs.starts_with(&data) { 0 } else { replica::occupied(&logs, &[])? };
        Ok(replica::occupied(&data, &[data.join("dumps")])? + outside)
    });
    let bytes = bytes.await.unwrap_or_else(|e| Err(std::io::Error::from(e)));
    let bytes = bytes.map_err(|e| AdapterError::io("cannot measure the data of Neo4j", e))?;
    let mut mode = neo4j.capture;
    let mut limit = LONGEST;
    let mut clones = false;
    if mode == CaptureMode::Online && found.facts.is_none() {
        // Nobody works on the files: they are copied as they are.
        mode = CaptureMode::StopCopy;
    }
    if matches!(mode, CaptureMode::Auto | CaptureMode::Clone | CaptureMode::Online) {
        let refused = match try_clone(cx, &found.places).await {
            Ok(()) => None,
            Err(e) if e.kind() == AdapterErrorKind::Unsupported => Some(e),
            Err(e) => return Err(e),
        };
        clones = refused.is_none();
        if mode == CaptureMode::Auto {
            limit = match cx.remaining() {
                Some(left) if cx.last_chance => left,
                _ => neo4j.max_interruption,
            };
            let why = refused.map(|e| e.to_string());
            let chosen = choose(bytes, limit, why.as_deref());
            mode = chosen?;
            if mode != CaptureMode::Clone && mode != CaptureMode::PauseCopy {
                // A stop cannot be taken back halfway: what was expected is all that can be said.
                limit = LONGEST;
            }
        } else if mode == CaptureMode::Clone
            && let Some(e) = refused
        {
            return Err(e);
        }
    }
    let shares = mode == CaptureMode::Clone || mode == CaptureMode::Online && clones;
    if !shares && !cx.force {
        lacks_room(cx, mode, bytes)?;
    }
    let warnings = std::mem::take(&mut found.warnings);
    let taking = Taking { neo4j: neo4j.clone(), cx: cx.clone(), mode, limit, clones, bytes, found };
    // It ends the interruption, and must get to that even if nobody waits any more.
    #[expect(
        clippy::disallowed_methods,
        reason = "it must outlive a caller that is dropped, to end what it began"
    )]
    let task = tokio::spawn(taking.run());
    let taken = task.await.unwrap_or_else(|e| {
        Err(AdapterError::new(AdapterErrorKind::Other, "the capture broke off").with_source(e))
    })?;
    Ok(taken.source(cx, warnings, bytes))
}

/// What is copied or dumped while the server is down goes to the spool: says what room it lacks.
fn lacks_room(cx: &OpContext, mode: CaptureMode, bytes: u64) -> Result<(), AdapterError> {
    // A dump is compressed; by how much is known afterwards.
    let needed = if mode == CaptureMode::StopDump { bytes / 2 } else { bytes };
    let free = backup_core::keep_aside::free_space(&cx.spool)
        .map_err(|e| AdapterError::io("cannot look at the free space of the spool", e))?;
    if free >= needed {
        return Ok(());
    }
    Err(AdapterError::new(
        AdapterErrorKind::NoSpace,
        format!(
            "`{mode}` may need {} MiB in `{}`, where {} MiB are free: set `state_dir` to a larger disk, or use `clone`",
            needed.div_ceil(1 << 20),
            cx.spool.display(),
            free >> 20
        ),
    ))
}

async fn remove_all(all: Vec<PathBuf>) -> Result<(), AdapterError> {
    blocking(move || all.iter().try_for_each(|p| replica::remove(p))).await
}
