//! From a snapshot that is pending to one that is gone, as the engine sees it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use backup_adapters::ebs::EbsConfig;
use backup_core::catalog::{BackupState, Entry, Filter, VerifyLevel};
use backup_core::config::Config;
use backup_core::engine::{BackupRequest, Engine, VerifyRequest};
use backup_core::state::StateDir;
use backup_core::{AdapterRegistry, Catalog, ExternalState, Interval, MemoryStore, Outcome, SystemClock};

use crate::proxy::{Fate, Proxy};
use crate::support::{Account, Keys, moto, service};

struct Host {
    engine: Engine,
    _state: tempfile::TempDir,
}

impl Host {
    async fn new(account: &Account, endpoint: SocketAddr) -> Self {
        let text = format!(
            "store.url = '/unused'\n[intervals.daily]\nservices = ['ebs']\nkeep = 1\n[services.ebs]\nkind = 'ebs'\n{}",
            account.settings(endpoint)
        );
        let adapters = AdapterRegistry::new().with::<EbsConfig>();
        let plan = Config::parse(&text, "backup.toml").unwrap().resolve(&adapters, "/".as_ref()).unwrap();
        let clock = Arc::new(SystemClock);
        let (catalog, _) = Catalog::init(Arc::new(MemoryStore::new()), clock).await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let engine = Engine::builder(plan, catalog, StateDir::open(state.path()).unwrap());
        Self { engine: engine.secrets(Arc::new(Keys)).build(), _state: state }
    }

    async fn run(&self) -> Outcome {
        let request = BackupRequest::new(Interval::new("daily").unwrap());
        let report = self.engine.back_up(&request).await.unwrap();
        assert!(report.steps[0].error.is_none(), "{:?}", report.steps[0]);
        report.outcome()
    }

    async fn entries(&self) -> Vec<Entry> {
        self.engine.catalog().list(&Filter::service(&service())).await.unwrap().entries
    }

    async fn states(&self) -> Vec<&'static str> {
        self.entries().await.iter().map(|e| e.state.word()).collect()
    }

    async fn verify(&self) -> (Outcome, Option<String>) {
        let report = self.engine.verify(&VerifyRequest::new(VerifyLevel::Stored)).await.unwrap();
        (report.outcome(), report.steps.first().and_then(|s| s.error.clone()))
    }
}

/// EC2 that says of every snapshot what `says` has, while there is something.
async fn slow(says: &Arc<Mutex<Option<(&'static str, usize)>>>) -> Proxy {
    let says = Arc::clone(says);
    Proxy::start(moto().address, move |action, _| match (*says.lock().unwrap(), action) {
        (Some((word, times)), "CreateSnapshots" | "DescribeSnapshots") => {
            Fate::Rewrite("<status>completed</status>", word, times)
        }
        _ => Fate::Pass,
    })
    .await
}

const PENDING: (&str, usize) = ("<status>pending</status>", usize::MAX);

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_backup_is_pending_until_its_snapshots_are_completed_and_goes_with_them() {
    let account = Account::new().await;
    let says = Arc::new(Mutex::new(Some(PENDING)));
    let proxy = slow(&says).await;
    let host = Host::new(&account, proxy.address).await;
    host.run().await;
    assert_eq!(host.states().await, ["pending"], "committed at once");
    let settled = host.engine.settle_pending(&[]).await.unwrap();
    assert!(matches!(&settled[0].state, ExternalState::Pending(how) if how.contains('%')), "{settled:?}");
    assert_eq!(host.states().await, ["pending"]);

    // The next run finds out, and its own is pending.
    *says.lock().unwrap() = None;
    host.run().await;
    assert_eq!(host.states().await, ["pending", "good"]);
    assert_eq!(account.snapshots().await.len(), 4, "one is kept, and only good ones count");
    // Only the third lets the first go, and its snapshots with it.
    host.run().await;
    assert_eq!(host.states().await, ["pending", "good"]);
    assert_eq!(account.snapshots().await.len(), 4);
    assert_eq!(host.verify().await, (Outcome::Ok, None));
    assert_eq!(host.states().await, ["good", "good"]);

    // What is named goes, but not the newest good one.
    let newest = host.entries().await[0].id.clone();
    let report = host.engine.remove(std::slice::from_ref(&newest), "test", Default::default()).await.unwrap();
    assert!(report.steps[0].error.as_deref().unwrap().contains("the newest good"), "{:?}", report.steps[0]);
    let older = host.entries().await[1].id.clone();
    host.engine.remove(&[older], "test", Default::default()).await.unwrap();
    assert_eq!((host.states().await, account.snapshots().await.len()), (vec!["good"], 2));
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn one_member_in_error_damages_the_whole() {
    let account = Account::new().await;
    let says = Arc::new(Mutex::new(Some(PENDING)));
    let proxy = slow(&says).await;
    let host = Host::new(&account, proxy.address).await;
    host.run().await;
    *says.lock().unwrap() = Some(("<status>error</status>", 1));
    let (outcome, error) = host.verify().await;
    assert_eq!(outcome, Outcome::Damaged);
    assert!(error.as_deref().unwrap().contains("in state `error`"), "{error:?}");
    assert!(matches!(host.entries().await[0].state, BackupState::Damaged { .. }));
    let plan = account.adapter(proxy.address, "");
    let e = plan
        .plan_restore_of(
            &crate::support::context("daily"),
            &backup_adapters::ebs::Host::this(),
            &backup_adapters::ebs::RestoreOf { zone: Some(account.zone.clone()), ..Default::default() },
        )
        .await
        .unwrap_err();
    assert!(backup_core::chain(&e).contains("no completed set") && e.to_string().contains("error"), "{e}");
}
