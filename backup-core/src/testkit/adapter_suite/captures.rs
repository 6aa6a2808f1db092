//! The clauses about captures, checks and cleaning up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, timeout};

use super::memory::damaged;
use super::{Bench, Damage, GRACE};
use crate::adapter::{CheckPurpose, ContentCheck, HandContext};
use crate::context::OpContext;
use crate::error::{AdapterError, AdapterErrorKind, chain};
use crate::id::{BackupId, Interval, RunId};
use crate::metadata::Evidence;
use crate::runtime::Replay;
use crate::source::{ArtifactBody, BackupSource, ReadOutcome, Settlement};

/// `check` passes, and neither the service nor the spool shows that it ran.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn check_has_no_side_effects(bench: &Bench) {
    let (adapter, cx) = (bench.fixture.adapter(), bench.cx());
    let before = bench.fixture.live().await;
    adapter.check(&cx).await.expect("check passes for a service that is there");
    assert_eq!(bench.fixture.live().await, before, "check changed the live data");
    let spooled = std::fs::read_dir(&cx.spool).expect("the spool is there").count();
    assert_eq!(spooled, 0, "check left files in the spool");
}

/// A service that is not there fails `check` and `open` within the deadline, with an error of one line.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn an_unreachable_service_is_reported(bench: &Bench) {
    let Some(adapter) = bench.fixture.unreachable() else { return };
    let mut cx = bench.cx();
    cx.deadline = Some(Instant::now() + Duration::from_secs(2));
    let check = timeout(GRACE, adapter.check(&cx)).await.expect("check ends soon after its deadline");
    let open = timeout(GRACE, adapter.open(&cx)).await.expect("open ends soon after its deadline");
    for error in [check.expect_err("check fails"), open.map(drop).expect_err("open fails")] {
        let text = chain(&error);
        assert!(!text.contains('\n'), "an error has more than one line: {text}");
        bench.assert_clean("an error", &text);
    }
}

/// There is an artifact, and no two share a name.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn artifact_names_are_unique(bench: &Bench) {
    let captured = bench.captured().await;
    let names: BTreeSet<_> = captured.metadata.artifacts.iter().map(|a| &a.name).collect();
    assert!(!names.is_empty(), "the capture has no artifact");
    assert_eq!(names.len(), captured.metadata.artifacts.len(), "two artifacts share a name");
    assert_eq!(captured.metadata.adapter, bench.fixture.adapter().kind());
}

async fn end(source: BackupSource, outcome: ReadOutcome) {
    end_with(source, outcome, Settlement::Abandoned).await;
}

async fn end_with(source: BackupSource, outcome: ReadOutcome, settlement: Settlement) {
    let parts = source.into_parts();
    drop(parts.artifacts);
    // A report or an error: there is nothing to be trusted.
    let _reported = timeout(GRACE, (parts.release)(outcome)).await.expect("release ends soon");
    if let Some(settle) = parts.settle {
        let settled = timeout(GRACE, settle(settlement)).await.expect("settle ends soon");
        settled.expect("settle succeeds");
    }
}

async fn assert_usable(bench: &Bench, before: &str) {
    assert_eq!(bench.fixture.live().await, before, "the live data changed");
    bench.captured().await;
}

/// A body that is dropped after its first chunk, followed by `release(Failed)`, leaves the service as it was, and the
/// next capture works.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn a_dropped_body_leaves_the_service_usable(bench: &Bench) {
    let before = bench.fixture.live().await;
    let mut parts = bench.fixture.adapter().open(&bench.cx()).await.expect("open succeeds").into_parts();
    let artifact = parts.artifacts.next().await.expect("an artifact comes").expect("it is intact");
    if let ArtifactBody::Stream(mut body) = artifact.body {
        // What came does not matter, only that the reading had begun.
        let _first = body.next().await;
    }
    drop(parts.artifacts);
    let _reported = timeout(GRACE, (parts.release)(ReadOutcome::Failed)).await.expect("release ends soon");
    if let Some(settle) = parts.settle {
        settle(Settlement::Abandoned).await.expect("settle succeeds");
    }
    assert_usable(bench, &before).await;
}

/// A capture that nobody reads can be released, and the next one works.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn a_capture_ends_without_being_read(bench: &Bench) {
    let before = bench.fixture.live().await;
    let source = bench.fixture.adapter().open(&bench.cx()).await.expect("open succeeds");
    end(source, ReadOutcome::Cancelled).await;
    assert_usable(bench, &before).await;
}

/// Where nobody knows whether there was a commit, `settle` does no harm, and `reclaim` finds what it left.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn an_unknown_commit_is_left_to_reclaim(bench: &Bench) {
    let before = bench.fixture.live().await;
    let (adapter, cx) = (bench.fixture.adapter(), bench.cx());
    let source = adapter.open(&cx).await.expect("open succeeds");
    let interval = Interval::new("manual").expect("a valid name");
    let id = BackupId { service: cx.service.clone(), interval, timestamp: cx.timestamp };
    end_with(source, ReadOutcome::Failed, Settlement::Unknown(id)).await;
    adapter.reclaim(&bench.cx(), std::slice::from_ref(&cx.run_id)).await.expect("reclaim succeeds");
    let again = adapter.reclaim(&bench.cx(), &[cx.run_id]).await.expect("reclaim succeeds again");
    assert!(again.is_empty(), "reclaim had not removed everything: {again:?}");
    assert_usable(bench, &before).await;
}

/// Opens with a context that is over already, and ends what it may have got.
async fn open_late(bench: &Bench, cx: &OpContext) -> Result<(), AdapterError> {
    let opened = timeout(GRACE, bench.fixture.adapter().open(cx)).await.expect("open ends soon");
    end(opened?, ReadOutcome::Cancelled).await;
    Ok(())
}

/// A cancelled operation ends within [`GRACE`], before `open` as well as between chunks, and does no harm.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn cancellation_is_noticed(bench: &Bench) {
    let before = bench.fixture.live().await;
    let cx = bench.cx();
    cx.cancel.cancel();
    if let Err(e) = open_late(bench, &cx).await {
        assert_eq!(e.kind(), AdapterErrorKind::Cancelled, "another error than `Cancelled`: {}", chain(&e));
    }

    let cx = bench.cx();
    let mut parts = bench.fixture.adapter().open(&cx).await.expect("open succeeds").into_parts();
    cx.cancel.cancel();
    let drain = async {
        // To its end or to an error: it must not hang.
        while let Some(Ok(artifact)) = parts.artifacts.next().await {
            if let ArtifactBody::Stream(mut body) = artifact.body {
                while let Some(Ok(_)) = body.next().await {}
            }
        }
    };
    timeout(GRACE, drain).await.expect("a cancelled capture ends");
    drop(parts.artifacts);
    let _reported = timeout(GRACE, (parts.release)(ReadOutcome::Cancelled)).await.expect("release ends soon");
    if let Some(settle) = parts.settle {
        settle(Settlement::Abandoned).await.expect("settle succeeds");
    }
    assert_usable(bench, &before).await;
}

/// A capture whose budget is used up ends within [`GRACE`] and does no harm.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn a_used_up_budget_is_noticed(bench: &Bench) {
    let before = bench.fixture.live().await;
    let mut cx = bench.cx();
    cx.deadline = Some(Instant::now());
    if let Err(e) = open_late(bench, &cx).await {
        assert_eq!(e.kind(), AdapterErrorKind::Timeout, "another error than `Timeout`: {}", chain(&e));
    }
    assert_usable(bench, &before).await;
}

/// Two captures of the same data have the same fingerprint, if any; changed data has another one.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn equal_content_has_equal_fingerprints(bench: &Bench) {
    let first = bench.captured().await.report;
    let second = bench.captured().await.report;
    assert_eq!(first.fingerprint, second.fingerprint, "the data is the same");
    assert!(first.fingerprint.is_some() || !first.only_if_changed, "nothing to tell a change by");
    bench.fixture.mutate().await;
    if first.fingerprint.is_some() {
        assert_ne!(bench.captured().await.report.fingerprint, first.fingerprint, "the data is another");
    }
}

fn checked(
    check: Option<Box<dyn ContentCheck>>,
    chunks: &[bytes::Bytes],
) -> Option<Result<Evidence, AdapterError>> {
    let mut check = check?;
    Some(chunks.iter().try_for_each(|c| check.update(c)).and_then(|()| check.finish()))
}

/// The content check passes for what the adapter captured, in chunks of any size, and finds what the evidence says.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn the_content_check_accepts_its_own(bench: &Bench) {
    let adapter = bench.fixture.adapter();
    let captured = bench.captured().await;
    let mut found = Evidence::default();
    for artifact in &captured.metadata.artifacts {
        let whole: bytes::Bytes = captured.body(&artifact.name).concat().into();
        for size in [7, whole.len().max(1)] {
            let purpose = CheckPurpose::Verify { spool: bench.new_dir("verify") };
            let chunks: Vec<_> = whole.chunks(size).map(bytes::Bytes::copy_from_slice).collect();
            if let Some(result) = checked(adapter.content_check(&purpose, artifact), &chunks) {
                found.merge(result.expect("the content check accepts what was captured"));
            }
        }
    }
    let contradictions = captured.report.evidence.contradictions(&found);
    assert!(contradictions.is_empty(), "the check counts something else: {contradictions:?}");
}

/// The content check, if there is one, does not pass for half an artifact.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn the_content_check_finds_damage(bench: &Bench) {
    let adapter = bench.fixture.adapter();
    let captured = bench.captured().await;
    for artifact in captured.metadata.artifacts.iter().filter(|a| a.plain_bytes > 0) {
        let purpose = CheckPurpose::Verify { spool: bench.new_dir("verify") };
        let half = damaged(captured.body(&artifact.name).to_vec(), Damage::Truncated);
        match checked(adapter.content_check(&purpose, artifact), &half) {
            Some(Ok(_)) => panic!("the content check accepts half of `{}`", artifact.name),
            Some(Err(e)) => assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{}", chain(&e)),
            None => {}
        }
    }
}

/// There are instructions for a recovery by hand, and they show no secret.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn recovery_by_hand_is_described(bench: &Bench) {
    let captured = bench.captured().await;
    let steps = bench.fixture.adapter().by_hand(&HandContext { metadata: &captured.metadata });
    assert!(!steps.is_empty(), "nobody can restore this by hand");
    for step in steps {
        assert!(!step.text.trim().is_empty(), "a step does not say what it does: `{}`", step.command);
        bench.assert_clean("a step by hand", &format!("{} {}", step.text, step.command));
    }
}

/// Secrets show neither in `Debug` nor in what is written about a backup nor in errors.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn secrets_do_not_show(bench: &Bench) {
    let adapter = bench.fixture.adapter();
    bench.assert_clean("Debug", &format!("{adapter:?}"));
    let captured = bench.captured().await;
    bench.assert_clean("metadata.json", &serde_json::to_string(&*captured.metadata).expect("it serialises"));
    bench.assert_clean("the report", &format!("{:?}", captured.report));
    let cx = bench.cx();
    cx.cancel.cancel();
    if let Err(e) = open_late(bench, &cx).await {
        bench.assert_clean("an error", &format!("{e:?} {}", chain(&e)));
    }
}

/// `reclaim` of runs that left nothing removes nothing, as often as it is called.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn reclaim_can_be_repeated(bench: &Bench) {
    let adapter = bench.fixture.adapter();
    let before = bench.fixture.live().await;
    let dead: Vec<RunId> = vec![bench.cx().run_id, bench.cx().run_id];
    for _ in 0..2 {
        let removed = adapter.reclaim(&bench.cx(), &dead).await.expect("reclaim succeeds");
        assert!(removed.is_empty(), "unknown runs left something: {removed:?}");
    }
    assert_usable(bench, &before).await;
}

/// `purge_external` without references succeeds.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn nothing_external_is_purged_for_nothing(bench: &Bench) {
    let adapter = bench.fixture.adapter();
    adapter.purge_external(&bench.cx(), &[]).await.expect("there is nothing to purge");
}

/// A capture that is killed midway leaves nothing interrupted that `bring_back` would not undo, and the next capture
/// works. An adapter that never interrupts its service has nothing to show here.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn what_a_killed_capture_interrupted_comes_back(bench: &Bench) {
    let before = bench.fixture.live().await;
    let (adapter, cx) = (bench.fixture.adapter(), bench.cx());
    let mut parts = adapter.open(&cx).await.expect("open succeeds").into_parts();
    // To the first bytes: an adapter may interrupt as late as that.
    if let Some(Ok(artifact)) = parts.artifacts.next().await
        && let ArtifactBody::Stream(mut body) = artifact.body
    {
        let _first = body.next().await;
    }
    drop(parts);
    for entry in cx.journal.entries().await.expect("the journal can be read") {
        for attempt in 1..=2 {
            let mut later = bench.cx();
            later.journal = Arc::clone(&cx.journal);
            let back = adapter.bring_back(&later, &entry).await;
            let back = back.unwrap_or_else(|e| panic!("attempt {attempt}: {}", chain(&e)));
            assert!(!matches!(back, Replay::Foreign(_)), "attempt {attempt}: {back:?}");
        }
    }
    adapter.reclaim(&bench.cx(), std::slice::from_ref(&cx.run_id)).await.expect("reclaim succeeds");
    assert_usable(bench, &before).await;
}
