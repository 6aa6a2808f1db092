//! `backup bootstrap`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backup_core::ServiceName;
use backup_core::catalog::{Catalog, Entry, Filter};
use backup_core::config::{Config, ServiceConfig, StoreConfig};
use backup_core::engine::{RestoreRequest, Selector};
use serde::Serialize;
use serde_json::json;

use self::content::{Content, Found, Here};

use crate::configuration;
use crate::context::{Context, Done, Opening, PLACES, Prepared};
use crate::error::CliError;
use crate::moment::{AT_HELP, At};
use crate::render::report;
use crate::secrets::missing;
use crate::{exit_code, format};

mod content;
mod text;

/// Prepare an empty machine for `backup recover`, from nothing but the store
///
/// Every run keeps the configuration and the Compose files that it names in the store. This puts them back where they were,
/// says what the store has of each service, and what this machine still lacks. Then `backup recover` does the rest. What is
/// there already and differs is kept aside.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup bootstrap /mnt/data/backups        from a disk that is mounted there
  backup bootstrap s3://bucket/host         from object storage; credentials as the provider's tools take them
  backup bootstrap /mnt/data/backups -n     what it would do; changes nothing

Exit codes: 0 ready for `backup recover` · 1 failed · 2 it needs --yes, or wrong usage · 4 the store has no configuration")]
pub(crate) struct Args {
    /// Where the backups are: a path, or a URL
    store: String,

    /// What else the store wants to know, as below [store.options]; may be repeated
    #[arg(short, long = "option", value_name = "KEY=VALUE", value_parser = option)]
    options: Vec<(String, String)>,

    #[arg(long, value_name = "WHEN", help = AT_HELP)]
    at: Option<At>,

    /// Show what would be done and stop
    #[arg(short = 'n', long)]
    dry_run: bool,
}

fn option(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| "write it as KEY=VALUE".to_owned())
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let store = self.store(cx);
        if store.url.contains("{host}") {
            return Err(CliError::usage(
                "this machine may be called otherwise than the one that is to come back",
            )
            .hint("write its name in place of {host}: the bucket has a prefix for each host"));
        }
        let catalog = cx.catalog(&store, Opening::Existing).await?;
        let (found, content) = self.find(cx, &store, &catalog).await?;
        let has = services(cx, &catalog, &content.config).await?;
        let lacks = lacks(cx, &content).await;
        if cx.ui.is_json() {
            cx.ui.json(&json!({
                "event": "plan", "verb": "bootstrap", "id": found.entry.id, "host": found.metadata.host,
                "as_of": found.metadata.consistent_from, "config": content.path, "files": content.files,
                "services": has, "lacks": lacks,
            }));
        } else {
            cx.ui.product(&text::text(cx, &found, &content, &has));
        }
        for line in &lacks {
            cx.ui.warn(line);
        }
        mind_the_store(cx, &store, &content);
        let written = content.files.iter().filter(|f| f.here != Here::Same).count();
        let done = Done::ok().with("config", &content.path).with("files", &content.files);
        if self.dry_run {
            cx.ui.note("nothing was changed (--dry-run)");
            return Ok(done.with("dry_run", true));
        }
        if written > 0 {
            let question = format!("Write {} now?", format::count(content.files.len(), "file"));
            if !cx.confirm(&question).await? {
                return Ok(done.with("confirmed", false));
            }
            let ended = write(cx, &store, catalog, &found, &content).await?;
            if ended.code != exit_code::OK {
                return Ok(ended);
            }
        } else {
            cx.ui.note("everything is in its place already");
        }
        let found_by_itself = PLACES.iter().any(|place| cx.dir.join(place) == content.path);
        let config =
            if found_by_itself { String::new() } else { format!(" --config {}", content.path.display()) };
        let keys: String =
            cx.global.identity.iter().map(|f| format!(" --identity {}", f.display())).collect();
        cx.ui.note("next:");
        cx.ui.note(&format!(
            "  backup{config} recover{keys} --dry-run    what it will do, and how long it takes"
        ));
        cx.ui.note(&format!("  backup{config} recover{keys}"));
        Ok(done)
    }

    fn store(&self, cx: &Context) -> StoreConfig {
        let url = match self.store.contains("://") {
            true => self.store.clone(),
            false => cx.dir.join(&self.store).components().collect::<PathBuf>().display().to_string(),
        };
        StoreConfig { options: self.options.iter().cloned().collect(), ..StoreConfig::new(url) }
    }

    /// The newest backup of the configuration that can be read, and what it holds.
    async fn find(
        &self,
        cx: &Context,
        store: &StoreConfig,
        catalog: &Catalog,
    ) -> Result<(Found, Content), CliError> {
        let name = service()?;
        let listing = catalog.list(&Filter::service(&name)).await?;
        for error in &listing.errors {
            cx.ui.warn(error);
        }
        let all: Vec<&Entry> = listing.of(&name).collect();
        let wanted = |e: &&&Entry| match &self.at {
            Some(At::Exactly(id)) => e.id == *id,
            Some(At::Moment(at)) => e.is_good() && e.id.timestamp <= *at,
            None => e.is_good(),
        };
        let mut last = None;
        for entry in all.iter().filter(wanted) {
            match content::read(cx, store, catalog, entry).await {
                Ok(found) => return Ok(found),
                Err(e) if cx.interrupt.happened() || e.lacks_key => return Err(e),
                Err(e) => {
                    cx.ui.warn(&format!("{} is not taken: {}", entry.id, e.message));
                    last = Some(e);
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let what = match all.len() {
                0 => format!("the store {} has no backup of a configuration", catalog.store()),
                n => format!("none of the {n} backups of the configuration is good and of that time"),
            };
            CliError::nothing(what).hint(
                "`backup init --store …` writes a configuration anew; `backup list` then shows what the store has",
            )
        }))
    }
}

/// `recover` goes by what the configuration says.
fn mind_the_store(cx: &Context, ours: &StoreConfig, content: &Content) {
    let base = content.path.parent().unwrap_or(Path::new("/"));
    // Where this machine will look, by the name that it has.
    let theirs = &content.config.store_here().unwrap_or_else(|_| content.config.store.clone());
    let place = |store: &StoreConfig| {
        let path = store.local_path().or_else(|| (!store.url.contains("://")).then(|| base.join(&store.url)));
        path.map(|p| p.canonicalize().unwrap_or(p))
    };
    let same = match (place(ours), place(theirs)) {
        (Some(a), Some(b)) => a == b,
        _ => ours.url.trim_end_matches('/') == theirs.url.trim_end_matches('/'),
    };
    if !same && content.config.store.url.contains("{host}") {
        cx.ui.warn(&format!(
            "this machine is called otherwise than the host whose backups these are: set `host` in {} to that name",
            content.path.display()
        ));
    } else if !same {
        cx.ui.warn(&format!(
            "the configuration has another store than this one: mount it where that says, or change `url` in {}",
            content.path.display()
        ));
    }
}

fn service() -> Result<ServiceName, CliError> {
    Ok(ServiceName::new(configuration::SERVICE).map_err(backup_core::ConfigError::from)?)
}

/// The service as the backup has it.
fn prepared(cx: &Context, store: &StoreConfig, found: &Found) -> Result<Prepared, CliError> {
    let mut config = Config::new(store.url.clone());
    config.store.options.clone_from(&store.options);
    let paths = found.roots.iter().map(|r| r.path.display().to_string()).collect();
    let settings = configuration::settings(paths);
    config.add_service(service()?, ServiceConfig::new(found.metadata.adapter.clone(), settings))?;
    cx.prepare(config, Path::new("/"), None)
}

/// Puts the files where they were.
async fn write(
    cx: &Context,
    store: &StoreConfig,
    catalog: Catalog,
    found: &Found,
    content: &Content,
) -> Result<Done, CliError> {
    let mut prepared = prepared(cx, store, found)?;
    if let Some(dir) = &content.config.state_dir {
        prepared.state_dir = content.path.parent().unwrap_or(Path::new("/")).join(dir);
    }
    let engine = cx.assemble(prepared, catalog)?.engine;
    let request = RestoreRequest {
        selector: Selector::Exactly(found.entry.id.clone()),
        cancel: cx.interrupt.graceful(),
        ..RestoreRequest::new(service()?)
    };
    let report = engine.restore(&engine.plan_restore(&request).await?).await?;
    Ok(report::conclude(cx, &report, "written"))
}

/// What the store has of each service that the configuration names.
async fn services(
    cx: &Context,
    catalog: &Catalog,
    config: &Config,
) -> Result<BTreeMap<ServiceName, Option<Has>>, CliError> {
    let listing = catalog.list(&Filter::default()).await?;
    for error in &listing.errors {
        cx.ui.warn(error);
    }
    let enabled = config.services.iter().filter(|(_, s)| s.enabled).map(|(name, _)| name);
    let has = |name: &ServiceName| {
        let newest = listing.newest_good(name, None);
        newest
            .or_else(|| listing.of(name).find(|e| e.state == backup_core::catalog::BackupState::Legacy))
            .map(|e| Has {
                id: e.id.to_string(),
                state: e.state.word().to_owned(),
                at: e.id.timestamp.time(),
            })
    };
    Ok(enabled.map(|name| (name.clone(), has(name))).collect())
}

#[derive(Debug, Serialize)]
struct Has {
    id: String,
    state: String,
    at: chrono::DateTime<chrono::Utc>,
}

/// What this machine has to be given before it can be recovered.
async fn lacks(cx: &Context, content: &Content) -> Vec<String> {
    let base = content.path.parent().unwrap_or(Path::new("/"));
    let mut out = missing::of(&content.config, base);
    let mut config = content.config.clone();
    config.file_name = None;
    match cx.prepare(config, base, None) {
        Err(e) => out.push(format!("the configuration cannot be used by this program: {}", e.message)),
        Ok(prepared) => {
            // The Compose files may not be there yet; whether anybody answers is another question.
            if let Err(e) = crate::containers::answers(&prepared.plan).await {
                out.push(e);
            }
        }
    }
    out
}
