//! `recover` on a host that has lost containers, volumes and the file that they are made from: a Compose project of a Redis
//! server, and of an application that fills an empty one whenever it sees it.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::killed::{PATIENCE, docker, text, until};
use super::support::{Ran, World, ran};

const PASSWORD: &str = "canary-stack-8f1e";
const KEYS: &str = "500";

struct Host {
    world: World,
    name: String,
}

impl Host {
    /// Up, with data in the server and a backup of it.
    fn new(what: &str) -> Self {
        let host = Self { world: World::new(), name: format!("backup-test-{}-{what}", std::process::id()) };
        host.compose_file("backup-test/redis:7", "redis-server --appendonly yes --requirepass $${P}", "");
        host.world.write(".env", &format!("REDIS_PASSWORD={PASSWORD}\n"));
        host.world.write(
            "backup.toml",
            &format!(
                "state_dir = 'state'\nstore.url = 'store'\n\
                 [compose]\nfile = 'compose.yaml'\nproject = '{0}'\n\
                 [services.env]\nkind = 'env'\npaths = ['.env']\n\
                 [services.redis]\nkind = 'redis'\ncontainer = '{0}-redis'\n\
                 password = {{ dotenv = '.env', key = 'REDIS_PASSWORD' }}\nrto = '1min'\n",
                host.name
            ),
        );
        host.compose(&["up", "-d", "redis"]);
        host.redis_answers();
        host.redis(&[
            "EVAL",
            "for i = 1, tonumber(ARGV[1]) do redis.call('SET', 'k' .. i, i) end",
            "0",
            KEYS,
        ]);
        host.compose(&["up", "-d", "web"]);
        host.ok(&["init"]);
        host.ok(&["run"]);
        host
    }

    fn compose_file(&self, image: &str, command: &str, more: &str) {
        let (name, pid) = (&self.name, std::process::id());
        let command = command.replace("$${P}", "${REDIS_PASSWORD}");
        self.world.write(
            "compose.yaml",
            &format!(
                r#"version: "2.4"
services:
  redis:
    image: {image}
    container_name: {name}-redis
    command: {command}
    labels: {{ backup-test: "{pid}" }}
    volumes: ["redis-data:/data"]
{more}
  web:
    image: backup-test/redis:7
    container_name: {name}-web
    labels: {{ backup-test: "{pid}" }}
    environment: {{ REDISCLI_AUTH: "${{REDIS_PASSWORD}}" }}
    init: true
    stop_grace_period: 1s
    command:
      - sh
      - -c
      - 'while sleep 0.1; do [ "$$(redis-cli -h redis DBSIZE)" != 0 ] || redis-cli -h redis SET migrated 1; done 2>/dev/null'
    depends_on: [redis]
volumes:
  redis-data:
    labels: {{ backup-test: "{pid}" }}
networks:
  default:
    labels: {{ backup-test: "{pid}" }}
"#
            ),
        );
    }

    /// Docker Compose, as whoever wrote the project calls it.
    fn compose(&self, args: &[&str]) {
        let plugin = Command::new("docker").args(["compose", "version"]).output().unwrap().status.success();
        let mut program = Command::new(if plugin { "docker" } else { "docker-compose" });
        if plugin {
            program.arg("compose");
        }
        program.args(["--project-name", &self.name]).args(args).current_dir(self.world.path(""));
        let done = program.output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.command(args);
        // Docker Compose is a program, and time goes on.
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command.env_remove("DOCKER_HOST").env_remove("BACKUP_TEST_NOW");
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        let done = ran(&mut self.command(args));
        assert!(!done.out.contains(PASSWORD) && !done.err.contains(PASSWORD), "{done:#?}");
        done
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> Ran {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{done:#?}");
        done
    }

    fn redis(&self, args: &[&str]) -> String {
        let auth = format!("REDISCLI_AUTH={PASSWORD}");
        let server = format!("{}-redis", self.name);
        let done = docker(&[&["exec", "-e", &auth, &server, "redis-cli"], args].concat());
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    fn redis_answers(&self) {
        until("Redis answers", PATIENCE, || self.redis(&["PING"]) == "PONG");
    }

    /// `running`, `exited`, … or nothing.
    fn state(&self, part: &str) -> String {
        let name = format!("{}-{part}", self.name);
        let done = docker(&["container", "inspect", "--format", "{{.State.Status}}", &name]);
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// Containers and volumes of the project, as the engine lists them.
    fn things(&self) -> String {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let containers =
            docker(&["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.State}}", "--filter", &label]);
        text(&containers) + &text(&docker(&["volume", "ls", "-q", "--filter", &label]))
    }

    /// The server, its volume and the file with its password are gone. The application runs on.
    fn destroy(&self) {
        docker(&["rm", "-fv", &format!("{}-redis", self.name)]);
        docker(&["volume", "rm", &format!("{}_redis-data", self.name)]);
        std::fs::remove_file(self.world.path(".env")).unwrap();
        assert!(self.state("redis").is_empty() && !self.things().contains("redis-data"));
    }

    fn is_back(&self) {
        assert_eq!(self.redis(&["DBSIZE"]), KEYS);
        assert_eq!(self.redis(&["EXISTS", "migrated"]), "0", "the application saw an empty server");
        assert_eq!(self.world.read(".env"), format!("REDIS_PASSWORD={PASSWORD}\n"));
        assert_eq!((self.state("redis").as_str(), self.state("web").as_str()), ("running", "running"));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let label = format!("label=com.docker.compose.project={}", self.name);
        for (list, remove) in [
            (["ps", "-aq"].as_slice(), ["rm", "-fv"].as_slice()),
            (&["volume", "ls", "-q"], &["volume", "rm"]),
            (&["network", "ls", "-q"], &["network", "rm"]),
        ] {
            let listed = docker(&[list, &["--filter", &label]].concat());
            for id in String::from_utf8_lossy(&listed.stdout).lines() {
                docker(&[remove, &[id]].concat());
            }
        }
    }
}

#[test]
#[ignore = "needs Docker"]
fn containers_volumes_and_their_settings_come_back() {
    let host = Host::new("lost");
    host.destroy();
    let before = host.things();
    let plan = host.ok(&["recover", "--dry-run"]);
    for part in ["first stop web", "make and start `redis`", "after env", "start web", "its rto is 1 min"] {
        assert!(plan.out.contains(part), "{part}: {plan:#?}");
    }
    assert_eq!(host.things(), before, "a plan changes nothing");

    let done = host.ok(&["recover", "--yes"]);
    host.is_back();
    assert!(done.out.contains("stopped") && done.out.contains("started"), "{done:#?}");
    assert!(done.err.contains("it takes writes"), "{done:#?}");
    let told = host.ok(&["logs", "last"]);
    assert!(told.out.contains("web") && told.out.contains("start"), "{told:#?}");
    assert_eq!(host.run(&["recover", "--yes"]).code, 4, "nothing is left to be done");
    assert_eq!(host.run(&["recover", "--dry-run", "--overwrite", "redis"]).code, 0);
    // A plan now knows how long a start takes.
    host.destroy();
    let plan = host.ok(&["recover", "--dry-run"]);
    assert!(plan.out.contains("its last start"), "{plan:#?}");
}

/// From bare metal to running: nothing is left but the store. What expires meanwhile is no difference.
#[test]
#[ignore = "needs Docker"]
fn two_commands_bring_back_a_host_that_burnt() {
    let host = Host::new("burnt");
    host.redis(&["EVAL", "for i = 1, 100 do redis.call('SET', 'brief' .. i, i, 'PX', 5000) end", "0"]);
    host.ok(&["run"]);
    host.destroy();
    docker(&["rm", "-fv", &format!("{}-web", host.name)]);
    docker(&["network", "rm", &format!("{}_default", host.name)]);
    for file in ["backup.toml", "compose.yaml"] {
        std::fs::remove_file(host.world.path(file)).unwrap();
    }
    std::fs::remove_dir_all(host.world.path("state")).unwrap();
    assert!(host.things().is_empty(), "{}", host.things());

    host.ok(&["bootstrap", "store", "--yes"]);
    host.ok(&["recover", "--yes"]);
    until("what expired is gone", PATIENCE, || host.redis(&["DBSIZE"]) == KEYS);
    host.is_back();
}

#[test]
#[ignore = "needs Docker"]
fn a_drill_leaves_containers_and_volumes_alone() {
    let host = Host::new("drill");
    let started = |part: &str| {
        let name = format!("{}-{part}", host.name);
        text(&docker(&["inspect", "--format", "{{.State.StartedAt}} {{.RestartCount}}", &name]))
    };
    let before = (host.things(), started("redis"), started("web"));
    let done = host.ok(&["drill"]);
    assert!(done.out.contains("passed") && done.out.contains("redis"), "{done:#?}");
    assert_eq!((host.things(), started("redis"), started("web")), before);
    assert_eq!(host.redis(&["DBSIZE"]), KEYS);
    // And now the plan knows how long it takes.
    let plan = host.ok(&["recover", "--dry-run", "--overwrite", "redis"]);
    assert!(plan.out.contains("by the restore into scratch of"), "{plan:#?}");
}

/// The container is gone, its volume is not: what it holds is newer than any backup.
#[test]
#[ignore = "needs Docker"]
fn a_volume_that_is_still_there_is_not_replaced() {
    let host = Host::new("volume");
    host.redis(&["SET", "newer", "1"]);
    text(&docker(&["rm", "-f", &format!("{}-redis", host.name)]));
    let done = host.ok(&["recover", "--yes"]);
    assert!(done.err.contains("it runs by now, and holds data"), "{done:#?}");
    assert_eq!(host.redis(&["GET", "newer"]), "1");
    assert_eq!(host.state("web"), "running");
}

#[test]
#[ignore = "needs Docker"]
fn what_cannot_be_made_or_does_not_run_is_told_and_stops_no_other() {
    let host = Host::new("faults");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = "redis-server --requirepass $${P}";
    for (image, command, more, says) in [
        ("backup-test/none:0", server, String::new(), "backup-test/none:0"),
        ("backup-test/redis:7", server, format!("    ports: [\"127.0.0.1:{port}:6379\"]"), "in use"),
        ("backup-test/redis:7", "sh -c 'echo no such module; exit 3'", String::new(), "no such module"),
    ] {
        host.destroy();
        host.compose_file(image, command, &more);
        let done = host.run(&["recover", "--yes"]);
        assert_eq!(done.code, 3, "{says}: {done:#?}");
        assert!(done.err.contains(says), "{says}: {done:#?}");
        assert!(done.err.contains("not started, because redis"), "{done:#?}");
        assert!(host.world.path(".env").exists(), "{done:#?}");
        assert_eq!(host.state("web"), "exited", "{says}");
    }
    host.destroy();
    host.compose_file("backup-test/redis:7", "redis-server --appendonly yes --requirepass $${P}", "");
    host.ok(&["recover", "--yes"]);
    host.is_back();
}

/// Killed at any instant, the next one completes it; and no application ever sees an empty server.
#[test]
#[ignore = "needs Docker"]
fn a_killed_recovery_is_completed_by_the_next() {
    let host = Host::new("killed");
    for wait in [50, 400, 900, 1500, 2500, 4000] {
        host.destroy();
        let mut first = host.command(&["recover", "--yes"]);
        let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        let _ended = first.kill();
        first.wait().unwrap();
        let next = host.run(&["recover", "--yes"]);
        assert!(matches!(next.code, 0 | 4), "after {wait} ms: {next:#?}");
        host.is_back();
    }
}
