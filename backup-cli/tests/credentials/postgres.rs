//! The same of PostgreSQL: dumps hold no password but those of roles that are missing, base backups hold all of them.

use std::path::Path;
use std::process::{Command, Output};

use super::{all, first_of, told};
use crate::killed::{Folder, PATIENCE, docker, text, until};

const IMAGE: &str = "backup-test/postgres:15";

/// Passwords of the time of the first backup: the superuser's, those of a role that stays, and of one that is lost.
const THEN: &str = "canary-pg-then-0d5b";
const APP_THEN: &str = "canary-app-then-0d5b";
const LOST_THEN: &str = "canary-lost-then-0d5b";
/// Those of today.
const NOW: &str = "canary-pg-now-0d5b";
const APP_NOW: &str = "canary-app-now-0d5b";

/// A server in a container that asks for passwords everywhere, with two databases, and the directory of its backups.
struct Host {
    folder: Folder,
    name: String,
}

impl Drop for Host {
    fn drop(&mut self) {
        docker(&["rm", "-fv", &self.name]);
    }
}

impl Host {
    /// Backed up with the passwords of then; since then all that is in it has changed, and every password.
    fn new(what: &str, capture: &str) -> (Self, String) {
        let name = format!("backup-test-{}-postgres-{what}", std::process::id());
        let host = Self { folder: Folder::new(&[]), name };
        host.folder.configure(&format!(
            "store.url = 'store'\n[intervals.often]\nservices = ['env', 'db']\nkeep = 9\n\
             [services.env]\nkind = 'env'\npaths = ['.env']\n\
             [services.db]\nkind = 'postgres'\ncontainer = '{}'\n{capture}\
             password = {{ dotenv = '.env', key = 'DB_PASSWORD' }}\n",
            host.name
        ));
        let variables = host.folder.path("variables");
        let set = format!("POSTGRES_PASSWORD={THEN}\nPOSTGRES_INITDB_ARGS=--auth=scram-sha-256\n");
        std::fs::write(&variables, set).unwrap();
        let label = format!("backup-test={}", std::process::id());
        let file = variables.display().to_string();
        let args = ["run", "-d", "--name", &host.name, "--label", &label, "--env-file", &file, IMAGE];
        text(&docker(&args));
        until("the server", PATIENCE, || host.enters("postgres", THEN));
        host.sql(
            "postgres",
            THEN,
            &format!(
                "CREATE ROLE app LOGIN PASSWORD '{APP_THEN}'; CREATE ROLE lost LOGIN PASSWORD '{LOST_THEN}';\n\
                 CREATE DATABASE app OWNER app;\nCREATE DATABASE other;"
            ),
        );
        for database in ["app", "other"] {
            host.sql(
                database,
                THEN,
                "CREATE TABLE t AS SELECT generate_series(1, 100) AS x; ALTER TABLE t OWNER TO lost; ANALYZE",
            );
        }
        host.dotenv(THEN);
        host.folder.ok(&["run", "often"]);
        let first = first_of(&host.folder.ok(&["list", "--all", "--json"]), "db");

        host.sql(
            "postgres",
            THEN,
            &format!("ALTER ROLE app PASSWORD '{APP_NOW}'; ALTER ROLE postgres PASSWORD '{NOW}'"),
        );
        host.dotenv(NOW);
        for database in ["app", "other"] {
            host.sql(
                database,
                NOW,
                "REASSIGN OWNED BY lost TO postgres; DROP OWNED BY lost; DELETE FROM t WHERE x > 93",
            );
        }
        host.sql("postgres", NOW, "DROP ROLE lost");
        host.folder.ok(&["run", "often"]);
        (host, first)
    }

    fn dotenv(&self, password: &str) {
        std::fs::write(self.folder.path(".env"), format!("DB_PASSWORD={password}\n")).unwrap();
    }

    fn psql(&self, user: &str, password: &str, database: &str, sql: &str) -> Output {
        let mut command = Command::new("docker");
        command.args(["exec", "-i", "-e", "PGPASSWORD", &self.name, "psql", "-XAtqw", "-h", "127.0.0.1"]);
        command.args(["-v", "ON_ERROR_STOP=1", "-U", user, "-d", database]).env("PGPASSWORD", password);
        told(&mut command, sql)
    }

    fn sql(&self, database: &str, password: &str, sql: &str) -> String {
        text(&self.psql("postgres", password, database, sql))
    }

    fn enters(&self, user: &str, password: &str) -> bool {
        self.psql(user, password, "postgres", "SELECT 1").status.success()
    }

    /// The rows of both databases.
    fn rows(&self, password: &str) -> [String; 2] {
        ["app", "other"].map(|database| self.sql(database, password, "SELECT count(*) FROM t"))
    }

    /// Its exit code, and all that it said, in which no password is.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let done = self.folder.command(args).output().unwrap();
        let told = all(&done);
        for password in [THEN, APP_THEN, LOST_THEN, NOW, APP_NOW] {
            assert!(!told.contains(password), "{args:?}: {told}");
        }
        (done.status.code(), told)
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let (code, told) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {told}");
        told
    }

    /// One line says why not.
    #[track_caller]
    fn refused(&self, args: &[&str], why: &str) {
        let (code, told) = self.run(args);
        let errors: Vec<&str> = told.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(code, Some(1), "{args:?}: {told}");
        assert!(matches!(errors.as_slice(), [one] if one.contains(why)), "{args:?}: {told}");
    }
}

fn moment(id: &str) -> &str {
    Path::new(id).file_name().unwrap().to_str().unwrap()
}

#[test]
#[ignore = "needs Docker"]
fn dumps_bring_no_password_but_those_of_roles_that_are_missing() {
    let (host, first) = Host::new("dumps", "");
    let changed = ["93", "93"].map(str::to_owned);
    assert_eq!(host.rows(NOW), changed);

    // A part: the other database stays as it is.
    host.refused(&["restore", "db", "--at", &first, "--only", "nothing", "--yes"], "no database `nothing`");
    assert_eq!(host.rows(NOW), changed);
    let told = host.ok(&["restore", "db", "--at", &first, "--only", "app", "--yes"]);
    assert!(!told.contains("differ"), "{told}");
    assert_eq!(host.rows(NOW), ["100", "93"].map(str::to_owned));
    // The owner of what is restored was missing, and is as he was; those who are there have today's passwords.
    assert!(host.enters("lost", LOST_THEN));
    for (user, then, now) in [("app", APP_THEN, APP_NOW), ("postgres", THEN, NOW)] {
        assert!(host.enters(user, now) && !host.enters(user, then), "{user}");
    }

    host.sql("app", NOW, "DELETE FROM t");
    let told = host.ok(&["recover", "--service", "db", "--at", moment(&first), "--overwrite", "db", "--yes"]);
    assert!(told.contains("it takes writes") && !told.contains("differ"), "{told}");
    assert_eq!(host.rows(NOW), ["100", "100"].map(str::to_owned));
    for (user, then, now) in [("app", APP_THEN, APP_NOW), ("postgres", THEN, NOW)] {
        assert!(host.enters(user, now) && !host.enters(user, then), "{user}");
    }
    host.ok(&["run", "often"]);
}

#[test]
#[ignore = "needs Docker"]
fn base_backups_bring_all_passwords_and_say_so() {
    let (host, first) = Host::new("base", "capture = 'basebackup'\n");
    let changed = ["93", "93"].map(str::to_owned);
    host.refused(&["restore", "db", "--at", &first, "--only", "base", "--yes"], "is of the whole server");
    assert_eq!(host.rows(NOW), changed);

    let restored = |told: &str| {
        assert!(told.contains("credentials differ") && told.contains("and is taken"), "{told}");
        until("the server", PATIENCE, || host.enters("postgres", THEN));
        assert_eq!(host.rows(THEN), ["100", "100"].map(str::to_owned));
        assert!(!host.enters("postgres", NOW) && host.enters("app", APP_THEN));
    };
    restored(&host.ok(&["restore", "db", "--at", &first, "--yes"]));
    host.ok(&["undo", "db", "--yes"]);
    until("the server", PATIENCE, || host.enters("postgres", NOW));
    assert_eq!(host.rows(NOW), changed);

    // What nobody can log in to is not said to take writes, and is back all the same.
    let told = host.ok(&["recover", "--service", "db", "--at", moment(&first), "--overwrite", "db", "--yes"]);
    assert!(told.contains("whether it takes writes was not tried"), "{told}");
    restored(&told);
    // With the password of then, everything goes on.
    host.dotenv(THEN);
    host.ok(&["run", "often"]);
}
