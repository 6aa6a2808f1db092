//! `backup verify`.

use std::collections::BTreeSet;

use backup_core::catalog::{BackupState, Entry, Filter, VerifyLevel};
use backup_core::engine::VerifyRequest;
use backup_core::{BackupId, ServiceName};

use crate::context::{Context, Done, Session};
use crate::error::CliError;
use crate::moment::{AT_HELP, At};
use crate::render::report;

/// Prove that backups are what they were
///
/// By default the newest backup of every service. Each result is noted beside the backup: a damaged one no longer counts
/// for anything until a later verification, at least as deep, finds it right.
///
/// Levels: `stored` compares the SHA-256 of the stored files; `content` also decodes everything, compares it with what
/// was captured and checks the format; `restore` also restores into scratch and counts.
///
/// Backups of the old scripts are verified only if they are named: by their format, as nothing was recorded of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup verify                               the newest of each service
  backup verify redis --level restore         a test restore
  backup verify --all --level stored          everything in the store, cheaply
  backup verify redis/daily/20260309_043820   this one

Exit codes: 0 nothing wrong · 5 damage found · 1 or 3 some could not be verified · 4 nothing to verify")]
pub(crate) struct Args {
    /// Only these services, or backups as SERVICE/INTERVAL/TIMESTAMP
    #[arg(value_name = "SERVICE")]
    what: Vec<String>,

    /// How deep: stored, content or restore
    #[arg(short, long, default_value = "content")]
    level: VerifyLevel,

    /// Every backup, not only the newest
    #[arg(short, long, conflicts_with = "at")]
    all: bool,

    #[arg(long, value_name = "WHEN", help = AT_HELP)]
    at: Option<At>,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let (services, mut ids) = self.parse()?;
        let session = cx.session().await?;
        session.check_services(services.iter().chain(ids.iter().map(|id| &id.service)))?;
        let mut request = VerifyRequest::new(self.level);
        request.all = self.all;
        match &self.at {
            Some(At::Exactly(id)) => ids.push(id.clone()),
            Some(At::Moment(at)) => {
                let chosen = newest_until(cx, &session, &services, *at).await?;
                if chosen.is_empty() {
                    return Err(CliError::nothing(format!("there is no backup at or before {at}")));
                }
                ids.extend(chosen);
            }
            None => {}
        }
        request.services = if ids.is_empty() {
            services
        } else {
            let services: BTreeSet<_> = ids.iter().map(|id| id.service.clone()).collect();
            services.into_iter().collect()
        };
        request.ids.clone_from(&ids);
        request.cancel = cx.interrupt.graceful();
        let report = session.engine.verify(&request).await?;
        let done = |id: &&BackupId| report.steps.iter().any(|s| s.id.as_ref() == Some(*id));
        if let Some(missing) = ids.iter().find(|id| !done(id)) {
            return Err(CliError::nothing(format!("there is no backup {missing}")));
        }
        let asked = if request.services.is_empty() {
            session.plan().services.keys().cloned().collect()
        } else {
            request.services
        };
        for service in asked.iter().filter(|s| report.steps.iter().all(|step| step.service != **s)) {
            cx.ui.warn(&format!("{service}: there is no backup to verify"));
        }
        Ok(report::conclude(cx, &report, "verified"))
    }

    fn parse(&self) -> Result<(Vec<ServiceName>, Vec<BackupId>), CliError> {
        let (mut services, mut ids) = (Vec::new(), Vec::new());
        for what in &self.what {
            if what.contains('/') {
                ids.push(what.parse().map_err(|e: backup_core::InvalidId| CliError::usage(e.to_string()))?);
            } else {
                services
                    .push(what.parse().map_err(|e: backup_core::InvalidId| CliError::usage(e.to_string()))?);
            }
        }
        if !services.is_empty() && !ids.is_empty() {
            return Err(CliError::usage("name services or backups, not both"));
        }
        Ok((services, ids))
    }
}

/// The newest committed backup of each service that is not newer than `at`.
async fn newest_until(
    cx: &Context,
    session: &Session,
    services: &[ServiceName],
    at: backup_core::Timestamp,
) -> Result<Vec<BackupId>, CliError> {
    let listing = session.engine.catalog().list(&Filter::default()).await?;
    for error in &listing.errors {
        cx.ui.warn(error);
    }
    let committed = |e: &&Entry| {
        matches!(e.state, BackupState::Good | BackupState::Suspect | BackupState::Damaged { .. })
            && e.id.timestamp <= at
    };
    let names = session.plan().services.keys().filter(|name| services.is_empty() || services.contains(name));
    Ok(names
        .filter_map(|name| listing.of(name).filter(committed).max_by_key(|e| e.id.timestamp))
        .map(|e| e.id.clone())
        .collect())
}
