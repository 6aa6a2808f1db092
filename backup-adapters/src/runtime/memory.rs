//! The memory that a test restore may take: what is left over, and no more. Production runs beside it, and so do other test
//! restores: what one of them was given and has not taken yet is not there for the next.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup_core::{AdapterError, AdapterErrorKind};
use tokio::sync::Notify;

/// Memory that a test restore needs, and why that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// How much.
    pub(crate) bytes: u64,
    /// Who says so.
    pub(crate) why: &'static str,
    /// It is also the most that it may take.
    pub(crate) limits: bool,
}

/// What the test restores of this process were given.
static LEDGER: Ledger = Ledger::new();

/// What was given to whom.
#[derive(Debug)]
struct Ledger {
    given: Mutex<Given>,
    /// Told whenever something is given back.
    back: Notify,
}

#[derive(Debug)]
struct Given {
    /// What was available when nobody had anything.
    free: u64,
    /// The services, and how much each has.
    shares: Vec<(String, u64)>,
}

impl Given {
    /// What may still be given, where so much is `available` now. What was given is partly taken already: which part, nobody
    /// knows, so that both sums have to suffice.
    fn left(&self, available: u64) -> u64 {
        let given = self.shares.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
        match self.shares.is_empty() {
            true => available,
            false => available.min(self.free.saturating_sub(given)),
        }
    }
}

/// What a test restore was given. It is spoken for until this is dropped.
#[derive(Debug)]
pub(crate) struct Grant {
    /// The most that it may take, in bytes; `None` if nobody knows how much there is.
    pub(crate) most: Option<u64>,
    _share: Option<Share>,
}

#[derive(Debug)]
struct Share {
    ledger: &'static Ledger,
    service: String,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut given = self.ledger.given();
        let mine = |(service, bytes): &(String, u64)| (service, bytes) == (&self.service, &self.bytes);
        if let Some(at) = given.shares.iter().position(mine) {
            given.shares.swap_remove(at);
        }
        drop(given);
        self.ledger.back.notify_waiters();
    }
}

impl Ledger {
    const fn new() -> Self {
        let given = Mutex::new(Given { free: 0, shares: Vec::new() });
        Self { given, back: Notify::const_new() }
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take<A: Future<Output = Option<u64>>>(
        &'static self,
        service: &str,
        need: Option<Need>,
        available: impl Fn() -> A,
    ) -> Result<Grant, AdapterError> {
        loop {
            let mut back = pin!(self.back.notified());
            back.as_mut().enable();
            let available = available().await;
            match self.try_take(service, need, available)? {
                Some(grant) => return Ok(grant),
                None => back.await,
            }
        }
    }

    /// `None` as long as others have what it needs.
    fn try_take(
        &'static self,
        service: &str,
        need: Option<Need>,
        available: Option<u64>,
    ) -> Result<Option<Grant>, AdapterError> {
        let mut given = self.given();
        let left = available.map(|bytes| given.left(bytes));
        let most = match bounded(service, need, left) {
            Ok(most) => most,
            // Who waited for what it has itself would wait for ever.
            Err(_) if !given.shares.is_empty() && given.shares.iter().all(|(s, _)| s != service) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let share = match (need, available) {
            (Some(need), Some(available)) => {
                if given.shares.is_empty() {
                    given.free = available;
                }
                given.shares.push((service.to_owned(), need.bytes));
                Some(Share { ledger: self, service: service.to_owned(), bytes: need.bytes })
            }
            _ => None,
        };
        Ok(Some(Grant { most, _share: share }))
    }
}

/// Memory for the test restore of `service`, where `available` tells how much there is. It waits as long as other test restores
/// have what it needs.
///
/// # Errors
/// `NoSpace` if there is less than it needs also without them.
pub(crate) async fn take<A: Future<Output = Option<u64>>>(
    service: &str,
    need: Option<Need>,
    available: impl Fn() -> A,
) -> Result<Grant, AdapterError> {
    LEDGER.take(service, need, available).await
}

/// The most memory that the test restore of `service` may take, in bytes; `None` if nobody knows how much there is.
///
/// # Errors
/// `NoSpace` if there is less than it needs.
fn bounded(service: &str, need: Option<Need>, available: Option<u64>) -> Result<Option<u64>, AdapterError> {
    if let (Some(need), Some(available)) = (need, available)
        && need.bytes > available
    {
        let what = format!(
            "the test restore of `{service}` needs about {} of memory ({}), {} are available: free some, or run it elsewhere",
            shown(need.bytes),
            need.why,
            shown(available)
        );
        return Err(AdapterError::new(AdapterErrorKind::NoSpace, what));
    }
    Ok(match need {
        Some(need) if need.limits => Some(need.bytes),
        // An eighth stays for everybody else.
        _ => available.map(|bytes| bytes - bytes / 8),
    })
}

fn shown(bytes: u64) -> String {
    // No need to be exact.
    #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
    let gigabytes = bytes as f64 / 1e9;
    format!("{gigabytes:.1} GB")
}

/// What this host can give now, in bytes.
pub(crate) async fn available() -> Option<u64> {
    of_meminfo(&tokio::fs::read_to_string("/proc/meminfo").await.ok()?)
}

fn of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(bytes: u64, limits: bool) -> Option<Need> {
        Some(Need { bytes, why: "the service's container has that", limits })
    }

    #[test]
    fn what_does_not_fit_is_refused_in_one_line() {
        let e = bounded("neo4j", need(4_200_000_000, true), Some(1_100_000_000)).unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::NoSpace);
        let expected = "the test restore of `neo4j` needs about 4.2 GB of memory (the service's container has that), 1.1 GB are \
                        available: free some, or run it elsewhere";
        assert_eq!(e.to_string(), expected);
    }

    #[test]
    fn what_fits_is_bounded() {
        assert_eq!(bounded("s", need(100, true), Some(800)).unwrap(), Some(100));
        assert_eq!(bounded("s", need(100, false), Some(800)).unwrap(), Some(700));
        // Nothing known is no reason to refuse.
        assert_eq!(bounded("s", None, Some(800)).unwrap(), Some(700));
        assert_eq!(bounded("s", need(100, true), None).unwrap(), Some(100));
        assert_eq!(bounded("s", need(100, false), None).unwrap(), None);
    }

    fn ledger() -> &'static Ledger {
        Box::leak(Box::new(Ledger::new()))
    }

    /// Each alone would fit; both would not.
    #[tokio::test(start_paused = true)]
    async fn what_one_has_is_not_there_for_the_next_which_waits_for_it() {
        let ledger = ledger();
        let host = async || Some(800);
        let first = ledger.take("a", need(500, true), host).await.unwrap();
        assert_eq!(first.most, Some(500));
        // Nothing of it is taken yet: as much is available as before.
        let small = ledger.take("b", need(200, true), host).await.unwrap();
        let second = ledger.take("c", need(500, true), host);
        let mut second = pin!(second);
        let waits = tokio::time::timeout(std::time::Duration::from_secs(60), second.as_mut());
        assert!(waits.await.is_err(), "500 and 200 and 500 are more than 800");
        drop(small);
        let waits = tokio::time::timeout(std::time::Duration::from_secs(60), second.as_mut());
        assert!(waits.await.is_err(), "500 and 500 are more than 800");
        drop(first);
        let done = tokio::time::timeout(std::time::Duration::from_secs(60), second.as_mut());
        assert_eq!(done.await.unwrap().unwrap().most, Some(500));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_by_now_is_counted_once() {
        let ledger = ledger();
        let _first = ledger.take("a", need(500, true), async || Some(1200)).await.unwrap();
        // It has taken what it was given.
        let second = ledger.take("b", need(600, true), async || Some(700)).await.unwrap();
        assert_eq!(second.most, Some(600));
    }

    /// Waiting for others helps only where they have what is missing.
    #[tokio::test(start_paused = true)]
    async fn what_never_fits_is_refused() {
        let ledger = ledger();
        let refused = ledger.take("a", need(900, true), async || Some(800)).await.unwrap_err();
        assert_eq!(refused.kind(), AdapterErrorKind::NoSpace);
        let first = ledger.take("a", need(500, true), async || Some(800)).await.unwrap();
        let own = ledger.take("a", need(500, true), async || Some(800)).await.unwrap_err();
        assert_eq!(own.kind(), AdapterErrorKind::NoSpace, "nobody waits for itself");
        drop(first);
        assert!(ledger.take("a", need(800, true), async || Some(800)).await.is_ok(), "all of it is back");
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24684148 kB\nMemFree:         1 kB\nMemAvailable:   21645588 kB\n";
        assert_eq!(of_meminfo(text), Some(21_645_588 * 1024));
        assert_eq!(of_meminfo("MemTotal: 1 kB\n"), None);
    }
}
