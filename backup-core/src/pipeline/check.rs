//! What stored bytes are compared with.

use futures::StreamExt;
use sha2::{Digest, Sha256};

use super::observer::{Observe, Observer};
use crate::adapter::ContentCheck;
use crate::error::{AdapterError, StoreError};
use crate::metadata::{ArtifactMeta, Evidence, StoredFile};
use crate::source::ByteStream;

/// What metadata.json says of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// What was applied, in order.
    pub encodings: Vec<String>,
    /// The stored files, whose concatenation is read.
    pub files: Vec<StoredFile>,
    /// Length before any encoding, in bytes.
    pub plain_bytes: u64,
    /// BLAKE3 of the plain bytes, lower-case hex.
    pub plain_blake3: String,
}

impl Expected {
    /// What is known of `artifact`.
    #[must_use]
    pub fn of(artifact: &ArtifactMeta) -> Self {
        Self {
            encodings: artifact.encodings.clone(),
            files: artifact.files.clone(),
            plain_bytes: artifact.plain_bytes,
            plain_blake3: artifact.plain_blake3.clone(),
        }
    }

    /// Sum of the stored files, in bytes.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.stored_bytes))
    }

    /// Which file holds the stored byte `offset`, and the offset in it. Beyond the end: the end of the last file.
    pub(super) fn position(&self, mut offset: u64) -> (usize, u64) {
        for (i, file) in self.files.iter().enumerate() {
            if offset < file.stored_bytes {
                return (i, offset);
            }
            offset -= file.stored_bytes;
        }
        (self.files.len().saturating_sub(1), self.files.last().map_or(0, |f| f.stored_bytes))
    }

    /// The name of the file that holds the stored byte `offset`.
    pub(super) fn locate(&self, offset: u64) -> &str {
        self.name_of(self.position(offset).0)
    }

    /// The name of one of the files.
    pub(super) fn name_of(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |f| &f.path)
    }

    /// A name for error messages.
    pub(super) fn name(&self) -> &str {
        self.name_of(0)
    }
}

/// Compares files, one after the other, with their lengths and SHA-256.
pub(super) struct FilesObserver {
    files: Vec<StoredFile>,
    index: usize,
    seen: u64,
    hash: Sha256,
}

impl FilesObserver {
    pub(super) fn new(files: Vec<StoredFile>) -> Self {
        Self { files, index: 0, seen: 0, hash: Sha256::new() }
    }

    /// Compares every file that is complete by now.
    fn close(&mut self) -> Result<(), AdapterError> {
        while let Some(file) = self.files.get(self.index).filter(|f| f.stored_bytes == self.seen) {
            let found = hex::encode(self.hash.finalize_reset());
            if found != file.stored_sha256 {
                return Err(AdapterError::corrupt(format!(
                    "`{}` is damaged: its SHA-256 is {found}, not {}",
                    file.path, file.stored_sha256
                )));
            }
            (self.index, self.seen) = (self.index + 1, 0);
        }
        Ok(())
    }
}

impl Observe for FilesObserver {
    type Output = ();

    fn update(&mut self, mut bytes: &[u8]) -> Result<(), AdapterError> {
        while !bytes.is_empty() {
            self.close()?;
            let Some(file) = self.files.get(self.index) else {
                return Err(AdapterError::corrupt("there are more stored bytes than recorded"));
            };
            let left = usize::try_from(file.stored_bytes - self.seen).unwrap_or(usize::MAX);
            let (here, rest) = bytes.split_at(bytes.len().min(left));
            self.hash.update(here);
            self.seen += here.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), AdapterError> {
        self.close()?;
        match self.files.get(self.index) {
            None => Ok(()),
            Some(file) => Err(AdapterError::corrupt(format!(
                "`{}` is cut: {} of {} bytes are there",
                file.path, self.seen, file.stored_bytes
            ))),
        }
    }
}

/// What is wrong with a stored file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoredFault {
    /// It could not be read; says nothing of its contents.
    #[error("cannot read the stored bytes")]
    Read(#[source] StoreError),
    /// It is not what was recorded; the message says how.
    #[error(transparent)]
    Damaged(AdapterError),
}

/// Compares a stored file with its recorded length and SHA-256, without decoding it.
///
/// # Errors
/// [`StoredFault`]. A file that is longer than recorded is not read further.
pub async fn check_stored(mut stored: ByteStream<StoreError>, file: &StoredFile) -> Result<(), StoredFault> {
    let mut observer = Observer::spawn("the hash", FilesObserver::new(vec![file.clone()]));
    while let Some(chunk) = stored.next().await {
        let chunk = chunk.map_err(StoredFault::Read)?;
        observer.send(chunk).await.map_err(StoredFault::Damaged)?;
    }
    observer.finish().await.map_err(StoredFault::Damaged)
}

/// As [`check_stored`], of bytes that somebody else passes on meanwhile.
#[derive(Debug)]
pub(crate) struct StoredCheck(Observer<()>);

impl StoredCheck {
    pub(crate) fn new(file: &StoredFile) -> Self {
        Self(Observer::spawn("the hash", FilesObserver::new(vec![file.clone()])))
    }

    /// Fails as soon as there are more bytes than recorded.
    pub(crate) async fn send(&mut self, chunk: bytes::Bytes) -> Result<(), AdapterError> {
        self.0.send(chunk).await
    }

    /// What the bytes, all of them, are.
    pub(crate) async fn finish(self) -> Result<(), AdapterError> {
        self.0.finish().await
    }
}

/// What [`drain`] saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// How many bytes came.
    pub plain_bytes: u64,
    /// What the content check counted, if there was one.
    pub evidence: Option<Evidence>,
}

/// Reads `plain` to its end, keeps nothing, and shows every byte to `check` on a thread of its own.
///
/// It hashes nothing: what comes from [`unpump`](super::unpump()) is proven by its end.
///
/// # Errors
/// That of `plain`, else that of `check`.
pub async fn drain(
    mut plain: ByteStream<AdapterError>,
    check: Option<Box<dyn ContentCheck>>,
) -> Result<Drained, AdapterError> {
    let mut observer = check.map(|check| Observer::spawn("the content check", CheckObserver(check)));
    let mut drained = Drained::default();
    while let Some(chunk) = plain.next().await {
        let chunk = chunk?;
        drained.plain_bytes += chunk.len() as u64;
        if let Some(observer) = &mut observer {
            observer.send(chunk).await?;
        }
    }
    if let Some(observer) = observer {
        drained.evidence = Some(observer.finish().await?);
    }
    Ok(drained)
}

struct CheckObserver(Box<dyn ContentCheck>);

impl Observe for CheckObserver {
    type Output = Evidence;

    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.0.update(bytes)
    }

    fn finish(self) -> Result<Evidence, AdapterError> {
        self.0.finish()
    }
}
