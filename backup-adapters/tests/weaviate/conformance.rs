//! The contract of adapters, for a server with keys, roles, tenants and one that sleeps.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::testkit::adapter_suite::AdapterFixture;
use backup_core::{OpContext, ServiceAdapter};
use serde_json::json;

use crate::support::{CANARY, Keys, Server, adapter, docker};

struct Fixture(Server);

impl Fixture {
    async fn new() -> Self {
        let server = Server::start().await;
        server.seed().await;
        Self(server)
    }
}

#[async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        self.0.adapter("")
    }
    async fn mutate(&self) {
        self.0.fill("Doc", None, 1000, 1010, 16).await;
        self.0.call("DELETE", "/v1/objects/Doc/00000000-0000-4000-8000-000000000007", None).await;
        self.0.make_class("Later", false).await;
    }
    async fn live(&self) -> String {
        self.0.digest().await
    }
    async fn restored(&self, dir: &Path) -> String {
        // As RESTORE.md says: a new server, and the backup in its backup folder.
        let server = Server::start().await;
        let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let id = entries.filter(|n| n.starts_with("backup-")).collect::<Vec<_>>().pop().unwrap();
        let (from, to) =
            (dir.join(&id).display().to_string(), format!("{}:/var/lib/weaviate/backups/", server.name));
        docker(&["cp", &from, &to]).await;
        let body = json!({ "config": { "usersOptions": "all", "rolesOptions": "all" } });
        let path = format!("/v1/backups/filesystem/{id}/restore");
        server.call("POST", &path, Some(body)).await;
        crate::support::until("the restore", async || {
            server.call("GET", &path, None).await["status"] == "SUCCESS"
        })
        .await;
        server.set_tenant("Ten", "asleep", "INACTIVE").await;
        server.digest().await
    }
    fn context(&self, mut cx: OpContext) -> OpContext {
        cx.secrets = Arc::new(Keys);
        cx
    }
    fn question(&self) -> String {
        "{ Aggregate { Doc { meta { count } } } }".into()
    }
    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        Some(adapter("url = 'http://127.0.0.1:9'"))
    }
    fn canaries(&self) -> Vec<String> {
        vec![CANARY.to_owned()]
    }
}

backup_core::adapter_conformance_tests!(
    #[ignore = "needs Docker"]
    container,
    || async { Fixture::new().await },
    at_once = 6
);
