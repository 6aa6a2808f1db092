//! Making a fake adapter, setting by setting.

use bytes::Bytes;

use super::{FakeAdapter, Interrupts, Step, script};
use crate::adapter::Capabilities;
use crate::metadata::Evidence;

impl FakeAdapter {
    /// A service without content.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an artifact of these chunks.
    ///
    /// # Panics
    /// When `name` is no valid artifact name.
    #[must_use]
    pub fn artifact<C: Into<Bytes>>(self, name: &str, chunks: impl IntoIterator<Item = C>) -> Self {
        self.script(|s| s.set_artifact(name, chunks));
        self
    }

    /// Fails at every call of `step`.
    #[must_use]
    pub fn failing(self, step: Step) -> Self {
        self.script(|s| s.failing.insert(step));
        self
    }

    /// Hangs at every call of `step` until the operation is cancelled or its deadline passes; goes on once
    /// [`Script::hanging`](super::Script::hanging) does not name it any more.
    #[must_use]
    pub fn hanging(self, step: Step) -> Self {
        self.script(|s| s.hanging.insert(step));
        self
    }

    /// The body of `name` fails in place of its chunk number `chunk` (from 0; the number of chunks: in place of the
    /// end).
    ///
    /// # Panics
    /// When `name` is no valid artifact name.
    #[must_use]
    pub fn failing_at(self, name: &str, chunk: usize) -> Self {
        self.script(|s| s.fail_at.insert(script::name(name), chunk));
        self
    }

    /// As [`failing_at`](Self::failing_at), but hangs until the operation is cancelled or its deadline passes; goes on once
    /// [`Script::hang_at`](super::Script::hang_at) does not name it any more.
    ///
    /// # Panics
    /// When `name` is no valid artifact name.
    #[must_use]
    pub fn hanging_at(self, name: &str, chunk: usize) -> Self {
        self.script(|s| s.hang_at.insert(script::name(name), chunk));
        self
    }

    /// Reports this evidence instead of the true one.
    #[must_use]
    pub fn evidence(self, evidence: Evidence) -> Self {
        self.script(|s| s.evidence = Some(evidence));
        self
    }

    /// Reports a fingerprint of the content, and asks for a commit only if it changed.
    #[must_use]
    pub fn only_if_changed(self) -> Self {
        self.script(|s| (s.fingerprint, s.only_if_changed) = (true, true));
        self
    }

    /// Interrupts the service from `open` to `release`.
    #[must_use]
    pub fn interrupting(self, interrupts: Interrupts) -> Self {
        self.script(|s| s.interrupts = Some(interrupts));
        self
    }

    /// Can do no more than this.
    #[must_use]
    pub fn with_capabilities(self, capabilities: Capabilities) -> Self {
        self.script(|s| s.capabilities = capabilities);
        self
    }
}
