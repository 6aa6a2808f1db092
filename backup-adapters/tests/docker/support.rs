//! Containers of our own, which go when the test goes.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backup_adapters::runtime::DockerRuntime;
use backup_core::runtime::{ExecCommand, ExecOutcome, ServiceRuntime as _};
use backup_core::{AdapterError, ByteStream};
use bytes::Bytes;
use futures::{StreamExt as _, stream};

/// Any small image with a shell; see scripts/test.
pub(crate) const IMAGE: &str = "backup-test/redis:7";

/// PostgreSQL; see scripts/test.
pub(crate) const POSTGRES: &str = "backup-test/postgres:15";

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) fn unique(what: &str) -> String {
    let n = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("backup-test-{}-{n}-{what}", std::process::id())
}

/// Runs `docker` with `args`; what it prints, trimmed.
pub(crate) fn docker(args: &[&str]) -> String {
    let done = try_docker(args);
    assert!(done.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

pub(crate) fn try_docker(args: &[&str]) -> Output {
    // An engine that hangs is a failure to be told, not one to hang on.
    Command::new("timeout").args(["-k", "5", "120", "docker"]).args(args).output().unwrap()
}

/// A container that is removed with its volumes when this is dropped.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    /// Of its first process, on this host.
    pid: std::sync::OnceLock<String>,
}

impl Container {
    /// One that does nothing.
    pub(crate) fn idle() -> Self {
        Self::with(&["--entrypoint", "sleep"], &["infinity"])
    }

    pub(crate) fn with(options: &[&str], command: &[&str]) -> Self {
        Self::of(IMAGE, options, command)
    }

    pub(crate) fn of(image: &str, options: &[&str], command: &[&str]) -> Self {
        let name = unique("c");
        let label = format!("backup-test={}", std::process::id());
        let mut args = vec!["run", "-d", "--name", &name, "--label", &label];
        args.extend_from_slice(options);
        args.push(image);
        args.extend_from_slice(command);
        let container = Self { name: name.clone(), pid: std::sync::OnceLock::new() };
        docker(&args);
        container
    }

    pub(crate) fn runtime(&self) -> DockerRuntime {
        DockerRuntime::new(&self.name)
    }

    pub(crate) fn field(&self, template: &str) -> String {
        docker(&["inspect", "-f", template, &self.name])
    }

    /// The command lines of what runs in it, remains of the dead included. The kernel is asked, not the engine: that
    /// would be a call that blocks, made by a thread that has output to take.
    pub(crate) fn processes(&self) -> Vec<String> {
        let pid = self.pid.get_or_init(|| self.field("{{.State.Pid}}"));
        let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
        let own = space(pid).unwrap();
        let mut lines = Vec::new();
        for process in std::fs::read_dir("/proc").unwrap() {
            let process = process.unwrap().file_name();
            let Some(pid) = process.to_str().filter(|p| p.starts_with(|c: char| c.is_ascii_digit())) else {
                continue;
            };
            if space(pid).is_ok_and(|s| s == own) {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
                let remains = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                lines.push(if line.is_empty() { remains() } else { line });
            }
        }
        lines
    }

    /// Waits until only its first process is left, not even the remains of others.
    pub(crate) async fn wait_until_alone(&self) {
        let wait = Instant::now();
        loop {
            let processes = self.processes();
            if processes.len() == 1 {
                return;
            }
            assert!(wait.elapsed() < Duration::from_secs(15), "left in {}: {processes:#?}", self.name);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until something runs in it whose command line contains `text`.
    pub(crate) async fn wait_for(&self, text: &str) {
        let wait = Instant::now();
        while !self.processes().iter().any(|p| p.contains(text) && !p.contains("bk_")) {
            assert!(wait.elapsed() < Duration::from_secs(15), "{text} does not run");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A paused one cannot be removed on older engines.
        try_docker(&["unpause", &self.name]);
        try_docker(&["rm", "-fv", &self.name]);
    }
}

pub(crate) fn sh(script: &str) -> ExecCommand {
    ExecCommand::new(["sh", "-c", script])
}

/// All that a program prints, and how it ended.
pub(crate) async fn run(
    runtime: &DockerRuntime,
    command: ExecCommand,
) -> Result<(Vec<u8>, ExecOutcome), AdapterError> {
    let mut execution = runtime.exec(command).await?;
    let mut all = Vec::new();
    while let Some(piece) = execution.stdout.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok((all, execution.outcome.await?))
}

/// What a program prints.
pub(crate) async fn text(runtime: &DockerRuntime, command: ExecCommand) -> String {
    String::from_utf8(run(runtime, command).await.unwrap().0).unwrap()
}

pub(crate) async fn failure(runtime: &DockerRuntime, command: ExecCommand) -> AdapterError {
    match run(runtime, command).await {
        Ok((all, outcome)) => panic!("it worked, with {} bytes: {outcome:?}", all.len()),
        Err(e) => e,
    }
}

/// Bytes that repeat nowhere nearby, made without keeping them: `length` of them, in pieces.
pub(crate) fn noise(length: usize, piece: usize) -> ByteStream<AdapterError> {
    let pieces = (0..length.div_ceil(piece)).map(move |n| {
        let size = piece.min(length - n * piece);
        Ok(noise_at(n, size))
    });
    stream::iter(pieces).boxed()
}

fn noise_at(n: usize, size: usize) -> Bytes {
    let mut hash = blake3::Hasher::new();
    hash.update(&n.to_le_bytes());
    let mut bytes = vec![0; size];
    hash.finalize_xof().fill(&mut bytes);
    bytes.into()
}
