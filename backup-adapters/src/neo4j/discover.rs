//! Finding Neo4j among the containers of this host.
//!
//! It is only told of: every way of capturing it pauses or stops it, which nobody does who was not asked to.

use backup_core::{DiscoverContext, Discovery, LeftOut, SeenContainer};

pub(super) fn discover(cx: &DiscoverContext) -> Discovery {
    let mut discovery = Discovery::default();
    for container in cx.containers.iter().filter(|c| is_neo4j(c)) {
        discovery.left_out.push(LeftOut {
            what: format!("container `{}`", container.name),
            why: format!(
                "is Neo4j, which is paused or stopped for a backup: configure it by hand, with kind = \"neo4j\", \
                 container = \"{}\"{}",
                container.name,
                password(container)
            ),
        });
    }
    discovery
}

/// By its image, its port, or a label.
fn is_neo4j(container: &SeenContainer) -> bool {
    let name = container.image.split('@').next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or(name);
    let base = name.split(':').next().unwrap_or(name);
    let service = container.labels.get("com.docker.compose.service");
    base == "neo4j"
        || (container.ports.contains(&7687) && container.ports.contains(&7474))
        || service.is_some_and(|s| s == "neo4j")
}

/// Where a password can be read from. Never the password itself.
fn password(container: &SeenContainer) -> String {
    let set = |name: &&str| container.env.get(*name).is_some_and(|v| !v.expose().is_empty());
    match ["NEO4J_PASSWORD"].into_iter().find(set) {
        Some(name) => format!(", password = {{ container_env = \"{name}\" }}"),
        // NEO4J_AUTH holds user and password in one.
        None => ", password = { env = \"NEO4J_PASSWORD\" }".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use backup_core::Secret;
    use backup_core::runtime::RunState;

    use super::*;

    fn container(image: &str, ports: &[u16]) -> SeenContainer {
        SeenContainer {
            name: "graph".into(),
            image: image.into(),
            state: RunState::Running,
            labels: BTreeMap::new(),
            env: BTreeMap::from([("NEO4J_AUTH".to_owned(), Secret::new("neo4j/hunter2"))]),
            command: Vec::new(),
            ports: ports.to_vec(),
            mounts: Vec::new(),
        }
    }

    #[test]
    fn it_is_told_of_and_never_taken() {
        let mut cx = DiscoverContext::new("/");
        cx.containers = vec![
            container("neo4j:5.26-community", &[]),
            container("registry.example/x/graphdb@sha256:ab", &[7474, 7687]),
            container("redis:7", &[6379]),
        ];
        let discovery = discover(&cx);
        assert!(discovery.found.is_empty());
        assert_eq!(discovery.left_out.len(), 2);
        let text = format!("{discovery:?}");
        assert!(text.contains("container = \\\"graph\\\"") && !text.contains("hunter2"), "{text}");
    }
}
