//! Base backups: taken, checked, and put back into servers in containers.

use std::path::Path;
use std::time::Duration;

use backup_core::testkit::adapter_suite::{Captured, Damage, capture};
use backup_core::{
    AdapterError, AdapterErrorKind, ArtifactBody, CheckPurpose, Evidence, RestoreTarget, ServiceAdapter,
    StepToken, chain,
};
use bytes::Bytes;
use futures::StreamExt as _;

use crate::containers::{Container, docker, image};
use crate::exchange::{bring_back, killed_at, next_process};
use crate::restore::restore_live;
use crate::support::{CANARY, Cluster, SAMPLE, bench, unique};

const KEYS: &str = "capture = 'basebackup'\npassword = { container_env = 'POSTGRES_PASSWORD' }";

fn checked(adapter: &dyn ServiceAdapter, captured: &Captured, body: &[u8]) -> Result<Evidence, AdapterError> {
    let spool = tempfile::tempdir().unwrap();
    let purpose = CheckPurpose::Verify { spool: spool.path().to_owned() };
    let mut check = adapter.content_check(&purpose, &captured.metadata.artifacts[0]).unwrap();
    for piece in body.chunks(70_001) {
        check.update(piece)?;
    }
    check.finish()
}

/// The archive, less or with other files.
fn rewritten(body: &[u8], change: impl Fn(&str, &mut Vec<u8>) -> bool) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(body).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut header = entry.header().clone();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        if change(&path, &mut content) {
            header.set_size(content.len() as u64);
            header.set_cksum();
            out.append(&header, content.as_slice()).unwrap();
        }
    }
    out.into_inner().unwrap()
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_base_backup_is_whole_and_starts_anywhere() {
    let server = Cluster::start(&["wal_level=replica"]);
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", SAMPLE);
    let before = server.dump("app");
    let adapter = server.adapter("capture = 'basebackup'\ncounts = 'exact'");
    adapter.check(&bench().cx()).await.unwrap();
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    let report = &captured.report;
    assert_eq!(report.mode, "basebackup");
    assert_eq!(report.exit_codes["pg_basebackup"], 0);
    assert_eq!(report.evidence.counts["databases_seen"], 2);
    assert_eq!(report.evidence.counts["rows_seen.app.public.people"], 500);
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
    let body = captured.body(&captured.metadata.artifacts[0].name).concat();
    let found = checked(&*adapter, &captured, &body).unwrap();
    assert_eq!(report.evidence.contradictions(&found), Vec::<String>::new());
    assert!(found.counts["files"] > 500);
    // Into scratch, where it is verified once more.
    let (cx, dir) = (bench().cx(), tempfile::tempdir().unwrap());
    let target = RestoreTarget::Scratch(backup_core::ScratchHandle {
        dir: dir.path().join("scratch"),
        run_id: cx.run_id.clone(),
    });
    captured.restore(&*adapter, &cx, &target).await.unwrap();
    let found = adapter.probe(&cx, &target).await.unwrap();
    assert_eq!(report.evidence.contradictions(&found), Vec::<String>::new());
    let data = dir.path().join("scratch/data");
    let version = data.join("PG_VERSION");
    std::fs::write(&version, std::fs::read_to_string(&version).unwrap().replace('1', "2")).unwrap();
    let e = adapter.probe(&cx, &target).await.unwrap_err();
    assert!(e.kind() == AdapterErrorKind::Corrupt && chain(&e).contains("PG_VERSION"), "{}", chain(&e));
    // Into a directory, on which a server starts.
    let place = server.dir.join("elsewhere");
    let target = RestoreTarget::Dir(place.clone());
    let cx = bench().cx();
    captured.restore(&*adapter, &cx, &target).await.unwrap();
    assert!(place.join("RESTORE.txt").is_file());
    let restored = Cluster::start_on(place.join("data"));
    assert_eq!(restored.dump("app"), before);
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn no_damage_of_a_base_backup_passes() {
    let server = Cluster::start(&["wal_level=replica"]);
    let adapter = server.adapter("capture = 'basebackup'");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    let body = captured.body(&captured.metadata.artifacts[0].name).concat();
    checked(&*adapter, &captured, &rewritten(&body, |_, _| true)).unwrap();
    for end in [0, 512, 100_000, body.len() / 2, body.len() - 200_000, body.len() - 1024] {
        let e = checked(&*adapter, &captured, &body[..end]).unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "cut at {end}");
    }
    type Change = fn(&str, &mut Vec<u8>) -> bool;
    let changes: [(&str, Change); 6] = [
        ("lacks `global/pg_control`", |path, _| path != "global/pg_control"),
        ("another `base/1/1259`", |path, content| {
            if path == "base/1/1259" {
                content[9000] ^= 1;
            }
            true
        }),
        ("bytes instead of", |path, content| {
            if path == "base/1/1259" {
                content.truncate(8192);
            }
            true
        }),
        ("its own checksum", |path, content| {
            if path == "backup_manifest" {
                let at = content.windows(10).position(|w| w == b"\"Size\": 3,").unwrap();
                content[at + 8] = b'4';
            }
            true
        }),
        ("its WAL", |path, _| !path.starts_with("pg_wal/0")),
        ("no manifest", |path, _| path != "backup_manifest"),
    ];
    for (says, change) in changes {
        let e = checked(&*adapter, &captured, &rewritten(&body, change)).unwrap_err();
        assert!(e.kind() == AdapterErrorKind::Corrupt && chain(&e).contains(says), "{says}: {}", chain(&e));
    }
    let mut more = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    more.append_data(&mut header, "base/evil", &b"x"[..]).unwrap();
    let mut more = more.into_inner().unwrap();
    more.truncate(1024);
    more.extend(&body);
    let e = checked(&*adapter, &captured, &more).unwrap_err();
    assert!(chain(&e).contains("does not name"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn what_a_base_backup_needs_is_named() {
    let server = Cluster::start(&["wal_level=replica"]);
    let role = unique("plain");
    server.sql("postgres", &format!("CREATE ROLE {role} LOGIN"));
    let adapter = server.adapter(&format!("capture = 'basebackup'\nuser = '{role}'"));
    for e in [adapter.check(&bench().cx()).await.unwrap_err(), adapter.open(&bench().cx()).await.unwrap_err()]
    {
        assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{}", chain(&e));
        assert!(chain(&e).contains("REPLICATION") && chain(&e).contains(&role), "{}", chain(&e));
    }
    server.sql("postgres", &format!("ALTER ROLE {role} REPLICATION"));
    capture(&*adapter, &bench().cx()).await.unwrap();
    let place = server.dir.join("space");
    std::fs::create_dir(&place).unwrap();
    assert!(std::process::Command::new("chown").arg("postgres").arg(&place).status().unwrap().success());
    server.sql("postgres", &format!("CREATE TABLESPACE far LOCATION '{}'", place.display()));
    let e = adapter.check(&bench().cx()).await.unwrap_err();
    assert!(e.kind() == AdapterErrorKind::Unsupported && chain(&e).contains("far"), "{}", chain(&e));
    let none = Cluster::start(&["wal_level=minimal", "max_wal_senders=0"]);
    let e = none.adapter("capture = 'basebackup'").check(&bench().cx()).await.unwrap_err();
    assert!(e.kind() == AdapterErrorKind::InvalidConfig && chain(&e).contains("wal_level"), "{}", chain(&e));
    // Nothing here can stop a server that is known by its socket only.
    let captured =
        capture(&*Cluster::adapter(&none_with_wal(), "capture = 'basebackup'"), &bench().cx()).await.unwrap();
    let e = none
        .adapter("capture = 'basebackup'")
        .plan_restore(&bench().cx(), &captured.metadata, &RestoreTarget::Live)
        .await
        .unwrap_err();
    assert!(e.kind() == AdapterErrorKind::Unsupported && chain(&e).contains("unit"), "{}", chain(&e));
}

fn none_with_wal() -> Cluster {
    Cluster::start(&["wal_level=replica"])
}

#[test]
fn base_backups_are_for_whole_postgresql_servers() {
    use backup_core::{AdapterConfig as _, BuildContext, ServiceName};
    for (keys, says) in [
        ("flavor = 'yugabyte'", "is for PostgreSQL"),
        ("databases = ['a']", "`databases` is for dumps"),
        ("format = 'custom'", "`format` is for dumps"),
        ("globals = false", "`globals` is for dumps"),
    ] {
        let keys = format!("capture = 'basebackup'\n{keys}");
        let config: backup_adapters::postgres::PostgresConfig = toml::from_str(&keys).unwrap();
        let e = config.build(&BuildContext::new(ServiceName::new("db").unwrap(), "/")).unwrap_err();
        assert!(e.to_string().contains(says), "{e}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_base_backup_that_breaks_off_leaves_nothing() {
    let server = Cluster::start(&["wal_level=replica"]);
    server.sql("postgres", "CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 100000) g");
    let adapter = server.adapter("capture = 'basebackup'");
    for kill in [true, false] {
        let cx = bench().cx();
        let mut parts = adapter.open(&cx).await.unwrap().into_parts();
        let artifact = parts.artifacts.next().await.unwrap().unwrap();
        let ArtifactBody::Stream(mut body) = artifact.body else { panic!() };
        body.next().await.unwrap().unwrap();
        if kill {
            let killed = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'walsender'";
            assert_eq!(server.sql("postgres", killed), "1");
            let mut error = None;
            while let Some(chunk) = body.next().await {
                if let Err(e) = chunk {
                    error = Some(e);
                    break;
                }
            }
            assert!(chain(&error.expect("it is no base backup")).contains("base backup"));
        }
        drop(body);
        drop(parts.artifacts);
        (parts.release)(backup_core::ReadOutcome::Failed).await.unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        let left = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' OR application_name LIKE 'backup %'";
        while server.sql("postgres", left) != "0" {
            assert!(std::time::Instant::now() < until, "sessions stay behind");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
    }
}

/// A server with old data, and a base backup of what it held before.
struct Scene {
    server: Container,
    captured: Captured,
    restored: String,
    old: String,
}

impl Scene {
    async fn new(options: &[&str]) -> Self {
        let server = Container::start_kept(&image(), options);
        server.sql("postgres", "CREATE DATABASE app");
        server.sql("app", SAMPLE);
        let captured = capture(&*server.adapter(KEYS), &bench().cx()).await.unwrap();
        let restored = server.dump("app");
        server
            .sql("app", "DROP TABLE people CASCADE; CREATE TABLE later AS SELECT 1 AS x; CREATE ROLE newer");
        let old = server.dump("app");
        Self { server, captured, restored, old }
    }

    fn look(&self) -> &'static str {
        self.server.wait("5432");
        match self.server.dump("app") {
            found if found == self.restored => "restored",
            found if found == self.old => "old",
            other => panic!("neither: {other}"),
        }
    }

    async fn restore(&self) -> StepToken {
        restore_live(&self.server.adapter(KEYS), &self.captured).await
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_in_a_container_gets_its_files_back() {
    let inner = ["-e", "PGDATA=/var/lib/postgresql/data/inner"];
    for options in [&[][..], &inner[..]] {
        let scene = Scene::new(options).await;
        let adapter = scene.server.adapter(KEYS);
        assert!(!format!("{:?}", scene.captured).contains(CANARY));
        let looks = || {
            let script = "stat -c '%n %a %u' \"$PGDATA\" \"$PGDATA/PG_VERSION\" \"$PGDATA/base\"";
            docker(&["exec", &scene.server.name, "sh", "-c", script]).1
        };
        let before = looks();
        assert!(before.contains(" 700 999") && before.contains(" 600 999"), "{before}");
        let cx = bench().cx();
        let plan = adapter.plan_restore(&cx, &scene.captured.metadata, &RestoreTarget::Live).await.unwrap();
        let kept = plan.replaces[0].kept_as.clone();
        assert!(kept.ends_with(&format!(".backup.{}", cx.timestamp)), "{kept}");
        let staged = adapter.stage(&cx, &plan, &scene.captured.source(Damage::None)).await.unwrap();
        assert_eq!(scene.look(), "old");
        let switched = adapter.switch(&cx, &plan, &staged).await.unwrap();
        assert_eq!(scene.look(), "restored");
        assert!(cx.journal.entries().await.unwrap().is_empty());
        assert!(Path::new(&kept).join("PG_VERSION").is_file());
        let found = adapter.probe(&cx, &RestoreTarget::Live).await.unwrap();
        assert_eq!(scene.captured.report.evidence.contradictions(&found), Vec::<String>::new());
        assert_eq!(looks(), before);
        assert_eq!(scene.server.sql("postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
        assert_eq!(
            scene.server.sql("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'newer'"),
            "0"
        );
        // Called again it changes nothing.
        assert_eq!(adapter.switch(&cx, &plan, &staged).await.unwrap(), switched);
        let e = adapter.discard(&cx, &staged).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Conflict, "what was live would go");
        let mut later = next_process(&cx);
        later.timestamp = cx.timestamp.next();
        let undone = adapter.undo(&later, &switched).await.unwrap();
        assert_eq!(scene.look(), "old");
        assert_eq!(adapter.undo(&later, &switched).await.unwrap(), undone);
        assert_eq!(scene.look(), "old");
        let left = adapter.leftovers(&later, &undone).await.unwrap();
        assert!(left.len() == 1 && left[0].bytes.unwrap() > 20 << 20, "{left:?}");
        adapter.discard(&later, &undone).await.unwrap();
        assert!(adapter.leftovers(&later, &undone).await.unwrap().is_empty());
        assert_eq!(scene.look(), "old");
        assert!(docker(&["restart", &scene.server.name]).0);
        assert_eq!(scene.look(), "old");
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn killed_while_the_data_directory_is_exchanged() {
    let scene = Scene::new(&[]).await;
    let adapter = scene.server.adapter(KEYS);
    let mut seen = Vec::new();
    for n in 0.. {
        let cx = bench().cx();
        let plan = adapter.plan_restore(&cx, &scene.captured.metadata, &RestoreTarget::Live).await.unwrap();
        let staged = adapter.stage(&cx, &plan, &scene.captured.source(Damage::None)).await.unwrap();
        let died = killed_at(n, &cx, async |cx| adapter.switch(&cx, &plan, &staged).await).await.is_none();
        bring_back(&*adapter, &cx).await;
        seen.push(scene.look());
        let switched = adapter.switch(&next_process(&cx), &plan, &staged).await.unwrap();
        assert_eq!(scene.look(), "restored", "step {n}");
        let mut later = next_process(&cx);
        later.timestamp = cx.timestamp.next();
        let undone = killed_at(n, &later, async |cx| adapter.undo(&cx, &switched).await).await;
        bring_back(&*adapter, &later).await;
        scene.look();
        let undone = match undone {
            Some(undone) => undone,
            None => adapter.undo(&later, &switched).await,
        };
        assert_eq!(scene.look(), "old", "undo, step {n}");
        adapter.discard(&later, &undone.unwrap()).await.unwrap();
        if !died {
            break;
        }
    }
    assert_eq!(seen, ["old", "old", "restored", "restored", "restored"]);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_that_does_not_start_on_the_restored_files_has_its_own_again() {
    let scene = Scene::new(&[]).await;
    let adapter = scene.server.adapter(KEYS);
    let cx = bench().cx();
    let plan = adapter.plan_restore(&cx, &scene.captured.metadata, &RestoreTarget::Live).await.unwrap();
    let staged = adapter.stage(&cx, &plan, &scene.captured.source(Damage::None)).await.unwrap();
    let token = serde_json::to_value(&staged).unwrap();
    let folder = token["base"]["staged"].as_str().unwrap();
    let settings = Path::new(folder).join("postgresql.conf");
    std::fs::write(&settings, "nonsense = 'yes'\n").unwrap();
    let e = adapter.switch(&cx, &plan, &staged).await.unwrap_err();
    println!("{}", chain(&e));
    assert_eq!(scene.look(), "old");
    assert!(cx.journal.entries().await.unwrap().is_empty());
    let left = adapter.leftovers(&cx, &staged).await.unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    adapter.discard(&cx, &staged).await.unwrap();
    assert_eq!(scene.look(), "old");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_whose_files_are_lost_comes_back() {
    let scene = Scene::new(&[]).await;
    let wipe = "rm -rf \"$PGDATA\"/base \"$PGDATA\"/global; kill -9 1";
    docker(&["exec", &scene.server.name, "sh", "-c", wipe]);
    docker(&["kill", &scene.server.name]);
    scene.restore().await;
    assert_eq!(scene.look(), "restored");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn another_version_is_refused_before_anything_is_done() {
    let scene = Scene::new(&[]).await;
    let mut metadata = (*scene.captured.metadata).clone();
    metadata.artifacts[0].attributes.insert("server_version_num".into(), 120_001.into());
    let adapter = scene.server.adapter(KEYS);
    let e = adapter.plan_restore(&bench().cx(), &metadata, &RestoreTarget::Live).await.unwrap_err();
    assert!(e.kind() == AdapterErrorKind::Conflict && chain(&e).contains("PostgreSQL 12"), "{}", chain(&e));
    // Damage does not even stop the server.
    let cx = bench().cx();
    let mut captured = scene.captured.clone();
    for (_, chunks) in &mut captured.bodies {
        let whole = chunks.concat();
        *chunks = vec![Bytes::copy_from_slice(&whole[..whole.len() / 2])];
    }
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    let e = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{}", chain(&e));
    assert!(adapter.leftovers(&cx, &plan.token).await.unwrap().is_empty());
    assert_eq!(scene.look(), "old");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn the_commands_by_hand_give_the_server() {
    let scene = Scene::new(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let artifact = &scene.captured.metadata.artifacts[0];
    let body = scene.captured.body(&artifact.name).concat();
    std::fs::write(dir.path().join(&artifact.files[0].path), body).unwrap();
    let adapter = scene.server.adapter(KEYS);
    let steps = adapter.by_hand(&backup_core::HandContext { metadata: &scene.captured.metadata });
    let script: Vec<String> = steps.into_iter().map(|s| s.command).collect();
    let script = format!("set -euo pipefail\n{}", script.join("\n"));
    let out = std::process::Command::new("bash").args(["-c", &script]).current_dir(&dir).output().unwrap();
    assert!(out.status.success(), "{script}\n{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(scene.look(), "restored");
}
