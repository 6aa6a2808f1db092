//! What a drill found: a text for terminals, and a page that needs nothing else.

use askama::Template;
use backup_core::Outcome;
use backup_core::engine::{DrillReport, DrilledService};

use super::human;
use super::table::{self, Column};
use crate::format;
use crate::ui::{BOLD, GREEN, RED, YELLOW, paint};

/// The phases of a service, after the first: that is the selection, and done for all.
const PHASES: [&str; 4] = ["prepare", "restore", "verify", "clean-up"];

/// The whole, as text.
pub(crate) fn text(drill: &DrillReport) -> String {
    let (word, style) = if drill.passed() { ("passed", GREEN) } else { ("FAILED", RED) };
    let mut out = vec![
        format!("{} {}", paint(BOLD, &format!("drill of {}:", drill.host)), paint(style, word)),
        format!("  recovery      {}", recovery(drill)),
        format!("  loss of data  {}", loss(drill)),
        format!("  1 select      {} for all", format::millis(drill.select_ms)),
        String::new(),
        table::text(&phases(drill)),
        String::new(),
        table::text(&measured(drill)),
    ];
    for service in &drill.services {
        let passed_over = service.backup.iter().flat_map(|b| &b.passed_over);
        out.extend(
            passed_over.map(|line| format!("{}: {} {line}", service.service, paint(YELLOW, "not taken:"))),
        );
        if let Some(error) = &service.error {
            out.push(format!("{}: {}", service.service, paint(RED, error)));
        }
    }
    out.join("\n")
}

/// How long all of it took, and because of whom.
fn recovery(drill: &DrillReport) -> String {
    let critical: Vec<&str> =
        drill.services.iter().filter(|s| s.critical).map(|s| s.service.as_str()).collect();
    format!(
        "{}, {} at once{}; what decides: {}",
        format::millis(drill.ms),
        drill.parallel,
        against(drill.ms, drill.target_ms),
        critical.join(", then ")
    )
}

/// How long it took, or will take, beside how long it may.
pub(crate) fn against(ms: u64, target: Option<u64>) -> String {
    match target {
        None => String::new(),
        Some(target) if ms > target => format!("; MORE than the host's rto of {}", format::millis(target)),
        Some(target) => format!("; the host's rto is {}", format::millis(target)),
    }
}

/// How old the data was at most.
fn loss(drill: &DrillReport) -> String {
    let oldest = drill
        .services
        .iter()
        .filter_map(|s| Some((s.backup.as_ref()?.age_ms, s)))
        .max_by_key(|(age, _)| *age);
    match oldest {
        Some((age, service)) => format!("up to {}, of {}", format::millis(age), service.service),
        None => "all: there is no backup".to_owned(),
    }
}

fn phases(drill: &DrillReport) -> comfy_table::Table {
    use Column::{Left, Right};
    let columns = [
        Left("SERVICE"),
        Left("OUTCOME"),
        Left("BACKUP"),
        Right("2 PREPARE"),
        Right("3 RESTORE"),
        Right("4 VERIFY"),
        Right("5 CLEAN UP"),
    ];
    let mut table = table::new(&columns);
    for service in &drill.services {
        let (word, style) = human::outcome(service.outcome);
        let mut row = vec![
            comfy_table::Cell::new(&service.service),
            table::cell(word, style),
            comfy_table::Cell::new(service.backup.as_ref().map(|b| b.id.to_string()).unwrap_or_default()),
        ];
        row.extend(PHASES.map(|phase| comfy_table::Cell::new(took(service, phase))));
        table.add_row(row);
    }
    table
}

fn took(service: &DrilledService, phase: &str) -> String {
    service.phases.iter().find(|p| p.phase == phase).map(|p| format::millis(p.ms)).unwrap_or_default()
}

fn measured(drill: &DrillReport) -> comfy_table::Table {
    use Column::{Left, Right};
    let columns = [
        Left("SERVICE"),
        Right("TOOK"),
        Right("RTO"),
        Right("SIZE"),
        Right("A SECOND"),
        Right("BEFORE"),
        Right("MEDIAN"),
        Right("DATA OF"),
        Right("MAX AGE"),
    ];
    let mut table = table::new(&columns);
    for service in &drill.services {
        let late = if service.is_late() { YELLOW } else { anstyle::Style::new() };
        let old = if service.is_old() { YELLOW } else { anstyle::Style::new() };
        let target = service.target_ms.map(format::millis).unwrap_or_default();
        let backup = service.backup.as_ref();
        table.add_row([
            comfy_table::Cell::new(&service.service),
            table::cell(format::millis(service.ms), late),
            comfy_table::Cell::new(target),
            comfy_table::Cell::new(format::size(service.plain_bytes)),
            comfy_table::Cell::new(speed(service)),
            comfy_table::Cell::new(before(service)),
            comfy_table::Cell::new(median(service)),
            table::cell(backup.map(|b| format!("{} ago", format::millis(b.age_ms))).unwrap_or_default(), old),
            comfy_table::Cell::new(backup.and_then(|b| b.max_age_ms).map(format::millis).unwrap_or_default()),
        ]);
    }
    table
}

/// Plain bytes in a second of the restore itself.
fn speed(service: &DrilledService) -> String {
    let restore = service.phases.iter().find(|p| p.phase == "restore").map_or(0, |p| p.ms);
    match service.plain_bytes.saturating_mul(1000).checked_div(restore) {
        Some(bytes) if service.outcome == Outcome::Ok => format::size(bytes),
        _ => String::new(),
    }
}

/// How the time has changed since the restore into scratch before.
fn before(service: &DrilledService) -> String {
    match service.before {
        Some(before) => trend(service, before.ms, ""),
        None => String::new(),
    }
}

/// How it compares with the median of the earlier ones, and how many these are. One is shown as [`before`].
fn median(service: &DrilledService) -> String {
    match (service.usual_ms, service.earlier.len()) {
        (Some(ms), many @ 2..) => trend(service, ms, &format!(" of {many}")),
        _ => String::new(),
    }
}

fn trend(service: &DrilledService, then: u64, of: &str) -> String {
    if then == 0 || service.outcome != Outcome::Ok {
        return String::new();
    }
    #[expect(clippy::cast_precision_loss, reason = "a ratio needs no last digit")]
    let change = service.ms as f64 / then as f64 - 1.0;
    format!("{}{of} ({})", format::millis(then), format::trend(change))
}

/// Which targets a service missed, one line each.
pub(crate) fn misses(service: &DrilledService) -> Vec<String> {
    let late = service.target_ms.filter(|_| service.is_late()).map(|target| {
        format!("took {}, longer than its rto of {}", format::millis(service.ms), format::millis(target))
    });
    let old = service.backup.as_ref().filter(|_| service.is_old()).map(|b| {
        let limit = b.max_age_ms.map(format::millis).unwrap_or_default();
        format!("its data was {} old, more than its max_age of {limit}", format::millis(b.age_ms))
    });
    late.into_iter().chain(old).collect()
}

/// The page.
#[derive(Template)]
#[template(path = "drill.html")]
struct Page<'a> {
    drill: &'a DrillReport,
    started_at: String,
    recovery: String,
    loss: String,
    select: String,
    rows: Vec<Row<'a>>,
}

/// A line of the page.
struct Row<'a> {
    service: &'a DrilledService,
    word: &'static str,
    took: String,
    target: String,
    size: String,
    speed: String,
    before: String,
    median: String,
    age: String,
    misses: Vec<String>,
    bars: Vec<Bar>,
}

/// A phase on the time line: its place and width in hundredths of a percent of the whole.
struct Bar {
    phase: String,
    took: String,
    left: f64,
    width: f64,
}

/// The report as a page that needs nothing else.
///
/// # Errors
/// None that anybody has seen: of the template's formatting.
pub(crate) fn page(drill: &DrillReport) -> Result<String, askama::Error> {
    let rows = drill.services.iter().map(|service| Row {
        service,
        word: human::outcome(service.outcome).0,
        took: format::millis(service.ms),
        target: service.target_ms.map(format::millis).unwrap_or_default(),
        size: format::size(service.plain_bytes),
        speed: speed(service),
        before: before(service),
        median: median(service),
        age: service.backup.as_ref().map(|b| format::millis(b.age_ms)).unwrap_or_default(),
        misses: misses(service),
        bars: bars(service, drill.ms),
    });
    Page {
        drill,
        started_at: format::time(drill.started_at),
        recovery: recovery(drill),
        loss: loss(drill),
        select: format::millis(drill.select_ms),
        rows: rows.collect(),
    }
    .render()
}

fn bars(service: &DrilledService, whole: u64) -> Vec<Bar> {
    #[expect(clippy::cast_precision_loss, reason = "a picture needs no last digit")]
    let percent = |ms: u64| ms as f64 * 100.0 / whole.max(1) as f64;
    let mut at = service.began_ms;
    let bar = |phase: &str, ms: u64, at: &mut u64| {
        let bar =
            Bar { phase: phase.to_owned(), took: format::millis(ms), left: percent(*at), width: percent(ms) };
        *at += ms;
        bar
    };
    if service.phases.is_empty() {
        return vec![bar("failed", service.ms, &mut at)];
    }
    service.phases.iter().map(|p| bar(&p.phase, p.ms, &mut at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drill() -> DrillReport {
        serde_json::from_str(
            r#"{"run_id": "20260309_043820-1a2b3c4d", "host": "<h&1>", "started_at": "2026-03-09T04:38:20Z", "ms": 10000, "target_ms": 600000,
            "select_ms": 500, "parallel": 2, "services": [{
                "service": "redis", "kind": "redis", "after": [], "began_ms": 500, "ms": 9500, "target_ms": 9000,
                "plain_bytes": 80000000, "outcome": "ok", "error": null, "notes": ["made of <redis:6>"], "critical": true,
                "phases": [{"phase": "prepare", "ms": 500}, {"phase": "restore", "ms": 8000},
                           {"phase": "verify", "ms": 900}, {"phase": "clean-up", "ms": 100}],
                "before": {"at": "20260302_043820", "ms": 5000, "plain_bytes": 70000000}, "usual_ms": 10000,
                "earlier": [{"at": "20260302_043820", "ms": 5000, "plain_bytes": 70000000},
                            {"at": "20260223_043820", "ms": 10000, "plain_bytes": 70000000},
                            {"at": "20260216_043820", "ms": 11000, "plain_bytes": 70000000}],
                "backup": {"id": "redis/hourly/20260309_040000", "state": "good", "consistency": "dump",
                    "as_of": "2026-03-09T04:00:00Z", "age_ms": 2300000, "max_age_ms": 3600000, "passed_over": []}}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_text_shows_the_five_phases_and_what_was_missed() {
        let drill = drill();
        let text = text(&drill);
        for part in [
            "1 select",
            "2 PREPARE",
            "3 RESTORE",
            "4 VERIFY",
            "5 CLEAN UP",
            "passed",
            "2 at once; the host's rto is 10 min; what decides: redis",
            "10 MB",
            "5.0 s (+90 %)",
            "10 s of 3 (-5 %)",
            "38 min 20 s ago",
            "9.0 s",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(misses(&drill.services[0]), ["took 9.5 s, longer than its rto of 9.0 s"]);
    }

    #[test]
    fn the_page_needs_nothing_else_and_escapes_names() {
        let page = page(&drill()).unwrap();
        assert!(page.starts_with("<!doctype html>") && !page.contains("<h&1>"), "{page}");
        for outside in ["http://", "https://", "src=", "href=", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("left: 10.00%; width: 80.00%"), "{page}");
        assert!(page.contains("10 s of 3 (-5 %)"), "{page}");
        assert!(page.contains("redis: made of") && !page.contains("<redis:6>"), "{page}");
    }

    #[test]
    fn one_that_failed_says_so() {
        let mut drill = drill();
        drill.services[0].outcome = Outcome::Damaged;
        drill.services[0].error = Some("its contents: keys 1, not 2".to_owned());
        drill.services[0].phases.clear();
        assert!(text(&drill).contains("FAILED") && text(&drill).contains("keys 1, not 2"));
        assert!(page(&drill).unwrap().contains("keys 1, not 2"));
    }
}
