//! Containers for test restores: what they may take, reach and know, and that they go.

use std::time::{Duration, Instant};

use backup_adapters::runtime::docker::{HelperSpec, Network, Purpose, TwinChange};
use backup_core::runtime::{ExecCommand, ServiceRuntime as _};
use backup_core::{AdapterErrorKind, Event, EventSink, Image, OpContext, RunId, Secret};

use crate::support::{Container, docker, try_docker, unique};
use crate::watched::{Watch, assert_gone, assert_restrained, is_volume, left_of, volumes_of};

const CANARY: &str = "canary-outward-19c";

fn run_id() -> RunId {
    RunId::generate(backup_core::Clock::now(&backup_core::SystemClock))
}

/// Warnings.
#[derive(Debug, Clone, Default)]
struct Said(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl EventSink for Said {
    fn emit(&self, event: Event) {
        if let Event::Warning { message, .. } = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

fn isolated() -> TwinChange {
    TwinChange { purpose: Purpose::Scratch, network: Network::Isolated, ..TwinChange::default() }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_server_of_a_test_restore_takes_little_and_reaches_nothing() {
    let network = unique("net");
    docker(&["network", "create", &network]);
    let key = format!("OPENAI_APIKEY={CANARY}");
    let cloud = format!("AWS_SECRET_ACCESS_KEY={CANARY}");
    let options =
        ["--network", &network, "-p", "127.0.0.1::6379", "-e", &key, "-e", &cloud, "-e", "STAYS=yes"];
    let service = Container::with(&options, &[]);
    let address = service.field("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
    let run = run_id();
    let watch = Watch::of(&run);
    let mut change = isolated();
    change.env.push(("OURS".to_owned(), Some(Secret::new("1"))));
    let twin = service.runtime().twin(&run, change).await.unwrap();
    // From here it is reached, and does what its image does.
    let until = Instant::now() + Duration::from_secs(20);
    while twin.runtime().endpoint(6379).await.is_err() {
        assert!(Instant::now() < until, "it is not reached");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // From there, nobody is: neither by address nor by name.
    let said = twin.runtime().env("STAYS").await.unwrap();
    assert_eq!(said.unwrap().expose(), "yes");
    let ask = format!("timeout 3 redis-cli -h {address} ping; timeout 3 redis-cli -h {} ping", service.name);
    let (said, _) = crate::support::run(
        twin.runtime(),
        ExecCommand::new(["sh", "-c", &format!("({ask}) 2>&1 | grep -c PONG; true")]),
    )
    .await
    .unwrap();
    assert_eq!(String::from_utf8_lossy(&said).trim(), "0");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let seen = watch.end();
    assert_eq!(seen.len(), 1);
    assert_restrained(&seen[0], &[CANARY]);
    assert_eq!(seen[0]["HostConfig"]["PidsLimit"], 4096);
    assert_eq!(seen[0]["HostConfig"]["MemorySwap"], seen[0]["HostConfig"]["Memory"]);
    twin.close().await.unwrap();
    assert_gone(&run, &seen);
    // What is no test restore has what the service has.
    let twin = service.runtime().twin(&run, TwinChange::default()).await.unwrap();
    let plain = twin.runtime().inspect().await.unwrap().instance;
    let of = |template: &str| docker(&["inspect", "-f", template, &plain]);
    assert_eq!(
        of("{{.HostConfig.OomScoreAdj}} {{.HostConfig.CpuShares}} {{.HostConfig.NetworkMode}}"),
        format!("0 0 {network}")
    );
    assert!(of("{{.Config.Env}}").contains(CANARY));
    twin.close().await.unwrap();
    drop(service);
    docker(&["network", "rm", &network]);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_test_restore_is_refused_where_the_memory_is_not_there() {
    let service = Container::with(&["--memory", "8000g"], &[]);
    let run = run_id();
    let e = service.runtime().twin(&run, isolated()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{e}");
    let text = e.to_string();
    assert!(
        text.contains(&service.name)
            && text.contains("8589.9 GB of memory (the service's container has that)"),
        "{text}"
    );
    assert_eq!(left_of(&run), "");
    // Work is never refused for that.
    service.runtime().twin(&run, TwinChange::default()).await.unwrap().close().await.unwrap();
    let mut spec = HelperSpec::default();
    spec.memory = Some(8 << 50);
    spec.user = "0:0".to_owned();
    spec.purpose = Purpose::Scratch;
    let e = service.runtime().helper(&run, spec.clone()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{e}");
    assert_eq!(left_of(&run), "");
    // One that does not say what it needs is bounded by what there is.
    let service = Container::with(&[], &[]);
    let twin = service.runtime().twin(&run, isolated()).await.unwrap();
    let id = twin.runtime().inspect().await.unwrap().instance;
    let limit: u64 = docker(&["inspect", "-f", "{{.HostConfig.Memory}}", &id]).parse().unwrap();
    let total: u64 = docker(&["info", "-f", "{{.MemTotal}}"]).parse().unwrap();
    assert!(limit > 64 << 20 && limit < total, "{limit} of {total}");
    twin.close().await.unwrap();
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_helper_of_a_test_restore_is_restrained_and_keeps_what_is_named() {
    let licence = "NEO4J_ACCEPT_LICENSE_AGREEMENT";
    let service = Container::with(&["-e", &format!("{licence}=eval"), "-e", &format!("OTHER={CANARY}")], &[]);
    let run = run_id();
    let watch = Watch::of(&run);
    let mut spec = HelperSpec::default();
    spec.memory = Some(64 << 20);
    spec.user = "0:0".to_owned();
    spec.purpose = Purpose::Scratch;
    spec.keep = vec![licence.to_owned()];
    let helper = service.runtime().helper(&run, spec).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let seen = watch.end();
    assert_restrained(&seen[0], &[CANARY]);
    assert!(seen[0]["Config"]["Env"].to_string().contains("NEO4J_ACCEPT_LICENSE_AGREEMENT=eval"));
    helper.close().await.unwrap();
    assert_eq!(left_of(&run), "");
}

/// What the backup was made of, as long as it is there; with what that image brings, and what the service was given.
#[tokio::test]
#[ignore = "needs Docker"]
async fn a_test_restore_takes_the_image_that_the_backup_was_made_of() {
    struct Then(String);
    impl Drop for Then {
        fn drop(&mut self) {
            try_docker(&["rmi", "-f", &self.0]);
        }
    }
    let service = Container::with(&["-e", "STAYS=yes"], &[]);
    let then = Then(unique("then"));
    let changes = ["ENV WHICH=then", "ENV STAYS=no", "CMD [\"redis-server\", \"--port\", \"6380\"]"];
    let mut commit = vec!["commit"];
    changes.iter().for_each(|change| commit.extend(["--change", change]));
    let idle = Container::idle();
    commit.extend(["--change", "ENTRYPOINT []", &idle.name, &then.0]);
    let id = docker(&commit);
    let run = run_id();
    let said = Said::default();
    let cx = |image: Option<Image>| {
        let clock = std::sync::Arc::new(backup_core::SystemClock);
        let at = backup_core::Timestamp::new(backup_core::Clock::now(&*clock));
        let mut cx = OpContext::new("db".parse().unwrap(), run.clone(), at, std::env::temp_dir(), clock);
        cx.image_then = image;
        cx.events = std::sync::Arc::new(said.clone());
        cx
    };
    let docker_of = service.runtime();
    let made_of =
        |digest: Option<&str>| Some(Image { name: then.0.clone(), digest: digest.map(str::to_owned) });
    let own = docker_of.inspect().await.unwrap().image;
    assert_eq!(docker_of.image_then(&cx(None)).await.unwrap(), None);
    assert_eq!(docker_of.image_then(&cx(own)).await.unwrap(), None, "it is today's");
    for recorded in [made_of(Some(&id)), made_of(None)] {
        assert_eq!(docker_of.image_then(&cx(recorded)).await.unwrap().as_ref(), Some(&id));
    }
    assert!(said.0.lock().unwrap().is_empty());
    let change = TwinChange { image: Some(id.clone()), ..isolated() };
    let twin = docker_of.twin(&run, change).await.unwrap();
    let seen = twin.runtime().inspect().await.unwrap().instance;
    assert_eq!(docker(&["inspect", "-f", "{{.Image}}", &seen]), id);
    let command = docker(&["inspect", "-f", "{{json .Config.Cmd}}", &seen]);
    assert_eq!(command, r#"["redis-server","--port","6380"]"#, "as the image has it");
    let env = docker(&["inspect", "-f", "{{json .Config.Env}}", &seen]);
    assert!(env.contains("WHICH=then") && env.contains("STAYS=yes") && !env.contains("STAYS=no"), "{env}");
    twin.close().await.unwrap();
    assert_eq!(left_of(&run), "");
    // It is gone, and another one has its name.
    drop(then);
    let gone = Image { name: "db:then".to_owned(), digest: Some(id) };
    assert_eq!(docker_of.image_then(&cx(Some(gone))).await.unwrap(), None);
    let said = said.0.lock().unwrap().join("; ");
    assert!(said.contains("the backup was made of `db:then`, which is not on this host"), "{said}");
}

/// As after a SIGKILL: nothing of ours runs any more that could remove it.
#[tokio::test]
#[ignore = "needs Docker"]
async fn what_a_killed_test_restore_left_is_removed_with_its_network_and_volumes() {
    let service = Container::with(&[], &[]);
    let other = Container::with(&[], &[]);
    let run = run_id();
    let watch = Watch::of(&run);
    std::mem::forget(service.runtime().twin(&run, isolated()).await.unwrap());
    let left = service.runtime().twin(&run, isolated()).await.unwrap().leave();
    let beside_other = other.runtime().twin(&run, isolated()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let volumes = volumes_of(&watch.end());
    assert!(volumes.len() == 3 && volumes.iter().all(|v| is_volume(v)), "{volumes:?}");
    assert!(left.endpoint(6379).await.is_ok());
    let removed = service.runtime().reclaim(std::slice::from_ref(&run)).await.unwrap();
    let many = |what: &str| removed.iter().filter(|r| r.starts_with(what)).count();
    assert_eq!((many("container"), many("network")), (2, 2), "{removed:?}");
    // What another service's test restore of the same run has beside it is left alone.
    assert_eq!(volumes.iter().filter(|v| is_volume(v)).count(), 1);
    beside_other.runtime().inspect().await.unwrap();
    beside_other.close().await.unwrap();
    assert_eq!(left_of(&run), "");
    assert!(!volumes.iter().any(|v| is_volume(v)));
    assert!(service.runtime().reclaim(&[run]).await.unwrap().is_empty());
    assert!(try_docker(&["inspect", &service.name]).status.success());
}
