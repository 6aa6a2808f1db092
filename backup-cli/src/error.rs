//! [`CliError`]: an exit code, one line, and what to do.

use std::error::Error;

use backup_core::{BackupError, ConfigError, StoreError, chain};

use crate::exit_code;

/// Why a verb ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    /// See [`exit_code`].
    pub(crate) code: u8,
    /// One line: what failed, and the chain of causes.
    pub(crate) message: String,
    /// What to do, one line each.
    pub(crate) hints: Vec<String>,
    /// What it is about is encrypted, and the key is not at hand: another backup will not do either.
    pub(crate) lacks_key: bool,
}

impl CliError {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: one_line(&message.into()), hints: Vec::new(), lacks_key: false }
    }

    /// It was tried and did not work.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(exit_code::FAILED, message)
    }

    /// The command line or the configuration is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(exit_code::USAGE, message)
    }

    /// There is nothing to do it with.
    pub(crate) fn nothing(message: impl Into<String>) -> Self {
        Self::new(exit_code::NOTHING, message)
    }

    /// The user changed their mind.
    pub(crate) fn interrupted() -> Self {
        Self::new(exit_code::INTERRUPTED, "interrupted")
    }

    /// Adds the cause.
    pub(crate) fn because(mut self, cause: &(dyn Error + 'static)) -> Self {
        self.message = one_line(&format!("{}: {}", self.message, chain(cause)));
        self
    }

    /// Says first what it is about.
    pub(crate) fn about(mut self, what: &str) -> Self {
        self.message = one_line(&format!("{what}: {}", self.message));
        self
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

/// Errors may carry the words of other programs: what is not printable, line breaks above all, must not reach a terminal.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (n, line) in text.lines().map(str::trim_end).filter(|l| !l.trim().is_empty()).enumerate() {
        if n > 0 {
            out.push_str("; ");
        }
        out.extend(line.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
    out
}

impl From<ConfigError> for CliError {
    fn from(e: ConfigError) -> Self {
        let error = Self::usage(chain(&e));
        match e.help() {
            Some(help) => error.hint(one_line(help)),
            None => error,
        }
    }
}

impl From<BackupError> for CliError {
    fn from(e: BackupError) -> Self {
        match e {
            BackupError::Config(e) => e.into(),
            BackupError::Cancelled => Self::interrupted(),
            e => {
                let lacks_key = matches!(e, BackupError::NoKey { .. });
                let error = Self { lacks_key, ..Self::failed(chain(&e)) };
                match backup_core::advice(&e).or_else(|| hint(&e)) {
                    Some(hint) => error.hint(one_line(hint)),
                    None => error,
                }
            }
        }
    }
}

fn hint(e: &BackupError) -> Option<&'static str> {
    match e {
        BackupError::NoKey { .. } => {
            Some("give the secret key with `--identity FILE`, or put it where `[encryption] identity` says")
        }
        BackupError::Busy { .. } => Some("it waits longer with `--wait 1h`"),
        BackupError::Store { source: StoreError::PermissionDenied { .. }, .. } => {
            Some("run it as the user who owns the store")
        }
        BackupError::State { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("run it as root, or set `state_dir` in the configuration to a directory of yours")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_words_stay_on_one_line_and_reach_no_terminal() {
        let e = CliError::failed("cannot dump").because(&std::io::Error::other("bad\r\n\n  worse\x1b[2J\n"));
        assert_eq!(e.message, "cannot dump: bad;   worse [2J");
    }

    #[test]
    fn configuration_errors_keep_their_hint_and_code() {
        let e = CliError::from(BackupError::from(
            ConfigError::new("unknown key `keeep`").hint("did you mean `keep`?"),
        ));
        assert_eq!(
            (e.code, e.hints.as_slice()),
            (exit_code::USAGE, ["did you mean `keep`?".to_owned()].as_slice())
        );
    }
}
