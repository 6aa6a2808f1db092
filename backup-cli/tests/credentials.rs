//! A password that was changed between a backup and its restore.

mod postgres;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::killed::text;
use crate::neo4j_kills::{Host, PASSWORD};
use crate::redis;

const NEW: &str = "canary-new-44c2";

fn configure(host: &Host, more: &str) {
    host.folder.configure(&format!(
        "store.url = 'store'\n[intervals.often]\nservices = ['env', 'neo4j']\nkeep = 5\n\
         [services.env]\nkind = 'env'\npaths = ['.env']\n\
         [services.neo4j]\nkind = 'neo4j'\ncontainer = '{}'\ncapture = 'clone'\n\
         password = {{ dotenv = '.env', key = 'NEO4J_PASSWORD' }}\n{more}",
        host.name
    ));
}

fn restore(host: &Host, at: &str) -> String {
    let done = host.folder.command(&["restore", "neo4j", "--at", at, "--yes"]).output().unwrap();
    let told = [done.stdout, done.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(done.status.success(), "{told}");
    assert!(!told.contains(PASSWORD) && !told.contains(NEW), "{told}");
    told
}

#[test]
#[ignore = "needs Docker and root"]
fn the_dotenv_file_of_the_backups_time_lets_in() {
    let host = Host::new("credentials");
    let dotenv = |password: &str| {
        std::fs::write(host.folder.path(".env"), format!("NEO4J_PASSWORD={password}\n")).unwrap();
    };
    dotenv(PASSWORD);
    configure(&host, "");
    host.folder.ok(&["run", "often"]);
    let first = first_of(&host.folder.ok(&["list", "--all", "--json"]), "neo4j");

    let change = format!("ALTER CURRENT USER SET PASSWORD FROM '{PASSWORD}' TO '{NEW}'");
    text(&host.cypher_in("system", &change));
    dotenv(NEW);
    host.folder.ok(&["run", "often"]);

    let told = restore(&host, &first);
    assert!(told.contains("credentials differ") && told.contains("and is taken"), "{told}");
    assert_eq!(host.count(), "1000", "the password of that time");

    // It is healthy. That it refuses the password of today does not mean that it holds nothing.
    let all = |more: &[&str]| {
        let moment = first.rsplit('/').next().unwrap();
        let command = [&["recover", "--service", "neo4j", "--at", moment, "--yes"], more].concat();
        let done = host.folder.command(&command).output().unwrap();
        let told = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(!told.contains(PASSWORD) && !told.contains(NEW), "{told}");
        (done.status.code(), told)
    };
    let (code, told) = all(&[]);
    assert!(code == Some(1) && told.contains("did not tell whether it holds data"), "{code:?} {told}");
    let (code, told) = all(&["--overwrite", "neo4j"]);
    assert!(code == Some(0) && told.contains("credentials differ"), "{code:?} {told}");
    assert_eq!(host.count(), "1000", "the password of that time");

    configure(&host, "reset_password = true\n");
    let told = restore(&host, &first);
    assert!(!told.contains("differ"), "{told}");
    assert!(!host.cypher("RETURN 1").status.success(), "the password of that time is taken");
    host.folder.ok(&["run", "often"]);
}

/// Runs `command` with `input`: what holds a password is no argument.
fn told(command: &mut Command, input: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Everything that it printed.
fn all(done: &Output) -> String {
    [&done.stdout, &done.stderr].map(|part| String::from_utf8_lossy(part)).concat()
}

/// The first backup of a service, of those that are `listed`.
fn first_of(listed: &str, service: &str) -> String {
    let listed = listed.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let ids = listed.filter_map(|l| l["id"].as_str().map(str::to_owned));
    ids.filter(|id| id.starts_with(&format!("{service}/"))).min().unwrap()
}

/// They are a setting and a file of the server, and no data.
#[test]
#[ignore = "needs redis-server"]
fn redis_keeps_the_password_and_the_users_of_today() {
    let then = redis::CANARY;
    let users = tempfile::NamedTempFile::new().unwrap();
    let line = |user: &str, password: &str| format!("user {user} on >{password} ~* &* +@all\n");
    std::fs::write(users.path(), line("default", then) + &line("app", then)).unwrap();
    let host = redis::Host::new(
        &format!("aclfile {}\nappendonly yes\n", users.path().display()),
        "password = { dotenv = '.env', key = 'REDIS_PASSWORD' }\n[services.env]\nkind = 'env'\npaths = ['.env']\n",
    );
    let dotenv =
        |password: &str| std::fs::write(host.path(".env"), format!("REDIS_PASSWORD={password}\n")).unwrap();
    let cli = |user: &str, password: &str, command: &str| {
        let mut cli = Command::new("redis-cli");
        cli.arg("-s").arg(host.path("redis.sock")).env("REDISCLI_AUTH", password).args(["--user", user]);
        all(&told(&mut cli, command))
    };
    dotenv(then);
    let old = host.seed("then", 500);
    host.ok(&["run", "manual", "--service", "env", "--service", "redis"]);
    let first = first_of(&host.ok(&["list", "--all", "--json"]), "redis");

    let rotate =
        format!("ACL SETUSER default resetpass >{NEW}\nACL SETUSER app resetpass >{NEW}\nACL SAVE\n");
    assert_eq!(cli("default", then, &rotate), "OK\nOK\nOK\n");
    dotenv(NEW);
    cli("default", NEW, "SET since 1\n");
    host.ok(&["run", "manual", "--service", "env", "--service", "redis"]);
    let kept = || (cli("default", NEW, "ACL LIST"), std::fs::read(users.path()).unwrap());
    let before = kept();
    assert!(before.0.contains("user app on"), "{}", before.0);

    let moment = first.rsplit('/').next().unwrap();
    for (command, says) in [
        (&["restore", "redis", "--at", &first, "--yes"][..], "restored"),
        (
            &["recover", "--service", "redis", "--at", moment, "--overwrite", "redis", "--yes"],
            "it takes writes",
        ),
    ] {
        cli("default", NEW, "FLUSHALL");
        let done = all(&host.run(command));
        assert!(done.contains(says) && !done.contains("differ"), "{command:?}: {done}");
        assert!(!done.contains(then) && !done.contains(NEW), "{done}");
        assert_eq!(cli("default", NEW, "DEBUG DIGEST").trim(), old, "{command:?}: {done}");
        assert_eq!(kept(), before);
        for user in ["default", "app"] {
            assert_eq!(cli(user, NEW, "PING"), "PONG\n");
            assert!(cli(user, then, "PING").contains("WRONGPASS"), "the password of then is taken");
        }
    }
}
