//! Working without any configuration: what is in the current directory and in the containers of the Docker engine, to
//! `./backups`.
//!
//! What was found is remembered in the store's state directory, so that it can be restored after it was lost.

use std::path::{Path, PathBuf};

use backup_core::config::Config;
use backup_core::{DiscoverContext, LeftOut, ServiceName};
use serde_json::json;
use toml_edit::{DocumentMut, Item, Table, value};

use crate::containers;
use crate::context::{Context, Opening, Session};
use crate::error::CliError;
use crate::scaffold::{self, Survey};
use crate::ui::{BOLD, DIM, paint};

/// The store, below the current directory.
const STORE: &str = "backups";
/// The state directory, below the store.
const STATE: &str = ".state";
/// What was found, as a configuration, in the state directory.
const REMEMBERED: &str = "discovered.toml";

/// Looks at the current directory and the containers.
pub(crate) async fn survey(cx: &Context, excluded: Vec<PathBuf>) -> Result<Survey, CliError> {
    let (adapters, mut look) = (cx.cli.adapters.clone(), DiscoverContext::new(&cx.dir));
    look.excluded = excluded;
    let unseen = containers::look(&mut look).await;
    let seen = look.containers.clone();
    let found = tokio::task::spawn_blocking(move || Survey::of(adapters.discover_all(look))).await;
    let mut survey =
        found.map_err(|e| CliError::failed("the current directory could not be looked at").because(&e))?;
    survey.left_out.extend(unseen);
    containers::complete(&mut survey, &seen);
    Ok(survey)
}

/// Tells what a survey found.
pub(crate) fn tell(cx: &Context, survey: &Survey) {
    for found in &survey.found {
        let (service, summary) = (&found.service.service, &found.service.summary);
        cx.ui.json(
            &json!({"event": "discovered", "service": service, "kind": found.kind, "summary": summary}),
        );
    }
    for LeftOut { what, why } in &survey.left_out {
        cx.ui.json(&json!({"event": "left-out", "what": what, "why": why}));
    }
    let width = survey.found.iter().map(|f| f.service.service.as_str().len()).max().unwrap_or(0);
    for found in &survey.found {
        cx.ui.note(&format!("  {:width$}  {}", found.service.service, found.service.summary));
    }
    if !survey.left_out.is_empty() {
        cx.ui.note("left out:");
    }
    for LeftOut { what, why } in &survey.left_out {
        cx.ui.note(&format!("  {}", paint(DIM, &format!("{what}: {why}"))));
    }
}

/// Prepares a run: looks, tells, makes the store, remembers what was found.
pub(crate) async fn prepare(cx: &Context) -> Result<Session, CliError> {
    let store = cx.dir.join(STORE);
    refuse_foreign(&store)?;
    let survey = survey(cx, vec![store.clone()]).await?;
    cx.ui.note(&paint(BOLD, &format!("no configuration: looking at {}", cx.dir.display())));
    tell(cx, &survey);
    if survey.found.is_empty() {
        return Err(CliError::nothing("nothing was found here that could be backed up")
            .hint("go to a directory with files in it, or describe your services: `backup init`"));
    }
    let earlier = std::fs::read_to_string(memory(cx)).unwrap_or_default();
    let (text, gone) = remember(&earlier, &survey)?;
    for service in gone {
        cx.ui.warn(&format!("{service}: was backed up before, but is not here any more; its backups stay"));
    }
    let session = cx.open(cx.prepare(parse(&text)?, &cx.dir, None)?, Opening::Init).await?;
    let path = memory(cx);
    crate::write::replace(&path, &text)
        .map_err(|e| CliError::failed(format!("cannot write `{}`", path.display())).because(&e))?;
    Ok(session)
}

/// The configuration that an earlier run without one has left here.
pub(crate) fn remembered(cx: &Context) -> Result<Config, CliError> {
    let path = memory(cx);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(CliError::usage(
                "there is no configuration, and no backups of this directory in ./backups",
            )
            .hint("`backup run` backs this directory up, `backup init` writes a configuration"));
        }
        Err(e) => return Err(CliError::failed(format!("cannot read `{}`", path.display())).because(&e)),
    };
    parse(&text)
}

/// The state directory of an earlier run without configuration, for a configuration that takes its place.
pub(crate) fn state_dir(cx: &Context) -> Option<String> {
    memory(cx).exists().then(|| format!("./{STORE}/{STATE}"))
}

fn memory(cx: &Context) -> PathBuf {
    cx.dir.join(STORE).join(STATE).join(REMEMBERED)
}

fn parse(text: &str) -> Result<Config, CliError> {
    Ok(Config::parse(text, &format!("{STORE}/{STATE}/{REMEMBERED}"))?)
}

/// A folder named `backups` that is somebody else's must be backed up, not used as a store.
fn refuse_foreign(store: &Path) -> Result<(), CliError> {
    let occupied = match std::fs::read_dir(store) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        // A plain file, or a folder that we may not read.
        Err(_) => true,
    };
    if occupied && !store.join("store.json").exists() {
        return Err(CliError::usage("./backups is there already, and it is not a backup store")
            .hint("choose another place: `backup init --store /path/to/store`"));
    }
    Ok(())
}

/// The configuration for what was found. What was known earlier and is gone stays restorable, but takes no part in runs.
fn remember(earlier: &str, survey: &Survey) -> Result<(String, Vec<ServiceName>), CliError> {
    let mut doc = DocumentMut::new();
    doc.insert("state_dir", value(format!("./{STORE}/{STATE}")));
    let mut store = Table::new();
    store.insert("url", value(format!("./{STORE}")));
    doc.insert("store", Item::Table(store));
    let mut services = scaffold::services(&survey.found)?;
    let mut gone = Vec::new();
    // An unreadable memory is worth nothing; the run makes a new one.
    let earlier: DocumentMut = earlier.parse().unwrap_or_default();
    for (name, service) in earlier.get("services").and_then(Item::as_table).into_iter().flatten() {
        if services.contains_key(name) {
            continue;
        }
        let mut service = service.clone();
        if let Some(table) = service.as_table_mut() {
            table.insert("enabled", value(false));
        }
        services.insert(name, service);
        gone.extend(name.parse::<ServiceName>());
    }
    doc.insert("services", Item::Table(services));
    let head = "# What `backup run` found here without a configuration. Written anew by each such run.\n";
    Ok((format!("{head}{doc}"), gone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaffold::Found;
    use backup_core::Discovered;

    fn survey(names: &[&str]) -> Survey {
        let found = names.iter().map(|name| Found {
            kind: "files",
            service: Discovered {
                service: name.parse().unwrap(),
                summary: "3 files".into(),
                settings: "paths = ['.']".parse().unwrap(),
                covers: Vec::new(),
            },
        });
        Survey { found: found.collect(), ..Survey::default() }
    }

    #[test]
    fn what_is_gone_is_remembered_but_not_run() {
        let (first, gone) = remember("", &survey(&["files", "app"])).unwrap();
        assert!(gone.is_empty());
        let (second, gone) = remember(&first, &survey(&["files"])).unwrap();
        assert_eq!(gone, ["app".parse().unwrap()]);
        let config = parse(&second).unwrap();
        let enabled = |name: &str| config.services[&name.parse::<ServiceName>().unwrap()].enabled;
        assert!(enabled("files") && !enabled("app"));
        // Found again, it takes part again.
        let (third, gone) = remember(&second, &survey(&["files", "app"])).unwrap();
        assert!(gone.is_empty() && parse(&third).unwrap().services.values().all(|s| s.enabled));
    }

    #[test]
    fn a_damaged_memory_is_replaced() {
        assert!(parse(&remember("[[[", &survey(&["files"])).unwrap().0).is_ok());
    }
}
