//! Encryption: for whom a backup is written, and the keys that open one.
//!
//! The format is that of [age](https://age-encryption.org/v1): what this writes, `age -d` reads. Whoever encrypts needs
//! only the recipients' public keys, so that a host can make backups that it cannot read.
//!
//! Needs the feature `age`; without it, whatever asks for encryption is an error.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::error::ConfigError;
use crate::secret::Secret;

#[cfg(not(feature = "age"))]
#[path = "encryption/absent.rs"]
mod imp;
#[cfg(feature = "age")]
#[path = "encryption/age.rs"]
mod imp;

/// The name of age in `encodings` and `features`.
pub const AGE: &str = "age";

/// What stands for a passphrase where recipients are listed.
pub const PASSPHRASE: &str = "passphrase";

/// For whom to encrypt: at least one. Cheap to clone.
#[derive(Clone)]
pub struct Recipients(Arc<imp::Recipients>, Vec<String>);

impl Recipients {
    /// The public keys in `texts`: those of age (`age1…`) and of SSH (`ssh-ed25519 …`, `ssh-rsa …`).
    ///
    /// # Errors
    /// [`ConfigError`] that names what is no such key, or that there is none.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, ConfigError> {
        if texts.is_empty() {
            return Err(ConfigError::new("no recipient is named").hint("`backup keys new` makes a key"));
        }
        let texts: Vec<&str> = texts.iter().map(|t| t.as_ref().trim()).collect();
        let shown = texts.iter().map(|t| without_comment(t)).collect();
        Ok(Self(Arc::new(imp::recipients(&texts)?), shown))
    }

    /// Whoever knows the passphrase. Slow by intent: about a second for each file, in either direction.
    ///
    /// # Errors
    /// [`ConfigError`] without the feature `age`.
    pub fn passphrase(passphrase: &Secret) -> Result<Self, ConfigError> {
        Ok(Self(Arc::new(imp::passphrase_recipient(passphrase)?), vec![PASSPHRASE.to_owned()]))
    }

    /// The public keys, as they may be shown and recorded.
    #[must_use]
    pub fn shown(&self) -> &[String] {
        &self.1
    }

    /// Encrypts what is written to the result, into `out`; ends with [`Seal::finish`].
    ///
    /// # Errors
    /// Those of `out`.
    pub fn seal<'a>(&self, out: impl Write + Send + 'a) -> io::Result<Box<dyn Seal + 'a>> {
        imp::seal(&self.0, out)
    }

    /// Encrypts a small text.
    ///
    /// # Errors
    /// [`io::Error`]: no randomness, or a fault of this program.
    pub fn seal_bytes(&self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut seal = self.seal(&mut out)?;
        seal.write_all(plain)?;
        seal.finish()?;
        Ok(out)
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recipients").field(&self.1).finish()
    }
}

/// A public key without what stands behind it, such as an SSH key's comment.
fn without_comment(text: &str) -> String {
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// An encryption in progress.
pub trait Seal: Write + Send {
    /// Writes the end, without which nothing of it can be trusted.
    ///
    /// # Errors
    /// Those of the output.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Keys that open backups. Cheap to clone; may be empty.
#[derive(Clone, Default)]
pub struct Identities(Vec<Arc<imp::Identity>>);

impl Identities {
    /// Adds the keys in `text`, which came from `place`: an identity file of age (`AGE-SECRET-KEY-1…`, a line each), or a
    /// private SSH key that no passphrase protects.
    ///
    /// # Errors
    /// [`ConfigError`] that names `place` and never repeats what stands there.
    pub fn add(&mut self, text: &Secret, place: &str) -> Result<(), ConfigError> {
        self.0.extend(imp::identities(text, place)?.into_iter().map(Arc::new));
        Ok(())
    }

    /// Adds a passphrase.
    ///
    /// # Errors
    /// [`ConfigError`] without the feature `age`.
    pub fn add_passphrase(&mut self, passphrase: &Secret) -> Result<(), ConfigError> {
        self.0.push(Arc::new(imp::passphrase_identity(passphrase)?));
        Ok(())
    }

    /// Adds those of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The public keys of those that are age's own.
    #[must_use]
    pub fn public_keys(&self) -> Vec<String> {
        self.0.iter().filter_map(|identity| imp::public_key(identity)).collect()
    }

    /// Decrypts what comes from `sealed`. The result yields only what was authenticated, 64 KiB at a time, and ends with an
    /// error unless the end was, too.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open<'a>(&self, sealed: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>, OpenError> {
        imp::open(&self.0, sealed)
    }

    /// Decrypts a small text, whole.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_bytes(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut plain = Vec::new();
        self.open(sealed)?.read_to_end(&mut plain).map_err(|e| OpenError::Damaged(e.to_string()))?;
        Ok(plain)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({} …)", self.0.len())
    }
}

/// Whether `identities` open what begins with `start`: its header and, as far as that is there, its first 64 KiB.
///
/// # Errors
/// [`OpenError`].
pub fn opens(identities: &Identities, start: &[u8]) -> Result<(), OpenError> {
    let mut first = [0];
    let read = identities.open(start)?.read(&mut first);
    read.map(drop).map_err(|_| OpenError::Damaged("its beginning is not authentic".to_owned()))
}

/// Why something cannot be decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// None of the keys at hand is one of those that it was encrypted for.
    #[error("no key at hand opens it")]
    NoKey,
    /// It is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// It cannot be read, or not with this program.
    #[error("{0}")]
    Other(String),
}

/// Makes a new key: the text of an identity file, with its public key in a comment as `age-keygen` writes it, and the
/// public key.
///
/// # Errors
/// [`ConfigError`] without the feature `age`.
pub fn generate(created: chrono::DateTime<chrono::Utc>) -> Result<(Secret, String), ConfigError> {
    let (secret, public) = imp::generate()?;
    let created = created.format("%Y-%m-%dT%H:%M:%SZ");
    let text = format!("# created: {created}\n# public key: {public}\n{}\n", secret.expose());
    Ok((Secret::new(text), public))
}

#[cfg(all(test, feature = "age"))]
mod tests;
