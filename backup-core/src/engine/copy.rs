//! `copy`: good backups, byte for byte, into other stores.
//!
//! ```text
//! what is good here, missing there, and would be kept there
//!     → lease on the service's copies there → half copies of what is not wanted any more are removed
//!     → pin here, so that retention leaves alone what is being read
//!     → each: run.json → what an interrupted copy left whole is read back and stays
//!            → files, hashed on their way, compared with metadata.json before they become visible
//!            → SHA256SUMS, RESTORE.md → metadata.json, the same bytes, create-only, last
//!     → what is kept there
//! ```
//!
//! Stores are copied to at the same time: none waits for another one.
//!
//! Nothing but good backups travels, so neither a deletion nor damage does. A copy that was found damaged there is made whole.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use self::service::Destination;
use super::{Engine, Inner, Run, RunReport, StepReport};
use crate::catalog::Catalog;
use crate::error::{BackupError, chain};
use crate::id::{Interval, ServiceName, StoreName};
use crate::plan::{BackupPlan, PlannedService, PlannedStore};

mod all;
mod choose;
mod half;
mod heal;
mod one;
mod pace;
mod service;

pub use choose::{CopyAction, CopyPlan, PlannedCopy};
pub(super) use pace::Pace;

/// How long another store may take to say what it is.
const OPENING: Duration = Duration::from_secs(60);

/// What to copy.
#[derive(Debug, Clone, Default)]
pub struct CopyRequest {
    /// From where; `None`: from the engine's own store.
    pub from: Option<StoreName>,
    /// Where to; empty: where the configuration says for each interval.
    pub to: Vec<StoreName>,
    /// Only these services; empty: all.
    pub services: Vec<ServiceName>,
    /// Only this interval.
    pub interval: Option<Interval>,
    /// The host goes away: the limit of bandwidth does not hold, and nothing is deleted at the destinations. The next copy
    /// that is none of these applies what is kept there.
    pub urgent: bool,
    /// Ends it early. Of a backup that is not complete, the files that are whole there stay for the next copy.
    pub cancel: CancellationToken,
}

/// Which series go to one store.
#[derive(Debug, Clone)]
struct Target {
    to: StoreName,
    /// Only this one.
    only: Option<Interval>,
    /// All that the configuration does not send elsewhere; else those that it sends there.
    all: bool,
}

impl Target {
    fn wants(&self, plan: &BackupPlan, interval: &Interval) -> bool {
        self.only.as_ref().is_none_or(|only| only == interval)
            && (self.all || plan.copies_of(interval).contains(&self.to))
    }
}

impl Engine {
    /// What [`copy`](Self::copy) would do now. Changes nothing.
    ///
    /// # Errors
    /// [`BackupError::Config`] for unknown names, or if there is nowhere to copy to; those of the stores.
    pub async fn plan_copy(&self, request: &CopyRequest) -> Result<CopyPlan, BackupError> {
        let source = self.inner.source_of_copies(request.from.as_ref()).await?;
        let services = source.services_or_all(&request.services)?;
        let mut plan = CopyPlan { from: source.plan.store_name.clone(), ..CopyPlan::default() };
        for target in source.targets(request)? {
            let to = match source.destination(target).await {
                Ok(to) => to,
                Err(e) => {
                    plan.errors.push(chain(&e));
                    continue;
                }
            };
            for name in &services {
                match source.choose_copies(name, &to).await {
                    Ok(chosen) => {
                        plan.errors.extend(chosen.errors);
                        plan.copies.extend(chosen.copies);
                    }
                    Err(e) => plan.errors.push(format!("{name} to {}: {}", to.name(), chain(&e))),
                }
            }
        }
        Ok(plan)
    }

    /// Copies good backups to other stores, and applies what is kept there. A store or service that fails stops no other.
    ///
    /// # Errors
    /// [`BackupError::Config`] for unknown names, or if there is nowhere to copy to; those of the store that is copied
    /// from. Everything else is in the steps.
    pub async fn copy(&self, request: &CopyRequest) -> Result<RunReport, BackupError> {
        let source = self.inner.source_of_copies(request.from.as_ref()).await?;
        let services = source.services_or_all(&request.services)?;
        let targets = source.targets(request)?;
        // Dropping this future cancels the work below; the tasks then end it in order.
        let cancel = request.cancel.child_token();
        let _on_drop = cancel.clone().drop_guard();
        let mut run = source.begin("copy", &services, cancel)?;
        run.urgent = request.urgent;
        let run = Arc::new(run);
        let copied = source.copy_all(&run, &services, targets).await;
        let report = source.finish(&run, copied.steps).await;
        source.tell_destinations(&report, &copied.destinations).await;
        Ok(report)
    }
}

/// What copying came to, and where.
#[derive(Debug, Default)]
pub(super) struct Copied {
    pub(super) steps: Vec<StepReport>,
    pub(super) destinations: Vec<Catalog>,
}

/// Whether a backup may leave for a store: what holds secrets leaves the host only encrypted, unless the user insists.
fn may_leave(service: &PlannedService, destination: &PlannedStore, encrypted: bool) -> bool {
    encrypted || destination.secrets_in_clear || !service.adapter.capabilities().secrets
}

impl Inner {
    /// After a run: to where the configuration says for its interval.
    pub(super) async fn copy_after(
        self: &Arc<Self>,
        run: &Arc<Run>,
        services: &[ServiceName],
        interval: &Interval,
    ) -> Copied {
        if run.cancel.is_cancelled() {
            return Copied::default();
        }
        let to = self.plan.copies_of(interval).iter().cloned();
        let targets = to.map(|to| Target { to, only: Some(interval.clone()), all: false }).collect();
        self.copy_all(run, services, targets).await
    }

    /// Writes a report to the stores that it is about, too: each tells by itself what happened to it.
    pub(super) async fn tell_destinations(&self, report: &RunReport, destinations: &[Catalog]) {
        let each = destinations.iter().map(|catalog| async move {
            if let Err(e) = catalog.write_report(&report.run_id, report).await {
                self.warn(None, chain(&e));
            }
        });
        join_all(each).await;
    }

    /// The store that is copied from, as an engine of its own.
    async fn source_of_copies(self: &Arc<Self>, from: Option<&StoreName>) -> Result<Arc<Self>, BackupError> {
        match from {
            Some(from) if *from != self.plan.store_name => Ok(Arc::new(self.beside(from).await?)),
            _ => Ok(Arc::clone(self)),
        }
    }

    fn targets(&self, request: &CopyRequest) -> Result<Vec<Target>, BackupError> {
        let plan = &self.plan;
        let all = !request.to.is_empty();
        let names: BTreeSet<&StoreName> = if all {
            request.to.iter().collect()
        } else {
            let configured = plan.intervals.values().flat_map(|i| &i.copies);
            configured.chain(&plan.copies).filter(|to| **to != plan.store_name).collect()
        };
        for name in &names {
            plan.store_named(name.as_str())?;
            if **name == plan.store_name {
                let what = format!("`{name}` is where the copies come from: name another store");
                return Err(crate::error::ConfigError::new(what).into());
            }
        }
        if names.is_empty() {
            let others = plan.stores.keys().filter(|n| **n != plan.store_name).map(StoreName::as_str);
            let others: Vec<&str> = others.collect();
            let error = crate::error::ConfigError::new("there is no store to copy to");
            return Err(match others.as_slice() {
                [] => error.hint("configure one, as [stores.<name>] with `url`"),
                some => error.hint(format!("name one of {}, or list them in `copies`", some.join(", "))),
            }
            .into());
        }
        let target = |to: &StoreName| Target { to: to.clone(), only: request.interval.clone(), all };
        Ok(names.into_iter().map(target).collect())
    }

    /// Another store of the plan, opened.
    async fn open_store(&self, store: &PlannedStore) -> Result<Catalog, BackupError> {
        let named = |what: String| BackupError::Refused(format!("store `{}`: {what}", store.name));
        let opening = async {
            // A secret may be the output of a program.
            let (config, secrets) = (store.store.clone(), Arc::clone(&self.secrets));
            let resolved = tokio::task::spawn_blocking(move || config.resolved(secrets.as_ref())).await;
            let resolved = resolved.map_err(|e| named(format!("the program failed inside: {e}")))?;
            let resolved = resolved.map_err(|e| named(chain(&e)))?;
            let opened = self.stores.open(&resolved).await.map_err(|e| named(chain(&e)))?;
            let catalog = Catalog::open(opened, Arc::clone(&self.clock)).await;
            // What knows what to do about it stays behind it.
            catalog.map_err(|e| match e {
                BackupError::Store { operation, source } => {
                    BackupError::store(format!("reach the store `{}`: {operation}", store.name), source)
                }
                e => named(chain(&e)),
            })
        };
        let opened = tokio::time::timeout(OPENING, opening).await;
        let catalog = opened.map_err(|_| named(format!("no answer within {} s", OPENING.as_secs())))??;
        Ok(match self.state.cache(catalog.store_id()) {
            Ok(cache) => catalog.with_cache(cache),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "There is no cache.");
                catalog
            }
        })
    }

    /// The same engine over another store of the plan, with what is kept there.
    async fn beside(&self, name: &StoreName) -> Result<Self, BackupError> {
        let catalog = self.open_store(self.plan.store_named(name.as_str())?).await?;
        if catalog.store_id() == self.catalog.store_id() {
            return Err(BackupError::Refused(format!(
                "the stores `{name}` and `{}` are one and the same: a copy there is none",
                self.plan.store_name
            )));
        }
        Ok(Self {
            emergency: Arc::clone(&self.emergency),
            plan: self.plan.for_store(name.as_str())?,
            catalog,
            state: self.state.clone(),
            clock: Arc::clone(&self.clock),
            events: Arc::clone(&self.events),
            secrets: Arc::clone(&self.secrets),
            history: self.history.clone(),
            watchdog: Arc::clone(&self.watchdog),
            stack: self.stack.clone(),
            stores: self.stores.clone(),
            pace: Arc::clone(&self.pace),
            stack_turn: tokio::sync::Mutex::new(()),
            read_legacy: std::sync::Mutex::default(),
            keys_at_hand: std::sync::Mutex::default(),
            host: self.host.clone(),
            tool: self.tool.clone(),
            patience: self.patience,
            backlog: self.backlog,
            tasks: self.tasks.clone(),
        })
    }

    async fn destination(&self, target: Target) -> Result<Destination, BackupError> {
        let inner = self.beside(&target.to).await?;
        Ok(Destination { inner: Arc::new(inner), target })
    }
}
