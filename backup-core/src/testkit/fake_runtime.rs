//! A runtime that runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};

use crate::error::{AdapterError, AdapterErrorKind};
use crate::runtime::{
    ExecCommand, ExecOutcome, Execution, ExitStatus, Inspection, InterruptionEntry, InterruptionJournal,
    Place, RunState, ServiceRuntime, Signs, Watchdog,
};

/// A service, its host's journal and a watchdog in one, which write down what is done to them, in order: `journal`, `arm`,
/// `stop`, `start`, `pause`, `unpause`, `take over`, `disarm`, `clear`. Clones are the same service.
#[derive(Debug, Clone)]
pub struct FakeRuntime {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    state: RunState,
    instance: String,
    place: Place,
    log: Vec<&'static str>,
    entries: Vec<InterruptionEntry>,
    taken: BTreeSet<String>,
    fail: BTreeMap<&'static str, (AdapterErrorKind, bool)>,
    hang: Option<&'static str>,
    stdout: Bytes,
    started: Option<String>,
    last_lines: Vec<String>,
    late: u32,
}

impl FakeRuntime {
    /// A service in `state`, called `c1`, on host `host` in boot `boot`.
    #[must_use]
    pub fn new(state: RunState) -> Self {
        let place = Place { host: "host".to_owned(), boot_id: "boot".to_owned() };
        let inner = Inner {
            state,
            instance: "c1".to_owned(),
            place,
            log: Vec::new(),
            entries: Vec::new(),
            taken: BTreeSet::new(),
            fail: BTreeMap::new(),
            hang: None,
            stdout: Bytes::new(),
            started: None,
            last_lines: Vec::new(),
            late: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it runs.
    #[must_use]
    pub fn state(&self) -> RunState {
        self.lock().state
    }

    /// Puts it into a state, as somebody else would.
    pub fn set_state(&self, state: RunState) {
        self.lock().state = state;
    }

    /// Makes it anew under another id.
    pub fn set_instance(&self, instance: &str) {
        instance.clone_into(&mut self.lock().instance);
    }

    /// Moves the journal to another place, e.g. into another boot.
    pub fn set_place(&self, place: Place) {
        self.lock().place = place;
    }

    /// What is seen of it from outside: when it was started last, and the line that it wrote last.
    pub fn set_signs(&self, started: &str, line: &str) {
        let mut inner = self.lock();
        inner.started = Some(started.to_owned());
        inner.last_lines = vec![line.to_owned()];
    }

    /// What a program run by `exec` prints.
    pub fn set_stdout(&self, stdout: Bytes) {
        self.lock().stdout = stdout;
    }

    /// Makes the next call called `name` fail. If it is to take effect anyway, its answer was lost.
    pub fn fail_next(&self, name: &'static str, kind: AdapterErrorKind, takes_effect: bool) {
        self.lock().fail.insert(name, (kind, takes_effect));
    }

    /// As it runs again, so many looks still tell that it is paused, as an engine does that learns of it late.
    pub fn tell_late(&self, looks: u32) {
        self.lock().late = looks;
    }

    /// Makes the next call called `name` hang for ever, without effect.
    pub fn hang_next(&self, name: &'static str) {
        self.lock().hang = Some(name);
    }

    /// What was done, in order, since the last call of this.
    #[must_use]
    pub fn take_log(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.lock().log)
    }

    async fn call(&self, name: &'static str, effect: impl FnOnce(&mut Inner)) -> Result<(), AdapterError> {
        let hangs = {
            let mut inner = self.lock();
            inner.log.push(name);
            inner.hang.take_if(|h| *h == name).is_some()
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        let mut inner = self.lock();
        let fault = inner.fail.remove(name);
        if fault.is_none_or(|(_, takes_effect)| takes_effect) {
            effect(&mut inner);
        }
        match fault {
            Some((kind, _)) => Err(AdapterError::new(kind, format!("injected: {name}"))),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl ServiceRuntime for FakeRuntime {
    async fn inspect(&self) -> Result<Inspection, AdapterError> {
        let mut inner = self.lock();
        let mut state = inner.state;
        if state == RunState::Running && inner.log.contains(&"unpause") && inner.late > 0 {
            inner.late -= 1;
            state = RunState::Paused;
        }
        Ok(Inspection {
            instance: inner.instance.clone(),
            state,
            image: None,
            labels: BTreeMap::new(),
            mounts: Vec::new(),
        })
    }

    async fn signs(&self) -> Result<Signs, AdapterError> {
        let Inner { state, started, last_lines, .. } = &*self.lock();
        Ok(Signs { state: *state, started: started.clone(), last_lines: last_lines.clone() })
    }

    async fn start(&self) -> Result<(), AdapterError> {
        self.call("start", |s| s.state = RunState::Running).await
    }

    async fn stop(&self, _: Duration) -> Result<ExitStatus, AdapterError> {
        self.call("stop", |s| s.state = RunState::Stopped).await?;
        Ok(ExitStatus { code: Some(143), killed: false })
    }

    async fn pause(&self) -> Result<(), AdapterError> {
        self.call("pause", |s| s.state = RunState::Paused).await
    }

    async fn unpause(&self) -> Result<(), AdapterError> {
        self.call("unpause", |s| s.state = RunState::Running).await
    }

    async fn exec(&self, _: ExecCommand) -> Result<Execution, AdapterError> {
        if self.state() != RunState::Running {
            return Err(AdapterError::new(AdapterErrorKind::Conflict, "the service does not run"));
        }
        self.call("exec", |_| ()).await?;
        let stdout = self.lock().stdout.clone();
        let outcome =
            ExecOutcome { status: ExitStatus { code: Some(0), killed: false }, stderr_tail: String::new() };
        Ok(Execution {
            stdout: stream::iter([Ok(stdout)]).boxed(),
            outcome: std::future::ready(Ok(outcome)).boxed(),
        })
    }

    async fn volume_path(&self, inside: &Path) -> Result<Option<PathBuf>, AdapterError> {
        Ok(self.inspect().await?.host_path(inside))
    }
}

#[async_trait]
impl InterruptionJournal for FakeRuntime {
    fn place(&self) -> Place {
        self.lock().place.clone()
    }

    async fn write(&self, entry: &InterruptionEntry) -> Result<(), AdapterError> {
        self.call("journal", |s| s.entries.push(entry.clone())).await
    }

    async fn take_over(&self, entry: &InterruptionEntry) -> Result<bool, AdapterError> {
        let known = self.lock().entries.iter().any(|e| e.id == entry.id);
        self.call("take over", |s| s.taken.extend(known.then(|| entry.id.clone()))).await?;
        Ok(known)
    }

    async fn clear(&self, entry: &InterruptionEntry) -> Result<bool, AdapterError> {
        let mut ours = false;
        self.call("clear", |s| {
            ours = s.entries.iter().any(|e| e.id == entry.id) && !s.taken.contains(&entry.id);
            s.entries.retain(|e| e.id != entry.id);
        })
        .await?;
        Ok(ours)
    }

    async fn entries(&self) -> Result<Vec<InterruptionEntry>, AdapterError> {
        Ok(self.lock().entries.clone())
    }
}

#[async_trait]
impl Watchdog for FakeRuntime {
    async fn arm(&self, _: &InterruptionEntry, _: Duration) -> Result<(), AdapterError> {
        self.call("arm", |_| ()).await
    }

    async fn disarm(&self, _: &InterruptionEntry) -> Result<(), AdapterError> {
        self.call("disarm", |_| ()).await
    }
}
