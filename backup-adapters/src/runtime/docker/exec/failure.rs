//! Why a program did not end well; told twice, to whoever reads its output and to whoever waits for its end.

use backup_core::{AdapterError, AdapterErrorKind};

#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: AdapterErrorKind,
    pub(super) message: String,
    /// Nothing can run any more where the program ran.
    pub(super) over: bool,
}

impl Failure {
    pub(super) fn new(kind: AdapterErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), over: false }
    }

    pub(super) fn over(kind: AdapterErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), over: true }
    }

    pub(super) fn error(&self) -> AdapterError {
        AdapterError::new(self.kind, self.message.clone())
    }
}

impl From<AdapterError> for Failure {
    fn from(e: AdapterError) -> Self {
        Self::new(e.kind(), backup_core::chain(&e))
    }
}
