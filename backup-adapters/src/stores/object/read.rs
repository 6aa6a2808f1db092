//! Reading: chunks of about 1 MiB, whatever the network delivers, and never a clean end before the end.

use std::io;

use backup_core::{ByteStream, CHUNK_BYTES, StoreError, StoreKey};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream, FuturesOrdered};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore as _};

use super::{ObjectStore, ahead, fault};

/// What one request asks for, of an object that is much longer (8 MiB), and how many are on their way at a time, at most;
/// those of other bodies count as well (`ahead`). One connection alone is slower than the network, and a request that takes an
/// hour never ends well.
const PIECE_BYTES: u64 = 8 << 20;
const IN_FLIGHT: usize = 4;

/// From this size on a chunk is passed on as it is; smaller ones are collected.
const LARGE_BYTES: usize = CHUNK_BYTES / 4;

struct Body {
    store: ObjectStore,
    key: StoreKey,
    source: BoxStream<'static, object_store::Result<Bytes>>,
    /// A large piece that is being handed out in slices.
    large: Bytes,
    /// Small pieces, put together.
    small: BytesMut,
    left: u64,
    ended: bool,
}

pub(super) fn stream(
    store: ObjectStore,
    key: StoreKey,
    path: Path,
    got: GetResult,
) -> ByteStream<StoreError> {
    let left = got.range.end - got.range.start;
    let source = if left <= 2 * PIECE_BYTES { got.into_stream() } else { pieces(&store, path, got) };
    let body = Body { store, key, source, large: Bytes::new(), small: BytesMut::new(), left, ended: false };
    stream::unfold(body, |mut body| async move { body.next().await.map(|chunk| (chunk, body)) }).boxed()
}

/// The first piece is that of the answer that came, which is then left; the others are asked for one by one.
fn pieces(
    store: &ObjectStore,
    path: Path,
    got: GetResult,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    let (size, version) = (got.meta.size, got.meta.e_tag.clone());
    let first = got.into_stream().scan(PIECE_BYTES, |left, piece| {
        let piece = piece.map(|mut piece| {
            piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= piece.len() as u64;
            piece
        });
        std::future::ready(Some(piece).filter(|piece| !piece.as_ref().is_ok_and(Bytes::is_empty)))
    });
    let inner = std::sync::Arc::clone(&store.inner);
    let mut others = (1..size.div_ceil(PIECE_BYTES)).map(move |n| {
        let range = n * PIECE_BYTES..((n + 1) * PIECE_BYTES).min(size);
        let options = GetOptions {
            // The same object: what somebody else exchanged meanwhile would be no whole of anything.
            if_match: version.clone(),
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let (inner, path) = (std::sync::Arc::clone(&inner), path.clone());
        async move { inner.get_opts(&path, options).await?.bytes().await }
    });
    // As many as there is leave for, and one in any case. The leave lasts until the piece is handed out.
    let on_their_way = stream::unfold(FuturesOrdered::new(), move |mut queue| {
        while queue.len() < IN_FLIGHT {
            let leave = ahead::leave(PIECE_BYTES as usize);
            if leave.is_none() && !queue.is_empty() {
                break;
            }
            let Some(piece) = others.next() else { break };
            queue.push_back(async move { (piece.await, leave) });
        }
        async move { queue.next().await.map(|(piece, _leave)| (piece, queue)) }
    });
    first.chain(on_their_way).boxed()
}

impl Body {
    async fn next(&mut self) -> Option<Result<Bytes, StoreError>> {
        while !self.ended || !self.large.is_empty() {
            if !self.large.is_empty() {
                // No crumbs: a rest of less than a chunk goes with the last one.
                let whole = self.large.len() < 2 * CHUNK_BYTES;
                let bytes = if whole { self.large.len() } else { CHUNK_BYTES };
                return Some(Ok(self.large.split_to(bytes)));
            }
            match self.source.next().await {
                Some(Ok(piece)) => {
                    self.left = match self.left.checked_sub(piece.len() as u64) {
                        Some(left) => left,
                        None => return self.fail("more bytes came than the object has"),
                    };
                    if self.small.is_empty() && piece.len() >= LARGE_BYTES {
                        self.large = piece;
                    } else {
                        self.small.extend_from_slice(&piece);
                        if self.small.len() >= CHUNK_BYTES {
                            self.large = self.small.split().freeze();
                        }
                    }
                }
                Some(Err(e)) => {
                    self.ended = true;
                    return Some(Err(self.store.fault("read", &self.key, e)));
                }
                None if self.left > 0 => {
                    let what = format!("the transfer ended {} bytes early", self.left);
                    return self.fail(&what);
                }
                None => {
                    self.ended = true;
                    self.large = self.small.split().freeze();
                }
            }
        }
        None
    }

    fn fail(&mut self, what: &str) -> Option<Result<Bytes, StoreError>> {
        self.ended = true;
        let cause = io::Error::new(io::ErrorKind::UnexpectedEof, what.to_owned());
        Some(Err(fault::retryable("read", &self.key, cause.into())))
    }
}
