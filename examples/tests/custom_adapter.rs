//! The example keeps the contract of adapters.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

#[path = "../examples/custom_adapter.rs"]
mod custom_adapter;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::testkit::adapter_suite::{AdapterFixture, Bench, capture};
use backup_core::{AdapterErrorKind, ServiceAdapter};
use custom_adapter::CommandOutput;

/// A file, backed up by `cat`.
struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "some text\n".repeat(1_000)).unwrap();
        Self(dir)
    }
    fn file(&self) -> PathBuf {
        self.0.path().join("file")
    }
    fn command(command: impl Into<String>) -> Arc<dyn ServiceAdapter> {
        Arc::new(CommandOutput { command: command.into() })
    }
}

#[async_trait::async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        Self::command(format!("cat '{}'", self.file().display()))
    }
    async fn mutate(&self) {
        std::fs::write(self.file(), "changed").unwrap();
    }
    async fn live(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }
    async fn restored(&self, dir: &Path) -> String {
        std::fs::read_to_string(dir.join("output")).unwrap()
    }
}

backup_core::adapter_conformance_tests!(command_output, || async { Fixture::new() });

#[test]
fn the_example_runs() {
    custom_adapter::main().unwrap();
}

#[tokio::test]
async fn half_an_output_is_no_backup() {
    let bench = Bench::new(Fixture::new());
    let error = capture(&*Fixture::command("echo half; exit 3"), &bench.cx()).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Corrupt);
    assert_eq!(error.to_string(), "`sh` ended with exit status: 3");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed() {
    let bench = Bench::new(Fixture::new());
    let mut cx = bench.cx();
    cx.deadline = Some(tokio::time::Instant::now() + std::time::Duration::from_millis(100));
    let error = capture(&*Fixture::command("exec sleep 1000"), &cx).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Timeout);
}
