//! Keys: for whom a backup is encrypted, and what opens one.
//!
//! What would tell of an encrypted backup's contents is in `private.json.age`. It is also encrypted for a key of the host that
//! made the backup, which is in its state directory and opens nothing else: so the host can compare counts and tell whether
//! something changed, and still cannot read its own backups.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;

use super::{Engine, Inner};
use crate::catalog::PRIVATE;
use crate::context::OpContext;
use crate::encryption::{AGE, Identities, OpenError, PASSPHRASE, Recipients, generate, opens};
use crate::error::{BackupError, ConfigError, StoreError, chain};
use crate::id::BackupId;
use crate::metadata::{ArtifactMeta, Encryption, Metadata, Private, StoredFile};
use crate::pipeline::PipelineSettings;
use crate::plan::{EncryptFor, PlannedService};
use crate::secret::{Secret, SecretRef, SecretResolver};
use crate::store::{Role, WriteOptions};

/// The file of the host's own key in the state directory.
const HOST_KEY: &str = "host.key";

/// The most that a `private.json.age` may have: it is read into memory.
const PRIVATE_BYTES: u64 = 64 << 20;

/// Enough for the header and the first part that is authenticated, however many recipients there are.
const START_BYTES: u64 = 1 << 20;

/// What an encrypted backup is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// To know of it: the host's own key suffices.
    Knowledge,
    /// To restore it: one of those that it was made for.
    Data,
}

/// What keys there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    pub(super) identities: Identities,
    /// Why others are not there, one line each.
    missing: Vec<String>,
}

impl Inner {
    /// For whom a service's backups are encrypted.
    pub(super) async fn recipients(
        &self,
        service: &PlannedService,
    ) -> Result<Option<Recipients>, BackupError> {
        match &service.encrypt {
            None => Ok(None),
            Some(EncryptFor::Recipients(recipients)) => Ok(Some(recipients.clone())),
            Some(EncryptFor::Passphrase(reference)) => {
                let secret = resolve(&self.secrets, reference).await?;
                Ok(Some(Recipients::passphrase(&secret)?))
            }
        }
    }

    /// The keys that are configured, as far as they are there.
    pub(super) async fn keys(&self) -> Keys {
        let mut keys = Keys::default();
        for reference in &self.plan.keys.identities {
            let place = place(reference);
            let added = match resolve(&self.secrets, reference).await {
                Ok(text) => keys.identities.add(&text, &place),
                Err(e) => Err(e),
            };
            keys.missing.extend(added.err().map(|e| chain(&e)));
        }
        if let Some(reference) = &self.plan.keys.passphrase {
            let added = match resolve(&self.secrets, reference).await {
                Ok(passphrase) => keys.identities.add_passphrase(&passphrase),
                Err(e) => Err(e),
            };
            keys.missing.extend(added.err().map(|e| chain(&e)));
        }
        if let Ok(mut at_hand) = self.keys_at_hand.lock() {
            *at_hand = Some(keys.identities.clone());
        }
        keys
    }

    /// `metadata` with its private part.
    ///
    /// # Errors
    /// [`BackupError::NoKey`]; [`BackupError::Damaged`].
    pub(super) async fn opened(&self, metadata: Metadata, need: Need) -> Result<Metadata, BackupError> {
        let Some(encryption) = metadata.encryption.clone() else { return Ok(metadata) };
        let id = metadata.id();
        let damaged = |what: String| BackupError::Damaged {
            id: id.clone(),
            file: encryption.private.path.clone(),
            what,
        };
        let sealed = self.read_private(&id, &encryption.private).await?;
        if need == Need::Knowledge
            && let Some(host) = self.host_key(false)?
            && let Ok(plain) = host.open_bytes(&sealed)
        {
            return merged(metadata, &plain).map_err(damaged);
        }
        let keys = self.keys().await;
        // A passphrase takes a second of work.
        let identities = keys.identities.clone();
        let opened = tokio::task::spawn_blocking(move || identities.open_bytes(&sealed)).await;
        let opened = opened.map_err(|e| BackupError::Refused(format!("the program failed inside: {e}")))?;
        match opened {
            Ok(plain) => merged(metadata, &plain).map_err(damaged),
            Err(OpenError::NoKey) => Err(BackupError::NoKey {
                id,
                recipients: encryption.recipients,
                missing: keys.missing,
                tried: keys.identities.len(),
            }),
            Err(OpenError::Damaged(what)) => Err(damaged(what)),
            Err(e) => Err(BackupError::Refused(format!("{id}: {e}"))),
        }
    }

    /// The same, as far as the keys at hand allow: for what is only compared.
    pub(super) async fn opened_if_possible(&self, metadata: Metadata) -> Result<Metadata, BackupError> {
        match self.opened(metadata.clone(), Need::Knowledge).await {
            Err(BackupError::NoKey { .. }) => Ok(metadata),
            other => other,
        }
    }

    async fn read_private(&self, id: &BackupId, file: &StoredFile) -> Result<Bytes, BackupError> {
        let damaged = |what: &str| BackupError::Damaged {
            id: id.clone(),
            file: file.path.clone(),
            what: what.to_owned(),
        };
        if file.stored_bytes > PRIVATE_BYTES {
            return Err(damaged("it is too large to be what it should be"));
        }
        let key = id.file(&file.path).map_err(|e| damaged(&e.to_string()))?;
        let failed = |e: StoreError| super::verify::lost_or_unreachable(id, &file.path, e);
        let stream = self.catalog.store().read(&key).await.map_err(failed)?;
        let whole = stream.try_fold(Vec::new(), |mut all, chunk| async move {
            if all.len() as u64 <= file.stored_bytes {
                all.extend_from_slice(&chunk);
            }
            Ok(all)
        });
        let whole = whole.await.map_err(failed)?;
        let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&whole));
        if whole.len() as u64 != file.stored_bytes || sha256 != file.stored_sha256 {
            return Err(damaged("its length or its SHA-256 is not the recorded one"));
        }
        Ok(whole.into())
    }

    /// Takes the private part out of `metadata` and writes it.
    pub(super) async fn seal_private(
        &self,
        draft: &crate::catalog::Draft,
        metadata: &mut Metadata,
        recipients: &Recipients,
    ) -> Result<(), BackupError> {
        let failed = |what: &str| BackupError::Refused(format!("cannot encrypt `{PRIVATE}`: {what}"));
        let plain = serde_json::to_vec(&metadata.split_private()).map_err(|e| failed(&e.to_string()))?;
        let readers = self.with_host(recipients)?;
        let sealed = tokio::task::spawn_blocking(move || readers.seal_bytes(&plain)).await;
        let sealed = sealed.map_err(|e| failed(&e.to_string()))?.map_err(|e| failed(&e.to_string()))?;
        let (bytes, sha256) =
            (sealed.len() as u64, hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&sealed)));
        let mut writer =
            draft.writer(PRIVATE, WriteOptions::data(Some(bytes)).with_role(Role::Control)).await?;
        let store = |e| BackupError::store(format!("write {}", draft.id()), e);
        writer.write(sealed.into()).await.map_err(store)?;
        writer.finish().await.map_err(store)?;
        metadata.features.push(AGE.to_owned());
        metadata.size_bytes += bytes;
        metadata.encryption = Some(Encryption {
            recipients: recipients.shown().to_vec(),
            private: StoredFile { path: PRIVATE.to_owned(), stored_bytes: bytes, stored_sha256: sha256 },
        });
        Ok(())
    }

    /// Those who may know of a backup. A passphrase stands alone: the host that uses it knows it anyway.
    fn with_host(&self, recipients: &Recipients) -> Result<Recipients, BackupError> {
        if recipients.shown() == [PASSPHRASE] {
            return Ok(recipients.clone());
        }
        let host = self.host_key(true)?.map(|host| host.public_keys()).unwrap_or_default();
        let all: Vec<String> = recipients.shown().iter().cloned().chain(host).collect();
        Ok(Recipients::parse(&all)?)
    }

    /// The host's own key; made if it is not there and `make` says so.
    fn host_key(&self, make: bool) -> Result<Option<Identities>, BackupError> {
        let path = self.state.root().join(HOST_KEY);
        let failed = |what: &str| {
            let what = format!("{what} `{}`", path.display());
            move |source| BackupError::State { what, source }
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Secret::new(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !make => return Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let (text, _) = generate(self.clock.now())?;
                match create_private(&path, text.expose().as_bytes()) {
                    Ok(()) => text,
                    // Another process was first.
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                        Secret::new(std::fs::read_to_string(&path).map_err(failed("reading"))?)
                    }
                    Err(e) => return Err(failed("making")(e)),
                }
            }
            Err(e) => return Err(failed("reading")(e)),
        };
        let mut identities = Identities::default();
        identities.add(&text, &format!("the file `{}`", path.display()))?;
        Ok(Some(identities))
    }
}

impl Engine {
    /// The metadata of a backup, with its private part if one of the keys at hand opens that.
    ///
    /// # Errors
    /// [`BackupError::Damaged`]; those of the store.
    pub async fn metadata(&self, id: &BackupId) -> Result<Metadata, BackupError> {
        let metadata = self.inner.catalog.metadata(id).await?;
        self.inner.opened_if_possible(metadata).await
    }

    /// Whether the configured keys open a backup: its private part, and the beginning of each of its files.
    ///
    /// # Errors
    /// [`BackupError::NoKey`] if they do not; [`BackupError::Damaged`]; those of the store.
    pub async fn check_key(&self, id: &BackupId) -> Result<Metadata, BackupError> {
        let inner = &self.inner;
        let metadata = inner.opened(inner.catalog.metadata(id).await?, Need::Data).await?;
        for artifact in metadata.artifacts.iter().filter(|a| a.encodings.iter().any(|e| e == AGE)) {
            for file in &artifact.files {
                inner.opens(id, file).await?;
            }
        }
        Ok(metadata)
    }
}

impl Inner {
    async fn opens(&self, id: &BackupId, file: &StoredFile) -> Result<(), BackupError> {
        let damaged = |what: String| BackupError::Damaged { id: id.clone(), file: file.path.clone(), what };
        let key = id.file(&file.path).map_err(|e| damaged(e.to_string()))?;
        let start = self.catalog.store().read_range(&key, 0..file.stored_bytes.min(START_BYTES)).await;
        let start = start.map_err(|e| super::verify::lost_or_unreachable(id, &file.path, e))?;
        let identities = self.identities_at_hand().await;
        let opened = tokio::task::spawn_blocking(move || opens(&identities, &start)).await;
        let opened = opened.map_err(|e| BackupError::Refused(format!("the program failed inside: {e}")))?;
        // The private part was for the same keys, and did open.
        opened.map_err(|e| damaged(e.to_string()))
    }
}

fn merged(metadata: Metadata, plain: &[u8]) -> Result<Metadata, String> {
    let private: Private =
        serde_json::from_slice(plain).map_err(|e| format!("it is not as expected: {e}"))?;
    metadata.with_private(private).ok_or_else(|| "it belongs to another backup".to_owned())
}

/// Writes a file for its owner alone, whole or not at all.
fn create_private(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let dir = path.parent().unwrap_or(std::path::Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(dir)?;
    temp.write_all(bytes)?;
    temp.as_file().sync_all()?;
    temp.persist_noclobber(path).map_err(|e| e.error)?;
    crate::keep_aside::sync_dir(dir)
}

/// Reads a secret, which may take a while: a program is asked.
async fn resolve(secrets: &Arc<dyn SecretResolver>, reference: &SecretRef) -> Result<Secret, ConfigError> {
    let (secrets, reference) = (Arc::clone(secrets), reference.clone());
    let resolved = tokio::task::spawn_blocking(move || secrets.resolve(&reference)).await;
    resolved.map_err(|e| ConfigError::new(format!("a secret could not be read: {e}")))?
}

/// Where a key came from, for messages.
fn place(reference: &SecretRef) -> String {
    match reference {
        SecretRef::Env(name) => format!("the variable `{name}`"),
        SecretRef::File(path) => format!("the file `{}`", path.display()),
        SecretRef::Command(argv) => {
            format!("what the program `{}` prints", argv.first().map(String::as_str).unwrap_or_default())
        }
        SecretRef::Dotenv { path, key } => format!("`{key}` in `{}`", path.display()),
    }
}

impl Inner {
    /// The pipeline's settings for reading one artifact.
    pub(super) async fn reading(&self, cx: &OpContext, artifact: &ArtifactMeta) -> PipelineSettings {
        let settings = self.pipeline(cx, &artifact.name, Some(artifact.plain_bytes));
        if !artifact.encodings.iter().any(|e| e == AGE) {
            return settings;
        }
        settings.with_identities(self.identities_at_hand().await)
    }

    /// As they were when the backup was opened just before: a program that prints a key may be slow, or ask somebody.
    async fn identities_at_hand(&self) -> Identities {
        let known = self.keys_at_hand.lock().ok().and_then(|keys| keys.clone());
        match known {
            Some(identities) => identities,
            None => self.keys().await.identities,
        }
    }
}
