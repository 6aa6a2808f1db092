//! Dumps that break off or lie, and servers that refuse.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, ArtifactBody, chain};
use futures::StreamExt as _;

use crate::support::{CANARY, Cluster, bench, shared, unique};

/// A folder with the real programs, less a `pg_dump` that is a script; `$REAL` is the real one.
fn programs(server: &Cluster, pg_dump: &str) -> PathBuf {
    let dir = server.dir.join(unique("programs"));
    std::fs::create_dir_all(&dir).unwrap();
    let real = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten().next().unwrap().path().join("bin");
    for name in ["psql", "pg_dumpall", "pg_restore"] {
        let text = format!("#!/bin/sh\nexec '{}' \"$@\"\n", real.join(name).display());
        write(&dir.join(name), &text);
    }
    let guard = "case \"$1\" in --version) exec \"$REAL\" \"$@\";; esac\n";
    write(
        &dir.join("pg_dump"),
        &format!("#!/bin/bash\nREAL='{}'\n{guard}{pg_dump}\n", real.join("pg_dump").display()),
    );
    dir
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A database whose dump is several times as long as what is read ahead.
fn large(stem: &str) -> String {
    let name = unique(stem);
    shared().sql("postgres", &format!("CREATE DATABASE {name}"));
    shared().sql(
        &name,
        "CREATE TABLE t AS SELECT g, repeat(md5(g::text), 4) AS x FROM generate_series(1, 120000) g",
    );
    name
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_dump_that_is_cut_and_exits_with_zero_is_no_backup() {
    let name = large("liar");
    for format in ["plain", "custom"] {
        for length in [0, 100, 3_000, 9_000_000] {
            let dir = programs(shared(), &format!("\"$REAL\" \"$@\" | head -c {length}; exit 0"));
            let keys = format!("databases = ['{name}']\nformat = '{format}'\nprograms = '{}'", dir.display());
            let e = capture(&*shared().adapter(&keys), &bench().cx()).await.unwrap_err();
            assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{format} {length}: {}", chain(&e));
        }
        // Rows that are missing in the middle, in a dump that is whole: only counting finds them.
        let dir = programs(shared(), "\"$REAL\" \"$@\" | sed '/^77\\t/d'; exit 0");
        let keys = format!(
            "databases = ['{name}']\nformat = 'plain'\ncounts = 'exact'\nprograms = '{}'",
            dir.display()
        );
        let e = capture(&*shared().adapter(&keys), &bench().cx()).await.unwrap_err();
        assert!(chain(&e).contains("119999") && chain(&e).contains("120000"), "{}", chain(&e));
    }
}

/// What dumps in the directory format have left of this cluster's service.
pub(crate) fn left_below(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().flatten().map(|e| e.path()).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_directory_that_lacks_something_is_no_backup() {
    let name = large("lacking");
    let scratch = tempfile::tempdir().unwrap();
    for (harm, says) in [
        ("rm \"$out\"/toc.dat", "table of contents"),
        ("rm \"$(ls -S \"$out\"/*.dat | head -n 1)\"", "is missing"),
        ("truncate -s -2000 \"$(ls -S \"$out\"/*.dat | head -n 1)\"", "within the rows"),
        ("truncate -s -20 \"$out\"/toc.dat", "is cut"),
        ("sed -i '/^77\\t/d' \"$(ls -S \"$out\"/*.dat | head -n 1)\"", "119999"),
    ] {
        let find = "for a in \"$@\"; do case $a in --file=*) out=${a#--file=};; esac; done";
        let dir = programs(shared(), &format!("\"$REAL\" \"$@\"\n{find}\n{harm}; exit 0"));
        let keys = format!(
            "databases = ['{name}']\nformat = 'directory'\ncounts = 'exact'\nprograms = '{}'\nscratch = '{}'",
            dir.display(),
            scratch.path().display()
        );
        let e = capture(&*shared().adapter(&keys), &bench().cx()).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{harm}: {}", chain(&e));
        assert!(chain(&e).contains(says), "{harm}: {}", chain(&e));
        assert_eq!(left_below(scratch.path()), Vec::<PathBuf>::new(), "{harm}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_directory_goes_whatever_ends_its_dump() {
    let name = large("tidy");
    let scratch = tempfile::tempdir().unwrap();
    let keys = |more: &str| {
        format!(
            "databases = ['{name}']\nformat = 'directory'\nscratch = '{}'\n{more}",
            scratch.path().display()
        )
    };
    // It fails.
    let dir = programs(shared(), "\"$REAL\" \"$@\"; exit 1");
    let failing = shared().adapter(&keys(&format!("programs = '{}'", dir.display())));
    capture(&*failing, &bench().cx()).await.unwrap_err();
    assert_eq!(left_below(scratch.path()), Vec::<PathBuf>::new());
    // It is killed with everything that it started while it works: nobody is left who could tidy up.
    let dir = programs(shared(), "\"$REAL\" \"$@\"; : >\"$0.there\"; sleep 600");
    let stuck = shared().adapter(&keys(&format!("programs = '{}'", dir.display())));
    let cx = bench().cx();
    let there = dir.join("pg_dump.there");
    tokio::select! {
        done = capture(&*stuck, &cx) => panic!("it ended: {:?}", done.map(drop)),
        () = async { while !there.exists() { tokio::time::sleep(Duration::from_millis(20)).await; } } => {}
    }
    assert_eq!(left_below(scratch.path()).len(), 1, "there is something to tidy up");
    let whole = shared().adapter(&keys(""));
    let mut next = bench().cx();
    next.service = cx.service.clone();
    let removed = whole.reclaim(&next, std::slice::from_ref(&cx.run_id)).await.unwrap();
    assert!(removed.iter().any(|what| what.contains("folder")), "{removed:?}");
    assert_eq!(left_below(scratch.path()), Vec::<PathBuf>::new());
    // The same by the next capture, and at the end of its own.
    std::fs::remove_file(&there).unwrap();
    tokio::select! {
        done = capture(&*stuck, &cx) => panic!("it ended: {:?}", done.map(drop)),
        () = async { while !there.exists() { tokio::time::sleep(Duration::from_millis(20)).await; } } => {}
    }
    capture(&*whole, &next).await.unwrap();
    assert_eq!(left_below(scratch.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_dump_that_is_whole_and_fails_is_no_backup() {
    let name = large("late");
    let dir = programs(shared(), "\"$REAL\" \"$@\"; echo 'pg_dump: error: at the very end' >&2; exit 1");
    let keys = format!("databases = ['{name}']\nprograms = '{}'", dir.display());
    let e = capture(&*shared().adapter(&keys), &bench().cx()).await.unwrap_err();
    assert!(chain(&e).contains("at the very end"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_dump_that_is_killed_half_way_is_no_backup() {
    let name = large("killed");
    let adapter = shared().adapter(&format!("databases = ['{name}']\nglobals = false"));
    for kill_session in [true, false] {
        let cx = bench().cx();
        let mut parts = adapter.open(&cx).await.unwrap().into_parts();
        let error = loop {
            let artifact = match parts.artifacts.next().await.expect("an error comes") {
                Ok(artifact) => artifact,
                Err(e) => break e,
            };
            let ArtifactBody::Stream(mut body) = artifact.body else { continue };
            if artifact.attributes["content"] != "database" {
                while body.next().await.is_some() {}
                continue;
            }
            body.next().await.unwrap().unwrap();
            if kill_session {
                let ended = format!(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE datname = '{name}' AND backend_type = 'client backend'"
                );
                assert_eq!(shared().sql("postgres", &ended), "1");
            } else {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).into_owned();
                    if line.contains("pg_dump") && line.contains(&name) {
                        let pid = entry.file_name().into_string().unwrap();
                        std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap();
                    }
                }
            }
            let mut error = None;
            while let Some(chunk) = body.next().await {
                if let Err(e) = chunk {
                    error = Some(e);
                    break;
                }
            }
            break error.expect("a killed dump ends with an error");
        };
        assert!(chain(&error).contains(&name), "{}", chain(&error));
        drop(parts.artifacts);
        (parts.release)(backup_core::ReadOutcome::Failed).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn what_passes_is_tried_again_unseen() {
    let name = large("again");
    let once = "if mkdir \"$0.once\" 2>/dev/null; then echo 'pg_dump: error: query failed: ERROR:  could not serialize \
        access due to concurrent update' >&2; exit 1; fi\nexec \"$REAL\" \"$@\"";
    let dir = programs(shared(), once);
    let keys = format!("databases = ['{name}']\nprograms = '{}'", dir.display());
    let captured = capture(&*shared().adapter(&keys), &bench().cx()).await.unwrap();
    assert_eq!(captured.report.evidence.counts[&format!("rows.{name}")], 120_000);
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_snapshot_that_is_too_old_is_explained_and_not_tried_again() {
    let name = large("old");
    let always = "echo x >> \"$0.runs\"; echo 'ysql_dump: error: Dumping failed: ERROR:  Query error: Snapshot too old. Read \
        point: { physical: 1 }, earliest read time allowed: { physical: 2 }, delta (usec): 1: kSnapshotTooOld' >&2; exit 1";
    let dir = programs(shared(), always);
    let keys = format!("databases = ['{name}']\nprograms = '{}'", dir.display());
    let e = capture(&*shared().adapter(&keys), &bench().cx()).await.unwrap_err();
    assert!(chain(&e).contains("timestamp_history_retention_interval_sec"), "{}", chain(&e));
    assert_eq!(std::fs::read_to_string(dir.join("pg_dump.runs")).unwrap(), "x\n");
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn refusals_name_what_is_wrong() {
    let wrong = "user = 'pw'\npassword = { command = ['printf', 'no'] }";
    #[derive(Debug)]
    struct Wrong;
    impl backup_core::SecretResolver for Wrong {
        fn resolve(
            &self,
            _: &backup_core::SecretRef,
        ) -> Result<backup_core::Secret, backup_core::ConfigError> {
            Ok(backup_core::Secret::new("wrong-guess-77"))
        }
    }
    let mut cx = bench().cx();
    cx.secrets = std::sync::Arc::new(Wrong);
    let e = shared().adapter(wrong).open(&cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{}", chain(&e));
    assert!(chain(&e).contains("password") && !format!("{e:?}").contains("wrong-guess-77"), "{}", chain(&e));
    let e = shared().adapter("user = 'pw'").check(&bench().cx()).await.unwrap_err();
    assert!(
        e.kind() == AdapterErrorKind::PermissionDenied && chain(&e).contains("password"),
        "{}",
        chain(&e)
    );
    let e = shared().adapter("user = 'nobody'").check(&bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{}", chain(&e));
    let e = shared().adapter("databases = ['nowhere']").check(&bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{}", chain(&e));
    let e = shared().adapter("programs = '/nonexistent'").check(&bench().cx()).await.unwrap_err();
    assert!(chain(&e).contains("/nonexistent"), "{}", chain(&e));
    assert!(!chain(&e).contains('\n') && !chain(&e).contains(CANARY));
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn older_programs_than_the_server_are_refused() {
    let dir = programs(shared(), "");
    write(&dir.join("pg_dump"), "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n");
    let e =
        shared().adapter(&format!("programs = '{}'", dir.display())).check(&bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::InvalidConfig);
    assert!(chain(&e).contains("older than the server"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_table_that_somebody_locks_ends_with_the_budget() {
    let name = large("locked");
    let mut holder = std::process::Command::new("psql")
        .args(["-X", "-d", &name, "-c", "BEGIN; LOCK t; SELECT pg_sleep(600)"])
        .envs([("PGHOST", shared().dir.as_os_str()), ("PGUSER", "postgres".as_ref())])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let locked = format!(
        "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND database = (SELECT oid FROM pg_database WHERE datname = '{name}')"
    );
    while shared().sql("postgres", &locked) == "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut cx = bench().cx();
    cx.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(4));
    let started = std::time::Instant::now();
    let e = capture(&*shared().adapter(&format!("databases = ['{name}']")), &cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Timeout, "{}", chain(&e));
    assert!(started.elapsed() < Duration::from_secs(15));
    shared().sql(
        "postgres",
        &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
    );
    holder.wait().unwrap();
}
