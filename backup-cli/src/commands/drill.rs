//! `backup drill`.

use std::path::PathBuf;

use backup_core::ServiceName;
use backup_core::engine::{DrillReport, DrillRequest};
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::render::{drill, report};
use crate::{exit_code, format};

/// Rehearse the recovery of this host, into scratch
///
/// Restores the backups that `recover` would take into throw-away places, as many at once as a backup run does, along `after`; counts
/// what is there, compares that with what the backup says, and removes it. What runs on this host is not touched.
///
/// Tells how long each service took, which of them decide how long the whole takes, and how old the data was, against `rto`
/// and `max_age`. Each counts as `verify --level restore`, and tells `recover` how long it will take.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup drill                        every service
  backup drill --service redis        one
  backup drill --html drill.html      with a page for those who ask for proof
  backup drill --strict               fail if a target was missed, too

Exit codes: 0 all came back · 5 a backup is damaged · 1 none came back, or --strict · 3 some did not · 4 nothing to drill")]
pub(crate) struct Args {
    /// Only this service; may be repeated
    #[arg(short, long = "service", value_name = "SERVICE")]
    services: Vec<ServiceName>,

    /// Write the report to this file, a page that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Fail if something took longer, or is older, than it may
    #[arg(long)]
    strict: bool,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        session.check_services(&self.services)?;
        let request = DrillRequest { services: self.services.clone(), cancel: cx.interrupt.graceful() };
        let (drill, steps) = session.engine.drill(&request).await?;
        if cx.ui.is_json() {
            cx.ui.json(&line(&drill));
        } else if !drill.services.is_empty() {
            cx.ui.product(&drill::text(&drill));
        }
        for service in drill.missed() {
            for line in drill::misses(service) {
                cx.ui.warn(&format!("{}: {line}", service.service));
            }
        }
        if let Some(file) = &self.html {
            let file = cx.dir.join(file);
            let page = drill::page(&drill)
                .map_err(|e| CliError::failed("the page of the drill could not be made").because(&e))?;
            crate::write::replace(&file, &page).map_err(|e| {
                CliError::failed(format!("cannot write the page to `{}`", file.display())).because(&e)
            })?;
            cx.ui.note(&format!("wrote {}", file.display()));
        }
        let mut done = report::conclude(cx, &steps, "came back");
        if self.strict && done.code == exit_code::OK && drill.missed().next().is_some() {
            done.code = exit_code::FAILED;
        }
        if done.code == exit_code::OK {
            cx.ui.note(&format!("drilled in {}; nothing that runs was touched", format::millis(drill.ms)));
        }
        Ok(done)
    }
}

fn line(drill: &DrillReport) -> serde_json::Value {
    let mut line = json!({ "event": "drill", "passed": drill.passed() });
    if let (Some(line), Ok(serde_json::Value::Object(fields))) =
        (line.as_object_mut(), serde_json::to_value(drill))
    {
        line.extend(fields);
    }
    line
}
