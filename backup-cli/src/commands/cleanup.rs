//! `backup cleanup`.

use std::collections::BTreeSet;

use backup_core::ServiceName;
use backup_core::engine::CleanupItem;
use backup_core::state::RestorePhase;
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::format;
use crate::render::report;
use crate::ui::{BOLD, YELLOW, paint};

/// Remove what restores kept aside, and what interrupted ones left
///
/// What is live stays. Afterwards restores that are live can no longer be undone.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup cleanup --dry-run       what would go; removes nothing
  backup cleanup redis           of one service
  backup cleanup --yes           of every service, without a question")]
pub(crate) struct Args {
    /// Only these services
    services: Vec<ServiceName>,

    /// Show what would go and stop
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        session.check_services(&self.services)?;
        let items = session.engine.plan_cleanup(&self.services).await?;
        let bytes: u64 = items.iter().flat_map(|i| &i.leftovers).filter_map(|l| l.bytes).sum();
        let done = Done::ok().with("restores", items.len()).with("to_free_bytes", bytes);
        if items.is_empty() {
            cx.ui.note("nothing to remove");
            return Ok(done);
        }
        for item in &items {
            let service = session.plan().service(item.journal.service.as_str())?;
            show(cx, item, service.adapter.capabilities().undo);
        }
        if self.dry_run {
            cx.ui.note(&format!("would remove {} (--dry-run)", format::size(bytes)));
            return Ok(done.with("dry_run", true));
        }
        let what = format::count(items.len(), "restore");
        let question = format!("Remove what {what} left ({}), for good?", format::size(bytes));
        if !cx.confirm(&question).await? {
            return Ok(done.with("confirmed", false));
        }
        let services: BTreeSet<ServiceName> = items.into_iter().map(|i| i.journal.service).collect();
        let services: Vec<ServiceName> = services.into_iter().collect();
        let report = session.engine.cleanup(&services, cx.interrupt.graceful()).await?;
        Ok(report::conclude(cx, &report, "cleaned up"))
    }
}

fn show(cx: &Context, CleanupItem { journal, leftovers }: &CleanupItem, can_undo: bool) {
    // One that was undone, or never went live, has nothing to undo.
    let undoable = can_undo && journal.phase == RestorePhase::Switched;
    cx.ui.json(&json!({
        "event": "plan", "verb": "cleanup", "service": journal.service, "backup": journal.backup,
        "phase": journal.phase, "started_at": journal.started_at, "leftovers": leftovers,
        "ends_undo": undoable,
    }));
    let mut out = vec![paint(
        BOLD,
        &format!("the restore of {} of {}", journal.backup, format::time(journal.started_at)),
    )];
    for leftover in leftovers {
        let size = leftover.bytes.map(|b| format!("  {}", format::size(b))).unwrap_or_default();
        out.push(format!("  removes {}{size}", leftover.what));
    }
    if journal.is_half_done() {
        out.push(
            "  was cut short while it went live: it is finished first, and keeps what it puts aside"
                .to_owned(),
        );
    } else if leftovers.is_empty() {
        out.push("  has nothing left but its journal".to_owned());
    }
    if undoable {
        out.push(paint(YELLOW, &format!("  `backup undo {}` is impossible afterwards", journal.service)));
    }
    cx.ui.product(&out.join("\n"));
}
