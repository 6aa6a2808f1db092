//! The example does what it says, and leaves nothing behind.

#[path = "../examples/embed_in_service.rs"]
#[expect(dead_code, reason = "its `main` prints")]
mod embed_in_service;

#[tokio::test]
async fn it_backs_up_restores_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let log = embed_in_service::run(dir.path()).await.unwrap();
    let [backup, restore] = log.as_slice() else { panic!("{log:?}") };
    assert!(
        backup.starts_with("notes: Ok, notes/hourly/") && restore.starts_with("notes: Ok, notes/hourly/"),
        "{log:?}"
    );

    let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let kept: Vec<String> = names.filter(|n| n.starts_with("notes.backup.")).collect();
    let [kept] = kept.as_slice() else { panic!("{kept:?}") };
    assert_eq!(std::fs::read_to_string(dir.path().join(kept).join("monday")).unwrap(), "scrawled over");
    // No run is open any more.
    assert_eq!(std::fs::read_dir(dir.path().join("state/runs")).unwrap().count(), 0);
}
