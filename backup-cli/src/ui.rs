//! [`Ui`]: the only place that prints. Standard output carries the product, standard error the rest.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};

use anstyle::{AnsiColor, Style};
use indicatif::MultiProgress;
use serde::Serialize;

use crate::error::{CliError, one_line};

/// Good.
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
/// Needs a look.
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();
/// Bad.
pub(crate) const RED: Style = AnsiColor::Red.on_default().bold();
/// Less important.
pub(crate) const DIM: Style = Style::new().dimmed();
/// Headings.
pub(crate) const BOLD: Style = Style::new().bold();

/// `text` in `style`. Where colours are not wanted, they are taken out again on the way out.
pub(crate) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// What the user wants to see.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wishes {
    /// JSON lines instead of text on standard output.
    pub(crate) json: bool,
    /// Nothing on standard error but warnings and errors.
    pub(crate) quiet: bool,
    /// The log, too: progress bars would tear it apart.
    pub(crate) verbose: bool,
}

/// Prints.
#[derive(Debug)]
pub(crate) struct Ui {
    wishes: Wishes,
    bars: Option<MultiProgress>,
    /// The first failure to write to standard output; whatever follows is dropped.
    broken: Mutex<Option<io::Error>>,
    said: Mutex<BTreeSet<String>>,
}

impl Ui {
    pub(crate) fn new(wishes: Wishes) -> Self {
        let bars = !wishes.json && !wishes.quiet && !wishes.verbose && io::stderr().is_terminal();
        let bars = bars.then(MultiProgress::new);
        Self { wishes, bars, broken: Mutex::new(None), said: Mutex::new(BTreeSet::new()) }
    }

    /// Whether the product is JSON lines.
    pub(crate) fn is_json(&self) -> bool {
        self.wishes.json
    }

    /// Whether only trouble is to be told.
    pub(crate) fn is_quiet(&self) -> bool {
        self.wishes.quiet
    }

    /// Where progress bars may be drawn, if at all.
    pub(crate) fn bars(&self) -> Option<&MultiProgress> {
        self.bars.as_ref()
    }

    /// Prints lines of the product for people. With `--json` there is another product: nothing is printed.
    pub(crate) fn product(&self, text: &str) {
        if !self.wishes.json {
            self.stdout(text);
        }
    }

    /// Prints text of the product as it is, whatever was asked for: completions, RESTORE.md.
    pub(crate) fn raw(&self, text: &str) {
        self.stdout(text.strip_suffix('\n').unwrap_or(text));
    }

    /// Prints one JSON object of the product as a line of its own. Without `--json` nothing.
    pub(crate) fn json(&self, value: &impl Serialize) {
        if !self.wishes.json {
            return;
        }
        match serde_json::to_string(value) {
            // Never coloured, and there may be many: past the search for escape codes.
            Ok(text) => self.write(|| writeln!(io::stdout(), "{text}")),
            Err(e) => self.warn(&format!("a result could not be shown as JSON: {e}")),
        }
    }

    /// Says something that is good to know.
    pub(crate) fn note(&self, text: &str) {
        if !self.wishes.quiet {
            self.stderr(text);
        }
    }

    /// The same, unless a warning said it before.
    pub(crate) fn note_once(&self, text: &str) {
        if !self.said.lock().unwrap_or_else(PoisonError::into_inner).contains(text) {
            self.note(&format!("note: {text}"));
        }
    }

    /// Says something that an operator must know.
    pub(crate) fn warn(&self, text: &str) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned());
        self.stderr(&format!("{} {}", paint(YELLOW, "warning:"), one_line(text)));
    }

    /// Says why it failed, and what to do.
    pub(crate) fn error(&self, error: &CliError) {
        self.stderr(&format!("{} {}", paint(RED, "error:"), error.message));
        for hint in &error.hints {
            self.stderr(&format!("{} {hint}", paint(BOLD, "hint:")));
        }
    }

    /// Asks; `false` is the default.
    ///
    /// # Errors
    /// Usage, if nobody is there who could answer.
    pub(crate) fn confirm(&self, question: &str) -> Result<bool, CliError> {
        if !self.can_ask() {
            return Err(CliError::usage("this needs a confirmation, and there is nobody to ask")
                .hint("look at the plan above, then add --yes"));
        }
        answer(inquire::Confirm::new(question).with_default(false).prompt()).map(Option::unwrap_or_default)
    }

    /// Lets a person choose one of `lines`; `None` if none of them.
    ///
    /// # Errors
    /// The question could not be asked.
    pub(crate) fn choose(&self, question: &str, lines: Vec<String>) -> Result<Option<usize>, CliError> {
        let asked = inquire::Select::new(question, lines).with_page_size(15).raw_prompt();
        Ok(answer(asked)?.map(|chosen| chosen.index))
    }

    /// Asks for a text; `None` if there is no answer.
    ///
    /// # Errors
    /// The question could not be asked.
    pub(crate) fn ask(&self, question: &str) -> Result<Option<String>, CliError> {
        answer(inquire::Text::new(question).prompt())
    }

    /// Whether somebody is there who could answer.
    pub(crate) fn can_ask(&self) -> bool {
        !self.wishes.json && io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Whether everything arrived: a reader that went away (`| head`) is no failure, a full disk is.
    pub(crate) fn finish(&self) -> Result<(), CliError> {
        self.remember(anstream::stdout().flush());
        match self.broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(CliError::failed("cannot write to standard output").because(&e))
            }
            _ => Ok(()),
        }
    }

    fn remember(&self, result: io::Result<()>) {
        if let Err(e) = result {
            self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
    }

    fn stdout(&self, text: &str) {
        self.write(|| writeln!(anstream::stdout(), "{text}"));
    }

    fn write(&self, print: impl FnOnce() -> io::Result<()>) {
        if self.broken.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.remember(self.beside_bars(print));
        }
    }

    fn stderr(&self, text: &str) {
        // When standard error is gone there is nowhere left to say so.
        let _nowhere = self.beside_bars(|| writeln!(anstream::stderr(), "{text}"));
    }

    fn beside_bars<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }
}

/// An answer, or none.
fn answer<T>(asked: Result<T, inquire::InquireError>) -> Result<Option<T>, CliError> {
    match asked {
        Ok(answer) => Ok(Some(answer)),
        Err(inquire::InquireError::OperationCanceled) => Ok(None),
        Err(inquire::InquireError::OperationInterrupted) => Err(CliError::interrupted()),
        Err(e) => Err(CliError::failed("the question could not be asked").because(&e)),
    }
}
