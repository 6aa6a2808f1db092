//! Data, restores, and ways to break them off.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use backup_core::runtime::{InterruptionEntry, Replay};
use backup_core::testkit::adapter_suite::{Captured, Damage};
use backup_core::{
    AdapterError, Event, EventSink, OpContext, RestorePlan, RestoreTarget, ServiceAdapter, StepToken, chain,
};
use futures::FutureExt;

use crate::support::{Server, bench, captured, wait_for};

/// What is done to the server on the way, in order.
pub(crate) const PHASES: [&str; 8] = [
    "holding back writers",
    "keeping aside what is there",
    "making the server follow us",
    "sending the data",
    "waiting for the server to load it",
    "making the server a primary again",
    "saving on the server's disk",
    "letting writers go on",
];

/// Settings of both kinds of persistence.
pub(crate) const BOTH: [&str; 2] = ["appendonly yes\n", "appendonly no\n"];

/// Keys of every type in several databases, some of which expire, and `many` more.
pub(crate) fn seed(server: &Server, word: &str, many: usize) {
    server.pipe(&format!(
        "SET {word}:text hello\nHSET {word}:hash a 1 b 2\nRPUSH {word}:list 1 2 3\nSADD {word}:set x y\n\
         ZADD {word}:zset 1 a 2 b\nXADD {word}:stream 1-1 f v\nSET {word}:ttl bye EX 90000\n\
         SELECT 3\nSET {word}:three 3\nSET {word}:three:ttl 3 EX 90000\nSELECT 15\nSET {word}:last 15\n"
    ));
    let script = "for n = 1, tonumber(ARGV[1]) do redis.call('SET', ARGV[2] .. ':' .. n, 'value ' .. n) end";
    server.cli(&["EVAL", script, "0", &many.to_string(), word]);
}

/// Tells two states of a server apart.
pub(crate) fn digest(server: &Server) -> String {
    let digest = server.cli(&["DEBUG", "DIGEST"]);
    assert_eq!(digest.len(), 40, "{digest}");
    digest
}

/// A server with old data, a backup of what it held before, and what the two look like.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) backup: Captured,
    pub(crate) restored: String,
    pub(crate) old: String,
}

impl Scene {
    pub(crate) async fn new(settings: &str, many: usize) -> Self {
        let server = Server::start(settings);
        seed(&server, "backup", many);
        let restored = digest(&server);
        let backup = captured(&*server.adapter("")).await.unwrap();
        server.cli(&["FLUSHALL"]);
        seed(&server, "old", many / 2 + 1);
        let old = digest(&server);
        assert_ne!(restored, old);
        Self { server, backup, restored, old }
    }

    /// It takes writes, and what it holds besides is `expected`.
    pub(crate) fn assert_holds(&self, expected: &str) {
        let (server, found) = (&self.server, digest(&self.server));
        let which = [(&self.restored, "the backup"), (&self.old, "the old data")];
        let name =
            |digest: &str| which.iter().find(|(d, _)| *d == digest).map_or("neither", |(_, name)| *name);
        assert_eq!(name(&found), name(expected), "{} keys", server.cli(&["DBSIZE"]));
        self.assert_writable();
        assert_eq!(digest(server), expected);
    }

    pub(crate) fn assert_writable(&self) {
        let server = &self.server;
        assert_eq!(server.info("role"), "master");
        assert_eq!(server.cli(&["SET", "probe", "1"]), "OK");
        assert_eq!(server.cli(&["DEL", "probe"]), "1");
        if server.info("aof_enabled") == "1" {
            // While an fsync runs, it writes later: a kill would lose what this test wrote.
            wait_for("the append-only file", || server.info("aof_buffer_length") == "0");
        }
        for (setting, value) in
            [("masterauth", ""), ("min-replicas-to-write", "0"), ("replica-read-only", "yes")]
        {
            let answer = server.cli(&["CONFIG", "GET", setting]);
            assert_eq!(answer.lines().nth(1).unwrap_or_default(), value, "{setting} was not put back");
        }
    }

    pub(crate) async fn restore(&self, cx: &OpContext) -> Result<StepToken, AdapterError> {
        let adapter = self.server.adapter("");
        let (plan, staged) = staged(&*adapter, cx, &self.backup).await?;
        adapter.switch(cx, &plan, &staged).await
    }
}

pub(crate) async fn staged(
    adapter: &dyn ServiceAdapter,
    cx: &OpContext,
    backup: &Captured,
) -> Result<(RestorePlan, StepToken), AdapterError> {
    let plan = adapter.plan_restore(cx, &backup.metadata, &RestoreTarget::Live).await?;
    let staged = adapter.stage(cx, &plan, &backup.source(Damage::None)).await?;
    Ok((plan, staged))
}

/// Panics in a phase, which ends everything there as a kill does: nothing is tidied up.
#[derive(Debug)]
struct KillIn(&'static str);

impl EventSink for KillIn {
    fn emit(&self, event: Event) {
        if let Event::Phase { phase, .. } = event
            && phase == self.0
        {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

/// Runs `work` with a context whose operation dies in `phase`. `false` if it never got there.
pub(crate) async fn killed_in<T>(
    phase: &'static str,
    cx: &OpContext,
    work: impl AsyncFnOnce(OpContext) -> T,
) -> bool {
    let mut cx = cx.clone();
    cx.events = Arc::new(KillIn(phase));
    AssertUnwindSafe(work(cx)).catch_unwind().await.is_err()
}

/// Remembers what people are told.
#[derive(Debug, Default)]
pub(crate) struct Told(pub(crate) Mutex<Vec<String>>);

impl EventSink for Told {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

/// Another process on the same state: with a fresh context.
pub(crate) fn next_process(cx: &OpContext) -> OpContext {
    let mut next = bench().cx();
    next.service = cx.service.clone();
    next.journal = Arc::clone(&cx.journal);
    next.kept = cx.kept.clone();
    next
}

pub(crate) async fn entries(cx: &OpContext) -> Vec<InterruptionEntry> {
    cx.journal.entries().await.unwrap()
}

/// What the watchdog, or the next run, does about what is written down.
pub(crate) async fn bring_back(server: &Server, cx: &OpContext) -> Vec<Replay> {
    let (next, mut done) = (next_process(cx), Vec::new());
    for entry in entries(cx).await {
        let replay = server.adapter("").bring_back(&next, &entry).await;
        done.push(replay.unwrap_or_else(|e| panic!("the server was not brought back: {}", chain(&e))));
    }
    assert!(entries(cx).await.is_empty(), "an entry is left");
    done
}
