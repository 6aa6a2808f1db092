//! [`FakeAdapter`]: a service in memory that behaves as a script says, and remembers what was asked of it.

mod body;
mod build;
mod config;
mod interrupt;
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::adapter::{
    Capabilities, CheckPurpose, ContentCheck, HandContext, HandStep, Leftover, LegacyArtifact, Replaced,
    RestorePlan, RestoreSource, RestoreTarget, ServiceAdapter, SpaceNeed, StepToken,
};
use crate::context::OpContext;
use crate::error::{AdapterError, AdapterErrorKind};
use crate::id::{ArtifactName, RunId};
use crate::metadata::{ArtifactMeta, Consistency, Evidence, Image, Metadata};
use crate::registry::AdapterConfig;
use crate::runtime::{InterruptionEntry, Replay};
use crate::source::{Artifact, BackupSource, CaptureReport, ReadOutcome, Settlement};

use body::{LET_GO_POLL, body, until_over};
pub use config::FakeConfig;
pub use script::{Call, Content, Interrupts, Script, Step, text_of, text_of_dir};

/// Marks an artifact that scripts of old are said to have written.
const OLD: &str = "old";

/// A service in memory. Clones share it, so that a test keeps one and the engine gets another.
///
/// Its content is a set of artifacts in chunks. It honours the whole contract of [`ServiceAdapter`], except where its
/// [`Script`] says otherwise.
#[derive(Clone, Default)]
pub struct FakeAdapter {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    script: Script,
    log: Vec<Call>,
    staged: BTreeMap<String, Content>,
    kept: BTreeMap<String, Content>,
}

impl fmt::Debug for FakeAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeAdapter").finish_non_exhaustive()
    }
}

impl FakeAdapter {
    /// Changes the script, also while the adapter is used.
    pub fn script<R>(&self, change: impl FnOnce(&mut Script) -> R) -> R {
        change(&mut self.state().script)
    }

    /// What was asked of the adapter, in order.
    #[must_use]
    pub fn log(&self) -> Vec<Call> {
        self.state().log.clone()
    }

    /// The live content.
    #[must_use]
    pub fn live(&self) -> Content {
        self.state().script.live.clone()
    }

    /// How many contents lie beside the live one: staged, or kept aside.
    #[must_use]
    pub fn beside(&self) -> usize {
        let state = self.state();
        state.staged.len() + state.kept.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere must not hide its message behind a second one.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Records a call, and does what the script says about it.
    async fn enter(&self, cx: &OpContext, step: Step, call: Call) -> Result<(), AdapterError> {
        let (fails, panics) = {
            let mut state = self.state();
            state.log.push(call);
            let Script { failing, panicking, .. } = &state.script;
            (failing.contains(&step), panicking.contains(&step))
        };
        assert!(!panics, "{step} panics, as the script says");
        if self.state().script.missing && matches!(step, Step::Plan | Step::Probe) {
            return Err(AdapterError::new(AdapterErrorKind::NotFound, "there is no such service"));
        }
        if self.state().script.silent && step == Step::Probe {
            return Err(AdapterError::new(AdapterErrorKind::Unavailable, "it does not answer yet"));
        }
        self.hang(cx, step, |s| &s.hanging).await?;
        if fails {
            return Err(AdapterError::new(
                AdapterErrorKind::Other,
                format!("{step} fails, as the script says"),
            ));
        }
        Ok(())
    }

    /// Waits as long as the script says that `step` hangs.
    async fn hang(
        &self,
        cx: &OpContext,
        step: Step,
        hanging: fn(&Script) -> &BTreeSet<Step>,
    ) -> Result<(), AdapterError> {
        let hangs = || hanging(&self.state().script).contains(&step);
        if !hangs() {
            return Ok(());
        }
        self.state().log.push(Call::Hangs(step));
        let let_go = async {
            while hangs() {
                tokio::time::sleep(LET_GO_POLL).await;
            }
        };
        tokio::select! {
            biased;
            over = until_over(cx) => Err(over),
            () = let_go => Ok(()),
        }
    }

    /// As [`enter`](Self::enter), for steps that a cancelled operation does not begin.
    async fn begin(&self, cx: &OpContext, step: Step, call: Call) -> Result<(), AdapterError> {
        self.enter(cx, step, call).await?;
        cx.check_alive()
    }

    /// What was staged goes where it belongs.
    fn exchange(&self, key: &str, dir: Option<&PathBuf>) -> Result<(), AdapterError> {
        let mut state = self.state();
        match (state.staged.remove(key), dir) {
            (Some(content), Some(dir)) => script::write_dir(dir, &content)?,
            (Some(content), None) => {
                let old = std::mem::replace(&mut state.script.live, content);
                state.kept.insert(key.to_owned(), old);
            }
            (None, None) if !state.kept.contains_key(key) => return Err(gone("staged")),
            // Done by an earlier call.
            (None, _) => {}
        }
        Ok(())
    }

    fn exchange_back(&self, key: &str, back: &str) -> Result<(), AdapterError> {
        let mut state = self.state();
        match state.kept.remove(key) {
            Some(old) => {
                let restored = std::mem::replace(&mut state.script.live, old);
                state.kept.insert(back.to_owned(), restored);
            }
            None if !state.kept.contains_key(back) => return Err(gone("kept aside")),
            // Done by an earlier call.
            None => {}
        }
        Ok(())
    }

    fn artifact_of(&self, cx: &OpContext, name: &ArtifactName, chunks: Vec<Bytes>) -> Artifact {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        let body = body(self.clone(), cx.clone(), name.clone(), chunks);
        let mut artifact = Artifact::stream(name.clone(), "fake", body);
        artifact.size_hint = self.state().script.size_hints.then(|| u64::try_from(bytes).unwrap_or(u64::MAX));
        artifact
    }

    fn report(&self, cx: &OpContext, content: &Content) -> CaptureReport {
        let state = self.state();
        let now = cx.clock.now();
        let mut report = CaptureReport::new("fake", Consistency::Dump, now, now);
        report.evidence = state.script.evidence.clone().unwrap_or_else(|| script::evidence_of(content));
        report.fingerprint =
            state.script.fingerprint.then(|| blake3::hash(text_of(content).as_bytes()).to_hex().to_string());
        report.only_if_changed = state.script.only_if_changed;
        report.image = state.script.image.clone().map(|name| Image { name, digest: None });
        report
    }
}

/// What a step of a fake restore remembers: the key of a content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Token {
    Staged(String),
    Kept(String),
    Elsewhere,
}

#[async_trait]
impl ServiceAdapter for FakeAdapter {
    fn kind(&self) -> &'static str {
        FakeConfig::KIND
    }

    fn capabilities(&self) -> Capabilities {
        self.state().script.capabilities
    }

    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError> {
        self.begin(cx, Step::Check, Call::Check).await
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        self.begin(cx, Step::Open, Call::Open).await?;
        let content = self.live();
        let artifacts: Vec<_> =
            content.iter().map(|(name, chunks)| Ok(self.artifact_of(cx, name, chunks.clone()))).collect();
        let release = {
            let interrupts = self.state().script.interrupts.clone();
            let interrupted = interrupt::begin(interrupts, cx).await?;
            let (adapter, cx) = (self.clone(), cx.clone());
            move |outcome: ReadOutcome| async move {
                adapter.enter(&cx, Step::Release, Call::Release(outcome)).await?;
                interrupted.end().await?;
                Ok(adapter.report(&cx, &content))
            }
        };
        let (adapter, cx) = (self.clone(), cx.clone());
        Ok(BackupSource::new(stream::iter(artifacts), release).on_settle(move |settlement| {
            let call = match settlement {
                Settlement::Unknown(_) => Call::SettleUnknown,
                known => Call::Settle { committed: matches!(known, Settlement::Committed(_)) },
            };
            async move { adapter.enter(&cx, Step::Settle, call).await }.boxed()
        }))
    }

    fn container(&self) -> Option<String> {
        self.state().script.container.clone()
    }

    fn comes_first(&self) -> bool {
        self.state().script.comes_first
    }

    fn content_check(&self, _: &CheckPurpose, artifact: &ArtifactMeta) -> Option<Box<dyn ContentCheck>> {
        if artifact.attributes.contains_key(OLD) {
            return Some(script::old_check());
        }
        // What the first run does not know yet, the metadata does not say.
        (artifact.plain_bytes > 0).then(|| script::length_check(artifact))
    }

    /// `<artifact>.old` and `<artifact>.old.gz`: text that ends with `end`.
    fn legacy(&self, file: &str) -> Option<LegacyArtifact> {
        let artifact = match file.strip_suffix(".old.gz") {
            Some(name) => LegacyArtifact::gzip(name),
            None => LegacyArtifact::plain(file.strip_suffix(".old")?),
        };
        Some(artifact.with_attribute(OLD, true).with_caution("a fake of old"))
    }

    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep> {
        let artifacts = backup.metadata.artifacts.iter();
        artifacts.map(|a| HandStep::new(format!("Print `{}`.", a.name), backup.decode(a))).collect()
    }

    async fn plan_restore(
        &self,
        cx: &OpContext,
        backup: &Metadata,
        target: &RestoreTarget,
    ) -> Result<RestorePlan, AdapterError> {
        let can = self.capabilities();
        let (possible, what) = match target {
            RestoreTarget::Live => (can.restore_live, "in place"),
            RestoreTarget::Dir(_) => (can.restore_dir, "into a directory"),
            RestoreTarget::Scratch(_) => (can.restore_scratch, "into scratch"),
        };
        if !possible {
            return Err(AdapterError::unsupported(format!("`fake` cannot restore {what}")));
        }
        self.begin(cx, Step::Plan, Call::Plan).await?;
        let steps = backup.artifacts.iter().map(|a| format!("restore `{}` {what}", a.name)).collect();
        let room = self.script(|s| s.room);
        let space =
            vec![SpaceNeed { path: cx.spool.clone(), bytes: room.unwrap_or_else(|| backup.plain_bytes()) }];
        let token = StepToken::new(&Token::Staged(cx.run_id.to_string()))?;
        let what = "the content".to_owned();
        let kept = Replaced { what, kept_as: format!("kept.{}", cx.timestamp), changed_at: None };
        let replaces = if *target == RestoreTarget::Live { vec![kept] } else { Vec::new() };
        Ok(RestorePlan { target: target.clone(), steps, replaces, space, token })
    }

    async fn stage(
        &self,
        cx: &OpContext,
        _plan: &RestorePlan,
        source: &RestoreSource,
    ) -> Result<StepToken, AdapterError> {
        self.begin(cx, Step::Stage, Call::Stage).await?;
        let image = self.script(|s| s.image.clone());
        if let Some(then) = cx.image_then.as_ref().filter(|then| Some(&then.name) != image.as_ref()) {
            cx.warn(format!("`{}`, which the backup was made of, is not there", then.name));
        }
        let mut content = Content::new();
        for artifact in &source.metadata().artifacts {
            let mut body = source.open(&artifact.name).await?;
            let mut chunks = Vec::new();
            while let Some(chunk) = body.next().await {
                cx.check_alive()?;
                chunks.push(chunk?);
            }
            content.insert(artifact.name.clone(), chunks);
        }
        let key = cx.run_id.to_string();
        self.state().staged.insert(key.clone(), content);
        self.hang(cx, Step::Stage, |s| &s.hanging_after).await?;
        StepToken::new(&Token::Staged(key))
    }

    async fn switch(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        staged: &StepToken,
    ) -> Result<StepToken, AdapterError> {
        self.begin(cx, Step::Switch, Call::Switch).await?;
        let Token::Staged(key) = staged.get()? else {
            return Err(AdapterError::corrupt("the recorded restore step is another one's"));
        };
        let dir = match &plan.target {
            RestoreTarget::Live => None,
            RestoreTarget::Dir(dir) => Some(dir),
            RestoreTarget::Scratch(scratch) => Some(&scratch.dir),
        };
        self.exchange(&key, dir)?;
        self.hang(cx, Step::Switch, |s| &s.hanging_after).await?;
        StepToken::new(&if dir.is_some() { Token::Elsewhere } else { Token::Kept(key) })
    }

    async fn probe(&self, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        if !self.capabilities().probe {
            return Err(AdapterError::unsupported("`fake` cannot count what is live"));
        }
        self.begin(cx, Step::Probe, Call::Probe).await?;
        Ok(script::evidence_of(&match target {
            RestoreTarget::Live => self.live(),
            RestoreTarget::Dir(dir) => script::read_dir(dir)?,
            RestoreTarget::Scratch(scratch) => script::read_dir(&scratch.dir)?,
        }))
    }

    /// An artifact may be empty.
    async fn data(&self, cx: &OpContext) -> Result<Evidence, AdapterError> {
        let mut found = self.probe(cx, &RestoreTarget::Live).await?;
        found.counts.retain(|name, _| name == "bytes");
        Ok(found)
    }

    async fn prove_writable(&self, cx: &OpContext) -> Result<bool, AdapterError> {
        self.begin(cx, Step::ProveWritable, Call::ProveWritable).await?;
        Ok(true)
    }

    /// A question is the name of an artifact, the answer how many bytes it has.
    async fn ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        question: &str,
    ) -> Result<Option<String>, AdapterError> {
        if !self.capabilities().ask {
            return Err(AdapterError::unsupported("`fake` cannot be asked anything"));
        }
        self.begin(cx, Step::Ask, Call::Ask(question.to_owned())).await?;
        let (scripted, mute) = {
            let Script { answers, mute_scratch, .. } = &self.state().script;
            (answers.get(question).cloned(), *mute_scratch)
        };
        let content = match target {
            RestoreTarget::Scratch(_) if mute => {
                return Err(AdapterError::unsupported("no fake runs in scratch"));
            }
            RestoreTarget::Live => self.live(),
            RestoreTarget::Dir(dir) => script::read_dir(dir)?,
            RestoreTarget::Scratch(scratch) => script::read_dir(&scratch.dir)?,
        };
        let bytes = |chunks: &Vec<Bytes>| chunks.iter().map(Bytes::len).sum::<usize>().to_string();
        let true_answer = ArtifactName::new(question).ok().and_then(|name| content.get(&name).map(bytes));
        Ok(scripted.unwrap_or(true_answer))
    }

    async fn undo(&self, cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
        if !self.capabilities().undo {
            return Err(AdapterError::unsupported("`fake` cannot undo a restore"));
        }
        self.begin(cx, Step::Undo, Call::Undo).await?;
        let Token::Kept(key) = switched.get()? else { return Err(gone("kept aside")) };
        // A repeated one, by whichever run, has to find what the first has done.
        let back = format!("{key}-undo");
        self.exchange_back(&key, &back)?;
        self.hang(cx, Step::Undo, |s| &s.hanging_after).await?;
        StepToken::new(&Token::Kept(back))
    }

    async fn leftovers(&self, _cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
        let state = self.state();
        let (what, content) = match token.get()? {
            Token::Staged(key) => (format!("staged {key}"), state.staged.get(&key)),
            Token::Kept(key) => (format!("kept {key}"), state.kept.get(&key)),
            Token::Elsewhere => return Ok(Vec::new()),
        };
        Ok(content.map(|c| Leftover { what, bytes: Some(script::size_of(c)) }).into_iter().collect())
    }

    async fn discard(&self, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
        self.begin(cx, Step::Discard, Call::Discard).await?;
        let mut state = self.state();
        match token.get()? {
            Token::Staged(key) => state.staged.remove(&key),
            Token::Kept(key) => state.kept.remove(&key),
            Token::Elsewhere => None,
        };
        Ok(())
    }

    async fn reclaim(&self, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        self.begin(cx, Step::Reclaim, Call::Reclaim(dead.to_vec())).await?;
        let mut state = self.state();
        let left: Vec<_> = dead.iter().filter(|run| state.staged.remove(run.as_str()).is_some()).collect();
        Ok(left.into_iter().map(|run| format!("staged data of run {run}")).collect())
    }

    async fn bring_back(&self, cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
        self.begin(cx, Step::BringBack, Call::BringBack(entry.id.clone())).await?;
        let interrupts = self.state().script.interrupts.clone();
        let interrupts = interrupts.ok_or_else(|| AdapterError::unsupported("`fake` interrupts nothing"))?;
        interrupt::bring_back(&interrupts, cx, entry).await
    }
}

fn gone(what: &str) -> AdapterError {
    AdapterError::new(AdapterErrorKind::NotFound, format!("nothing is {what} any more"))
}
