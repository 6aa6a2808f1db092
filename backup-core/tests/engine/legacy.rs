//! Backups of the scripts before this program: verified as far as they can be, restored when they are named.

use std::io::Write as _;

use backup_core::BackupId;
use backup_core::Consistency;
use backup_core::engine::Selector;
use backup_core::testkit::fake_adapter::{text_of, text_of_dir};
use tokio_util::sync::CancellationToken;

use super::*;

const SEVEN: &str = r#"{"service":"a","interval":"hourly","timestamp":"20250101_000000","size_bytes":9,"status":"STATUS","host":"ip-10-0-0-1","backed_up_at":"2025-01-01T00:00:07Z"}"#;

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn id(at: &str) -> BackupId {
    format!("a/hourly/{at}").parse().unwrap()
}

fn old() -> BackupId {
    id("20250101_000000")
}

impl World {
    pub(super) async fn put(&self, id: &BackupId, file: &str, bytes: impl Into<Bytes>) {
        let mut writer =
            self.store.inner().writer(&id.file(file).unwrap(), Default::default()).await.unwrap();
        writer.write(bytes.into()).await.unwrap();
        writer.finish().await.unwrap();
    }

    async fn with_old(file: &str, bytes: impl Into<Bytes>) -> (Self, FakeAdapter) {
        let fake = adapter();
        let w = Self::new(fake.clone()).await;
        w.put(&old(), file, bytes).await;
        (w, fake)
    }

    async fn verify_old(&self, level: VerifyLevel) -> (RunReport, Outcome, String) {
        let request = VerifyRequest { ids: vec![old()], ..VerifyRequest::new(level) };
        let report = self.engine.verify(&request).await.unwrap();
        let (outcome, error) = outcome(&report);
        (report, outcome, error)
    }

    /// Every key of the store, less the reports.
    async fn keys(&self) -> Vec<String> {
        use futures::TryStreamExt as _;
        let keys: Vec<StoreKey> = self.store.inner().list_keys(None).try_collect().await.unwrap();
        let mut keys: Vec<String> =
            keys.iter().map(StoreKey::to_string).filter(|k| !k.starts_with(".runs/")).collect();
        keys.sort();
        keys
    }
}

fn named(id: BackupId) -> RestoreRequest {
    RestoreRequest { selector: Selector::Exactly(id), ..RestoreRequest::new(a()) }
}

async fn refusal(w: &World, request: &RestoreRequest) -> String {
    backup_core::chain(&w.engine.plan_restore(request).await.unwrap_err())
}

#[tokio::test]
async fn an_old_file_is_restored_compared_kept_aside_and_undone() {
    for (file, bytes) in [("one.old", b"the old end".to_vec()), ("one.old.gz", gzip("the old end"))] {
        let (w, fake) = World::with_old(file, bytes).await;
        let before = text_of(&fake.live());
        let preview = w.engine.plan_restore(&named(old())).await.unwrap();
        assert_eq!(preview.metadata.consistency, Consistency::Legacy);
        assert_eq!(preview.metadata.plain_bytes(), 11);
        let warned = preview.metadata.capture.warnings.join("\n");
        assert!(warned.contains("no checksum and no count") && warned.contains("a fake of old"), "{warned}");
        assert_eq!(text_of(&fake.live()), before, "a plan changes nothing");

        let report = w.engine.restore(&preview).await.unwrap();
        assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
        assert!(report.steps[0].notes.iter().any(|n| n.contains("no checksum")), "{report:?}");
        assert_eq!(text_of(&fake.live()), "one: the old end\n");
        w.clock.advance_secs(1);
        let undone = w.engine.undo(&a(), CancellationToken::new()).await.unwrap();
        assert_eq!(outcome(&undone), (Outcome::Ok, String::new()));
        assert_eq!(text_of(&fake.live()), before);
        assert_eq!(w.keys().await, [old().file(file).unwrap().to_string(), "store.json".to_owned()]);
    }
}

#[tokio::test]
async fn elsewhere_too() {
    let (w, fake) = World::with_old("one.old.gz", gzip("the old end")).await;
    let to = w.dir.path().join("out");
    let request = RestoreRequest { to: Some(to.clone()), ..named(old()) };
    let preview = w.engine.plan_restore(&request).await.unwrap();
    assert_eq!(outcome(&w.engine.restore(&preview).await.unwrap()), (Outcome::Ok, String::new()));
    assert_eq!(text_of_dir(&to), "one: the old end\n");
    assert!(text_of(&fake.live()).starts_with("one: hello world\n"));
}

#[tokio::test]
async fn content_and_restore_are_verified_and_nothing_is_noted() {
    let (w, _) = World::with_old("one.old.gz", gzip("the old end")).await;
    w.put(&old(), "metadata.json", SEVEN.replace("STATUS", "success")).await;
    let before = w.keys().await;
    for level in [VerifyLevel::Content, VerifyLevel::Restore] {
        let (report, outcome, error) = w.verify_old(level).await;
        assert_eq!((outcome, error.as_str()), (Outcome::Ok, ""), "{level}");
        assert_eq!(report.steps[0].plain_bytes, 11, "{level}");
        assert!(report.steps[0].notes[0].contains("no checksum"), "{report:?}");
    }
    let (_, outcome, error) = w.verify_old(VerifyLevel::Stored).await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(error.contains("--level content"), "{error}");
    assert_eq!(w.keys().await, before);
    assert_eq!(w.states().await, ["legacy"]);
    // Nobody asks for them but by name.
    assert_eq!(w.verify(VerifyLevel::Content).await.steps.len(), 0);
}

#[tokio::test]
async fn damage_is_found_and_changes_nothing() {
    let whole = gzip("the old end");
    let (cut, mut flipped) = (whole[..whole.len() - 4].to_vec(), whole.clone());
    *flipped.last_mut().unwrap() ^= 1;
    let trailing = [whole.as_slice(), b"x"].concat();
    for (file, bytes, why) in [
        ("one.old.gz", cut, "gzip stream is cut"),
        ("one.old.gz", flipped, "sum is wrong"),
        ("one.old.gz", trailing, "gzip"),
        ("one.old.gz", Vec::new(), "empty"),
        ("one.old.gz", gzip("the old e"), "does not end with `end`"),
        ("one.old", b"the old e".to_vec(), "does not end with `end`"),
    ] {
        let (w, fake) = World::with_old(file, bytes).await;
        let before = text_of(&fake.live());
        let (_, outcome, error) = w.verify_old(VerifyLevel::Content).await;
        assert_eq!(outcome, Outcome::Damaged, "{why}: {error}");
        assert!(error.contains(why) && error.contains(file), "{why}: {error}");
        let error = refusal(&w, &RestoreRequest { force: true, ..named(old()) }).await;
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(text_of(&fake.live()), before);
        assert_eq!(w.states().await, ["legacy"]);
    }
}

#[tokio::test]
async fn a_file_that_changes_between_plan_and_restore_never_goes_live() {
    let (w, fake) = World::with_old("one.old", "the old end").await;
    let before = text_of(&fake.live());
    let preview = w.engine.plan_restore(&named(old())).await.unwrap();
    // As long, and whole in its own format.
    w.damage(&old().file("one.old").unwrap(), |bytes| bytes[0] ^= 1).await;
    let report = w.engine.restore(&preview).await.unwrap();
    assert!(outcome(&report).1.contains("SHA-256"), "{report:?}");
    assert_eq!(text_of(&fake.live()), before);
    assert!(!fake.log().contains(&Asked::Switch));
}

#[tokio::test]
async fn what_does_not_match_its_own_counts_is_put_back() {
    let (w, fake) = World::with_old("one.old", "the old end").await;
    let before = text_of(&fake.live());
    let mut preview = w.engine.plan_restore(&named(old())).await.unwrap();
    assert_eq!(preview.metadata.evidence.counts["bytes"], 11);
    preview.metadata.evidence.counts.insert("bytes".into(), 12);
    let report = w.engine.restore(&preview).await.unwrap();
    assert!(outcome(&report).1.contains("expected 12, found 11"), "{report:?}");
    assert_eq!(text_of(&fake.live()), before);
}

#[tokio::test]
async fn it_is_never_chosen_but_by_name() {
    let (w, _) = World::with_old("one.old", "the old end").await;
    let error = refusal(&w, &RestoreRequest::new(a())).await;
    assert!(
        error.contains("a/hourly/20250101_000000 is legacy") && error.contains("--at SERVICE"),
        "{error}"
    );
    let at = Selector::At(old().timestamp);
    let error = refusal(&w, &RestoreRequest { selector: at, ..RestoreRequest::new(a()) }).await;
    assert!(error.contains("no good backup"), "{error}");
    w.back_up().await;
    w.put(&id("20270101_000000"), "one.old", "newer end").await;
    let preview = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap();
    assert!(preview.entry.is_good());
    assert_eq!(preview.passed_over, ["a/hourly/20270101_000000 is legacy"]);
}

#[tokio::test]
async fn what_is_no_one_file_of_old_is_one_clear_error() {
    let cases: [(&[&str], &str); 5] = [
        (
            &["one.old", "two.old.gz"],
            "several data files, and which of them is the backup cannot be told: `one.old`, `two.old.gz`",
        ),
        (
            &["dump.foreign"],
            "no file of the old scripts that a service of kind `fake` restores; it holds `dump.foreign`",
        ),
        (&["SHA256SUMS", "one.old"], "what is left of a backup of this program"),
        (&["RESTORE.md", "one.fake.zst"], "what is left of a backup of this program"),
        (&["deep/one.txt"], "it holds `deep/one.txt`"),
    ];
    for (files, why) in cases {
        let w = World::new(adapter()).await;
        for file in files {
            let key = StoreKey::new(format!("{}/{file}", old())).unwrap();
            let mut writer = w.store.inner().writer(&key, Default::default()).await.unwrap();
            writer.write("the old end".into()).await.unwrap();
            writer.finish().await.unwrap();
        }
        assert_eq!(w.states().await, ["legacy"], "{files:?}");
        let error = refusal(&w, &named(old())).await;
        assert!(error.starts_with("a/hourly/20250101_000000: ") && error.contains(why), "{files:?}: {error}");
        let (_, outcome, error) = w.verify_old(VerifyLevel::Content).await;
        assert_eq!(outcome, Outcome::Failed, "{error}");
        assert!(error.contains(why), "{files:?}: {error}");
        let view = w.engine.legacy(&old()).await.unwrap();
        assert!(view.metadata.is_none() && view.problem.unwrap().contains(why) && view.by_hand.is_empty());
    }
    // A backup of ours that lost its run.json, and whose metadata.json is not readable.
    let w = World::new(adapter()).await;
    w.put(&old(), "metadata.json", r#"{"format_version":1,"service":"a"}"#).await;
    w.put(&old(), "one.old", "the old end").await;
    assert!(refusal(&w, &named(old())).await.contains("left of a backup of this program"));
}

#[tokio::test]
async fn what_its_own_metadata_calls_a_failure_needs_force() {
    let (w, fake) = World::with_old("one.old", "the old end").await;
    w.put(&old(), "metadata.json", SEVEN.replace("STATUS", "failed").replace(":9,", ":900000,")).await;
    assert!(refusal(&w, &named(old())).await.contains("`status` failed: use --force"));
    let preview = w.engine.plan_restore(&RestoreRequest { force: true, ..named(old()) }).await.unwrap();
    let warned = preview.metadata.capture.warnings.join("\n");
    assert!(warned.contains("`status` failed") && warned.contains("900000 bytes"), "{warned}");
    assert_eq!(outcome(&w.engine.restore(&preview).await.unwrap()).0, Outcome::Ok);
    assert_eq!(text_of(&fake.live()), "one: the old end\n");
}

#[tokio::test]
async fn what_is_known_is_shown_without_reading() {
    let (w, _) = World::with_old("one.old.gz", b"not read".to_vec()).await;
    w.put(&old(), "metadata.json", SEVEN.replace("STATUS", "success")).await;
    w.put(&old(), "notes.txt", "x").await;
    let view = w.engine.legacy(&old()).await.unwrap();
    let files: Vec<_> = view.dir.files.iter().map(|f| (f.name.as_str(), f.bytes)).collect();
    assert_eq!(files, [("notes.txt", 1), ("one.old.gz", 8)]);
    assert_eq!(
        (view.dir.status.as_deref(), view.dir.host.as_deref()),
        (Some("success"), Some("ip-10-0-0-1"))
    );
    let metadata = view.metadata.unwrap();
    assert_eq!(metadata.consistent_to.to_rfc3339(), "2025-01-01T00:00:07+00:00");
    assert!(metadata.capture.warnings.iter().any(|w| w.contains("notes.txt")));
    let text = view.by_hand;
    assert!(text.contains("gzip -t one.old.gz") && text.contains("gzip -dc one.old.gz"), "{text}");
    assert!(text.contains("--at a/hourly/20250101_000000") && !text.contains("sha256sum"), "{text}");
}
