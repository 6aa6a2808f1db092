//! Programs: nothing of their output is lost, and nothing of them stays.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_adapters::runtime::HostRuntime;
use backup_core::runtime::{ExecCommand, Execution, ServiceRuntime as _};
use backup_core::{AdapterError, AdapterErrorKind as Kind, ByteStream, Secret};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(20);

async fn exec(command: ExecCommand) -> Execution {
    HostRuntime::new().exec(command).await.unwrap()
}

fn sh(script: &str) -> ExecCommand {
    ExecCommand::new(["sh", "-c", script])
}

async fn output(execution: Execution) -> Result<Vec<u8>, AdapterError> {
    read(execution.stdout).await
}

async fn read(stdout: ByteStream<AdapterError>) -> Result<Vec<u8>, AdapterError> {
    let all = stdout.try_fold(Vec::new(), |mut all, chunk| async move {
        assert!(!chunk.is_empty() && chunk.len() <= 1 << 20, "{} bytes", chunk.len());
        all.extend_from_slice(&chunk);
        Ok(all)
    });
    timeout(SOON, all).await.unwrap()
}

async fn until(mut reached: impl FnMut() -> bool) {
    let wait = async {
        while !reached() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.expect("the condition never came");
}

/// Whether a process is there and not just a name of one that ended.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The number that a program wrote down.
async fn noted(file: &Path) -> String {
    until(|| std::fs::read_to_string(file).is_ok_and(|t| t.ends_with('\n'))).await;
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    (dir, file)
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let mut run = exec(sh("seq 1 600000")).await;
    let first = run.stdout.next().await.unwrap().unwrap();
    sleep(Duration::from_secs(3)).await;
    let mut all = first.to_vec();
    all.extend(output(run).await.unwrap());
    let expected: String = (1..=600_000).map(|n| format!("{n}\n")).collect();
    assert!(all == expected.as_bytes());
}

#[tokio::test]
async fn chunks_are_bounded_and_small_answers_come_at_once() {
    let chunks: Vec<usize> =
        exec(sh("head -c 67108864 /dev/zero")).await.stdout.map_ok(|c| c.len()).try_collect().await.unwrap();
    assert_eq!(chunks.iter().sum::<usize>(), 64 << 20);
    assert!(chunks.iter().all(|len| (1..=1 << 20).contains(len)));
    let mut waiting = exec(sh("echo ready; sleep 100")).await;
    assert_eq!(timeout(SOON, waiting.stdout.next()).await.unwrap().unwrap().unwrap(), "ready\n");
}

#[tokio::test]
async fn a_failed_program_never_ends_its_output_well() {
    let mut run = exec(sh("echo half; echo 'disk on fire' >&2; exit 7")).await;
    assert_eq!(run.stdout.next().await.unwrap().unwrap(), "half\n");
    let error = run.stdout.next().await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "`sh` failed with exit code 7: disk on fire");
    assert!(run.stdout.next().await.is_none());
    let outcome = run.outcome.await.unwrap();
    assert_eq!((outcome.status.code, outcome.status.killed), (Some(7), false));
    assert_eq!(outcome.stderr_tail, "disk on fire\n");
}

#[tokio::test]
async fn exit_codes_can_be_accepted_and_a_killed_one_says_so() {
    let mut command = sh("exit 3");
    command.accept = vec![0, 3];
    assert!(output(exec(command).await).await.unwrap().is_empty());
    let Execution { stdout, outcome } = exec(sh("kill -9 $$")).await;
    let error = stdout.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(error.to_string().contains("signal 9"), "{error}");
    let status = outcome.await.unwrap().status;
    assert_eq!((status.code, status.killed), (Some(137), true));
}

#[tokio::test]
async fn standard_error_neither_blocks_nor_mixes_and_its_end_is_kept() {
    let run = exec(sh("seq 1 100000 >&2; echo out; seq 1 3 >&2")).await;
    let Execution { stdout, outcome } = run;
    assert_eq!(read(stdout).await.unwrap(), b"out\n");
    let tail = outcome.await.unwrap().stderr_tail;
    assert!(tail.len() == 64 << 10 && tail.ends_with("100000\n1\n2\n3\n"));
}

#[tokio::test]
async fn input_is_streamed_and_a_broken_one_kills_before_the_program_sees_an_end() {
    let pieces = (0..300).map(|n| Ok(Bytes::from(vec![n as u8; 10_000])));
    let expected: Vec<u8> = (0..300).flat_map(|n| vec![n as u8; 10_000]).collect();
    let run = exec(ExecCommand::new(["cat"]).with_stdin(stream::iter(pieces).boxed())).await;
    assert!(output(run).await.unwrap() == expected);

    let (_dir, finished) = scratch();
    let script = format!("cat; touch '{}'", finished.display());
    let broken = stream::iter([Ok(Bytes::from_static(b"half")), Err(AdapterError::corrupt("bad block"))]);
    let error = output(exec(sh(&script).with_stdin(broken.boxed())).await).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Corrupt, "bad block"));
    assert!(!finished.exists());
}

#[tokio::test]
async fn without_input_there_is_an_end_and_unread_input_is_the_programs_business() {
    assert!(output(exec(ExecCommand::new(["cat"])).await).await.unwrap().is_empty());
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 4096])));
    let run = exec(ExecCommand::new(["head", "-c", "3"]).with_stdin(endless.boxed())).await;
    assert_eq!(output(run).await.unwrap(), b"xxx");
}

/// A program whose grandchild ignores what ends its parent, and holds the output open.
fn family(note: &Path) -> ExecCommand {
    sh(&format!(
        "(trap '' TERM HUP INT; echo; sh -c 'echo $$ > {0}; sleep 1000; true') & wait; sleep 1000",
        note.display()
    ))
}

#[tokio::test]
async fn the_deadline_kills_grandchildren_too() {
    let (_dir, note) = scratch();
    let started = Instant::now();
    let mut run = exec(family(&note).with_deadline(Some(started + Duration::from_millis(700)))).await;
    let grandchild = noted(&note).await;
    assert!(lives(&grandchild));
    let error = loop {
        match timeout(SOON, run.stdout.next()).await.unwrap().unwrap() {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), Kind::Timeout);
    until(|| !lives(&grandchild)).await;
    assert!(run.outcome.await.unwrap().status.killed);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn the_deadline_holds_while_nobody_reads_and_when_the_pipe_outlives_the_group() {
    let (_dir, note) = scratch();
    let script = format!("setsid sh -c 'echo $$ > {}; sleep 30' & sleep 1000", note.display());
    let command = sh(&script).with_deadline(Some(Instant::now() + Duration::from_millis(500)));
    let mut run = exec(command).await;
    let escaped = noted(&note).await;
    let error = timeout(Duration::from_secs(10), run.stdout.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    let pid = rustix::process::Pid::from_raw(escaped.parse().unwrap()).unwrap();
    rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn dropped_it_is_killed_and_reaped() {
    let (_dir, note) = scratch();
    let run = exec(family(&note)).await;
    let grandchild = noted(&note).await;
    drop(run);
    until(|| !lives(&grandchild)).await;
    // Nothing of ours may stay behind as a zombie.
    until(|| !zombies().iter().any(|name| name == "sh")).await;
}

/// Names of our children that ended and that nobody has waited for.
fn zombies() -> Vec<String> {
    let me = std::process::id().to_string();
    let stats = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path().join("stat"));
    let lines = stats.filter_map(|p| std::fs::read_to_string(p).ok());
    let zombie = |line: &String| {
        let (head, tail) = line.rsplit_once(") ")?;
        let mut fields = tail.split(' ');
        let ours = fields.next() == Some("Z") && fields.next() == Some(me.as_str());
        ours.then(|| head.split_once('(').unwrap().1.to_owned())
    };
    lines.filter_map(|l| zombie(&l)).collect()
}

#[tokio::test]
async fn the_output_alone_keeps_it_alive_and_so_does_the_outcome() {
    let Execution { stdout, outcome } = exec(sh("sleep 0.3; echo done")).await;
    drop(outcome);
    assert_eq!(read(stdout).await.unwrap(), b"done\n");
    let (_dir, note) = scratch();
    let script = format!("sleep 0.3; echo 1 > '{}'", note.display());
    let Execution { stdout, outcome } = exec(sh(&script)).await;
    drop(stdout);
    assert_eq!(timeout(SOON, outcome).await.unwrap().unwrap().status.code, Some(0));
    assert!(note.exists());
}

#[tokio::test]
async fn secrets_reach_the_program_and_nobody_else() {
    let canary = "canary-8d1f";
    let script = "tr '\\0' '\\n' < /proc/$$/cmdline; test \"$TOKEN\" = canary-8d1f && echo told; echo \"bad: $TOKEN\" >&2; exit 1";
    let command =
        ExecCommand::new(["sh", "-c", &script.replace(canary, "\"$(printf canary-; printf 8d1f)\"")])
            .with_env("TOKEN", Secret::new(canary));
    assert!(!format!("{command:?}").contains(canary));
    let mut run = exec(command).await;
    let shown = String::from_utf8(run.stdout.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(!shown.contains(canary), "{shown}");
    let mut rest = shown;
    let error = loop {
        match run.stdout.next().await.unwrap() {
            Ok(more) => rest.push_str(std::str::from_utf8(&more).unwrap()),
            Err(e) => break e,
        }
    };
    assert!(rest.ends_with("told\n"), "{rest}");
    let outcome = run.outcome.await.unwrap();
    for text in [error.to_string(), format!("{error:?}"), outcome.stderr_tail] {
        assert!(!text.contains(canary), "{text}");
    }
}

#[tokio::test]
async fn missing_programs_are_named_and_folders_come_first() {
    let error = HostRuntime::new().exec(ExecCommand::new(["no-such-program-1"])).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("no-such-program-1"), "{error}");
    assert!(HostRuntime::new().exec(ExecCommand::new(Vec::<String>::new())).await.is_err());

    let dir = tempfile::tempdir().unwrap();
    // A link, not a script: writing a program while other tests fork can make it "busy".
    std::os::unix::fs::symlink("/bin/echo", dir.path().join("cat")).unwrap();
    let runtime = HostRuntime::new().with_program_path([Path::new("/no/such/folder"), dir.path()]);
    let run = runtime.exec(ExecCommand::new(["cat", "found"])).await.unwrap();
    assert_eq!(output(run).await.unwrap(), b"found\n");
}

#[tokio::test]
async fn another_user_is_for_root_alone() {
    let mut command = ExecCommand::new(["id", "-un"]);
    command.user = Some("nobody".into());
    let asked = HostRuntime::new().exec(command).await;
    if rustix::process::geteuid().is_root() {
        assert_eq!(output(asked.unwrap()).await.unwrap(), b"nobody\n");
    } else {
        assert_eq!(asked.unwrap_err().kind(), Kind::PermissionDenied);
    }
    let mut unknown = ExecCommand::new(["true"]);
    unknown.user = Some("no-such-user".into());
    assert_eq!(HostRuntime::new().exec(unknown).await.unwrap_err().kind(), Kind::NotFound);
}
