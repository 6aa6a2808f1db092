//! Planning a restore, and staging it beside the live databases.

use std::path::{Path, PathBuf};

use backup_core::{
    AdapterError, AdapterErrorKind, ArtifactMeta, Metadata, OpContext, Replaced, RestorePlan, RestoreSource,
    RestoreTarget, SpaceNeed, StepToken,
};
use serde::{Deserialize, Serialize};

use super::capture::{GLOBALS, PROPERTIES};
use super::facts::{Database, ServerFacts, staged_suffix};
use super::format::{DumpFormat, Parser};
use super::link::Link;
use super::load::Loader;
use super::sql::suffixed;
use super::swap::{Item, Plan, Step, drop_database, kept_name};
use super::{Settings, apart, base, dir, scratch, version};
use crate::legacy::LEGACY;
use crate::on_disk::{blocking, failed};

/// In a directory or scratch: what a restore made there.
const LIST: &str = "databases.json";

/// The token of a plan or a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Token {
    Server(Plan),
    Dir(dir::Plan),
    Base(Box<base::Plan>),
    Apart(Box<apart::Plan>),
}

/// Something that a restore made elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Listed {
    /// `server`: the container of a server of its own, if it is in none that is live.
    Database {
        name: String,
        staged: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    File {
        name: String,
        file: PathBuf,
        format: DumpFormat,
    },
    Base {
        data: PathBuf,
    },
}

pub(super) async fn read_list(dir: &Path) -> Result<Vec<Listed>, AdapterError> {
    let path = dir.join(LIST);
    blocking(move || {
        let text = std::fs::read(&path)
            .map_err(|e| AdapterError::io(format!("cannot read `{}`", path.display()), e))?;
        serde_json::from_slice(&text).map_err(|e| {
            AdapterError::corrupt(format!("`{}` is not readable", path.display())).with_source(e)
        })
    })
    .await
}

pub(super) async fn write_list(dir: &Path, list: &[Listed]) -> Result<(), AdapterError> {
    let path = dir.join(LIST);
    let text = serde_json::to_vec_pretty(list)
        .map_err(|e| AdapterError::new(AdapterErrorKind::Other, "cannot write a list").with_source(e))?;
    blocking(move || {
        std::fs::write(&path, text)
            .map_err(|e| AdapterError::io(format!("cannot write `{}`", path.display()), e))
    })
    .await
}

/// Writes down where the databases are that a test restore has loaded.
pub(super) async fn list_databases(
    dir: &Path,
    databases: &[Item],
    server: Option<&str>,
) -> Result<(), AdapterError> {
    let listed = |i: &Item| Listed::Database {
        name: i.name.clone(),
        staged: i.staged.clone(),
        server: server.map(str::to_owned),
    };
    let list: Vec<Listed> = databases.iter().map(listed).collect();
    let made = dir.to_owned();
    blocking(move || std::fs::create_dir_all(&made).map_err(failed("create", &made))).await?;
    write_list(dir, &list).await
}

/// The database that an artifact holds; `None` if it is none. What other programs wrote has no attributes.
pub(super) fn database_of(artifact: &ArtifactMeta) -> Option<String> {
    match attribute(artifact, "content") {
        Some(GLOBALS | PROPERTIES | base::BASE) => None,
        _ => Some(attribute(artifact, "database").unwrap_or(artifact.name.as_str()).to_owned()),
    }
}

pub(super) fn attribute<'a>(artifact: &'a ArtifactMeta, key: &str) -> Option<&'a str> {
    artifact.attributes.get(key).and_then(|v| v.as_str())
}

/// Whether the scripts before this program wrote it.
pub(super) fn is_legacy(artifact: &ArtifactMeta) -> bool {
    artifact.attributes.contains_key(LEGACY)
}

/// The parser of an artifact with a dump of the database `name`.
pub(super) fn parser_of(artifact: &ArtifactMeta, name: &str) -> Parser {
    let parser = Parser::new(format_of(artifact), name);
    if is_legacy(artifact) { parser.confined() } else { parser }
}

pub(super) fn format_of(artifact: &ArtifactMeta) -> DumpFormat {
    match attribute(artifact, "format") {
        Some("custom") => DumpFormat::Custom,
        Some("directory") => DumpFormat::Directory,
        _ => DumpFormat::Plain,
    }
}

pub(super) fn texts(artifact: &ArtifactMeta, key: &str) -> Vec<String> {
    let values = artifact.attributes.get(key).and_then(|v| v.as_array());
    values.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// What metadata.json says of the database of an artifact.
pub(super) fn recorded(artifact: &ArtifactMeta) -> Option<Database> {
    serde_json::from_value(artifact.attributes.get("properties")?.clone()).ok()
}

pub(super) fn of_content<'a>(backup: &'a Metadata, content: &str) -> Option<&'a ArtifactMeta> {
    backup.artifacts.iter().find(|a| attribute(a, "content") == Some(content))
}

/// What speaks against replacing databases of this server, or should be known.
#[derive(Debug, Deserialize)]
struct Doubts {
    recovery: bool,
    may_create: bool,
    slots: Vec<(String, String)>,
    prepared: Vec<String>,
    data_directory: Option<PathBuf>,
}

const DOUBTS: &str = "SELECT json_build_object('recovery', pg_is_in_recovery(),
'may_create', (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user),
'slots', coalesce((SELECT json_agg(json_build_array(database, slot_name)) FROM pg_replication_slots WHERE database IS NOT
 NULL), '[]'),
'prepared', coalesce((SELECT json_agg(DISTINCT database) FROM pg_prepared_xacts), '[]'),
'data_directory', (SELECT setting FROM pg_settings WHERE name = 'data_directory'))";

pub(super) async fn plan(
    settings: &Settings,
    cx: &OpContext,
    backup: &Metadata,
    target: &RestoreTarget,
) -> Result<RestorePlan, AdapterError> {
    if of_content(backup, base::BASE).is_some() {
        return match target {
            RestoreTarget::Dir(path) => dir::plan(cx, backup, target, path).await,
            RestoreTarget::Scratch(scratch) => dir::plan(cx, backup, target, &scratch.dir).await,
            RestoreTarget::Live => base::plan(settings, cx, backup).await,
            _ => Err(AdapterError::unsupported("a base backup cannot be restored there")),
        };
    }
    let scratch = match target {
        RestoreTarget::Dir(path) => return dir::plan(cx, backup, target, path).await,
        RestoreTarget::Live => false,
        RestoreTarget::Scratch(_) if apart::possible(settings, cx).await? => {
            return apart::plan(settings, cx, backup, target).await;
        }
        RestoreTarget::Scratch(_) => true,
        _ => return Err(AdapterError::unsupported("databases cannot be restored there")),
    };
    let link = Link::open(settings, cx).await?;
    let facts = ServerFacts::ask(&link).await?;
    version::refuse_newer(settings, cx, backup, &facts)?;
    let doubts: Doubts = link
        .json(&link.home, DOUBTS)
        .await
        .map_err(|f| f.explain("cannot ask the server about a restore"))?;
    if doubts.recovery {
        let what = "the server is a standby, which takes no data: restore into its primary";
        return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
    }
    if !doubts.may_create {
        let what = format!("role `{}` may not create databases: a restore needs CREATEDB", facts.user);
        return Err(AdapterError::new(AdapterErrorKind::PermissionDenied, what));
    }
    let mut databases = Vec::new();
    let (mut steps, mut replaces, mut bytes) = (Vec::new(), Vec::new(), 0_u64);
    for artifact in &backup.artifacts {
        let Some(name) = database_of(artifact) else { continue };
        if artifact.external.is_some() {
            continue;
        }
        let live = facts.database(&name);
        let item = Item {
            artifact: artifact.name.to_string(),
            staged: suffixed(&name, &staged_suffix(&cx.run_id)),
            kept: kept_name(&name, cx.timestamp),
            new: None,
            old: live.filter(|_| !scratch).map(|d| d.oid),
            name: name.clone(),
        };
        bytes += recorded(artifact).and_then(|d| d.size).unwrap_or(artifact.plain_bytes);
        steps.push(format!(
            "load database `{name}` as `{}` and compare its rows with the backup",
            item.staged
        ));
        if item.old.is_some() {
            if doubts.prepared.contains(&name) && !cx.force {
                let what = format!(
                    "database `{name}` has prepared transactions: end them first (`pg_prepared_xacts`)"
                );
                return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
            }
            for (_, slot) in doubts.slots.iter().filter(|(database, _)| *database == name) {
                steps.push(format!(
                    "(replication slot `{slot}` stays with the old database and must be made anew)"
                ));
            }
            steps.push(format!("end the sessions of `{name}`, rename it to `{}`", item.kept));
            replaces.push(Replaced {
                what: format!("database {name}"),
                kept_as: format!("database {}", item.kept),
                changed_at: None,
            });
        }
        if !scratch {
            steps.push(format!("rename `{}` to `{name}`", item.staged));
        }
        databases.push(item);
    }
    if databases.is_empty() {
        return Err(AdapterError::corrupt("the backup holds no database"));
    }
    let untouched: Vec<&str> = facts
        .databases
        .iter()
        .filter(|d| !d.template && !databases.iter().any(|i| i.name == d.name))
        .map(|d| d.name.as_str())
        .collect();
    if !untouched.is_empty() && !scratch {
        steps.push(format!("(not in the backup and left as they are: {})", untouched.join(", ")));
    }
    let space = space(settings, &link, doubts.data_directory, bytes).await?;
    let plan = Plan { step: Step::Planned, databases, scratch };
    Ok(RestorePlan {
        target: target.clone(),
        steps,
        replaces,
        space,
        token: StepToken::new(&Token::Server(plan))?,
    })
}

/// The room that is needed where the server keeps its data, if that can be seen from here. A server whose disk is full
/// stops: where only the container sees the disk, it is asked.
async fn space(
    settings: &Settings,
    link: &Link,
    data: Option<PathBuf>,
    bytes: u64,
) -> Result<Vec<SpaceNeed>, AdapterError> {
    // On another host the same path would say nothing.
    let Some(inside) = data.filter(|_| settings.container.is_some() || settings.host.is_none()) else {
        return Ok(Vec::new());
    };
    let path = link.cx.within(link.runtime.volume_path(&inside)).await?.ok().flatten();
    let seen =
        tokio::task::spawn_blocking(move || path.filter(|p| p.metadata().is_ok())).await.ok().flatten();
    if let Some(path) = seen {
        return Ok(vec![SpaceNeed { path, bytes }]);
    }
    match scratch::free(link, &inside.display().to_string()).await {
        Some(free) if free < bytes && !link.cx.force => {
            let what = format!(
                "the server has {free} bytes free below `{}`, the restore needs about {bytes}",
                inside.display()
            );
            Err(AdapterError::new(AdapterErrorKind::NoSpace, what))
        }
        _ => Ok(Vec::new()),
    }
}

pub(super) async fn stage(
    settings: &Settings,
    cx: &OpContext,
    plan: &RestorePlan,
    source: &RestoreSource,
) -> Result<Token, AdapterError> {
    match plan.token.get()? {
        Token::Dir(staged) => dir::stage(cx, staged, source).await.map(Token::Dir),
        Token::Base(staged) => Ok(Token::Base(Box::new(base::stage(cx, *staged, source).await?))),
        Token::Apart(staged) => {
            Ok(Token::Apart(Box::new(apart::stage(settings, cx, *staged, &plan.target, source).await?)))
        }
        Token::Server(mut staged) => {
            let link = Link::open(settings, cx).await?;
            let loaded = Loader { settings, link: &link, source }.all(&mut staged).await;
            if let Err(error) = loaded {
                // The first error tells more; what is left is found again by the plan.
                let link = link.calm(std::time::Duration::from_secs(30));
                for item in &staged.databases {
                    if let Err(second) = drop_database(&link, &item.staged).await {
                        tracing::debug!(%second, "A staged database was left.");
                    }
                }
                if let Err(second) = scratch::sweep(settings, &link).await {
                    tracing::debug!(%second, "The files of a dump were left.");
                }
                return Err(error);
            }
            if let RestoreTarget::Scratch(scratch) = &plan.target {
                list_databases(&scratch.dir, &staged.databases, None).await?;
            }
            Ok(Token::Server(Plan { step: Step::Staged, ..staged }))
        }
    }
}
