//! Finding Weaviate among the containers of this host.

use backup_core::runtime::RunState;
use backup_core::{DiscoverContext, Discovered, Discovery, LeftOut, SeenContainer, ServiceName};

use super::PORT;

const COMPOSE_SERVICE: &str = "com.docker.compose.service";
const KEYS: &str = "AUTHENTICATION_APIKEY_ALLOWED_KEYS";

pub(super) fn discover(cx: &DiscoverContext) -> Discovery {
    let mut discovery = Discovery::default();
    for container in cx.containers.iter().filter(|c| is_weaviate(c)) {
        match settings(container) {
            Ok(settings) => {
                let compose = container.labels.get(COMPOSE_SERVICE);
                let name = compose.filter(|c| unique(cx, c)).unwrap_or(&container.name);
                let Ok(service) = ServiceName::new(name.as_str()) else { continue };
                discovery.found.push(Discovered {
                    service,
                    summary: format!(
                        "container `{}` ({}){}",
                        container.name,
                        container.image,
                        form(container)
                    ),
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

fn unique(cx: &DiscoverContext, service: &str) -> bool {
    let has = |c: &&SeenContainer| c.labels.get(COMPOSE_SERVICE).is_some_and(|s| s == service);
    cx.containers.iter().filter(has).count() == 1
}

fn is_weaviate(container: &SeenContainer) -> bool {
    let image = container.image.split('@').next().unwrap_or_default();
    let image = image.rsplit('/').next().unwrap_or(image).split(':').next().unwrap_or_default();
    let service = container.labels.get(COMPOSE_SERVICE).map_or("", String::as_str);
    image == "weaviate"
        || (container.ports.contains(&PORT)
            && service == "weaviate"
            && container.env.contains_key("PERSISTENCE_DATA_PATH"))
}

fn value<'a>(container: &'a SeenContainer, name: &str) -> &'a str {
    container.env.get(name).map_or("", |v| v.expose())
}

/// How it will be captured, where that is not the good way.
fn form(container: &SeenContainer) -> &'static str {
    let has = |module| value(container, "ENABLE_MODULES").split(',').any(|m| m.trim() == module);
    if has(super::server::MODULE) {
        ""
    } else if has(super::s3::MODULE) {
        ", through its bucket, which this host must reach"
    } else {
        ", as an export without users and roles: it lacks the module backup-filesystem"
    }
}

fn settings(container: &SeenContainer) -> Result<toml::Table, String> {
    if container.state != RunState::Running {
        return Err("does not run: start it, or configure it by hand".to_owned());
    }
    let value = |name: &str| value(container, name);
    let mut settings = toml::Table::new();
    settings.insert("container".into(), container.name.as_str().into());
    let keys = value(KEYS);
    // With several keys the variable is none of them.
    if value("AUTHENTICATION_APIKEY_ENABLED") == "true" {
        if keys.is_empty() || keys.contains(',') {
            return Err(
                "has several API keys: configure it by hand, with `api_key` of one that may back up all"
                    .to_owned(),
            );
        }
        let mut secret = toml::Table::new();
        secret.insert("container_env".into(), KEYS.into());
        settings.insert("api_key".into(), secret.into());
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use backup_core::Secret;

    use super::*;

    fn found(image: &str, env: &[(&str, &str)]) -> Discovery {
        let mut cx = DiscoverContext::new("/");
        cx.containers = vec![SeenContainer {
            name: "truthsi-weaviate".into(),
            image: image.into(),
            state: RunState::Running,
            labels: BTreeMap::from([(COMPOSE_SERVICE.into(), "weaviate".into())]),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), Secret::new(*v))).collect(),
            command: Vec::new(),
            ports: vec![PORT],
            mounts: Vec::new(),
        }];
        discover(&cx)
    }

    #[test]
    fn containers_are_found_and_keys_only_pointed_to() {
        let modules = ("ENABLE_MODULES", "text2vec-openai, backup-filesystem");
        let open = found("semitechnologies/weaviate:1.35.2", &[modules]);
        assert_eq!(open.found[0].settings.to_string(), "container = \"truthsi-weaviate\"\n");
        assert_eq!(open.found[0].service.as_str(), "weaviate");
        let on = ("AUTHENTICATION_APIKEY_ENABLED", "true");
        let one = found(
            "cr.weaviate.io/semitechnologies/weaviate:1.35.2@sha256:ab",
            &[modules, on, (KEYS, "hunter2")],
        );
        assert!(one.found[0].settings.to_string().contains(&format!("container_env = \"{KEYS}\"")));
        assert!(!format!("{one:?}").contains("hunter2"));
        let several = found("weaviate", &[modules, on, (KEYS, "hunter2,b")]);
        assert!(several.found.is_empty() && several.left_out[0].why.contains("several"));
        assert!(found("weaviate", &[]).found[0].summary.contains("lacks the module backup-filesystem"));
        assert!(!open.found[0].summary.contains("lacks"));
        let bucket = found("weaviate", &[("ENABLE_MODULES", "backup-s3")]);
        assert!(bucket.found[0].summary.contains("through its bucket"));
        assert!(found("own-image", &[modules, ("PERSISTENCE_DATA_PATH", "/d")]).found.len() == 1);
        assert!(found("own-image", &[modules]).found.is_empty());
    }
}
