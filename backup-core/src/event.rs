//! Typed events: the interface between the engine and whoever shows what it does.

use std::fmt;

use serde::Serialize;

use crate::id::{ArtifactName, BackupId, RunId, ServiceName, StoreName};

/// What a step of a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done.
    Ok,
    /// Nothing had changed; the newest backup was marked as seen.
    Unchanged,
    /// Committed, but it needs a look: evidence or size collapsed.
    Suspect,
    /// Verification found damage.
    Damaged,
    /// Left out, with a reason.
    Skipped,
    /// Failed.
    Failed,
    /// Cancelled.
    Cancelled,
}

/// Something happened. Serialises to one JSON object with an `event` field.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A verb began.
    RunStarted {
        /// The run.
        run_id: RunId,
        /// `run`, `verify`, `restore`, …
        verb: String,
        /// The services that it will work on.
        services: Vec<ServiceName>,
    },
    /// Work on one service began.
    ServiceStarted {
        /// The service.
        service: ServiceName,
        /// The backup that it is about, where that is known.
        id: Option<BackupId>,
    },
    /// A service waits for another process.
    Waiting {
        /// The service.
        service: ServiceName,
        /// For whom.
        holder: String,
    },
    /// A step of a service began; for people.
    Phase {
        /// The service.
        service: ServiceName,
        /// What happens now, e.g. `capturing`, `swapping`.
        phase: String,
    },
    /// Bytes moved. At most ten a second for each artifact.
    Progress {
        /// The service.
        service: ServiceName,
        /// The artifact.
        artifact: ArtifactName,
        /// Of copies, to which store: there are several at the same time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store: Option<StoreName>,
        /// Plain bytes so far.
        bytes: u64,
        /// Plain bytes in all, if known; an estimate.
        total: Option<u64>,
    },
    /// Something that an operator should know.
    Warning {
        /// The service, if it is about one.
        service: Option<ServiceName>,
        /// One line.
        message: String,
    },
    /// Work on one service ended.
    ServiceFinished {
        /// The service.
        service: ServiceName,
        /// The backup.
        id: Option<BackupId>,
        /// How it ended.
        outcome: Outcome,
        /// Bytes before compression.
        plain_bytes: u64,
        /// Bytes as stored.
        stored_bytes: u64,
        /// Duration in ms.
        ms: u64,
        /// The error's chain, one line.
        error: Option<String>,
        /// What to do about it, if its cause knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// Copying the backups of a service to another store ended.
    CopyFinished {
        /// The service.
        service: ServiceName,
        /// The store.
        store: StoreName,
        /// How it ended.
        outcome: Outcome,
        /// How many were copied.
        copied: usize,
        /// How many were there already.
        there: usize,
        /// Bytes copied.
        stored_bytes: u64,
        /// Duration in ms.
        ms: u64,
        /// The error's chain, one line.
        error: Option<String>,
        /// What to do about it, if its cause knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// A step of saving what a host holds that goes away ended.
    StepFinished {
        /// The step.
        step: String,
        /// How it ended.
        outcome: Outcome,
        /// Duration in ms.
        ms: u64,
        /// What it says, one line.
        said: Option<String>,
        /// The error's chain, one line.
        error: Option<String>,
    },
    /// A part of the host's stack was started or stopped.
    PartFinished {
        /// The part.
        part: String,
        /// `start`, `wait` for one that ran already, `stop`.
        kind: String,
        /// How it ended.
        outcome: Outcome,
        /// Duration in ms.
        ms: u64,
        /// The error's chain, one line.
        error: Option<String>,
        /// The last lines that it wrote, if it does not work.
        last_lines: Vec<String>,
    },
    /// Retention removed a backup.
    Pruned {
        /// The backup.
        id: BackupId,
        /// Why.
        reason: String,
        /// Its stored size.
        bytes: u64,
    },
    /// The verb ended.
    RunFinished {
        /// The run.
        run_id: RunId,
        /// The worst outcome.
        outcome: Outcome,
        /// Duration in ms.
        ms: u64,
    },
}

/// Receives events. Must not block: it is called from the middle of the work.
pub trait EventSink: fmt::Debug + Send + Sync + 'static {
    /// Takes one event.
    fn emit(&self, event: Event);
}

/// Drops every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl EventSink for NoEvents {
    fn emit(&self, _: Event) {}
}
