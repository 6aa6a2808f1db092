//! What a program without encryption says of it.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::sync::Arc;

use super::{OpenError, Seal};
use crate::error::ConfigError;
use crate::secret::Secret;

/// There are none.
pub(super) struct Recipients(Infallible);

/// There are none.
pub(super) struct Identity(Infallible);

fn absent() -> ConfigError {
    ConfigError::new("encryption is not in this program").hint("build it with the Cargo feature `age`")
}

pub(super) fn recipients(_: &[&str]) -> Result<Recipients, ConfigError> {
    Err(absent())
}

pub(super) fn passphrase_recipient(_: &Secret) -> Result<Recipients, ConfigError> {
    Err(absent())
}

pub(super) fn identities(_: &Secret, _: &str) -> Result<Vec<Identity>, ConfigError> {
    Err(absent())
}

pub(super) fn passphrase_identity(_: &Secret) -> Result<Identity, ConfigError> {
    Err(absent())
}

pub(super) fn public_key(identity: &Identity) -> Option<String> {
    match identity.0 {}
}

pub(super) fn seal<'a>(recipients: &Recipients, _: impl Write + Send + 'a) -> io::Result<Box<dyn Seal + 'a>> {
    match recipients.0 {}
}

pub(super) fn open<'a>(
    _: &[Arc<Identity>],
    _: impl Read + Send + 'a,
) -> Result<Box<dyn Read + Send + 'a>, OpenError> {
    Err(OpenError::Other("this program was built without encryption (Cargo feature `age`)".to_owned()))
}

pub(super) fn generate() -> Result<(Secret, String), ConfigError> {
    Err(absent())
}
