//! SIGKILL of the real binary, and of its whole process group, in each phase of a backup and of a restore of Weaviate: the
//! server runs soon, with the old data or the new, the next run works, and nothing is left beside it.

use std::process::Output;

use serde_json::{Value, json};

use crate::killed::{DEADLINE, End, Folder, PATIENCE, docker, mounting, text, until};

const IMAGE: &str = "backup-test/weaviate:1.35";

/// A server with a volume, and a configuration of it.
struct Host {
    folder: Folder,
    name: String,
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
        let host = Self { folder: Folder::new(&[]), name };
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
        host.folder.configure(&format!(
            "store.url = 'store'\n[services.weaviate]\nkind = 'weaviate'\ncontainer = '{}'\n\
             [intervals.base]\nservices = ['weaviate']\nkeep = 1\n[intervals.often]\nservices = ['weaviate']\nkeep = 2\n",
            host.name
        ));
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

    /// The names in a folder of its volume.
    fn names(&self, folder: &str) -> Vec<String> {
        let list = format!("ls -A {folder} 2>/dev/null || true");
        text(&docker(&["exec", &self.name, "sh", "-c", &list])).lines().map(str::to_owned).collect()
    }

    /// It runs, as it did before.
    fn assert_back(&self, what: &str) {
        let running = || text(&docker(&["inspect", "-f", "{{.State.Running}}", &self.name])) == "true";
        until(what, DEADLINE, || self.folder.is_over() && running());
        self.wait_until_ready(what);
        until(what, DEADLINE, || self.asleep());
    }

    /// The next run makes a good backup, and nothing is left beside the server and its data.
    fn assert_next_run_works(&self, what: &str) {
        // What a killed restore was doing ends first.
        self.folder.ok(&["cleanup", "--yes"]);
        let before = self.folder.good("often");
        self.folder.ok(&["run", "often"]);
        assert_eq!(self.folder.good("often"), (before + 1).min(2), "{what}");
        self.folder.ok(&["cleanup", "--yes"]);
        self.wait_until_ready(what);
        assert_eq!(self.names("/var/lib/weaviate/backups"), Vec::<String>::new(), "{what}");
        // Neither `weaviate.backup.…` nor `.weaviate.restore-…`; the server itself has a `.backup.tmp`.
        let beside = self.names("/var/lib/weaviate");
        assert!(!beside.iter().any(|name| name.contains("weaviate.")), "{what}: {beside:?}");
        // A second server has a folder of the volume mounted, and shows its path.
        let over = mounting(&self.name);
        assert!(over.len() == 1, "{what}: {over:?}");
        assert!(self.asleep(), "{what}");
        assert_eq!(self.folder.journal(), 0, "{what}");
    }
}

#[test]
#[ignore = "needs Docker and root"]
fn backups_and_restores_of_weaviate_killed_in_each_phase() {
    let host = Host::new();
    host.seed();
    let wanted = host.digest();
    host.folder.ok(&["run", "base"]);

    for (phase, end) in [
        ("activating tenants", End::Process),
        ("counting", End::Group),
        ("the server makes its backup", End::Process),
    ] {
        let what = format!("backup killed in `{phase}`");
        host.folder.start_to(phase, &["run", "often"]).kill(end);
        host.assert_back(&what);
        assert_eq!(host.digest(), wanted, "{what}");
    }
    // Once the server has begun, it goes on without us.
    let what = "backup killed while the server writes it";
    let run = host.folder.start_to("the server makes its backup", &["run", "often"]);
    until(what, DEADLINE, || !host.names("/var/lib/weaviate/backups").is_empty());
    run.kill(End::Group);
    host.assert_back(what);
    assert_eq!(host.folder.good("often"), 0, "a backup of a dead run");
    host.assert_next_run_works(what);

    host.change();
    let old = host.digest();
    assert_ne!(old, wanted);
    for (phase, end) in [
        ("starting a server of the same image", End::Process),
        ("the server restores the backup", End::Group),
        ("counting what was restored", End::Process),
        ("stopping the server", End::Group),
        ("replacing its data", End::Process),
        ("starting the server", End::Group),
        ("waiting for the server", End::Process),
    ] {
        let what = format!("restore killed in `{phase}`");
        let restore = ["restore", "weaviate", "--interval", "base", "--yes"];
        host.folder.start_to(phase, &restore).kill(end);
        host.assert_back(&what);
        let found = host.digest();
        assert!(found == old || found == wanted, "{what}: {found}");
        host.assert_next_run_works(&what);
        let found = host.digest();
        assert!(found == old || found == wanted, "{what}: {found}");
        host.change();
        assert_eq!(host.digest(), old, "{what}");
    }
    host.folder.ok(&["restore", "weaviate", "--interval", "base", "--yes"]);
    assert_eq!(host.digest(), wanted);
    host.assert_next_run_works("a restore that nobody killed");
}
