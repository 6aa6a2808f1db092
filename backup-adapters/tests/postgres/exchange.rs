//! Exchanges of names that are no transaction, broken off after each of their steps.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backup_core::runtime::Replay;
use backup_core::testkit::adapter_suite::{Damage, capture};
use backup_core::{Event, EventSink, OpContext, RestoreTarget, ServiceAdapter, chain};
use futures::FutureExt as _;

use crate::restore::stand_in;
use crate::support::{Cluster, bench};

/// Panics at the n-th phase, which ends everything there as a kill does: nothing is tidied up.
#[derive(Debug)]
pub(crate) struct KillAt(AtomicUsize);

impl EventSink for KillAt {
    fn emit(&self, event: Event) {
        if matches!(event, Event::Phase { .. }) && self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

/// Runs `work` with a context whose operation dies in its n-th phase. `None` if it did.
pub(crate) async fn killed_at<T>(
    n: usize,
    cx: &OpContext,
    work: impl AsyncFnOnce(OpContext) -> T,
) -> Option<T> {
    let mut cx = cx.clone();
    cx.events = Arc::new(KillAt(AtomicUsize::new(n)));
    AssertUnwindSafe(work(cx)).catch_unwind().await.ok()
}

/// Another process on the same state.
pub(crate) fn next_process(cx: &OpContext) -> OpContext {
    let mut next = bench().cx();
    next.service = cx.service.clone();
    next.journal = Arc::clone(&cx.journal);
    next.kept = cx.kept.clone();
    next
}

/// What `resume`, the watchdog or the next verb does about what is written down.
pub(crate) async fn bring_back(adapter: &dyn ServiceAdapter, cx: &OpContext) -> Vec<Replay> {
    let (next, mut done) = (next_process(cx), Vec::new());
    for entry in cx.journal.entries().await.unwrap() {
        let replay = adapter.bring_back(&next, &entry).await;
        done.push(replay.unwrap_or_else(|e| panic!("it was not brought back: {}", chain(&e))));
    }
    assert!(cx.journal.entries().await.unwrap().is_empty(), "an entry is left");
    done
}

/// What the two databases hold, each reached by its name.
fn look(server: &Cluster) -> [String; 2] {
    ["one", "two"].map(|name| server.sql(name, "SELECT x FROM t"))
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_death_at_each_step_of_an_exchange_is_put_right() {
    let server = Cluster::start(&[]);
    for name in ["one", "two"] {
        server.sql("postgres", &format!("CREATE DATABASE {name}"));
        server.sql(name, &format!("CREATE TABLE t AS SELECT 'restored {name}' AS x"));
    }
    let programs = stand_in(&server);
    let adapter = server
        .adapter(&format!("flavor = 'yugabyte'\nport = 5432\nprograms = '{programs}'\nuser = 'postgres'"));
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    for name in ["one", "two"] {
        server.sql(name, &format!("UPDATE t SET x = 'old {name}'"));
    }
    let old = ["old one", "old two"].map(str::to_owned);
    let restored = ["restored one", "restored two"].map(str::to_owned);
    let (mut kills, mut backs, mut completed) = (0, 0, 0);
    for n in 0.. {
        let cx = bench().cx();
        let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
        let staged = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.unwrap();
        let died = killed_at(n, &cx, async |cx| adapter.switch(&cx, &plan, &staged).await).await.is_none();
        assert_eq!(cx.journal.entries().await.unwrap().len(), usize::from(died), "step {n}");
        bring_back(&*adapter, &cx).await;
        // Every application finds its database, and all of them are of one moment.
        let found = look(&server);
        assert!(found == old || found == restored, "step {n}: {found:?}");
        (kills, backs) = (kills + usize::from(died), backs + usize::from(found == old));
        // The next verb finishes the restore.
        let switched = adapter.switch(&next_process(&cx), &plan, &staged).await.unwrap();
        assert_eq!(look(&server), restored, "step {n}");
        let mut later = next_process(&cx);
        later.timestamp = cx.timestamp.next();
        let undone = killed_at(n, &later, async |cx| adapter.undo(&cx, &switched).await).await;
        bring_back(&*adapter, &later).await;
        let found = look(&server);
        assert!(found == old || found == restored, "undo, step {n}: {found:?}");
        let undone = match undone {
            Some(undone) => undone,
            None => adapter.undo(&later, &switched).await,
        };
        assert_eq!(look(&server), old, "undo, step {n}");
        adapter.discard(&later, &undone.unwrap()).await.unwrap();
        assert_eq!(server.databases(), ["one", "postgres", "two"], "step {n}");
        if !died {
            completed = n;
            break;
        }
    }
    println!("{kills} kills: {backs} taken back, {} completed", kills + 1 - backs);
    assert!(completed >= 8 && backs >= 6 && backs < kills, "{completed} {backs} {kills}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn an_exchange_that_fails_is_taken_back_at_once() {
    let server = Cluster::start(&[]);
    server.sql("postgres", "CREATE DATABASE one");
    server.sql("one", "CREATE TABLE t AS SELECT 'one' AS x");
    let programs = stand_in(&server);
    let adapter = server
        .adapter(&format!("flavor = 'yugabyte'\nport = 5432\nprograms = '{programs}'\nuser = 'postgres'"));
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    server.sql("one", "UPDATE t SET x = 'old'");
    let cx = bench().cx();
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    let staged = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.unwrap();
    // One of the statements is refused: a prepared name of somebody else's.
    let script = std::path::Path::new(&programs).join("ysqlsh");
    let real = std::fs::read_to_string(&script).unwrap();
    let fails = "case \"$*\" in *'RENAME TO \"one\"'*) [ -e \"$0.failed\" ] || { : >\"$0.failed\"; echo 'ERROR:  broken' >&2; \
         exit 1; };; esac\n";
    std::fs::write(&script, real.replacen('\n', &format!("\n{fails}"), 1)).unwrap();
    let e = adapter.switch(&cx, &plan, &staged).await.unwrap_err();
    assert!(chain(&e).contains("broken"), "{}", chain(&e));
    assert_eq!(server.sql("one", "SELECT x FROM t"), "old");
    assert!(cx.journal.entries().await.unwrap().is_empty());
    adapter.discard(&cx, &staged).await.unwrap();
    assert_eq!(server.databases(), ["one", "postgres"]);
}
