//! Stores that cannot be reached when the watch begins, e.g. because the network is not up yet: the watch goes on without
//! them, and tries again.

use std::sync::Arc;
use std::time::Duration;

use backup_core::StoreName;
use backup_core::catalog::Catalog;
use backup_core::config::StoreConfig;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::watch::REMIND;
use crate::context::{Context, Opening, Prepared, Session};
use crate::error::CliError;
use crate::{exit_code, format};

/// How long the first attempt may take, and the longest one; the pause after each is half of it.
const SHORTEST: Duration = Duration::from_secs(4);
const LONGEST: Duration = Duration::from_secs(60);

/// The store of the configuration, and those that copies go to.
pub(super) struct Stores<'a> {
    cx: &'a Context,
    prepared: Prepared,
    /// The store, until it was opened.
    opening: Option<BoxFuture<'a, Result<Catalog, CliError>>>,
    copies: FuturesUnordered<BoxFuture<'a, Result<Catalog, CliError>>>,
    /// The next attempt shall be made now.
    now: Arc<Notify>,
}

impl<'a> Stores<'a> {
    /// Opens the store, or stands in for it if it does not open soon.
    ///
    /// # Errors
    /// What is wrong in the configuration, which no second attempt would mend.
    pub(super) async fn open(cx: &'a Context, prepared: Prepared) -> Result<(Self, Session), CliError> {
        let now = Arc::new(Notify::new());
        let (name, store) = (prepared.plan.store_name.clone(), prepared.plan.store.clone());
        let opening = reach(cx, name, store, "saved to it", Arc::clone(&now)).boxed();
        let copies = FuturesUnordered::new();
        let mut stores = Self { cx, prepared: prepared.clone(), opening: Some(opening), copies, now };
        let plan = &prepared.plan;
        let targets: std::collections::BTreeSet<&StoreName> =
            plan.intervals.values().flat_map(|i| &i.copies).chain(&plan.copies).collect();
        for name in targets.into_iter().filter(|name| **name != plan.store_name) {
            let store = plan.store_named(name.as_str())?.store.clone();
            let reached = reach(cx, name.clone(), store, "copied to it", Arc::default());
            stores.copies.push(reached.boxed());
        }
        if let Ok(opened) = timeout(SHORTEST, stores.opened()).await {
            return Ok((stores, opened?));
        }
        let away = Catalog::unreachable(
            format!("store `{}`", plan.store_name),
            "the store could not be reached so far",
            Arc::clone(&cx.clock),
        );
        let session = cx.assemble(prepared, away)?;
        Ok((stores, session))
    }

    /// Whether the store is open.
    pub(super) fn is_open(&self) -> bool {
        self.opening.is_none()
    }

    /// Tries the store again at once.
    pub(super) fn hurry(&self) {
        self.now.notify_one();
    }

    /// The store, once it can be reached; never again after that.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) async fn opened(&mut self) -> Result<Session, CliError> {
        let Some(opening) = &mut self.opening else { return std::future::pending().await };
        let opened = opening.await;
        self.opening = None;
        self.cx.assemble(self.prepared.clone(), opened?)
    }

    /// Ends with what changes first: the store is there, or the configuration of one of them is wrong.
    pub(super) async fn changed(&mut self) -> Result<Session, CliError> {
        let Self { opening, copies, .. } = self;
        let opened = async {
            match opening {
                Some(opening) => opening.await,
                None => std::future::pending().await,
            }
        };
        let wrong = async {
            loop {
                match copies.next().await {
                    Some(Err(e)) => return e,
                    Some(Ok(_)) => {}
                    None => std::future::pending().await,
                }
            }
        };
        let catalog = tokio::select! {
            opened = opened => opened?,
            wrong = wrong => return Err(wrong),
        };
        self.opening = None;
        self.cx.assemble(self.prepared.clone(), catalog)
    }
}

/// Opens a store, however many attempts that takes. Says once that it cannot, and when it can.
///
/// # Errors
/// What is wrong in the configuration.
async fn reach(
    cx: &Context,
    name: StoreName,
    store: StoreConfig,
    missed: &str,
    now: Arc<Notify>,
) -> Result<Catalog, CliError> {
    let mut told: Option<Instant> = None;
    let since = cx.clock.now();
    let mut limit = SHORTEST;
    loop {
        let why = match timeout(limit, cx.catalog(&store, Opening::Existing)).await {
            Ok(Ok(catalog)) => {
                if told.is_some() {
                    let since = format::time(since);
                    cx.ui.note(&format!("store `{name}` can be reached; it could not since {since}"));
                }
                return Ok(catalog);
            }
            Ok(Err(e)) if e.code == exit_code::USAGE => return Err(e.about(&format!("store `{name}`"))),
            Ok(Err(e)) => e.message,
            Err(_) => format!("it does not answer within {}", format::duration(limit)),
        };
        if told.is_none_or(|told| told.elapsed() >= REMIND) {
            told = Some(Instant::now());
            cx.ui.warn(&format!(
                "store `{name}` cannot be reached, and nothing would be {missed} on a notice; it is tried again: {why}"
            ));
        }
        limit = tokio::select! {
            () = sleep(limit / 2) => (limit * 2).min(LONGEST),
            () = now.notified() => SHORTEST,
        };
    }
}
