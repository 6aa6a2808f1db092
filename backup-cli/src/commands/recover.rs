//! `backup recover`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::engine::{
    PlannedRestore, RecoveryAction, RecoveryPlan, RecoveryRequest, RunReport, ServiceRecovery,
};
use backup_core::{Outcome, ServiceName};
use chrono::{DateTime, Utc};
use serde_json::json;

use super::restore;
use crate::context::{Context, Done};
use crate::error::CliError;
use crate::moment::{AT_HELP, At};
use crate::render::drill::against;
use crate::render::report;
use crate::render::table::{self, Column};
use crate::ui::{BOLD, GREEN, RED, YELLOW, paint};
use crate::{exit_code, format};

/// Bring every service of this host back
///
/// Restores what does not hold its data, along `after`, as many at once as the configuration says, and leaves alone what runs and
/// holds data. Shows what it will do, and how long that will take, first. Nothing is deleted: what is replaced is kept aside.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup recover --dry-run                     what would be done, and how long it would take; changes nothing
  backup recover                               do it, after a question
  backup recover --service redis --yes         one service, at once
  backup recover --overwrite redis             redis, too, although it holds data
  backup recover --dry-run --save plan.json    for later: backup recover --plan plan.json

Exit codes: 0 recovered · 1 failed · 2 it needs --yes, or wrong usage · 3 some services failed · 4 nothing to recover")]
pub(crate) struct Args {
    /// Only this service; may be repeated
    #[arg(short, long = "service", value_name = "SERVICE")]
    services: Vec<ServiceName>,

    #[arg(long, value_name = "WHEN", help = AT_HELP)]
    at: Option<At>,

    /// Restore this service although it runs and holds data; may be repeated
    #[arg(long, value_name = "SERVICE")]
    overwrite: Vec<ServiceName>,

    /// Show the plan and stop
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Write the plan to this file
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    save: Option<PathBuf>,

    /// Do what this plan says, or nothing if that is not possible any more
    #[arg(long, value_name = "FILE", conflicts_with_all = ["services", "at", "overwrite", "save"])]
    plan: Option<PathBuf>,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        session.check_services(self.services.iter().chain(&self.overwrite))?;
        let plan = match &self.plan {
            Some(file) => read(&cx.dir.join(file))?,
            None => session.engine.plan_recovery(&self.request()?).await?,
        };
        show(cx, &plan);
        if let Some(file) = &self.save {
            write(&cx.dir.join(file), &plan)?;
        }
        if self.dry_run {
            cx.ui.note("nothing was changed (--dry-run)");
            return Ok(Done::ok().with("dry_run", true));
        }
        if let Some(question) = question(&plan)
            && !cx.confirm(&question).await?
        {
            return Ok(Done::ok().with("confirmed", false));
        }
        let done = session.engine.recover(&plan, cx.interrupt.graceful()).await?;
        if !cx.ui.is_json() && !done.steps.is_empty() && plan.restores().count() > 0 {
            cx.ui.product(&outcome(&plan, &done));
        }
        let kept: Vec<&str> = plan
            .restores()
            .filter(|(_, r)| !r.replaces.is_empty())
            .map(|(s, _)| s.service.as_str())
            .collect();
        let end = report::conclude(cx, &done, "recovered");
        if !kept.is_empty() && end.code != exit_code::NOTHING {
            cx.ui.note("to go back: backup undo SERVICE; when all is well: backup cleanup");
        }
        Ok(end)
    }

    fn request(&self) -> Result<RecoveryRequest, CliError> {
        let at = match &self.at {
            None => None,
            Some(At::Moment(at)) => Some(*at),
            Some(At::Exactly(id)) => {
                return Err(CliError::usage(format!("{id} is one backup: `backup restore` takes it")));
            }
        };
        Ok(RecoveryRequest { services: self.services.clone(), at, overwrite: self.overwrite.clone() })
    }
}

/// What is asked before anything is done; nothing if nothing is to be done.
fn question(plan: &RecoveryPlan) -> Option<String> {
    let restores = plan.restores().count();
    let starts = plan.stack.as_ref().map_or(0, |s| s.starts.len());
    match (restores, starts) {
        (0, 0) => None,
        (0, n) => Some(format!("Start {} now?", format::count(n, "application"))),
        (n, _) => Some(format!("Restore {} now?", format::count(n, "service"))),
    }
}

fn read(file: &Path) -> Result<RecoveryPlan, CliError> {
    let unreadable = |e: &(dyn std::error::Error + 'static)| {
        CliError::usage(format!("`{}` is no plan of this program", file.display())).because(e)
    };
    let text = std::fs::read(file).map_err(|e| unreadable(&e))?;
    serde_json::from_slice(&text).map_err(|e| unreadable(&e))
}

fn write(file: &Path, plan: &RecoveryPlan) -> Result<(), CliError> {
    let failed = |e: &(dyn std::error::Error + 'static)| {
        CliError::failed(format!("cannot write the plan to `{}`", file.display())).because(e)
    };
    let text = serde_json::to_string_pretty(plan).map_err(|e| failed(&e))?;
    crate::write::replace(file, &text).map_err(|e| failed(&e))
}

/// Prints the plan.
fn show(cx: &Context, plan: &RecoveryPlan) {
    if cx.ui.is_json() {
        let mut line = json!({ "event": "plan", "verb": "recover" });
        if let (Some(line), Ok(serde_json::Value::Object(fields))) =
            (line.as_object_mut(), serde_json::to_value(plan))
        {
            line.extend(fields);
        }
        cx.ui.json(&line);
        return;
    }
    let now = cx.clock.now();
    let (todo, all) = (plan.restores().count(), plan.services.len());
    let time = match plan.predicted_ms {
        Some(0) => String::new(),
        Some(ms) => format!(", about {}{}", format::millis(ms), against(ms, plan.target_ms)),
        None => ", in a time that was not measured yet".to_owned(),
    };
    let mut out = vec![paint(BOLD, &format!("recover {todo} of {}{time}", format::count(all, "service")))];
    let stack = plan.stack.clone().unwrap_or_default();
    if let Some(why) = &stack.unknown {
        out.push(format!("{} {why}", paint(YELLOW, "the stack is not known yet:")));
    }
    if !stack.stops.is_empty() {
        out.push(format!("first stop {}: they use the services", stack.stops.join(", ")));
    }
    for service in &plan.services {
        out.push(String::new());
        match &service.action {
            RecoveryAction::Restore(restore) => out.extend(steps(service, restore, now)),
            RecoveryAction::Skip { why } => {
                out.push(format!(
                    "{}  {}: {why}",
                    paint(BOLD, service.service.as_str()),
                    paint(GREEN, "left alone")
                ));
            }
            RecoveryAction::Blocked { why } => {
                out.push(format!(
                    "{}  {}: {why}",
                    paint(BOLD, service.service.as_str()),
                    paint(RED, "BLOCKED")
                ));
            }
        }
    }
    if !stack.starts.is_empty() {
        out.push(String::new());
        out.push(format!("last, if all are back, start {}", stack.starts.join(", ")));
    }
    cx.ui.product(&out.join("\n"));
}

fn steps(service: &ServiceRecovery, restore: &PlannedRestore, now: DateTime<Utc>) -> Vec<String> {
    let after: Vec<&str> = service.after.iter().map(ServiceName::as_str).collect();
    let after = if after.is_empty() { String::new() } else { format!("  after {}", after.join(", ")) };
    let verified = match &restore.verified {
        Some(v) => format!("verified ({}) {} ago", v.level, format::age(format::since(v.at.time(), now))),
        None => "never verified".to_owned(),
    };
    let mut out = vec![
        format!("{}  restore {}{after}", paint(BOLD, service.service.as_str()), restore.backup),
        format!(
            "  as of {} ({} ago), {}, {}, {verified}",
            format::time(restore.as_of),
            format::age(format::since(restore.as_of, now)),
            restore.state,
            format::size(restore.plain_bytes),
        ),
    ];
    out.extend(restore.passed_over.iter().map(|line| format!("  {} {line}", paint(YELLOW, "not taken:"))));
    out.extend(restore.missing.iter().map(|line| format!("  {} {line}", paint(YELLOW, "missing:"))));
    out.extend(restore.warnings.iter().map(|line| format!("  {} {line}", paint(YELLOW, "mind:"))));
    out.extend(restore.steps.iter().enumerate().map(|(n, step)| format!("  {}. {step}", n + 1)));
    out.extend(restore::replaced(&restore.replaces, restore.as_of, now));
    out.extend(restore::room(&restore.space));
    let time = restore.predicted.as_ref().map_or_else(
        || "takes a time that was not measured yet".to_owned(),
        |p| format!("takes about {}, by {}", format::millis(p.ms), p.from),
    );
    let late = restore.predicted.as_ref().zip(service.target_ms).is_some_and(|(p, target)| p.ms > target);
    out.push(match service.target_ms {
        Some(target) if late => {
            paint(YELLOW, &format!("  {time}; more than its rto of {}", format::millis(target)))
        }
        Some(target) => format!("  {time}; its rto is {}", format::millis(target)),
        None => format!("  {time}"),
    });
    out
}

/// What was done, in a table.
fn outcome(plan: &RecoveryPlan, report: &RunReport) -> String {
    use Column::{Left, Right, Text};
    let columns = [
        Left("SERVICE"),
        Left("OUTCOME"),
        Right("TOOK"),
        Right("PREDICTED"),
        Right("RTO"),
        Left("AS OF"),
        Right("LOST"),
        Text("WHY"),
    ];
    let mut most = None;
    let mut table = table::new(&columns);
    for step in &report.steps {
        let planned = plan.services.iter().find(|s| s.service == step.service);
        let restore = plan.restores().find(|(s, _)| s.service == step.service).map(|(_, r)| r);
        // Another one than was planned, if that was damaged.
        let as_of = restore.map(|r| match &step.id {
            Some(taken) if *taken != r.backup => taken.timestamp.time(),
            _ => r.as_of,
        });
        let lost =
            as_of.filter(|_| step.outcome == Outcome::Ok).map(|at| format::since(at, report.started_at));
        most = most.max(lost.map(|lost| (lost, &step.service)));
        let limit = planned.and_then(|s| s.max_age_ms).map(Duration::from_millis);
        let lost = match (lost, limit) {
            (Some(lost), Some(limit)) if lost > limit => table::cell(format::age(lost), YELLOW),
            (lost, _) => comfy_table::Cell::new(lost.map(format::age).unwrap_or_default()),
        };
        let target = planned.and_then(|s| s.target_ms);
        let (word, style) = match step.outcome {
            Outcome::Ok => ("recovered", GREEN),
            Outcome::Skipped => ("left alone", GREEN),
            _ => ("FAILED", RED),
        };
        let took = match target {
            Some(target) if step.outcome == Outcome::Ok && step.ms > target => {
                table::cell(format::millis(step.ms), YELLOW)
            }
            _ => comfy_table::Cell::new(format::millis(step.ms)),
        };
        let predicted = restore.and_then(|r| r.predicted.as_ref()).map(|p| format::millis(p.ms));
        table.add_row([
            comfy_table::Cell::new(&step.service),
            table::cell(word, style),
            took,
            comfy_table::Cell::new(predicted.unwrap_or_default()),
            comfy_table::Cell::new(target.map(format::millis).unwrap_or_default()),
            comfy_table::Cell::new(as_of.map(format::time).unwrap_or_default()),
            lost,
            comfy_table::Cell::new(step.error.as_deref().unwrap_or_default()),
        ]);
    }
    let mut out = table::text(&table);
    if let Some(target) = plan.target_ms {
        let ms = u64::try_from((report.finished_at - report.started_at).num_milliseconds()).unwrap_or(0);
        out.push_str(&format!("\n\nall of it took {}{}", format::millis(ms), against(ms, Some(target))));
    }
    if let Some((lost, service)) = most {
        out.push_str(&format!("\n\ndata lost: at most the last {}, of {service}", format::age(lost)));
    }
    out
}
