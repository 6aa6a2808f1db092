//! Where a server keeps its data: as it says itself, else by its container's environment and configuration.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::runtime::{Inspection, ServiceRuntime};
use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use tokio::task::spawn_blocking;

use super::server::{Facts, Server};

/// Where the public images put things.
const HOME: &str = "/var/lib/neo4j";
const CONFIGURATIONS: [&str; 2] = ["/conf/neo4j.conf", "/var/lib/neo4j/conf/neo4j.conf"];
const MAX_CONF: usize = 1 << 20;
/// The user of the public images.
const USER: u32 = 7474;

/// The directories of a server, on this host, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// As the server calls them.
    pub(super) inside: (PathBuf, PathBuf),
    /// The data directory: `databases`, `dbms`.
    pub(super) data: PathBuf,
    /// The transaction logs, which may be elsewhere.
    pub(super) transactions: PathBuf,
    /// The mounts that hold them: what a container sees of this host.
    pub(super) mounts: (PathBuf, PathBuf),
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Places {
    /// Finds them.
    ///
    /// # Errors
    /// `Unsupported` if they cannot be reached from this host.
    pub(super) async fn find(
        server: &Server,
        cx: &OpContext,
        container: &Inspection,
        facts: Option<&Facts>,
    ) -> Result<Self, AdapterError> {
        let (mut data, mut transactions) = match facts {
            Some(facts) => (facts.data.clone(), facts.transactions.clone()),
            None => (None, None),
        };
        if data.is_none() || transactions.is_none() {
            let env = cx.within(server.docker.settings("NEO4J_", &["NEO4J_AUTH"])).await??;
            let conf = configuration(server, cx).await?;
            let set = |env_name: &str, conf_name: &str| {
                let names = [("server", "_transaction_logs_root"), ("dbms", "_transaction__logs_root")];
                let env_of =
                    |(root, _): (&str, &str)| env.get(&format!("NEO4J_{root}_directories{env_name}"));
                let conf_of = |(root, _): (&str, &str)| conf.get(&format!("{root}.directories{conf_name}"));
                names.into_iter().find_map(env_of).or_else(|| names.into_iter().find_map(conf_of)).cloned()
            };
            data = data.or_else(|| set("_data", ".data"));
            transactions = transactions.or_else(|| set("_transaction_logs_root", ".transaction.logs.root"));
        }
        let inside_data = absolute(data.as_deref().unwrap_or("data"));
        // Below the data directory, unless it is absolute (`GraphDatabaseSettings.transaction_logs_root_path`); 4.4 tells
        // the bare name.
        let inside_tx = inside_data.join(transactions.as_deref().unwrap_or("transactions"));
        let (data, data_mount) = on_host(server, container, &inside_data)?;
        let (transactions, tx_mount) = on_host(server, container, &inside_tx)?;
        let looked = data.clone();
        let owner = spawn_blocking(move || {
            let of = |p: PathBuf| fs::metadata(p).ok().map(|m| (m.uid(), m.gid()));
            of(looked.join("databases")).or_else(|| of(looked)).filter(|(uid, _)| *uid != 0)
        });
        let (uid, gid) = owner.await.ok().flatten().unwrap_or((USER, USER));
        Ok(Self {
            inside: (inside_data, inside_tx),
            data,
            transactions,
            mounts: (data_mount, tx_mount),
            uid,
            gid,
        })
    }

    pub(super) fn user(&self) -> String {
        format!("{}:{}", self.uid, self.gid)
    }

    /// Whether the logs are within the data directory, as they usually are.
    pub(super) fn together(&self) -> bool {
        self.transactions.starts_with(&self.data)
    }
}

/// The tops of what is mounted into a container and can be reached.
pub(super) fn tops(container: &Inspection) -> Vec<PathBuf> {
    container.mounts.iter().filter(|m| !m.read_only).filter_map(|m| m.host.clone()).collect()
}

fn absolute(path: &str) -> PathBuf {
    Path::new(HOME).join(path)
}

fn on_host(
    server: &Server,
    container: &Inspection,
    inside: &Path,
) -> Result<(PathBuf, PathBuf), AdapterError> {
    // In the public images `data` in the server's home is a link to `/data`.
    let linked =
        inside.strip_prefix(Path::new(HOME).join("data")).ok().map(|rest| Path::new("/data").join(rest));
    let found = [Some(inside.to_owned()), linked].into_iter().flatten().find_map(|inside| {
        let innermost = container
            .mounts
            .iter()
            .filter(|m| inside.starts_with(&m.inside))
            .max_by_key(|m| m.inside.components().count())?;
        Some((container.host_path(&inside)?, innermost.host.clone()?))
    });
    found.ok_or_else(|| {
        AdapterError::unsupported(format!(
            "`{}` of {server} cannot be reached from this host: it is in no local volume or folder",
            inside.display()
        ))
    })
}

async fn configuration(server: &Server, cx: &OpContext) -> Result<BTreeMap<String, String>, AdapterError> {
    for path in CONFIGURATIONS {
        match cx.within(server.docker.read_file(Path::new(path), MAX_CONF)).await? {
            Ok(text) => return Ok(parse(&String::from_utf8_lossy(&text))),
            Err(e) if e.kind() == AdapterErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(BTreeMap::new())
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim).filter(|l| !l.starts_with('#'));
    let pairs = lines.filter_map(|l| l.split_once('='));
    pairs.map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned())).collect()
}

/// Neo4j's programs run in containers that get folders of this host.
///
/// # Errors
/// `Unsupported` for an engine that sees none of them.
pub(super) fn same_host(server: &Server) -> Result<(), AdapterError> {
    match server.docker.shares_files() {
        true => Ok(()),
        false => Err(AdapterError::unsupported(format!(
            "the Docker engine of {server} is on another host, and sees no folder of this one"
        ))),
    }
}

/// The state and the mounts of the container.
pub(super) async fn inspect(server: &Server, cx: &OpContext) -> Result<Inspection, AdapterError> {
    cx.within(server.docker.inspect()).await?
}

#[cfg(test)]
mod tests {
    use backup_core::runtime::{Mount, RunState};

    use super::*;

    fn server() -> Server {
        let docker = crate::runtime::DockerRuntime::new("x");
        Server { docker, port: 7687, user: "neo4j".into(), password: None }
    }

    #[test]
    fn the_linked_data_directory_is_found_in_its_volume() {
        let mount = |inside: &str, host: &str| Mount {
            inside: inside.into(),
            host: Some(host.into()),
            read_only: false,
        };
        let mut container = Inspection {
            instance: "c".into(),
            state: RunState::Running,
            image: None,
            labels: BTreeMap::new(),
            mounts: vec![mount("/data", "/v/data"), mount("/tx", "/v/tx")],
        };
        let of = |c: &Inspection, p: &str| on_host(&server(), c, Path::new(p)).ok().map(|(path, _)| path);
        assert_eq!(of(&container, "/var/lib/neo4j/data/transactions"), Some("/v/data/transactions".into()));
        assert_eq!(of(&container, "/tx/logs"), Some("/v/tx/logs".into()));
        assert_eq!(of(&container, "/other"), None);
        container.mounts.push(mount("/var/lib/neo4j/data", "/own"));
        assert_eq!(of(&container, "/var/lib/neo4j/data"), Some("/own".into()));
    }

    #[test]
    fn configurations_are_read_without_comments() {
        let conf = parse("# server.directories.data=/no\n server.directories.data = /yes \n\nx\n");
        assert_eq!(conf.get("server.directories.data").map(String::as_str), Some("/yes"));
        assert_eq!(conf.len(), 1);
    }
}
