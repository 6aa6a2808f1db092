//! `backup spot simulate`.

use std::time::Duration;

use backup_core::Outcome;
use backup_core::config::{SpotAction, SpotStep};
use serde_json::json;

use super::Spot;
use crate::context::{Context, Done};
use crate::error::CliError;
use crate::render::table::{self, Column};
use crate::{exit_code, format};

/// Do what a notice would be answered with, as an exercise
///
/// Backups, copies and snapshots are made as on the day. Commits are not pushed (`git push --dry-run`), nothing is
/// stopped, and what other processes do is waited for: `--in-earnest` does all of it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long the host has (120s)
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_notice)]
    #[arg(hide_default_value = true)]
    notice: Duration,

    /// Only show the steps
    #[arg(long)]
    dry_run: bool,

    /// Do everything that a real notice would be answered with: push, stop, end what is at work
    #[arg(long, conflicts_with = "dry_run")]
    in_earnest: bool,
}

fn parse_notice(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|e| format!("{e}: write it like 120s or 2min"))?;
    if span < Duration::from_secs(6) { Err("at least 6s".to_owned()) } else { Ok(span) }
}

impl Args {
    pub(super) async fn run(&self, cx: &Context, spot: &Spot) -> Result<Done, CliError> {
        if self.dry_run {
            show(cx, &spot.config.steps, self.notice);
            return Ok(Done::ok());
        }
        if self.in_earnest
            && !cx
                .confirm("This ends runs that are at work, stops services and pushes commits. Go on?")
                .await?
        {
            return Ok(Done::ok());
        }
        let as_what = if self.in_earnest { "" } else { ", as an exercise" };
        let fate = format!("in {}{as_what}", format::duration(self.notice));
        let request = spot.request(self.notice, fate, !self.in_earnest)?;
        // Cancelled, each backup ends in order.
        let graceful = cx.interrupt.graceful();
        let report = tokio::select! {
            report = spot.flush(cx, &request) => report?,
            () = graceful.cancelled() => return Err(CliError::interrupted()),
        };
        spot.session.engine.end_emergency();
        if cx.ui.is_json() {
            cx.ui.json(
                &json!({ "event": "flush", "steps": report.steps, "ended": report.ended, "ms": report.ms }),
            );
        }
        let failed =
            report.steps.iter().filter(|s| !matches!(s.outcome, Outcome::Ok | Outcome::Skipped)).count();
        let (all, took) = (report.steps.len(), format::millis(report.ms));
        let limit = format::duration(self.notice);
        if failed == 0 {
            cx.ui.note(&format!("all of it in {took} of {limit}"));
            return Ok(Done::ok());
        }
        cx.ui.warn(&format!("{failed} of {all} steps failed; it took {took} of {limit}"));
        Ok(Done::code(if failed == all { exit_code::FAILED } else { exit_code::PARTIAL }))
    }
}

fn show(cx: &Context, steps: &[SpotStep], notice: Duration) {
    if cx.ui.is_json() {
        for step in steps {
            let ms = step.budget.map(|b| u64::try_from(b.as_millis()).unwrap_or(u64::MAX));
            let (name, after) = (&step.name, &step.after);
            cx.ui.json(&json!({
                "event": "step", "name": name, "action": step.action, "after": after, "budget_ms": ms,
            }));
        }
        return;
    }
    let columns =
        [Column::Left("STEP"), Column::Text("WHAT"), Column::Text("AFTER"), Column::Right("AT MOST")];
    let mut table = table::new(&columns);
    for step in steps {
        let waits = match step.after.len() {
            n if n > 3 && n + 1 == steps.len() => "all others".to_owned(),
            _ => step.after.join(", "),
        };
        let budget = step.budget.map_or(notice, |b| b.min(notice));
        table.add_row(vec![step.name.clone(), what(&step.action), waits, format::duration(budget)]);
    }
    cx.ui.product(&table::text(&table));
}

fn what(action: &SpotAction) -> String {
    let named = |verb: &str, services: &[backup_core::ServiceName]| {
        let names: Vec<&str> = services.iter().map(backup_core::ServiceName::as_str).collect();
        format!(
            "{verb} {}",
            if names.is_empty() { "what was backed up".to_owned() } else { names.join(", ") }
        )
    };
    match action {
        SpotAction::BackUp(services) => named("back up", services),
        SpotAction::Copy(services) => named("copy", services),
        SpotAction::Git => "commit and push the repositories".to_owned(),
        SpotAction::Stop => "stop model servers".to_owned(),
        SpotAction::Notice => "tell what came of it".to_owned(),
        _ => "tell that the host goes".to_owned(),
    }
}
