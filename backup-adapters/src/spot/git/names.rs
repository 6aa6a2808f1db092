//! Names of files, branches and servers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind, Timestamp};

/// What git printed: one word or line, or names with a zero byte after each.
#[derive(Debug)]
pub(super) struct Names(pub(super) Vec<u8>);

impl Names {
    pub(super) fn text(&self) -> Result<&str, AdapterError> {
        std::str::from_utf8(&self.0)
            .map_err(|e| AdapterError::new(AdapterErrorKind::Other, "git prints no UTF-8").with_source(e))
    }

    pub(super) fn word(&self) -> Result<String, AdapterError> {
        match self.text()?.trim() {
            "" => Err(AdapterError::new(AdapterErrorKind::Other, "git prints nothing")),
            word => Ok(word.to_owned()),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = Vec<u8>> {
        self.0.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
    }
}

pub(super) fn path(name: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(name)).to_owned()
}

/// Whether a file is a dotenv file, and not one that shows what such a file should look like.
pub(super) fn is_secret(name: &[u8]) -> bool {
    let file = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
    let file = String::from_utf8_lossy(file).to_lowercase();
    let example = [".example", ".sample", ".template", ".dist"].iter().any(|end| file.ends_with(end));
    (file.starts_with(".env.") && !example) || file == ".envrc" || file.ends_with(".env")
}

/// The branch for this moment: `spot/<host>/<time>`, with a host that git takes as part of a name
/// (<https://git-scm.com/docs/git-check-ref-format>).
pub(super) fn branch(host: &str, at: Timestamp) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    let host: String = host.chars().map(plain).collect();
    let host = host.trim_matches('-');
    format!("spot/{}/{at}", if host.is_empty() { "host" } else { host })
}

/// Text without what stands before an `@` in a URL: a password, or a token.
pub(super) fn scrubbed(text: &str) -> String {
    let mut pieces = text.split("://");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| c == '/' || c == '\'' || c.is_whitespace()).unwrap_or(piece.len());
        let (address, rest) = piece.split_at(end);
        let address = address.rsplit_once('@').map_or(address, |(_, host)| host);
        out.push_str("://");
        out.push_str(address);
        out.push_str(rest);
    }
    out
}

/// The command that git reaches servers with, which asks nobody anything: OpenSSH, in the user's own way if there is one.
/// `None` for another program, which has words of its own.
pub(super) fn unasking(own: &str) -> Option<String> {
    let ssh = if own.is_empty() { "ssh" } else { own };
    let program = ssh.split(' ').next().and_then(|word| word.rsplit('/').next());
    // What stands first counts to ssh: what the user has set holds.
    (program == Some("ssh")).then(|| format!("{ssh} -o BatchMode=yes -o ConnectTimeout=5"))
}

/// What a person can do about a push that failed, by git's words or those of ssh.
pub(super) fn what_to_do(said: &str) -> Option<&'static str> {
    let known = [
        (
            "Authentication failed",
            "git has no credentials for it: `git config credential.helper` sets where they are kept",
        ),
        (
            "Host key verification failed",
            "put the server's key into known_hosts of the user who owns the work tree",
        ),
        (
            "Permission denied (",
            "the user who owns the work tree needs a key without a passphrase that the server knows",
        ),
    ];
    known.into_iter().find(|(words, _)| said.contains(words)).map(|(_, help)| help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_names() {
        for secret in [".env", "a/.env", "app/.env.production", "prod.env", ".ENV", ".envrc"] {
            assert!(is_secret(secret.as_bytes()), "{secret}");
        }
        for plain in [".env.example", "src/environment.rs", "envelope", ".environment"] {
            assert!(!is_secret(plain.as_bytes()), "{plain}");
        }
    }

    #[test]
    fn any_host_gives_a_branch_that_git_takes() {
        let at = Timestamp::new("2026-03-09T04:38:20Z".parse().unwrap());
        assert_eq!(branch("ip-10-0-0-1", at), "spot/ip-10-0-0-1/20260309_043820");
        assert_eq!(branch("..a b.lock/", at), "spot/a-b-lock/20260309_043820");
        assert_eq!(branch("…", at), "spot/host/20260309_043820");
    }

    #[test]
    fn ssh_asks_nobody_and_other_programs_are_left_alone() {
        let quiet = " -o BatchMode=yes -o ConnectTimeout=5";
        assert_eq!(unasking(""), Some(format!("ssh{quiet}")));
        assert_eq!(unasking("/usr/bin/ssh -i key"), Some(format!("/usr/bin/ssh -i key{quiet}")));
        assert_eq!(unasking("plink -batch"), None);
    }

    #[test]
    fn no_password_is_left_in_a_url() {
        let said = "fatal: unable to access 'https://me:s3cret@host/x.git/': refused; see https://docs";
        assert_eq!(
            scrubbed(said),
            "fatal: unable to access 'https://host/x.git/': refused; see https://docs"
        );
    }
}
