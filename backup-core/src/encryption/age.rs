//! The same over the crate `age`.

use std::io::{self, Read, Write};
use std::sync::Arc;

use age::secrecy::{ExposeSecret, SecretString};
use age::{DecryptError, Decryptor, Encryptor};
use age_core::format::{FileKey, Stanza};

use super::{OpenError, Seal};
use crate::error::ConfigError;
use crate::secret::Secret;

/// How much work a passphrase takes, as a power of two: what the program `age` uses.
const WORK: u8 = 18;
/// The most that is done: what another, faster machine may have chosen.
const MAX_WORK: u8 = 22;

/// age's own keys begin so, in either case: the alphabet of bech32.
const PUBLIC: &str = "age1";
const SSH_PRIVATE: &str = "-----BEGIN";

pub(super) struct Recipients(Vec<Box<dyn age::Recipient + Send + Sync>>);

pub(super) enum Identity {
    Native(age::x25519::Identity),
    Ssh(age::ssh::Identity),
    Passphrase(age::scrypt::Identity),
}

impl Identity {
    fn get(&self) -> &dyn age::Identity {
        match self {
            Self::Native(identity) => identity,
            Self::Ssh(identity) => identity,
            Self::Passphrase(identity) => identity,
        }
    }
}

/// All keys at once: one that fails must not keep the next from being tried, as a passphrase that is not the one would.
struct Any<'a>(&'a [Arc<Identity>]);

impl age::Identity for Any<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        let mut failed = None;
        for identity in self.0 {
            match identity.get().unwrap_stanza(stanza) {
                Some(Ok(key)) => return Some(Ok(key)),
                other => failed = other.or(failed),
            }
        }
        failed
    }

    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Result<FileKey, DecryptError>> {
        let mut failed = None;
        for stanza in stanzas {
            match self.unwrap_stanza(stanza) {
                Some(Ok(key)) => return Some(Ok(key)),
                other => failed = other.or(failed),
            }
        }
        failed
    }
}

pub(super) fn recipients(texts: &[&str]) -> Result<Recipients, ConfigError> {
    let one = |text: &&str| recipient(text);
    texts.iter().map(one).collect::<Result<_, _>>().map(Recipients)
}

fn recipient(text: &str) -> Result<Box<dyn age::Recipient + Send + Sync>, ConfigError> {
    // Somebody may have taken the wrong line: never repeated.
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        return Err(ConfigError::new("a secret key stands where a public one belongs")
            .hint("write the public key, `age1…`: the comment in the identity file has it"));
    }
    let hint = "write `age1…`, `ssh-ed25519 …` or `ssh-rsa …`; `backup keys new` makes a key";
    let bad = |why: &str| {
        let shown: String = text.chars().take(20).flat_map(char::escape_debug).collect();
        ConfigError::new(format!("`{shown}…` is no public key that can be used: {why}")).hint(hint)
    };
    if text.starts_with("ssh-") {
        use age::ssh::ParseRecipientKeyError as E;
        return match text.parse::<age::ssh::Recipient>() {
            Ok(recipient) => Ok(Box::new(recipient)),
            Err(E::RsaModulusTooLarge) => Err(bad("its RSA modulus is too large")),
            Err(E::RsaModulusTooSmall) => Err(bad("its RSA modulus has less than 2048 bits")),
            Err(_) => Err(bad("of SSH's, `ssh-ed25519` and `ssh-rsa` are")),
        };
    }
    if !text.starts_with(PUBLIC) {
        return Err(bad("it does not begin like one"));
    }
    match text.parse::<age::x25519::Recipient>() {
        Ok(recipient) => Ok(Box::new(recipient)),
        Err(why) => Err(bad(why)),
    }
}

fn secret_string(secret: &Secret) -> SecretString {
    SecretString::from(secret.expose().to_owned())
}

pub(super) fn passphrase_recipient(passphrase: &Secret) -> Result<Recipients, ConfigError> {
    let mut recipient = age::scrypt::Recipient::new(secret_string(passphrase));
    recipient.set_work_factor(WORK);
    Ok(Recipients(vec![Box::new(recipient)]))
}

pub(super) fn passphrase_identity(passphrase: &Secret) -> Result<Identity, ConfigError> {
    let mut identity = age::scrypt::Identity::new(secret_string(passphrase));
    identity.set_max_work_factor(MAX_WORK);
    Ok(Identity::Passphrase(identity))
}

pub(super) fn identities(text: &Secret, place: &str) -> Result<Vec<Identity>, ConfigError> {
    let bad = |what: &str| ConfigError::new(format!("{place} {what}"));
    let text = text.expose();
    if text.trim_start().starts_with(SSH_PRIVATE) {
        return match age::ssh::Identity::from_buffer(text.trim_start().as_bytes(), None) {
            Ok(identity @ age::ssh::Identity::Unencrypted(_)) => Ok(vec![Identity::Ssh(identity)]),
            Ok(age::ssh::Identity::Encrypted(_)) => {
                Err(bad("is an SSH key with a passphrase, for which nobody can be asked here")
                    .hint("use a key without one, or an identity of age"))
            }
            _ => Err(bad("is no SSH key that can be used").hint("of SSH's, ed25519 and RSA are")),
        };
    }
    if text.trim_start().starts_with("age-encryption.org/") {
        return Err(bad("is itself encrypted").hint("give a program that decrypts it: { command = [ … ] }"));
    }
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.parse::<age::x25519::Identity>() {
            Ok(identity) => found.push(Identity::Native(identity)),
            Err(_) if line.starts_with(PUBLIC) => {
                return Err(bad(&format!("has a public key in line {number}: a secret one is needed"))
                    .hint("it begins with `AGE-SECRET-KEY-1`"));
            }
            Err(_) => {
                return Err(bad(&format!("has something in line {number} that is no identity of age"))
                    .hint("such a line begins with `AGE-SECRET-KEY-1`"));
            }
        }
    }
    if found.is_empty() {
        return Err(bad("has no identity in it").hint("`backup keys new` makes one"));
    }
    Ok(found)
}

pub(super) fn public_key(identity: &Identity) -> Option<String> {
    match identity {
        Identity::Native(identity) => Some(identity.to_public().to_string()),
        _ => None,
    }
}

/// What remembers that it has to be finished.
struct Sealing<W: Write>(age::stream::StreamWriter<W>);

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write + Send> Seal for Sealing<W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.finish()?.flush()
    }
}

pub(super) fn seal<'a>(
    recipients: &Recipients,
    out: impl Write + Send + 'a,
) -> io::Result<Box<dyn Seal + 'a>> {
    let each = recipients.0.iter().map(|r| {
        let recipient: &dyn age::Recipient = r.as_ref();
        recipient
    });
    let encryptor = Encryptor::with_recipients(each).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(Box::new(Sealing(encryptor.wrap_output(out)?)))
}

pub(super) fn open<'a>(
    identities: &[Arc<Identity>],
    sealed: impl Read + Send + 'a,
) -> Result<Box<dyn Read + Send + 'a>, OpenError> {
    let decryptor = Decryptor::new(sealed).map_err(why)?;
    let passphrase = decryptor.is_scrypt();
    let opened = decryptor.decrypt(std::iter::once(&Any(identities) as &dyn age::Identity));
    match opened {
        Ok(opened) => Ok(Box::new(opened)),
        // Of a passphrase, damage and a wrong one look alike; the second is likelier.
        Err(DecryptError::DecryptionFailed) if passphrase => Err(OpenError::NoKey),
        Err(e) => Err(why(e)),
    }
}

fn why(e: DecryptError) -> OpenError {
    match e {
        DecryptError::NoMatchingKeys | DecryptError::KeyDecryptionFailed => OpenError::NoKey,
        DecryptError::InvalidHeader | DecryptError::UnknownFormat => {
            OpenError::Damaged("it does not begin like a file of age".to_owned())
        }
        DecryptError::InvalidMac => OpenError::Damaged("its header is not authentic".to_owned()),
        DecryptError::DecryptionFailed => OpenError::Damaged("its key does not decrypt".to_owned()),
        DecryptError::Io(e) => OpenError::Other(e.to_string()),
        e => OpenError::Other(e.to_string()),
    }
}

pub(super) fn generate() -> Result<(Secret, String), ConfigError> {
    let identity = age::x25519::Identity::generate();
    let public = identity.to_public().to_string();
    Ok((Secret::new(identity.to_string().expose_secret()), public))
}
