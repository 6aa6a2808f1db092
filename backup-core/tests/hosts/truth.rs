//! What must be true at any moment, looked at behind everybody's back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use backup_core::catalog::{Catalog, Entry, Filter};
use backup_core::{Clock, Store as _, StoreKey, Timestamp};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::machine::prefixes;
use super::turns::{Turns, View};
use super::{HOSTS, MACHINES};

/// What stands beside the stores of the hosts in the same bucket.
const NEIGHBOUR: &str = "hosts/h1x/first/a/hourly/20200101_000000/metadata.json";

pub(crate) struct Truth {
    stores: Vec<(String, Catalog)>,
    /// The newest good backup of each store.
    newest: BTreeMap<String, Timestamp>,
}

impl Truth {
    /// Marks every store.
    pub(crate) async fn new(turns: &Turns) -> Self {
        let mut stores = Vec::new();
        let clock: Arc<dyn Clock> = Arc::new(turns.clock.clone());
        for prefix in (0..HOSTS).flat_map(prefixes) {
            let view = View::new(turns, MACHINES, &prefix, &Arc::new(AtomicBool::new(true)));
            let (catalog, new) = Catalog::init(Arc::new(view), Arc::clone(&clock)).await.unwrap();
            assert!(new);
            stores.push((prefix, catalog));
        }
        turns.bucket.create(&StoreKey::new(NEIGHBOUR).unwrap(), "theirs".into()).await.unwrap();
        Self { stores, newest: BTreeMap::new() }
    }

    pub(crate) async fn check(&mut self, turns: &Turns, seed: u64, step: usize) {
        let place = format!("seed {seed}, step {step}");
        assert_eq!(turns.wrong(), [] as [String; 0], "{place}");
        assert_eq!(turns.bucket.head(&StoreKey::new(NEIGHBOUR).unwrap()).await.unwrap().bytes, 6, "{place}");
        for (name, catalog) in &self.stores {
            let listing = catalog.list_uncached(&Filter::default()).await.unwrap();
            assert!(listing.errors.is_empty(), "{place}: {name}: {:?}", listing.errors);
            let odd = |entry: &&Entry| {
                matches!(entry.state.word(), "suspect" | "damaged" | "unreadable" | "legacy")
            };
            let odd: Vec<_> = listing.entries.iter().filter(odd).collect();
            let mut why = Vec::new();
            for (entry, fact) in
                odd.iter().flat_map(|entry| entry.facts.iter().map(move |fact| (entry, fact)))
            {
                why.push(catalog.read_file(&entry.id, &fact.file_name()).await);
            }
            assert!(odd.is_empty(), "{place}: {name}: {odd:#?}: {why:?}");
            for entry in listing.entries.iter().filter(|entry| entry.is_good()) {
                whole(catalog, entry)
                    .await
                    .unwrap_or_else(|why| panic!("{place}: {name}/{}: {why}", entry.id));
            }
            let newest = listing.entries.iter().filter(|e| e.is_good()).map(|e| e.id.timestamp).max();
            let before = self.newest.get(name).copied();
            assert!(
                newest >= before,
                "{place}: {name}: the newest good one was {before:?} and is {newest:?}"
            );
            if let Some(newest) = newest {
                self.newest.insert(name.clone(), newest);
            }
        }
    }

    /// After everybody has worked in peace: what is kept is what the configuration says, and nobody's leftovers are there.
    pub(crate) async fn nothing_is_left(&self, turns: &Turns, seed: u64) {
        for (name, catalog) in &self.stores {
            let listing = catalog.list_uncached(&Filter::default()).await.unwrap();
            let count = |word: &str| listing.entries.iter().filter(|e| e.state.word() == word).count();
            let keep = if name.ends_with("cloud") { 3 } else { 2 };
            assert_eq!(count("good"), keep, "seed {seed}: {name}: {:#?}", listing.entries);
            assert_eq!((count("incomplete"), count("deleting")), (0, 0), "seed {seed}: {name}");
        }
        let all: Vec<StoreKey> = turns.bucket.list_keys(None).try_collect().await.unwrap();
        let stores: Vec<String> = (0..HOSTS).flat_map(prefixes).collect();
        let stray = all.iter().find(|key| {
            key.as_str() != NEIGHBOUR
                && !stores.iter().any(|store| key.as_str().starts_with(&format!("{store}/")))
        });
        assert_eq!(stray, None, "seed {seed}: something was written beside the stores");
    }
}

/// Every file that metadata.json names is there, with the length and hash that it says; and what a hand would check by.
async fn whole(catalog: &Catalog, entry: &Entry) -> Result<(), String> {
    let metadata = catalog.metadata(&entry.id).await.map_err(|e| e.to_string())?;
    let sums = catalog.read_file(&entry.id, "SHA256SUMS").await.map_err(|e| e.to_string())?;
    let sums = String::from_utf8_lossy(&sums).into_owned();
    for file in metadata.stored_files() {
        let key = entry.id.file(&file.path).map_err(|e| e.to_string())?;
        let chunks: Vec<bytes::Bytes> = match catalog.store().read(&key).await {
            Ok(stream) => stream.try_collect().await.map_err(|e| e.to_string())?,
            Err(e) => return Err(e.to_string()),
        };
        let hash = hex::encode(Sha256::digest(chunks.concat()));
        if hash != file.stored_sha256 || !sums.contains(&hash) {
            return Err(format!("`{}` is not what was written", file.path));
        }
    }
    Ok(())
}
