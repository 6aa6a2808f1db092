//! Dumps of the old scripts, through the engine: verified, restored, undone.

use std::process::Command;
use std::sync::Arc;

use backup_adapters::postgres::PostgresConfig;
use backup_core::catalog::VerifyLevel;
use backup_core::{Outcome, chain};

use crate::old::{Old, ok};
use crate::restore::stand_in;
use crate::support::{Canary, Cluster, SAMPLE};

const AT: &str = "20250301_040000";
const FILE: &str = "yugabyte_20250301_040000.sql.gz";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What `pg_dump` prints with further arguments, as the scripts kept it.
fn dump(server: &Cluster, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new(server.programs("pg_dump"));
    let out = command.args(args).env("PGHOST", &server.dir).env("PGUSER", "postgres").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// A server with a database `yugabyte`, and a store over it.
async fn scene(flavor: &str) -> (Cluster, Old) {
    let server = Cluster::start(&[]);
    server.sql("postgres", "CREATE ROLE owner; CREATE ROLE yugabyte");
    server.sql("postgres", "CREATE DATABASE yugabyte OWNER owner");
    server.sql(
        "postgres",
        "ALTER DATABASE yugabyte SET work_mem TO '7MB'; COMMENT ON DATABASE yugabyte IS 'kept'",
    );
    server.sql("yugabyte", SAMPLE);
    server.sql("yugabyte", "ALTER TABLE people OWNER TO yugabyte");
    let mut keys = format!("socket = '{}'\nuser = 'postgres'\n", server.dir.display());
    if flavor == "yugabyte" {
        let programs = stand_in(&server);
        keys.push_str(&format!("flavor = 'yugabyte'\nport = 5432\nprograms = '{programs}'\n"));
    }
    let old = Old::new::<PostgresConfig>(&keys, Arc::new(Canary)).await;
    (server, old)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL on the host"]
async fn an_old_dump_is_verified_restored_and_undone() {
    let around = "SELECT pg_get_userbyid(datdba), shobj_description(oid, 'pg_database'), (SELECT setconfig FROM pg_db_role_setting \
                  WHERE setdatabase = d.oid) FROM pg_database d WHERE datname = 'yugabyte'";
    for flavor in ["postgres", "yugabyte"] {
        let (server, old) = scene(flavor).await;
        let (before, props) = (server.dump("yugabyte"), server.sql("postgres", around));
        let id = old.put(AT, FILE, &gzip(&dump(&server, &["yugabyte"])));
        server.sql("yugabyte", "DELETE FROM people WHERE id > 3; CREATE TABLE newer AS SELECT 1 AS x");
        let changed = server.dump("yugabyte");

        assert_eq!(old.verify(&id, VerifyLevel::Content).await, ok(), "{flavor}");
        assert_eq!(old.verify(&id, VerifyLevel::Restore).await, ok(), "{flavor}");
        assert_eq!((server.dump("yugabyte"), server.databases().len()), (changed.clone(), 2), "{flavor}");
        let preview = old.plan(&id, None).await.unwrap();
        assert_eq!(preview.metadata.evidence.counts["rows.yugabyte.public.people"], 500);

        assert_eq!(old.restore(&id, None).await, ok(), "{flavor}");
        assert_eq!(server.dump("yugabyte"), before, "{flavor}");
        assert_eq!(server.sql("postgres", around), props, "{flavor}: as the one that it replaced");
        assert_eq!(old.undo().await, ok(), "{flavor}");
        assert_eq!(server.dump("yugabyte"), changed, "{flavor}");

        assert_eq!(old.restore(&id, Some("out")).await, ok(), "{flavor}");
        assert_eq!(server.dump_of_file(&old.path("out/yugabyte.sql")), before, "{flavor}");

        // And where there is none, nor the role that owns a table: on a new host.
        for database in server.databases().iter().filter(|d| d.starts_with("yugabyte")) {
            server.sql("postgres", &format!("DROP DATABASE \"{database}\""));
        }
        server.sql("postgres", "DROP ROLE yugabyte");
        assert_eq!(old.restore(&id, None).await, ok(), "{flavor}");
        assert_eq!(server.dump("yugabyte"), before, "{flavor}");
    }
}

/// Cut off, or made so that it would reach into what is live: nothing happens to that.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL on the host"]
async fn a_cut_or_dangerous_dump_changes_nothing() {
    let (server, old) = scene("postgres").await;
    let whole = dump(&server, &["yugabyte"]);
    let text = String::from_utf8(whole.clone()).unwrap();
    let packed = gzip(&whole);
    let end = text.find("-- PostgreSQL database dump complete").unwrap();
    let shell = text.replacen("\nSET ", "\n\\! touch /tmp/never\nSET ", 1);
    assert_ne!(shell, text);
    let cases = [
        (packed[..packed.len() / 2].to_vec(), "gzip stream is cut"),
        // The server died while it dumped, and gzip ended well.
        (gzip(&whole[..end]), "is cut"),
        (gzip(&dump(&server, &["--create", "yugabyte"])), "psql command `\\\\connect yugabyte`"),
        (gzip(&dump(&server, &["--create", "--clean", "yugabyte"])), "psql command `\\\\connect"),
        (gzip(shell.as_bytes()), "psql command `\\\\! touch"),
        (
            gzip(b"-- PostgreSQL database cluster dump\n-- PostgreSQL database cluster dump complete\n"),
            "whole cluster",
        ),
        (gzip(b"nothing of the kind"), "does not begin as a dump"),
    ];
    let before = (server.dump("yugabyte"), server.databases());
    for (n, (bytes, why)) in cases.iter().enumerate() {
        let id = old.put(&format!("2025030{}_040000", n + 1), FILE, bytes);
        let (outcome, error) = old.verify(&id, VerifyLevel::Content).await;
        assert_eq!(outcome, Outcome::Damaged, "{why}: {error}");
        assert!(error.contains(why), "{why}: {error}");
        let error = chain(&old.plan(&id, None).await.unwrap_err());
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!((server.dump("yugabyte"), server.databases()), before, "{why}");
    }
    // What only the server can tell: the staged database goes, and the live one stays.
    let wrong = text.replace("CREATE TABLE public.people (", "CREATE TABLE public.people (nonsense,");
    assert_ne!(wrong, text);
    let id = old.put("20250320_040000", FILE, &gzip(wrong.as_bytes()));
    assert_eq!(old.verify(&id, VerifyLevel::Content).await, ok());
    let (outcome, error) = old.restore(&id, None).await;
    assert!(outcome == Outcome::Failed && error.contains("cannot load database `yugabyte`"), "{error}");
    assert_eq!((server.dump("yugabyte"), server.databases()), before);
}
