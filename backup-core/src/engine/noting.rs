//! What an adapter warns of while it is tested belongs into the report of that, too.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::{Event, EventSink};

/// Passes events on, and keeps the warnings. What was said once is not said again.
#[derive(Debug)]
pub(super) struct Noting {
    to: Arc<dyn EventSink>,
    said: Mutex<Vec<String>>,
}

impl Noting {
    pub(super) fn new(to: Arc<dyn EventSink>) -> Self {
        Self { to, said: Mutex::new(Vec::new()) }
    }

    /// The warnings, in their order.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.said())
    }

    fn said(&self) -> MutexGuard<'_, Vec<String>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Noting {
    fn emit(&self, event: Event) {
        if let Event::Warning { message, .. } = &event {
            let mut said = self.said();
            if said.contains(message) {
                return;
            }
            said.push(message.clone());
        }
        self.to.emit(event);
    }
}
