//! Dotenv files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use backup_adapters::env::EnvConfig;
use backup_core::*;

use crate::support::*;

fn bench() -> Bench {
    let bench = Bench::new::<EnvConfig>("paths = ['.env', '*/.env']");
    fs::create_dir(bench.path("web")).unwrap();
    fs::write(bench.path(".env"), "A=1\nSECRET=hunter2\n").unwrap();
    fs::write(bench.path("web/.env"), "B=2\n").unwrap();
    fs::set_permissions(bench.path(".env"), Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(bench.path(".env"), Some(7474), Some(7475)).unwrap();
    bench
}

#[tokio::test]
async fn what_is_the_same_already_stays_and_nothing_is_kept_of_it() {
    let bench = bench();
    let captured = bench.capture().await.unwrap();
    let same = fs::metadata(bench.path(".env")).unwrap().ino();
    let kept = |name: &str| bench.path(&format!("{name}.backup.20260102_000000")).exists();
    fs::write(bench.path("web/.env"), "B=3\n").unwrap();
    let switched = bench.restore(&captured, RestoreTarget::Live, "20260102_000000").await.unwrap();
    assert_eq!(fs::read_to_string(bench.path("web/.env")).unwrap(), "B=2\n");
    assert_eq!(fs::metadata(bench.path(".env")).unwrap().ino(), same);
    assert!(kept("web/.env") && !kept(".env"));
    bench.adapter.undo(&bench.context("20260102_000100"), &switched).await.unwrap();
    assert_eq!(fs::read_to_string(bench.path("web/.env")).unwrap(), "B=3\n");
    assert_eq!(fs::metadata(bench.path(".env")).unwrap().ino(), same);

    // The same text under other rights is not the same.
    fs::set_permissions(bench.path(".env"), Permissions::from_mode(0o644)).unwrap();
    bench.restore(&captured, RestoreTarget::Live, "20260103_000000").await.unwrap();
    assert_eq!(fs::metadata(bench.path(".env")).unwrap().mode() & 0o777, 0o640);
    assert!(bench.path(".env.backup.20260103_000000").exists());
}

#[tokio::test]
async fn files_come_back_one_by_one_with_mode_and_owner() {
    let bench = bench();
    let captured = bench.capture().await.unwrap();
    assert_eq!(captured.report.evidence.counts["files"], 2);
    assert_eq!(captured.report.evidence.counts["variables"], 3);
    let told = format!("{:?} {:?}", captured.report, captured.metadata);
    assert!(!told.contains("hunter2") && !told.contains("SECRET"), "{told}");
    let before = (picture(&bench.path(".env")), picture(&bench.path("web/.env")));
    fs::write(bench.path(".env"), "A=2\n").unwrap();
    fs::remove_file(bench.path("web/.env")).unwrap();
    fs::write(bench.path("web/other"), "stays").unwrap();
    let switched = bench.restore(&captured, RestoreTarget::Live, "20260102_000000").await.unwrap();
    assert!((picture(&bench.path(".env")), picture(&bench.path("web/.env"))) == before);
    assert_eq!(fs::read_to_string(bench.path(".env.backup.20260102_000000")).unwrap(), "A=2\n");
    assert!(bench.path("web/other").exists());
    let cx = bench.context("20260103_000000");
    for target in [RestoreTarget::Live, RestoreTarget::Dir(bench.path("out"))] {
        if target != RestoreTarget::Live {
            bench.restore(&captured, target.clone(), "20260103_000000").await.unwrap();
        }
        let found = bench.adapter.probe(&cx, &target).await.unwrap();
        assert_eq!(found.counts, captured.report.evidence.counts);
    }
    bench.adapter.undo(&cx, &switched).await.unwrap();
    assert_eq!(fs::read_to_string(bench.path(".env")).unwrap(), "A=2\n");
    assert!(!bench.path("web/.env").exists());
}

#[tokio::test]
async fn the_fingerprint_follows_what_matters() {
    let bench = bench();
    let first = bench.capture().await.unwrap().report;
    assert!(first.only_if_changed);
    let env = bench.path(".env");
    let fingerprint = async || bench.capture().await.unwrap().report.fingerprint;
    fs::File::options().append(true).open(&env).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(fs::metadata(&env).unwrap().mtime(), 0);
    assert_eq!(fingerprint().await, first.fingerprint, "a time alone is no change");
    let mut seen = vec![first.fingerprint];
    let changes: [&dyn Fn(); 5] = [
        &|| fs::write(&env, "A=1\nSECRET=hunter3\n").unwrap(),
        &|| fs::set_permissions(&env, Permissions::from_mode(0o600)).unwrap(),
        &|| std::os::unix::fs::chown(&env, Some(1), None).unwrap(),
        &|| fs::rename(bench.path("web"), bench.path("www")).unwrap(),
        &|| drop(fs::create_dir(bench.path("new")).map(|()| fs::write(bench.path("new/.env"), ""))),
    ];
    for change in changes {
        change();
        let now = fingerprint().await;
        assert!(now.is_some() && !seen.contains(&now));
        seen.push(now);
    }
}

#[tokio::test]
async fn nothing_to_protect_is_an_error() {
    let bench = Bench::new::<EnvConfig>("paths = ['*/.env']\nonly_if_changed = false");
    let e = bench.capture().await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound);
    assert!(e.to_string().contains("*/.env"), "{e}");
    fs::create_dir_all(bench.path("a/.env")).unwrap();
    assert_eq!(bench.capture().await.unwrap_err().kind(), AdapterErrorKind::InvalidConfig);
}
