//! Files and volumes of containers, wherever they are and whatever state the container is in.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use backup_adapters::runtime::DockerRuntime;
use backup_core::runtime::{ExecCommand, ServiceRuntime as _};
use backup_core::{AdapterErrorKind, Clock as _, RunId, SystemClock};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::support::{Container, docker, sh, text, try_docker, unique};

const SIZE: usize = 3_000_001;

fn run_id() -> RunId {
    RunId::generate(SystemClock.now())
}

/// A container with a file of its own, one in an anonymous volume, one in memory, and links to them.
async fn furnished() -> Container {
    let c = Container::with(
        &["--entrypoint", "sleep", "-v", "/data", "--tmpfs", "/run/mem", "-w", "/"],
        &["infinity"],
    );
    let script = format!(
        "head -c {SIZE} /dev/urandom > /data/big; cp /data/big /own; ln -s ../data/big /etc/link; \
         echo secret > /run/mem/file; echo small > /data/small; chmod 600 /data/*; chown 999 /data/*; mkfifo /data/fifo"
    );
    text(&c.runtime(), sh(&script)).await;
    c
}

async fn read(c: &Container, path: &str) -> Vec<u8> {
    let run = Run(run_id());
    let file = c.runtime().open_file(Path::new(path), &run.0).await.unwrap();
    let parts: Vec<_> = file.body.try_collect().await.unwrap();
    let all = parts.concat();
    assert_eq!(all.len() as u64, file.bytes);
    all
}

/// Removes what a failed test leaves beside its containers.
struct Run(RunId);

impl Drop for Run {
    fn drop(&mut self) {
        for left in readers(&self.0).lines() {
            try_docker(&["rm", "-fv", left]);
        }
    }
}

fn readers(run: &RunId) -> String {
    docker(&["ps", "-aq", "--filter", &format!("label=backup.run-id={run}")])
}

async fn gone(run: &RunId) {
    let wait = Instant::now();
    while !readers(run).is_empty() {
        assert!(wait.elapsed() < Duration::from_secs(15), "left: {}", readers(run));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn small_files_are_read_in_every_state() {
    let c = furnished().await;
    let runtime = c.runtime();
    let small = |path: &'static str| runtime.read_file(Path::new(path), 100);
    assert_eq!(small("/run/mem/file").await.unwrap(), b"secret\n");
    for disturb in [&["pause"][..], &["unpause"], &["stop", "-t", "0"]] {
        let args: Vec<&str> = disturb.iter().copied().chain([c.name.as_str()]).collect();
        docker(&args);
        assert_eq!(small("/data/small").await.unwrap(), b"small\n", "{disturb:?}");
        assert_eq!(small("/data/none").await.unwrap_err().kind(), AdapterErrorKind::NotFound, "{disturb:?}");
        let e = small("/etc/link").await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{e}");
        assert!(e.to_string().contains("larger than 100 bytes"), "{e}");
    }
    let e = runtime.read_file(Path::new("data/small"), 100).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::InvalidConfig, "{e}");
    assert_eq!(small("/data").await.unwrap_err().kind(), AdapterErrorKind::Unsupported);
    assert_eq!(small("/data/fifo").await.unwrap_err().kind(), AdapterErrorKind::Unsupported);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn large_files_are_read_in_every_state() {
    let c = furnished().await;
    let expected = c.runtime().read_file(Path::new("/data/big"), SIZE).await.unwrap();
    for disturb in [&["pause"][..], &["unpause"], &["stop", "-t", "0"]] {
        let args: Vec<&str> = disturb.iter().copied().chain([c.name.as_str()]).collect();
        docker(&args);
        for path in ["/data/big", "/own", "/etc/link"] {
            assert!(read(&c, path).await == expected, "{path} {disturb:?}");
        }
    }
    let none = c.runtime().open_file(Path::new("/none"), &run_id()).await.unwrap_err();
    assert_eq!(none.kind(), AdapterErrorKind::NotFound, "{none}");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_volume_of_this_host_is_found() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x"), "x").unwrap();
    let bind = format!("{}:/bind:ro", folder.path().display());
    let c = Container::with(&["--entrypoint", "sleep", "-v", "/data", "-v", &bind], &["infinity"]);
    let runtime = c.runtime();
    text(&runtime, sh("echo y > /data/y")).await;
    let at = |path: &'static str| runtime.volume_path(Path::new(path));
    let bound = at("/bind/x").await.unwrap().unwrap();
    assert_eq!(bound, folder.path().join("x"));
    assert_eq!(std::fs::read(at("/data/y").await.unwrap().unwrap()).unwrap(), b"y\n");
    assert_eq!(at("/etc/passwd").await.unwrap(), None);
    let mounts = runtime.inspect().await.unwrap().mounts;
    assert!(mounts.iter().any(|m| m.inside == Path::new("/bind") && m.read_only));
    assert!(mounts.iter().any(|m| m.inside == Path::new("/data") && !m.read_only));
    // What it only reads is nobody's data.
    assert_eq!(runtime.live_paths().await, [at("/data").await.unwrap().unwrap()]);
}

struct Volume(String);

impl Drop for Volume {
    fn drop(&mut self) {
        try_docker(&["volume", "rm", "-f", &self.0]);
    }
}

/// As Compose files place volumes on a disk of their own.
#[tokio::test]
#[ignore = "needs Docker"]
async fn a_volume_that_is_a_folder_of_this_host_is_read_there() {
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume(unique("v"));
    let device = format!("device={}", folder.path().display());
    docker(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, &volume.0]);
    let mount = format!("{}:/near", volume.0);
    let c = Container::with(&["--entrypoint", "sleep", "-v", &mount], &["infinity"]);
    let here = Some(folder.path().join("file"));
    assert_eq!(c.runtime().volume_path(Path::new("/near/file")).await.unwrap(), here);
    docker(&["stop", "-t", "0", &c.name]);
    assert_eq!(c.runtime().volume_path(Path::new("/near/file")).await.unwrap(), here);
}

/// Other volumes with options are mounted only while they are used: their path on the host is an empty directory else.
#[tokio::test]
#[ignore = "needs Docker"]
async fn a_volume_elsewhere_is_read_through_another_container() {
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume(unique("v"));
    let layer = |name: &str| {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        format!("{name}dir={}", folder.path().join(name).display())
    };
    let layers = format!("o={},{},{}", layer("lower"), layer("upper"), layer("work"));
    docker(&["volume", "create", "-o", "type=overlay", "-o", "device=overlay", "-o", &layers, &volume.0]);
    let mount = format!("{}:/far", volume.0);
    let c = Container::with(&["--entrypoint", "sleep", "-v", &mount], &["infinity"]);
    let runtime = c.runtime();
    text(
        &runtime,
        sh(&format!(
            "head -c {SIZE} /dev/urandom > /far/big; mkdir -p /far/deep/er; echo z > /far/deep/er/z"
        )),
    )
    .await;
    let expected = std::fs::read(folder.path().join("upper/big")).unwrap();
    assert_eq!(runtime.volume_path(Path::new("/far/big")).await.unwrap(), None);
    assert!(read(&c, "/far/big").await == expected, "while it runs");
    docker(&["stop", "-t", "0", &c.name]);

    let run = run_id();
    let _guard = Run(run.clone());
    let file = runtime.open_file(Path::new("/far/big"), &run).await.unwrap();
    assert!(!readers(&run).is_empty());
    let parts: Vec<_> = file.body.try_collect().await.unwrap();
    assert!(parts.concat() == expected, "while it does not");
    gone(&run).await;
    // Dropped half way, it goes too.
    let mut file = runtime.open_file(Path::new("/far/big"), &run).await.unwrap();
    file.body.next().await.unwrap().unwrap();
    drop(file);
    gone(&run).await;

    let reader = runtime.volume_reader(&run).await.unwrap();
    let mut execution =
        reader.exec(ExecCommand::new(["tar", "-C", "/far", "-cf", "-", "deep"])).await.unwrap();
    let mut archive = Vec::new();
    while let Some(piece) = execution.stdout.next().await {
        archive.extend_from_slice(&piece.unwrap());
    }
    let mut found = String::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
        entry.unwrap().read_to_string(&mut found).unwrap();
    }
    assert_eq!(found, "z\n");
    let touch = reader.exec(sh("touch /far/no")).await.unwrap();
    assert_ne!(touch.outcome.await.unwrap().status.code, Some(0), "it may only read");
    reader.close().await.unwrap();
    assert_eq!(readers(&run), "");

    drop(runtime.volume_reader(&run).await.unwrap());
    gone(&run).await;
    // As after a kill: nobody removes it, but its line to us is cut.
    std::mem::forget(runtime.volume_reader(&run).await.unwrap());
    assert!(!readers(&run).is_empty());
    assert_eq!(runtime.reclaim(&[run_id()]).await.unwrap(), Vec::<String>::new());
    // One run works on several services at once: what it has beside another one is none of this one's.
    let other = DockerRuntime::new(format!("{}-other", c.name));
    assert_eq!(other.reclaim(std::slice::from_ref(&run)).await.unwrap(), Vec::<String>::new());
    assert!(!readers(&run).is_empty());
    assert_eq!(runtime.reclaim(std::slice::from_ref(&run)).await.unwrap().len(), 1);
    gone(&run).await;
    assert!(folder.path().join("upper/big").exists());
}

/// With `VolumesFrom`, removing the helper would remove the anonymous volumes of a container that is gone meanwhile.
#[tokio::test]
#[ignore = "needs Docker"]
async fn reading_a_volume_never_removes_it() {
    let c = furnished().await;
    let volume = Volume(c.field("{{range .Mounts}}{{.Name}}{{end}}"));
    let run = Run(run_id());
    let reader = c.runtime().volume_reader(&run.0).await.unwrap();
    docker(&["rm", "-f", &c.name]);
    reader.close().await.unwrap();
    docker(&["volume", "inspect", &volume.0]);
}
