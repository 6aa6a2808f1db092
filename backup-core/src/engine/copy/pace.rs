//! The bandwidth limit.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by all copies of an engine: who moved bytes waits until they are paid for.
#[derive(Debug, Default)]
pub(in crate::engine) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Waits until `bytes` more may move at `rate` a second. The first ones need not wait.
    pub(super) async fn take(&self, rate: Option<u64>, bytes: usize) {
        let Some(rate) = rate else { return };
        let now = Instant::now();
        #[expect(clippy::cast_precision_loss, reason = "a moment more or less")]
        let price = Duration::try_from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let start = {
            let mut paid_until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let start = paid_until.map_or(now, |until| until.max(now));
            *paid_until = price.ok().and_then(|price| start.checked_add(price)).or(Some(start));
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_together_move_at_the_rate() {
        let (pace, began) = (Pace::default(), Instant::now());
        let one = async {
            for _ in 0..5 {
                pace.take(Some(1000), 500).await;
            }
        };
        tokio::join!(one, async { pace.take(Some(1000), 500).await });
        // Six portions of half a second, of which the last is not waited for.
        let took = began.elapsed();
        assert!((Duration::from_millis(2490)..Duration::from_millis(2600)).contains(&took), "{took:?}");
        pace.take(None, usize::MAX).await;
        assert!(began.elapsed() < took + Duration::from_millis(10), "no limit, no wait");
    }
}
