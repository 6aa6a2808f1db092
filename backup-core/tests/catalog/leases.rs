//! Leases: one holder, fenced.

use std::time::Duration;

use super::*;

const TTL: Duration = Duration::from_secs(600);

impl World {
    async fn take(&self, host: &str) -> Result<backup_core::catalog::Lease, BackupError> {
        self.catalog.lease("retention", &RunId::generate(self.clock.now()), host, TTL).await
    }
}

#[tokio::test]
async fn a_held_lease_names_its_holder_and_a_released_one_is_free() {
    let w = World::new().await;
    let lease = w.take("h1").await.unwrap();
    lease.still_mine().await.unwrap();
    assert!(w.take("h2").await.unwrap_err().to_string().contains("held by h1"));
    lease.release().await.unwrap();
    w.take("h2").await.unwrap().still_mine().await.unwrap();
}

#[tokio::test]
async fn a_holder_that_was_paused_past_its_lease_is_fenced() {
    let w = World::new().await;
    let paused = w.take("h1").await.unwrap();
    w.clock.advance_secs(700);
    assert!(paused.still_mine().await.is_err(), "expired");
    let second = w.take("h2").await.unwrap();
    w.clock.advance_secs(-700);
    assert!(paused.still_mine().await.is_err(), "taken over, whatever its own clock says");
    paused.release().await.unwrap();
    second.still_mine().await.unwrap();
}

#[tokio::test]
async fn of_many_takers_one_wins() {
    let w = World::new().await;
    for round in 0..3 {
        let hosts: Vec<String> = (0..10).map(|i| format!("h{i}")).collect();
        let takers = hosts.iter().map(|h| w.take(h));
        let won: Vec<_> =
            futures::future::join_all(takers).await.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1, "round {round}");
        w.clock.advance_secs(700);
    }
}
