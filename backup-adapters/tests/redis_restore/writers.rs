//! A writer that never stops.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use backup_core::RestoreTarget;

use crate::common::{Scene, next_process, staged};
use crate::support::{Server, bench, captured, wait_for};

/// Writes `w:<n>` one after the other, and remembers which were acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<BTreeSet<u64>>>,
}

impl Writer {
    fn start(server: &Server, first: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (socket, stopped) = (server.socket(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut answers = BufReader::new(stream.try_clone().unwrap());
            let mut acknowledged = BTreeSet::new();
            let mut n = first;
            while !stopped.load(Ordering::Relaxed) {
                stream.write_all(format!("SET w:{n} {n}\r\n").as_bytes()).unwrap();
                let mut answer = String::new();
                answers.read_line(&mut answer).unwrap();
                if answer.starts_with("+OK") {
                    acknowledged.insert(n);
                }
                n += 1;
            }
            acknowledged
        });
        Self { stop, thread: Some(thread) }
    }

    fn end(&mut self) -> BTreeSet<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn written(server: &Server) -> BTreeSet<u64> {
    let keys = server.cli(&["--scan", "--pattern", "w:*"]);
    keys.lines().filter_map(|k| k.strip_prefix("w:")?.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn no_acknowledged_write_is_lost() {
    for (settings, keys) in [
        ("appendonly yes\n", ""),
        ("appendonly no\nrepl-diskless-sync no\n", ""),
        // Without pauses.
        ("appendonly yes\nrename-command CLIENT no-client\n", ""),
    ] {
        let server = Server::start(settings);
        crate::common::seed(&server, "backup", 3000);
        let backup = captured(&*server.adapter(keys)).await.unwrap();
        let mut writers: Vec<Writer> = (0..4).map(|n| Writer::start(&server, n * 100_000_000)).collect();
        wait_for("writers", || written(&server).len() > 500);
        let (adapter, cx) = (server.adapter(keys), bench().cx());
        let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
        let switched = adapter.switch(&cx, &plan, &token).await.unwrap();
        // What was counted before they went on is what counts.
        let probed = adapter.probe(&cx, &RestoreTarget::Live).await.unwrap();
        assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
        let so_far = written(&server).len();
        wait_for("the writers to go on", || written(&server).len() > so_far + 100);
        let acknowledged: BTreeSet<u64> = writers.iter_mut().flat_map(Writer::end).collect();
        let after = written(&server);
        let mut later = next_process(&cx);
        later.timestamp = cx.timestamp.next();
        adapter.undo(&later, &switched).await.unwrap();
        let before = written(&server);
        let lost: Vec<_> =
            acknowledged.iter().filter(|n| !before.contains(n) && !after.contains(n)).collect();
        assert!(lost.is_empty(), "{settings}: {} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
        assert!(before.len() > 500 && before.is_disjoint(&after), "{settings}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn writers_go_on_by_themselves_if_we_die_early() {
    let scene = Scene::new("appendonly yes\n", 100).await;
    let (adapter, cx) = (scene.server.adapter(""), bench().cx());
    let (plan, token) = staged(&*adapter, &cx, &scene.backup).await.unwrap();
    let phase = "making the server follow us";
    assert!(crate::common::killed_in(phase, &cx, async |cx| adapter.switch(&cx, &plan, &token).await).await);
    let began = std::time::Instant::now();
    // Blocks until the pause ends by itself.
    assert_eq!(scene.server.cli(&["SET", "probe", "1"]), "OK");
    assert!(began.elapsed() < Duration::from_secs(20));
}
