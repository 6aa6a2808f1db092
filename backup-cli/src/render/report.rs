//! What a verb says when it is done.

use backup_core::engine::{RunReport, StepReport};
use backup_core::{Outcome, ServiceName};

use super::human::about;
use crate::context::{Context, Done};
use crate::{exit_code, format};

/// Tells the notes of a report and what it came to. `done` completes "3 services …".
pub(crate) fn conclude(cx: &Context, report: &RunReport, done: &str) -> Done {
    for step in &report.steps {
        for note in &step.notes {
            cx.ui.note_once(&about(Some(&step.service), note));
        }
    }
    let code = exit_code::of_report(report);
    let took = format::duration(format::since(report.started_at, report.finished_at));
    let (copies, own): (Vec<_>, Vec<_>) = report.steps.iter().partition(|s| s.copies.is_some());
    let all = own.len();
    let (safe, bad): (Vec<_>, Vec<_>) = own.into_iter().partition(|s| s.is_ok());
    let mut names: Vec<&ServiceName> = bad.iter().map(|s| &s.service).collect();
    names.dedup();
    let names = names.into_iter().map(ServiceName::as_str).collect::<Vec<_>>().join(", ");
    let late = report.parts.iter().filter(|p| p.outcome != Outcome::Ok).map(|p| p.part.as_str());
    let late: Vec<&str> = late.collect();
    if !late.is_empty() {
        cx.ui.note(&format!("does not run: {}", late.join(", ")));
    }
    match (safe.len(), bad.len()) {
        (0, 0) if !copies.is_empty() => {}
        (0, 0) => cx.ui.note("nothing was selected"),
        (n, 0) => cx.ui.note(&format!("{} {done} in {took}", format::count(n, "service"))),
        (0, _) => cx.ui.note(&format!("not {done}: {names}")),
        (n, _) => cx.ui.note(&format!("{n} of {all} {done} in {took}; not: {names}")),
    }
    if let Some(line) = told(&copies) {
        cx.ui.note(&line);
    }
    if report.steps.iter().any(|s| s.outcome == Outcome::Suspect) {
        cx.ui.note("a suspect backup holds much less than the ones before it: look with `backup show SERVICE`, then `backup accept ID` if that is right");
    }
    summary(report, code)
}

/// What copies to other stores came to.
fn told(copies: &[&StepReport]) -> Option<String> {
    let of =
        |s: &StepReport| s.copies.as_ref().map(|c| (format!("{} to {}", s.service, c.to), c.copied.len()));
    let copied: usize = copies.iter().filter_map(|s| of(s)).map(|(_, copied)| copied).sum();
    let bad: Vec<String> =
        copies.iter().filter(|s| !s.is_ok()).filter_map(|s| of(s)).map(|(s, _)| s).collect();
    let mut stores: Vec<&str> = copies.iter().filter_map(|s| Some(s.copies.as_ref()?.to.as_str())).collect();
    stores.dedup();
    Some(match (copied, bad.is_empty()) {
        _ if copies.is_empty() => return None,
        (0, true) => format!("nothing is missing in {}", stores.join(", ")),
        (n, true) => format!("{} copied to {}", format::count(n, "backup"), stores.join(", ")),
        (0, false) => format!("not copied: {}", bad.join(", ")),
        (n, false) => format!("{} copied; not: {}", format::count(n, "backup"), bad.join(", ")),
    })
}

/// The summary line of a report.
pub(crate) fn summary(report: &RunReport, code: u8) -> Done {
    let done = Done::code(code)
        .with("verb", &report.verb)
        .with("run_id", &report.run_id)
        .with("outcome", report.outcome())
        .with("started_at", report.started_at)
        .with("finished_at", report.finished_at)
        .with("steps", &report.steps);
    if report.parts.is_empty() { done } else { done.with("parts", &report.parts) }
}
