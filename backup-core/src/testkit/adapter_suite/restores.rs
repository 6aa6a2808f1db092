//! The clauses about restores.

use super::{Bench, Captured, Damage, Kind};
use crate::adapter::{RestoreTarget, StepToken, passes};
use crate::error::{AdapterErrorKind, chain};

/// What is not declared answers `Unsupported`; what is can be planned.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn capabilities_and_behaviour_agree(bench: &Bench) {
    let adapter = bench.fixture.adapter();
    let can = adapter.capabilities();
    let before = bench.fixture.live().await;
    let captured = bench.captured().await;
    let targets =
        [(Kind::Live, can.restore_live), (Kind::Dir, can.restore_dir), (Kind::Scratch, can.restore_scratch)];
    for (kind, declared) in targets {
        let cx = bench.cx();
        let target = bench.target(&kind, &cx);
        match adapter.plan_restore(&cx, &captured.metadata, &target).await {
            Ok(plan) => {
                assert!(declared, "a restore that is not declared can be planned: {target:?}");
                assert_eq!(plan.target, target, "the plan is for another target");
                assert!(!plan.steps.is_empty(), "the plan says nothing");
                bench.assert_clean("a plan", &serde_json::to_string(&plan).expect("it serialises"));
            }
            Err(e) if declared => panic!("a declared restore cannot be planned: {}", chain(&e)),
            Err(e) => assert_eq!(e.kind(), AdapterErrorKind::Unsupported, "{}", chain(&e)),
        }
    }
    if !can.probe {
        let probed = adapter.probe(&bench.cx(), &RestoreTarget::Live).await;
        assert_eq!(probed.expect_err("not declared").kind(), AdapterErrorKind::Unsupported);
    }
    if !can.undo {
        let token = StepToken::new(&()).expect("it serialises");
        let undone = adapter.undo(&bench.cx(), &token).await;
        assert_eq!(undone.expect_err("not declared").kind(), AdapterErrorKind::Unsupported);
    }
    if can.ask {
        let asked = adapter.ask(&bench.cx(), &RestoreTarget::Live, &bench.fixture.question()).await;
        let answer = asked.expect("the question is answered");
        assert!(passes(answer.as_deref()), "the fixture's question gets {answer:?}");
        assert_eq!(bench.fixture.live().await, before, "a question changed the live data");
    } else {
        let asked = adapter.ask(&bench.cx(), &RestoreTarget::Live, "1").await;
        assert_eq!(asked.expect_err("not declared").kind(), AdapterErrorKind::Unsupported);
    }
}

async fn restores_elsewhere(bench: &Bench, kind: Kind) {
    let before = bench.fixture.live().await;
    let captured = bench.captured().await;
    bench.fixture.mutate().await;
    let changed = bench.fixture.live().await;
    assert_ne!(changed, before, "the fixture's `mutate` changes nothing");
    let target = bench.target(&kind, &bench.cx());
    bench.restore(&captured, &target).await.expect("the restore succeeds");
    assert_eq!(bench.fixture.live().await, changed, "a restore elsewhere touched the live data");
    let dir = match &target {
        RestoreTarget::Dir(dir) => dir,
        RestoreTarget::Scratch(scratch) => &scratch.dir,
        RestoreTarget::Live => return,
    };
    assert_eq!(bench.fixture.restored(dir).await, before, "the restored data is another");
    let (adapter, can) = (bench.fixture.adapter(), bench.fixture.adapter().capabilities());
    if can.probe {
        let questions = if can.ask { vec![bench.fixture.question()] } else { Vec::new() };
        let probed = adapter.probe_and_ask(&bench.cx(), &target, &questions).await;
        let (probed, answers) = probed.expect("the probe succeeds");
        assert_eq!(answers.len(), questions.len(), "a question got no answer");
        for answer in answers {
            match answer {
                Ok(value) => assert!(passes(value.as_deref()), "the restored data answers {value:?}"),
                // Nothing that could be asked need run there.
                Err(e) => assert_eq!(e.kind(), AdapterErrorKind::Unsupported, "{}", chain(&e)),
            }
        }
        let contradictions = captured.report.evidence.contradictions(&probed);
        assert!(contradictions.is_empty(), "the restored data counts otherwise: {contradictions:?}");
    }
}

/// A directory gets the content that was backed up; the live data stays.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn a_directory_gets_the_content(bench: &Bench) {
    if bench.fixture.adapter().capabilities().restore_dir {
        restores_elsewhere(bench, Kind::Dir).await;
    }
}

/// Scratch can be restored into, and what it got counts like the backup; the live data stays.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn scratch_gets_the_content(bench: &Bench) {
    if bench.fixture.adapter().capabilities().restore_scratch {
        restores_elsewhere(bench, Kind::Scratch).await;
    }
}

/// A backup, and live data that changed since: what it was, and what it is.
async fn changed_since(bench: &Bench) -> Option<(Captured, String, String)> {
    if !bench.fixture.adapter().capabilities().restore_live {
        return None;
    }
    let before = bench.fixture.live().await;
    let captured = bench.captured().await;
    bench.fixture.mutate().await;
    let changed = bench.fixture.live().await;
    assert_ne!(changed, before, "the fixture's `mutate` changes nothing");
    Some((captured, before, changed))
}

/// The service has its content again, and can be backed up.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn live_gets_the_content(bench: &Bench) {
    let Some((captured, before, _)) = changed_since(bench).await else { return };
    let token = bench.restore(&captured, &RestoreTarget::Live).await.expect("the restore succeeds");
    bench.assert_clean("a token", &serde_json::to_string(&token).expect("it serialises"));
    assert_eq!(bench.fixture.live().await, before, "the restored data is another");
    bench.captured().await;
}

/// Staged data is not live, and discarding it leaves no trace.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn staging_leaves_the_live_data_alone(bench: &Bench) {
    let Some((captured, _, changed)) = changed_since(bench).await else { return };
    let (adapter, cx) = (bench.fixture.adapter(), bench.cx());
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.expect("a plan");
    let staged = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.expect("stage succeeds");
    assert_eq!(bench.fixture.live().await, changed, "staging touched the live data");
    for _ in 0..2 {
        adapter.discard(&cx, &staged).await.expect("what is staged can be discarded, twice");
    }
    let left = adapter.leftovers(&cx, &staged).await.expect("leftovers can be asked for");
    assert!(left.is_empty(), "discard left {left:?}");
    assert_eq!(bench.fixture.live().await, changed, "discarding touched the live data");
}

/// A restore that died while it staged has only its plan's token: that finds what it left, and removes it.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn the_plan_finds_what_a_killed_stage_left(bench: &Bench) {
    let Some((captured, _, changed)) = changed_since(bench).await else { return };
    let (adapter, cx) = (bench.fixture.adapter(), bench.cx());
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.expect("a plan");
    let clean = adapter.leftovers(&cx, &plan.token).await.expect("leftovers can be asked for by the plan");
    assert!(clean.is_empty(), "a plan left {clean:?}");
    let staged = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.expect("stage succeeds");
    let left = adapter.leftovers(&cx, &plan.token).await.expect("leftovers can be asked for by the plan");
    assert!(!left.is_empty(), "the plan does not find what was staged");
    for _ in 0..2 {
        adapter.discard(&cx, &plan.token).await.expect("what is staged can be discarded by the plan, twice");
    }
    let left = adapter.leftovers(&cx, &staged).await.expect("leftovers can be asked for");
    assert!(left.is_empty(), "discard by the plan left {left:?}");
    assert_eq!(bench.fixture.live().await, changed, "discarding touched the live data");
}

/// Stage and switch can be called again with the same input, and tokens survive the journal.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn steps_can_be_repeated(bench: &Bench) {
    let Some((captured, before, changed)) = changed_since(bench).await else { return };
    let (adapter, cx) = (bench.fixture.adapter(), bench.cx());
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.expect("a plan");
    let plan =
        serde_json::from_str(&serde_json::to_string(&plan).expect("a plan serialises")).expect("and parses");
    let source = captured.source(Damage::None);
    adapter.stage(&cx, &plan, &source).await.expect("stage succeeds");
    let staged = adapter.stage(&cx, &plan, &source).await.expect("stage succeeds again");
    let journal = serde_json::to_string(&staged).expect("a token serialises");
    // As after a restart: another adapter, and tokens read back.
    let adapter = bench.fixture.adapter();
    let staged: StepToken = serde_json::from_str(&journal).expect("a token parses");
    assert_eq!(bench.fixture.live().await, changed, "staging touched the live data");
    adapter.switch(&cx, &plan, &staged).await.expect("switch succeeds");
    let switched = adapter.switch(&cx, &plan, &staged).await.expect("switch succeeds again");
    assert_eq!(bench.fixture.live().await, before, "the restored data is another");
    if adapter.capabilities().undo {
        adapter.undo(&cx, &switched).await.expect("the second token undoes, too");
        assert_eq!(bench.fixture.live().await, changed, "undo brought back something else");
    }
}

/// Bytes that fail their verification are not staged, and the next attempt works.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn damage_never_goes_live(bench: &Bench) {
    let Some((captured, before, changed)) = changed_since(bench).await else { return };
    let (adapter, cx) = (bench.fixture.adapter(), bench.cx());
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.expect("a plan");
    for damage in [Damage::Truncated, Damage::Flipped] {
        let staged = adapter.stage(&cx, &plan, &captured.source(damage)).await;
        assert!(staged.is_err(), "{damage} bytes were staged");
        assert_eq!(bench.fixture.live().await, changed, "{damage} bytes touched the live data");
    }
    bench.restore(&captured, &RestoreTarget::Live).await.expect("intact bytes are restored");
    assert_eq!(bench.fixture.live().await, before, "the restored data is another");
}

/// `undo` puts back exactly what was live, can be repeated, and can itself be undone.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn undo_brings_back_what_was_live(bench: &Bench) {
    let Some((captured, before, changed)) = changed_since(bench).await else { return };
    let adapter = bench.fixture.adapter();
    if !adapter.capabilities().undo {
        return;
    }
    let switched = bench.restore(&captured, &RestoreTarget::Live).await.expect("the restore succeeds");
    let cx = bench.cx();
    adapter.undo(&cx, &switched).await.expect("undo succeeds");
    let undone = adapter.undo(&cx, &switched).await.expect("undo succeeds again");
    assert_eq!(bench.fixture.live().await, changed, "undo brought back something else");
    adapter.undo(&bench.cx(), &undone).await.expect("undo can be undone");
    assert_eq!(bench.fixture.live().await, before, "the restored data is lost");
}

/// What was kept aside can be removed, as often as it is asked for; the live data stays.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn discarding_leaves_the_live_data_alone(bench: &Bench) {
    let Some((captured, before, _)) = changed_since(bench).await else { return };
    let (adapter, cx) = (bench.fixture.adapter(), bench.cx());
    let switched = bench.restore(&captured, &RestoreTarget::Live).await.expect("the restore succeeds");
    for _ in 0..2 {
        adapter.discard(&cx, &switched).await.expect("what is kept aside can be discarded, twice");
    }
    let left = adapter.leftovers(&cx, &switched).await.expect("leftovers can be asked for");
    assert!(left.is_empty(), "discard left {left:?}");
    assert_eq!(bench.fixture.live().await, before, "discarding touched the live data");
}

/// Restoring the same backup again gives the same content.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn a_second_restore_gives_the_same(bench: &Bench) {
    let Some((captured, before, _)) = changed_since(bench).await else { return };
    for _ in 0..2 {
        bench.restore(&captured, &RestoreTarget::Live).await.expect("the restore succeeds");
        assert_eq!(bench.fixture.live().await, before, "the restored data is another");
    }
}

/// A probe of unchanged live data agrees with the backup's evidence.
///
/// # Panics
/// When the adapter breaks the clause.
pub async fn the_probe_agrees_with_the_evidence(bench: &Bench) {
    let adapter = bench.fixture.adapter();
    if !adapter.capabilities().probe {
        return;
    }
    let captured = bench.captured().await;
    let probed = adapter.probe(&bench.cx(), &RestoreTarget::Live).await.expect("the probe succeeds");
    let contradictions = captured.report.evidence.contradictions(&probed);
    assert!(contradictions.is_empty(), "the live data counts otherwise: {contradictions:?}");
}
