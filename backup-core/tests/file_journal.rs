//! The journal of interruptions on disk: durable, and one winner between a run that ends its interruption and a watchdog.

#![expect(clippy::unwrap_used, reason = "assertions of tests")]

use std::path::Path;

use backup_core::runtime::{InterruptionEntry, InterruptionJournal as _, InterruptionKind};
use backup_core::state::{FileJournal, StateDir};
use chrono::{DateTime, TimeDelta, Utc};

fn journal(dir: &Path) -> FileJournal {
    FileJournal::new(dir.join("interruptions"))
}

fn entry(journal: &FileJournal, id: &str, after: i64) -> InterruptionEntry {
    let began_at = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::seconds(after);
    InterruptionEntry {
        id: id.into(),
        service: "redis".parse().unwrap(),
        run_id: "20260101_000000-abcdef01".parse().unwrap(),
        kind: InterruptionKind::Pause,
        place: journal.place(),
        instance: "c1".into(),
        began_at,
        until: None,
    }
}

#[tokio::test]
async fn entries_outlive_their_writer_and_come_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let writer = journal(dir.path());
    assert!(writer.entries().await.unwrap().is_empty(), "no folder, no entries");
    let (young, old) = (entry(&writer, "a", 20), entry(&writer, "b", 10));
    writer.write(&young).await.unwrap();
    writer.write(&old).await.unwrap();
    let reader = journal(dir.path());
    assert_eq!(reader.entries().await.unwrap(), [old.clone(), young.clone()]);
    assert!(reader.holds("a") && reader.holds("b") && !reader.holds("c"));
    std::fs::write(reader.armed("a"), "").unwrap();
    let a = reader.entries().await.unwrap().into_iter().find(|e| e.id == "a").unwrap();
    assert!(!reader.was_down(&a).await);
    reader.note_down(&a).await;
    assert!(reader.was_down(&a).await);
    assert!(reader.clear(&young).await.unwrap());
    assert!(!reader.clear(&young).await.unwrap(), "once");
    assert!(!reader.armed("a").exists() && !reader.holds("a"));
    assert_eq!(reader.entries().await.unwrap(), [old]);
}

#[tokio::test]
async fn what_was_taken_over_still_stands_and_is_no_longer_its_runs() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let entry = entry(&journal, "a", 0);
    assert!(!journal.take_over(&entry).await.unwrap(), "there is none yet");
    journal.write(&entry).await.unwrap();
    assert!(journal.take_over(&entry).await.unwrap());
    assert!(journal.take_over(&entry).await.unwrap(), "whoever took it over may have died");
    assert_eq!(journal.entries().await.unwrap(), std::slice::from_ref(&entry));
    assert!(journal.holds("a") && journal.file("a").exists());
    assert!(!journal.clear(&entry).await.unwrap(), "its run must learn of it");
    assert!(!journal.holds("a"));
    assert_eq!(std::fs::read_dir(dir.path().join("interruptions")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_and_a_watchdog_never_both_win() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let mut wins = [0, 0];
    for n in 0..200 {
        let entry = entry(&journal, &format!("e{n}"), n);
        journal.write(&entry).await.unwrap();
        // Each works on a thread of its own.
        let (run, watchdog) = tokio::join!(journal.clear(&entry), journal.take_over(&entry));
        let (run, watchdog) = (run.unwrap(), watchdog.unwrap());
        assert!(!(run && watchdog), "{n}");
        wins[usize::from(watchdog)] += 1;
        journal.clear(&entry).await.unwrap();
    }
    assert!(!journal.holds("e0"), "{wins:?}");
}

#[tokio::test]
async fn one_unreadable_file_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let journal = state.interruptions();
    let entry = entry(&journal, "good", 0);
    journal.write(&entry).await.unwrap();
    std::fs::write(journal.path("bad"), "{\"id\":").unwrap();
    assert_eq!(journal.entries().await.unwrap(), [entry]);
    let content = journal.read().await.unwrap();
    assert!(content.unreadable.len() == 1 && content.unreadable[0].contains("bad.json"), "{content:?}");
}
