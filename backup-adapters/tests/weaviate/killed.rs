//! A run that dies in any phase: the server answers again with the old data or the new, and the next run works.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{Event, EventSink, OpContext, ServiceAdapter, chain};
use futures::{FutureExt as _, StreamExt as _};

use crate::support::{Server, bench, later, staged};

/// Panics in a phase, which ends everything there as a kill does: nothing is tidied up.
#[derive(Debug)]
struct KillIn(&'static str);

impl EventSink for KillIn {
    fn emit(&self, event: Event) {
        if let Event::Phase { phase, .. } = event
            && phase == self.0
        {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

pub(crate) async fn killed_in<T>(
    phase: &'static str,
    cx: &OpContext,
    work: impl AsyncFnOnce(OpContext) -> T,
) -> bool {
    let mut cx = cx.clone();
    cx.events = Arc::new(KillIn(phase));
    AssertUnwindSafe(work(cx)).catch_unwind().await.is_err()
}

async fn bring_back(adapter: &dyn ServiceAdapter, cx: &OpContext) -> usize {
    let entries = cx.journal.entries().await.unwrap();
    for entry in &entries {
        adapter.bring_back(cx, entry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    }
    entries.len()
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_capture_that_dies_leaves_what_the_next_run_finds() {
    let server = Server::start().await;
    server.seed().await;
    let adapter = server.adapter("");
    let before = server.digest().await;
    for (phase, entries) in [("activating tenants", 0), ("counting", 1), ("the server makes its backup", 1)] {
        let cx = bench().cx();
        let dead = killed_in(phase, &cx, async |cx| {
            let source = adapter.open(&cx).await.unwrap();
            source.into_parts().artifacts.next().await.map(drop)
        });
        assert!(dead.await, "it was not killed in `{phase}`");
        assert_eq!(bring_back(&*adapter, &cx).await, entries, "{phase}");
        server.assert_holds(&before, phase).await;
        adapter.reclaim(&cx, std::slice::from_ref(&cx.run_id)).await.unwrap();
    }
    // Killed after the server was asked: its backup goes on without us.
    let cx = bench().cx();
    let parts = adapter.open(&cx).await.unwrap().into_parts();
    let mut artifacts = parts.artifacts;
    {
        let mut next = artifacts.next();
        let started = crate::support::until("the backup", async || !server.backups().await.is_empty());
        futures::future::select(std::pin::pin!(started), &mut next).await;
    }
    std::mem::forget(parts.release);
    drop(artifacts);
    bring_back(&*adapter, &cx).await;
    let removed = adapter.reclaim(&cx, std::slice::from_ref(&cx.run_id)).await.unwrap();
    assert!(removed.iter().any(|r| r.contains("backup `backup-")), "{removed:?}");
    assert!(adapter.reclaim(&cx, std::slice::from_ref(&cx.run_id)).await.unwrap().is_empty());
    assert_eq!(server.backups().await, Vec::<String>::new());
    server.assert_holds(&before, "digest").await;
    capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_restore_that_dies_in_any_phase_leaves_old_data_or_new() {
    let server = Server::start().await;
    server.seed().await;
    let adapter = server.adapter("");
    let wanted = server.digest().await;
    let backup = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    server.call("DELETE", "/v1/schema/Doc", None).await;
    server.make_class("Other", false).await;
    server.fill("Other", None, 0, 5, 3).await;
    let old = server.digest().await;
    for phase in [
        "starting a server of the same image",
        "the server restores the backup",
        "counting what was restored",
    ] {
        let bench = bench();
        let cx = bench.cx();
        let dead = killed_in(phase, &cx, async |cx| staged(&*adapter, &cx, &backup).await.map(drop));
        assert!(dead.await, "it was not killed in `{phase}`");
        server.assert_holds(&old, phase).await;
        // What is left beside the server carries the run.
        adapter.reclaim(&later(&cx), std::slice::from_ref(&cx.run_id)).await.unwrap();
    }
    for phase in
        ["stopping the server", "replacing its data", "starting the server", "waiting for the server"]
    {
        let bench = bench();
        let cx = bench.cx();
        let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert!(killed_in(phase, &cx, async |cx| adapter.switch(&cx, &plan, &token).await).await, "{phase}");
        bring_back(&*adapter, &cx).await;
        server.wait_until_ready().await;
        let found = server.digest().await;
        assert!(found == old || found == wanted, "{phase}: {found}");
        let switched =
            adapter.switch(&cx, &plan, &token).await.unwrap_or_else(|e| panic!("{phase}: {}", chain(&e)));
        server.assert_holds(&wanted, phase).await;
        let later = later(&cx);
        let undone =
            adapter.undo(&later, &switched).await.unwrap_or_else(|e| panic!("{phase}: {}", chain(&e)));
        server.assert_holds(&old, phase).await;
        adapter.discard(&later, &undone).await.unwrap();
    }
}
