//! How much is on its way to and from object stores at a time: bounds the memory of the process, however many bodies it
//! moves at once.

use tokio::sync::{Semaphore, SemaphorePermit};

/// What all bodies together may have on their way, in MiB, beside the one part that each of them may always have. One that is
/// alone has all that makes it faster.
static AHEAD: Semaphore = Semaphore::const_new(80);

/// Leave for `bytes` more to be on their way, until it is dropped. Nobody waits for it: what would have to wait for others'
/// bodies could wait for ever, if these wait for it.
pub(super) fn leave(bytes: usize) -> Option<SemaphorePermit<'static>> {
    leave_of(&AHEAD, bytes)
}

fn leave_of(pool: &Semaphore, bytes: usize) -> Option<SemaphorePermit<'_>> {
    pool.try_acquire_many(u32::try_from(bytes.div_ceil(1 << 20)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_there_for_others() {
        let pool = Semaphore::new(32);
        let held = [leave_of(&pool, 16 << 20), leave_of(&pool, (15 << 20) + 1)];
        assert!(held.iter().all(Option::is_some));
        assert!(leave_of(&pool, 1).is_none() && leave_of(&pool, usize::MAX).is_none());
        drop(held);
        assert!(leave_of(&pool, 32 << 20).is_some());
    }
}
