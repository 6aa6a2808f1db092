//! `backup resume`.

use backup_core::engine::ResumeRequest;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::exit_code;
use crate::render::report;

/// Start services again that a killed run has left stopped, paused or fenced
///
/// For start-up, after a crash of the host: see docs/watchdog.md. Runs of this program do it themselves for the services
/// that they work on, and while a run interrupts a service, a watchdog of its own does it if the run is killed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup resume    every service that is interrupted, if its run is over

Exit codes: 0 nothing is interrupted any more · 1 or 3 something still is; each line says why")]
pub(crate) struct Args {}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let Some(file) = cx.config_file()? else {
            cx.ui.note("nothing is interrupted: without a configuration, services are left alone");
            return Ok(Done::ok());
        };
        let session = cx.open_at_any_rate(cx.prepare_file(&file)?).await?;
        if session.engine.open_interruptions().await?.is_empty() {
            cx.ui.note("nothing is interrupted");
            return Ok(Done::ok());
        }
        let request = ResumeRequest { cancel: cx.interrupt.graceful(), ..ResumeRequest::default() };
        let report = session.engine.resume(&request).await?;
        let done = report::conclude(cx, &report, "brought back");
        Ok(if report.is_ok() { Done { code: exit_code::OK, ..done } } else { done })
    }
}
