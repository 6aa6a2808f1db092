//! Questions: Cypher that only reads, of the live server and of the second one over scratch.

use backup_core::{AdapterErrorKind, RestoreTarget, ScratchHandle, chain, passes};

use crate::graph::Graph;
use crate::support::{bench, captured, with_secrets};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn queries_are_answered_live_and_in_scratch_and_change_nothing() {
    let graph = Graph::start();
    graph.seed("backup", 50);
    let adapter = graph.adapter("capture = 'pause-copy'");
    let backup = captured(&*adapter).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    graph.wait_until_up();
    let before = graph.content();
    let (bench, live) = (bench(), RestoreTarget::Live);
    let cx = with_secrets(bench.cx());
    assert_eq!(adapter.data(&cx).await.unwrap().counts["nodes.neo4j"], 100);
    for (question, answer) in [
        ("MATCH (n:Page) RETURN count(n)", Some("50")),
        ("neo4j: MATCH (n:Page) RETURN n.id ORDER BY n.id", Some("1")),
        ("system: SHOW USERS YIELD user", Some("neo4j")),
        ("RETURN EXISTS { MATCH (n:Page) }", Some("true")),
        ("RETURN 2 > 3", Some("false")),
        ("MATCH (n:Nothing) RETURN count(n)", Some("0")),
        ("MATCH (n:Nothing) RETURN n", None),
        ("RETURN null", None),
        ("MATCH (n:Nothing) RETURN collect(n)", Some("[]")),
        ("MATCH (n:Page) RETURN n", Some("a node")),
    ] {
        let value =
            adapter.ask(&cx, &live, question).await.unwrap_or_else(|e| panic!("{question}: {}", chain(&e)));
        assert_eq!(value.as_deref(), answer, "{question}");
        assert_eq!(
            passes(value.as_deref()),
            answer.is_some_and(|a| !["0", "false", "[]"].contains(&a)),
            "{question}"
        );
    }
    for (question, said) in [
        ("CREATE (n:Page) RETURN 1", "AccessMode"),
        ("MATCH (n) DETACH DELETE n", "AccessMode"),
        ("MATCH (n:Page RETURN count(n)", "SyntaxError"),
        ("other: RETURN 1", "SyntaxError"),
    ] {
        let e = adapter.ask(&cx, &live, question).await.unwrap_err();
        assert!(e.to_string().contains(said) && !e.to_string().contains('\n'), "{question}: {e}");
        assert_ne!(e.kind(), AdapterErrorKind::Unsupported, "{question}: {e}");
    }
    assert_eq!(graph.content(), before);

    graph.cypher("MATCH (n) DETACH DELETE n");
    let cx = with_secrets(bench.cx());
    // Users, labels and indexes are still there; none of them is data.
    let left = adapter.data(&cx).await.unwrap().counts;
    assert!(!left.is_empty() && left.values().all(|n| *n == 0), "{left:?}");
    let dir = tempfile::tempdir().unwrap();
    let target =
        RestoreTarget::Scratch(ScratchHandle { dir: dir.path().join("scratch"), run_id: cx.run_id.clone() });
    let switched = backup.restore(&*adapter, &cx, &target).await.unwrap();
    let questions = [
        "MATCH (n:Page) RETURN count(n)",
        "neo4j: MATCH (n:Nothing) RETURN count(n)",
        "MATCH (n) DETACH DELETE n",
        "MATCH (n:Page RETURN",
        "RETURN 'still there'",
    ];
    let (probed, answers) = adapter
        .probe_and_ask(&cx, &target, &questions.map(str::to_owned))
        .await
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
    let values: Vec<_> = answers.iter().map(|a| a.as_ref().ok().and_then(Option::as_deref)).collect();
    assert_eq!(values, [Some("50"), Some("0"), None, None, Some("still there")], "{answers:?}");
    assert!(answers[2].is_err() && answers[3].is_err());
    let live = adapter.ask(&cx, &RestoreTarget::Live, questions[0]).await.unwrap();
    assert_eq!(live.as_deref(), Some("0"));
    adapter.discard(&cx, &switched).await.unwrap();
}
