//! Work on many services: in parallel up to a limit, along `after`, each safe from the others' failures.

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{Inner, StepReport};
use crate::event::Outcome;
use crate::id::ServiceName;

/// How many services are worked on at once, unless the configuration says: beside what is live, and on a host that has nothing
/// else to do than to come back. Much of the latter is waiting for servers that start.
const PARALLEL: usize = 2;
const PARALLEL_RECOVERY: usize = 4;

impl Inner {
    pub(super) fn parallel(&self) -> usize {
        self.plan.limits.parallel.unwrap_or(PARALLEL).max(1)
    }

    pub(super) fn parallel_recovery(&self) -> usize {
        self.plan.limits.parallel.unwrap_or(PARALLEL_RECOVERY).max(1)
    }

    /// What of `services` a service waits for.
    pub(super) fn waits_for<'a>(
        &'a self,
        name: &ServiceName,
        services: &'a [ServiceName],
    ) -> impl Iterator<Item = &'a ServiceName> {
        let after = self.plan.services.get(name).map(|s| s.after.as_slice()).unwrap_or_default();
        after.iter().filter(|a| services.contains(a))
    }

    /// Does `work` for each, for so many at once, in the order given as far as `after` lets; the steps in the order in which they ended. One that panics is a step of the kind `kind`
    /// that failed.
    pub(super) async fn for_each<F, W>(
        &self,
        services: &[ServiceName],
        parallel: usize,
        kind: &str,
        work: F,
    ) -> Vec<StepReport>
    where
        F: Fn(ServiceName) -> W,
        W: Future<Output = StepReport> + Send + 'static,
    {
        let mut steps: Vec<StepReport> = Vec::new();
        let mut waiting: Vec<ServiceName> = Vec::new();
        for name in services {
            if !waiting.contains(name) {
                waiting.push(name.clone());
            }
        }
        let mut running = FuturesUnordered::new();
        loop {
            let is_done = |name: &ServiceName| steps.iter().any(|s| s.service == *name);
            let ready: Vec<ServiceName> = waiting
                .iter()
                .filter(|name| self.waits_for(name, services).all(is_done))
                .take(parallel.saturating_sub(running.len()))
                .cloned()
                .collect();
            for name in ready {
                waiting.retain(|other| *other != name);
                let task = self.tasks.spawn(work(name.clone()));
                running.push(async move { (name, task.await) });
            }
            match running.next().await {
                Some((_, Ok(step))) => steps.push(step),
                Some((name, Err(panic))) => {
                    let mut step = StepReport::new(&name, kind);
                    step.outcome = Outcome::Failed;
                    step.error = Some(format!("the program failed inside: {panic}"));
                    self.announce(&step);
                    steps.push(step);
                }
                None => return steps,
            }
        }
    }
}
