//! Questions: commands that only read, of the live server and of one over scratch.

use backup_core::{AdapterErrorKind, RestoreTarget, ScratchHandle, passes};

use crate::support::{CANARY, Server, bench, captured};

#[tokio::test]
#[ignore = "needs redis-server"]
async fn commands_that_read_are_answered_and_others_are_not_sent() {
    let server = Server::start(&format!("requirepass {CANARY}\nappendonly yes\n"));
    server.pipe(
        "SET config:version 7\nSET none 0\nHSET \"user 1\" name Ada\nRPUSH list a b\nSELECT 5\nRPUSH queue x y z\n",
    );
    let before = server.cli(&["DEBUG", "DIGEST"]);
    let (adapter, cx) = (server.adapter("password = { env = 'CANARY' }"), bench().cx());
    let live = RestoreTarget::Live;
    for (question, answer) in [
        ("EXISTS config:version", Some("1")),
        ("get config:version", Some("7")),
        ("HGET \"user 1\" 'name'", Some("Ada")),
        ("LRANGE list 0 -1", Some("a")),
        ("5: LLEN queue", Some("3")),
        ("DBSIZE", Some("4")),
        ("OBJECT ENCODING none", Some("int")),
        ("GET none", Some("0")),
        ("GET missing", None),
        ("5: EXISTS config:version", Some("0")),
        ("KEYS nothing:*", None),
    ] {
        let value = adapter.ask(&cx, &live, question).await.unwrap_or_else(|e| panic!("{question}: {e}"));
        assert_eq!(value.as_deref(), answer, "{question}");
        assert_eq!(passes(value.as_deref()), answer.is_some_and(|a| a != "0"), "{question}");
    }
    let held = adapter.data(&cx).await.unwrap().counts;
    assert_eq!(held.into_iter().collect::<Vec<_>>(), [("keys".to_owned(), 5)]);
    for (question, said) in [
        ("SET config:version 8", "`SET` is no command that only reads"),
        ("del config:version", "`DEL` is no command that only reads"),
        ("EVAL \"return redis.call('DEL', 'none')\" 0", "`EVAL` is no command that only reads"),
        ("CONFIG SET appendonly no", "`CONFIG` is no command that only reads"),
        ("FLUSHALL", "`FLUSHALL` is no command that only reads"),
        ("SHUTDOWN", "`SHUTDOWN` is no command that only reads"),
        ("GTE config:version", "the server has no command `GTE`"),
        ("GET", "wrong number of arguments"),
        ("LLEN config:version", "WRONGTYPE"),
        ("999: GET x", "DB index is out of range"),
        ("GET 'x", "a quote in it has no end"),
    ] {
        let e = adapter.ask(&cx, &live, question).await.unwrap_err();
        assert!(e.to_string().contains(said) && !e.to_string().contains('\n'), "{question}: {e}");
        assert_ne!(e.kind(), AdapterErrorKind::Unsupported, "{question}: {e}");
        assert!(!backup_core::chain(&e).contains(CANARY), "{question}");
    }
    assert_eq!(server.cli(&["DEBUG", "DIGEST"]), before);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_over_scratch_answers_as_the_backup_was() {
    let server = Server::start("");
    server.pipe("SET config:version 7\nSELECT 5\nRPUSH queue x y z\n");
    let (adapter, cx, dir) = (server.adapter(""), bench().cx(), tempfile::tempdir().unwrap());
    let backup = captured(&*adapter).await.unwrap();
    server.cli(&["FLUSHALL"]);
    let target =
        RestoreTarget::Scratch(ScratchHandle { dir: dir.path().to_owned(), run_id: cx.run_id.clone() });
    let switched = backup.restore(&*adapter, &cx, &target).await.unwrap();
    let questions = ["EXISTS config:version", "5: LLEN queue", "EXISTS other", "DEL config:version"];
    let questions = questions.map(str::to_owned);
    let (probed, answers) = adapter.probe_and_ask(&cx, &target, &questions).await.unwrap();
    assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
    let values: Vec<_> = answers.iter().map(|a| a.as_ref().ok().cloned().flatten()).collect();
    assert_eq!(values, [Some("1".into()), Some("3".into()), Some("0".into()), None]);
    assert!(answers[3].is_err());
    assert_eq!(adapter.ask(&cx, &target, &questions[1]).await.unwrap().unwrap(), "3");
    assert_eq!(adapter.ask(&cx, &RestoreTarget::Live, &questions[1]).await.unwrap().unwrap(), "0");
    adapter.discard(&cx, &switched).await.unwrap();
}
