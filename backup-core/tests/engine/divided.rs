//! Encrypted artifacts that one core would hold up: several files, from the backup to the restore by hand.

use std::process::Command;

use backup_core::Metadata;
use backup_core::testkit::fake_adapter::text_of;
use futures::TryStreamExt as _;

use super::encryption::{Files, config, keys};
use super::*;

/// A host with eight processors, and a backup with one artifact in several files and one in a single file.
async fn divided() -> (World, FakeAdapter, Metadata, String) {
    // Compresses by about a half, and never repeats.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{:08x}", state >> 32).into_bytes()
    };
    let large: Vec<u8> = (0..5 << 20).flat_map(|_| next()).collect();
    let fake = FakeAdapter::new().artifact("large", [large]).artifact("small", ["small"]);
    let ((secret, public), files) = (keys(), Files::default());
    let text = format!("{}\n limits.threads = 8", config(&public));
    let w = World::with_config(&text, &[("a", fake.clone())]).await.with_secrets(&files);
    files.put("/key", &secret);
    assert_eq!(outcome(&w.back_up().await), (Outcome::Ok, String::new()));
    let metadata = w.engine.catalog().metadata(&w.entries().await[0].id).await.unwrap();
    assert!(metadata.artifacts[0].files.len() > 1, "it is one file");
    (w, fake, metadata, secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_in_several_files_is_verified_restored_and_opened_by_hand() {
    let (w, fake, metadata, secret) = divided().await;
    let at = metadata.timestamp;
    let paths =
        |n: usize| -> Vec<&str> { metadata.artifacts[n].files.iter().map(|f| f.path.as_str()).collect() };
    assert_eq!(paths(0)[..2], [format!("large_{at}.fake.zst.age"), format!("large_{at}.002.fake.zst.age")]);
    assert_eq!(paths(1), [format!("small_{at}.fake.zst.age")]);
    for level in VerifyLevel::ALL {
        assert_eq!(outcome(&w.verify(level).await), (Outcome::Ok, String::new()), "{level}");
    }
    w.engine.check_key(&metadata.id()).await.unwrap();
    let before = text_of(&fake.live());
    fake.script(|s| s.set_artifact("large", ["lost"]));
    let preview = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap();
    assert_eq!(outcome(&w.engine.restore(&preview).await.unwrap()), (Outcome::Ok, String::new()));
    assert!(text_of(&fake.live()) == before);

    // By hand, as its RESTORE.md says.
    let dir = tempfile::tempdir().unwrap();
    let store = w.store.inner();
    let mut restore_md = String::new();
    for key in store.list_keys(Some(&metadata.id().dir())).try_collect::<Vec<_>>().await.unwrap() {
        let content = store.read(&key).await.unwrap().try_collect::<Vec<Bytes>>().await.unwrap().concat();
        if key.file_name() == "RESTORE.md" {
            restore_md = String::from_utf8(content.clone()).unwrap();
        }
        std::fs::write(dir.path().join(key.file_name()), content).unwrap();
    }
    std::fs::write(dir.path().join("key"), secret).unwrap();
    let commands: Vec<&str> =
        restore_md.split("```sh\n").skip(1).map(|b| b.split("\n```").next().unwrap()).collect();
    let [sums, large, small] = commands.as_slice() else { panic!("{restore_md}") };
    let run = |command: &str| {
        let mut bash = Command::new("bash");
        bash.args(["-o", "pipefail", "-c", command]).current_dir(dir.path()).env("IDENTITY", "key");
        bash.output().unwrap()
    };
    assert!(run(sums).status.success(), "{:?}", run(sums));
    for (n, command) in [large, small].into_iter().enumerate() {
        let out = run(command);
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        let whole = w.engine.metadata(&metadata.id()).await.unwrap();
        assert_eq!(blake3::hash(&out.stdout).to_hex().as_str(), whole.artifacts[n].plain_blake3);
    }
    // What a lost file leaves must not look whole.
    std::fs::remove_file(dir.path().join(paths(0)[1])).unwrap();
    assert!(!run(large).status.success() && !run(sums).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_that_is_lost_or_altered_is_damage() {
    let (w, fake, metadata, _) = divided().await;
    let id = metadata.id();
    let file = &metadata.artifacts[0].files[1].path;
    let key = id.file(file).unwrap();
    let before = text_of(&fake.live());
    w.damage(&key, |bytes| bytes[70_000] ^= 1).await;
    for lost in [false, true] {
        if lost {
            w.store.inner().delete(&key).await.unwrap();
        }
        for level in VerifyLevel::ALL {
            let (outcome, error) = outcome(&w.verify(level).await);
            assert_eq!(outcome, Outcome::Damaged, "{level}: {error}");
            assert!(error.contains(file.as_str()), "{level}: {error}");
        }
    }
    assert!(w.engine.plan_restore(&RestoreRequest::new(a())).await.is_err());
    assert!(text_of(&fake.live()) == before);
}
