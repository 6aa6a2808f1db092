//! Restores over a live server, and what undoes them.

use std::sync::{Arc, Mutex};

use backup_core::testkit::adapter_suite::{Captured, Damage};
use backup_core::{
    AdapterError, ConfigError, Event, EventSink, OpContext, RestoreTarget, Secret, SecretRef, SecretResolver,
    ServiceAdapter, StepToken, chain,
};

use crate::graph::Graph;
use crate::support::{CANARY, bench, captured, docker, with_secrets};

pub(crate) async fn restored(
    adapter: &dyn ServiceAdapter,
    cx: &OpContext,
    backup: &Captured,
) -> Result<StepToken, AdapterError> {
    let plan = adapter.plan_restore(cx, &backup.metadata, &RestoreTarget::Live).await?;
    let staged = adapter.stage(cx, &plan, &backup.source(Damage::None)).await?;
    adapter.switch(cx, &plan, &staged).await
}

/// There, restarted, and back again.
pub(crate) async fn round_trip(graph: &Graph, mode: &str) {
    let adapter = graph.adapter(&format!("capture = '{mode}'"));
    graph.seed("backup", 500);
    let old = graph.content();
    let backup = captured(&*adapter).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    graph.wait_until_up();
    graph.cypher("MATCH (n) DETACH DELETE n");
    graph.seed("changed", 100);
    let changed = graph.content();
    let bench = bench();
    let cx = with_secrets(bench.cx());
    let switched = restored(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(graph.content(), old);
    let probed = adapter.probe(&cx, &RestoreTarget::Live).await.unwrap();
    assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
    let owners =
        docker(&["exec", &graph.name, "find", "/data", "!", "-user", "neo4j", "-not", "-path", "/data"]);
    assert_eq!(owners, "", "not of the server's user");
    graph.restart();
    assert_eq!(graph.content(), old);
    graph.seed("works", 3);
    graph.cypher("MATCH (n) WHERE n.works IS NOT NULL OR n:works DETACH DELETE n");
    let later = with_secrets(bench.cx());
    let mut undo = cx.clone();
    undo.timestamp = later.timestamp;
    adapter.undo(&undo, &switched).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(graph.content(), changed);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn dumps_there_and_back() {
    round_trip(&Graph::start(), "stop-dump").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn files_there_and_back() {
    round_trip(&Graph::start(), "pause-copy").await;
}

/// The password was changed since: the old one comes back with the data, and that is no failure.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn other_credentials_are_no_reason_to_go_back() {
    let graph = Graph::start();
    graph.seed("backup", 50);
    let old = graph.content();
    let backup = captured(&*graph.adapter("capture = 'stop-dump'")).await.unwrap();
    graph.wait_until_up();
    graph
        .client()
        .ask("system", &format!("ALTER CURRENT USER SET PASSWORD FROM '{CANARY}' TO 'wrong-one'"))
        .unwrap();
    let now =
        crate::support::adapter(&format!("container = '{}'\npassword = {{ env = 'WRONG' }}", graph.name));
    let bench = bench();
    // Nobody knows the old one; a backup of `.env` knows it; it is wrong, too.
    for (then, told) in [(None, "no backup of"), (Some(CANARY), "and is taken"), (Some("x"), "refused, too")]
    {
        let (mut cx, events) = (with_secrets(bench.cx()), Arc::new(Told::default()));
        cx.events = Arc::<Told>::clone(&events);
        cx.secrets_then = then.map(|password| Arc::new(Then(password)) as Arc<dyn SecretResolver>);
        restored(&*now, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        graph.wait_until_up();
        assert_eq!(graph.content(), old, "the password of the backup's time works, and the data is there");
        let probed = now.probe(&cx, &RestoreTarget::Live).await.unwrap();
        assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
        let all = events.0.lock().unwrap().join("\n");
        assert!(all.contains("credentials differ") && all.contains(told), "{all}");
        assert!(!all.contains(CANARY) && !all.contains("wrong-one"), "{all}");
        // The moment of the next restore is that of this one.
        graph.forget_kept();
    }
}

/// Nobody has to know the old one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn the_configured_password_is_set_if_that_is_wanted() {
    // Not shared: it has another password at the end.
    set_password(&Graph::with(&[])).await;
}

pub(crate) async fn set_password(graph: &Graph) {
    graph.seed("backup", 50);
    let backup = captured(&*graph.adapter("capture = 'stop-dump'")).await.unwrap();
    graph.wait_until_up();
    let keys = |user: &str| {
        let name = &graph.name;
        format!(
            "container = '{name}'\nuser = '{user}'\npassword = {{ env = 'WRONG' }}\nreset_password = true\n\
             capture = 'stop-dump'"
        )
    };
    let bench = bench();
    let (cx, events) = (with_secrets(bench.cx()), Arc::new(Told::default()));
    let nobody = restored(&*crate::support::adapter(&keys("nobody")), &cx, &backup).await.unwrap_err();
    assert!(chain(&nobody).contains("cannot set the password of user `nobody`"), "{}", chain(&nobody));
    assert!(!chain(&nobody).contains("wrong-one"), "{}", chain(&nobody));
    let set = crate::support::adapter(&keys("neo4j"));
    // The second time it has that password already.
    for _ in 0..2 {
        let mut cx = with_secrets(bench.cx());
        cx.events = Arc::<Told>::clone(&events);
        restored(&*set, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert!(graph.client().ask("neo4j", "RETURN 1").is_err(), "the old password is still taken");
        let again = captured(&*set).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(again.report.evidence.counts, backup.report.evidence.counts);
        graph.forget_kept();
    }
    let all = events.0.lock().unwrap().join("\n");
    assert!(!all.contains("differ") && !all.contains("wrong-one"), "{all}");
}

/// The warnings.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl EventSink for Told {
    fn emit(&self, event: Event) {
        if let Event::Warning { message, .. } = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

/// Knows one password, whatever is asked for.
#[derive(Debug)]
struct Then(&'static str);

impl SecretResolver for Then {
    fn resolve(&self, _: &SecretRef) -> Result<Secret, ConfigError> {
        Ok(Secret::new(self.0))
    }
}

/// Container and volume are gone and made anew: nothing but an empty server that does not run.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_server_made_anew_gets_its_data() {
    let first = Graph::start();
    first.seed("backup", 50);
    let old = first.content();
    let backup = captured(&*first.adapter("capture = 'stop-dump'")).await.unwrap();
    drop(first);
    let second = Graph::with(&[]);
    docker(&["stop", "-t", "120", &second.name]);
    let bench = bench();
    let cx = with_secrets(bench.cx());
    let done = restored(&*second.adapter(""), &cx, &backup).await;
    done.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert!(!second.is_running(), "what did not run stays so");
    docker(&["start", &second.name]);
    second.wait_until_up();
    assert_eq!(second.content(), old);
}
