//! `backup copy`.

use backup_core::engine::{CopyAction, CopyPlan, CopyRequest};
use backup_core::{ConfigError, Interval, ServiceName, StoreName};
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::render::report;
use crate::render::table::{self, Column};
use crate::ui::{DIM, GREEN, YELLOW};
use crate::{exit_code, format};

/// Copy good backups to other stores
///
/// Copies byte for byte what is good here, missing there, and would be kept there, newest first; every byte is compared
/// with what was recorded before it counts. Then deletes there what the store's own retention no longer keeps. A backup
/// that is deleted or damaged here stays there; what turns out to be damaged here is noted, and not copied.
///
/// Every run does this by itself for the stores of `copies`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup copy                         to where `copies` says
  backup copy --dry-run               what is missing where; changes nothing
  backup copy --to cloud              everything, to this store
  backup copy --from cloud --to primary --service redis    back again, e.g. onto a new disk

Exit codes: 0 nothing is missing any more · 1 failed · 3 some failed, the others are copied")]
pub(crate) struct Args {
    /// To this store of [stores] (may be repeated); without it, to where `copies` says
    #[arg(long, value_name = "NAME")]
    to: Vec<StoreName>,

    /// From this store, instead of [store], whose name is primary
    #[arg(long, value_name = "NAME")]
    from: Option<StoreName>,

    /// Only this service (may be repeated)
    #[arg(short, long = "service", value_name = "SERVICE")]
    services: Vec<ServiceName>,

    /// Only this interval
    #[arg(short, long)]
    interval: Option<Interval>,

    /// Show what is missing and stop
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        cx.refuse_store("a copy has two ends", "name them with --from and --to")?;
        // The store that is copied from is the one that must be there: on the worst day, [store] is not.
        let session = match (&self.from, cx.config_file()?) {
            (Some(from), Some(file)) => {
                let mut prepared = cx.prepare_file(&file)?;
                prepared.plan = prepared.plan.for_store(from.as_str())?;
                let opened = cx.open(prepared, crate::context::Opening::Existing).await;
                opened.map_err(|e| e.about(&format!("store `{from}`")))?
            }
            (Some(from), None) => {
                let what = format!("unknown store `{from}`: there is no configuration");
                return Err(ConfigError::new(what).into());
            }
            (None, _) => cx.session().await?,
        };
        session.check_services(&self.services)?;
        let request = CopyRequest {
            from: None,
            to: self.to.clone(),
            services: self.services.clone(),
            interval: self.interval.clone(),
            urgent: false,
            cancel: cx.interrupt.graceful(),
        };
        if self.dry_run {
            let plan = session.engine.plan_copy(&request).await?;
            return Ok(show(cx, &plan));
        }
        let report = session.engine.copy(&request).await?;
        Ok(report::conclude(cx, &report, "copied"))
    }
}

fn show(cx: &Context, plan: &CopyPlan) -> Done {
    for error in &plan.errors {
        cx.ui.warn(error);
    }
    for copy in &plan.copies {
        let mut line = json!(copy);
        if let Some(line) = line.as_object_mut() {
            line.insert("event".to_owned(), json!("plan"));
            line.insert("verb".to_owned(), json!("copy"));
        }
        cx.ui.json(&line);
    }
    let left_out = plan.copies.iter().filter(|c| matches!(c.action, CopyAction::LeftOut(_))).count();
    let (number, bytes) = plan
        .missing()
        .fold((0, 0_u64), |(number, bytes), copy| (number + 1, bytes.saturating_add(copy.stored_bytes)));
    if plan.copies.iter().any(|c| c.action != CopyAction::There) {
        cx.ui.product(&text(plan));
    }
    cx.ui.note(&match number {
        0 => "nothing to copy (--dry-run)".to_owned(),
        n => format!("would copy {}, {} (--dry-run)", format::count(n, "backup"), format::size(bytes)),
    });
    let code = match (plan.errors.is_empty() && left_out == 0, number) {
        (true, _) => exit_code::OK,
        (false, 0) => exit_code::FAILED,
        (false, _) => exit_code::PARTIAL,
    };
    Done::code(code)
        .with("dry_run", true)
        .with("from", &plan.from)
        .with("to_copy", number)
        .with("to_copy_bytes", bytes)
        .with("errors", &plan.errors)
}

fn text(plan: &CopyPlan) -> String {
    use Column::{Left, Right, Text};
    let columns = [Left("STORE"), Left("BACKUP"), Right("SIZE"), Left("VERDICT"), Text("REASON")];
    let mut table = table::new(&columns);
    for copy in &plan.copies {
        let (word, style, reason) = match &copy.action {
            CopyAction::Copy => ("copy", GREEN, "missing there"),
            CopyAction::Heal => ("heal", GREEN, "damaged there"),
            CopyAction::NotKept(reason) => ("leave", DIM, reason.as_str()),
            CopyAction::LeftOut(reason) => ("leave", YELLOW, reason.as_str()),
            CopyAction::There => continue,
        };
        table.add_row([
            comfy_table::Cell::new(&copy.to),
            comfy_table::Cell::new(&copy.id),
            comfy_table::Cell::new(format::size(copy.stored_bytes)),
            table::cell(word, style),
            table::cell(reason, DIM),
        ]);
    }
    table::text(&table)
}
