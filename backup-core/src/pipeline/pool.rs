//! Reuse of large buffers and codec contexts: allocating them anew for each frame costs page faults that show.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Things that are given back after use, up to a limit.
#[derive(Debug)]
pub(super) struct Pool<T> {
    free: Mutex<Vec<T>>,
    limit: usize,
}

impl<T> Pool<T> {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(Vec::new()), limit })
    }

    pub(super) fn take(&self) -> Option<T> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(super) fn put(&self, item: T) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.limit {
            free.push(item);
        }
    }
}

/// Buffers of one capacity.
#[derive(Debug, Clone)]
pub(super) struct Buffers {
    pool: Arc<Pool<Vec<u8>>>,
    capacity: usize,
}

impl Buffers {
    pub(super) fn new(limit: usize, capacity: usize) -> Self {
        Self { pool: Pool::new(limit), capacity }
    }

    /// An empty buffer.
    pub(super) fn take(&self) -> Vec<u8> {
        let mut buffer = self.pool.take().unwrap_or_else(|| Vec::with_capacity(self.capacity));
        buffer.clear();
        buffer
    }

    /// Makes `buffer` shareable; it comes back when the last reference is dropped.
    pub(super) fn freeze(&self, buffer: Vec<u8>) -> Bytes {
        // A receiver may keep many chunks: few bytes must not keep a whole buffer.
        if buffer.len() < self.capacity / 4 {
            let bytes = Bytes::copy_from_slice(&buffer);
            self.pool.put(buffer);
            return bytes;
        }
        Bytes::from_owner(Lent { buffer, pool: Arc::clone(&self.pool) })
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: Arc<Pool<Vec<u8>>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_reference_goes() {
        let buffers = Buffers::new(2, 8);
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"12345678");
        let at = buffer.as_ptr();
        let bytes = buffers.freeze(buffer);
        let second = bytes.clone();
        drop(bytes);
        let other = buffers.take();
        assert_ne!(other.as_ptr(), at, "still in use");
        drop(second);
        let again = buffers.take();
        assert_eq!(again.as_ptr(), at);
    }

    #[test]
    fn few_bytes_do_not_keep_a_large_buffer() {
        let buffers = Buffers::new(2, 1 << 20);
        let mut buffer = buffers.take();
        buffer.push(1);
        let at = buffer.as_ptr();
        let _kept = buffers.freeze(buffer);
        let again = buffers.take();
        assert_eq!(again.as_ptr(), at);
    }
}
