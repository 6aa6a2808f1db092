//! Test restores of dumps in a server of their own: a container of the service's image that reaches nothing, has little of the host,
//! and is thrown away. The live server has nothing to do with it.

use std::path::PathBuf;
use std::time::Duration;

use backup_core::runtime::ServiceRuntime as _;
use backup_core::{
    AdapterError, AdapterErrorKind, Event, Leftover, Metadata, OpContext, RestorePlan, RestoreSource,
    RestoreTarget, Secret, SpaceNeed, StepToken,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::facts::staged_suffix;
use super::format::DumpFormat;
use super::link::Link;
use super::load::Loader;
use super::restore::{Token, database_of, format_of, list_databases, recorded};
use super::sql::suffixed;
use super::swap::{self, Item, Step};
use super::{Settings, probe};
use crate::runtime::DockerRuntime;
use crate::runtime::docker::{Network, Purpose, Twin, TwinChange};

/// How the images' entry point is called that makes a cluster and starts a server on it.
const ENTRY: &str = "docker-entrypoint.sh";

/// How long it may take to make a cluster, or to recover one, and to answer.
const START: Duration = Duration::from_secs(3600);
const LOOK: Duration = Duration::from_millis(250);

/// Errors that waiting does not change.
const FINAL: [AdapterErrorKind; 3] =
    [AdapterErrorKind::Cancelled, AdapterErrorKind::Timeout, AdapterErrorKind::PermissionDenied];

/// What a server with PostgreSQL's own settings takes, with the programs that load.
const MEMORY: u64 = 512 << 20;

/// Settings of a server that need not survive anything.
const THROWN_AWAY: [&str; 4] =
    ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "autovacuum=off"];

/// What is the live server's business: its files with secrets, where it is, where its WAL goes.
const NOT_OURS: [&str; 6] = [
    "POSTGRES_USER_FILE",
    "POSTGRES_PASSWORD_FILE",
    "POSTGRES_DB_FILE",
    "POSTGRES_INITDB_WALDIR",
    "PGPASSWORD",
    "PGHOST",
];

/// What a test restore remembers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    databases: swap::Plan,
    /// The container of its server, once that is loaded.
    server: Option<String>,
}

fn phase(cx: &OpContext, phase: &str) {
    cx.events.emit(Event::Phase { service: cx.service.clone(), phase: phase.to_owned() });
}

/// Whether a server of its own can be made: the service is in a container whose image makes a cluster as PostgreSQL's does.
pub(super) async fn possible(settings: &Settings, cx: &OpContext) -> Result<bool, AdapterError> {
    let Some(docker) = settings.docker() else { return Ok(false) };
    let (entry, command) = cx.within(docker.started_by()).await??;
    let ours = is_known(&entry, &command);
    if !ours {
        let entry = entry.first().map_or("", String::as_str);
        cx.warn(format!(
            "the test restore has no server of its own: the image is started by `{entry}`, and only `{ENTRY}` is known to make one; \
             dumps are loaded beside the live databases"
        ));
    }
    Ok(ours)
}

fn is_known(entry: &[String], command: &[String]) -> bool {
    let named = entry.first().and_then(|e| e.rsplit('/').next()) == Some(ENTRY);
    named && command.first().is_none_or(|c| c == "postgres" || c.starts_with('-'))
}

pub(super) async fn plan(
    settings: &Settings,
    cx: &OpContext,
    backup: &Metadata,
    target: &RestoreTarget,
) -> Result<RestorePlan, AdapterError> {
    let mut steps = vec!["start a server of the service's image, apart from the live one".to_owned()];
    let (mut databases, mut bytes) = (Vec::new(), 0_u64);
    for artifact in backup.artifacts.iter().filter(|a| a.external.is_none()) {
        let Some(name) = database_of(artifact) else { continue };
        let staged = suffixed(&name, &staged_suffix(&cx.run_id));
        bytes += recorded(artifact).and_then(|d| d.size).unwrap_or(artifact.plain_bytes);
        if format_of(artifact) == DumpFormat::Directory {
            // The dump lies there, too, while it is loaded.
            bytes += artifact.plain_bytes;
        }
        steps.push(format!("load database `{name}` as `{staged}` and compare its rows with the backup"));
        databases.push(Item {
            artifact: artifact.name.to_string(),
            kept: staged.clone(),
            staged,
            new: None,
            old: None,
            name,
        });
    }
    if databases.is_empty() {
        return Err(AdapterError::corrupt("the backup holds no database"));
    }
    let root = match settings.docker() {
        Some(docker) => cx.within(docker.root()).await??,
        None => None,
    };
    let seen = tokio::task::spawn_blocking(move || root.filter(|p| p.is_dir())).await.ok().flatten();
    // Not as one that is thrown away, for which no roles would be made: here that harms nobody, and shows that they can be.
    let databases = swap::Plan { step: Step::Planned, databases, scratch: false };
    Ok(RestorePlan {
        target: target.clone(),
        steps,
        replaces: Vec::new(),
        space: seen.map(|path| SpaceNeed { path, bytes }).into_iter().collect(),
        token: StepToken::new(&Token::Apart(Box::new(Plan { databases, server: None })))?,
    })
}

pub(super) async fn stage(
    settings: &Settings,
    cx: &OpContext,
    mut plan: Plan,
    target: &RestoreTarget,
    source: &RestoreSource,
) -> Result<Plan, AdapterError> {
    let RestoreTarget::Scratch(scratch) = target else {
        return Err(AdapterError::unsupported("a server of its own is for test restores"));
    };
    let twin = start(settings, cx, None).await?;
    let loaded = async {
        let link = ready(settings, cx, &twin).await?;
        phase(cx, "loading the databases");
        Loader { settings, link: &link, source }.all(&mut plan.databases).await?;
        list_databases(&scratch.dir, &plan.databases.databases, Some(twin.runtime().container())).await
    };
    match loaded.await {
        Ok(()) => {
            plan.databases.step = Step::Staged;
            plan.server = Some(twin.leave().container().to_owned());
            Ok(plan)
        }
        Err(e) => {
            // The first error tells more; what is left carries the run.
            if let Err(second) = twin.close().await {
                tracing::debug!(%second, "the server of a test restore was left");
            }
            Err(e)
        }
    }
}

/// Data that is there already, for a server of its own.
pub(super) struct On {
    pub(super) mounts: Vec<(PathBuf, String)>,
    /// Whose it is.
    pub(super) user: String,
    /// Where the server sees it.
    pub(super) data: &'static str,
    /// What is set on the command line, which goes before what is set with the data.
    pub(super) settings: Vec<String>,
}

/// A server with an empty cluster, or on data.
pub(super) async fn start(settings: &Settings, cx: &OpContext, on: Option<On>) -> Result<Twin, AdapterError> {
    let Some(docker) = settings.docker() else {
        return Err(AdapterError::unsupported("a server of its own needs `container`"));
    };
    let set = |name: &str, value: &str| (name.to_owned(), Some(Secret::new(value)));
    let first = cx.within(docker.env("POSTGRES_USER")).await??;
    let first = first.as_ref().map_or(settings.flavor.user(), |user| user.expose());
    // In an empty cluster the image makes its first user; data has those that it has.
    let user = on.as_ref().and(settings.user.as_deref()).unwrap_or(first);
    let mut env = vec![
        set("POSTGRES_USER", user),
        set("POSTGRES_PASSWORD", &uuid::Uuid::new_v4().simple().to_string()),
        set("POSTGRES_DB", "postgres"),
    ];
    env.extend(NOT_OURS.map(|name| (name.to_owned(), None)));
    let (_, theirs) = cx.within(docker.started_by()).await??;
    let mut more = Vec::new();
    let mut change = TwinChange {
        image: docker.image_then(cx).await?,
        purpose: Purpose::Scratch,
        network: Network::None,
        memory: Some(MEMORY),
        ..TwinChange::default()
    };
    if let Some(on) = on {
        env.push(set("PGDATA", on.data));
        (change.mounts, change.user, more) = (on.mounts, Some(on.user), on.settings);
    }
    more.extend(libraries(&theirs).map(|libraries| format!("{LIBRARIES}={libraries}")));
    change.command = Some(command(settings.port(), more));
    change.env = env;
    phase(cx, "starting a server of its own for the test restore");
    cx.within(docker.twin(&cx.run_id, change)).await?
}

fn command(port: u16, more: Vec<String>) -> Vec<String> {
    let settings = THROWN_AWAY.map(str::to_owned).into_iter().chain([format!("port={port}")]).chain(more);
    let options = settings.flat_map(|setting| ["-c".to_owned(), setting]);
    std::iter::once("postgres".to_owned()).chain(options).collect()
}

const LIBRARIES: &str = "shared_preload_libraries";

/// The libraries that the service's own command loads: there are extensions that cannot be made without. Its other settings name
/// files and sizes that are the live server's.
fn libraries(command: &[String]) -> Option<&str> {
    let setting = |argument: &String| {
        let named = argument.strip_prefix("--").or_else(|| argument.strip_prefix("-c")).unwrap_or(argument);
        named.trim_start().replacen('-', "_", 2).starts_with(&format!("{LIBRARIES}="))
    };
    let found = command.iter().rfind(|a| setting(a))?;
    found.split_once('=').map(|(_, libraries)| libraries)
}

/// The way to a server that has started: not to the one that sets the cluster up, which is about to end.
pub(super) async fn ready(settings: &Settings, cx: &OpContext, twin: &Twin) -> Result<Link, AdapterError> {
    let until = Instant::now() + START;
    loop {
        let tried = async {
            let link = Link::to(settings, cx, Some(twin.runtime())).await?;
            probe::refuse_while_set_up(&link).await?;
            Ok::<_, AdapterError>(link)
        };
        let late = match tried.await {
            // What passes while it comes up, and not what says no.
            Err(e) if !FINAL.contains(&e.kind()) => e,
            done => return done,
        };
        if let Some(exit) = cx.within(twin.ended()).await?? {
            let what = format!(
                "the server of the test restore ended with exit code {}; its log ends: {}",
                exit.code.unwrap_or(-1),
                twin.log().await
            );
            return Err(AdapterError::new(AdapterErrorKind::Other, what));
        }
        if Instant::now() > until {
            return Err(late);
        }
        cx.within(sleep(LOOK)).await?;
    }
}

/// The way to the databases that a test restore listed: to its own server, or to the live one.
pub(super) async fn link(
    settings: &Settings,
    cx: &OpContext,
    server: Option<&str>,
) -> Result<Link, AdapterError> {
    let apart = match (settings.docker(), server) {
        (Some(docker), Some(id)) => Some(docker.left_beside(id)),
        _ => None,
    };
    Link::to(settings, cx, apart.as_ref()).await
}

fn docker(settings: &Settings) -> Result<DockerRuntime, AdapterError> {
    settings.docker().ok_or_else(|| AdapterError::unsupported("the service is in no container any more"))
}

pub(super) async fn leftovers(settings: &Settings, plan: &Plan) -> Result<Vec<Leftover>, AdapterError> {
    let Some(id) = &plan.server else { return Ok(Vec::new()) };
    match docker(settings)?.left_beside(id).inspect().await {
        Ok(_) => Ok(vec![Leftover { what: format!("container {id}"), bytes: None }]),
        Err(e) if e.kind() == AdapterErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Not within the budget: it must go.
pub(super) async fn discard(settings: &Settings, cx: &OpContext) -> Result<(), AdapterError> {
    docker(settings)?.reclaim(std::slice::from_ref(&cx.run_id)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn only_the_entry_point_of_the_images_is_known() {
        let known = |entry: &str, command: &str| is_known(&words(entry), &words(command));
        assert!(known("docker-entrypoint.sh", "postgres"));
        assert!(known("/usr/local/bin/docker-entrypoint.sh", "-c shared_buffers=1GB"));
        assert!(!known("/sbin/tini -- docker-entrypoint.sh", "bin/yugabyted start"));
        assert!(!known("docker-entrypoint.sh", "bin/yugabyted start"));
        assert!(!known("/opt/bitnami/scripts/postgresql/entrypoint.sh", "/run.sh"));
        assert!(!known("", "postgres"));
    }

    #[test]
    fn libraries_are_taken_over_and_nothing_else() {
        let of = |text: &str| libraries(&words(text)).map(str::to_owned);
        let expected = Some("timescaledb,pg_cron".to_owned());
        let libraries = "shared_preload_libraries=timescaledb,pg_cron";
        assert_eq!(of(&format!("postgres -c config_file=/x -c {libraries} -c a=b")), expected);
        assert_eq!(of(&format!("-c{libraries}")), expected);
        assert_eq!(of("postgres --shared-preload-libraries=timescaledb,pg_cron"), expected);
        assert_eq!(of("postgres -c shared_buffers=1GB"), None);
        let made = command(5433, vec!["shared_preload_libraries=x".to_owned()]);
        assert_eq!(made.first().map(String::as_str), Some("postgres"));
        assert!(made.contains(&"fsync=off".to_owned()) && made.contains(&"port=5433".to_owned()));
        assert_eq!(made.last().map(String::as_str), Some("shared_preload_libraries=x"));
    }
}
