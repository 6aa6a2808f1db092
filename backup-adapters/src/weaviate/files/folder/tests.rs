use std::path::Path;
use std::process::Command;

use backup_core::{AdapterErrorKind, ServiceName, SystemClock};
use futures::StreamExt as _;

use super::*;

fn cx() -> OpContext {
    let (run, at) = ("20260101_000000-00000000".parse().unwrap(), "20260101_000000".parse().unwrap());
    OpContext::new(ServiceName::new("vectors").unwrap(), run, at, "/nowhere", Arc::new(SystemClock))
}

/// A server's folder, with a backup `one` that is being followed.
struct Followed {
    dir: tempfile::TempDir,
    over: Arc<AtomicBool>,
    body: ByteStream<AdapterError>,
}

async fn follow() -> Followed {
    let dir = tempfile::tempdir().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let body = Folder(dir.path().to_owned()).follow(&cx(), "one", &over).await.unwrap();
    Followed { dir, over, body }
}

impl Followed {
    /// Writes a file that is larger than a chunk, in a folder that is known by then.
    fn write(&self, path: &str, byte: u8) {
        let path = self.dir.path().join("one").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![byte; 3 << 20]).unwrap();
    }

    /// The rest, after `all`, unpacked.
    async fn unpacked(mut self, mut all: Vec<u8>) -> Result<tempfile::TempDir, AdapterError> {
        while let Some(chunk) = self.body.next().await {
            all.extend_from_slice(&chunk?);
        }
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("a.tar"), all).unwrap();
        let done = Command::new("tar").args(["-xf", "a.tar"]).current_dir(out.path()).status().unwrap();
        assert!(done.success());
        Ok(out)
    }
}

fn same(a: &Path, b: &Path) {
    let told = Command::new("diff").arg("-r").args([a, b]).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));
}

#[tokio::test]
async fn what_is_closed_is_read_before_the_server_is_done() {
    let mut followed = follow().await;
    followed.write("node/Doc/chunk-1", 1);
    fs::write(followed.dir.path().join("one/config.json"), "first").unwrap();
    // A folder's first file may be closed before the folder is watched: the second one is not.
    let mut seen = Vec::new();
    while seen.is_empty() {
        followed.write("node/Doc/chunk-2", 2);
        let chunk = tokio::time::timeout(Duration::from_millis(500), followed.body.next()).await;
        seen.extend(chunk.map(|c| c.unwrap().unwrap().to_vec()).unwrap_or_default());
    }
    // Descriptions are read in the end, as they are then; and so is what nobody told of.
    fs::write(followed.dir.path().join("one/config.json"), "last").unwrap();
    followed.over.store(true, Ordering::Release);
    let kept = followed.dir.path().join("one").to_owned();
    let dir = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").args([&kept, &dir.path().join("one")]).status().unwrap();
    assert!(copied.success());
    let out = followed.unpacked(seen).await.unwrap();
    same(&out.path().join("one"), &dir.path().join("one"));
}

#[tokio::test]
async fn a_file_that_changes_after_it_was_read_is_an_error() {
    let mut followed = follow().await;
    followed.write("node/Doc/chunk-1", 1);
    let mut seen = Vec::new();
    while seen.is_empty() {
        followed.write("node/Doc/chunk-2", 2);
        let chunk = tokio::time::timeout(Duration::from_millis(500), followed.body.next()).await;
        seen.extend(chunk.map(|c| c.unwrap().unwrap().to_vec()).unwrap_or_default());
    }
    followed.write("node/Doc/chunk-2", 3);
    followed.write("node/Doc/chunk-1", 3);
    followed.over.store(true, Ordering::Release);
    let e = followed.unpacked(seen).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Changed, "{e}");
}

#[tokio::test]
async fn it_ends_when_nobody_wants_it() {
    let Followed { dir, over, body } = follow().await;
    drop(body);
    // The thread holds the other one until it ends.
    let began = std::time::Instant::now();
    while Arc::strong_count(&over) > 1 {
        assert!(began.elapsed() < Duration::from_secs(20), "it goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(dir);
}
