//! What is not known of a file that other programs wrote: read once to its end, so that it can be read again like ours.

use futures::StreamExt;

use super::gzip::Gunzip;
use super::observer::{Observer, PlainObserver, Sha256Observer};
use super::stored_side::unreadable;
use super::{GZIP, PipelineSettings};
use crate::adapter::ContentCheck;
use crate::error::{AdapterError, StoreError};
use crate::metadata::Evidence;
use crate::source::ByteStream;

/// What [`measure`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// Length as stored, in bytes.
    pub stored_bytes: u64,
    /// SHA-256 as stored, lower-case hex.
    pub stored_sha256: String,
    /// Length decoded, in bytes.
    pub plain_bytes: u64,
    /// BLAKE3 of the decoded bytes, lower-case hex.
    pub plain_blake3: String,
    /// What the content check counted, if there was one.
    pub evidence: Option<Evidence>,
}

/// Reads `stored`, the file `name`, to its end, decodes it, and shows every plain byte to `check`.
///
/// For files of which no length and no hash were recorded. What it returns proves nothing of what the file once was:
/// only that it is whole as far as its own format can tell, and that a second reading gives the same bytes, if
/// [`unpump`](super::unpump()) is given these values.
///
/// # Errors
/// `Corrupt` if it does not decode to its end; that of `check`; `Unsupported` for an encoding other than none and
/// [`GZIP`]; `Cancelled`.
pub async fn measure(
    stored: ByteStream<StoreError>,
    name: &str,
    encodings: &[String],
    check: Option<Box<dyn ContentCheck>>,
    settings: &PipelineSettings,
) -> Result<Measured, AdapterError> {
    tokio::select! {
        biased;
        () = settings.cancel.cancelled() => Err(AdapterError::cancelled()),
        measured = read(stored, name, encodings, check, settings) => measured,
    }
}

async fn read(
    mut stored: ByteStream<StoreError>,
    name: &str,
    encodings: &[String],
    check: Option<Box<dyn ContentCheck>>,
    settings: &PipelineSettings,
) -> Result<Measured, AdapterError> {
    let mut gunzip = match encodings {
        [] => None,
        [one] if one == GZIP => Some(Gunzip::default()),
        other => {
            let what = format!("cannot decode `{name}`: encoded as `{}`", other.join("`, `"));
            return Err(AdapterError::unsupported(what));
        }
    };
    let mut sha256 = Observer::spawn("the hash", Sha256Observer::default());
    let mut plain = Observer::spawn("the content check", PlainObserver::new(check));
    let mut measured = Measured::default();
    while let Some(chunk) = stored.next().await {
        let chunk = chunk.map_err(|e| unreadable(name, e))?;
        if chunk.is_empty() {
            continue;
        }
        let at = measured.stored_bytes;
        measured.stored_bytes += chunk.len() as u64;
        sha256.send(chunk.clone()).await?;
        match &mut gunzip {
            None => {
                measured.plain_bytes += chunk.len() as u64;
                plain.send(chunk).await?;
            }
            Some(gunzip) => {
                gunzip.push(chunk);
                while let Some(piece) = gunzip.step().await? {
                    let piece = piece.map_err(|what| damaged(name, at, &what))?;
                    measured.plain_bytes += piece.len() as u64;
                    plain.send(piece).await?;
                }
            }
        }
        (settings.progress)(measured.plain_bytes);
    }
    if let Some(gunzip) = gunzip {
        let last = gunzip.finish().map_err(|what| damaged(name, measured.stored_bytes, &what))?;
        measured.plain_bytes += last.len() as u64;
        plain.send(last).await?;
    }
    measured.stored_sha256 = sha256.finish().await?;
    (measured.plain_blake3, measured.evidence) = plain.finish().await?;
    Ok(measured)
}

fn damaged(name: &str, at: u64, what: &str) -> AdapterError {
    AdapterError::corrupt(format!("`{name}` is damaged: near stored byte {at}: {what}"))
}
