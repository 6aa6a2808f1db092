//! `backup init`.

use std::path::{Path, PathBuf};

use backup_core::config::{Config, StoreConfig};

use crate::context::{Context, Done, Opening};
use crate::error::CliError;
use crate::{scaffold, zero};

/// Write a configuration, unless there is one, and mark its stores
///
/// Looks at the current directory, writes what it finds to backup.toml, with comments, and marks every store, so that a
/// disk that is not mounted is never taken for an empty store. Can be repeated: it never changes a configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup init                                   back up to ./backups
  backup init --store /mnt/backup/myhost        to another disk
  backup init --store s3://my-bucket/myhost     to object storage")]
pub(crate) struct Args {
    /// Where backups go: a path, or a URL
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let existing = match &cx.global.config {
            // The one that was named may be the one to write.
            Some(named) => Some(cx.dir.join(named)).filter(|path| path.exists()),
            None => cx.config_file()?,
        };
        let (file, new) = match existing {
            Some(file) => {
                cx.ui.note(&format!("found the configuration {}", file.display()));
                (file, false)
            }
            None => (self.write(cx).await?, true),
        };
        if !new {
            self.refuse_another_store(&file)?;
        }
        let session = cx.open_file(&file, Opening::Init).await?;
        let plan = session.plan();
        // One that cannot be reached keeps no other from being marked.
        let mut failed = None;
        for store in plan.stores.values().filter(|s| s.name != plan.store_name) {
            if let Err(e) = cx.catalog(&store.store, Opening::Init).await {
                let e = e.about(&format!("store `{}`", store.name));
                if let Some(earlier) = failed.replace(e) {
                    cx.ui.error(&earlier);
                }
            }
        }
        if let Some(e) = failed {
            return Err(e.hint("the others are marked; `backup init` can be repeated"));
        }
        cx.ui.product(&file.display().to_string());
        cx.ui.note("next: read it, then `backup run`");
        Ok(Done::ok()
            .with("config", file)
            .with("new", new)
            .with("store", session.engine.catalog().store().to_string()))
    }

    async fn write(&self, cx: &Context) -> Result<PathBuf, CliError> {
        let store = self.store.as_deref().unwrap_or("./backups");
        let file = cx.dir.join(cx.global.config.as_deref().unwrap_or(Path::new("backup.toml")));
        let url =
            if store.contains("://") { store.to_owned() } else { cx.dir.join(store).display().to_string() };
        let local = StoreConfig::new(url).local_path();
        let excluded = local.into_iter().collect();
        let survey = zero::survey(cx, excluded).await?;
        zero::tell(cx, &survey);
        let state_dir = self.store.is_none().then(|| zero::state_dir(cx)).flatten();
        let text = scaffold::configuration(store, state_dir.as_deref(), &survey)?;
        let unwritable = |e: std::io::Error| {
            CliError::failed(format!("cannot write the configuration `{}`", file.display())).because(&e)
        };
        // Never over a file that appeared meanwhile.
        crate::write::create(&file, &text).map_err(unwritable)?;
        cx.ui.note(&format!("wrote {}", file.display()));
        Ok(file)
    }

    fn refuse_another_store(&self, file: &Path) -> Result<(), CliError> {
        let Some(wanted) = &self.store else { return Ok(()) };
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|e| CliError::usage(format!("cannot read the configuration `{shown}`")).because(&e))?;
        let configured = Config::parse(&text, &shown)?.store.url;
        if configured == *wanted {
            return Ok(());
        }
        Err(CliError::usage(format!("{shown} has the store `{configured}`, not `{wanted}`"))
            .hint("change `url` in its [store] table, then run `backup init` again"))
    }
}
