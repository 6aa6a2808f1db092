use backup_core::{AdapterErrorKind, RestoreTarget, ScratchHandle};

use crate::common::seed;
use crate::support::{Server, bench, captured};

#[tokio::test]
#[ignore = "needs redis-server"]
async fn scratch_is_loaded_by_a_real_server() {
    let server = Server::start("databases 100\n");
    seed(&server, "x", 500);
    server.pipe("SELECT 77\nSET far away\n");
    let backup = captured(&*server.adapter("")).await.unwrap();
    let (adapter, cx, dir) = (server.adapter(""), bench().cx(), tempfile::tempdir().unwrap());
    let handle = ScratchHandle { dir: dir.path().to_owned(), run_id: cx.run_id.clone() };
    let target = RestoreTarget::Scratch(handle);
    let switched = backup.restore(&*adapter, &cx, &target).await.unwrap();
    let probed = adapter.probe(&cx, &target).await.unwrap();
    assert_eq!(probed.notes["loaded_by"], "redis-server");
    assert_eq!(probed.counts["db77.keys"], 1);
    assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
    adapter.discard(&cx, &switched).await.unwrap();
    // What a server cannot load is damage, whatever its checksum says.
    std::fs::write(dir.path().join("dump.rdb"), b"REDIS0010\xff").unwrap();
    let e = adapter.probe(&cx, &target).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Corrupt);
}
