//! What a recovery stopped: whoever completes it starts that again.

use std::fs;
use std::io;

use super::{StateDir, state_error, write_atomically};
use crate::error::BackupError;

const FENCED: &str = "fenced";

impl StateDir {
    /// Parts of the host's stack that a recovery stopped and did not start again yet, by name.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn fenced(&self) -> Result<Vec<String>, BackupError> {
        let path = self.root.join(FENCED);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(state_error(format!("reading `{}`", path.display()))(e)),
        }
    }

    /// Remembers these parts, and no others, as stopped.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn set_fenced(&self, parts: &[String]) -> Result<(), BackupError> {
        let path = self.root.join(FENCED);
        if !parts.is_empty() {
            return write_atomically(&path, parts.join("\n").as_bytes());
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(state_error(format!("removing `{}`", path.display()))(e))
            }
            _ => Ok(()),
        }
    }
}
