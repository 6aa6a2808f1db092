//! All stores of one copy, at the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join_all;

use super::super::{Inner, Run, StepReport};
use super::{Copied, Target, service};
use crate::error::{BackupError, chain};
use crate::event::Outcome;
use crate::id::{ServiceName, StoreName};

/// Whose turn it is in a store, by its id: two names may lead to one store, and one run has one lease there.
#[derive(Debug, Default)]
struct Turns(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, store_id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(store_id.to_owned()).or_default())
    }
}

impl Inner {
    /// To all of them at once: a store that is slow or does not answer holds no other up. What that takes is the limit of
    /// services at once, for each store; the bandwidth is shared. The steps are in the order of the stores.
    pub(super) async fn copy_all(
        self: &Arc<Self>,
        run: &Arc<Run>,
        services: &[ServiceName],
        targets: Vec<Target>,
    ) -> Copied {
        let turns = Turns::default();
        let each = targets.into_iter().map(|target| self.copy_to(run, services, target, &turns));
        let mut copied = Copied::default();
        for one in join_all(each).await {
            copied.steps.extend(one.steps);
            copied.destinations.extend(one.destinations);
        }
        copied
    }

    async fn copy_to(
        self: &Arc<Self>,
        run: &Arc<Run>,
        services: &[ServiceName],
        target: Target,
        turns: &Turns,
    ) -> Copied {
        let to = target.to.clone();
        let destination = match self.destination(target).await {
            Ok(destination) => Arc::new(destination),
            Err(error) => {
                let failed = services.iter().map(|name| self.not_copied(name, &to, &error));
                return Copied { steps: failed.collect(), destinations: Vec::new() };
            }
        };
        let turn = turns.of(destination.catalog().store_id());
        let _ours = turn.lock().await;
        let steps = self.for_each(services, self.parallel(), "copy", |name| {
            let (inner, run, destination) = (Arc::clone(self), Arc::clone(run), Arc::clone(&destination));
            async move { inner.copy_service(&run, &name, &destination).await }
        });
        Copied { steps: steps.await, destinations: vec![destination.catalog().clone()] }
    }

    fn not_copied(&self, name: &ServiceName, to: &StoreName, error: &BackupError) -> StepReport {
        let mut step = StepReport::new(name, "copy");
        step.copies = Some(service::nothing_yet(to));
        step.outcome = Outcome::Failed;
        step.error = Some(chain(error));
        step.hint = crate::error::advice(error).map(str::to_owned);
        self.announce_copy(&step);
        step
    }
}
