//! The contract of adapters, for `neo4j`.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::testkit::adapter_suite::AdapterFixture;
use backup_core::{OpContext, ServiceAdapter};

use crate::graph::{Graph, Release};
use crate::support::{CANARY, adapter, with_secrets};

struct Fixture {
    graph: Graph,
    mode: &'static str,
}

impl Fixture {
    fn new(mode: &'static str) -> Self {
        let graph = Graph::start();
        graph.seed("first", 50);
        Self { graph, mode }
    }
}

#[async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        self.graph.adapter(&format!("capture = '{}'", self.mode))
    }
    async fn mutate(&self) {
        self.graph.cypher("MATCH (n:Page) WHERE n.id > 25 DETACH DELETE n");
        self.graph.seed("second", 20);
    }
    async fn live(&self) -> String {
        self.graph.wait_until_up();
        self.graph.content()
    }
    async fn restored(&self, dir: &Path) -> String {
        Graph::open_over(Release::Five, &dir.join("data")).content()
    }
    fn context(&self, cx: OpContext) -> OpContext {
        with_secrets(cx)
    }
    fn question(&self) -> String {
        "MATCH (n:Page) RETURN count(n)".into()
    }
    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        Some(adapter("container = 'backup-test-there-is-none'\npassword = { env = 'CANARY' }"))
    }
    fn canaries(&self) -> Vec<String> {
        vec![CANARY.to_owned()]
    }
}

// Servers and their tools take seconds to start, and a restore starts several.
backup_core::adapter_conformance_tests!(
    #[ignore = "needs Docker"]
    pause_copy,
    || async { Fixture::new("pause-copy") }
);
// What dumps do differently: taken while the server is away, by a container of our own, checked and loaded by one.
backup_core::adapter_conformance_tests!(
    #[ignore = "needs Docker"]
    stop_dump,
    || async { Fixture::new("stop-dump") },
    only = [
        a_dropped_body_leaves_the_service_usable,
        cancellation_is_noticed,
        the_content_check_accepts_its_own,
        the_content_check_finds_damage,
        what_a_killed_capture_interrupted_comes_back,
        a_directory_gets_the_content,
        live_gets_the_content,
        the_plan_finds_what_a_killed_stage_left,
        damage_never_goes_live,
    ]
);
// Of a server that goes on: copied, and proven before anything is offered.
backup_core::adapter_conformance_tests!(
    #[ignore = "needs Docker"]
    online,
    || async { Fixture::new("online") },
    only = [
        check_has_no_side_effects,
        a_dropped_body_leaves_the_service_usable,
        cancellation_is_noticed,
        a_used_up_budget_is_noticed,
        secrets_do_not_show,
        live_gets_the_content,
    ]
);
