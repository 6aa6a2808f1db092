//! Capture mode `bgsave`: only the save that was asked for counts.

use std::os::unix::fs::MetadataExt;

use backup_core::chain;

use crate::support::{Server, captured, checked_file, counts, wait_for};

const BGSAVE: &str = "capture = 'bgsave'";

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_file_of_another_name_is_read() {
    let server = Server::start("dbfilename other.rdb\n");
    server.cli(&["SET", "a", "1"]);
    let captured = captured(&*server.adapter(BGSAVE)).await.unwrap();
    assert_eq!(counts(&captured)["keys"], 1);
    let file = std::fs::read(server.file("other.rdb")).unwrap();
    assert_eq!(file, captured.bodies[0].1.concat());
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_save_that_runs_already_is_not_ours() {
    // Each key delays a save by 2 ms.
    let server = Server::start("rdb-key-save-delay 2000\n");
    server.cli(&["DEBUG", "POPULATE", "500"]);
    server.cli(&["BGSAVE"]);
    wait_for("the other save", || server.info("rdb_bgsave_in_progress") == "1");
    server.cli(&["SET", "written-after-it-began", "1"]);
    let captured = captured(&*server.adapter(BGSAVE)).await.unwrap();
    assert_eq!(counts(&captured)["keys"], 501);
    checked_file(&captured, server.dir.path());
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_rewrite_of_the_append_only_file_is_waited_for() {
    let server = Server::start("appendonly yes\naof-use-rdb-preamble yes\nrdb-key-save-delay 2000\n");
    server.cli(&["DEBUG", "POPULATE", "500"]);
    server.cli(&["BGREWRITEAOF"]);
    wait_for("the rewrite", || server.info("aof_rewrite_in_progress") == "1");
    server.cli(&["SET", "written-after-it-began", "1"]);
    let captured = captured(&*server.adapter(BGSAVE)).await.unwrap();
    assert_eq!(counts(&captured)["keys"], 501);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn two_saves_in_one_second_are_told_apart() {
    let server = Server::start("");
    for n in 1..4 {
        server.cli(&["SET", &format!("key{n}"), "1"]);
        // Another one right before: `LASTSAVE` shows this second already.
        server.cli(&["SAVE"]);
        let before = std::fs::metadata(server.file("dump.rdb")).unwrap().ino();
        server.cli(&["SET", &format!("late{n}"), "1"]);
        let captured = captured(&*server.adapter(BGSAVE)).await.unwrap();
        assert_eq!(counts(&captured)["keys"], 2 * n);
        assert_ne!(std::fs::metadata(server.file("dump.rdb")).unwrap().ino(), before);
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_failed_save_is_an_error_and_says_what_it_does_to_the_server() {
    let server = Server::start("save 3600 1\n");
    server.cli(&["SET", "a", "1"]);
    server.cli(&["SAVE"]);
    // Root may write anywhere: so the name of the file becomes that of a folder that is not empty.
    std::fs::create_dir_all(server.file("taken.rdb/x")).unwrap();
    server.cli(&["CONFIG", "SET", "dbfilename", "taken.rdb"]);
    let error = chain(&captured(&*server.adapter(BGSAVE)).await.unwrap_err());
    assert!(
        error.contains("failed to write its file") && error.contains("stop-writes-on-bgsave-error"),
        "{error}"
    );
    // The older file is never taken for the new one, and the server is as it was once it can save again.
    server.cli(&["CONFIG", "SET", "dbfilename", "dump.rdb"]);
    captured(&*server.adapter(BGSAVE)).await.unwrap();
    assert_eq!(server.cli(&["SET", "b", "1"]), "OK");
}
