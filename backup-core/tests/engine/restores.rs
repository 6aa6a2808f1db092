//! Restores: staged, switched, compared, undone, cleaned up, and resumed after a crash.

use backup_core::state::RestorePhase;
use backup_core::testkit::fake_adapter::text_of;
use tokio_util::sync::CancellationToken;

use super::*;

async fn restore(w: &World) -> RunReport {
    w.clock.advance_secs(60);
    let preview = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap();
    w.engine.restore(&preview).await.unwrap()
}

async fn changed(w: &World, fake: &FakeAdapter) -> (String, String) {
    w.back_up().await;
    let before = text_of(&fake.live());
    fake.script(|s| s.set_artifact("one", ["something else"]));
    (before, text_of(&fake.live()))
}

#[tokio::test]
async fn a_restore_brings_the_content_back_keeps_the_old_and_can_be_undone_and_repeated() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    let (before, after) = changed(&w, &fake).await;
    assert_eq!(outcome(&restore(&w).await), (Outcome::Ok, String::new()));
    assert_eq!(text_of(&fake.live()), before);
    w.clock.advance_secs(1);
    let undone = w.engine.undo(&a(), CancellationToken::new()).await.unwrap();
    assert_eq!(outcome(&undone), (Outcome::Ok, String::new()));
    assert_eq!(text_of(&fake.live()), after);
    for _ in 0..2 {
        assert_eq!(outcome(&restore(&w).await), (Outcome::Ok, String::new()));
        assert_eq!(text_of(&fake.live()), before);
    }
    assert!(!w.engine.plan_cleanup(&[]).await.unwrap().is_empty());
    w.engine.cleanup(&[], CancellationToken::new()).await.unwrap();
    assert!(w.engine.plan_cleanup(&[]).await.unwrap().is_empty());
    assert_eq!(text_of(&fake.live()), before);
    let error = outcome(&w.engine.undo(&a(), CancellationToken::new()).await.unwrap()).1;
    assert!(error.contains("no restore to undo"), "{error}");
}

#[tokio::test]
async fn what_is_kept_aside_has_the_name_that_was_shown_unless_it_is_taken() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    changed(&w, &fake).await;
    let request = RestoreRequest::new(a());
    let (first, second) =
        (w.engine.plan_restore(&request).await.unwrap(), w.engine.plan_restore(&request).await.unwrap());
    // As long as somebody thinks about it.
    w.clock.advance_secs(600);
    assert_eq!(outcome(&w.engine.restore(&first).await.unwrap()), (Outcome::Ok, String::new()));
    assert_eq!(outcome(&w.engine.restore(&second).await.unwrap()), (Outcome::Ok, String::new()));
    let kept: Vec<_> =
        w.engine.state().restores(&a()).unwrap().into_iter().map(|j| j.plan.replaces).collect();
    assert_eq!(kept[0], first.plan.replaces);
    assert_ne!(kept[1], kept[0]);
    w.engine.undo(&a(), CancellationToken::new()).await.unwrap();
}

#[tokio::test]
async fn a_damaged_backup_never_goes_live() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    let (_, after) = changed(&w, &fake).await;
    let id = w.entries().await[0].id.clone();
    let file = w.engine.catalog().metadata(&id).await.unwrap().artifacts[1].files[0].path.clone();
    w.damage(&id.file(&file).unwrap(), |bytes| *bytes.last_mut().unwrap() ^= 1).await;
    let report = restore(&w).await;
    assert!(!report.is_ok());
    assert_eq!(text_of(&fake.live()), after);
    assert!(!fake.log().contains(&Asked::Switch));
    assert!(w.engine.plan_cleanup(&[]).await.unwrap().is_empty(), "nothing is left");
}

#[tokio::test]
async fn whatever_step_fails_the_old_data_is_live() {
    for step in [Step::Plan, Step::Stage, Step::Switch, Step::Probe] {
        let fake = adapter();
        let w = World::new(fake.clone()).await;
        let (_, after) = changed(&w, &fake).await;
        w.clock.advance_secs(60);
        let preview = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap();
        fake.script(|s| s.failing.insert(step));
        let report = w.engine.restore(&preview).await.unwrap();
        assert!(!report.is_ok(), "{step}");
        assert_eq!(text_of(&fake.live()), after, "{step}");
        fake.script(|s| s.failing.clear());
        assert_eq!(outcome(&restore(&w).await), (Outcome::Ok, String::new()), "{step}");
    }
}

#[tokio::test]
async fn a_restore_that_was_killed_while_it_went_live_is_finished_and_blocks_captures_until_then() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    let (before, after) = changed(&w, &fake).await;
    restore(&w).await;
    // As a kill between the switch and its note leaves it.
    let mut journal = w.engine.state().restores(&a()).unwrap().remove(0);
    journal.phase = RestorePhase::Switching;
    journal.switched = None;
    w.engine.state().write_restore(&journal).unwrap();
    let report = w.back_up().await;
    assert!(outcome(&report).1.contains("interrupted while it went live"), "{report:?}");
    let undone = w.engine.undo(&a(), CancellationToken::new()).await.unwrap();
    assert_eq!(outcome(&undone), (Outcome::Ok, String::new()));
    assert_eq!(text_of(&fake.live()), after);
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    assert_ne!(before, after);
}

#[tokio::test]
async fn a_backup_that_is_being_restored_is_not_pruned() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    changed(&w, &fake).await;
    restore(&w).await;
    let mut journal = w.engine.state().restores(&a()).unwrap().remove(0);
    journal.phase = RestorePhase::Staging;
    w.engine.state().write_restore(&journal).unwrap();
    let first = journal.backup.clone();
    for _ in 0..4 {
        w.back_up().await;
    }
    assert!(w.entries().await.iter().any(|e| e.id == first));
}

#[tokio::test]
async fn a_cancelled_stage_ends_by_itself_and_leaves_nothing() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    let (_, after) = changed(&w, &fake).await;
    let preview = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap();
    fake.script(|s| s.hanging.insert(Step::Stage));
    let staging = async {
        while !fake.log().contains(&Asked::Stage) {
            tokio::task::yield_now().await;
        }
        preview.request.cancel.cancel();
    };
    let (report, ()) = tokio::join!(w.engine.restore(&preview), staging);
    assert_eq!(report.unwrap().outcome(), Outcome::Cancelled);
    assert_eq!(text_of(&fake.live()), after);
    assert!(w.engine.state().restores(&a()).unwrap().is_empty());
    // Cancelled before it began, too.
    let report = w.engine.restore(&preview).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Cancelled, "{report:?}");
}
