//! Restores over live databases, and everything that stands in their way.

use std::sync::Arc;

use backup_core::testkit::adapter_suite::{Captured, Damage, capture};
use backup_core::{AdapterErrorKind, RestoreTarget, ServiceAdapter, StepToken, chain};

use crate::support::{Cluster, SAMPLE, bench, shared, unique};

pub(crate) async fn restore_live(adapter: &Arc<dyn ServiceAdapter>, captured: &Captured) -> StepToken {
    let cx = bench().cx();
    captured.restore(&**adapter, &cx, &RestoreTarget::Live).await.unwrap()
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_whole_server_comes_back_with_everything_around_its_databases() {
    for (format, flavor) in
        [("custom", "postgres"), ("directory", "postgres"), ("plain", "postgres"), ("plain", "yugabyte")]
    {
        let server = Cluster::start(&[]);
        server.sql("postgres", "CREATE ROLE owner LOGIN PASSWORD 'x'");
        server.sql("postgres", "CREATE ROLE reader");
        server.sql("postgres", "CREATE DATABASE \"a \"\"b\" OWNER owner");
        server.sql(
            "postgres",
            "CREATE DATABASE other TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
        );
        server.sql("postgres", "ALTER DATABASE \"a \"\"b\" SET work_mem TO '7MB'");
        server.sql("postgres", "ALTER DATABASE \"a \"\"b\" SET search_path TO \"odd\", public");
        server.sql("postgres", "ALTER ROLE owner IN DATABASE other SET work_mem TO '8MB'");
        server.sql(
            "postgres",
            "REVOKE ALL ON DATABASE \"a \"\"b\" FROM PUBLIC; GRANT CONNECT ON DATABASE \"a \"\"b\" TO reader",
        );
        server.sql("postgres", "ALTER DATABASE other CONNECTION LIMIT 17");
        server.sql("postgres", "COMMENT ON DATABASE other IS 'it''s'");
        server.sql("postgres", "CREATE TABLE in_postgres AS SELECT 1 AS x");
        server.sql("a \"b", SAMPLE);
        server.sql(
            "a \"b",
            "CREATE EXTENSION pg_trgm; GRANT SELECT ON people TO reader; ALTER TABLE people OWNER TO owner",
        );
        server.sql("other", "CREATE TABLE t AS SELECT 1 AS x; DROP SCHEMA public CASCADE");
        let shape = "SELECT datname, pg_get_userbyid(datdba), encoding, datcollate, datconnlimit, datacl, datallowconn, \
             shobj_description(oid, 'pg_database'), (SELECT array_agg(setconfig ORDER BY setrole) FROM pg_db_role_setting WHERE \
             setdatabase = d.oid) FROM pg_database d WHERE NOT datistemplate ORDER BY 1";
        let look = || {
            let dumps: Vec<String> = server.databases().iter().map(|d| server.dump(d)).collect();
            (server.sql("postgres", shape), dumps)
        };
        let before = look();
        let port = if flavor == "yugabyte" {
            "flavor = 'yugabyte'\nport = 5432\nprograms = '/tmp/none'\n"
        } else {
            ""
        };
        let programs = stand_in(&server);
        let keys = format!("format = '{format}'\n{}", port.replace("/tmp/none", &programs));
        let adapter = server.adapter(&format!("{keys}user = 'postgres'"));
        let captured = capture(&*adapter, &bench().cx()).await.unwrap();
        // Everything is lost, roles too.
        server.sql("postgres", "DROP DATABASE \"a \"\"b\"");
        server.sql("other", "CREATE SCHEMA public; CREATE TABLE public.wrong (x int)");
        server.sql("postgres", "ALTER ROLE owner IN DATABASE other RESET ALL; DROP ROLE owner; DROP ROLE reader; DROP TABLE in_postgres");
        let lost = server.dump("other");
        let token = restore_live(&adapter, &captured).await;
        let live: Vec<String> = server.databases();
        assert_eq!(live.iter().filter(|n| n.contains("_backup_")).count(), 2, "{live:?}");
        let cx = bench().cx();
        let probed = adapter.probe(&cx, &RestoreTarget::Live).await.unwrap();
        assert_eq!(captured.report.evidence.contradictions(&probed), Vec::<String>::new());
        let undone = adapter.undo(&bench().cx(), &token).await.unwrap();
        assert_eq!(server.dump("other"), lost);
        let token = adapter.undo(&bench().cx(), &undone).await.unwrap();
        let left = adapter.leftovers(&bench().cx(), &token).await.unwrap();
        assert!(left.iter().all(|l| l.bytes.is_some()) && left.len() == 2, "{left:?}");
        adapter.discard(&bench().cx(), &token).await.unwrap();
        assert_eq!(look(), before, "{format} {flavor}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn one_database_comes_back_and_the_others_stay() {
    let server = Cluster::start(&[]);
    for database in ["one", "one.more", "two"] {
        server.sql("postgres", &format!("CREATE DATABASE \"{database}\""));
        server.sql(database, "CREATE TABLE t AS SELECT generate_series(1, 100) AS x");
    }
    let adapter = server.adapter("user = 'postgres'");
    let mut captured = capture(&*adapter, &bench().cx()).await.unwrap();
    let before = server.dump("one");
    let whole = Arc::clone(&captured.metadata);
    for database in ["one", "one.more", "two"] {
        server.sql(database, "DELETE FROM t WHERE x > 10");
    }
    let changed = [server.dump("one.more"), server.dump("two")];
    let artifact = |database: &str| {
        let of = |a: &&backup_core::ArtifactMeta| a.attributes.get("database").is_some_and(|d| d == database);
        whole.artifacts.iter().find(of).unwrap().name.clone()
    };
    captured.metadata = Arc::new(adapter.part(&whole, &[artifact("one")]).unwrap());
    let counts: Vec<&String> = captured.metadata.evidence.counts.keys().collect();
    assert!(
        !counts.is_empty() && counts.iter().all(|c| c.contains(".one") && !c.contains('"')),
        "{counts:?}"
    );
    restore_live(&adapter, &captured).await;
    assert_eq!(server.dump("one"), before);
    assert_eq!([server.dump("one.more"), server.dump("two")], changed);
    let probed = adapter.probe(&bench().cx(), &RestoreTarget::Live).await.unwrap();
    assert_eq!(captured.metadata.evidence.contradictions(&probed), Vec::<String>::new());

    let unknown = adapter.part(&whole, &["three".parse().unwrap()]).unwrap_err();
    assert_eq!(unknown.kind(), AdapterErrorKind::NotFound);
    assert!(unknown.to_string().contains("no database `three`: it has "), "{unknown}");
}

/// A folder with the programs under the names that YugabyteDB gives them.
pub(crate) fn stand_in(server: &Cluster) -> String {
    let dir = server.dir.join(unique("yb"));
    std::fs::create_dir_all(&dir).unwrap();
    let folder =
        std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten().next().unwrap().path().join("bin");
    for (theirs, ours) in [
        ("psql", "ysqlsh"),
        ("pg_dump", "ysql_dump"),
        ("pg_dumpall", "ysql_dumpall"),
        ("pg_restore", "pg_restore"),
    ] {
        // pg_dumpall looks for pg_dump beside itself.
        let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", folder.join(theirs).display());
        std::fs::write(dir.join(ours), script).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(dir.join(ours), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir.display().to_string()
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn clients_that_never_stop_connecting_are_no_obstacle() {
    let server = Cluster::start(&[]);
    server.sql("postgres", "CREATE DATABASE busy");
    server.sql("busy", "CREATE TABLE t AS SELECT 1 AS x");
    let adapter = server.adapter("databases = ['busy']");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    server.sql("busy", "UPDATE t SET x = 2");
    // Pools reconnect at once.
    let script = "while :; do psql -XAtqc 'SELECT pg_sleep(60)' >/dev/null 2>&1; done";
    let mut pools: Vec<_> = (0..3)
        .map(|_| {
            use std::os::unix::process::CommandExt as _;
            std::process::Command::new("sh")
                .args(["-c", script])
                .envs([
                    ("PGHOST", server.dir.as_os_str()),
                    ("PGUSER", "postgres".as_ref()),
                    ("PGDATABASE", "busy".as_ref()),
                ])
                .process_group(0)
                .spawn()
                .unwrap()
        })
        .collect();
    while server.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'")
        != "3"
    {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    restore_live(&adapter, &captured).await;
    let now = server.sql("busy", "SELECT x FROM t");
    for pool in &mut pools {
        let _gone =
            std::process::Command::new("kill").args(["-KILL", "--", &format!("-{}", pool.id())]).status();
        pool.wait().unwrap();
    }
    assert_eq!(now, "1");
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_foreign_dump_is_not_fed_when_it_is_cut() {
    let server = shared();
    let name = unique("cut");
    server.sql("postgres", &format!("CREATE DATABASE {name}"));
    server.sql(&name, "CREATE TABLE t AS SELECT g FROM generate_series(1, 100000) g");
    for format in ["plain", "custom", "directory"] {
        let adapter = server.adapter(&format!("databases = ['{name}']\nformat = '{format}'"));
        let mut captured = capture(&*adapter, &bench().cx()).await.unwrap();
        // Cut, but every hash agrees: as a backup of another program might be.
        for (artifact, chunks) in &mut captured.bodies {
            if artifact.as_str() == name {
                let whole = chunks.concat();
                *chunks = vec![bytes::Bytes::copy_from_slice(&whole[..whole.len() * 3 / 5])];
            }
        }
        let cx = bench().cx();
        let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
        let e = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{}", chain(&e));
        assert!(adapter.leftovers(&cx, &plan.token).await.unwrap().is_empty(), "a part stays");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn an_exchange_that_was_interrupted_is_finished() {
    let server = Cluster::start(&[]);
    for name in ["one", "two"] {
        server.sql("postgres", &format!("CREATE DATABASE {name}"));
        server.sql(name, &format!("CREATE TABLE t AS SELECT '{name}' AS x"));
    }
    let programs = stand_in(&server);
    let adapter = server
        .adapter(&format!("flavor = 'yugabyte'\nport = 5432\nprograms = '{programs}'\nuser = 'postgres'"));
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    for name in ["one", "two"] {
        server.sql(name, "UPDATE t SET x = 'changed'");
    }
    let cx = bench().cx();
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    let staged = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.unwrap();
    let token: serde_json::Value = serde_json::to_value(&staged).unwrap();
    let item = |n: usize, key: &str| token["server"]["databases"][n][key].as_str().unwrap().to_owned();
    // As if we had died after each of the first steps.
    let steps = [
        format!("ALTER DATABASE \"{}\" ALLOW_CONNECTIONS false", item(0, "name")),
        format!("ALTER DATABASE \"{}\" RENAME TO \"{}\"", item(0, "name"), item(0, "kept")),
        format!("ALTER DATABASE \"{}\" RENAME TO \"{}\"", item(0, "staged"), item(0, "name")),
    ];
    for (n, step) in steps.iter().enumerate() {
        server.sql("template1", step);
        if n > 0 {
            let e = adapter.discard(&cx, &staged).await.unwrap_err();
            assert_eq!(e.kind(), AdapterErrorKind::Conflict, "what was live would be dropped");
        }
    }
    let switched = adapter.switch(&cx, &plan, &staged).await.unwrap();
    for name in ["one", "two"] {
        assert_eq!(server.sql(name, "SELECT x FROM t"), name);
    }
    // Undo dies half-way, too.
    server.sql("template1", &format!("ALTER DATABASE one RENAME TO \"{}\"", item(0, "staged")));
    let cx = bench().cx();
    adapter.undo(&cx, &switched).await.unwrap();
    adapter.undo(&cx, &switched).await.unwrap();
    for name in ["one", "two"] {
        assert_eq!(server.sql(name, "SELECT x FROM t"), "changed");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn doubts_stop_a_restore_before_it_begins() {
    let server = shared();
    let name = unique("doubt");
    server.sql("postgres", &format!("CREATE DATABASE {name}"));
    server.sql(&name, "CREATE TABLE t (x int)");
    let adapter = server.adapter(&format!("databases = ['{name}']"));
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    server.sql(&name, "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'p'");
    let plan = adapter.plan_restore(&bench().cx(), &captured.metadata, &RestoreTarget::Live).await;
    server.sql(&name, "ROLLBACK PREPARED 'p'");
    assert_eq!(plan.unwrap_err().kind(), AdapterErrorKind::Conflict);
    let role = unique("weak");
    server.sql("postgres", &format!("CREATE ROLE {role} LOGIN"));
    let weak = server.adapter(&format!("databases = ['{name}']\nuser = '{role}'"));
    let e = weak.plan_restore(&bench().cx(), &captured.metadata, &RestoreTarget::Live).await.unwrap_err();
    assert!(
        e.kind() == AdapterErrorKind::PermissionDenied && chain(&e).contains("CREATEDB"),
        "{}",
        chain(&e)
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn indexes_that_were_not_built_stop_a_restore() {
    let server = shared();
    let name = unique("index");
    server.sql("postgres", &format!("CREATE DATABASE {name}"));
    server.sql(&name, "CREATE TABLE t (x int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let programs = stand_in(server);
    let keys = format!(
        "databases = ['{name}']\nflavor = 'yugabyte'\nport = 5432\nprograms = '{programs}'\nuser = 'postgres'"
    );
    let adapter = server.adapter(&keys);
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    // The program that loads leaves an index as YugabyteDB does after its tablets were split, and exits with 0.
    let script = std::path::Path::new(&programs).join("ysqlsh");
    let real = std::fs::read_to_string(&script).unwrap();
    let program = real.lines().nth(1).unwrap().replace("exec ", "");
    let spoil = format!(
        "case \"$*\" in *_restore_*'-f -'*) {program} || exit; exec {} -c \"UPDATE pg_index SET indisvalid = false WHERE indexrelid \
         = 't_pkey'::regclass\";; esac",
        program.replace("\"$@\"", "-X -q -d \"$(printf '%s\\n' \"$@\" | grep _restore_)\"")
    );
    std::fs::write(&script, format!("#!/bin/sh\n{spoil}\nexec {program}\n")).unwrap();
    let cx = bench().cx();
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    let e = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.unwrap_err();
    assert!(chain(&e).contains("t_pkey") && e.kind() == AdapterErrorKind::Corrupt, "{}", chain(&e));
    assert!(adapter.leftovers(&cx, &plan.token).await.unwrap().is_empty());
}
