//! On a host that goes away: what can be found again without the catalog is made also when no backup can be written down.

use std::time::Duration;

use futures::TryStreamExt as _;
use tokio::time::Instant;

use super::capture::{adapter_error, caught, hook};
use super::{Inner, Run};
use crate::catalog::Draft;
use crate::context::OpContext;
use crate::error::{BackupError, Stage, chain};
use crate::id::Interval;
use crate::plan::PlannedService;
use crate::source::{Artifact, ArtifactBody, ReadOutcome, Settlement, SourceParts};

impl Inner {
    /// Whether `service` is worth capturing without a store.
    pub(super) fn does_without_store(run: &Run, service: &PlannedService) -> bool {
        run.last_chance && service.adapter.capabilities().found_without_catalog
    }

    /// Reserves a directory, with a third of the time: a store that does not answer must not take what the rest needs.
    pub(super) async fn reserve_soon(
        &self,
        run: &Run,
        service: &PlannedService,
        interval: &Interval,
        budget: Option<Duration>,
    ) -> Result<Draft, BackupError> {
        let limit = budget.map_or(Duration::MAX, |budget| budget / 3);
        let reserving = self.reserve(run, &service.name, interval, budget);
        tokio::time::timeout(limit, reserving).await.unwrap_or_else(|_| {
            Err(BackupError::Refused(format!("{} does not answer", self.catalog.store())))
        })
    }

    /// Captures a service although no backup could be begun, because of `why`. Returns what there is to say of it, which is
    /// an error in any case.
    pub(super) async fn capture_unrecorded(
        &self,
        run: &Run,
        service: &PlannedService,
        interval: &Interval,
        until: Option<Instant>,
        why: BackupError,
    ) -> BackupError {
        match self.make_unrecorded(run, service, interval, until).await {
            Ok(made) => {
                let why = chain(&why);
                BackupError::Refused(format!("made {}, which stand in no backup: {why}", made.join(", ")))
            }
            Err(e) => {
                self.warn(Some(&service.name), chain(&why));
                e
            }
        }
    }

    async fn make_unrecorded(
        &self,
        run: &Run,
        service: &PlannedService,
        interval: &Interval,
        until: Option<Instant>,
    ) -> Result<Vec<String>, BackupError> {
        let cx = self.context(run, service, self.now(), until)?;
        let cx = OpContext { interval: Some(interval.clone()), ..cx };
        let budget = cx.remaining();
        let opened = self.bounded(&cx, budget, async {
            service.adapter.open(&cx).await.map_err(|e| adapter_error(service, Stage::Open, e))
        });
        let SourceParts { artifacts, release, settle } = opened.await?.into_parts();
        let read = caught(self.bounded(&cx, budget, async {
            let all = artifacts.try_collect::<Vec<Artifact>>().await;
            all.map_err(|e| adapter_error(service, Stage::Read, e))
        }));
        let read = read.await;
        let outcome = if read.is_ok() { ReadOutcome::Complete } else { ReadOutcome::Failed };
        let released = hook(service, Stage::Release, || release(outcome)).await;
        if let Some(settle) = settle
            && let Err(e) = hook(service, Stage::Settle, || settle(Settlement::Abandoned)).await
        {
            self.warn(Some(&service.name), chain(&e));
        }
        let made = read?;
        released?;
        let external = made.into_iter().filter_map(|artifact| match artifact.body {
            ArtifactBody::External(reference) => Some(reference.id),
            ArtifactBody::Stream(_) => None,
        });
        Ok(external.collect())
    }
}
