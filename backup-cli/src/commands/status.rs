//! `backup status`.

use backup_core::ServiceName;
use backup_core::engine::{OpenInterruption, ServiceStatus, StatusLevel};
use chrono::{DateTime, Utc};
use serde_json::json;

use super::list;
use crate::context::{Context, Done, Session};
use crate::error::CliError;
use crate::render::table::{self, Column};
use crate::ui::{BOLD, GREEN, RED, YELLOW, paint};
use crate::{exit_code, format};

/// Show whether every service is safe, and what to do if one is not
///
/// A service is `critical` without a good backup that is younger than its max_age, when a restore of it was cut short,
/// or when a killed run has left it stopped or paused; `warning` when there is one but something newer needs a look.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup status                 every service
  backup status redis           one of them
  backup status --quiet         as a monitoring check, with the exit code
  backup status --strict        fail on warnings, too

Exit codes: 0 no service is critical (with --strict: nor a warning) · 1 one is · 4 no services are configured")]
pub(crate) struct Args {
    /// Only these services
    services: Vec<ServiceName>,

    /// Fail on warnings, too
    #[arg(long)]
    strict: bool,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        session.check_services(&self.services)?;
        let all = session.engine.status(&self.services).await?;
        let strays = self.strays(&session).await?;
        let worst = all.iter().map(|s| s.level).chain(strays.iter().map(|_| StatusLevel::Critical)).max();
        let code = match worst {
            None => exit_code::NOTHING,
            Some(StatusLevel::Critical) => exit_code::FAILED,
            Some(StatusLevel::Warning) if self.strict => exit_code::FAILED,
            Some(StatusLevel::Warning | StatusLevel::Ok) => exit_code::OK,
        };
        if cx.ui.is_json() {
            all.iter().for_each(|s| cx.ui.json(&line(s)));
            for stray in &strays {
                cx.ui.json(&json!({ "event": "interruption", "level": "critical", "entry": stray.entry }));
            }
        } else if all.is_empty() {
            cx.ui.note("no services are configured: `backup init` looks for some");
        } else {
            cx.ui.product(&text(&all, cx.clock.now()));
        }
        for stray in &strays {
            let service = &stray.entry.service;
            cx.ui.warn(&format!(
                "{service}: {stray}; it is not in the configuration any more: `backup resume` says more"
            ));
        }
        let count = |level| all.iter().filter(|s| s.level == level).count();
        Ok(Done::code(code)
            .with("level", worst)
            .with("ok", count(StatusLevel::Ok))
            .with("warning", count(StatusLevel::Warning))
            .with("critical", count(StatusLevel::Critical) + strays.len()))
    }

    /// Interruptions of services that nobody asks for any more.
    async fn strays(&self, session: &Session) -> Result<Vec<OpenInterruption>, CliError> {
        let mut open = session.engine.open_interruptions().await?;
        let known = &session.plan().services;
        open.retain(|o| !known.contains_key(&o.entry.service) && self.services.is_empty());
        Ok(open)
    }
}

fn line(status: &ServiceStatus) -> serde_json::Value {
    let mut value = json!({ "event": "status" });
    if let (Some(line), Ok(serde_json::Value::Object(fields))) =
        (value.as_object_mut(), serde_json::to_value(status))
    {
        line.extend(fields);
        // Durations as plain seconds: every monitoring system reads those.
        line.insert("age".to_owned(), json!(status.age.map(|d| d.as_secs())));
        line.insert("max_age".to_owned(), json!(status.max_age.map(|d| d.as_secs())));
    }
    value
}

fn look(level: StatusLevel) -> (&'static str, anstyle::Style) {
    match level {
        StatusLevel::Ok => ("ok", GREEN),
        StatusLevel::Warning => ("warning", YELLOW),
        StatusLevel::Critical => ("CRITICAL", RED),
    }
}

fn text(all: &[ServiceStatus], now: DateTime<Utc>) -> String {
    use Column::{Left, Right};
    let columns = [
        Left("SERVICE"),
        Left("STATE"),
        Left("NEWEST GOOD"),
        Right("AGE"),
        Right("MAX AGE"),
        Right("SIZE"),
        Right("TREND"),
        Left("VERIFIED"),
    ];
    let mut table = table::new(&columns);
    for status in all {
        let (word, style) = look(status.level);
        let newest = status.newest_good.as_ref();
        table.add_row([
            comfy_table::Cell::new(&status.service),
            table::cell(word, style),
            comfy_table::Cell::new(
                newest.map_or_else(|| "none".to_owned(), |e| format!("{}/{}", e.id.interval, e.id.timestamp)),
            ),
            comfy_table::Cell::new(status.age.map(format::age).unwrap_or_default()),
            comfy_table::Cell::new(status.max_age.map(format::age).unwrap_or_default()),
            comfy_table::Cell::new(newest.map(|e| format::size(e.size_bytes())).unwrap_or_default()),
            comfy_table::Cell::new(status.trend.map(format::trend).unwrap_or_default()),
            comfy_table::Cell::new(newest.map(|e| verified(e, now)).unwrap_or_default()),
        ]);
    }
    let mut out = table::text(&table);
    for status in all.iter().filter(|s| !s.problems.is_empty()) {
        let (_, style) = look(status.level);
        out.push_str(&format!("\n\n{}", paint(style, status.service.as_str())));
        for problem in &status.problems {
            out.push_str(&format!("\n  {problem}"));
        }
        if let Some(next) = &status.next_step {
            out.push_str(&format!("\n  {} {next}", paint(BOLD, "next:")));
        }
    }
    out
}

fn verified(entry: &backup_core::catalog::Entry, now: DateTime<Utc>) -> String {
    entry.last_verification().map_or_else(
        || "never".to_owned(),
        |(_, _, at)| format!("{}, {} ago", list::verified(entry), format::age(format::since(at.time(), now))),
    )
}
