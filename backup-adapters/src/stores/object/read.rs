//! Reading: chunks of about 1 MiB, whatever the network delivers, and never a clean end before the end.

use std::io;

use backup_core::{ByteStream, CHUNK_BYTES, StoreError, StoreKey};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::GetResult;

use super::error;

/// From this size on a chunk is passed on as it is; smaller ones are collected.
const LARGE_BYTES: usize = CHUNK_BYTES / 4;

struct Body {
    key: StoreKey,
    source: BoxStream<'static, object_store::Result<Bytes>>,
    /// A large piece that is being handed out in slices.
    large: Bytes,
    /// Small pieces, put together.
    small: BytesMut,
    left: u64,
    ended: bool,
}

pub(super) fn stream(key: StoreKey, got: GetResult) -> ByteStream<StoreError> {
    let left = got.range.end - got.range.start;
    let source = got.into_stream();
    let body = Body { key, source, large: Bytes::new(), small: BytesMut::new(), left, ended: false };
    stream::unfold(body, |mut body| async move { body.next().await.map(|chunk| (chunk, body)) }).boxed()
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
                    return Some(Err(error("read", &self.key, e)));
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
        Some(Err(super::retryable("read", &self.key, cause.into())))
    }
}
