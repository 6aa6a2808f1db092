//! Backups in a bucket: an object for each file, under the names that the files have in a folder.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{AdapterError, AdapterErrorKind, ByteStream, OpContext, Secret};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _};

use super::{Files, end_of_archive, file_header};
use crate::tree::pax::{Kind, Member, encode, pad};
use crate::weaviate::api::one_line;

/// What one request reads, in bytes: no connection stays open while the consumer is busy with what came before.
const RANGE: u64 = 8 << 20;
/// Requests at once.
const AHEAD: usize = 3;

/// The part of a bucket below the path that the server is told of.
#[derive(Clone)]
pub(in crate::weaviate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// What errors call it.
    name: String,
    /// The keys: what the storage says may repeat them.
    keys: Vec<Secret>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the client: it knows the keys.
        f.debug_struct("Bucket").field("name", &self.name).field("root", &self.root).finish_non_exhaustive()
    }
}

impl Bucket {
    pub(in crate::weaviate) fn new(
        store: Arc<dyn ObjectStore>,
        root: Path,
        name: String,
        keys: Vec<Secret>,
    ) -> Self {
        Self { store, root, name, keys }
    }

    /// Tries out whether what the server will write as `id` can be listed, read and removed. Changes nothing.
    ///
    /// # Errors
    /// What is wrong with the address, the bucket or the keys.
    pub(in crate::weaviate) async fn try_out(&self, cx: &OpContext, id: &str) -> Result<(), AdapterError> {
        self.names(cx).await?;
        // Nobody has made it.
        let none = self.at(&format!("{id}/try-out"))?;
        let missing = |done: Result<(), Error>| match done {
            Err(Error::NotFound { .. }) => Ok(()),
            done => done,
        };
        let read = cx.within(self.store.get(&none)).await?.map(drop);
        missing(read).map_err(|e| self.failed("be read", e))?;
        missing(cx.within(self.store.delete(&none)).await?).map_err(|e| self.failed("be cleaned", e))
    }

    fn at(&self, path: &str) -> Result<Path, AdapterError> {
        Path::parse(format!("{}/{path}", self.root)).map_err(|e| {
            AdapterError::unsupported(format!("{} cannot hold `{path}`", self.name)).with_source(e)
        })
    }

    /// All objects of a backup, as an archive has them: folder by folder.
    async fn objects(&self, id: &str) -> Result<Vec<(Path, u64)>, AdapterError> {
        let listed = self.store.list(Some(&self.at(id)?)).map_ok(|meta| (meta.location, meta.size));
        let mut all: Vec<_> = listed.try_collect().await.map_err(|e| self.failed("be listed", e))?;
        all.sort_by(|a, b| a.0.parts().cmp(b.0.parts()));
        Ok(all)
    }

    async fn range(&self, cx: &OpContext, at: &Path, range: Range<u64>) -> Result<Bytes, AdapterError> {
        let wanted = range.end - range.start;
        let got = cx.within(self.store.get_range(at, range)).await?;
        let got = got.map_err(|e| self.failed("be read", e))?;
        if got.len() as u64 != wanted {
            let what = format!("`{at}` in {} changed while it was read", self.name);
            return Err(AdapterError::new(AdapterErrorKind::Changed, what));
        }
        Ok(got)
    }

    /// The error for a failure of the storage, on one line and without the keys.
    fn failed(&self, what: &str, e: Error) -> AdapterError {
        let (name, said) = (&self.name, e.to_string());
        let code = said.split_once("<Code>").and_then(|(_, rest)| Some(rest.split_once("</Code>")?.0));
        let of = |code: &str| if code.is_empty() { String::new() } else { format!(" ({code})") };
        let (kind, message) = match (&e, code.unwrap_or_default()) {
            (_, "NoSuchBucket") => (
                AdapterErrorKind::NotFound,
                format!("{name} does not exist: make it, or set `s3.endpoint` to where it is"),
            ),
            (Error::NotFound { path, .. }, _) => {
                (AdapterErrorKind::NotFound, format!("there is no `{path}` in {name}"))
            }
            (
                _,
                "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException",
            ) => (
                AdapterErrorKind::InvalidConfig,
                format!("{name} cannot {what}: set `s3.region` to the region that it is in"),
            ),
            (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, code)
            | (
                _,
                code @ ("AccessDenied"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"),
            ) => (
                AdapterErrorKind::PermissionDenied,
                format!(
                    "{name} cannot {what} with {}{}: set `s3.access_key` and `s3.secret_key` of a user that may list, \
                     read and delete in it",
                    if self.keys.is_empty() { "the role of this machine" } else { "these keys" },
                    of(code)
                ),
            ),
            (_, code) => {
                let mut said = said.clone();
                for key in self.keys.iter().filter(|k| !k.expose().is_empty()) {
                    said = said.replace(key.expose(), "…");
                }
                let keys = if self.keys.is_empty() {
                    "; there are no keys: set `s3.access_key` and `s3.secret_key`"
                } else {
                    ""
                };
                (
                    AdapterErrorKind::Unavailable,
                    format!("{name} cannot {what}{}: {}{keys}", of(code), one_line(&said)),
                )
            }
        };
        AdapterError::new(kind, message)
    }
}

/// A piece of an archive.
enum Piece {
    Ready(Vec<u8>),
    Range(Path, Range<u64>),
}

/// The headers of the folders that `path` is in and that `before` is not in.
fn folders(before: &str, path: &str) -> Result<Vec<u8>, AdapterError> {
    let mut out = Vec::new();
    for (end, _) in path.match_indices('/') {
        let folder = path.get(..=end).unwrap_or_default();
        if !before.starts_with(folder) {
            let name = folder.trim_end_matches('/').as_bytes().to_vec();
            encode(&Member { mode: 0o755, ..Member::new(name, Kind::Dir) }, &mut out)?;
        }
    }
    Ok(out)
}

#[async_trait]
impl Files for Bucket {
    async fn archive(&self, cx: &OpContext, id: &str) -> Result<ByteStream<AdapterError>, AdapterError> {
        let objects = cx.within(self.objects(id)).await??;
        if objects.is_empty() {
            return Err(AdapterError::corrupt(format!("there is no backup `{id}` in {}", self.name)));
        }
        let top = self.root.parts().count();
        let mut before = String::new();
        let files = objects.into_iter().map(move |(at, size)| {
            let names: Vec<_> = at.parts().skip(top).map(|p| p.as_ref().to_owned()).collect();
            let path = names.join("/");
            let mut head = folders(&before, &path)?;
            head.extend(file_header(&path, size)?);
            before = path;
            let (mut start, mut tail) = (0, Vec::new());
            pad(&mut tail, usize::try_from(size % RANGE).unwrap_or(0));
            let ranges = std::iter::from_fn(move || {
                let range = start..size.min(start + RANGE);
                start = range.end;
                (!range.is_empty()).then(|| Piece::Range(at.clone(), range))
            });
            Ok(std::iter::once(Piece::Ready(head)).chain(ranges).chain([Piece::Ready(tail)]))
        });
        let pieces = files.flat_map(|file: Result<_, AdapterError>| {
            let (pieces, failed) = match file {
                Ok(pieces) => (Some(pieces), None),
                Err(e) => (None, Some(Err(e))),
            };
            pieces.into_iter().flatten().map(Ok).chain(failed)
        });
        let mut end = Vec::new();
        end_of_archive(&mut end);
        let (bucket, cx) = (self.clone(), cx.clone());
        let archive = stream::iter(pieces.chain([Ok(Piece::Ready(end))]))
            .map(move |piece| {
                let (bucket, cx) = (bucket.clone(), cx.clone());
                async move {
                    cx.check_alive()?;
                    match piece? {
                        Piece::Ready(bytes) => Ok(Bytes::from(bytes)),
                        Piece::Range(at, range) => bucket.range(&cx, &at, range).await,
                    }
                }
            })
            .buffered(AHEAD)
            .try_filter(|bytes| std::future::ready(!bytes.is_empty()));
        Ok(archive.boxed())
    }

    async fn read(&self, cx: &OpContext, path: &str) -> Result<Vec<u8>, AdapterError> {
        let at = self.at(path)?;
        let read = async { self.store.get(&at).await?.bytes().await };
        Ok(cx.within(read).await?.map_err(|e| self.failed("be read", e))?.into())
    }

    async fn size(&self, id: &str) -> Option<u64> {
        Some(self.objects(id).await.ok()?.iter().map(|(_, size)| size).sum())
    }

    /// An object is there when it is whole.
    fn grows(&self) -> bool {
        false
    }

    async fn names(&self, cx: &OpContext) -> Result<Vec<String>, AdapterError> {
        let listed = cx.within(self.store.list_with_delimiter(Some(&self.root))).await?;
        let prefixes = listed.map_err(|e| self.failed("be listed", e))?.common_prefixes;
        Ok(prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect())
    }

    async fn remove(&self, id: &str) -> Result<(), AdapterError> {
        let ours = self.objects(id).await?.into_iter().map(|(at, _)| Ok(at));
        let mut deleted = self.store.delete_stream(stream::iter(ours.collect::<Vec<_>>()).boxed());
        while let Some(one) = deleted.next().await {
            match one {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(self.failed("be cleaned", e)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
