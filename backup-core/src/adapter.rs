//! [`ServiceAdapter`]: the code for one kind of service.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::context::OpContext;
use crate::error::AdapterError;
use crate::id::{ArtifactName, RunId};
use crate::metadata::{ArtifactMeta, Evidence, ExternalRef, Metadata};
use crate::runtime::{InterruptionEntry, Replay};
use crate::source::{BackupSource, ByteStream};

mod ask;
mod capabilities;
mod external;
mod legacy;
mod restoring;

pub use self::ask::{ANSWER_TIME, Answer, passes};
pub use self::capabilities::Capabilities;
pub use self::external::ExternalState;
pub use self::legacy::LegacyArtifact;
pub use self::restoring::{
    Leftover, Replaced, RestorePlan, RestoreTarget, ScratchHandle, SpaceNeed, StepToken,
};

/// Produces and consumes the data of one service.
///
/// # Contract
/// Implemented by authors of adapters; called only by [`Engine`](crate::Engine). To *run* backups, use the engine.
///
/// * **Cheap to build.** Construction does no I/O; the first contact with the service is in `check` or `open`.
/// * **Shared.** Methods take `&self` and may run concurrently for different operations. The engine holds the
///   service's lock, so that two captures or restores of one service never overlap on a host.
/// * **Cancel-safe by hook, not by drop.** Dropping a returned future must not harm the service. What needs an async
///   undo goes into the hooks of [`BackupSource`]; stops and pauses go through
///   [`Interruption`](crate::runtime::Interruption).
/// * **Blocking work off the async threads**: file system, hashing, compression in `spawn_blocking`.
/// * **Every external wait has a deadline**: [`OpContext::remaining`].
/// * **Secrets** never appear in `Debug`, errors, artifact names, attributes, evidence or events.
/// * Capabilities and behaviour agree: what is not declared returns
///   [`Unsupported`](crate::AdapterErrorKind::Unsupported), which is what the default methods do.
///
/// A restore is staged, so that it can be planned, resumed, drilled and undone:
/// `plan_restore → stage → switch → probe → (undo | discard)`. Every step gives a [`StepToken`] that is written to the
/// journal before the next one begins, and every step is **idempotent**: called again with the same input after a
/// crash it completes what is missing. Nothing goes live before every body was read to its verified end.
/// The target is an argument, never the adapter's state.
///
/// The testkit's `adapter_conformance_tests!` executes these clauses.
#[async_trait]
pub trait ServiceAdapter: fmt::Debug + Send + Sync + 'static {
    /// Stable name written to metadata.json, e.g. `"redis"`. Never changes once released.
    fn kind(&self) -> &'static str;

    /// What this adapter can do.
    fn capabilities(&self) -> Capabilities;

    /// Tells whether `open` would probably work. Has no side effects, needs no right that `open` does not need, and
    /// rather passes wrongly than fails wrongly.
    ///
    /// # Errors
    /// `InvalidConfig`, `NotFound`, `Unavailable` (within the deadline), `PermissionDenied` (names the right).
    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError>;

    /// Starts a capture and returns its artifacts lazily.
    ///
    /// If this returns `Err`, the service is already as it was before: there is nothing to release.
    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError>;

    /// The container that the service runs in, as its configuration names it: `recover` asks the [`Stack`](crate::Stack)
    /// to make it if it is missing. `None` for a service without one.
    fn container(&self) -> Option<String> {
        None
    }

    /// Where its live data lies on this host, as far as that can be told: empty where it cannot. For warnings about disks.
    async fn live_paths(&self, _cx: &OpContext) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Whether other services read, as they start, what this one restores: `recover` does it before them.
    fn comes_first(&self) -> bool {
        false
    }

    /// A check of one artifact's plain bytes in the adapter's own format (tar structure, RDB checksum, dump trailer).
    ///
    /// Runs while a backup is written and again in `verify --level content`. `None` if there is nothing to check
    /// beyond the hashes.
    fn content_check(&self, purpose: &CheckPurpose, artifact: &ArtifactMeta)
    -> Option<Box<dyn ContentCheck>>;

    /// What `file` is, if it is one that the scripts before this program wrote for a service of this kind: told by its
    /// name alone. A restore of it gets a backup of this one artifact, of which everything was found out by reading it
    /// once, with [`content_check`](Self::content_check), instead of being recorded.
    fn legacy(&self, file: &str) -> Option<LegacyArtifact> {
        let _unused = file;
        None
    }

    /// How to restore this backup without this program: what follows the checksums in RESTORE.md.
    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep>;

    /// The part of a backup that holds only these artifacts, with what they need beside them, and what is known of them:
    /// restored like a whole one, it leaves everything else of the service as it is.
    ///
    /// # Errors
    /// `Unsupported` if it can only be restored as a whole; `NotFound` names an artifact that it does not have.
    fn part(&self, backup: &Metadata, only: &[ArtifactName]) -> Result<Metadata, AdapterError> {
        let _unused = (backup, only);
        Err(AdapterError::unsupported(format!("backups of `{}` are restored as a whole", self.kind())))
    }

    /// Finds out what a restore would do; changes nothing.
    ///
    /// # Errors
    /// `Unsupported` if the [`Capabilities`] do not cover `target`; `Conflict` for a target that must not be
    /// replaced (in use, a cluster member), unless [`OpContext::force`].
    async fn plan_restore(
        &self,
        cx: &OpContext,
        backup: &Metadata,
        target: &RestoreTarget,
    ) -> Result<RestorePlan, AdapterError> {
        let _unused = (cx, backup, target);
        Err(AdapterError::unsupported(format!("`{}` cannot restore", self.kind())))
    }

    /// Reads every body to its end and prepares the data beside the target. What is live stays untouched.
    async fn stage(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        source: &RestoreSource,
    ) -> Result<StepToken, AdapterError> {
        let _unused = (cx, plan, source);
        Err(AdapterError::unsupported(format!("`{}` cannot restore", self.kind())))
    }

    /// What the staged data will replace, where that is more than the plan could say: takes the place of
    /// [`RestorePlan::replaces`] in the journal, in reports and in what `undo` shows. `None`: the plan said it all.
    fn replaces(&self, staged: &StepToken) -> Option<Vec<Replaced>> {
        let _unused = staged;
        None
    }

    /// Makes the staged data live and keeps what was there aside, e.g. as `<name>.backup.<timestamp>`.
    /// On `Err` the old data is live, as if nothing had happened.
    async fn switch(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        staged: &StepToken,
    ) -> Result<StepToken, AdapterError> {
        let _unused = (cx, plan, staged);
        Err(AdapterError::unsupported(format!("`{}` cannot restore", self.kind())))
    }

    /// Counts what the target holds now, in the terms of the backup's evidence.
    async fn probe(&self, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        let _unused = (cx, target);
        Err(AdapterError::unsupported(format!("`{}` cannot count what is live", self.kind())))
    }

    /// Counts the users' data that the live service holds. `recover` leaves a service alone that holds some, so this must be
    /// quick however much there is and tell the truth while others use it, and must not count what a server that was just
    /// made has, too: users, indexes. Where a name is one of the backup's evidence, the two are compared.
    ///
    /// # Errors
    /// As [`probe`](Self::probe), which it is by default. `Timeout` means that nobody knows.
    async fn data(&self, cx: &OpContext) -> Result<Evidence, AdapterError> {
        self.probe(cx, &RestoreTarget::Live).await
    }

    /// Writes something to the live service and removes it again, so that nothing of it can be seen before or after: a
    /// service that was recovered shall be one that can be used. `false` if there is nothing that this would prove.
    ///
    /// # Errors
    /// Whatever keeps the service from taking writes.
    async fn prove_writable(&self, cx: &OpContext) -> Result<bool, AdapterError> {
        let _unused = cx;
        Ok(false)
    }

    /// Asks one question in the service's own language of what a restore made: the first value of the first row of the
    /// answer, as text, with `true` and `false` for truth values. `None` if there is no row, or nothing in it.
    ///
    /// Read-only, as far as the service offers that: what would write is refused. Users write their smoke queries as such
    /// questions; [`passes`] says which answers they accept.
    ///
    /// # Errors
    /// `Unsupported` if the [`Capabilities`] do not declare it, or if this very target cannot be asked, e.g. because no
    /// server runs there. For a question that the service does not understand, refuses or fails at: one line that says
    /// what the service said, of any other kind.
    async fn ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        question: &str,
    ) -> Result<Option<String>, AdapterError> {
        let _unused = (cx, target, question);
        Err(AdapterError::unsupported(format!("`{}` cannot be asked anything", self.kind())))
    }

    /// [`probe`](Self::probe), and then [`ask`](Self::ask) for each question: for adapters that start a server to look into
    /// scratch, and shall start it once.
    ///
    /// # Errors
    /// Those of `probe`. An answer has an error of its own.
    async fn probe_and_ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        questions: &[String],
    ) -> Result<(Evidence, Vec<Answer>), AdapterError> {
        let found = self.probe(cx, target).await?;
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            let cx = cx.limited_to(ANSWER_TIME);
            answers.push(cx.within(self.ask(&cx, target, question)).await.and_then(|answer| answer));
        }
        Ok((found, answers))
    }

    /// Puts the kept-aside data back. What was restored is kept aside in turn.
    async fn undo(&self, cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
        let _unused = (cx, switched);
        Err(AdapterError::unsupported(format!("`{}` cannot undo a restore", self.kind())))
    }

    /// What a token still occupies: staged data that never went live, or data kept aside. For `cleanup`'s plan.
    ///
    /// `token` is any that the restore has: the plan's, if it died or failed while it staged, else that of its latest
    /// step. [`OpContext::run_id`] is the restore's own; [`OpContext::timestamp`] is that of now.
    async fn leftovers(&self, cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
        let _unused = (cx, token);
        Ok(Vec::new())
    }

    /// Removes what [`leftovers`](Self::leftovers) lists, for the same tokens. Idempotent.
    ///
    /// # Errors
    /// `Conflict` for the token of a `stage` whose `switch` is half done: what was live may lie there.
    async fn discard(&self, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
        let _unused = (cx, token);
        Ok(())
    }

    /// Removes what killed runs left in the service: clones, slots, snapshots on its side, scratch containers.
    ///
    /// `dead` are runs that are known to be over and that were no restores (those have a journal, which settles them).
    /// Some may have committed a backup, and died before [`Settlement`](crate::Settlement) or without knowing it: an
    /// external artifact that a backup may refer to is no leftover.
    /// Idempotent; returns what was removed, one line each.
    async fn reclaim(&self, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError>;

    /// Undoes what an entry of the interruption journal says a run did to the service and did not undo, because it died
    /// or is stuck. Idempotent. For stops and pauses one line over
    /// [`Interruption::replay`](crate::runtime::Interruption::replay); an adapter that announces interruptions of its
    /// own undoes them by the entry's token. The engine has checked the entry's host, and forgets the entry unless the
    /// answer is [`Replay::Foreign`].
    ///
    /// The caller holds the service's lock, unless that run is alive and past its deadline.
    ///
    /// # Errors
    /// Whatever keeps the service from coming back; the entry stays.
    async fn bring_back(&self, cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
        let _unused = (cx, entry);
        Err(AdapterError::unsupported(format!("`{}` never interrupts its service", self.kind())))
    }

    /// How the external artifacts of `backup` stand: asked for what is [`pending`](crate::CaptureReport::pending), and
    /// whenever a backup is verified. The default is for what is complete as soon as it is committed, and cannot be lost.
    ///
    /// # Errors
    /// Whatever keeps it from being known: proves nothing about the backup.
    async fn external_state(&self, cx: &OpContext, backup: &Metadata) -> Result<ExternalState, AdapterError> {
        let _unused = (cx, backup);
        Ok(ExternalState::Complete)
    }

    /// Removes the external artifacts of runs that are over and have certainly committed no backup: what
    /// [`reclaim`](Self::reclaim), which cannot tell, leaves alone. Idempotent; returns what was removed, one line each.
    async fn reclaim_external(&self, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        let _unused = (cx, dead);
        Ok(Vec::new())
    }

    /// Deletes external artifacts. Idempotent: what is already gone is success. Called only for the store of origin.
    async fn purge_external(&self, cx: &OpContext, refs: &[ExternalRef]) -> Result<(), AdapterError> {
        let _unused = cx;
        if refs.is_empty() {
            return Ok(());
        }
        Err(AdapterError::unsupported(format!("`{}` keeps nothing outside the store", self.kind())))
    }
}

/// Why a content check runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckPurpose {
    /// The backup is being written: cheap checks only, in step with the stream.
    Capture,
    /// `verify --level content`: whatever proves the content; may use a private folder that is removed afterwards.
    Verify {
        /// The folder.
        spool: PathBuf,
    },
}

/// Checks plain bytes as they pass. Synchronous: runs on a blocking thread.
pub trait ContentCheck: Send {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Corrupt` as soon as they cannot be right; says where.
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError>;

    /// The stream ended. Returns the counts found in it; they must agree with the backup's evidence.
    ///
    /// # Errors
    /// `Corrupt` when something is missing or does not match.
    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError>;
}

/// Opens decoded bodies; implemented by the engine.
#[async_trait]
pub trait ArtifactOpener: Send + Sync + 'static {
    /// The plain bytes of `artifact`, verified while they are read: a mismatch arrives as `Err(Corrupt)` at the
    /// latest in place of the end.
    async fn open(&self, artifact: &ArtifactMeta) -> Result<ByteStream<AdapterError>, AdapterError>;
}

/// The backup that is restored.
#[derive(Clone)]
pub struct RestoreSource {
    metadata: Arc<Metadata>,
    opener: Arc<dyn ArtifactOpener>,
}

impl RestoreSource {
    /// A source over `opener`.
    #[must_use]
    pub fn new(metadata: Arc<Metadata>, opener: Arc<dyn ArtifactOpener>) -> Self {
        Self { metadata, opener }
    }

    /// The backup's metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The plain bytes of one artifact. Read them to the `None`: only that proves them.
    ///
    /// # Errors
    /// `NotFound` if the backup has no such artifact.
    pub async fn open(&self, name: &ArtifactName) -> Result<ByteStream<AdapterError>, AdapterError> {
        let artifact = self.metadata.artifact(name).ok_or_else(|| {
            AdapterError::new(
                crate::AdapterErrorKind::NotFound,
                format!("the backup has no artifact `{name}`"),
            )
        })?;
        self.opener.open(artifact).await
    }
}

impl fmt::Debug for RestoreSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoreSource").field("id", &self.metadata.id()).finish_non_exhaustive()
    }
}

/// What [`ServiceAdapter::by_hand`] may use.
#[derive(Debug, Clone, Copy)]
pub struct HandContext<'a> {
    /// The backup.
    pub metadata: &'a Metadata,
}

impl HandContext<'_> {
    /// A shell command that writes the plain bytes of `artifact` to its standard output, e.g. `zstd -dcq x.tar.zst`.
    /// Relative to the backup's directory.
    #[must_use]
    pub fn decode(&self, artifact: &ArtifactMeta) -> String {
        let files: Vec<String> = artifact.files.iter().map(|f| shell_quote(&f.path)).collect();
        let mut stages = artifact.encodings.iter().rev().map(|e| match e.as_str() {
            "age" if self.by_passphrase() => "age -d",
            "age" => "age -d -i \"$IDENTITY\"",
            crate::pipeline::GZIP => "gzip -dc",
            _ => "zstd -dcq",
        });
        let mut command = match (stages.next(), files.as_slice()) {
            (Some(first @ ("zstd -dcq" | "gzip -dc")), files) => format!("{first} {}", files.join(" ")),
            (Some(first), [one]) => format!("{first} {one}"),
            // Each is encrypted by itself. What a loop gave before one of them failed must not look like the end.
            (Some(first), many) => {
                format!("for file in {}; do {first} \"$file\" || exit; done", many.join(" "))
            }
            (None, files) => format!("cat {}", files.join(" ")),
        };
        for stage in stages {
            command.push_str(" | ");
            command.push_str(stage);
        }
        command
    }

    /// Whether whoever knows a passphrase opens it: `age` asks for that by itself.
    fn by_passphrase(&self) -> bool {
        let recipients = self.metadata.encryption.as_ref().map(|e| e.recipients.as_slice());
        recipients == Some(&[crate::encryption::PASSPHRASE.to_owned()])
    }
}

/// Quotes `text` for a POSIX shell, if it needs it.
#[must_use]
pub fn shell_quote(text: &str) -> String {
    let plain = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/' | b'=' | b':' | b',' | b'+')
    };
    if !text.is_empty() && text.bytes().all(plain) && !text.starts_with('-') {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// One step of RESTORE.md.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandStep {
    /// What it does, a short sentence: a heading. After a line break, what else is to be known, as Markdown.
    pub text: String,
    /// The command, for `bash`, run in the backup's directory. Empty if there is none.
    pub command: String,
}

impl HandStep {
    /// A step with a command.
    pub fn new(text: impl Into<String>, command: impl Into<String>) -> Self {
        Self { text: text.into(), command: command.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_a_shell() {
        assert_eq!(shell_quote("redis_1.rdb.zst"), "redis_1.rdb.zst");
        assert_eq!(shell_quote("it's"), r"'it'\''s'");
        assert_eq!(shell_quote(""), "''");
        assert_eq!(shell_quote("-rf"), "'-rf'");
    }
}
