//! What is in a store: entries with derived states.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::cache::{Cache, Cached, Known};
use super::judge::{Unusable, derive_state, held, parse_metadata};
use super::{Catalog, Fact, FactKind, METADATA, RUN, TOMBSTONE, VerifyLevel, file, read_small};
use crate::error::{BackupError, StoreError, chain};
use crate::id::{BackupId, Interval, ServiceName, StoreKey, Timestamp};
use crate::metadata::{Metadata, Reservation, Status};

/// How many control files are read at once.
const READS: usize = 16;

/// What a backup is worth; derived from its files at every listing, stored nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackupState {
    /// Committed, and nothing bad is known.
    Good,
    /// Committed, but evidence or size had collapsed, and nobody accepted it.
    Suspect,
    /// A verification found it bad.
    Damaged {
        /// At which level.
        level: VerifyLevel,
        /// When.
        at: Timestamp,
    },
    /// An external snapshot was not complete yet.
    Pending,
    /// Made by the scripts that this program replaces.
    Legacy,
    /// Reserved, not committed.
    Incomplete,
    /// Given up by a sweeper.
    Aborted,
    /// A deletion began and is to be resumed.
    Deleting,
    /// metadata.json cannot be used.
    Unreadable {
        /// Why.
        reason: String,
        /// A newer version of this program made it: nothing is known to be wrong with it.
        newer: bool,
    },
}

impl BackupState {
    /// One word, for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Suspect => "suspect",
            Self::Damaged { .. } => "damaged",
            Self::Pending => "pending",
            Self::Legacy => "legacy",
            Self::Incomplete => "incomplete",
            Self::Aborted => "aborted",
            Self::Deleting => "deleting",
            Self::Unreadable { .. } => "unreadable",
        }
    }
}

/// What a listing needs of metadata.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its `status`.
    pub status: Status,
    /// Whether evidence or size had collapsed.
    #[serde(default)]
    pub doubted: bool,
    /// Its `size_bytes`.
    pub size_bytes: u64,
    /// Bytes before compression.
    pub plain_bytes: u64,
    /// Its `backed_up_at`.
    pub backed_up_at: DateTime<Utc>,
    /// Its `adapter`.
    pub adapter: String,
    /// Its `host`.
    pub host: String,
    /// How long it took, in ms.
    pub duration_ms: u64,
}

impl From<&Metadata> for Summary {
    fn from(m: &Metadata) -> Self {
        Self {
            status: m.status,
            doubted: !m.suspect_because.is_empty(),
            size_bytes: m.size_bytes,
            plain_bytes: m.plain_bytes(),
            backed_up_at: m.backed_up_at,
            adapter: m.adapter.clone(),
            host: m.host.clone(),
            duration_ms: m.capture.duration_ms,
        }
    }
}

/// One directory of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name.
    pub id: BackupId,
    /// What it is worth.
    #[serde(flatten)]
    pub state: BackupState,
    /// What metadata.json says, if it is readable.
    pub summary: Option<Summary>,
    /// What became known later, oldest first.
    pub facts: Vec<Fact>,
    /// Stored size of a legacy directory, in bytes.
    pub legacy_bytes: Option<u64>,
}

impl Entry {
    /// Whether it counts for retention and is chosen by default.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.state == BackupState::Good
    }

    /// Stored size in bytes; 0 where it is not known.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.summary.as_ref().map(|s| s.size_bytes).or(self.legacy_bytes).unwrap_or(0)
    }

    /// Whether a person wants it kept.
    #[must_use]
    pub fn held(&self) -> bool {
        held(&self.facts)
    }

    /// Until when the store refuses to delete it, as far as it was noted.
    #[must_use]
    pub fn retain_until(&self) -> Option<DateTime<Utc>> {
        let until = self.facts.iter().filter_map(|f| match f.kind {
            FactKind::Retain { until } => Some(until.time()),
            _ => None,
        });
        until.max()
    }

    /// The newest verification, and whether it went well.
    #[must_use]
    pub fn last_verification(&self) -> Option<(VerifyLevel, bool, Timestamp)> {
        self.facts
            .iter()
            .filter_map(|f| match f.kind {
                FactKind::Verify { level, ok } => Some((level, ok, f.at)),
                _ => None,
            })
            .max_by_key(|(level, _, at)| (*at, *level))
    }

    /// The newest moment at which this content was known to be current: its own, or a later `seen`.
    ///
    /// Its own is its name, or, where the clock had gone backwards since its predecessor, when it was committed.
    #[must_use]
    pub fn fresh_at(&self) -> Timestamp {
        self.moments().max().unwrap_or(self.id.timestamp)
    }

    /// As [`fresh_at`](Self::fresh_at), leaving out what lies after `limit`: a moment in the future, of a clock that was
    /// wrong, proves nothing.
    #[must_use]
    pub fn fresh_until(&self, limit: DateTime<Utc>) -> Option<Timestamp> {
        self.moments().filter(|at| at.time() <= limit).max()
    }

    fn moments(&self) -> impl Iterator<Item = Timestamp> + '_ {
        let committed = self.summary.as_ref().map(|s| Timestamp::new(s.backed_up_at));
        let own = committed.map_or(self.id.timestamp, |at| at.min(self.id.timestamp));
        let seen = self.facts.iter().filter(|f| f.kind == FactKind::Seen).map(|f| f.at);
        seen.chain([own])
    }

    /// Whether a scratch restore of it went well, and nothing worse is known.
    #[must_use]
    pub fn verified_by_restore(&self) -> bool {
        let ok = FactKind::Verify { level: VerifyLevel::Restore, ok: true };
        self.is_good() && self.facts.iter().any(|f| f.kind == ok)
    }
}

/// Which entries to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this service.
    pub service: Option<ServiceName>,
    /// Only this interval.
    pub interval: Option<Interval>,
}

impl Filter {
    /// Everything of one service.
    #[must_use]
    pub fn service(service: &ServiceName) -> Self {
        Self { service: Some(service.clone()), interval: None }
    }

    /// One series.
    #[must_use]
    pub fn series(service: &ServiceName, interval: &Interval) -> Self {
        Self { service: Some(service.clone()), interval: Some(interval.clone()) }
    }
}

/// The entries of a store, newest first within a service.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
    /// What could not be listed: while there is any, nothing may be deleted.
    pub errors: Vec<String>,
    /// What looks like backups and is not listed, one line each.
    pub warnings: Vec<String>,
}

impl Listing {
    /// The entries of one service, newest first.
    pub fn of<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |e| e.id.service == *service)
    }

    /// The newest good backup of a service that is not newer than `at`.
    #[must_use]
    pub fn newest_good(&self, service: &ServiceName, at: Option<Timestamp>) -> Option<&Entry> {
        let mut of_service = self.entries.iter().filter(|e| e.id.service == *service);
        of_service.find(|e| e.is_good() && at.is_none_or(|at| e.id.timestamp <= at))
    }
}

/// The files of one directory, as the listing shows them.
#[derive(Debug, Default)]
struct Files {
    run: bool,
    metadata: bool,
    tombstone: bool,
    facts: Vec<Fact>,
    /// Anything else.
    other: bool,
    /// The version of metadata.json, where the store tells it for nothing.
    version: Option<String>,
    /// The length of everything but metadata.json, where the store tells it for nothing.
    bytes: Option<u64>,
    /// What metadata.json says, or why it cannot be used.
    summary: Option<Result<Summary, Unusable>>,
}

/// The directories of one service and interval.
#[derive(Debug)]
struct Series {
    service: ServiceName,
    interval: Interval,
    dirs: BTreeMap<Timestamp, Files>,
}

impl Catalog {
    /// Lists backups. What cannot be read is in [`Listing::errors`]; the rest is listed all the same.
    ///
    /// # Errors
    /// [`BackupError::Store`] if not even the services can be listed.
    pub async fn list(&self, filter: &Filter) -> Result<Listing, BackupError> {
        self.list_with(filter, true).await
    }

    /// As [`list`](Self::list), but reads every metadata.json itself: for decisions to delete, which no cache may sway.
    ///
    /// # Errors
    /// [`BackupError::Store`] if not even the services can be listed.
    pub async fn list_uncached(&self, filter: &Filter) -> Result<Listing, BackupError> {
        self.list_with(filter, false).await
    }

    async fn list_with(&self, filter: &Filter, use_cache: bool) -> Result<Listing, BackupError> {
        let mut listing = Listing::default();
        let services = match &filter.service {
            Some(service) => vec![service.clone()],
            None => {
                let names = self.store.list_dirs(None).await;
                names
                    .map_err(|e| BackupError::store("list the services", e))?
                    .iter()
                    .filter_map(|n| n.parse().ok())
                    .collect()
            }
        };
        listing.warnings = self.links(filter).await;
        let mut series = Vec::new();
        for service in services {
            match self.intervals(&service, filter).await {
                Ok(intervals) => series.extend(intervals.into_iter().map(|i| (service.clone(), i))),
                Err(e) => listing.errors.push(chain(&e)),
            }
        }
        let mut walks = futures::stream::iter(series)
            .map(|(service, interval)| async move {
                let dirs = self.walk(&service, &interval).await;
                (Series { service, interval, dirs: BTreeMap::new() }, dirs)
            })
            .buffer_unordered(4);
        let mut series = Vec::new();
        let (mut cache, all) = futures::join!(Cache::load(self.cache.as_deref()), async {
            while let Some((mut one, walked)) = walks.next().await {
                match walked {
                    Ok(dirs) => {
                        one.dirs = dirs;
                        series.push(one);
                    }
                    Err(e) => {
                        let what = format!("listing {}/{}: {}", one.service, one.interval, chain(&e));
                        listing.errors.push(what);
                    }
                }
            }
            series
        });
        drop(walks);
        for mut one in all {
            listing.errors.extend(self.summarise(&mut one, &mut cache, use_cache).await);
            let Series { service, interval, dirs } = one;
            for (timestamp, files) in dirs {
                let id = BackupId { service: service.clone(), interval: interval.clone(), timestamp };
                listing.entries.push(self.entry(id, files).await);
            }
        }
        cache.save().await;
        listing.entries.sort_by(|a, b| {
            let (a, b) = (&a.id, &b.id);
            (&a.service, b.timestamp, &a.interval).cmp(&(&b.service, a.timestamp, &b.interval))
        });
        Ok(listing)
    }

    /// Fills in the summaries of a series, from the cache where it knows them. Returns what could not be read.
    async fn summarise(&self, series: &mut Series, cache: &mut Cache, use_cache: bool) -> Vec<String> {
        let known = cache.series(&series.service, &series.interval);
        let mut missing = Vec::new();
        for (timestamp, files) in series.dirs.iter_mut().filter(|(_, f)| f.metadata) {
            match known.get(timestamp).filter(|_| use_cache) {
                Some(cached) if cached.version == files.version => {
                    files.summary = Some(Ok(cached.summary.clone()));
                }
                _ => missing.push(*timestamp),
            }
        }
        let (service, interval) = (&series.service, &series.interval);
        let fresh: Vec<_> = futures::stream::iter(missing)
            .map(|timestamp| async move {
                let id = BackupId { service: service.clone(), interval: interval.clone(), timestamp };
                let text = read_small(self.store.as_ref(), &file(&id, METADATA)).await;
                (id.clone(), text.map(|text| parse_metadata(&id, &text).map(|m| Summary::from(&m))))
            })
            .buffer_unordered(READS)
            .collect()
            .await;
        let mut errors = Vec::new();
        for (id, summary) in fresh {
            match summary {
                Ok(summary) => {
                    if let Some(files) = series.dirs.get_mut(&id.timestamp) {
                        files.summary = Some(summary);
                    }
                }
                // Deleted between the listing and the reading.
                Err(StoreError::NotFound { .. }) => drop(series.dirs.remove(&id.timestamp)),
                Err(e) => errors.push(format!("reading {id}: {}", chain(&e))),
            }
        }
        let readable = series.dirs.iter().filter_map(|(at, files)| {
            let (version, summary) = (files.version.clone(), files.summary.as_ref()?.as_ref().ok()?.clone());
            // The copy of a good one may take its place, under the same key.
            let lasting = version.is_some() || summary.status != Status::Aborted;
            lasting.then_some((*at, Cached { version, summary }))
        });
        let readable: Known = readable.collect();
        cache.replace(&series.service, &series.interval, readable);
        errors
    }

    async fn intervals(&self, service: &ServiceName, filter: &Filter) -> Result<Vec<Interval>, StoreError> {
        if let Some(interval) = &filter.interval {
            return Ok(vec![interval.clone()]);
        }
        let key =
            StoreKey::new(service.as_str()).map_err(|e| StoreError::NotAStore { message: e.to_string() })?;
        Ok(self.store.list_dirs(Some(&key)).await?.iter().filter_map(|n| n.parse().ok()).collect())
    }

    async fn walk(
        &self,
        service: &ServiceName,
        interval: &Interval,
    ) -> Result<BTreeMap<Timestamp, Files>, StoreError> {
        let prefix = StoreKey::new(format!("{service}/{interval}"))
            .map_err(|e| StoreError::NotAStore { message: e.to_string() })?;
        // A disk would have to look at every file for what an object store says of each anyway.
        let mut infos = match self.store.local_path(&prefix) {
            Some(_) => self.store.list_keys(Some(&prefix)).map_ok(|key| (key, None)).boxed(),
            None => self.store.list(Some(&prefix)).map_ok(|i| (i.key, Some((i.bytes, i.version)))).boxed(),
        };
        let mut dirs: BTreeMap<Timestamp, Files> = BTreeMap::new();
        while let Some((key, more)) = infos.try_next().await? {
            let Some((dir, name)) = key.below(&prefix).and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            let Ok(timestamp) = dir.parse::<Timestamp>() else { continue };
            let files = dirs.entry(timestamp).or_default();
            let (bytes, version) = more.unzip();
            if name != METADATA {
                files.bytes = bytes.map(|bytes: u64| bytes.saturating_add(files.bytes.unwrap_or(0)));
            }
            match name {
                RUN => files.run = true,
                METADATA => (files.metadata, files.version) = (true, version.flatten()),
                TOMBSTONE => files.tombstone = true,
                other => match Fact::parse(other) {
                    Some(fact) => files.facts.push(fact),
                    None => files.other = true,
                },
            }
        }
        Ok(dirs)
    }

    async fn entry(&self, id: BackupId, mut files: Files) -> Entry {
        files.facts.sort_by_key(|f| f.at);
        let (summary, unreadable) = match files.summary {
            Some(Ok(summary)) => (Some(summary), None),
            Some(Err(unusable)) => (None, Some(unusable)),
            None => (None, None),
        };
        // The old scripts wrote no run.json, and a metadata.json of seven fields or none.
        let legacy = !files.run && !files.tombstone && summary.is_none();
        // A fact that was noted while the backup was deleted.
        let remains = legacy && !files.metadata && !files.other;
        let legacy = legacy && !remains;
        let state = if files.tombstone || remains {
            BackupState::Deleting
        } else if legacy {
            BackupState::Legacy
        } else if let Some(summary) = &summary {
            derive_state(summary, &files.facts)
        } else if let Some(Unusable { reason, newer }) = unreadable {
            BackupState::Unreadable { reason, newer }
        } else if files.metadata {
            BackupState::Unreadable { reason: "metadata.json could not be read".into(), newer: false }
        } else {
            BackupState::Incomplete
        };
        let legacy_bytes = if legacy && files.bytes.is_some() {
            files.bytes
        } else if legacy {
            let infos: Result<Vec<_>, _> = self.store.list(Some(&id.dir())).try_collect().await;
            infos
                .ok()
                .map(|infos| infos.iter().filter(|i| i.key.file_name() != METADATA).map(|i| i.bytes).sum())
        } else {
            None
        };
        Entry { id, state, summary, facts: files.facts, legacy_bytes }
    }

    /// The reservation of a directory, if it has one that is readable.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn reservation(&self, id: &BackupId) -> Result<Option<Reservation>, BackupError> {
        match read_small(self.store.as_ref(), &file(id, RUN)).await {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(BackupError::store(format!("read {id}"), e)),
        }
    }
}
