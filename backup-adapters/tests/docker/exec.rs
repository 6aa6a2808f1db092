//! Programs in containers: nothing lost, nothing left.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backup_core::runtime::{ExecCommand, ServiceRuntime as _};
use backup_core::{AdapterError, AdapterErrorKind, Secret};
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use crate::support::{Container, docker, failure, noise, run, sh, text};

#[tokio::test]
#[ignore = "needs Docker"]
async fn what_a_program_prints_arrives_as_it_is() {
    let (c, runtime) = idle();
    assert_eq!(
        text(&runtime, ExecCommand::new(["printf", "%s|", "a b", "$HOME", "'\"", ""])).await,
        "a b|$HOME|'\"||"
    );
    assert_eq!(text(&runtime, ExecCommand::new(["true"])).await, "");
    // A program, not what a shell has of the same name.
    assert!(text(&runtime, ExecCommand::new(["echo", "--version"])).await.contains("GNU"));
    let every_byte: Vec<u8> = (0..=255).collect();
    let octal: String = every_byte.iter().map(|b| format!("\\{b:03o}")).collect();
    let (all, outcome) = run(&runtime, ExecCommand::new(["printf", &octal])).await.unwrap();
    assert_eq!((all, outcome.status.code, outcome.status.killed), (every_byte, Some(0), false));
    let (all, outcome) = run(&runtime, sh("echo out; echo err >&2; printf 'no newline' >&2")).await.unwrap();
    assert_eq!((all.as_slice(), outcome.stderr_tail.as_str()), (&b"out\n"[..], "err\nno newline"));
    // Without input there is none.
    assert_eq!(text(&runtime, sh("wc -c")).await.trim(), "0");
    c.wait_until_alone().await;
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn exit_codes_decide() {
    let (c, runtime) = idle();
    let e = failure(&runtime, sh("echo useful; echo 'FATAL: no such database' >&2; exit 3")).await;
    assert_eq!(e.to_string(), "`sh` ended with exit code 3: FATAL: no such database");
    let mut accepting = sh("echo useful; exit 3");
    accepting.accept = vec![0, 3];
    let (all, outcome) = run(&runtime, accepting).await.unwrap();
    assert_eq!((all.as_slice(), outcome.status.code), (&b"useful\n"[..], Some(3)));
    let e = failure(&runtime, sh("kill -9 $$")).await;
    assert!(e.to_string().contains("killed"), "{e}");
    let e = failure(&runtime, ExecCommand::new(["no-such-program", "x"])).await;
    assert!(e.to_string().contains("cannot be run") && e.to_string().contains("not found"), "{e}");
    // Whoever only wants to know how it ended may drop the output.
    let execution = runtime.exec(sh("seq 1 300000; exit 7")).await.unwrap();
    drop(execution.stdout);
    assert_eq!(execution.outcome.await.unwrap().status.code, Some(7));
    c.wait_until_alone().await;
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn the_end_of_standard_error_is_kept() {
    let (_c, runtime) = idle();
    let (_, outcome) = run(&runtime, sh("seq 1 50000 >&2")).await.unwrap();
    assert_eq!(outcome.stderr_tail.len(), 64 << 10);
    assert!(outcome.stderr_tail.ends_with("49999\n50000\n"));
}

/// The engine's own exec loses the end of output of about these sizes, which fit into the buffers on the way: it drops
/// what was not read 2 s after the program ended, and says that all is well.
#[tokio::test]
#[ignore = "needs Docker"]
async fn a_slow_reader_loses_nothing() {
    let (c, runtime) = idle();
    let work = [1_288_895_usize, 1_358_895, 1_393_895, 20_000_000].map(|size| {
        let runtime = runtime.clone();
        async move {
            let mut execution =
                runtime.exec(sh(&format!("head -c {size} /dev/zero | tr '\\0' x; echo end"))).await.unwrap();
            let mut all = execution.stdout.next().await.unwrap().unwrap().to_vec();
            tokio::time::sleep(Duration::from_secs(5)).await;
            while let Some(piece) = execution.stdout.next().await {
                all.extend_from_slice(&piece.unwrap());
            }
            assert_eq!(all.len(), size + 4);
            assert!(all.ends_with(b"xend\n"));
            assert_eq!(execution.outcome.await.unwrap().status.code, Some(0));
        }
    });
    futures::future::join_all(work).await;
    c.wait_until_alone().await;
}

/// The engine passes the two streams on in any order, and a program that prints at once can be ahead of all else.
#[tokio::test]
#[ignore = "needs Docker"]
async fn what_prints_at_once_starts_all_the_same() {
    let (c, runtime) = idle();
    for _ in 0..12 {
        let starts = (0..16).map(|_| {
            let runtime = runtime.clone();
            async move {
                let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
                let command = sh("exec cat /dev/zero").with_deadline(Some(deadline));
                let mut execution = runtime.exec(command).await.unwrap();
                execution.stdout.next().await.unwrap().unwrap();
            }
        });
        futures::future::join_all(starts).await;
    }
    c.wait_until_alone().await;
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn input_comes_back_as_it_went() {
    let (c, runtime) = idle();
    const SIZE: usize = 300 << 20;
    let mut sent = blake3::Hasher::new();
    let mut source = noise(SIZE, 1_000_003);
    while let Some(piece) = source.next().await {
        sent.update(&piece.unwrap());
    }
    let command = ExecCommand::new(["cat"]).with_stdin(noise(SIZE, 1_000_003));
    let mut execution = runtime.exec(command).await.unwrap();
    let (mut got, mut length, started) = (blake3::Hasher::new(), 0, Instant::now());
    while let Some(piece) = execution.stdout.next().await {
        let piece = piece.unwrap();
        length += piece.len();
        got.update(&piece);
    }
    eprintln!("{} MB/s there and back", SIZE as u128 / started.elapsed().as_micros());
    assert_eq!((length, got.finalize()), (SIZE, sent.finalize()));
    c.wait_until_alone().await;
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn input_of_any_shape() {
    let (c, runtime) = idle();
    let of = |parts: Vec<&'static [u8]>| {
        stream::iter(parts.into_iter().map(|p| Ok(Bytes::from_static(p)))).boxed()
    };
    for parts in [vec![], vec![&b""[..]], vec![b"0\n", b"", b"Q\n", b"\0\xff\\"], vec![b"no newline"]] {
        let expected = parts.concat();
        let (all, _) = run(&runtime, ExecCommand::new(["cat"]).with_stdin(of(parts))).await.unwrap();
        assert_eq!(all, expected);
    }
    // A program that takes a part of its input, or none, is no failure of ours.
    let (all, _) = run(&runtime, sh("head -c 5").with_stdin(noise(50 << 20, 1 << 20))).await.unwrap();
    assert_eq!(all.len(), 5);
    let (all, outcome) =
        run(&runtime, sh("exec <&-; seq 1 3").with_stdin(noise(5 << 20, 77_777))).await.unwrap();
    assert_eq!((all.as_slice(), outcome.status.code), (&b"1\n2\n3\n"[..], Some(0)));
    // A slow reader of a large input.
    let slow = "sleep 3; wc -c";
    assert_eq!(
        text(&runtime, sh(slow).with_stdin(noise(9 << 20, 1 << 20))).await.trim(),
        (9 << 20).to_string()
    );
    c.wait_until_alone().await;
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn input_that_fails_is_never_taken_for_complete() {
    let (c, runtime) = idle();
    let broken = || {
        let parts = [Ok(Bytes::from_static(b"half")), Err(AdapterError::corrupt("bad frame"))];
        stream::iter(parts).boxed()
    };
    let e = failure(&runtime, sh("cat; echo complete > /tmp/seen").with_stdin(broken())).await;
    assert_eq!(e.kind(), AdapterErrorKind::Corrupt);
    assert!(e.to_string().contains("bad frame"), "{e}");
    c.wait_until_alone().await;
    // Not even when the connection goes without a word.
    let never = stream::iter([Ok(Bytes::from_static(b"half"))]).chain(stream::pending()).boxed();
    let script = "set -e; cat; touch /tmp/seen-too";
    let execution = runtime.exec(sh(script).with_stdin(never)).await.unwrap();
    c.wait_for("cat").await;
    drop(execution);
    c.wait_until_alone().await;
    assert_eq!(text(&runtime, sh("ls /tmp/seen-too 2>&1; true")).await.lines().count(), 1);
    assert!(text(&runtime, sh("ls /tmp/seen-too 2>&1; true")).await.contains("No such file"));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn what_does_not_learn_of_its_client_s_end_is_ended_without_orphans() {
    let (c, _runtime) = idle();
    let group = include_str!("../../src/runtime/docker/exec/group.sh");
    let wrapper = [group, include_str!("../../src/runtime/docker/exec/wrapper.sh")].concat();
    let kill = [group, include_str!("../../src/runtime/docker/exec/kill.sh")].concat();
    let mut client = Command::new("timeout")
        .args([
            "120",
            "docker",
            "exec",
            "-i",
            &c.name,
            "sh",
            "-c",
            &wrapper,
            "sh",
            "its-nonce",
            "input",
            "0",
            "cat",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(client.stdout.take().unwrap());
    stdout.read_line(&mut said).unwrap();
    let leader = said.trim().strip_prefix("##PID its-nonce ").unwrap();
    docker(&["exec", &c.name, "sh", "-c", &kill, "sh", leader, "its-nonce"]);
    c.wait_until_alone().await;
    // It was still connected.
    drop((client.stdin.take(), stdout));
    client.wait().unwrap();
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn secrets_are_in_the_environment_and_nowhere_else() {
    let (_c, runtime) = idle();
    // Other tests have canaries of their own.
    let canary = format!("canary-{}", nanos());
    let value = format!("{canary}\nsecond 'line' \\ $x");
    let command = sh("printf '%s' \"$PGPASSWORD\"; echo \"it is $PGPASSWORD\" >&2; sleep 1; exit 1")
        .with_env("PGPASSWORD", Secret::new(&value))
        .with_env("EMPTY", Secret::new(""));
    assert!(!format!("{command:?}").contains("canary"));
    let mut execution = runtime.exec(command).await.unwrap();
    assert_eq!(execution.stdout.next().await.unwrap().unwrap(), value.as_bytes());
    let mut looked = 0;
    for process in std::fs::read_dir("/proc").unwrap() {
        if let Ok(line) = std::fs::read(process.unwrap().path().join("cmdline")) {
            assert!(!String::from_utf8_lossy(&line).contains(&canary), "{}", String::from_utf8_lossy(&line));
            looked += 1;
        }
    }
    assert!(looked > 3);
    let e = execution.stdout.next().await.unwrap().unwrap_err();
    assert!(!format!("{e} {e:?}").contains("canary"), "{e}");
    let outcome = execution.outcome.await.unwrap();
    assert!(!outcome.stderr_tail.contains("canary"), "{outcome:?}");
    let e = failure(&runtime, sh("true").with_env("A=B", Secret::new("canary"))).await;
    assert_eq!(e.kind(), AdapterErrorKind::InvalidConfig);
    assert!(!e.to_string().contains("canary"));
}

fn nanos() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_deadline_ends_the_program_in_the_container() {
    let (c, runtime) = idle();
    for script in
        ["sleep 1000", "sleep 1000 | sleep 1000 & sleep 1001; true", "trap '' TERM; sleep 1000; sleep 1000"]
    {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
        let e = failure(&runtime, sh(script).with_deadline(Some(deadline))).await;
        assert_eq!(e.kind(), AdapterErrorKind::Timeout, "{e}");
        c.wait_until_alone().await;
    }
    // While it takes no input, and while its output is not taken.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
    let busy = sh("exec sleep 1000").with_stdin(noise(20 << 20, 1 << 20)).with_deadline(Some(deadline));
    assert_eq!(failure(&runtime, busy).await.kind(), AdapterErrorKind::Timeout);
    c.wait_until_alone().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
    let execution = runtime.exec(sh("exec cat /dev/zero").with_deadline(Some(deadline))).await.unwrap();
    c.wait_until_alone().await;
    drop(execution);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn what_is_dropped_is_ended() {
    let (c, runtime) = idle();
    let mut execution = runtime.exec(sh("cat /dev/zero | cat")).await.unwrap();
    execution.stdout.next().await.unwrap().unwrap();
    drop(execution);
    c.wait_until_alone().await;
    let execution = runtime.exec(sh("sleep 1000").with_stdin(noise(50 << 20, 1 << 20))).await.unwrap();
    c.wait_for("sleep 1000").await;
    drop(execution);
    c.wait_until_alone().await;
    // Half of it dropped is not.
    let execution = runtime.exec(sh("sleep 1; echo done")).await.unwrap();
    drop(execution.outcome);
    let all: Vec<_> = execution.stdout.collect().await;
    assert_eq!(all.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat(), b"done\n");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn many_at_once() {
    let (c, runtime) = idle();
    let work = (0..20).map(|n| {
        let runtime = runtime.clone();
        async move {
            let size = 100_000 + n;
            let command = ExecCommand::new(["cat"]).with_stdin(noise(size, 4096));
            let (all, outcome) = run(&runtime, command).await.unwrap();
            assert_eq!((all.len(), outcome.status.code), (size, Some(0)));
        }
    });
    futures::future::join_all(work).await;
    c.wait_until_alone().await;
}

/// What happens to the container while a program prints and is read.
async fn disturbed(disturb: &[&str]) -> AdapterError {
    let c = Container::idle();
    let runtime = c.runtime();
    let mut execution = runtime.exec(sh("while :; do echo x; sleep 0.1; done")).await.unwrap();
    execution.stdout.next().await.unwrap().unwrap();
    let args: Vec<&str> = disturb.iter().copied().chain([c.name.as_str()]).collect();
    docker(&args);
    let wait = Instant::now();
    let e = loop {
        match execution.stdout.next().await {
            Some(Ok(_)) => {}
            Some(Err(e)) => break e,
            None => panic!("a clean end after docker {disturb:?}"),
        }
    };
    assert!(wait.elapsed() < Duration::from_secs(6), "{:?}", wait.elapsed());
    assert!(execution.outcome.await.is_err());
    assert!(e.to_string().contains(&c.name), "{e}");
    e
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_that_goes_is_an_error() {
    let (killed, removed, stopped, restarted, paused) = tokio::join!(
        disturbed(&["kill"]),
        disturbed(&["rm", "-f"]),
        disturbed(&["stop", "-t", "0"]),
        disturbed(&["restart", "-t", "0"]),
        disturbed(&["pause"]),
    );
    assert!(killed.to_string().contains("stopped with exit code 137"), "{killed}");
    assert!(stopped.to_string().contains("stopped"), "{stopped}");
    assert_eq!(removed.kind(), AdapterErrorKind::NotFound, "{removed}");
    assert!(restarted.to_string().contains("restarted"), "{restarted}");
    assert_eq!(paused.kind(), AdapterErrorKind::Conflict, "{paused}");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn nothing_runs_where_nothing_can() {
    let (c, runtime) = idle();
    docker(&["pause", &c.name]);
    assert_eq!(failure(&runtime, sh("true")).await.kind(), AdapterErrorKind::Conflict);
    docker(&["unpause", &c.name]);
    docker(&["stop", "-t", "0", &c.name]);
    assert_eq!(failure(&runtime, sh("true")).await.kind(), AdapterErrorKind::Conflict);
    docker(&["rm", "-f", &c.name]);
    assert_eq!(failure(&runtime, sh("true")).await.kind(), AdapterErrorKind::NotFound);
}

fn idle() -> (Container, backup_adapters::runtime::DockerRuntime) {
    let c = Container::idle();
    let runtime = c.runtime();
    (c, runtime)
}
