//! The contract of [`ServiceAdapter`] as tests: one per clause, for every adapter, also those made elsewhere.
//!
//! An adapter's author writes a fixture and one line:
//!
//! ```
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use backup_core::ServiceAdapter;
//! use backup_core::testkit::adapter_suite::AdapterFixture;
//! use backup_core::testkit::fake_adapter::{FakeAdapter, text_of, text_of_dir};
//!
//! struct Fixture(FakeAdapter);
//!
//! #[async_trait::async_trait]
//! impl AdapterFixture for Fixture {
//!     fn adapter(&self) -> Arc<dyn ServiceAdapter> {
//!         Arc::new(self.0.clone())
//!     }
//!     async fn mutate(&self) {
//!         self.0.script(|s| s.set_artifact("a", ["changed"]));
//!     }
//!     async fn live(&self) -> String {
//!         text_of(&self.0.live())
//!     }
//!     async fn restored(&self, dir: &Path) -> String {
//!         text_of_dir(dir)
//!     }
//!     fn question(&self) -> String {
//!         "a".into() // this fake answers how many bytes its artifact `a` has
//!     }
//! }
//!
//! backup_core::adapter_conformance_tests!(fake, || async { Fixture(FakeAdapter::new().artifact("a", ["1", "2"])) });
//! # fn main() {}
//! ```

mod captures;
mod memory;
mod restores;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

use crate::adapter::{RestoreTarget, ScratchHandle, ServiceAdapter, StepToken};
use crate::clock::{Clock, SystemClock};
use crate::context::OpContext;
use crate::error::AdapterError;
use crate::id::{RunId, ServiceName, Timestamp};

pub use captures::*;
pub use memory::{Captured, Damage, MemoryOpener, capture};
pub use restores::*;

/// How long an adapter may take to notice that it was cancelled.
pub const GRACE: Duration = Duration::from_secs(10);

/// Fresh data of one service, and ways to look at it that do not use the adapter.
///
/// Each clause gets a fixture of its own; whatever it needs (folders, servers) lives as long as it.
#[async_trait]
pub trait AdapterFixture: Send + Sync + 'static {
    /// The adapter over the data. May be called more than once; all of them protect the same data.
    fn adapter(&self) -> Arc<dyn ServiceAdapter>;

    /// Changes the live data, so that [`live`](Self::live) answers something else.
    async fn mutate(&self);

    /// The live data as text, equal if and only if the content is.
    async fn live(&self) -> String;

    /// What a restore made in `dir`, in the same form. Called only if the adapter restores into directories.
    async fn restored(&self, dir: &Path) -> String {
        panic!("the fixture cannot read `{}`: write `AdapterFixture::restored`", dir.display())
    }

    /// A question whose answer passes, before and after [`mutate`](Self::mutate). Called only if the adapter can be asked.
    fn question(&self) -> String {
        panic!("the adapter can be asked: write `AdapterFixture::question`")
    }

    /// Adapts the context, e.g. to give secrets.
    fn context(&self, cx: OpContext) -> OpContext {
        cx
    }

    /// An adapter whose service is not there: `check` and `open` must fail soon and say so.
    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        None
    }

    /// Values of secrets that the adapter uses: they must never show.
    fn canaries(&self) -> Vec<String> {
        Vec::new()
    }
}

/// How many runs there were in this process.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// The time, and a folder that is there as long as somebody may ask for it: the bench may be gone before its contexts.
#[derive(Debug)]
struct ClockBeside(#[expect(dead_code, reason = "it is held, not used")] Arc<tempfile::TempDir>);

impl Clock for ClockBeside {
    fn now(&self) -> DateTime<Utc> {
        SystemClock.now()
    }
}

/// A fixture, and folders and contexts for its operations.
pub struct Bench {
    fixture: Box<dyn AdapterFixture>,
    dir: Arc<tempfile::TempDir>,
    operations: AtomicU32,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("dir", &self.dir.path()).finish_non_exhaustive()
    }
}

impl Bench {
    /// A bench for `fixture`.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    pub fn new(fixture: impl AdapterFixture) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        Self { fixture: Box::new(fixture), dir, operations: AtomicU32::new(0) }
    }

    /// The context of a new operation: a run, a moment and a spool of its own.
    ///
    /// # Panics
    /// When its spool cannot be made.
    #[must_use]
    pub fn cx(&self) -> OpContext {
        let n = self.operations.fetch_add(1, Ordering::Relaxed);
        let at = DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::seconds(n.into());
        let timestamp = Timestamp::new(at);
        // What runs leave in a shared place, such as an engine, is found by their ids: no two tests may have the same.
        let unique = std::process::id() << 12 | RUNS.fetch_add(1, Ordering::Relaxed) & 0xFFF;
        let run_id: RunId = format!("{timestamp}-{unique:08x}").parse().expect("a valid run id");
        let service = ServiceName::new("conformance").expect("a valid name");
        let spool = self.new_dir("spool");
        let clock = Arc::new(ClockBeside(Arc::clone(&self.dir)));
        self.fixture.context(OpContext::new(service, run_id, timestamp, spool, clock))
    }

    /// A new empty folder.
    fn new_dir(&self, what: &str) -> PathBuf {
        let dir = tempfile::Builder::new().prefix(what).tempdir_in(self.dir.path());
        dir.expect("a temporary folder").keep()
    }

    fn target(&self, kind: &Kind, cx: &OpContext) -> RestoreTarget {
        match kind {
            Kind::Live => RestoreTarget::Live,
            Kind::Dir => RestoreTarget::Dir(self.new_dir("parent").join("restored")),
            Kind::Scratch => RestoreTarget::Scratch(ScratchHandle {
                dir: self.new_dir("scratch"),
                run_id: cx.run_id.clone(),
            }),
        }
    }

    async fn captured(&self) -> Captured {
        capture(&*self.fixture.adapter(), &self.cx()).await.expect("the capture succeeds")
    }

    /// Plans, stages and switches. The token of the switch.
    async fn restore(&self, captured: &Captured, target: &RestoreTarget) -> Result<StepToken, AdapterError> {
        captured.restore(&*self.fixture.adapter(), &self.cx(), target).await
    }

    /// The text must not hold any of the fixture's secrets.
    fn assert_clean(&self, what: &str, text: &str) {
        for canary in self.fixture.canaries() {
            assert!(!text.contains(&canary), "{what} shows a secret");
        }
    }
}

enum Kind {
    Live,
    Dir,
    Scratch,
}

/// Runs one clause on a runtime of its own, of one thread: blocking work on it stops everything, and shows.
///
/// # Panics
/// When the clause does, or is not done after five minutes.
pub fn run(clause: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let limit = Duration::from_secs(300);
    runtime.block_on(async { tokio::time::timeout(limit, clause).await }).expect("the clause ends");
}

/// Runs `clauses`, up to `at_once` of them at a time, each on a thread of its name.
///
/// # Panics
/// With the names of those that failed.
pub fn run_together(at_once: usize, clauses: &[(&str, fn())]) {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(|| {
                while let Some((name, clause)) = clauses.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let thread = thread::Builder::new().name((*name).to_owned());
                    let ran = thread.spawn_scoped(scope, *clause).map(thread::ScopedJoinHandle::join);
                    if !matches!(ran, Ok(Ok(()))) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failed.is_empty(), "these clauses fail: {failed:?}");
}

/// Defines a module `$module` with one test for each clause of the contract of
/// [`ServiceAdapter`](crate::ServiceAdapter). `$fixture` is called for each: an expression such as
/// `|| async { MyFixture::new() }`. Attributes before the name go to every test, e.g. `#[ignore = "needs …"]`.
///
/// With `at_once = 6` behind the fixture there is one test, `every_clause`, that runs so many of them at a time: for services
/// whose clauses mostly wait, e.g. for a server's start. With `only = [clause, …]` instead there are tests for these alone: for
/// another mode of an adapter whose contract is shown in full in one mode.
/// See [`testkit::adapter_suite`](crate::testkit::adapter_suite).
#[macro_export]
macro_rules! adapter_conformance_tests {
    (@tests ($attributes:tt $fixture:expr) $($clause:ident)*) => {
        $(
            $crate::adapter_conformance_tests! { @test $attributes $fixture; $clause }
        )*
    };
    (@test ($(#[$attribute:meta])*) $fixture:expr; $clause:ident) => {
            #[test]
            $(#[$attribute])*
            fn $clause() {
                $crate::adapter_conformance_tests! { @run $fixture; $clause }
            }
    };
    (@run $fixture:expr; $clause:ident) => {
        $crate::testkit::adapter_suite::run(async {
            let bench = $crate::testkit::adapter_suite::Bench::new(($fixture)().await);
            $crate::testkit::adapter_suite::$clause(&bench).await;
        })
    };
    (@together ($at_once:expr, $fixture:expr) $($clause:ident)*) => {
        $crate::testkit::adapter_suite::run_together($at_once, &[$(
            (stringify!($clause), || $crate::adapter_conformance_tests! { @run $fixture; $clause }),
        )*])
    };
    ($(#[$attribute:meta])* $module:ident, $fixture:expr) => {
        mod $module {
            use super::*;
            $crate::adapter_conformance_tests! { @all tests (($(#[$attribute])*) $fixture) }
        }
    };
    ($(#[$attribute:meta])* $module:ident, $fixture:expr, at_once = $at_once:expr) => {
        mod $module {
            use super::*;
            #[test]
            $(#[$attribute])*
            fn every_clause() {
                $crate::adapter_conformance_tests! { @all together ($at_once, $fixture) }
            }
        }
    };
    ($(#[$attribute:meta])* $module:ident, $fixture:expr, only = [$($clause:ident),+ $(,)?]) => {
        mod $module {
            use super::*;
            $crate::adapter_conformance_tests! { @tests (($(#[$attribute])*) $fixture) $($clause)+ }
        }
    };
    (@all $how:ident $with:tt) => {
        $crate::adapter_conformance_tests! { @$how $with
            check_has_no_side_effects
            an_unreachable_service_is_reported
            artifact_names_are_unique
            a_dropped_body_leaves_the_service_usable
            a_capture_ends_without_being_read
            an_unknown_commit_is_left_to_reclaim
            cancellation_is_noticed
            a_used_up_budget_is_noticed
            equal_content_has_equal_fingerprints
            the_content_check_accepts_its_own
            the_content_check_finds_damage
            recovery_by_hand_is_described
            secrets_do_not_show
            reclaim_can_be_repeated
            what_a_killed_capture_interrupted_comes_back
            nothing_external_is_purged_for_nothing
            capabilities_and_behaviour_agree
            a_directory_gets_the_content
            scratch_gets_the_content
            live_gets_the_content
            staging_leaves_the_live_data_alone
            the_plan_finds_what_a_killed_stage_left
            steps_can_be_repeated
            damage_never_goes_live
            undo_brings_back_what_was_live
            discarding_leaves_the_live_data_alone
            a_second_restore_gives_the_same
            the_probe_agrees_with_the_evidence
        }
    };
}
