//! The contract of adapters, for `redis` in both capture modes.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::testkit::adapter_suite::AdapterFixture;
use backup_core::{OpContext, ServiceAdapter};

use crate::support::{CANARY, Server, adapter, with_secrets};

struct Fixture {
    server: Server,
    mode: &'static str,
}

impl Fixture {
    fn new(mode: &'static str, settings: &str) -> Self {
        let server = Server::start(&format!("requirepass {CANARY}\n{settings}"));
        server.cli(&["MSET", "a", "1", "b", "2"]);
        server.cli(&["HSET", "h", "field", "value"]);
        server.cli(&["SET", "t", "3", "EX", "100000"]);
        Self { server, mode }
    }
}

#[async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        self.server.adapter(&format!("capture = '{}'\npassword = {{ env = 'CANARY' }}", self.mode))
    }
    async fn mutate(&self) {
        self.server.cli(&["SET", "a", "changed"]);
        self.server.cli(&["SET", "new", "1"]);
        self.server.cli(&["DEL", "b"]);
    }
    async fn live(&self) -> String {
        self.server.cli(&["DEBUG", "DIGEST"])
    }
    async fn restored(&self, dir: &Path) -> String {
        let scratch = Server::start("");
        std::fs::copy(dir.join("dump.rdb"), scratch.file("dump.rdb")).unwrap();
        assert_eq!(scratch.cli(&["DEBUG", "RELOAD", "NOSAVE"]), "OK");
        scratch.cli(&["DEBUG", "DIGEST"])
    }
    fn context(&self, cx: OpContext) -> OpContext {
        with_secrets(cx)
    }
    fn question(&self) -> String {
        "EXISTS a".into()
    }
    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        Some(adapter(&format!("socket = '{}'", self.server.file("missing.sock").display())))
    }
    fn canaries(&self) -> Vec<String> {
        vec![CANARY.to_owned()]
    }
}

backup_core::adapter_conformance_tests!(
    #[ignore = "needs redis-server"]
    stream,
    || async { Fixture::new("stream", "") }
);
backup_core::adapter_conformance_tests!(
    #[ignore = "needs redis-server"]
    bgsave,
    || async { Fixture::new("bgsave", "") }
);
backup_core::adapter_conformance_tests!(
    #[ignore = "needs redis-server"]
    append_only,
    || async { Fixture::new("auto", "appendonly yes\n") }
);
