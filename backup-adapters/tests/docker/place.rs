//! Containers found and described, reached and reaching us.

use std::net::{IpAddr, SocketAddr};

use backup_adapters::runtime::DockerRuntime;
use backup_adapters::runtime::docker::{compose_project, compose_service, survey};
use backup_core::AdapterErrorKind;
use backup_core::runtime::{RunState, ServiceRuntime as _};
use tokio::net::TcpStream;

use crate::support::{Container, IMAGE, docker, sh, text, unique};

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_is_found_by_name_id_and_label() {
    let project = unique("p");
    let (a, b) = (format!("com.docker.compose.project={project}"), "com.docker.compose.service=cache");
    let c = Container::with(&["--entrypoint", "sleep", "--label", &a, "--label", b], &["infinity"]);
    let id = c.field("{{.Id}}");
    let short = id.get(..12).unwrap();
    for wanted in [&c.name, &format!("/{}", c.name), &id, short, &a, &format!("label={a}")] {
        let found = DockerRuntime::new(wanted).inspect().await.unwrap();
        assert_eq!(found.instance, id, "{wanted}");
        assert_eq!(found.state, RunState::Running);
        assert_eq!(found.labels["com.docker.compose.project"], project);
        let image = found.image.unwrap();
        assert_eq!(image.name, IMAGE);
        assert!(image.digest.unwrap().starts_with("sha256:"));
    }
    // What `docker compose run` leaves does not count.
    let extra = Container::with(
        &["--entrypoint", "sleep", "--label", &a, "--label", "com.docker.compose.oneoff=True"],
        &["infinity"],
    );
    assert_eq!(DockerRuntime::new(&a).inspect().await.unwrap().instance, id);
    drop(extra);
    let twin = Container::with(&["--entrypoint", "sleep", "--label", &a], &["infinity"]);
    let e = DockerRuntime::new(&a).inspect().await.unwrap_err();
    assert!(e.to_string().contains(&c.name) && e.to_string().contains(&twin.name), "{e}");
    assert!(e.to_string().contains("is on 2 containers"), "{e}");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn what_is_not_there_is_said_with_what_is() {
    let c = Container::idle();
    let cut = c.name.get(1..).unwrap();
    let e = DockerRuntime::new(cut).inspect().await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound);
    assert!(e.to_string().contains(&format!("did you mean `{}`", c.name)), "{e}");
    // The engine would take this for the beginning of an id.
    let prefix = c.field("{{.Id}}").get(..5).unwrap().to_owned();
    let e = DockerRuntime::new(&prefix).inspect().await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{e}");
    for hostile in ["../images", "a b", "", "a?x", "%2e%2e"] {
        let e = DockerRuntime::new(hostile).inspect().await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{hostile}: {e}");
    }
    let e = DockerRuntime::new("backup-test=nobody").inspect().await.unwrap_err();
    assert!(e.to_string().contains(&format!("`backup-test={}`", std::process::id())), "{e}");
    let e = DockerRuntime::new("x").with_engine("ssh://host").inspect().await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::InvalidConfig, "{e}");
    let e = DockerRuntime::new("x").with_engine("unix:///nonexistent.sock").inspect().await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Unavailable, "{e}");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_in_a_container_is_reached_and_reaches_us() {
    let c = Container::with(&["-p", "127.0.0.1::6379"], &["--requirepass", "canary"]);
    let runtime = c.runtime();
    let ip: IpAddr = c.field("{{.NetworkSettings.IPAddress}}").parse().unwrap();
    // The server may still be starting.
    let mut endpoint = runtime.endpoint(6379).await;
    for _ in 0..50 {
        if endpoint.as_ref().is_ok_and(|e| e.ip() == ip) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        endpoint = runtime.endpoint(6379).await;
    }
    let endpoint = endpoint.unwrap();
    assert_eq!(endpoint, SocketAddr::new(ip, 6379));
    TcpStream::connect(endpoint).await.unwrap();
    assert_eq!(runtime.addresses().await.unwrap(), [ip]);
    let e = runtime.endpoint(6380).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Unavailable);
    assert!(e.to_string().contains("6380"), "{e}");

    let host = runtime.host_address().await.unwrap();
    let listener = tokio::net::TcpListener::bind((host, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let call = sh(&format!("bash -c 'echo hello >/dev/tcp/{host}/{port}'"));
    let (accepted, _) = tokio::join!(listener.accept(), text(&runtime, call));
    assert_eq!(accepted.unwrap().1.ip(), ip);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn other_networks() {
    let host = Container::with(&["--entrypoint", "sleep", "--network", "host"], &["infinity"]);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(host.runtime().endpoint(port).await.unwrap().to_string(), format!("127.0.0.1:{port}"));
    assert!(host.runtime().host_address().await.unwrap().is_loopback());

    let first = Container::idle();
    let joined = format!("container:{}", first.name);
    let second = Container::with(&["--entrypoint", "sleep", "--network", &joined], &["infinity"]);
    assert_eq!(second.runtime().addresses().await.unwrap(), first.runtime().addresses().await.unwrap());

    let none = Container::with(&["--entrypoint", "sleep", "--network", "none"], &["infinity"]);
    let e = none.runtime().endpoint(1).await.unwrap_err();
    assert!(e.to_string().contains("publish its port 1"), "{e}");
    assert_eq!(none.runtime().host_address().await.unwrap_err().kind(), AdapterErrorKind::Unavailable);

    let network = Network(unique("n"));
    docker(&["network", "create", "--internal", &network.0]);
    let inside = Container::with(&["--entrypoint", "sleep", "--network", &network.0], &["infinity"]);
    let ours = inside.runtime().host_address().await.unwrap();
    tokio::net::TcpListener::bind((ours, 0)).await.unwrap();
    drop(inside);
}

struct Network(String);

impl Drop for Network {
    fn drop(&mut self) {
        crate::support::try_docker(&["network", "rm", &self.0]);
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_survey_tells_all_and_shows_no_secret() {
    let options = ["-e", "REDIS_PASSWORD=canary", "--label", "com.docker.compose.project=shop"];
    let options = [&options[..], &["--label", "com.docker.compose.service=cache", "-v", "/data"]].concat();
    let c = Container::with(&options, &["--requirepass", "canary-too"]);
    let stopped = Container::idle();
    docker(&["stop", "-t", "0", &stopped.name]);
    let all = survey().await.unwrap();
    let seen = all.iter().find(|s| s.name == c.name).unwrap();
    assert_eq!((seen.image.as_str(), seen.state), (IMAGE, RunState::Running));
    assert_eq!((compose_project(seen), compose_service(seen)), (Some("shop"), Some("cache")));
    assert_eq!(seen.env["REDIS_PASSWORD"].expose(), "canary");
    assert!(seen.command.iter().any(|a| a.expose() == "canary-too"));
    assert!(seen.ports.contains(&6379), "{:?}", seen.ports);
    let mount = seen.mounts.iter().find(|m| m.inside.ends_with("data")).unwrap();
    assert!(mount.host.as_ref().unwrap().ends_with("_data"), "{mount:?}");
    assert!(!format!("{all:?}").contains("canary"));
    let seen = all.iter().find(|s| s.name == stopped.name).unwrap();
    assert_eq!(seen.state, RunState::Stopped);
    assert_eq!(c.runtime().env("REDIS_PASSWORD").await.unwrap().unwrap().expose(), "canary");
    assert_eq!(c.runtime().env("NONE").await.unwrap(), None);
}
