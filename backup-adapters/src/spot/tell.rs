//! Tells people: that the host goes, and what came of it.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{FlushAction, FlushContext};
use backup_core::{AdapterError, Outcome as Came};

use crate::notify::{Channel, Message, Urgency, tell};

fn exercise(cx: &FlushContext) -> &'static str {
    if cx.rehearsal { "Rehearsal: " } else { "" }
}

#[derive(Debug)]
pub(super) struct Alert {
    pub(super) channels: Vec<Arc<dyn Channel>>,
    pub(super) fate: String,
}

#[async_trait]
impl FlushAction for Alert {
    async fn perform(&self, cx: &FlushContext) -> Result<String, AdapterError> {
        let message = Message {
            title: format!("{}{} goes away: {}", exercise(cx), cx.host, self.fate),
            text: "What can be saved is being saved; another message tells what came of it.".to_owned(),
            urgency: if cx.rehearsal { Urgency::Normal } else { Urgency::Urgent },
        };
        tell(&self.channels, &message).await
    }
}

#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) channels: Vec<Arc<dyn Channel>>,
}

#[async_trait]
impl FlushAction for Outcome {
    async fn perform(&self, cx: &FlushContext) -> Result<String, AdapterError> {
        let failed = cx.so_far.iter().filter(|s| !matches!(s.outcome, Came::Ok | Came::Skipped)).count();
        let title = match failed {
            0 => format!("{}{}: everything was saved", exercise(cx), cx.host),
            n => format!("{}{}: {n} of {} steps failed", exercise(cx), cx.host, cx.so_far.len()),
        };
        let lines = cx.so_far.iter().map(|s| {
            let word = match s.outcome {
                Came::Ok => "ok",
                Came::Skipped => "skipped",
                Came::Cancelled => "cut short",
                _ => "FAILED",
            };
            let more = s.error.as_ref().or(s.said.as_ref()).map(|m| format!(": {m}")).unwrap_or_default();
            let seconds = std::time::Duration::from_millis(s.ms).as_secs_f64();
            format!("{} {word} ({seconds:.1} s){more}", s.name)
        });
        let urgency = match (failed, cx.rehearsal) {
            (0, _) | (_, true) => Urgency::Normal,
            _ => Urgency::Urgent,
        };
        let text = lines.collect::<Vec<_>>().join("\n");
        tell(&self.channels, &Message { title, text, urgency }).await
    }
}
