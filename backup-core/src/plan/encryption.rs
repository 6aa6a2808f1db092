//! For whom each service is encrypted.

use std::path::Path;

use super::{EncryptFor, PlannedKeys};
use crate::config::explain::quoted_key;
use crate::config::{Encrypt, EncryptionConfig};
use crate::encryption::Recipients;
use crate::error::ConfigError;
use crate::id::ServiceName;

/// `[encryption]`, checked.
pub(super) struct Encryption {
    /// What services get that do not say otherwise.
    default: Option<EncryptFor>,
    pub(super) keys: PlannedKeys,
}

pub(super) fn resolve(config: EncryptionConfig, base_dir: &Path) -> Result<Encryption, ConfigError> {
    let passphrase = config.passphrase.map(|p| p.relative_to(base_dir));
    let default = match &passphrase {
        Some(passphrase) => Some(EncryptFor::Passphrase(passphrase.clone())),
        None if config.recipients.is_empty() => None,
        None => Some(EncryptFor::Recipients(
            Recipients::parse(&config.recipients).map_err(|e| e.at("encryption.recipients"))?,
        )),
    };
    let identities = config.identities.into_iter().map(|i| i.relative_to(base_dir)).collect();
    Ok(Encryption { default, keys: PlannedKeys { identities, passphrase } })
}

/// For whom a service is encrypted.
pub(super) fn of(
    service: &ServiceName,
    encrypt: &Encrypt,
    encryption: &Encryption,
) -> Result<Option<EncryptFor>, ConfigError> {
    let place = || format!("services.{}.encrypt", quoted_key(service.as_str()));
    match encrypt {
        Encrypt::No => Ok(None),
        Encrypt::Default => Ok(encryption.default.clone()),
        Encrypt::Yes => match &encryption.default {
            Some(default) => Ok(Some(default.clone())),
            None => Err(ConfigError::new("nobody is named for whom to encrypt").at(place()).hint(
                "write the public keys here, or into `[encryption] recipients`; `backup keys new` makes one",
            )),
        },
        Encrypt::For(texts) => {
            Recipients::parse(texts).map(|r| Some(EncryptFor::Recipients(r))).map_err(|e| e.at(place()))
        }
    }
}
