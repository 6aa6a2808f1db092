//! `backup ebs`: snapshots of EBS volumes.

use std::sync::Arc;

use backup_adapters::ebs::{Ebs, EbsConfig};
use backup_core::engine::BackupRequest;
use backup_core::plan::MANUAL;
use backup_core::{
    AdapterConfig as _, AdapterError, BuildContext, Interval, OpContext, RunId, ServiceName, Timestamp, chain,
};
use clap::Subcommand;
use tempfile::TempDir;

use crate::context::{Context, Done, Opening, Prepared, Written};
use crate::error::{CliError, one_line};
use crate::render::report;
use crate::secrets::Secrets;

mod list;
mod prune;
mod restore;

/// Snapshots of the EBS volumes of an EC2 instance
///
/// They are made as backups of a service of the kind `ebs`: all volumes at one moment, as after a power cut. EC2 completes them
/// later; until then their backup is `pending`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup ebs snapshot                            all volumes of this instance, now
  backup ebs list                                what there is, and how far it is
  backup ebs prune --older-than 7d               what is older, but never the newest of a volume
  backup ebs restore --mount /mnt/data --dry-run what a restore onto this instance would do
  backup ebs restore --mount /mnt/data           do it: a new volume, attached and mounted")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make snapshots now
    Snapshot {
        /// Why: `manual`, `spot-warning`, `daily` or another interval, whose series and retention they belong to
        #[arg(default_value = "manual")]
        reason: String,

        /// Only this service
        #[arg(short, long)]
        service: Option<ServiceName>,
    },
    List(list::List),
    Prune(prune::Prune),
    Restore(restore::Restore),
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        match &self.what {
            What::Snapshot { reason, service } => snapshot(cx, reason, service.as_ref()).await,
            What::List(list) => list.run(cx).await,
            What::Prune(prune) => prune.run(cx).await,
            What::Restore(restore) => restore.run(cx).await,
        }
    }
}

async fn snapshot(cx: &Context, reason: &str, service: Option<&ServiceName>) -> Result<Done, CliError> {
    cx.refuse_store("snapshots are kept in the catalogue of [store]", "leave it out")?;
    let prepared = prepare(cx)?;
    let names: Vec<ServiceName> =
        services(&prepared.written, service)?.into_iter().map(|(name, _)| name).collect();
    let interval = if reason == "spot-warning" { "spot" } else { reason };
    let interval = Interval::new(interval).map_err(backup_core::ConfigError::from)?;
    let session = cx.open(prepared, Opening::Existing).await?;
    let planned = session.plan().intervals.get(&interval);
    let missing = |name: &&ServiceName| planned.is_none_or(|i| !i.services.contains(name));
    if interval.as_str() != MANUAL
        && let Some(name) = names.iter().find(missing)
    {
        return Err(CliError::usage(format!("interval `{interval}` has no service `{name}`")).hint(format!(
            "write [intervals.{interval}] services = [\"{name}\"], or make a manual one: `backup ebs snapshot`"
        )));
    }
    let mut request = BackupRequest::new(interval);
    // The configuration is part of every run: maybe this is the only one that the host ever makes.
    request.services = names.into_iter().chain(session.configuration.clone()).collect();
    request.cancel = cx.interrupt.graceful();
    let mut report = session.engine.back_up(&request).await?;
    report.steps.retain(|s| session.configuration.as_ref() != Some(&s.service) || !s.is_ok());
    let done = report::conclude(cx, &report, "backed up");
    if report.is_ok() {
        cx.ui.note("EC2 completes them in the background: `backup ebs list` tells how far they are");
    }
    Ok(done)
}

/// The configuration, without its store: that may be on a volume that is still to be restored.
fn prepare(cx: &Context) -> Result<Prepared, CliError> {
    let file = cx.config_file()?.ok_or_else(|| {
        CliError::usage("there is no configuration")
            .hint("`backup bootstrap STORE` gets it from a store, `backup init` writes a new one")
    })?;
    cx.prepare_file(&file)
}

/// The services of the kind, or that one.
pub(super) fn services(
    written: &Written,
    only: Option<&ServiceName>,
) -> Result<Vec<(ServiceName, Ebs)>, CliError> {
    let all = written.config.services.iter();
    let wanted = all.filter(|(name, s)| s.kind == EbsConfig::KIND && only.is_none_or(|only| only == *name));
    let mut found = Vec::new();
    for (name, service) in wanted {
        let config: EbsConfig = service.settings.clone().try_into().map_err(|e: toml::de::Error| {
            CliError::usage(format!("services.{name} cannot be read: {}", e.message()))
        })?;
        let ebs = Ebs::new(config, &BuildContext::new(name.clone(), &written.base))?;
        found.push((name.clone(), ebs));
    }
    if found.is_empty() {
        let what = match only {
            Some(name) => format!("`{name}` is no configured service of the kind `ebs`"),
            None => "no service of the kind `ebs` is configured".to_owned(),
        };
        return Err(CliError::usage(what).hint(
            "write, e.g.: [services.ebs] kind = \"ebs\", name_prefix = \"TruthSI\", tags = { Project = \"truth-si\" }",
        ));
    }
    Ok(found)
}

/// Exactly one service.
fn one(written: &Written, only: Option<&ServiceName>) -> Result<(ServiceName, Ebs), CliError> {
    let mut all = services(written, only)?;
    if all.len() > 1 {
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        return Err(CliError::usage(format!("which service? there are {}", names.join(", ")))
            .hint(format!("--service {}", names[0])));
    }
    all.pop().ok_or_else(|| CliError::usage("no service of the kind `ebs` is configured"))
}

/// The circumstances of a call of the adapter that is no backup. The folder goes with it.
pub(super) fn operation(
    cx: &Context,
    service: &ServiceName,
    store_id: &str,
) -> Result<(OpContext, TempDir), CliError> {
    let spool =
        tempfile::tempdir().map_err(|e| CliError::failed("cannot make a temporary folder").because(&e))?;
    let now = cx.clock.now();
    let (run, at) = (RunId::generate(now), Timestamp::new(now));
    let mut operation = OpContext::new(service.clone(), run, at, spool.path(), Arc::clone(&cx.clock));
    operation.secrets = Arc::new(Secrets);
    operation.cancel = cx.interrupt.graceful();
    store_id.clone_into(&mut operation.store_id);
    Ok((operation, spool))
}

fn failed(e: &AdapterError) -> CliError {
    let error = CliError::failed(chain(e));
    match backup_core::advice(e) {
        Some(help) => error.hint(one_line(help)),
        None => error,
    }
}
