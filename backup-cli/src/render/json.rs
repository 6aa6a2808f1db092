//! Events as JSON lines.

use std::sync::Arc;

use backup_core::{Event, EventSink};

use crate::ui::Ui;

/// Prints each event as a line of its own.
#[derive(Debug)]
pub(crate) struct JsonEvents {
    ui: Arc<Ui>,
}

impl JsonEvents {
    pub(crate) fn new(ui: Arc<Ui>) -> Self {
        Self { ui }
    }
}

impl EventSink for JsonEvents {
    fn emit(&self, event: Event) {
        // Warnings go to both: a log that nobody parses must show them, too.
        if let Event::Warning { service, message } = &event {
            self.ui.warn(&super::human::about(service.as_ref(), message));
        }
        self.ui.json(&event);
    }
}
