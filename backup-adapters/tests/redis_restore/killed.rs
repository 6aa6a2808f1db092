//! A restore that dies, and a server that does: afterwards a writable primary with the old or the new data, complete.

use std::process::{Command, Stdio};
use std::time::Duration;

use backup_core::{OpContext, RestorePlan, StepToken};

use crate::common::{BOTH, PHASES, Scene, bring_back, digest, entries, killed_in, next_process, staged};
use crate::support::{Server, bench, wait_for};

/// A server that answers often while it loads, also if that is little.
const TALKS: &str = "loading-process-events-interval-bytes 1024\n";

/// What must hold after the death of a run.
async fn settles(scene: &mut Scene, cx: &OpContext, plan: &RestorePlan, token: &StepToken, what: &str) {
    bring_back(&scene.server, cx).await;
    let found = digest(&scene.server);
    assert!(found == scene.old || found == scene.restored, "{what}: {}", scene.server.cli(&["DBSIZE"]));
    scene.assert_holds(&found);
    // The next restore or undo finishes the step.
    let adapter = scene.server.adapter("");
    let switched = adapter.switch(cx, plan, token).await.unwrap();
    scene.assert_holds(&scene.restored);
    scene.server.restart();
    assert_eq!(digest(&scene.server), scene.restored, "{what}");
    let mut later = next_process(cx);
    later.timestamp = cx.timestamp.next();
    adapter.undo(&later, &switched).await.unwrap();
    scene.assert_holds(&scene.old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn killed_in_each_phase() {
    for persistence in BOTH {
        for phase in PHASES {
            let mut scene = Scene::new(persistence, 1000).await;
            let (adapter, cx) = (scene.server.adapter(""), bench().cx());
            let (plan, token) = staged(&*adapter, &cx, &scene.backup).await.unwrap();
            let dead = killed_in(phase, &cx, async |cx| adapter.switch(&cx, &plan, &token).await).await;
            assert!(dead, "it was not killed in `{phase}`");
            assert_eq!(entries(&cx).await.len(), 1, "{phase}");
            adapter.discard(&cx, &token).await.expect_err("a restore that is half done is not discarded");
            settles(&mut scene, &cx, &plan, &token, phase).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn killed_while_undoing() {
    for phase in PHASES {
        let mut scene = Scene::new("appendonly yes\n", 500).await;
        let cx = bench().cx();
        let switched = scene.restore(&cx).await.unwrap();
        let mut later = next_process(&cx);
        later.timestamp = cx.timestamp.next();
        let adapter = scene.server.adapter("");
        assert!(killed_in(phase, &later, async |cx| adapter.undo(&cx, &switched).await).await);
        bring_back(&scene.server, &later).await;
        let found = digest(&scene.server);
        assert!(found == scene.old || found == scene.restored, "{phase}");
        adapter.undo(&later, &switched).await.unwrap();
        scene.assert_holds(&scene.old);
        scene.server.restart();
        assert_eq!(digest(&scene.server), scene.old, "{phase}");
    }
}

/// Waits in a thread until the server says so.
async fn until(server: &Server, field: &'static str, value: &'static str) {
    let (socket, wanted) = (server.socket(), format!("{field}:{value}"));
    let wait = move || {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(socket).arg("INFO").stdin(Stdio::null());
        wait_for(field, || {
            let said = command.output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            said.is_ok_and(|said| said.lines().any(|l| l.trim_end() == wanted))
        });
    };
    tokio::task::spawn_blocking(wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn killed_while_the_server_loads() {
    for load in ["disabled", "swapdb"] {
        let mut scene =
            Scene::new(&format!("repl-diskless-load {load}\nappendonly yes\n{TALKS}"), 20_000).await;
        scene.server.cli(&["CONFIG", "SET", "key-load-delay", "50"]);
        let (adapter, cx) = (scene.server.adapter(""), bench().cx());
        let (plan, token) = staged(&*adapter, &cx, &scene.backup).await.unwrap();
        tokio::select! {
            done = adapter.switch(&cx, &plan, &token) => panic!("it was too fast: {done:?}"),
            () = until(&scene.server, "loading", "1") => {}
        }
        scene.server.cli(&["CONFIG", "SET", "key-load-delay", "0"]);
        settles(&mut scene, &cx, &plan, &token, load).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn killed_in_the_middle_of_the_bytes() {
    for load in ["disabled", "swapdb"] {
        let mut scene = Scene::new(&format!("repl-diskless-load {load}\nappendonly yes\n"), 100).await;
        // Values that make the file large, so that the transfer takes long enough to be caught.
        scene.server.cli(&["FLUSHALL"]);
        scene.server.fill(300);
        scene.restored = digest(&scene.server);
        scene.backup = crate::support::captured(&*scene.server.adapter("")).await.unwrap();
        scene.server.cli(&["FLUSHALL"]);
        crate::common::seed(&scene.server, "old", 1000);
        scene.old = digest(&scene.server);
        let (adapter, cx) = (scene.server.adapter(""), bench().cx());
        let (plan, token) = staged(&*adapter, &cx, &scene.backup).await.unwrap();
        tokio::select! {
            done = adapter.switch(&cx, &plan, &token) => panic!("it was too fast: {done:?}"),
            () = until(&scene.server, "master_sync_in_progress", "1") => {}
        }
        assert_eq!(entries(&cx).await.len(), 1);
        settles(&mut scene, &cx, &plan, &token, load).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn the_server_dies_in_the_middle_and_comes_back() {
    for persistence in BOTH {
        let mut scene = Scene::new(&format!("{persistence}{TALKS}"), 20_000).await;
        scene.server.cli(&["CONFIG", "SET", "key-load-delay", "50"]);
        let (adapter, cx) = (scene.server.adapter(""), bench().cx());
        let (plan, token) = staged(&*adapter, &cx, &scene.backup).await.unwrap();
        let switch = adapter.switch(&cx, &plan, &token);
        let accident = async {
            until(&scene.server, "loading", "1").await;
            tokio::task::block_in_place(|| scene.server.restart());
        };
        let (switched, ()) = tokio::join!(switch, accident);
        assert!(entries(&cx).await.is_empty());
        let expected = if switched.is_ok() { &scene.restored } else { &scene.old };
        scene.assert_holds(expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_server_that_is_gone_for_good_leaves_the_journal() {
    let mut scene = Scene::new(&format!("appendonly yes\n{TALKS}"), 20_000).await;
    scene.server.cli(&["CONFIG", "SET", "key-load-delay", "50"]);
    let (adapter, cx) = (scene.server.adapter(""), bench().cx());
    let (plan, token) = staged(&*adapter, &cx, &scene.backup).await.unwrap();
    let switch = tokio::time::timeout(Duration::from_secs(5), adapter.switch(&cx, &plan, &token));
    let accident = async {
        until(&scene.server, "loading", "1").await;
        scene.server.child.kill().unwrap();
        scene.server.child.wait().unwrap();
    };
    let (switched, ()) = tokio::join!(switch, accident);
    assert!(switched.is_err(), "it does not give up within its time");
    assert_eq!(entries(&cx).await.len(), 1);
    scene.server.restart();
    settles(&mut scene, &cx, &plan, &token, "a server that was gone").await;
}
