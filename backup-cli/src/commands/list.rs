//! `backup list`.

use backup_core::catalog::{BackupState, Entry, Filter};
use backup_core::{Interval, ServiceName};
use chrono::{DateTime, Utc};
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::format;
use crate::render::table::{self, Column};
use crate::ui::{DIM, GREEN, RED, YELLOW};

mod hosts;

/// List the backups in the store
///
/// AGE counts from the start of the backup, SIZE is as stored, RATIO is how much smaller that is. Only `good` ones are
/// restored by default.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup list                      everything, newest first
  backup list redis                one service
  backup list --interval daily     one interval
  backup list --all-hosts          what every host has that backs up beside this one
  backup list --json | jq -r 'select(.state == \"good\") | .id'")]
pub(crate) struct Args {
    /// Only this service
    service: Option<ServiceName>,

    /// Only this interval
    #[arg(short, long)]
    interval: Option<Interval>,

    /// Show unfinished ones, too: incomplete, aborted, deleting
    #[arg(short, long)]
    all: bool,

    /// Every host beside this one, with its services and the newest good backup of each
    #[arg(long, conflicts_with_all = ["interval", "all"])]
    all_hosts: bool,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        if self.all_hosts {
            return hosts::list(cx, self.service.as_ref()).await;
        }
        let session = cx.session().await?;
        let filter = Filter { service: self.service.clone(), interval: self.interval.clone() };
        let listing = session.engine.catalog().list(&filter).await?;
        if listing.entries.is_empty() {
            // A name that is neither configured nor in the store was mistyped.
            session.check_services(&self.service)?;
        }
        for line in listing.errors.iter().chain(&listing.warnings) {
            cx.ui.warn(line);
        }
        let (shown, hidden): (Vec<&Entry>, Vec<&Entry>) =
            listing.entries.iter().partition(|e| self.all || !is_unfinished(&e.state));
        let now = cx.clock.now();
        if cx.ui.is_json() {
            shown.iter().for_each(|entry| cx.ui.json(&line(entry, now)));
        } else if shown.is_empty() {
            cx.ui.note("no backups yet: `backup run` makes one");
        } else {
            let rows = if self.all { shown.as_slice() } else { shown.get(..ROWS).unwrap_or(&shown) };
            cx.ui.product(&text(rows, now));
            if rows.len() < shown.len() {
                let older = format::count(shown.len() - rows.len(), "older backup");
                cx.ui.note(&format!("{older} not shown (--all shows them)"));
            }
        }
        if !hidden.is_empty() {
            cx.ui.note(&format!(
                "{} not shown (--all shows them)",
                format::count(hidden.len(), "unfinished one")
            ));
        }
        let done = if listing.errors.is_empty() { Done::ok() } else { Done::code(crate::exit_code::FAILED) };
        Ok(done
            .with("backups", shown.len())
            .with("hidden", hidden.len())
            .with("errors", &listing.errors)
            .with("warnings", &listing.warnings))
    }
}

/// More rows than anybody reads.
const ROWS: usize = 1000;

fn is_unfinished(state: &BackupState) -> bool {
    matches!(state, BackupState::Incomplete | BackupState::Aborted | BackupState::Deleting)
}

/// One entry as JSON: what the catalog knows, and what is derived from it.
pub(crate) fn line(entry: &Entry, now: DateTime<Utc>) -> serde_json::Value {
    let mut value = json!({
        "event": "backup",
        "age_s": format::since(entry.id.timestamp.time(), now).as_secs(),
        "size_bytes": entry.size_bytes(),
        "held": entry.held(),
        "retain_until": entry.retain_until(),
    });
    if let (Some(line), Ok(serde_json::Value::Object(fields))) =
        (value.as_object_mut(), serde_json::to_value(entry))
    {
        line.extend(fields);
    }
    value
}

/// How a state looks.
pub(crate) fn style(state: &BackupState) -> anstyle::Style {
    match state {
        BackupState::Good => GREEN,
        BackupState::Suspect | BackupState::Pending => YELLOW,
        BackupState::Damaged { .. } | BackupState::Unreadable { .. } => RED,
        _ => DIM,
    }
}

/// `content ok`, `stored bad`, or nothing.
pub(crate) fn verified(entry: &Entry) -> String {
    entry
        .last_verification()
        .map(|(level, ok, _)| format!("{level} {}", if ok { "ok" } else { "bad" }))
        .unwrap_or_default()
}

fn text(entries: &[&Entry], now: DateTime<Utc>) -> String {
    use Column::{Left, Right, Text};
    let columns = [
        Left("BACKUP"),
        Right("AGE"),
        Right("SIZE"),
        Right("RATIO"),
        Left("STATE"),
        Left("VERIFIED"),
        Text("NOTE"),
    ];
    let mut table = table::new(&columns);
    for entry in entries {
        let summary = entry.summary.as_ref();
        let ratio = summary.and_then(|s| format::ratio(s.plain_bytes, s.size_bytes)).unwrap_or_default();
        table.add_row([
            comfy_table::Cell::new(&entry.id),
            comfy_table::Cell::new(format::age(format::since(entry.id.timestamp.time(), now))),
            comfy_table::Cell::new(format::size(entry.size_bytes())),
            comfy_table::Cell::new(ratio),
            table::cell(entry.state.word(), style(&entry.state)),
            comfy_table::Cell::new(verified(entry)),
            table::cell(note(entry, now), DIM),
        ]);
    }
    table::text(&table)
}

fn note(entry: &Entry, now: DateTime<Utc>) -> String {
    let mut notes = Vec::new();
    if entry.held() {
        notes.push("held".to_owned());
    }
    if let Some(until) = entry.retain_until().filter(|until| *until > now) {
        notes.push(format!("locked for {}", format::age(format::since(now, until))));
    }
    if entry.fresh_at() > entry.id.timestamp {
        notes.push(format!("unchanged {} ago", format::age(format::since(entry.fresh_at().time(), now))));
    }
    if let BackupState::Unreadable { reason, .. } = &entry.state {
        notes.push(reason.clone());
    }
    notes.join(", ")
}
