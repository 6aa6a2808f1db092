//! What is copied from a host that goes away.

use backup_core::engine::{CopyRequest, FlushRequest, FlushStep, FlushWork};
use tokio::time::Instant;

use super::copies::{THREE, Tiers};
use super::*;

const TIME: Duration = Duration::from_secs(20);

fn hourly() -> Interval {
    Interval::new("hourly").unwrap()
}

/// At one byte a second nothing would be saved, and a store that keeps one backup keeps both until there is time to look.
#[tokio::test]
async fn what_goes_away_is_copied_without_a_limit_and_nothing_is_deleted_there() {
    for rehearsal in [false, true] {
        let t = Tiers::new(&format!("limits.bandwidth = '1B/s'\n{THREE}"), adapter()).await;
        // As on a notice: nothing is copied by the run itself.
        let back_up = async || {
            t.w.clock.advance_secs(60);
            let last = BackupRequest { until: Some(Instant::now() + TIME), ..BackupRequest::new(hourly()) };
            assert_eq!(outcome(&t.w.engine.back_up(&last).await.unwrap()), (Outcome::Ok, String::new()));
        };
        back_up().await;
        let urgent = CopyRequest { urgent: true, ..CopyRequest::default() };
        assert_eq!(outcome(&t.w.engine.copy(&urgent).await.unwrap()), (Outcome::Ok, String::new()));
        back_up().await;
        assert_eq!((t.w.states().await.len(), t.states_in("third").await), (2, vec!["good"]));

        let step = FlushStep {
            name: "copy".to_owned(),
            after: Vec::new(),
            budget: None,
            work: FlushWork::Copy(vec![a()]),
        };
        let (interval, steps, deadline) = (hourly(), vec![step], Instant::now() + TIME);
        let report = t.w.engine.flush(&FlushRequest { interval, steps, deadline, rehearsal }).await.unwrap();
        assert!(report.is_ok(), "{report:?}");
        for store in ["second", "third"] {
            assert_eq!(t.states_in(store).await, ["good"; 2], "{store}");
        }
        t.w.engine.end_emergency();
        // Nothing is left to copy, and what is kept there counts again.
        assert_eq!(t.w.engine.copy(&CopyRequest::default()).await.unwrap().outcome(), Outcome::Unchanged);
        assert_eq!(t.states_in("third").await, ["good"]);
    }
}
