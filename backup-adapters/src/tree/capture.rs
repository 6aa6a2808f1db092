//! Runs a [`Writer`] on a blocking thread and hands its chunks on as a stream.

use std::path::PathBuf;

use backup_core::{AdapterError, AdapterErrorKind, ByteStream, OpContext};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::roots::{Root, parents};
use super::rules::{Excluded, RuleSpec};
use super::walk::walk;
use super::write::{OnChange, Out, Summary, Writer};

/// Chunks that may wait for the consumer.
const AHEAD: usize = 4;

/// What is archived, and how.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) roots: Vec<Root>,
    /// What the names in the archive are relative to; these folders and those above are left out then. None: `/`.
    pub(crate) bases: Vec<PathBuf>,
    pub(crate) rules: RuleSpec,
    pub(crate) excluded: Excluded,
    pub(crate) on_change: OnChange,
}

enum Message {
    Data(Bytes),
    Failed(AdapterError),
    /// The archive is complete. A channel that closes without this one is a failure.
    Done,
}

struct ToStream {
    cx: OpContext,
    sender: mpsc::Sender<Message>,
}

impl Out for ToStream {
    fn chunk(&mut self, chunk: Bytes) -> Result<(), AdapterError> {
        self.cx.check_alive()?;
        self.sender.blocking_send(Message::Data(chunk)).map_err(|_| AdapterError::cancelled())
    }
}

/// A running capture.
#[derive(Debug)]
pub(crate) struct Running {
    task: JoinHandle<Option<(Summary, DateTime<Utc>)>>,
}

impl Running {
    /// Waits until nothing is read any more. `None` if the archive was not completed; else also when it was.
    pub(crate) async fn ended(self) -> Option<(Summary, DateTime<Utc>)> {
        self.task.await.ok().flatten()
    }
}

/// Starts to archive. Must be called in a Tokio runtime.
pub(crate) fn start(cx: &OpContext, job: Job) -> (ByteStream<AdapterError>, Running) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let out = ToStream { cx: cx.clone(), sender: sender.clone() };
    let clock = std::sync::Arc::clone(&cx.clock);
    let task = tokio::task::spawn_blocking(move || match write(&job, out) {
        Ok(summary) => {
            let ended = clock.now();
            sender.blocking_send(Message::Done).is_ok().then_some((summary, ended))
        }
        Err(e) => {
            // Nobody listens any more: then nobody needs the reason.
            let _unheard = sender.blocking_send(Message::Failed(e));
            None
        }
    });
    let stream = futures::stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Message::Data(chunk)) => Some((Ok(chunk), Some(receiver))),
            Some(Message::Failed(e)) => Some((Err(e), None)),
            Some(Message::Done) => None,
            None => {
                let e = AdapterError::new(
                    AdapterErrorKind::Other,
                    "the reader of the files stopped unexpectedly",
                );
                Some((Err(e), None))
            }
        }
    });
    (stream.boxed(), Running { task })
}

fn write(job: &Job, out: impl Out) -> Result<Summary, AdapterError> {
    let mut writer = Writer::new(out, job.on_change);
    if job.bases.is_empty() {
        writer.parents(&parents(&job.roots))?;
    } else {
        writer = writer.below(&job.bases);
    }
    for root in &job.roots {
        walk(root, &job.rules, &job.excluded, &mut writer)?;
    }
    writer.finish()
}
