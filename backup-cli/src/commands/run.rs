//! `backup run`.

use backup_core::engine::BackupRequest;
use backup_core::plan::MANUAL;
use backup_core::{Interval, Outcome, ServiceName};

use crate::context::{Context, Done, Session};
use crate::error::CliError;
use crate::render::report;
use crate::{exit_code, zero};

/// Back up now
///
/// Backs up the services of an interval, each safe from the others' failures, then deletes what its retention no longer
/// keeps, then copies what is missing to the stores of `copies`. A backup counts only when every byte of it was written and described; whatever ends it early leaves the
/// service as it was and the older backups alone.
///
/// Without a configuration: finds the files, .env files and SQLite databases in the current directory, says what it
/// leaves out, and backs them up to ./backups.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup run                           the only interval, or what is in this directory
  backup run hourly                    the services of [intervals.hourly]
  backup run manual --service redis    one service, now; kept until you prune it

Exit codes: 0 all backed up · 1 failed · 3 some failed, the others are safe · 4 nothing to back up
A suspect backup (it holds much less than the ones before it) counts as failed until it is accepted.")]
pub(crate) struct Args {
    /// The interval, e.g. hourly; `manual` always exists and has every service
    interval: Option<Interval>,

    /// Only this service (may be repeated)
    #[arg(short, long = "service", value_name = "SERVICE")]
    services: Vec<ServiceName>,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        cx.refuse_store(
            "a run backs up to [store]",
            "`copies = [\"NAME\"]` copies what it made to other stores, `backup copy --to NAME` does it now",
        )?;
        let session = match cx.config_file()? {
            Some(file) => cx.open_file(&file, crate::context::Opening::Existing).await?,
            None => zero::prepare(cx).await?,
        };
        let interval = self.interval(&session)?;
        let planned = session.plan().interval(interval.as_str())?;
        session.check_services(&self.services)?;
        if planned.services.is_empty() {
            return Err(CliError::nothing(format!("interval `{interval}` has no enabled services")));
        }
        let mut request = BackupRequest::new(interval);
        request.services.clone_from(&self.services);
        request.cancel = cx.interrupt.graceful();
        let mut report = session.engine.back_up(&request).await?;
        // Nobody asked for the configuration's own backup: it is told only if it could not be made.
        report.steps.retain(|s| session.configuration.as_ref() != Some(&s.service) || !s.is_ok());
        let done = report::conclude(cx, &report, "backed up");
        let largest = report.steps.iter().filter(|s| s.outcome == Outcome::Ok).max_by_key(|s| s.plain_bytes);
        if !session.configured
            && done.code == exit_code::OK
            && let Some(step) = largest
        {
            cx.ui.note("next:");
            cx.ui.note("  backup list");
            cx.ui.note("  backup verify");
            cx.ui.note(&format!("  backup restore {} --to ./restored", step.service));
        }
        Ok(done)
    }

    fn interval(&self, session: &Session) -> Result<Interval, CliError> {
        if let Some(interval) = &self.interval {
            return Ok(interval.clone());
        }
        match session.intervals.as_slice() {
            [] => Ok(Interval::new(MANUAL).map_err(backup_core::ConfigError::from)?),
            [one] => Ok(one.clone()),
            several => {
                let names: Vec<&str> = several.iter().map(Interval::as_str).collect();
                Err(CliError::usage(format!("which interval? there are {}", names.join(", ")))
                    .hint(format!("`backup run {}`, or `backup run manual` for every service", names[0])))
            }
        }
    }
}
