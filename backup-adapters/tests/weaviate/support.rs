//! A server in a container, data for it, and what it holds as text.

mod context;
mod digest;
pub(crate) mod storage;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backup_core::ServiceAdapter;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

pub(crate) use self::context::{Keys, adapter, bench, later, staged, until};

/// The key of the administrator: must never show.
pub(crate) const CANARY: &str = "canary-api-key-7f3a";

static NUMBER: AtomicU32 = AtomicU32::new(0);

#[expect(clippy::disallowed_methods, reason = "tests may be told of another image")]
pub(crate) fn image() -> String {
    std::env::var("BACKUP_TEST_WEAVIATE_IMAGE").unwrap_or_else(|_| "backup-test/weaviate:1.35".to_owned())
}

pub(crate) async fn try_docker(args: &[&str]) -> (bool, String) {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let run = tokio::task::spawn_blocking(move || Command::new("docker").args(&args).output().unwrap());
    let done = run.await.unwrap();
    let text = if done.status.success() { done.stdout } else { done.stderr };
    (done.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

pub(crate) async fn docker(args: &[&str]) -> String {
    let (ok, text) = try_docker(args).await;
    assert!(ok, "docker {args:?}: {text}");
    text
}

/// A network of its own, where the first address that is free is given away next. Let go of its servers first.
pub(crate) struct Network(pub(crate) String);

impl Network {
    pub(crate) async fn create() -> Self {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (id, label) = (std::process::id(), format!("backup-test={}", std::process::id()));
        let network = Self(format!("backup-test-weaviate-{id}-{n}"));
        docker(&["network", "create", "--label", &label, &network.0]).await;
        network
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["network", "rm", &self.0]).output();
    }
}

/// A container with a volume; both are removed when this is dropped.
pub(crate) struct Server {
    pub(crate) name: String,
    http: reqwest::Client,
}

impl Server {
    /// With keys, roles, and users in its database; the backups lie in its data directory, as the documentation has it.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(options: &[&str]) -> Self {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("backup-test-weaviate-{}-{n}", std::process::id());
        let server =
            Self { name: name.clone(), http: reqwest::Client::builder().no_proxy().build().unwrap() };
        let label = format!("backup-test={}", std::process::id());
        docker(&["volume", "create", "--label", &label, &name]).await;
        let (mount, keys) = (
            format!("{name}:/var/lib/weaviate"),
            format!("AUTHENTICATION_APIKEY_ALLOWED_KEYS={CANARY},view,part"),
        );
        let image = image();
        let mut args = vec!["run", "-d", "--name", &name, "--label", &label, "-v", &mount, "-e", &keys];
        for setting in [
            "PERSISTENCE_DATA_PATH=/var/lib/weaviate",
            "ENABLE_MODULES=backup-filesystem",
            "BACKUP_FILESYSTEM_PATH=/var/lib/weaviate/backups",
            "AUTHENTICATION_APIKEY_ENABLED=true",
            "AUTHENTICATION_APIKEY_USERS=admin,viewer,partial",
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED=false",
            "AUTHORIZATION_RBAC_ENABLED=true",
            "AUTHORIZATION_RBAC_ROOT_USERS=admin",
            "AUTHENTICATION_DB_USERS_ENABLED=true",
            "CLUSTER_HOSTNAME=node1",
            "DISABLE_TELEMETRY=true",
            "GOMAXPROCS=2",
        ] {
            args.extend(["-e", setting]);
        }
        args.extend_from_slice(options);
        args.push(&image);
        docker(&args).await;
        server.wait_until_ready().await;
        server
    }

    pub(crate) async fn wait_until_ready(&self) {
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            if let Some(base) = self.try_base().await {
                let asked =
                    self.http.get(format!("{base}/v1/.well-known/ready")).timeout(Duration::from_secs(3));
                if asked.send().await.is_ok_and(|r| r.status().is_success()) {
                    return;
                }
            }
            if Instant::now() > until {
                panic!("{}", docker(&["logs", "--tail", "5", &self.name]).await);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn try_base(&self) -> Option<String> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let (_, ip) = try_docker(&["inspect", "-f", format, &self.name]).await;
        ip.starts_with(|c: char| c.is_ascii_digit()).then(|| format!("http://{ip}:8080"))
    }

    pub(crate) async fn base(&self) -> String {
        self.try_base().await.expect("an address")
    }

    /// A request as the administrator: status and answer.
    pub(crate) async fn try_call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("{}{path}", self.base().await);
        let mut request = self.http.request(method.parse().unwrap(), url).bearer_auth(CANARY);
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let answer = request.timeout(Duration::from_secs(60)).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.try_call(method, path, body).await;
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }

    pub(crate) async fn make_class(&self, class: &str, tenants: bool) {
        let body = json!({
            "class": class, "vectorizer": "none", "multiTenancyConfig": { "enabled": tenants },
            "properties": [{ "name": "text", "dataType": ["text"] }, { "name": "n", "dataType": ["int"] }],
        });
        self.call("POST", "/v1/schema", Some(body)).await;
    }

    /// Objects `from..to` of a class, the same each time.
    pub(crate) async fn fill(&self, class: &str, tenant: Option<&str>, from: u32, to: u32, dimensions: u32) {
        let mut at = from;
        while at < to {
            let end = to.min(at + 500);
            let objects: Vec<Value> = (at..end)
                .map(|n| {
                    let vector: Vec<f64> = (0..dimensions)
                        .map(|d| {
                            f64::from((n * 7919 + (d * d) % 1009 * 104_729 + d * 13) % 10_007) / 10_007.0
                        })
                        .collect();
                    let mut object = json!({
                        "class": class, "id": format!("00000000-0000-4000-8000-{n:012}"),
                        "properties": { "text": format!("object {n}"), "n": n }, "vector": vector,
                    });
                    if let Some(tenant) = tenant {
                        object["tenant"] = tenant.into();
                    }
                    object
                })
                .collect();
            let answer = self.call("POST", "/v1/batch/objects", Some(json!({ "objects": objects }))).await;
            for one in answer.as_array().unwrap() {
                assert!(one["result"]["errors"].is_null(), "{one}");
            }
            at = end;
        }
    }

    pub(crate) async fn set_tenant(&self, class: &str, tenant: &str, status: &str) {
        let body = json!([{ "name": tenant, "activityStatus": status }]);
        self.call("PUT", &format!("/v1/schema/{class}/tenants"), Some(body)).await;
    }

    /// A collection, one with tenants of which one sleeps, a role, and a user of it.
    pub(crate) async fn seed(&self) {
        self.make_class("Doc", false).await;
        self.fill("Doc", None, 0, 300, 16).await;
        self.make_class("Ten", true).await;
        let tenants = json!([{ "name": "awake" }, { "name": "asleep" }]);
        self.call("POST", "/v1/schema/Ten/tenants", Some(tenants)).await;
        self.fill("Ten", Some("awake"), 0, 40, 8).await;
        self.fill("Ten", Some("asleep"), 100, 150, 8).await;
        self.set_tenant("Ten", "asleep", "INACTIVE").await;
        let role = json!({ "name": "reader", "permissions": [
            { "action": "read_collections", "collections": { "collection": "Doc" } },
            { "action": "manage_backups", "backups": { "collection": "Doc" } },
            { "action": "read_data", "data": { "collection": "Doc" } },
        ] });
        self.call("POST", "/v1/authz/roles", Some(role)).await;
        self.call("POST", "/v1/users/db/custom", None).await;
        let assign = json!({ "roles": ["reader"], "userType": "db" });
        for user in ["custom", "partial"] {
            self.call("POST", &format!("/v1/authz/users/{user}/assign"), Some(assign.clone())).await;
        }
        let assign = json!({ "roles": ["viewer"], "userType": "db" });
        self.call("POST", "/v1/authz/users/viewer/assign", Some(assign)).await;
    }

    /// The names in its backup folder.
    pub(crate) async fn backups(&self) -> Vec<String> {
        let list =
            docker(&["exec", &self.name, "sh", "-c", "ls -A /var/lib/weaviate/backups 2>/dev/null || true"])
                .await;
        list.lines().map(str::to_owned).collect()
    }

    pub(crate) async fn tenant(&self, class: &str, tenant: &str) -> String {
        let all = self.call("GET", &format!("/v1/schema/{class}/tenants"), None).await;
        let one = all.as_array().unwrap().iter().find(|t| t["name"] == tenant).unwrap();
        one["activityStatus"].as_str().unwrap().to_owned()
    }

    pub(crate) fn adapter(&self, keys: &str) -> Arc<dyn ServiceAdapter> {
        adapter(&format!("container = '{}'\napi_key = {{ env = 'CANARY' }}\n{keys}", self.name))
    }

    pub(crate) async fn restart(&self) {
        docker(&["restart", "-t", "60", &self.name]).await;
        self.wait_until_ready().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["rm", "-fv", &self.name]).output();
        let _gone = Command::new("docker").args(["volume", "rm", "-f", &self.name]).output();
    }
}
