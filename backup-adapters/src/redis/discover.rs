//! Finding Redis and Valkey among the containers of this host.

use backup_core::runtime::RunState;
use backup_core::{DiscoverContext, Discovered, Discovery, LeftOut, SeenContainer, ServiceName};

use super::PORT;

/// The last part of the names of images that hold a server.
const IMAGES: [&str; 8] = [
    "redis",
    "valkey",
    "redis-stack",
    "redis-stack-server",
    "keydb",
    "redis-server",
    "valkey-server",
    "redis-sentinel",
];

/// Labels by which Compose names a service, and variables that hold or lead to a password.
const COMPOSE_SERVICE: &str = "com.docker.compose.service";
const PASSWORDS: [&str; 6] = [
    "REDIS_PASSWORD",
    "REDIS_PASS",
    "VALKEY_PASSWORD",
    "REDIS_MASTER_PASSWORD",
    "REDISCLI_AUTH",
    "VALKEYCLI_AUTH",
];
const PASSWORD_FILES: [&str; 2] = ["REDIS_PASSWORD_FILE", "VALKEY_PASSWORD_FILE"];

pub(super) fn discover(cx: &DiscoverContext) -> Discovery {
    let mut discovery = Discovery::default();
    for container in &cx.containers {
        if !is_redis(container) {
            continue;
        }
        match settings(container) {
            Ok(settings) => {
                let compose = container.labels.get(COMPOSE_SERVICE);
                let name = compose.filter(|c| unique(cx, c)).unwrap_or(&container.name);
                let Ok(service) = ServiceName::new(name.as_str()) else { continue };
                discovery.found.push(Discovered {
                    service,
                    summary: format!("container `{}` ({})", container.name, container.image),
                    settings,
                    covers: Vec::new(),
                });
            }
            Err(why) => {
                discovery.left_out.push(LeftOut { what: format!("container `{}`", container.name), why });
            }
        }
    }
    discovery
}

/// Whether one Redis alone has this Compose service, so that its name tells it apart.
fn unique(cx: &DiscoverContext, service: &str) -> bool {
    let has = |c: &&SeenContainer| c.labels.get(COMPOSE_SERVICE).is_some_and(|s| s == service);
    cx.containers.iter().filter(has).count() == 1
}

/// The name of an image without registry, folders, tag and digest.
fn base(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split(':').next().unwrap_or(name)
}

fn is_redis(container: &SeenContainer) -> bool {
    IMAGES.contains(&base(&container.image))
}

fn settings(container: &SeenContainer) -> Result<toml::Table, String> {
    if base(&container.image).contains("sentinel") || argument(container, "--sentinel").is_some() {
        return Err("is a Sentinel, which holds no data".to_owned());
    }
    if container.state != RunState::Running {
        return Err("does not run: start it, or configure it by hand".to_owned());
    }
    let mut settings = toml::Table::new();
    settings.insert("container".into(), container.name.as_str().into());
    let own_port = argument(container, "--port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p != 0);
    if argument(container, "--tls-port").is_some() && own_port.is_none() {
        return Err("speaks TLS: configure it by hand, with `tls = true` and `ca`".to_owned());
    }
    if let Some(port) = own_port.filter(|p| *p != PORT) {
        settings.insert("port".into(), i64::from(port).into());
    }
    if let Some((key, value)) = password(container)? {
        let mut secret = toml::Table::new();
        secret.insert(key.into(), value.into());
        settings.insert("password".into(), secret.into());
    }
    Ok(settings)
}

/// Where the container keeps its password. Never the password itself.
fn password(container: &SeenContainer) -> Result<Option<(&'static str, String)>, String> {
    let set = |name: &&&str| container.env.get(**name).is_some_and(|v| !v.expose().is_empty());
    if let Some(name) = PASSWORD_FILES.iter().find(set) {
        let path = container.env.get(*name).map(|p| p.expose().to_owned()).unwrap_or_default();
        return Ok(Some(("container_file", path)));
    }
    if let Some(name) = PASSWORDS.iter().find(set) {
        return Ok(Some(("container_env", (*name).to_owned())));
    }
    let Some(given) = argument(container, "--requirepass").filter(|p| !p.is_empty()) else { return Ok(None) };
    // A shell in the container may put a variable there.
    let variable =
        container.env.iter().find(|(_, value)| value.expose() == given).map(|(name, _)| name.clone());
    let written = given.trim_matches(['"', '\'']).trim_start_matches('$').trim_matches(['{', '}']);
    let named = container.env.contains_key(written).then(|| written.to_owned());
    match variable.or(named) {
        Some(name) => Ok(Some(("container_env", name))),
        None => Err("has its password on its command line: put it where `password` can point to, e.g. \
                     `password = { env = \"REDIS_PASSWORD\" }`, and configure it by hand"
            .to_owned()),
    }
}

/// What follows `name` on the command line, which may be one text for a shell.
fn argument<'a>(container: &'a SeenContainer, name: &str) -> Option<&'a str> {
    let mut words = container.command.iter().flat_map(|word| word.expose().split_whitespace());
    words.find(|w| *w == name).map(|_| words.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use backup_core::Secret;

    use super::*;

    fn container(image: &str, env: &[(&str, &str)], command: &[&str]) -> SeenContainer {
        SeenContainer {
            name: "truthsi-redis".into(),
            image: image.into(),
            state: RunState::Running,
            labels: BTreeMap::from([(COMPOSE_SERVICE.into(), "redis".into())]),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), Secret::new(*v))).collect(),
            command: command.iter().map(|c| Secret::new(*c)).collect(),
            ports: vec![PORT],
            mounts: Vec::new(),
        }
    }

    fn found(containers: Vec<SeenContainer>) -> Discovery {
        let mut cx = DiscoverContext::new("/");
        cx.containers = containers;
        discover(&cx)
    }

    #[test]
    fn containers_are_found_by_their_image() {
        for image in
            ["redis", "redis:7-alpine", "docker.io/bitnami/valkey:8.0@sha256:abc", "localhost:5000/x/redis"]
        {
            let discovery = found(vec![container(image, &[], &["redis-server"])]);
            assert_eq!(discovery.found.len(), 1, "{image}");
            assert_eq!(discovery.found[0].service.as_str(), "redis");
            assert_eq!(discovery.found[0].settings.to_string(), "container = \"truthsi-redis\"\n");
        }
        assert!(found(vec![container("redis-exporter:1", &[], &[])]).found.is_empty());
        let two = found(vec![container("redis", &[], &[]), container("redis", &[], &[])]);
        assert_eq!(two.found[0].service.as_str(), "truthsi-redis");
        let mut stopped = container("redis", &[], &[]);
        stopped.state = RunState::Stopped;
        assert_eq!(found(vec![stopped]).left_out.len(), 1);
        assert_eq!(found(vec![container("bitnami/redis-sentinel:7", &[], &[])]).left_out.len(), 1);
    }

    #[test]
    fn passwords_are_pointed_to_and_never_written() {
        let settings = |env: &[(&str, &str)], command: &[&str]| {
            let discovery = found(vec![container("redis:7", env, command)]);
            assert!(!format!("{discovery:?}").contains("hunter2"));
            discovery.found.first().map(|f| f.settings.to_string())
        };
        let env = settings(&[("REDIS_PASSWORD", "hunter2")], &[]).unwrap();
        assert!(env.contains("container_env = \"REDIS_PASSWORD\""), "{env}");
        let file = settings(&[("REDIS_PASSWORD_FILE", "/run/secrets/r")], &[]).unwrap();
        assert!(file.contains("container_file = \"/run/secrets/r\""), "{file}");
        let shell =
            settings(&[("PW", "hunter2")], &["sh", "-c", "redis-server --requirepass \"$PW\" --port 7000"]);
        let shell = shell.unwrap();
        assert!(shell.contains("container_env = \"PW\"") && shell.contains("port = 7000"), "{shell}");
        let same = settings(&[("PW", "hunter2")], &["redis-server", "--requirepass", "hunter2"]).unwrap();
        assert!(same.contains("container_env = \"PW\""), "{same}");
        assert_eq!(settings(&[], &["redis-server", "--requirepass", "hunter2"]), None);
    }
}
