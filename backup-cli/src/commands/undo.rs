//! `backup undo`.

use backup_core::ServiceName;
use backup_core::state::RestorePhase;
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::format;
use crate::render::report;
use crate::ui::{BOLD, YELLOW, paint};

/// Put back what the newest restore of a service had replaced
///
/// What that restore had brought is kept aside in turn.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup undo redis          after a question
  backup undo redis --yes    at once

Exit codes: 0 put back · 1 failed · 2 it needs --yes, or wrong usage · 4 there is no restore to undo")]
pub(crate) struct Args {
    /// The service
    service: ServiceName,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        session.check_services([&self.service])?;
        let journals = session.engine.state().restores(&self.service)?;
        // One that was interrupted while it went live is finished first, then undone.
        let undoable =
            |p| matches!(p, RestorePhase::Switching | RestorePhase::Switched | RestorePhase::Undoing);
        let Some(journal) = journals.iter().rev().find(|j| undoable(j.phase)) else {
            return Err(CliError::nothing(format!("service `{}` has no restore to undo", self.service)));
        };
        let now = cx.clock.now();
        let since = journal.switched_at.unwrap_or(journal.started_at);
        cx.ui.json(&json!({
            "event": "plan", "verb": "undo", "service": self.service, "backup": journal.backup,
            "restored_at": since, "replaces": journal.plan.replaces,
        }));
        let mut out = vec![paint(BOLD, &format!("undo the restore of {}", journal.backup))];
        out.push(format!("  of {} ({} ago)", format::time(since), format::age(format::since(since, now))));
        out.extend(journal.plan.replaces.iter().map(|r| format!("  {} becomes {} again", r.kept_as, r.what)));
        out.push(paint(YELLOW, &format!("  discards writes since {}", format::clock_time(since, now))));
        cx.ui.product(&out.join("\n"));
        if !cx.confirm(&format!("Undo the restore of `{}` now?", self.service)).await? {
            return Ok(Done::ok().with("confirmed", false));
        }
        let report = session.engine.undo(&self.service, cx.interrupt.graceful()).await?;
        Ok(report::conclude(cx, &report, "put back"))
    }
}
