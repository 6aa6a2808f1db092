//! How to restore an RDB with nothing but Redis.
//!
//! Redis loses a restored file in four ways: a server that is stopped normally overwrites it; with the append-only file
//! on, it is ignored in favour of that file; if that one is missing, the server starts empty, and its first save
//! overwrites the restored file. So the server is stopped first, started once without the append-only file, and only then
//! told to write a new one.

use backup_core::{ArtifactMeta, HandContext, HandStep, shell_quote};

use super::conn::{Place, Server};

/// The steps, with the names of this backup's server.
pub(super) fn steps(server: &Server, backup: &HandContext<'_>) -> Vec<HandStep> {
    backup.metadata.artifacts.iter().flat_map(|artifact| of(server, backup, artifact)).collect()
}

fn of(server: &Server, backup: &HandContext<'_>, artifact: &ArtifactMeta) -> Vec<HandStep> {
    let attribute = |key: &str| artifact.attributes.get(key).and_then(|v| v.as_str());
    let dir = attribute("dir").unwrap_or("/data").to_owned();
    let name = attribute("dbfilename").unwrap_or("dump.rdb").to_owned();
    let logs = attribute("appenddirname").unwrap_or("appendonlydir").to_owned();
    let (file, logs) = (format!("{dir}/{name}"), format!("{dir}/{logs}"));
    let cli = cli(server);
    let mut steps = vec![
        HandStep::new("Unpack the snapshot.", format!("{} > restored.rdb", backup.decode(artifact))),
        HandStep::new("Check it with Redis's own tool.", "redis-check-rdb restored.rdb"),
        stop(server, &cli, &file),
    ];
    match &server.place {
        Place::Container(docker, _) => {
            let (program, container) = (docker.program(), shell_quote(docker.container()));
            steps.push(HandStep::new(
                format!(
                    "Move aside what the data directory `{dir}` holds, and put the snapshot there. The helper container \
                     uses the server's own image and volumes."
                ),
                format!(
                    "{program} run --rm -i --user 0 --volumes-from {container} --entrypoint sh \
                     \"$({program} inspect -f '{{{{.Config.Image}}}}' {container})\" -c {} < restored.rdb",
                    shell_quote(&place(&file, &logs, "cat >"))
                ),
            ));
        }
        _ => steps.push(HandStep::new(
            format!("Move aside what the data directory `{dir}` holds, and put the snapshot there."),
            place(&file, &logs, "cat restored.rdb >"),
        )),
    }
    let config = "keep your other arguments and configuration";
    let password =
        "If it asks for a password, `export REDISCLI_AUTH` first, so that it stays out of the process list.";
    if attribute("appendonly") == Some("yes") {
        steps.extend([
            HandStep::new(
                format!(
                    "Start Redis once with `--appendonly no` ({config}): with the append-only file on and missing, it would \
                     start empty. Wait until it answers and `loading` is 0, and look at the numbers of keys. {password}"
                ),
                format!("{cli} INFO keyspace"),
            ),
            HandStep::new(
                "Let it write a new append-only file, and wait: `aof_rewrite_in_progress` and `aof_rewrite_scheduled` must \
                 be 0, `aof_last_bgrewrite_status` must be ok.",
                format!("{cli} CONFIG SET appendonly yes; sleep 2; {cli} INFO persistence"),
            ),
            HandStep::new("Restart Redis with its usual configuration, and look at the numbers of keys again.", ""),
        ]);
    } else {
        steps.push(HandStep::new(
            format!(
                "Start Redis. If the append-only file is on by now (`appendonly yes`), start it once with `--appendonly no` \
                 ({config}), and once it answers, `CONFIG SET appendonly yes` and wait until INFO persistence shows \
                 `aof_rewrite_in_progress:0`. Then look at the numbers of keys: those without an expiry (`keys` less \
                 `expires`) must be those of metadata.json. {password}"
            ),
            format!("{cli} INFO keyspace"),
        ));
    }
    steps
}

/// The server must be down before its file is replaced.
fn stop(server: &Server, cli: &str, file: &str) -> HandStep {
    let why = format!(
        "Stop Redis and make sure that it stays down. Not later: Redis writes what it holds over `{file}` when it stops, and \
         a file that was put there before is lost."
    );
    let (text, command) = match (&server.place, &server.unit) {
        (Place::Container(docker, _), _) => {
            (why, format!("{} stop -t 300 {}", docker.program(), shell_quote(docker.container())))
        }
        (_, Some(unit)) => (why, format!("systemctl stop {}", shell_quote(unit))),
        _ => (
            format!(
                "{why} (If systemd runs it, stop its unit instead. If it asks for a password, `export REDISCLI_AUTH` first. \
                 What follows must run where `{file}` is.)"
            ),
            format!("{cli} SHUTDOWN"),
        ),
    };
    HandStep::new(text, command)
}

/// A shell command that puts the snapshot from `source` to `file`, with the owner of its directory.
fn place(file: &str, logs: &str, source: &str) -> String {
    let (new, old) = (shell_quote(file), shell_quote(&format!("{file}.old")));
    let (logs, old_logs) = (shell_quote(logs), shell_quote(&format!("{logs}.old")));
    format!(
        "if [ -e {new} ]; then mv {new} {old}; fi; if [ -e {logs} ]; then mv {logs} {old_logs}; fi; {source} {new} && chown \
         \"$(stat -c %u:%g \"$(dirname {new})\")\" {new}"
    )
}

/// `redis-cli` for this server, without secrets.
fn cli(server: &Server) -> String {
    let user = server.username.as_ref().map(|u| format!(" --user {}", shell_quote(u))).unwrap_or_default();
    let tls = match &server.tls {
        None => String::new(),
        Some(tls) => {
            let ca = tls.ca.as_ref().map(|p| format!(" --cacert {}", shell_quote(&p.display().to_string())));
            format!(" --tls{}", ca.unwrap_or_default())
        }
    };
    match &server.place {
        Place::Container(docker, port) => format!(
            "{} exec -e REDISCLI_AUTH {} redis-cli -p {port}{user}{tls}",
            docker.program(),
            shell_quote(docker.container())
        ),
        Place::Tcp(host, port) => format!("redis-cli -h {} -p {port}{user}{tls}", shell_quote(host)),
        Place::Socket(path) => format!("redis-cli -s {}{user}", shell_quote(&path.display().to_string())),
    }
}
