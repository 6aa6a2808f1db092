//! `backup prune`.

use backup_core::engine::{PruneRequest, SeriesPlan};
use backup_core::retention::Decision;
use backup_core::{Interval, ServiceName};
use chrono::{DateTime, Utc};
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::format;
use crate::render::report;
use crate::render::table::{self, Column};
use crate::ui::{DIM, GREEN, YELLOW};

/// Delete what the retention of the intervals no longer keeps
///
/// Shows a verdict with its reason for each backup, then asks. Never deletes the newest good backup, the newest one
/// that a test restore proved, what is held or in use, or anything while the store cannot be listed completely.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup prune --dry-run            the verdicts; deletes nothing
  backup prune redis --yes          one service, without a question
  backup prune --legacy             judge the backups of the old scripts, too")]
pub(crate) struct Args {
    /// Only these services
    services: Vec<ServiceName>,

    /// Only this interval
    #[arg(short, long)]
    interval: Option<Interval>,

    /// Judge the backups of the old scripts, too
    #[arg(long)]
    legacy: bool,

    /// Show the verdicts and stop
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        session.check_services(&self.services)?;
        let mut request = PruneRequest::default();
        request.services.clone_from(&self.services);
        request.interval.clone_from(&self.interval);
        request.include_legacy = self.legacy;
        let plans = session.engine.plan_prune(&request).await?;
        let (number, bytes) = plans.iter().fold((0, 0_u64), |(number, bytes), series| {
            (number + series.plan.deletions().count(), bytes.saturating_add(series.plan.freed_bytes()))
        });
        for series in &plans {
            for item in series.plan.items() {
                let mut line = json!(item);
                if let Some(line) = line.as_object_mut() {
                    line.insert("event".to_owned(), json!("plan"));
                    line.insert("verb".to_owned(), json!("prune"));
                }
                cx.ui.json(&line);
            }
        }
        if plans.is_empty() {
            cx.ui.note("no backups yet");
        } else {
            cx.ui.product(&text(&plans, cx.clock.now()));
        }
        let done = Done::ok().with("to_delete", number).with("to_free_bytes", bytes);
        if number == 0 {
            cx.ui.note("nothing to delete");
            return Ok(done);
        }
        let what = format!("{}, {}", format::count(number, "backup"), format::size(bytes));
        if self.dry_run {
            cx.ui.note(&format!("would delete {what} (--dry-run)"));
            return Ok(done.with("dry_run", true));
        }
        if !cx.confirm(&format!("Delete {what}, for good?")).await? {
            return Ok(done.with("confirmed", false));
        }
        request.cancel = cx.interrupt.graceful();
        let report = session.engine.prune(&request).await?;
        Ok(report::conclude(cx, &report, "pruned"))
    }
}

fn text(plans: &[SeriesPlan], now: DateTime<Utc>) -> String {
    use Column::{Left, Right, Text};
    let mut table = table::new(&[
        Left("VERDICT"),
        Left("BACKUP"),
        Right("AGE"),
        Right("SIZE"),
        Left("STATE"),
        Text("REASON"),
    ]);
    for item in plans.iter().flat_map(|p| p.plan.items()) {
        let (word, style) = match item.decision {
            Decision::Keep => ("keep", GREEN),
            Decision::Delete => ("delete", YELLOW),
        };
        table.add_row([
            table::cell(word, style),
            comfy_table::Cell::new(&item.id),
            comfy_table::Cell::new(format::age(format::since(item.id.timestamp.time(), now))),
            comfy_table::Cell::new(format::size(item.size_bytes)),
            comfy_table::Cell::new(item.state.as_str()),
            table::cell(&item.reason, DIM),
        ]);
    }
    table::text(&table)
}
