//! Finding servers among the containers of this host.

use backup_core::runtime::RunState;
use backup_core::{
    AdapterError, DiscoverContext, Discovered, Discovery, LeftOut, SeenContainer, ServiceName,
};

use super::Flavor;

/// Names of images, without registry and tag.
const POSTGRES: [&str; 7] =
    ["postgres", "postgresql", "postgis", "timescaledb", "timescaledb-ha", "pgvector", "supabase-postgres"];
const YUGABYTE: [&str; 2] = ["yugabyte", "yugabyte-standin"];
const LABEL: &str = "com.docker.compose.service";

pub(super) fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
    let mut discovery = Discovery::default();
    for container in &cx.containers {
        let Some(flavor) = flavor(container) else { continue };
        if container.state != RunState::Running {
            discovery.left_out.push(LeftOut {
                what: format!("container {}", container.name),
                why: "is not running: start it, or configure it".to_owned(),
            });
            continue;
        }
        discovery.found.extend(found(container, flavor));
    }
    Ok(discovery)
}

fn flavor(container: &SeenContainer) -> Option<Flavor> {
    let image = container.image.split('@').next().unwrap_or_default();
    let image = image.rsplit('/').next().unwrap_or(image).split(':').next().unwrap_or_default();
    let service = container.labels.get(LABEL).map_or("", String::as_str);
    let named = |names: &[&str]| names.contains(&image);
    if named(&YUGABYTE) || (container.ports.contains(&5433) && service.contains("yugabyte")) {
        return Some(Flavor::Yugabyte);
    }
    let looks = container.env.contains_key("POSTGRES_PASSWORD")
        || container.env.contains_key("POSTGRES_PASSWORD_FILE")
        || container.env.contains_key("PGDATA")
        || ["postgres", "postgresql", "pg"].contains(&service);
    (named(&POSTGRES) || (container.ports.contains(&5432) && looks)).then_some(Flavor::Postgres)
}

fn found(container: &SeenContainer, flavor: Flavor) -> Option<Discovered> {
    let mut settings = toml::Table::new();
    settings.insert("container".to_owned(), container.name.clone().into());
    let product = match flavor {
        Flavor::Postgres => "PostgreSQL",
        Flavor::Yugabyte => {
            settings.insert("flavor".to_owned(), "yugabyte".into());
            "YugabyteDB (YSQL)"
        }
    };
    // Inside of the official images the socket needs no password; it does no harm to have it.
    let mut password = toml::Table::new();
    if container.env.contains_key("POSTGRES_PASSWORD") {
        password.insert("container_env".to_owned(), "POSTGRES_PASSWORD".into());
    } else if let Some(file) = container.env.get("POSTGRES_PASSWORD_FILE") {
        password.insert("container_file".to_owned(), file.expose().to_owned().into());
    } else if container.env.contains_key("YSQL_PASSWORD") {
        password.insert("container_env".to_owned(), "YSQL_PASSWORD".into());
    }
    if !password.is_empty() {
        settings.insert("password".to_owned(), password.into());
    }
    let named = container.labels.get(LABEL).unwrap_or(&container.name);
    let service = ServiceName::new(named.as_str()).or_else(|_| ServiceName::new("postgres"));
    let Ok(service) = service else { return None };
    Some(Discovered {
        service,
        summary: format!("{product} in container {}", container.name),
        settings,
        covers: container.mounts.iter().filter_map(|m| m.host.clone()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use backup_core::Secret;

    use super::*;

    fn container(image: &str, port: u16, env: &[(&str, &str)]) -> SeenContainer {
        SeenContainer {
            name: "app-db-1".to_owned(),
            image: image.to_owned(),
            state: RunState::Running,
            labels: BTreeMap::from([(LABEL.to_owned(), "db".to_owned())]),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), Secret::new(*v))).collect(),
            command: Vec::new(),
            ports: vec![port],
            mounts: Vec::new(),
        }
    }

    #[test]
    fn servers_are_found_by_image_port_and_environment() {
        let of = |image: &str, port, env: &[(&str, &str)]| flavor(&container(image, port, env));
        assert_eq!(of("docker.io/library/postgres:15@sha256:ab", 5432, &[]), Some(Flavor::Postgres));
        assert_eq!(of("registry:5000/postgis/postgis", 5432, &[]), Some(Flavor::Postgres));
        assert_eq!(of("yugabytedb/yugabyte:2.20", 7000, &[]), Some(Flavor::Yugabyte));
        assert_eq!(of("own/image", 5432, &[("POSTGRES_PASSWORD", "x")]), Some(Flavor::Postgres));
        assert_eq!(of("own/image", 5432, &[]), None);
        assert_eq!(of("postgres-exporter", 9187, &[]), None);
    }

    #[test]
    fn the_settings_name_the_password_and_never_hold_it() {
        let mut cx = DiscoverContext::new("/");
        cx.containers = vec![container("postgres:15", 5432, &[("POSTGRES_PASSWORD", "hunter2")])];
        let discovery = discover(&cx).unwrap();
        let [found] = discovery.found.as_slice() else { panic!("one is found") };
        assert_eq!(found.service.as_str(), "db");
        let text = toml::to_string(&found.settings).unwrap();
        assert!(
            text.contains("container_env = \"POSTGRES_PASSWORD\"") && !text.contains("hunter2"),
            "{text}"
        );
        let config: Result<super::super::PostgresConfig, _> = toml::from_str(&text);
        assert!(config.is_ok());
    }
}
