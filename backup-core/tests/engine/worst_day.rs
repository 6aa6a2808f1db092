//! What can go wrong in the midst of a recovery.

use backup_core::engine::{RecoveryAction, RecoveryPlan, RecoveryRequest};
use backup_core::testkit::fake_adapter::text_of;
use tokio_util::sync::CancellationToken;

use super::*;

const TWO: &str = "
store.url = 'memory://'
intervals.hourly = { services = ['a', 'b'], keep = 5 }
services.a = { kind = 'fake', after = ['b'] }
services.b = { kind = 'fake' }
";

fn set(fake: &FakeAdapter, text: &str) {
    fake.script(|s| {
        s.set_artifact("one", [text.to_owned()]);
        s.set_artifact("two", [if text.is_empty() { Vec::new() } else { vec![7_u8; 3_000_000] }]);
    });
}

/// Two services with three backups each, `hello 1` to `hello 3`, that have lost everything.
async fn lost() -> (World, FakeAdapter, FakeAdapter) {
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(TWO, &[("a", a.clone()), ("b", b.clone())]).await;
    for n in 1..=3 {
        set(&a, &format!("hello {n}"));
        set(&b, &format!("hello {n}"));
        assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    }
    set(&a, "");
    set(&b, "");
    w.clock.advance_secs(60);
    (w, a, b)
}

async fn plan(w: &World) -> RecoveryPlan {
    w.engine.plan_recovery(&RecoveryRequest::default()).await.unwrap()
}

async fn recover(w: &World) -> RunReport {
    w.clock.advance_secs(60);
    w.engine.recover(&plan(w).await, CancellationToken::new()).await.unwrap()
}

/// The backups of `a`, the newest first.
async fn of_a(w: &World) -> Vec<Entry> {
    w.entries().await.into_iter().filter(|e| e.id.service == a()).collect()
}

async fn rot(w: &World, entry: &Entry) {
    let metadata = w.engine.catalog().metadata(&entry.id).await.unwrap();
    let key = entry.id.file(&metadata.artifacts[0].files[0].path).unwrap();
    w.damage(&key, |bytes| bytes[9] ^= 1).await;
}

/// Nobody had verified it: the restore itself finds out.
#[tokio::test]
async fn damage_that_nobody_knew_of_costs_one_backup_not_the_service() {
    let (w, a, b) = lost().await;
    let all = of_a(&w).await;
    rot(&w, &all[0]).await;
    rot(&w, &all[1]).await;
    let report = recover(&w).await;
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    let step = report.steps.iter().find(|s| s.service == super::a()).unwrap();
    assert_eq!(step.id.as_ref(), Some(&all[2].id));
    assert!(text_of(&a.live()).contains("hello 1") && text_of(&b.live()).contains("hello 3"));
    for damaged in &all[..2] {
        let told = format!("{} is damaged", damaged.id);
        assert!(step.notes.iter().any(|n| n.contains(&told)), "{:?}", step.notes);
        assert!(w.events.warnings().iter().any(|n| n.contains(&told)));
    }
    // It is known from now on.
    let words: Vec<&str> = of_a(&w).await.iter().map(|e| e.state.word()).collect();
    assert_eq!(words, ["damaged", "damaged", "good"]);

    let (w, a, _) = lost().await;
    for entry in of_a(&w).await {
        rot(&w, &entry).await;
    }
    let (how, why) = outcome(&recover(&w).await);
    assert!(how == Outcome::Failed && why.contains("damaged"), "{how:?} {why}");
    assert!(!text_of(&a.live()).contains("hello"), "what was there stays");
}

/// Somebody emptied the host, and the timers went on: what is valid and empty must not win.
#[tokio::test]
async fn backups_of_an_emptied_host_are_passed_over() {
    let (w, a, b) = lost().await;
    for _ in 0..2 {
        assert_eq!(w.back_up().await.outcome(), Outcome::Suspect);
    }
    let plan = plan(&w).await;
    for (service, restore) in plan.restores() {
        assert_eq!(restore.passed_over.len(), 2, "{}: {:?}", service.service, restore.passed_over);
        assert!(restore.passed_over[0].ends_with("is suspect"), "{:?}", restore.passed_over);
    }
    assert_eq!(recover(&w).await.outcome(), Outcome::Ok);
    assert!(text_of(&a.live()).contains("hello 3") && text_of(&b.live()).contains("hello 3"));
}

/// Whenever the store goes away: what is live is what it was, or what the backup holds, and the next recovery completes it.
#[tokio::test]
async fn a_store_that_goes_away_at_any_call_leaves_nothing_half() {
    let (w, a, b) = lost().await;
    let before = w.store.calls();
    let request =
        RecoveryRequest { overwrite: vec![super::a(), "b".parse().unwrap()], ..RecoveryRequest::default() };
    let all = |w: &World| {
        let (engine, request) = (w.engine.clone(), request.clone());
        async move {
            let plan = engine.plan_recovery(&request).await?;
            engine.recover(&plan, CancellationToken::new()).await
        }
    };
    assert!(all(&w).await.unwrap().is_ok());
    let calls = w.store.calls() - before;
    assert!(calls > 10, "{calls}");
    let mut completed = 0;
    for n in 1..=calls {
        set(&a, "");
        set(&b, "");
        w.clock.advance_secs(60);
        w.store.set_fault(Some(Fault::from(n)));
        let ended = all(&w).await;
        w.store.set_fault(None);
        for fake in [&a, &b] {
            let live = text_of(&fake.live());
            assert!(live.contains("hello 3") || !live.contains("hello"), "call {n}: {live:.60}");
        }
        // Trouble on the way to a backup is not damage: none is passed over for it.
        assert!(w.entries().await.iter().all(Entry::is_good), "call {n}: {ended:?}");
        if ended.as_ref().is_ok_and(RunReport::is_ok) {
            completed += 1;
        }
        w.clock.advance_secs(60);
        assert!(all(&w).await.unwrap().is_ok(), "call {n}");
        assert!(text_of(&a.live()).contains("hello 3") && text_of(&b.live()).contains("hello 3"), "call {n}");
    }
    assert!(completed < calls, "the fault was never felt");
}

/// What has to be kept on disk does not fit there.
#[tokio::test]
async fn without_room_it_is_refused_in_the_plan() {
    let (w, a, b) = lost().await;
    b.script(|s| s.room = Some(u64::MAX / 2));
    let made = plan(&w).await;
    let of = |name: &str| made.services.iter().find(|s| s.service.as_str() == name).unwrap();
    let RecoveryAction::Blocked { why } = &of("b").action else { panic!("{made:?}") };
    assert!(why.contains("not enough room"), "{why}");
    let report = w.engine.recover(&made, CancellationToken::new()).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Failed);
    assert!(text_of(&a.live()).contains("hello 3") && !text_of(&b.live()).contains("hello"));
}

/// Each would fit alone; they are restored side by side, and what they replace stays.
#[tokio::test]
async fn without_room_for_all_of_them_the_last_one_is_refused_in_the_plan() {
    let (w, a, b) = lost().await;
    let free = backup_core::keep_aside::free_space(w.dir.path()).unwrap();
    for fake in [&a, &b] {
        fake.script(|s| s.room = Some(free / 5 * 3));
    }
    let made = plan(&w).await;
    let room = &made.restores().next().unwrap().1.space[0];
    assert!(room.bytes == free / 5 * 3 && room.free > free / 10 * 9, "{room:?} of {free}");
    assert_eq!(room.path, w.engine.state().root(), "it outlives the look");
    let blocked = |s: &&backup_core::engine::ServiceRecovery| matches!(&s.action, RecoveryAction::Blocked { why } if why.contains("with the services before it"));
    assert_eq!((made.restores().count(), made.services.iter().filter(blocked).count()), (1, 1), "{made:?}");
    // Alone, it fits.
    let request = RecoveryRequest { services: vec![super::a()], ..RecoveryRequest::default() };
    assert_eq!(w.engine.plan_recovery(&request).await.unwrap().restores().count(), 1);
}

/// A secret that cannot be had is in the plan of its service, while everything could still be put right.
#[tokio::test]
async fn a_plan_names_the_secrets_that_are_missing() {
    let (a, b) = (adapter(), adapter());
    let gone =
        "services.b = { kind = 'fake', password = { env = 'NOT_SET' }, command = { command = ['false'] } }";
    let config = TWO.replace("services.b = { kind = 'fake' }", gone);
    assert_ne!(config, TWO);
    let w = World::with_config(&config, &[("a", a.clone()), ("b", b.clone())]).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    for fake in [&a, &b] {
        set(fake, "");
    }
    let made = plan(&w).await;
    let of = |name: &str| &made.restores().find(|(s, _)| s.service.as_str() == name).unwrap().1.missing;
    assert!(of("a").is_empty(), "{made:?}");
    // Programs are not called for a look.
    assert!(of("b").len() == 1 && of("b")[0].starts_with("password: "), "{made:?}");
}

/// Competing intervals: the newest counts, whatever it is called.
#[tokio::test]
async fn the_newest_of_all_intervals_is_taken() {
    for newest in ["manual", "spot", "hourly"] {
        let (a, b) = (adapter(), adapter());
        let config = format!("{TWO}intervals.spot = {{ services = ['a'] }}\n");
        let w = World::with_config(&config, &[("a", a.clone()), ("b", b)]).await;
        for interval in ["hourly", "manual", "spot"].into_iter().filter(|i| *i != newest).chain([newest]) {
            set(&a, &format!("of {interval}"));
            w.clock.advance_secs(60);
            let mut request = BackupRequest::new(Interval::new(interval).unwrap());
            request.services = vec![super::a()];
            assert_eq!(w.engine.back_up(&request).await.unwrap().outcome(), Outcome::Ok, "{interval}");
        }
        set(&a, "");
        w.clock.advance_secs(60);
        let made = plan(&w).await;
        let (_, restore) = made.restores().find(|(s, _)| s.service == super::a()).unwrap();
        assert_eq!(restore.backup.interval.as_str(), newest);
        recover(&w).await;
        assert!(text_of(&a.live()).contains(&format!("of {newest}")));
    }
}

/// The clock of the host that made the backups was ahead: they are the newest all the same.
#[tokio::test]
async fn a_clock_that_was_ahead_changes_nothing() {
    let (w, a, _) = lost().await;
    set(&a, "hello 4");
    w.clock.advance_secs(86_400);
    w.back_up().await;
    w.clock.advance_secs(-80_000);
    set(&a, "");
    let made = plan(&w).await;
    let (_, restore) = made.restores().find(|(s, _)| s.service == super::a()).unwrap();
    assert!(restore.as_of > w.clock.now(), "{restore:?}");
    assert_eq!(recover(&w).await.outcome(), Outcome::Ok);
    assert!(text_of(&a.live()).contains("hello 4"));
}

/// Nothing is known of what the old scripts left before it is read.
#[tokio::test]
async fn of_the_old_scripts_the_newest_that_can_be_read_is_taken() {
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(TWO, &[("a", a.clone()), ("b", b.clone())]).await;
    set(&a, "");
    let id = |at: &str| -> backup_core::BackupId { format!("a/hourly/{at}").parse().unwrap() };
    w.put(&id("20250101_000000"), "one.old", "oldest end").await;
    w.put(&id("20250102_000000"), "one.old", "older end").await;
    w.put(&id("20250103_000000"), "one.old", "cut off").await;
    w.put(&id("20250104_000000"), "metadata.json", "{}").await;
    let made = plan(&w).await;
    let (_, restore) = made.restores().next().unwrap();
    assert_eq!(restore.backup, id("20250102_000000"), "{restore:?}");
    assert_eq!(restore.passed_over.len(), 2, "{restore:?}");
    assert!(restore.passed_over[1].contains("does not end"), "{restore:?}");
    recover(&w).await;
    assert!(text_of(&a.live()).contains("older end"));

    // What this program made ranks before them, however new they are.
    set(&a, "hello 1");
    w.back_up().await;
    w.put(&id("20990101_000000"), "one.old", "newest end").await;
    set(&a, "");
    recover(&w).await;
    assert!(text_of(&a.live()).contains("hello 1"));
}

/// A server that is busy is no server without data.
#[tokio::test(start_paused = true)]
async fn one_that_does_not_tell_in_time_what_it_holds_is_not_restored_over() {
    let (w, a, b) = lost().await;
    a.script(|s| s.hanging.insert(Step::Probe));
    let RecoveryAction::Blocked { why } = &plan(&w).await.services[1].action else { panic!("nobody knows") };
    assert!(
        why.contains("did not tell whether") && why.contains("time budget") && why.contains("--overwrite a"),
        "{why}"
    );
    let (how, why) = outcome(&recover(&w).await);
    assert!(how == Outcome::Failed && why.contains("did not tell"), "{how:?} {why}");
    assert!(!text_of(&a.live()).contains("hello") && text_of(&b.live()).contains("hello 3"));

    let request = RecoveryRequest { overwrite: vec![super::a()], ..RecoveryRequest::default() };
    let named = w.engine.plan_recovery(&request).await.unwrap();
    a.script(|s| s.hanging.clear());
    w.clock.advance_secs(60);
    assert!(w.engine.recover(&named, CancellationToken::new()).await.unwrap().is_ok());
    assert!(text_of(&a.live()).contains("hello 3"));
}
