//! Plain bytes to stored bytes, and back.
//!
//! ```text
//! pump:    body ─ frames of 1 MiB ─┬─▶ blake3 + content check      (observer thread)
//!                                  └─▶ zstd, `threads` at a time ─ in order ─ [age] ─┬─▶ sha256   (observer thread)
//!                                               with age, to several of these if need be ─┴─▶ StoreWriter
//! unpump:  stored ─┬─▶ sha256      (observer thread)
//!                  └─▶ [age] ─ split into frames ─ zstd, `threads` at a time ─ in order ─┬─▶ blake3   (observer thread)
//!                                                                               └─▶ reader
//! ```
//!
//! A stored file is a sequence of independent zstd frames ([RFC 8878]), each of [`CHUNK_BYTES`](crate::CHUNK_BYTES)
//! plain bytes (the last one shorter), with their length in the header and an XXH64 checksum at the end, followed by a
//! seek table in a skippable frame. `zstd -d` reads it as it is. Encryption stands between the frames and sha256, so that
//! the hash of a stored file needs no key; it is the work of one thread. Where that is the limit, the artifact becomes several
//! files ([`PipelineSettings::files`]): decrypted each by itself, and concatenated, they are the frames again.
//!
//! Memory is bounded by about `threads` + 6 frames of 1 MiB on either side of the codec, whatever the length, and by the
//! [backlog](PipelineSettings::backlog) of each file that is being encrypted.
//! Neither direction touches the data on an async thread; each holds two threads of tokio's blocking pool while it
//! runs, besides those that compress.
//!
//! [RFC 8878]: https://www.rfc-editor.org/rfc/rfc8878

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::encryption::{Identities, Recipients};

mod check;
mod decode;
mod frames;
mod gzip;
mod measure;
mod observer;
mod pool;
mod pump;
mod sealed;
mod sealed_files;
mod seek_table;
mod split;
mod stored_side;
mod unpump;

pub(crate) use check::StoredCheck;
pub use check::{Drained, Expected, StoredFault, check_stored, drain};
pub use measure::{Measured, measure};
pub use pump::{Encoded, EncodedFile, OneFile, OpenFile, PumpError, pump};
pub use unpump::unpump;

/// The name of zstd in `encodings`.
pub const ZSTD: &str = "zstd";

pub use crate::encryption::AGE;

/// The name of gzip in `encodings`: read, where other programs wrote it, and never written.
pub const GZIP: &str = "gzip";

/// How many finished frames may wait for the next stage, besides those being worked on.
const LOOKAHEAD: usize = 2;

/// How many frames wait for the encryption of a file, if not told otherwise: 16 MiB, of what does not compress.
pub(crate) const BACKLOG: usize = 16;

/// How to run a pipeline.
#[derive(Clone)]
#[non_exhaustive]
pub struct PipelineSettings {
    /// The zstd level; 1 is the default, and close to the best ratio for its cost on real data.
    pub level: i32,
    /// How many frames are compressed or decompressed at the same time. At least 1.
    pub threads: usize,
    /// Ends the transfer early.
    pub cancel: CancellationToken,
    /// For whom what is stored is encrypted, if for anybody.
    pub recipients: Option<Recipients>,
    /// How many files may be encrypted at the same time; at least 1, which means that it is one file. With more, an artifact
    /// whose encryption (or its SHA-256) cannot follow goes on in another file, as often as it takes. What the store holds up
    /// is not divided.
    pub files: usize,
    /// How many frames wait for the encryption of a file before the next one begins. At least 1.
    pub backlog: usize,
    /// What decrypts what is read.
    pub identities: Identities,
    /// Told how many plain bytes went through so far, about once per MiB. Must return at once.
    pub progress: Arc<dyn Fn(u64) + Send + Sync>,
}

impl PipelineSettings {
    /// Level 1 on `threads` threads, without progress.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            level: 1,
            threads,
            cancel: CancellationToken::new(),
            recipients: None,
            files: 1,
            backlog: BACKLOG,
            identities: Identities::default(),
            progress: Arc::new(|_| {}),
        }
    }

    /// Sets the zstd level.
    #[must_use]
    pub fn with_level(mut self, level: i32) -> Self {
        self.level = level;
        self
    }

    /// Sets what ends the transfer early.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Sets for whom what is stored is encrypted.
    #[must_use]
    pub fn with_recipients(mut self, recipients: Option<Recipients>) -> Self {
        self.recipients = recipients;
        self
    }

    /// Sets how many files may be encrypted at the same time.
    #[must_use]
    pub fn with_files(mut self, files: usize) -> Self {
        self.files = files;
        self
    }

    /// Sets how many frames wait for the encryption of a file before the next one begins.
    #[must_use]
    pub fn with_backlog(mut self, frames: usize) -> Self {
        self.backlog = frames;
        self
    }

    /// Sets what decrypts what is read.
    #[must_use]
    pub fn with_identities(mut self, identities: Identities) -> Self {
        self.identities = identities;
        self
    }

    /// Sets who is told of the progress.
    #[must_use]
    pub fn with_progress(mut self, progress: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(progress);
        self
    }

    fn threads(&self) -> usize {
        self.threads.max(1)
    }
}

impl fmt::Debug for PipelineSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineSettings")
            .field("level", &self.level)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}
