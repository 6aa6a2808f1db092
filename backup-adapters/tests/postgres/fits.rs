//! What a server does not take: dumps of newer ones, and writes.

use std::sync::Arc;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, RestoreTarget, chain};

use crate::restore::stand_in;
use crate::support::{Cluster, SAMPLE, bench, shared, unique};

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_dump_of_a_newer_server_is_refused_in_the_plan() {
    let server = shared();
    let name = unique("newer");
    server.sql("postgres", &format!("CREATE DATABASE {name}"));
    server.sql(&name, "CREATE TABLE t AS SELECT 1 AS x");
    let is: u32 = server.sql("postgres", "SHOW server_version_num").parse::<u32>().unwrap() / 10_000;
    let yugabyte =
        format!("flavor = 'yugabyte'\nport = 5432\nprograms = '{}'\nuser = 'postgres'\n", stand_in(server));
    for (keys, called, rest) in
        [("", "PostgreSQL", ".4 (Debian 1-1)"), (yugabyte.as_str(), "YSQL", ".2-YB-2025.1.0.0-b0")]
    {
        let adapter = server.adapter(&format!("{keys}databases = ['{name}']"));
        let captured = capture(&*adapter, &bench().cx()).await.unwrap();
        let recorded = captured.metadata.service_version.clone().unwrap();
        assert!(recorded.starts_with(&format!("{is}.")), "{recorded}");
        let plan = async |version: Option<String>, force: bool| {
            let (mut metadata, mut cx) = ((*captured.metadata).clone(), bench().cx());
            (metadata.service_version, cx.force) = (version, force);
            adapter.plan_restore(&cx, &metadata, &RestoreTarget::Live).await
        };
        let newer = format!("{}{rest}", is + 1);
        let e = plan(Some(newer.clone()), false).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
        let short = newer.split(' ').next().unwrap();
        let told = format!("the backup is of {called} {short}, and the server is {is}.");
        assert!(e.to_string().starts_with(&told), "{e}");
        assert!(e.to_string().contains(&format!("restore into version {} or a newer one", is + 1)), "{e}");
        // Who insists may try it: what does not load never goes live.
        plan(Some(newer), true).await.unwrap();
        // The same, in another minor version; an older one; one that nobody recorded.
        for version in [Some(format!("{is}.99")), Some(format!("{}{rest}", is - 2)), None] {
            plan(version.clone(), false).await.unwrap_or_else(|e| panic!("{version:?}: {}", chain(&e)));
        }
    }
    let like = format!("SELECT count(*) FROM pg_database WHERE datname LIKE '{name}%'");
    assert_eq!(server.sql("postgres", &like), "1", "a plan has made something");
}

/// All that could be left behind.
fn look(server: &Cluster) -> Vec<String> {
    let inside = "SELECT string_agg(nspname, ' ' ORDER BY 1) FROM pg_namespace";
    let roles = server.sql("postgres", "SELECT string_agg(rolname, ' ' ORDER BY 1) FROM pg_roles");
    let all = server.databases();
    let of_each = all.iter().flat_map(|d| [d.clone(), server.sql(d, inside), server.dump(d)]);
    of_each.chain([roles]).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_write_is_made_in_each_database_and_nothing_stays() {
    let server = Cluster::start(&["wal_level=replica"]);
    for name in ["one", "two"] {
        server.sql("postgres", &format!("CREATE DATABASE {name}"));
        server.sql(name, SAMPLE);
    }
    let before = look(&server);
    let committed = || -> u64 {
        server.sql("two", "SELECT txid_snapshot_xmax(txid_current_snapshot())").parse().unwrap()
    };
    let (adapter, first) = (server.adapter(""), committed());
    assert!(adapter.prove_writable(&bench().cx()).await.unwrap());
    // `postgres` is one, too.
    assert!(committed() >= first + 3, "nothing was committed");
    assert_eq!(look(&server), before);

    // One database takes none, though the server does.
    server.sql("postgres", "ALTER DATABASE two SET default_transaction_read_only = on");
    let before = look(&server);
    let e = adapter.prove_writable(&bench().cx()).await.unwrap_err();
    assert!(e.to_string().contains("database `two` takes no writes"), "{}", chain(&e));
    assert!(chain(&e).contains("read-only transaction") && !e.to_string().contains('\n'), "{}", chain(&e));
    assert_ne!(e.kind(), AdapterErrorKind::PermissionDenied, "that is for users who may not write");
    assert!(server.adapter("databases = ['one']").prove_writable(&bench().cx()).await.unwrap());

    server.sql("postgres", "CREATE ROLE reader LOGIN");
    let reader = server.adapter("user = 'reader'\ndatabases = ['one']");
    let e = reader.prove_writable(&bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{}", chain(&e));
    server.sql("postgres", "DROP ROLE reader");
    assert_eq!(look(&server), before);

    // A standby answers, and holds everything.
    let data = server.dir.join("standby");
    let made = server.client("pg_basebackup").args(["-R", "--checkpoint=fast", "-D"]).arg(&data).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let standby = Cluster::start_on(data);
    assert_eq!(standby.sql("postgres", "SELECT pg_is_in_recovery()"), "t");
    let e = standby.adapter("databases = ['one']").prove_writable(&bench().cx()).await.unwrap_err();
    assert!(e.to_string().contains("database `one` takes no writes"), "{}", chain(&e));
    assert_ne!(e.kind(), AdapterErrorKind::PermissionDenied, "{}", chain(&e));
    assert_eq!(look(&server), before);
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_base_backup_has_no_parts() {
    let server = Cluster::start(&["wal_level=replica"]);
    let adapter = server.adapter("capture = 'basebackup'");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    let name = captured.metadata.artifacts[0].name.clone();
    let whole = Arc::clone(&captured.metadata);
    let e = adapter.part(&whole, &[name]).unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Unsupported);
    assert_eq!(e.to_string(), "a base backup is of the whole server, and restored as that");
}
