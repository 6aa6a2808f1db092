//! SIGKILL of the real binary, and of its whole process group, in each phase of a backup and of a restore of Weaviate: the
//! server runs soon, with the old data or the new, the next run works, and nothing is left beside it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

const IMAGE: &str = "backup-test/weaviate:1.35";

/// How long the container may not run, or tenants be as they were not, once the run is dead. The watchdog looks five
/// times a second; a stop that was ordered is seen through first.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long the server may then take to answer, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

fn docker(args: &[&str]) -> Output {
    Command::new("docker").args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn text(done: &Output) -> String {
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

#[track_caller]
fn until(what: &str, limit: Duration, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        // Each question starts a program, and there are few processors.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A server with a volume, and a configuration of it.
struct Host {
    dir: tempfile::TempDir,
    name: String,
}

/// A run that is dead at the latest when this is dropped.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

impl Run {
    fn kill(&mut self, whole_group: bool) {
        if whole_group {
            let group = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
            kill_process_group(group, Signal::KILL).unwrap();
        } else {
            self.0.kill().unwrap();
        }
        self.0.wait().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        docker(&["rm", "-fv", &self.name]);
        docker(&["volume", "rm", "-f", &self.name]);
    }
}

impl Host {
    fn new() -> Self {
        let name = format!("backup-test-{}-weaviate-kills", std::process::id());
        let host = Self { dir: tempfile::tempdir().unwrap(), name };
        let label = format!("backup-test={}", std::process::id());
        text(&docker(&["volume", "create", "--label", &label, &host.name]));
        let volume = format!("{}:/var/lib/weaviate", host.name);
        let mut args = vec!["run", "-d", "--name", &host.name, "--label", &label, "-v", &volume];
        for setting in [
            "PERSISTENCE_DATA_PATH=/var/lib/weaviate",
            "ENABLE_MODULES=backup-filesystem",
            "BACKUP_FILESYSTEM_PATH=/var/lib/weaviate/backups",
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED=true",
            "CLUSTER_HOSTNAME=node1",
            "DISABLE_TELEMETRY=true",
            "GOMAXPROCS=2",
        ] {
            args.extend(["-e", setting]);
        }
        args.push(IMAGE);
        text(&docker(&args));
        host.wait_until_ready("the start");
        let config = format!(
            "state_dir = 'state'\nstore.url = 'store'\n[services.weaviate]\nkind = 'weaviate'\ncontainer = '{}'\n\
             [intervals.base]\nservices = ['weaviate']\nkeep = 1\n[intervals.often]\nservices = ['weaviate']\nkeep = 2\n",
            host.name
        );
        std::fs::write(host.dir.path().join("backup.toml"), config).unwrap();
        host.ok(&["init"]);
        host
    }

    /// A request, made in the container.
    fn try_call(&self, method: &str, path: &str, body: Option<Value>) -> Output {
        let url = format!("http://localhost:8080/v1/{path}");
        let (method, body) = (format!("--method={method}"), body.map(|b| format!("--body-data={b}")));
        let mut args = vec!["exec", &self.name, "wget", "-qO-", "-T5", "-t1", &method];
        if let Some(body) = &body {
            args.extend(["--header=Content-Type: application/json", body]);
        }
        args.push(&url);
        docker(&args)
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        serde_json::from_str(&text(&self.try_call(method, path, body))).unwrap_or(Value::Null)
    }

    #[track_caller]
    fn wait_until_ready(&self, what: &str) {
        until(what, PATIENCE, || self.try_call("GET", ".well-known/ready", None).status.success());
    }

    fn fill(&self, class: &str, tenant: Option<&str>, objects: std::ops::Range<u32>) {
        let objects: Vec<Value> = objects
            .map(|n| {
                let vector: Vec<u32> = (1..=8).map(|d| n * 31 % (d + 7)).collect();
                let id = format!("00000000-0000-4000-8000-{n:012}");
                let mut object =
                    json!({ "class": class, "id": id, "properties": { "n": n }, "vector": vector });
                if let Some(tenant) = tenant {
                    object["tenant"] = tenant.into();
                }
                object
            })
            .collect();
        let made = self.call("POST", "batch/objects", Some(json!({ "objects": objects })));
        assert!(made.as_array().unwrap().iter().all(|o| o["result"]["errors"].is_null()), "{made}");
    }

    /// What the backup holds: a collection, and one with a tenant that sleeps.
    fn seed(&self) {
        self.call("POST", "schema", Some(json!({ "class": "Doc", "vectorizer": "none" })));
        self.fill("Doc", None, 0..300);
        let tenants =
            json!({ "class": "Ten", "vectorizer": "none", "multiTenancyConfig": { "enabled": true } });
        self.call("POST", "schema", Some(tenants));
        self.call("POST", "schema/Ten/tenants", Some(json!([{ "name": "asleep" }])));
        self.fill("Ten", Some("asleep"), 0..20);
        let sleep = json!([{ "name": "asleep", "activityStatus": "INACTIVE" }]);
        self.call("PUT", "schema/Ten/tenants", Some(sleep));
    }

    /// Other data than the backup's, of much the same size. It may be so already.
    fn change(&self) {
        self.try_call("DELETE", "objects/Doc/00000000-0000-4000-8000-000000000007", None);
        self.fill("Doc", None, 1000..1010);
    }

    fn asleep(&self) -> bool {
        let tenants = self.try_call("GET", "schema/Ten/tenants", None);
        let tenants: Value = serde_json::from_slice(&tenants.stdout).unwrap_or(Value::Null);
        ["COLD", "INACTIVE"].iter().any(|state| tenants[0]["activityStatus"] == *state)
    }

    /// All objects with their vectors, by collection.
    fn digest(&self) -> String {
        let mut lines = Vec::new();
        let schema = self.call("GET", "schema", None);
        for class in schema["classes"].as_array().unwrap() {
            let name = class["class"].as_str().unwrap();
            lines.push(name.to_owned());
            if class["multiTenancyConfig"]["enabled"] == true {
                continue;
            }
            let all = self.call("GET", &format!("objects?class={name}&limit=1000&include=vector"), None);
            let objects = all["objects"].as_array().unwrap().iter();
            lines.extend(objects.map(|o| format!("{} {} {}", o["id"], o["properties"], o["vector"])));
        }
        lines.sort();
        lines.join("\n")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("backup"));
        command.args(args).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        text(&self.command(args).output().unwrap())
    }

    /// Starts a run in a process group of its own, and waits until it says that it begins `phase`.
    fn run_to(&self, phase: &str, args: &[&str]) -> Run {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut run = Run(command.spawn().unwrap());
        let mut said = BufReader::new(run.0.stdout.take().unwrap()).lines();
        let begins = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["event"] == "phase" && event["phase"] == phase
        };
        assert!(said.any(|line| begins(&line.unwrap())), "`{phase}` never began");
        // Nobody reads the rest; it must not break off because of that.
        std::thread::spawn(move || said.for_each(drop));
        run
    }

    fn journal(&self) -> usize {
        let files = std::fs::read_dir(self.dir.path().join("state/interruptions")).into_iter().flatten();
        files.filter(|f| f.as_ref().is_ok_and(|f| f.path().extension().is_some_and(|e| e == "json"))).count()
    }

    /// The names in a folder of its volume.
    fn names(&self, folder: &str) -> Vec<String> {
        let list = format!("ls -A {folder} 2>/dev/null || true");
        text(&docker(&["exec", &self.name, "sh", "-c", &list])).lines().map(str::to_owned).collect()
    }

    fn good(&self, interval: &str) -> usize {
        let listed = self.ok(&["list", "--all", "--json", "--interval", interval]);
        let lines = listed.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.filter(|l| l["event"] == "backup" && l["state"] == "good").count()
    }

    /// It runs, as it did before.
    fn assert_back(&self, what: &str) {
        let running = || text(&docker(&["inspect", "-f", "{{.State.Running}}", &self.name])) == "true";
        until(what, DEADLINE, || self.journal() == 0 && running());
        self.wait_until_ready(what);
        until(what, DEADLINE, || self.asleep());
    }

    /// The next run makes a good backup, and nothing is left beside the server and its data.
    fn assert_next_run_works(&self, what: &str) {
        // What a killed restore was doing ends first.
        self.ok(&["cleanup", "--yes"]);
        let before = self.good("often");
        self.ok(&["run", "often"]);
        assert_eq!(self.good("often"), (before + 1).min(2), "{what}");
        self.ok(&["cleanup", "--yes"]);
        self.wait_until_ready(what);
        assert_eq!(self.names("/var/lib/weaviate/backups"), Vec::<String>::new(), "{what}");
        // Neither `weaviate.backup.…` nor `.weaviate.restore-…`; the server itself has a `.backup.tmp`.
        let beside = self.names("/var/lib/weaviate");
        assert!(!beside.iter().any(|name| name.contains("weaviate.")), "{what}: {beside:?}");
        // A second server has a folder of the volume mounted, and shows its path.
        let all = text(&docker(&["ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.Mounts}}"]));
        let over: Vec<&str> = all.lines().filter(|line| line.contains(&self.name)).collect();
        assert!(over.len() == 1, "{what}: {over:?}");
        assert!(self.asleep(), "{what}");
    }
}

#[test]
#[ignore = "needs Docker and root"]
fn backups_and_restores_of_weaviate_killed_in_each_phase() {
    let host = Host::new();
    host.seed();
    let wanted = host.digest();
    host.ok(&["run", "base"]);

    for (phase, whole_group) in
        [("activating tenants", false), ("counting", true), ("the server makes its backup", false)]
    {
        let what = format!("backup killed in `{phase}`");
        host.run_to(phase, &["--json", "run", "often"]).kill(whole_group);
        host.assert_back(&what);
        assert_eq!(host.digest(), wanted, "{what}");
    }
    // Once the server has begun, it goes on without us.
    let what = "backup killed while the server writes it";
    let mut run = host.run_to("the server makes its backup", &["--json", "run", "often"]);
    until(what, DEADLINE, || !host.names("/var/lib/weaviate/backups").is_empty());
    run.kill(true);
    host.assert_back(what);
    assert_eq!(host.good("often"), 0, "a backup of a dead run");
    host.assert_next_run_works(what);

    host.change();
    let old = host.digest();
    assert_ne!(old, wanted);
    for (phase, whole_group) in [
        ("starting a server of the same image", false),
        ("the server restores the backup", true),
        ("counting what was restored", false),
        ("stopping the server", true),
        ("replacing its data", false),
        ("starting the server", true),
        ("waiting for the server", false),
    ] {
        let what = format!("restore killed in `{phase}`");
        let restore = ["--json", "restore", "weaviate", "--interval", "base", "--yes"];
        host.run_to(phase, &restore).kill(whole_group);
        host.assert_back(&what);
        let found = host.digest();
        assert!(found == old || found == wanted, "{what}: {found}");
        host.assert_next_run_works(&what);
        let found = host.digest();
        assert!(found == old || found == wanted, "{what}: {found}");
        host.change();
        assert_eq!(host.digest(), old, "{what}");
    }
    host.ok(&["restore", "weaviate", "--interval", "base", "--yes"]);
    assert_eq!(host.digest(), wanted);
    host.assert_next_run_works("a restore that nobody killed");
}
