//! Derived states: what is listed as what.

use super::*;

const META: &str = "redis/hourly/20260309_043820/metadata.json";

#[tokio::test]
async fn hostile_or_broken_metadata_is_listed_as_unreadable_and_says_why() {
    let w = World::new().await;
    let id = w.commit().await;
    let good: serde_json::Value =
        serde_json::from_slice(&w.catalog.read_file(&id, "metadata.json").await.unwrap()).unwrap();
    let with = |field: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        changed[field] = value;
        serde_json::to_vec(&changed).unwrap()
    };
    let file = |path: &str| {
        let file = serde_json::json!({"path": path, "stored_bytes": 1, "stored_sha256": ""});
        with("artifacts", serde_json::json!([{"name": "a", "files": [file]}]))
    };
    let text = serde_json::to_vec(&good).unwrap();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (text[..text.len() / 2].to_vec(), "not valid JSON"),
        (Vec::new(), "not valid JSON"),
        (with("format_version", 99.into()), "format version 99"),
        (with("features", serde_json::json!(["time-travel"])), "feature `time-travel`"),
        (with("service", "other".into()), "describes other/hourly"),
        (with("service", "../../etc".into()), "not of the expected shape"),
        (file("../../../etc/passwd"), "hostile path"),
        (file("/etc/passwd"), "hostile path"),
        (with("artifacts", serde_json::json!([{"name": "../a"}])), "not of the expected shape"),
        (with("artifacts", serde_json::json!([{"name": "a"}, {"name": "a"}])), "twice"),
    ];
    for (text, why) in cases {
        w.replace(META, &text).await;
        let entries = w.entries().await;
        let BackupState::Unreadable { reason, .. } = &entries[0].state else {
            panic!("{why}: {:?}", entries[0].state)
        };
        assert!(reason.contains(why), "{reason} should say {why}");
        assert!(w.catalog.metadata(&id).await.is_err());
    }
}

#[tokio::test]
async fn fields_of_newer_writers_survive() {
    let w = World::new().await;
    let id = w.commit().await;
    let mut value: serde_json::Value =
        serde_json::from_slice(&w.catalog.read_file(&id, "metadata.json").await.unwrap()).unwrap();
    value["mood"] = "fine".into();
    w.replace(META, &serde_json::to_vec(&value).unwrap()).await;
    let metadata = w.catalog.metadata(&id).await.unwrap();
    assert_eq!(serde_json::to_value(&metadata).unwrap()["mood"], "fine");
}

#[tokio::test]
async fn the_first_seven_fields_are_those_that_operators_grep_for() {
    let w = World::new().await;
    let id = w.commit().await;
    let text = w.catalog.read_file(&id, "metadata.json").await.unwrap();
    let text = std::str::from_utf8(&text).unwrap().to_owned();
    let fields: Vec<&str> =
        text.lines().skip(1).take(7).map(|l| l.trim().split('"').nth(1).unwrap()).collect();
    assert_eq!(fields, ["service", "interval", "timestamp", "size_bytes", "status", "host", "backed_up_at"]);
    assert!(text.contains("\"backed_up_at\": \"2026-03-09T04:38:20Z\""), "{text}");
}

#[tokio::test]
async fn the_old_scripts_directories_are_legacy() {
    let w = World::new().await;
    let old = br#"{"service":"redis","interval":"hourly","timestamp":"20260309_043820","size_bytes":9,"status":"success","host":"ip-10-0-0-1","backed_up_at":"2026-03-09T04:38:20Z"}"#;
    w.put("redis/hourly/20250101_000000/metadata.json", old).await;
    w.put("redis/hourly/20250101_000000/redis_20250101_000000.rdb", b"REDIS0009").await;
    w.put("redis/hourly/20250101_010000/dump.rdb.gz", b"gz").await;
    // Neither a stray file nor a folder with another name is a backup.
    w.put("redis/hourly/notes.txt", b"x").await;
    w.put("redis/hourly/latest/x", b"x").await;
    assert_eq!(w.states().await, ["legacy", "legacy"]);
    let sizes: Vec<u64> = w.entries().await.iter().map(Entry::size_bytes).collect();
    assert_eq!(sizes, [2, 9]);
}

#[tokio::test]
async fn facts_change_what_a_backup_is_worth() {
    let w = World::new().await;
    let id = w.commit().await;
    let bad = FactKind::Verify { level: VerifyLevel::Content, ok: false };
    w.catalog.add_fact(&id, bad, &w.fact()).await.unwrap();
    assert_eq!(w.states().await, ["damaged"]);
    // In the same second: it still counts as later.
    let ok = FactKind::Verify { level: VerifyLevel::Restore, ok: true };
    w.catalog.add_fact(&id, ok, &w.fact()).await.unwrap();
    let entry = &w.entries().await[0];
    assert!(entry.is_good());
    assert_eq!(entry.last_verification().map(|(l, ok, _)| (l, ok)), Some((VerifyLevel::Restore, true)));

    assert!(!entry.held());
    w.catalog.add_fact(&id, FactKind::Hold, &w.fact()).await.unwrap();
    assert!(w.entries().await[0].held());
    w.catalog.add_fact(&id, FactKind::Unhold, &w.fact()).await.unwrap();
    assert!(!w.entries().await[0].held());
    w.clock.advance_secs(60);
    w.catalog.add_fact(&id, FactKind::Seen, &w.fact()).await.unwrap();
    assert_eq!(w.entries().await[0].fresh_at().time(), w.clock.now());
}

#[tokio::test]
async fn what_cannot_be_listed_is_said() {
    let w = World::new().await;
    w.commit().await;
    w.store.set_fault(Some(
        Fault::from(1).only(&[backup_core::testkit::Call::ListKeys, backup_core::testkit::Call::List]),
    ));
    let listing = w.catalog.list(&Filter::default()).await.unwrap();
    assert!(listing.entries.is_empty());
    assert_eq!(listing.errors.len(), 1);
}
