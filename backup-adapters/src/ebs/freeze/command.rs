//! The program `fsfreeze` of util-linux, and what its answers mean. (The system call, `FIFREEZE`, has no safe wrapper.)

use std::path::{Path, PathBuf};
use std::process::Stdio;

use backup_core::{AdapterError, AdapterErrorKind as Kind};
use tokio::process::{Child, Command};

use super::refused;

/// Where it is. Timers and units may have a `PATH` without these.
const PLACES: [&str; 4] = ["/usr/sbin/fsfreeze", "/sbin/fsfreeze", "/usr/bin/fsfreeze", "/bin/fsfreeze"];

/// The program.
///
/// # Errors
/// `NotFound`.
pub(super) fn find() -> Result<PathBuf, AdapterError> {
    let found = PLACES.iter().map(PathBuf::from).find(|p| p.exists());
    found.ok_or_else(|| {
        let said = "there is no `fsfreeze` on this host";
        refused(
            Kind::NotFound,
            "cannot freeze file systems",
            said,
            "install util-linux, or leave `freeze` out",
        )
    })
}

/// What became of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// As it was asked for.
    Yes,
    /// It was so before: frozen by somebody else, or not frozen at all.
    Already,
}

/// Begins to freeze what is mounted at `mount`. The child keeps `claim` open as long as it lives, and needs nothing of our
/// environment.
pub(super) fn freezing(program: &Path, mount: &Path, claim: Stdio) -> Result<Child, AdapterError> {
    start(program, "--freeze", mount, claim)
}

/// Thaws what is mounted at `mount`.
pub(super) async fn thaw(program: &Path, mount: &Path) -> Result<Done, AdapterError> {
    ended(start(program, "--unfreeze", mount, Stdio::null())?, "thaw", mount).await
}

fn start(program: &Path, option: &str, mount: &Path, stdin: Stdio) -> Result<Child, AdapterError> {
    Command::new(program)
        .arg(option)
        .arg(mount)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| AdapterError::io(format!("cannot run `{}`", program.display()), e))
}

/// What `child` has done. `verb` is `freeze` or `thaw`.
pub(super) async fn ended(child: Child, verb: &str, mount: &Path) -> Result<Done, AdapterError> {
    let what = format!("cannot {verb} `{}`", mount.display());
    let out = child.wait_with_output().await.map_err(|e| AdapterError::io(what.clone(), e))?;
    if out.status.success() {
        return Ok(Done::Yes);
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let said = said.lines().next().unwrap_or_default().trim();
    // Its words are those of strerror(3); it has one exit code for everything.
    let because = |words: &str| said.ends_with(words);
    let (kind, said, help) = match verb {
        "freeze" if because("Device or resource busy") => return Ok(Done::Already),
        "thaw" if because("Invalid argument") => return Ok(Done::Already),
        _ if because("Operation not supported") => (
            Kind::Unsupported,
            "its file system knows no freezing",
            "take it out of `freeze`: XFS, ext4 and btrfs know it",
        ),
        _ if because("Operation not permitted") || because("Permission denied") => (
            Kind::PermissionDenied,
            "only root may do that (CAP_SYS_ADMIN)",
            "run the backup as root, or leave `freeze` out",
        ),
        _ if said.is_empty() => (Kind::Other, "`fsfreeze` failed", "`findmnt` and `dmesg` tell more"),
        _ => (Kind::Other, said, "`findmnt` and `dmesg` tell more"),
    };
    Err(refused(kind, what, said, help))
}
