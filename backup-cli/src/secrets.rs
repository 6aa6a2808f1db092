//! Secrets, from where the configuration says they are. Read anew each time, never logged.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use backup_core::{ConfigError, Secret, SecretRef, SecretResolver};

use crate::environment;

mod dotenv;
pub(crate) mod missing;
#[cfg(feature = "full")]
pub(crate) mod then;

/// How long a program may take to print a secret.
const PATIENCE: Duration = Duration::from_secs(60);

/// Resolves every kind of reference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Secrets;

impl SecretResolver for Secrets {
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError> {
        let (what, found) = match reference {
            SecretRef::Env(name) => {
                let value =
                    environment::var(name).ok_or_else(|| "it is not set, empty or not UTF-8".to_owned());
                (format!("the variable `{name}`"), value)
            }
            SecretRef::File(path) => (format!("the file `{}`", path.display()), from_file(path)),
            SecretRef::Command(argv) => {
                let program = argv.first().map(String::as_str).unwrap_or_default();
                (format!("the program `{program}`"), from_command(argv))
            }
            SecretRef::Dotenv { path, key } => {
                (format!("`{key}` in `{}`", path.display()), from_dotenv(path, key))
            }
        };
        match found {
            Ok(value) if value.is_empty() => {
                Err(ConfigError::new(format!("no secret from {what}: it is empty")))
            }
            Ok(value) => Ok(Secret::new(value)),
            Err(why) => Err(ConfigError::new(format!("no secret from {what}: {why}"))),
        }
    }
}

fn from_file(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map(without_line_break).map_err(|e| e.to_string())
}

fn from_dotenv(path: &Path, key: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    dotenv::value(&text, key).ok_or_else(|| "the key is not there".to_owned())
}

/// Without a shell: there is nothing to quote and nothing to expand. Standard error stays the user's, for its questions.
fn from_command(argv: &[String]) -> Result<String, String> {
    let (program, args) = argv.split_first().ok_or("it is not named")?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut stdout = child.stdout.take().ok_or("it has no output")?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = std::io::Read::read_to_string(&mut stdout, &mut text);
        // Nobody listens any more once the patience is over.
        let _late = send.send(read.map(|_| text).map_err(|e| e.to_string()));
    });
    let Ok(read) = receive.recv_timeout(PATIENCE) else {
        child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?;
        return Err(format!("it printed nothing within {} s", PATIENCE.as_secs()));
    };
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.success() { read.map(without_line_break) } else { Err(format!("it ended with {status}")) }
}

/// One line break ends a file; more of them would be part of the secret.
fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(argv: &[&str]) -> Result<Secret, ConfigError> {
        Secrets.resolve(&SecretRef::Command(argv.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn commands_run_without_a_shell_and_lose_one_line_break() {
        assert_eq!(command(&["printf", "%s\n\n", "$HOME; x"]).unwrap().expose(), "$HOME; x\n");
    }

    #[test]
    fn a_failing_or_silent_command_gives_no_secret_and_tells_none() {
        let failing = command(&["sh", "-c", "echo hunter2; exit 3"]).unwrap_err().to_string();
        assert!(
            failing.contains("`sh`") && failing.contains('3') && !failing.contains("hunter2"),
            "{failing}"
        );
        assert!(command(&["true"]).unwrap_err().to_string().contains("empty"));
        assert!(command(&["/no/such/program"]).is_err());
    }

    #[test]
    fn files_and_dotenv_keys_are_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "one\r\n").unwrap();
        let file = SecretRef::File(path.clone());
        assert_eq!(Secrets.resolve(&file).unwrap().expose(), "one");
        std::fs::write(&path, "KEY='two'\n").unwrap();
        assert_eq!(Secrets.resolve(&file).unwrap().expose(), "KEY='two'");
        let dotenv = |key: &str| Secrets.resolve(&SecretRef::Dotenv { path: path.clone(), key: key.into() });
        assert_eq!(dotenv("KEY").unwrap().expose(), "two");
        assert!(dotenv("OTHER").unwrap_err().to_string().contains("OTHER"));
    }
}
