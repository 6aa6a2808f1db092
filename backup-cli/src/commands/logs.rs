//! `backup logs`.

use backup_core::RunId;
use backup_core::catalog::Catalog;
use backup_core::engine::RunReport;
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::format;
use crate::render::human;
use crate::render::table::{self, Column};
use crate::ui::{BOLD, RED, paint};

/// List the runs, or show the report of one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup logs                              the last 20 runs
  backup logs last                         the report of the newest one
  backup logs 20260309_043820-1a2b3c4d     of this one (the beginning is enough)")]
pub(crate) struct Args {
    /// The run: its id, the beginning of it, or `last`
    run: Option<String>,

    /// How many runs to list
    #[arg(short = 'n', long, default_value_t = 20)]
    limit: usize,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        let catalog = session.engine.catalog();
        let runs = catalog.reports().await?;
        match &self.run {
            None => self.list(cx, catalog, &runs).await,
            Some(wanted) => {
                let report = read(catalog, choose(&runs, wanted)?).await?;
                if cx.ui.is_json() {
                    cx.ui.json(&line(&report));
                } else {
                    cx.ui.product(&text(&report));
                }
                Ok(Done::ok())
            }
        }
    }

    async fn list(&self, cx: &Context, catalog: &Catalog, runs: &[RunId]) -> Result<Done, CliError> {
        use Column::{Left, Right, Text};
        if runs.is_empty() {
            cx.ui.note("no runs yet");
        }
        let columns =
            [Left("RUN"), Left("VERB"), Left("STARTED"), Right("TOOK"), Left("OUTCOME"), Text("SERVICES")];
        let mut table = table::new(&columns);
        for run in runs.iter().take(self.limit) {
            let report = match read(catalog, run).await {
                Ok(report) => report,
                Err(e) => {
                    cx.ui.warn(&e.message);
                    continue;
                }
            };
            cx.ui.json(&line(&report));
            let (word, style) = human::outcome(report.outcome());
            let mut services: Vec<&str> = report.steps.iter().map(|s| s.service.as_str()).collect();
            let mut seen = std::collections::BTreeSet::new();
            services.retain(|service| seen.insert(*service));
            table.add_row([
                comfy_table::Cell::new(&report.run_id),
                comfy_table::Cell::new(&report.verb),
                comfy_table::Cell::new(format::time(report.started_at)),
                comfy_table::Cell::new(took(&report)),
                table::cell(word, style),
                comfy_table::Cell::new(services.join(", ")),
            ]);
        }
        if !table.is_empty() {
            cx.ui.product(&table::text(&table));
        }
        Ok(Done::ok().with("runs", runs.len()))
    }
}

fn choose<'a>(runs: &'a [RunId], wanted: &str) -> Result<&'a RunId, CliError> {
    if wanted == "last" {
        return runs.first().ok_or_else(|| CliError::nothing("there are no runs yet"));
    }
    if let Some(exact) = runs.iter().find(|r| r.as_str() == wanted) {
        return Ok(exact);
    }
    let mut matching = runs.iter().filter(|r| r.as_str().starts_with(wanted));
    match (matching.next(), matching.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(CliError::nothing(format!("there is no run `{}`", wanted.escape_debug()))
            .hint("`backup logs` lists them")),
        (Some(a), Some(b)) => Err(CliError::usage(format!("`{wanted}` begins several runs: {a}, {b}, …"))),
    }
}

async fn read(catalog: &Catalog, run: &RunId) -> Result<RunReport, CliError> {
    let text = catalog.read_report(run).await?;
    serde_json::from_slice(&text)
        .map_err(|e| CliError::failed(format!("the report of run {run} is not readable")).because(&e))
}

fn line(report: &RunReport) -> serde_json::Value {
    let mut value = json!({ "event": "run", "outcome": report.outcome() });
    if let (Some(line), Ok(serde_json::Value::Object(fields))) =
        (value.as_object_mut(), serde_json::to_value(report))
    {
        line.extend(fields);
    }
    value
}

fn took(report: &RunReport) -> String {
    format::duration(format::since(report.started_at, report.finished_at))
}

fn text(report: &RunReport) -> String {
    use Column::{Left, Right};
    let (word, style) = human::outcome(report.outcome());
    let mut out = vec![
        paint(BOLD, &format!("run {}", report.run_id)),
        format!("  {:10}{}: {}", "verb", report.verb, paint(style, word)),
        format!("  {:10}{}, took {}", "when", format::time(report.started_at), took(report)),
        format!("  {:10}{} on {}", "by", report.tool, report.host),
        String::new(),
    ];
    let columns = [
        Left("SERVICE"),
        Left("STEP"),
        Left("OUTCOME"),
        Left("BACKUP"),
        Right("PLAIN"),
        Right("STORED"),
        Right("TOOK"),
    ];
    let mut table = table::new(&columns);
    for step in &report.steps {
        let (word, style) = human::outcome(step.outcome);
        table.add_row([
            comfy_table::Cell::new(&step.service),
            comfy_table::Cell::new(match &step.copies {
                Some(copies) => format!("{} to {}", step.kind, copies.to),
                None => step.kind.clone(),
            }),
            table::cell(word, style),
            comfy_table::Cell::new(step.id.as_ref().map(ToString::to_string).unwrap_or_default()),
            comfy_table::Cell::new(format::size(step.plain_bytes)),
            comfy_table::Cell::new(format::size(step.stored_bytes)),
            comfy_table::Cell::new(format::millis(step.ms)),
        ]);
    }
    for part in &report.parts {
        let (word, style) = human::outcome(part.outcome);
        let empty = || comfy_table::Cell::new("");
        table.add_row([
            comfy_table::Cell::new(&part.part),
            comfy_table::Cell::new(&part.kind),
            table::cell(word, style),
            empty(),
            empty(),
            empty(),
            comfy_table::Cell::new(format::millis(part.ms)),
        ]);
    }
    out.push(match report.steps.is_empty() && report.parts.is_empty() {
        true => "nothing was selected".to_owned(),
        false => table::text(&table),
    });
    let mut said = |who: &str, text: String| out.push(format!("{who}: {text}"));
    for step in &report.steps {
        if let Some(error) = &step.error {
            said(step.service.as_str(), paint(RED, error));
        }
        if let Some(hint) = &step.hint {
            said(step.service.as_str(), format!("hint: {hint}"));
        }
        for note in &step.notes {
            said(step.service.as_str(), note.clone());
        }
    }
    for part in &report.parts {
        if let Some(error) = &part.error {
            said(&part.part, paint(RED, error));
        }
    }
    out.join("\n")
}
