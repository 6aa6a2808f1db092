//! Events for people: one line per finished service, and on a terminal progress bars.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anstyle::Style;
use backup_core::{ArtifactName, Event, EventSink, Outcome, ServiceName, StoreName};
use indicatif::{ProgressBar, ProgressStyle};

use crate::format;
use crate::ui::{DIM, GREEN, RED, Ui, YELLOW, paint};

const WITH_TOTAL: &str = "{prefix}  {bar:24} {percent:>3} %  {decimal_bytes:>10} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {wide_msg}";
const WITHOUT_TOTAL: &str = "{prefix}  {spinner} {decimal_bytes:>10}  {decimal_bytes_per_sec}  {wide_msg}";
const WITHOUT_BYTES: &str = "{prefix}  {spinner} {wide_msg}";

/// `service: message`, or the message alone.
pub(crate) fn about(service: Option<&ServiceName>, message: &str) -> String {
    service.map_or_else(|| message.to_owned(), |service| format!("{service}: {message}"))
}

/// The word for an outcome, and how it looks.
pub(crate) fn outcome(outcome: Outcome) -> (&'static str, Style) {
    match outcome {
        Outcome::Ok => ("ok", GREEN),
        Outcome::Unchanged => ("unchanged", GREEN),
        Outcome::Suspect => ("suspect", YELLOW),
        Outcome::Skipped => ("skipped", DIM),
        Outcome::Damaged => ("damaged", RED),
        Outcome::Failed => ("failed", RED),
        Outcome::Cancelled => ("cancelled", YELLOW),
    }
}

/// Shows events as text.
#[derive(Debug)]
pub(crate) struct HumanEvents {
    ui: Arc<Ui>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    width: usize,
    /// Of a service, or of its copy to one store: those are several at the same time.
    bars: HashMap<(ServiceName, Option<StoreName>), Bar>,
}

#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    artifact: Option<ArtifactName>,
}

impl State {
    fn clear(&mut self, service: &ServiceName, store: Option<&StoreName>) {
        if let Some(removed) = self.bars.remove(&(service.clone(), store.cloned())) {
            removed.bar.finish_and_clear();
        }
    }
}

impl HumanEvents {
    pub(crate) fn new(ui: Arc<Ui>) -> Self {
        Self { ui, state: Mutex::default() }
    }

    /// Does something with the bar of a service, if bars are drawn at all.
    fn bar(&self, service: &ServiceName, store: Option<&StoreName>, change: impl FnOnce(&mut Bar)) {
        let Some(bars) = self.ui.bars() else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match store {
            // The bars of its copies say what it does.
            None if state.bars.keys().any(|(other, to)| other == service && to.is_some()) => return,
            None => {}
            Some(_) => state.clear(service, None),
        }
        let width = state.width;
        let bar = state.bars.entry((service.clone(), store.cloned())).or_insert_with(|| {
            let bar = bars.add(ProgressBar::no_length().with_style(style(WITHOUT_BYTES)));
            bar.set_prefix(format!("{service:width$}"));
            bar.enable_steady_tick(Duration::from_millis(100));
            Bar { bar, artifact: None }
        });
        change(bar);
    }

    fn failed(&self, what: String, hint: Option<String>) {
        let error = crate::error::CliError::failed(what);
        self.ui.error(&match hint {
            Some(hint) => error.hint(crate::error::one_line(&hint)),
            None => error,
        });
    }

    fn finished(&self, service: &ServiceName, store: Option<&StoreName>, line: &str) {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.clear(service, store);
            state.clear(service, None);
        }
        if !self.ui.is_quiet() {
            self.ui.product(line);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours; one that does not parse still shows something.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
        .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}

impl EventSink for HumanEvents {
    fn emit(&self, event: Event) {
        match event {
            Event::RunStarted { services, .. } => {
                let width = services.iter().map(|s| s.as_str().len()).max().unwrap_or(0);
                self.state.lock().unwrap_or_else(PoisonError::into_inner).width = width;
            }
            Event::ServiceStarted { service, id } => {
                let id = id.map(|id| id.to_string()).unwrap_or_default();
                self.bar(&service, None, |b| b.bar.set_message(id));
            }
            Event::Waiting { service, holder } => {
                self.ui.note(&format!("{service}: waiting: {holder}"));
                self.bar(&service, None, |b| b.bar.set_message("waiting"));
            }
            Event::Phase { service, phase } => self.bar(&service, None, |b| b.bar.set_message(phase)),
            Event::Progress { service, artifact, store, bytes, total } => {
                self.bar(&service, store.as_ref(), |b| {
                    if b.artifact.as_ref() != Some(&artifact) {
                        b.bar.reset();
                        b.bar.set_style(style(if total.is_some() { WITH_TOTAL } else { WITHOUT_TOTAL }));
                        b.bar.set_message(match &store {
                            Some(store) => format!("{artifact} to {store}"),
                            None => artifact.to_string(),
                        });
                        b.artifact = Some(artifact);
                    }
                    if let Some(total) = total {
                        // An estimate: what grew meanwhile must not show 104 %.
                        b.bar.set_length(total.max(bytes));
                    }
                    b.bar.set_position(bytes);
                });
            }
            Event::StepFinished { step, outcome: result, ms, said, error } => {
                let (word, colour) = outcome(result);
                let mut line =
                    format!("{step:16}  {}  {}", paint(colour, &format!("{word:9}")), format::millis(ms));
                if let Some(more) = error.or(said) {
                    line.push_str(&format!("  {more}"));
                }
                if !self.ui.is_quiet() {
                    self.ui.product(&line);
                }
            }
            Event::Warning { service, message } => self.ui.warn(&about(service.as_ref(), &message)),
            Event::ServiceFinished {
                service,
                id,
                outcome: result,
                plain_bytes,
                stored_bytes,
                ms,
                error,
                hint,
            } => {
                let (word, colour) = outcome(result);
                let width = self.state.lock().unwrap_or_else(PoisonError::into_inner).width;
                // Padded before it is painted: escape codes have no width.
                let mut line = format!("{service:width$}  {}", paint(colour, &format!("{word:9}")));
                if let Some(id) = id {
                    line.push_str(&format!("  {id}"));
                }
                if plain_bytes > 0 {
                    line.push_str(&format!("  {}", format::size(plain_bytes)));
                    if stored_bytes > 0 {
                        line.push_str(&format!(" ({} stored)", format::size(stored_bytes)));
                    }
                }
                line.push_str(&format!("  {}", format::millis(ms)));
                self.finished(&service, None, &line);
                // Who cancelled knows why.
                if let Some(error) = error.filter(|_| result != Outcome::Cancelled) {
                    if result == Outcome::Suspect {
                        // It is stored, and it may be right.
                        return self.ui.warn(&about(Some(&service), &format!("suspect: {error}")));
                    }
                    self.failed(about(Some(&service), &error), hint);
                }
            }
            Event::CopyFinished {
                service,
                store,
                outcome: result,
                copied,
                there,
                stored_bytes,
                ms,
                error,
                hint,
            } => {
                let (word, colour) = outcome(result);
                let width = self.state.lock().unwrap_or_else(PoisonError::into_inner).width;
                let mut line =
                    format!("{service:width$}  {}  to {store}", paint(colour, &format!("{word:9}")));
                if copied > 0 {
                    let bytes = format::size(stored_bytes);
                    line.push_str(&format!("  {} copied, {bytes}", format::count(copied, "backup")));
                }
                if there > 0 {
                    line.push_str(&format!("  {there} there already"));
                }
                line.push_str(&format!("  {}", format::millis(ms)));
                self.finished(&service, Some(&store), &line);
                if let Some(error) = error.filter(|_| result != Outcome::Cancelled) {
                    self.failed(about(Some(&service), &format!("copy to {store}: {error}")), hint);
                }
            }
            Event::PartFinished { part, kind, outcome: result, ms, error, last_lines } => {
                let width = self.state.lock().unwrap_or_else(PoisonError::into_inner).width;
                let word = match (result, kind.as_str()) {
                    (Outcome::Ok, "stop") => paint(DIM, &format!("{:9}", "stopped")),
                    (Outcome::Ok, "wait") => paint(GREEN, &format!("{:9}", "answers")),
                    (Outcome::Ok, _) => paint(GREEN, &format!("{:9}", "started")),
                    (result, _) => {
                        let (word, colour) = outcome(result);
                        paint(colour, &format!("{word:9}"))
                    }
                };
                if !self.ui.is_quiet() {
                    self.ui.product(&format!("{part:width$}  {word}  {}", format::millis(ms)));
                }
                if let Some(error) = error.filter(|_| result != Outcome::Cancelled) {
                    self.ui.error(&crate::error::CliError::failed(format!("{part}: {error}")));
                    for line in last_lines {
                        self.ui.note(&format!("{part} wrote: {line}"));
                    }
                }
            }
            // What retention did is told with the report, `RunFinished` by the verb itself.
            _ => {}
        }
    }
}
