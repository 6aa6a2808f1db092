//! Questions: GraphQL, of the live server and of the one that tries a backup out.

use std::collections::BTreeMap;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, RestoreTarget, ScratchHandle, chain, passes};

use crate::support::{Server, adapter, bench, docker};

#[tokio::test]
#[ignore = "needs Docker"]
async fn queries_are_answered_live_and_in_scratch_and_change_nothing() {
    let server = Server::start().await;
    server.seed().await;
    server.make_class("Bare", false).await;
    let adapter = server.adapter("");
    let backup = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let before = server.digest().await;
    let bench = bench();
    let (cx, live) = (bench.cx(), RestoreTarget::Live);
    let count = adapter.ask(&cx, &live, "{ Aggregate { Doc { meta { count } } } }").await.unwrap().unwrap();
    assert!(count.parse::<u32>().unwrap() > 0 && passes(Some(&count)), "{count}");
    for (question, answer) in [
        ("{ Aggregate { Ten(tenant: \"asleep\") { meta { count } } } }", None),
        ("{ Aggregate { Bare { meta { count } } } }", Some("0")),
        ("{ Get { Bare { _additional { id } } } }", Some("")),
    ] {
        match (adapter.ask(&cx, &live, question).await, answer) {
            (Ok(value), Some(answer)) => {
                assert_eq!(value.unwrap_or_default(), answer, "{question}");
                assert!(!passes(Some(answer)));
            }
            // A tenant that sleeps, or whatever the server says about it, is one line.
            (Ok(value), None) => assert!(value.is_some(), "{question}"),
            (Err(e), _) => assert!(!e.to_string().contains('\n'), "{question}: {e}"),
        }
    }
    for question in [
        "mutation { Delete { Doc } }",
        "{ Aggregate { Doc { meta { count } }",
        "{ Aggregate { Missing { meta { count } } } }",
        "SELECT 1",
    ] {
        let e = adapter.ask(&cx, &live, question).await.unwrap_err();
        assert!(!e.to_string().contains('\n') && e.to_string().len() < 700, "{question}: {e}");
        assert_ne!(e.kind(), AdapterErrorKind::Unsupported, "{question}: {e}");
    }
    server.assert_holds(&before, "questions changed something").await;

    server.call("DELETE", "/v1/schema/Doc", None).await;
    let (cx, dir) = (bench.cx(), tempfile::tempdir().unwrap());
    let target =
        RestoreTarget::Scratch(ScratchHandle { dir: dir.path().join("scratch"), run_id: cx.run_id.clone() });
    let switched = backup.restore(&*adapter, &cx, &target).await.unwrap();
    let questions = [
        "{ Aggregate { Doc { meta { count } } } }",
        "{ Aggregate { Bare { meta { count } } } }",
        "{ Aggregate { Missing { meta { count } } } }",
    ];
    let (probed, answers) = adapter
        .probe_and_ask(&cx, &target, &questions.map(str::to_owned))
        .await
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
    let values: Vec<_> = answers.iter().map(|a| a.as_ref().ok().and_then(Option::as_deref)).collect();
    assert_eq!(values, [Some(count.as_str()), Some("0"), None], "{answers:?}");
    assert!(answers[2].is_err());
    assert!(adapter.ask(&cx, &RestoreTarget::Live, questions[0]).await.is_err(), "it is lost");
    adapter.discard(&cx, &switched).await.unwrap();

    // A sleeping tenant may hold anything; a collection alone holds nothing.
    let held = async || adapter.data(&cx).await.unwrap().counts;
    server.set_tenant("Ten", "awake", "INACTIVE").await;
    assert_eq!(held().await["inactive_tenants"], 2);
    server.call("DELETE", "/v1/schema/Ten", None).await;
    assert_eq!(held().await, BTreeMap::from([("inactive_tenants".into(), 0), ("objects.Bare".into(), 0)]));
    let twins = docker(&["ps", "-aq", "--filter", &format!("label=backup.run-id={}", cx.run_id)]).await;
    assert_eq!(twins, "");
}

#[tokio::test]
async fn without_a_container_nothing_is_restored_and_nothing_asked() {
    let adapter = adapter("url = 'http://127.0.0.1:9'");
    assert!(!adapter.capabilities().ask);
    let e = adapter.ask(&bench().cx(), &RestoreTarget::Live, "{ Get { Doc { text } } }").await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Unsupported);
}
