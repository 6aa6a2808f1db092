//! Neo4j's own programs, in a container beside the server's: dumps, loads, checks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backup_core::runtime::ExecCommand;
use backup_core::{AdapterError, OpContext, Secret};
use futures::TryStreamExt;
use tokio::task::spawn_blocking;

use super::places::Places;
use super::proof::Subject;
use super::server::Server;
use crate::runtime::docker::{Helper, HelperSpec, Purpose};

/// Where our configuration and our files are in a helper.
pub(super) const CONF: &str = "/backup/conf";
pub(super) const FILES: &str = "/backup/files";
pub(super) const DATA: &str = "/backup/data";
pub(super) const TRANSACTIONS: &str = "/backup/transactions";

const HEAP: &str = "256m";

/// Says that the licence of the enterprise edition is accepted.
const LICENCE: &str = "NEO4J_ACCEPT_LICENSE_AGREEMENT";

/// Memory of a second server: heap, page cache and what Java takes besides.
pub(super) const MEMORY: u64 = 1536 << 20;

/// What a configuration for a helper says.
#[derive(Debug, Clone)]
pub(super) struct Conf {
    pub(super) major: u32,
    pub(super) data: PathBuf,
    pub(super) transactions: PathBuf,
    /// For a server: it listens within its container only, and asks for no password.
    pub(super) serve: bool,
    /// The database that it makes if there is none.
    pub(super) home: Option<String>,
}

impl Conf {
    fn text(&self) -> String {
        // 4.4 calls most settings otherwise, and both refuse what they do not know unless told not to.
        let new = self.major >= 5;
        let name = |now: &'static str, then: &'static str| if new { now } else { then };
        let mut lines = vec![
            format!("{}={}", name("server.directories.data", "dbms.directories.data"), self.data.display()),
            format!(
                "{}={}",
                name("server.directories.transaction.logs.root", "dbms.directories.transaction.logs.root"),
                self.transactions.display()
            ),
            format!("{}=/tmp/logs", name("server.directories.logs", "dbms.directories.logs")),
            format!("{}=/tmp/run", name("server.directories.run", "dbms.directories.run")),
            // Nothing that a plugin does when a server starts belongs into a check.
            format!("{}=/tmp/plugins", name("server.directories.plugins", "dbms.directories.plugins")),
            format!(
                "{}=false",
                name("server.config.strict_validation.enabled", "dbms.config.strict_validation")
            ),
            format!("{}={HEAP}", name("server.memory.heap.max_size", "dbms.memory.heap.max_size")),
            format!("{}=64m", name("server.memory.pagecache.size", "dbms.memory.pagecache.size")),
        ];
        if self.serve {
            let connector = name("server", "dbms.connector");
            lines.extend([
                "dbms.security.auth_enabled=false".to_owned(),
                format!("{connector}.bolt.enabled=true"),
                format!("{connector}.bolt.listen_address=127.0.0.1:7687"),
                format!("{connector}.http.enabled=false"),
                "dbms.usage_report.enabled=false".to_owned(),
                // Else it waits 10 s for clients that there are none of. A version that does not know it ignores it.
                format!(
                    "{}=100ms",
                    name(
                        "internal.server.bolt.thread_pool_shutdown_wait_time",
                        "dbms.connector.bolt.unsupported_thread_pool_shutdown_wait_time"
                    )
                ),
            ]);
            if let Some(home) = &self.home {
                lines.push(format!(
                    "{}={home}",
                    name("initial.dbms.default_database", "dbms.default_database")
                ));
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    /// Writes it into a folder of its own below `dir`, that any user of a container may read.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) async fn write(self, dir: &Path) -> Result<PathBuf, AdapterError> {
        let name = format!("conf-{}", uuid::Uuid::new_v4().simple());
        let folder = open_folder(dir.join(name)).await?;
        let (path, text) = (folder.join("neo4j.conf"), self.text());
        let written = spawn_blocking(move || {
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        });
        written
            .await
            .unwrap_or_else(|e| Err(e.into()))
            .map_err(|e| AdapterError::io("cannot write a configuration for Neo4j's programs", e))?;
        Ok(folder)
    }
}

/// Makes a folder that any user of a container may write into; the one above it is private.
///
/// # Errors
/// I/O errors.
pub(super) async fn open_folder(path: PathBuf) -> Result<PathBuf, AdapterError> {
    let made = spawn_blocking(move || {
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(path)
    });
    made.await
        .unwrap_or_else(|e| Err(e.into()))
        .map_err(|e| AdapterError::io("cannot make a folder for Neo4j's programs", e))
}

/// A container for Neo4j's programs over the server's own volumes.
///
/// # Errors
/// Those of the runtime.
pub(super) async fn beside(
    server: &Server,
    cx: &OpContext,
    places: &Places,
    major: u32,
    files: &Path,
) -> Result<Helper, AdapterError> {
    let conf = Conf {
        major,
        data: places.inside.0.clone(),
        transactions: places.inside.1.clone(),
        serve: false,
        home: None,
    };
    let conf = conf.write(&cx.spool).await?;
    let mut spec = spec(&places.user());
    spec.mounts = true;
    spec.binds = vec![(conf, CONF.into()), (files.to_owned(), FILES.into())];
    cx.within(server.docker.helper(&cx.run_id, spec)).await?
}

/// A container for Neo4j's programs over other data.
///
/// # Errors
/// Those of the runtime.
pub(super) async fn over(
    server: &Server,
    cx: &OpContext,
    subject: &Subject,
    binds: Vec<(PathBuf, PathBuf)>,
) -> Result<Helper, AdapterError> {
    let transactions = if binds.iter().any(|(_, inside)| inside == Path::new(TRANSACTIONS)) {
        PathBuf::from(TRANSACTIONS)
    } else {
        Path::new(DATA).join("transactions")
    };
    let conf = Conf { major: subject.major, data: DATA.into(), transactions, serve: false, home: None };
    let conf = conf.write(&cx.spool).await?;
    let mut spec = spec(&subject.user);
    spec.image.clone_from(&subject.image);
    spec.memory = Some(MEMORY);
    spec.purpose = subject.purpose;
    spec.binds = binds;
    spec.binds.push((conf, CONF.into()));
    cx.within(server.docker.helper(&cx.run_id, spec)).await?
}

/// What every helper has in common.
pub(super) fn spec(user: &str) -> HelperSpec {
    let env = [("NEO4J_CONF", CONF), ("HEAP_SIZE", HEAP)];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    // The enterprise edition runs nothing before its licence is accepted: what the service's owner accepted holds here, too.
    let keep = vec![LICENCE.to_owned()];
    HelperSpec { user: user.to_owned(), env, keep, ..HelperSpec::default() }
}

/// Runs `neo4j-admin` with `arguments` to its end.
///
/// # Errors
/// With the last lines of its error output; those of the runtime and of [`OpContext::within`].
pub(super) async fn admin(
    helper: &Helper,
    cx: &OpContext,
    arguments: &[String],
) -> Result<i64, AdapterError> {
    let argv = std::iter::once("neo4j-admin".to_owned()).chain(arguments.iter().cloned());
    let mut command = ExecCommand::new(argv).with_deadline(cx.deadline);
    // The image's variables are those of its server.
    command = command.with_env("NEO4J_CONF", Secret::new(CONF)).with_env("HEAP_SIZE", Secret::new(HEAP));
    let run = async {
        let running = helper.exec(command).await?;
        let _printed: Vec<_> = running.stdout.try_collect().await?;
        running.outcome.await
    };
    let outcome = cx.within(run).await??;
    Ok(outcome.status.code.unwrap_or(0))
}

/// The version of the programs in `image`, or in that of the server: what a server that does not run cannot say.
///
/// # Errors
/// Those of the runtime, and `Unsupported` if the program says something else.
pub(super) async fn version(
    server: &Server,
    cx: &OpContext,
    image: Option<String>,
    purpose: Purpose,
) -> Result<String, AdapterError> {
    let (user, keep) = ("7474:7474".to_owned(), vec![LICENCE.to_owned()]);
    let memory = (purpose == Purpose::Scratch).then_some(MEMORY);
    let spec = HelperSpec { user, image, keep, purpose, memory, ..HelperSpec::default() };
    let helper = cx.within(server.docker.helper(&cx.run_id, spec)).await??;
    let run = async {
        let command = ExecCommand::new(["neo4j-admin", "--version"]).with_deadline(cx.deadline);
        let running = helper.exec(command).await?;
        let printed: Vec<_> = running.stdout.try_collect().await?;
        running.outcome.await?;
        Ok(printed.concat())
    };
    let printed = cx.within(run).await;
    helper.close().await?;
    let printed = String::from_utf8_lossy(&printed??).into_owned();
    let number = printed.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    number.map(str::to_owned).ok_or_else(|| {
        AdapterError::unsupported(format!("`neo4j-admin` of {server} does not tell its version"))
    })
}

/// The arguments that dump every database into [`FILES`].
pub(super) fn dump(major: u32, databases: &[String]) -> Vec<Vec<String>> {
    if major >= 5 {
        // One program for all: the server is down meanwhile.
        return vec![
            ["database", "dump", "*"]
                .map(str::to_owned)
                .into_iter()
                .chain([format!("--to-path={FILES}")])
                .collect(),
        ];
    }
    let of = |name: &String| {
        vec!["dump".to_owned(), format!("--database={name}"), format!("--to={FILES}/{name}.dump")]
    };
    databases.iter().map(of).collect()
}

/// The arguments that load a database from [`FILES`].
pub(super) fn load(major: u32, database: &str) -> Vec<String> {
    if major >= 5 {
        let fixed = ["database", "load", database].map(str::to_owned);
        let more = [format!("--from-path={FILES}"), "--overwrite-destination=true".to_owned()];
        return fixed.into_iter().chain(more).collect();
    }
    vec![
        "load".to_owned(),
        format!("--from={FILES}/{database}.dump"),
        format!("--database={database}"),
        "--force".to_owned(),
    ]
}

/// The arguments that check the consistency of a database that was ended cleanly.
pub(super) fn check(major: u32, database: &str) -> Vec<String> {
    if major >= 5 {
        let fixed = ["database", "check", database].map(str::to_owned);
        return fixed.into_iter().chain(["--report-path=/tmp".to_owned()]).collect();
    }
    vec!["check-consistency".to_owned(), format!("--database={database}"), "--report-dir=/tmp".to_owned()]
}
