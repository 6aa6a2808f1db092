//! The server as it is configured, and what it says of itself.

use std::fmt;
use std::time::Duration;

use backup_core::runtime::Patience;
use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext, Secret};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::bolt::{Bolt, Login};
use crate::runtime::{DockerRuntime, ServiceSecret};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);

/// The database of users and databases, which every server has.
pub(super) const SYSTEM: &str = "system";

/// A server as it is configured.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) docker: DockerRuntime,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: Option<ServiceSecret>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Neo4j in container `{}`", self.docker.container())
    }
}

impl Server {
    /// Connects and logs in.
    ///
    /// # Errors
    /// `Unavailable` if it does not answer; `PermissionDenied` if it does not let us in; those of the runtime.
    pub(super) async fn connect(&self, cx: &OpContext) -> Result<Bolt, AdapterError> {
        let password = match &self.password {
            Some(secret) => Some(Box::pin(secret.resolve(cx, Some(&self.docker))).await?),
            None => None,
        };
        self.log_in(cx, password).await
    }

    /// Logs in with the password of the time of the backup that is restored. `None` if nobody knows that.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(super) async fn connect_as_then(&self, cx: &OpContext) -> Result<Option<Bolt>, AdapterError> {
        let Some(secret) = &self.password else { return Ok(None) };
        let Some(password) = Box::pin(secret.resolve_then(cx)).await else { return Ok(None) };
        self.log_in(cx, Some(password)).await.map(Some)
    }

    async fn log_in(&self, cx: &OpContext, password: Option<Secret>) -> Result<Bolt, AdapterError> {
        let address = cx.within(self.docker.endpoint(self.port)).await??;
        let unavailable =
            |what: String| AdapterError::new(AdapterErrorKind::Unavailable, format!("{self} {what}"));
        let stream = match cx.within(timeout(CONNECT, TcpStream::connect(address))).await? {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => {
                return Err(unavailable(format!("does not answer on port {}", self.port)).with_source(e));
            }
            Err(_) => return Err(unavailable(format!("does not answer on port {} in time", self.port))),
        };
        let login = Login { user: self.user.clone(), password };
        Bolt::open(cx, Box::new(stream), self.to_string(), &login).await
    }

    /// Commits a change of each database that is online, of which nothing is ever to be seen.
    ///
    /// # Errors
    /// Those of queries.
    pub(super) async fn take_a_write(&self, cx: &OpContext) -> Result<(), AdapterError> {
        let mut bolt = self.connect(cx).await?;
        for database in databases(cx, &mut bolt).await? {
            if database.is_online() && database.name != SYSTEM {
                // Without a label: the name of one would stay in the store.
                bolt.query(cx, &database.name, "CREATE (n) DELETE n").await?;
            }
        }
        bolt.close(cx).await;
        Ok(())
    }

    /// Waits until it answers, whether it lets us in or not, and until its databases are there again.
    ///
    /// # Errors
    /// `Unavailable` with its last excuse and its last lines, once it has ended, shows nothing new, or the budget is over;
    /// `PermissionDenied` as soon as it answers that.
    pub(super) async fn wait(&self, cx: &OpContext) -> Result<Bolt, AdapterError> {
        let mut patience = Patience::with(&self.docker);
        loop {
            let tried = async {
                let mut bolt = self.connect(cx).await?;
                online(cx, &mut bolt).await?;
                Ok::<_, AdapterError>(bolt)
            };
            match tried.await {
                Err(e) if e.kind() == AdapterErrorKind::Unavailable => patience.after(e).await?,
                done => return done,
            }
            cx.within(sleep(LOOK)).await?;
        }
    }
}

/// Whether every database is as it was asked to be.
///
/// # Errors
/// `Unavailable`, naming one that is not; `Corrupt` for one that the server has given up.
pub(super) async fn online(cx: &OpContext, bolt: &mut Bolt) -> Result<Vec<Database>, AdapterError> {
    let all = databases(cx, bolt).await?;
    if let Some((database, why)) = all.iter().find_map(|d| Some((d, d.failure()?))) {
        let what = format!("database `{}` did not come up, and is not tried again: {why}", database.name);
        return Err(AdapterError::corrupt(what));
    }
    match all.iter().find(|d| d.wanted != d.status) {
        None => Ok(all),
        Some(late) => Err(AdapterError::new(
            AdapterErrorKind::Unavailable,
            format!("database `{}` is {} and shall be {}: {}", late.name, late.status, late.wanted, late.why),
        )),
    }
}

/// One database, as the server lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Database {
    pub(super) name: String,
    pub(super) wanted: String,
    pub(super) status: String,
    why: String,
    /// How it is stored, where the server tells.
    pub(super) store: String,
}

impl Database {
    #[cfg(test)]
    pub(super) fn new(name: &str, status: &str, store: &str) -> Self {
        let [name, status, store] = [name, status, store].map(str::to_owned);
        Self { name, wanted: status.clone(), status, why: String::new(), store }
    }

    pub(super) fn is_online(&self) -> bool {
        self.status == "online"
    }

    /// Why it did not come up, if the server tried to start it and gave up: it does not try again.
    pub(super) fn failure(&self) -> Option<&str> {
        let gave_up = self.wanted == "online" && matches!(self.status.as_str(), "offline" | "dirty");
        Some(self.why.trim()).filter(|why| gave_up && !why.is_empty())
    }
}

/// The databases, by name.
///
/// # Errors
/// `Unsupported` for a member of a cluster: it must be neither stopped nor paused, and its data is not all here.
pub(super) async fn databases(cx: &OpContext, bolt: &mut Bolt) -> Result<Vec<Database>, AdapterError> {
    let rows = match bolt.query(cx, SYSTEM, "SHOW DATABASES YIELD *").await {
        Err(e) if e.kind() == AdapterErrorKind::Unsupported => {
            bolt.query(cx, SYSTEM, "SHOW DATABASES").await?
        }
        rows => rows?,
    };
    // 4.4 calls the message an error.
    let columns = ["name", "requestedStatus", "currentStatus", "statusMessage", "error", "store", "type"];
    let mut all: Vec<Database> = Vec::new();
    for [name, wanted, status, message, error, store, kind] in rows.texts(columns) {
        let why = if message.is_empty() { error } else { message };
        if kind == "composite" {
            continue;
        }
        if all.iter().any(|d| d.name == name) {
            return Err(AdapterError::unsupported(format!(
                "database `{name}` is on several servers: members of a cluster are neither stopped nor paused; back up \
                 with Neo4j's own `database backup`"
            )));
        }
        all.push(Database { name, wanted, status, why, store });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) edition: String,
    pub(super) databases: Vec<Database>,
    /// Its directories, where it tells.
    pub(super) data: Option<String>,
    pub(super) transactions: Option<String>,
    /// The database that queries without a name go to.
    pub(super) home: Option<String>,
}

const DATA: [&str; 2] = ["server.directories.data", "dbms.directories.data"];
const TRANSACTIONS: [&str; 2] =
    ["server.directories.transaction.logs.root", "dbms.directories.transaction.logs.root"];
const HOME: [&str; 2] = ["initial.dbms.default_database", "dbms.default_database"];

impl Facts {
    pub(super) async fn read(cx: &OpContext, bolt: &mut Bolt) -> Result<Self, AdapterError> {
        let components = bolt
            .query(
                cx,
                SYSTEM,
                "CALL dbms.components() YIELD name, versions, edition RETURN versions[0] AS version, edition",
            )
            .await?;
        let [version, edition] =
            components.texts(["version", "edition"]).into_iter().next().unwrap_or_default();
        let databases = databases(cx, bolt).await?;
        // Administrators only; others may not, and then the container's configuration has to tell.
        let settings = match bolt.query(cx, SYSTEM, "SHOW SETTINGS YIELD name, value").await {
            Err(e)
                if matches!(e.kind(), AdapterErrorKind::Unsupported | AdapterErrorKind::PermissionDenied) =>
            {
                bolt.query(cx, SYSTEM, "CALL dbms.listConfig() YIELD name, value RETURN name, value").await
            }
            rows => rows,
        };
        let settings = settings.map(|rows| rows.texts(["name", "value"])).unwrap_or_default();
        let of = |names: [&str; 2]| {
            let found = settings.iter().find(|[name, _]| names.contains(&name.as_str()));
            found.map(|[_, value]| value.clone()).filter(|v| !v.is_empty() && v != "No Value")
        };
        Ok(Self {
            version,
            edition,
            databases,
            data: of(DATA),
            transactions: of(TRANSACTIONS),
            home: of(HOME),
        })
    }
}

/// `5` of `5.26.0`; the versions by year (`2025.01.0`) are alike.
pub(super) fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|n| n.parse().ok()).unwrap_or(5)
}

/// Counts of what the databases hold, from the server's own statistics.
///
/// # Errors
/// Those of queries.
pub(super) async fn evidence(
    cx: &OpContext,
    bolt: &mut Bolt,
    databases: &[Database],
) -> Result<Evidence, AdapterError> {
    let mut evidence = Evidence::default();
    for database in databases {
        let name = database.name.as_str();
        if !database.store.is_empty() {
            evidence.notes.insert(format!("store.{name}"), database.store.clone());
        }
        if !database.is_online() {
            evidence.notes.insert(format!("status.{name}"), database.status.clone());
            continue;
        }
        if name == SYSTEM {
            let users = bolt.query(cx, SYSTEM, "SHOW USERS YIELD user").await;
            if let Ok(users) = users {
                evidence.counts.insert("users".into(), users.len() as u64);
            }
            continue;
        }
        for (what, query) in [
            ("nodes", "MATCH (n) RETURN count(n)"),
            ("relationships", "MATCH ()-[r]->() RETURN count(r)"),
            ("labels", "CALL db.labels() YIELD label RETURN count(label)"),
            (
                "relationship_types",
                "CALL db.relationshipTypes() YIELD relationshipType RETURN count(relationshipType)",
            ),
        ] {
            let count = bolt.query(cx, name, query).await?.count().ok_or_else(|| {
                AdapterError::corrupt(format!("database `{name}` does not tell its number of {what}"))
            })?;
            evidence.counts.insert(format!("{what}.{name}"), count);
        }
        for (what, query) in
            [("indexes", "SHOW INDEXES YIELD name"), ("constraints", "SHOW CONSTRAINTS YIELD name")]
        {
            let count = bolt.query(cx, name, query).await?.len() as u64;
            evidence.counts.insert(format!("{what}.{name}"), count);
        }
    }
    Ok(evidence)
}
