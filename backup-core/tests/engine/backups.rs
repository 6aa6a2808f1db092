//! What a backup does, in which order, and what it refuses.

use backup_core::ReadOutcome;

use super::*;

#[tokio::test]
async fn a_backup_is_captured_released_committed_and_settled_in_this_order() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    let report = w.back_up().await;
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    let one = |n: &str| Asked::ReadEnd(n.parse().unwrap());
    let (released, settled) = (Asked::Release(ReadOutcome::Complete), Asked::Settle { committed: true });
    assert_eq!(fake.log(), [Asked::Open, one("one"), one("two"), released, settled]);
    assert_eq!(w.states().await, ["good"]);
    let entry = &w.entries().await[0];
    let dir = entry.id.dir();
    let mut names: Vec<String> = Vec::new();
    let mut keys = w.store.list_keys(Some(&dir));
    while let Some(key) = futures::StreamExt::next(&mut keys).await {
        names.push(key.unwrap().file_name().to_owned());
    }
    names.sort();
    let ts = entry.id.timestamp;
    let expected = vec![
        "RESTORE.md".to_owned(),
        "SHA256SUMS".into(),
        "metadata.json".into(),
        format!("one_{ts}.fake.zst"),
        "run.json".into(),
        format!("two_{ts}.fake.zst"),
    ];
    assert_eq!(names, expected);
    let logged = w.engine.catalog().reports().await.unwrap();
    assert_eq!(logged, [report.run_id]);
}

#[tokio::test]
async fn whatever_step_fails_nothing_is_listed_and_the_capture_is_released() {
    for step in [Step::Open, Step::Release] {
        let fake = adapter().failing(step);
        let w = World::new(fake.clone()).await;
        let report = w.back_up().await;
        assert_eq!(report.outcome(), Outcome::Failed, "{step}");
        assert!(w.entries().await.is_empty(), "{step}");
        let log = fake.log();
        assert_eq!(
            log.iter().filter(|c| matches!(c, Asked::Settle { committed: true })).count(),
            0,
            "{step}"
        );
    }
    let fake = adapter().failing_at("two", 0);
    let w = World::new(fake.clone()).await;
    let report = w.back_up().await;
    assert_eq!(report.outcome(), Outcome::Failed);
    assert!(w.entries().await.is_empty());
    assert!(fake.log().contains(&Asked::Release(ReadOutcome::Failed)));
    assert!(fake.log().contains(&Asked::Settle { committed: false }));
    // The next run succeeds without help.
    fake.script(|s| s.fail_at.clear());
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
}

#[tokio::test]
async fn a_settlement_that_fails_is_told_and_costs_nothing() {
    let w = World::new(adapter().failing(Step::Settle)).await;
    let report = w.back_up().await;
    assert_eq!(report.outcome(), Outcome::Ok);
    assert!(report.steps[0].notes.iter().any(|n| n.contains("settle")), "{:?}", report.steps[0].notes);
    assert_eq!(w.states().await, ["good"]);
}

#[tokio::test]
async fn a_service_that_hangs_is_given_up_at_its_deadline_and_the_others_are_safe() {
    let config = "
        store.url = 'memory://'
        intervals.hourly = { services = ['a', 'b'] }
        services.a = { kind = 'fake', timeout = '300ms' }
        services.b = { kind = 'fake' }
    ";
    let (hangs, fine) = (adapter().hanging_at("two", 0), adapter());
    let w = World::with_config(config, &[("a", hangs.clone()), ("b", fine)]).await;
    let report = w.back_up().await;
    let by_name: std::collections::BTreeMap<_, _> =
        report.steps.iter().map(|s| (s.service.as_str(), s)).collect();
    assert_eq!(by_name["a"].error.as_deref(), Some("service `a` was not done within 300ms"));
    assert_eq!(by_name["b"].outcome, Outcome::Ok);
    assert!(hangs.log().contains(&Asked::Release(ReadOutcome::Failed)));
}

#[tokio::test]
async fn cancelling_or_dropping_a_run_releases_the_service_and_leaves_nothing() {
    for drop_it in [false, true] {
        let fake = adapter().hanging_at("two", 0);
        let w = World::new(fake.clone()).await;
        let mut request = BackupRequest::new(Interval::new("hourly").unwrap());
        request.cancel = tokio_util::sync::CancellationToken::new();
        let reading = async {
            while !fake.log().contains(&Asked::ReadEnd("one".parse().unwrap())) {
                tokio::task::yield_now().await;
            }
        };
        let mut run = Box::pin(w.engine.back_up(&request));
        tokio::select! {
            biased;
            _ = &mut run => panic!("it hangs"),
            () = reading => {}
        }
        if drop_it {
            drop(run);
        } else {
            request.cancel.cancel();
            assert_eq!(run.await.unwrap().outcome(), Outcome::Cancelled);
        }
        w.engine.shutdown().await;
        assert!(fake.log().contains(&Asked::Release(ReadOutcome::Cancelled)), "{:?}", fake.log());
        assert!(w.entries().await.is_empty());
    }
}

#[tokio::test]
async fn a_panic_anywhere_in_a_capture_still_releases_and_settles() {
    let failed = |report: &RunReport, what: &str| {
        assert_eq!(report.outcome(), Outcome::Failed, "{what}");
        let error = outcome(report).1;
        assert!(
            error.contains("the program failed inside") && error.contains("as the script says"),
            "{error}"
        );
    };
    let fake = adapter();
    fake.script(|s| s.panic_at.insert("two".parse().unwrap(), 1));
    let w = World::new(fake.clone()).await;
    failed(&w.back_up().await, "body");
    let settled = Asked::Settle { committed: false };
    assert_eq!(
        fake.log().iter().rev().take(2).rev().cloned().collect::<Vec<_>>(),
        [Asked::Release(ReadOutcome::Failed), settled.clone()]
    );
    assert!(w.entries().await.is_empty(), "nothing is left");

    let fake = adapter();
    fake.script(|s| s.panicking.insert(Step::Release));
    let w = World::new(fake.clone()).await;
    failed(&w.back_up().await, "release");
    assert_eq!(fake.log().last(), Some(&settled));
    assert!(w.entries().await.is_empty());

    let fake = adapter();
    fake.script(|s| s.panicking.insert(Step::Settle));
    let w = World::new(fake.clone()).await;
    let report = w.back_up().await;
    assert_eq!(report.outcome(), Outcome::Ok);
    assert!(report.steps[0].notes[0].contains("the program failed inside"), "{:?}", report.steps[0].notes);
    assert_eq!(w.states().await, ["good"]);
}

#[tokio::test]
async fn a_collapsed_backup_is_suspect_until_somebody_accepts_it() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    w.back_up().await;
    fake.script(|s| s.set_artifact("two", [vec![7_u8; 1_000_000]]));
    let report = w.back_up().await;
    assert_eq!(report.outcome(), Outcome::Suspect);
    assert_eq!(w.states().await, ["suspect", "good"]);
    let newest = w.entries().await[0].id.clone();
    let before = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap();
    assert_ne!(before.entry.id, newest, "a suspect backup is not chosen");
    assert_eq!(before.passed_over.len(), 1);
    w.engine
        .mark(&newest, backup_core::catalog::FactKind::Accept, Some("we deleted it".into()))
        .await
        .unwrap();
    assert_eq!(w.states().await, ["good", "good"]);
}

#[tokio::test]
async fn a_backup_that_holds_nothing_is_suspect_even_without_a_predecessor() {
    let empty: [Bytes; 0] = [];
    let w = World::new(FakeAdapter::new().artifact("one", empty)).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Suspect);
}

#[tokio::test]
async fn an_unchanged_content_is_noted_as_seen_and_takes_no_place() {
    let fake = adapter().only_if_changed();
    let w = World::new(fake.clone()).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    for _ in 0..3 {
        assert_eq!(w.back_up().await.outcome(), Outcome::Unchanged);
    }
    let entries = w.entries().await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].fresh_at().time(), backup_core::Clock::now(&w.clock));
    fake.script(|s| s.set_artifact("one", ["hello moon!"]));
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    assert_eq!(w.entries().await.len(), 2);
}

#[tokio::test]
async fn a_second_run_on_the_same_service_waits_and_then_names_the_holder() {
    let fake = adapter().hanging_at("two", 0);
    let w = World::new(fake.clone()).await;
    let request = BackupRequest::new(Interval::new("hourly").unwrap());
    let mut first = Box::pin(w.engine.back_up(&request));
    let reading = async {
        while !fake.log().contains(&Asked::ReadEnd("one".parse().unwrap())) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = &mut first => panic!("it hangs"),
        () = reading => {}
    }
    let report = w.engine.back_up(&request).await.unwrap();
    let (_, error) = outcome(&report);
    assert!(error.contains("is busy: `backup run` (process"), "{error}");
    request.cancel.cancel();
    first.await.unwrap();
}

#[tokio::test]
async fn services_wait_for_those_that_they_come_after() {
    let config = "
        store.url = 'memory://'
        intervals.hourly = { services = ['a', 'b'] }
        limits.parallel = 8
        services.a = { kind = 'fake', after = ['b'] }
        services.b = { kind = 'fake' }
    ";
    let w = World::with_config(config, &[("a", adapter()), ("b", adapter())]).await;
    let report = w.back_up().await;
    let order: Vec<&str> = report.steps.iter().map(|s| s.service.as_str()).collect();
    assert_eq!(order, ["b", "a"]);
}

#[tokio::test]
async fn leftovers_of_a_killed_run_are_reclaimed_by_the_next() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    let dead: backup_core::RunId = "20260101_000000-dead0000".parse().unwrap();
    let dir = w.dir.path().join("state/runs").join(dead.as_str());
    std::fs::create_dir_all(dir.join("a")).unwrap();
    std::fs::write(dir.with_extension("lock"), "").unwrap();
    w.back_up().await;
    assert_eq!(fake.log()[0], Asked::Reclaim(vec![dead]));
    assert!(!dir.exists() && !dir.with_extension("lock").exists());
}

const TWO_SERIES: &str = "
store.url = 'memory://'
intervals.15min = { services = ['a'] }
intervals.hourly = { services = ['a'] }
services.a = { kind = 'fake' }
";

#[tokio::test]
async fn unchanged_is_judged_by_its_own_series_however_many_backups_another_makes() {
    let fake = adapter().only_if_changed();
    let w = World::with_config(TWO_SERIES, &[("a", fake.clone())]).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    for n in 0..6 {
        fake.script(|s| s.set_artifact("one", [format!("version {n}")]));
        w.clock.advance_secs(60);
        let frequent = BackupRequest::new(Interval::new("15min").unwrap());
        assert_eq!(w.engine.back_up(&frequent).await.unwrap().outcome(), Outcome::Ok);
    }
    fake.script(|s| s.set_artifact("one", ["hello ", "world"]));
    assert_eq!(w.back_up().await.outcome(), Outcome::Unchanged);
}

#[tokio::test]
async fn what_lost_a_file_does_not_stand_for_an_unchanged_content() {
    let w = World::new(adapter().only_if_changed()).await;
    w.back_up().await;
    let id = w.entries().await[0].id.clone();
    let file = w.engine.catalog().metadata(&id).await.unwrap().artifacts[0].files[0].path.clone();
    w.store.inner().delete(&id.file(&file).unwrap()).await.unwrap();
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    assert_eq!(w.entries().await.len(), 2);
}

#[tokio::test]
async fn what_was_accepted_is_the_new_usual() {
    let fake = adapter();
    let w = World::with_config(TWO_SERIES, &[("a", fake.clone())]).await;
    for _ in 0..5 {
        w.back_up().await;
    }
    fake.script(|s| s.set_artifact("two", [vec![7_u8; 1_000_000]]));
    assert_eq!(w.back_up().await.outcome(), Outcome::Suspect);
    let newest = w.entries().await[0].id.clone();
    w.engine.mark(&newest, backup_core::catalog::FactKind::Accept, None).await.unwrap();
    assert_eq!(outcome(&w.back_up().await), (Outcome::Ok, String::new()));
}

#[tokio::test]
async fn a_dead_run_is_forgotten_when_those_that_it_touched_have_reclaimed() {
    let config = "
        store.url = 'memory://'
        intervals.hourly = { services = ['a'] }
        services.a = { kind = 'fake' }
        services.b = { kind = 'fake' }
    ";
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(config, &[("a", a.clone()), ("b", b.clone())]).await;
    let runs = w.dir.path().join("state/runs");
    for (run, services) in
        [("20260101_000000-dead0000", &["a"][..]), ("20260101_000000-dead0001", &["a", "b"])]
    {
        for service in services {
            std::fs::create_dir_all(runs.join(run).join(service)).unwrap();
        }
        std::fs::write(runs.join(format!("{run}.lock")), "").unwrap();
    }
    w.back_up().await;
    assert!(matches!(&a.log()[0], Asked::Reclaim(dead) if dead.len() == 2));
    let left = |run: &str| runs.join(run).exists();
    assert!(!left("20260101_000000-dead0000") && left("20260101_000000-dead0001"));
    assert!(!runs.join("20260101_000000-dead0001/a").exists(), "its spool goes at once");
    w.back_up().await;
    assert_eq!(a.log().iter().filter(|c| matches!(c, Asked::Reclaim(_))).count(), 1, "not again and again");
    w.engine.back_up(&BackupRequest::new(Interval::new("manual").unwrap())).await.unwrap();
    assert!(matches!(&b.log()[0], Asked::Reclaim(dead) if dead.len() == 1));
    assert!(!left("20260101_000000-dead0001"));
}

#[tokio::test]
async fn what_a_dead_run_left_of_a_service_that_is_gone_is_forgotten_after_a_month() {
    let w = World::new(adapter()).await;
    let runs = w.dir.path().join("state/runs");
    let leave = |run: &str, services: &[&str]| {
        services.iter().for_each(|s| std::fs::create_dir_all(runs.join(run).join(s)).unwrap());
        std::fs::write(runs.join(format!("{run}.lock")), "").unwrap();
    };
    // The clock says 2026-03-09.
    let (old, young, restore) =
        ("20260207_000000-dead0000", "20260208_120000-dead0001", "20260101_000000-dead0002");
    // A restore of the service can still be finished, once it is configured again.
    w.back_up().await;
    let preview = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap();
    w.engine.restore(&preview).await.unwrap();
    let mut journal = w.engine.state().restores(&a()).unwrap().remove(0);
    (journal.service, journal.run_id) = ("gone".parse().unwrap(), restore.parse().unwrap());
    w.engine.state().write_restore(&journal).unwrap();
    leave(old, &["gone", "a"]);
    leave(young, &["gone"]);
    leave(restore, &["gone"]);

    w.back_up().await;
    let left = |run: &str| runs.join(run).join("gone").exists();
    assert!(!runs.join(old).exists() && !runs.join(format!("{old}.lock")).exists());
    assert!(left(young) && left(restore));
    assert!(
        w.events.warnings().iter().any(|w| w.contains(old) && w.contains("`gone`")),
        "{:?}",
        w.events.warnings()
    );
    w.engine.state().forget_restore(&journal).unwrap();
    w.clock.advance_secs(2 * 24 * 3600);
    w.back_up().await;
    assert_eq!(std::fs::read_dir(&runs).unwrap().count(), 0);
}

#[tokio::test]
async fn progress_has_a_total_from_the_second_run_on_where_the_adapter_knows_none() {
    let fake = adapter();
    fake.script(|s| s.size_hints = false);
    let w = World::with_config(TWO_SERIES, &[("a", fake.clone())]).await;
    let totals = || {
        let events = std::mem::take(&mut *w.events.0.lock().unwrap());
        let total = |e: Event| match e {
            Event::Progress { artifact, total, .. } => Some((artifact.to_string(), total)),
            _ => None,
        };
        events.into_iter().filter_map(total).collect::<std::collections::BTreeMap<_, _>>()
    };
    let all = |one, two| [("one".to_owned(), one), ("two".to_owned(), two)].into();
    w.back_up().await;
    assert_eq!(totals(), all(None, None));
    fake.script(|s| s.set_artifact("two", [vec![7_u8; 2_000_000]]));
    // Of another series, rather than none.
    w.clock.advance_secs(60);
    w.engine.back_up(&BackupRequest::new(Interval::new("15min").unwrap())).await.unwrap();
    assert_eq!(totals(), all(Some(11), Some(3_000_000)));
    w.back_up().await;
    assert_eq!(totals(), all(Some(11), Some(3_000_000)), "its own series, though it is older");
    w.back_up().await;
    assert_eq!(totals(), all(Some(11), Some(2_000_000)));
}
