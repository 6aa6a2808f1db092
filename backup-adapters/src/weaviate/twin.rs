//! A server of the same image beside the live one, on a folder of its own: the backup API restores into it. There the
//! data is counted before anything of the live server is touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, Answer, Evidence, OpContext, Secret};
use tokio::time::{Instant, sleep};

use super::api::Api;
use super::census::Schema;
use super::job::{Job, Kind, phase};
use super::server::Server;
use super::{apart, ask, export, tenants};
use crate::runtime::DockerRuntime;
use crate::runtime::docker::{Network, Purpose, Twin, TwinChange};

/// Where it sees its folder.
const INSIDE: &str = "/restore";
/// Its parts: the server's data, and the backup.
pub(super) const DATA: &str = "data";
const BACKUPS: &str = "backups";

/// How long it may take to answer, and to end cleanly.
const START: Duration = Duration::from_secs(180);
const STOP: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);

/// Who may do everything in it, unless the service says who that is.
const ADMIN: &str = "backup-restore";

/// What is restored.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) what: What,
    /// The name of the node that the data shall be of.
    pub(super) run_as: String,
    /// Tenants to make inactive again.
    pub(super) inactive: BTreeMap<String, Vec<String>>,
}

/// What a server gets.
#[derive(Debug, Clone)]
pub(super) enum What {
    Nothing,
    /// Its own backup of this name, which lies in its backup folder.
    Backup(String),
    /// The export in this folder.
    Export(PathBuf),
}

/// Restores the backup in `folder/backups`, or an export, into `folder/data`, counts it, and ends the server cleanly.
///
/// # Errors
/// `Corrupt` if the server cannot restore it; those of the engine.
pub(super) async fn load(
    server: &Server,
    cx: &OpContext,
    folder: &Path,
    load: &Load,
    purpose: Purpose,
) -> Result<Evidence, AdapterError> {
    load_and_ask(server, cx, folder, load, purpose, &[]).await.map(|(evidence, _)| evidence)
}

/// The same; before it ends, the server is asked `questions`.
///
/// # Errors
/// As [`load`]. An answer has an error of its own.
pub(super) async fn load_and_ask(
    server: &Server,
    cx: &OpContext,
    folder: &Path,
    load: &Load,
    purpose: Purpose,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    let Some(docker) = &server.container else {
        return Err(AdapterError::unsupported("a server for a test restore needs `container`"));
    };
    if !docker.shares_files() {
        return Err(AdapterError::unsupported(
            "the Docker engine is on another host and sees no folder of this one",
        ));
    }
    phase(cx, "starting a server of the same image");
    let key = Secret::new(uuid::Uuid::new_v4().simple().to_string());
    let mut change = TwinChange {
        env: environment(docker, cx, &load.run_as, &key).await?,
        mounts: vec![(folder.to_owned(), INSIDE.to_owned())],
        purpose,
        ..TwinChange::default()
    };
    if purpose == Purpose::Scratch {
        let us = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        change.user = Some(format!("{}:{}", us.0, us.1));
        change.image = docker.image_then(cx).await?;
        change.env.extend(apart::settings());
        let modules = cx.within(docker.env("ENABLE_MODULES")).await??;
        change.network = match apart::waits(modules.as_ref().map_or("", |m| m.expose())) {
            None => Network::Isolated,
            Some(module) => {
                cx.warn(format!(
                    "the server of the test restore keeps the service's network: `{module}` does not start without its own"
                ));
                Network::Service
            }
        };
    }
    let twin = cx.within(docker.twin(&cx.run_id, change)).await??;
    let found = run(server, cx, &twin, &key, load, questions).await;
    let found = match found {
        Ok(found) => stop(&twin).await.map(|()| found),
        Err(e) if matches!(e.kind(), AdapterErrorKind::Cancelled | AdapterErrorKind::Timeout) => Err(e),
        Err(e) => {
            let log = twin.log().await;
            Err(AdapterError::new(
                e.kind(),
                format!("the test restore failed; the log of its server ends: {log}"),
            )
            .with_source(e))
        }
    };
    // Not within the budget: it must go.
    let closed = twin.close().await;
    let found = found?;
    closed?;
    Ok(found)
}

async fn stop(twin: &Twin) -> Result<(), AdapterError> {
    let status = twin.stop(STOP).await?;
    if status.killed {
        let what = "the server that restored the backup did not end by itself: its data may be incomplete";
        return Err(AdapterError::new(AdapterErrorKind::Other, what));
    }
    Ok(())
}

async fn run(
    server: &Server,
    cx: &OpContext,
    twin: &Twin,
    key: &Secret,
    load: &Load,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    let api = ready(server, cx, twin, key).await?;
    let classes = load_classes(cx, &api, load).await?;
    let schema = Schema::read(&api, cx).await?;
    if let Some(missing) = classes.iter().find(|c| !schema.classes.contains_key(*c)) {
        return Err(AdapterError::corrupt(format!("collection `{missing}` is not there after the restore")));
    }
    phase(cx, "counting what was restored");
    let evidence = schema.count(&api, cx).await?;
    let answers = ask::all(&api, cx, questions).await;
    tenants::lull(&api, cx, &load.inactive).await?;
    Ok((evidence, answers))
}

async fn load_classes(cx: &OpContext, api: &Api, load: &Load) -> Result<Vec<String>, AdapterError> {
    let id = match &load.what {
        What::Nothing => return Ok(Vec::new()),
        What::Backup(id) => id,
        What::Export(folder) => {
            phase(cx, "the server gets the objects");
            return export::load(api, cx, folder).await;
        }
    };
    phase(cx, "the server restores the backup");
    let job = Job { backend: super::server::FOLDER, id: id.clone(), kind: Kind::Restore };
    let classes = job.start(api, cx).await?;
    job.wait(api, cx, None).await?;
    Ok(classes.into_iter().collect())
}

async fn ready(server: &Server, cx: &OpContext, twin: &Twin, key: &Secret) -> Result<Api, AdapterError> {
    let until = Instant::now() + START;
    loop {
        let asked = async {
            let address = twin.runtime().endpoint(server.port).await?;
            let api = Api::new(
                format!("http://{address}"),
                "the server of the test restore".to_owned(),
                Some(key),
            )?;
            let answer = api.once(cx, reqwest::Method::GET, "/v1/.well-known/ready", None).await?;
            match answer.is_success() {
                true => Ok(api),
                false => Err(api.refused("/v1/.well-known/ready", &answer)),
            }
        };
        match cx.within(asked).await? {
            Ok(api) => return Ok(api),
            Err(e) if Instant::now() > until => return Err(e),
            Err(_) => {}
        }
        cx.within(sleep(LOOK)).await?;
    }
}

/// Its environment: that of the service, but alone, on its own folder, and with a key of ours.
async fn environment(
    docker: &DockerRuntime,
    cx: &OpContext,
    node: &str,
    key: &Secret,
) -> Result<Vec<(String, Option<Secret>)>, AdapterError> {
    let of = async |name: &str| -> Result<String, AdapterError> {
        let value = cx.within(docker.env(name)).await??;
        Ok(value.map(|v| v.expose().to_owned()).unwrap_or_default())
    };
    let first = |list: &str| list.split(',').map(str::trim).find(|u| !u.is_empty()).map(str::to_owned);
    // Somebody who is the administrator of the live server, too: what the role is given to stays written down.
    let admin = match first(&of("AUTHORIZATION_RBAC_ROOT_USERS").await?) {
        Some(user) => user,
        None => first(&of("AUTHORIZATION_ADMINLIST_USERS").await?).unwrap_or_else(|| ADMIN.to_owned()),
    };
    let set = |name: &str, value: &str| (name.to_owned(), Some(Secret::new(value)));
    let mut env = vec![
        set("PERSISTENCE_DATA_PATH", &format!("{INSIDE}/{DATA}")),
        set("BACKUP_FILESYSTEM_PATH", &format!("{INSIDE}/{BACKUPS}")),
        set("ENABLE_MODULES", &modules(&of("ENABLE_MODULES").await?)),
        set("AUTHENTICATION_APIKEY_ENABLED", "true"),
        ("AUTHENTICATION_APIKEY_ALLOWED_KEYS".to_owned(), Some(key.clone())),
        set("AUTHENTICATION_APIKEY_USERS", &admin),
        set("AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED", "false"),
        set("AUTHENTICATION_OIDC_ENABLED", "false"),
        set("DISABLE_TELEMETRY", "true"),
    ];
    if of("AUTHORIZATION_RBAC_ENABLED").await? == "true" || of("AUTHORIZATION_ENABLE_RBAC").await? == "true" {
        env.push(set("AUTHORIZATION_RBAC_ROOT_USERS", &admin));
    }
    if of("AUTHORIZATION_ADMINLIST_ENABLED").await? == "true" {
        env.push(set("AUTHORIZATION_ADMINLIST_USERS", &admin));
    }
    if !node.is_empty() {
        env.push(set("CLUSTER_HOSTNAME", node));
    }
    // It must not meet the live server.
    for name in ["CLUSTER_JOIN", "RAFT_JOIN", "RAFT_BOOTSTRAP_EXPECT", "CLUSTER_ADVERTISE_ADDR"] {
        env.push((name.to_owned(), None));
    }
    Ok(env)
}

/// The modules of the service, and for backups the one that reads a folder. With another one, this server would find the
/// live one's bucket, and mark what that just writes there as canceled, as it does at its start where
/// ENABLE_CLEANUP_UNFINISHED_BACKUPS is set (1.35). Nor does it report its use to somebody's bucket.
fn modules(live: &str) -> String {
    let known = |m: &&str| m.is_empty() || m.starts_with("backup-") || m.starts_with("usage-");
    let others = live.split(',').map(str::trim).filter(|m| !known(m));
    others.chain([super::server::MODULE]).collect::<Vec<_>>().join(",")
}

/// The folders below `folder`.
pub(super) fn parts(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join(DATA), folder.join(BACKUPS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_meet_the_bucket_of_the_live_server() {
        assert_eq!(modules(""), "backup-filesystem");
        assert_eq!(modules("backup-filesystem"), "backup-filesystem");
        assert_eq!(
            modules("backup-s3, text2vec-openai ,,offload-s3,usage-s3"),
            "text2vec-openai,offload-s3,backup-filesystem"
        );
    }
}
