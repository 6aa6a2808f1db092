//! Azure's blobs, over Azurite: what networks do, and what is not allowed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use backup_adapters::stores::ObjectStore;
use backup_core::{Catalog, Store, StoreError, StoreKey, SystemClock, WriteOptions, advice, chain};
use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::proxy::{Asked, Fate, Proxy};
use crate::server::{Server, image};

pub(crate) const ACCOUNT: &str = "canaryaccount";
/// `canary-secret-90d7` as Azure writes keys: must never show.
pub(crate) const KEY: &str = "Y2FuYXJ5LXNlY3JldC05MGQ3";
const MAKE_CONTAINER: &str = include_str!("../../../stack/images/azurite/make-container.js");

pub(crate) fn azurite() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let program = "node /usr/local/lib/azurite/node_modules/azurite/dist/src/blob/main.js --blobHost 0.0.0.0 \
                       --inMemoryPersistence --disableTelemetry";
        let image = image("BACKUP_TEST_AZURITE_IMAGE", "backup-test/azurite:3");
        // The public one has it elsewhere, under this name.
        let program = format!("{program} || azurite-blob --blobHost 0.0.0.0 --inMemoryPersistence");
        Server::start("azurite", &image, &format!("{{ {program}; }}"), 10000)
    })
}

/// A new and empty container for blobs.
#[derive(Debug)]
pub(crate) struct Container {
    name: String,
    address: SocketAddr,
}

impl Server {
    pub(crate) fn container(&self) -> Container {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let node = ["exec", &self.name, "node", "-e", MAKE_CONTAINER, ACCOUNT, KEY, &name];
        let made = Command::new("docker").args(node).output().unwrap();
        assert!(made.status.success(), "no container can be made: {made:?}");
        Container { name, address: self.address }
    }
}

impl Container {
    fn by(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    pub(crate) fn store(&self) -> ObjectStore {
        self.store_with(&[])
    }

    fn store_with(&self, more: &[(&str, &str)]) -> ObjectStore {
        let endpoint = format!("http://{}/{ACCOUNT}", self.address);
        let mut options: BTreeMap<String, String> =
            [("account", ACCOUNT), ("account_key", KEY), ("endpoint", &endpoint), ("allow_http", "true")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        options.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        ObjectStore::from_url(&format!("az://{}/some/where", self.name), &options).unwrap()
    }
}

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

async fn write(store: &ObjectStore, name: &str, body: Bytes) -> Result<u64, StoreError> {
    let mut writer = store.writer(&key(name), WriteOptions::data(Some(body.len() as u64))).await?;
    for chunk in body.chunks(1 << 20) {
        writer.write(body.slice_ref(chunk)).await?;
    }
    Ok(writer.finish().await?.bytes)
}

async fn body(store: &ObjectStore, name: &str) -> Bytes {
    store.read(&key(name)).await.unwrap().try_collect::<Vec<_>>().await.unwrap().concat().into()
}

/// Three blocks.
fn large() -> Bytes {
    (0..(40_u64 << 20) / 8).flat_map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

#[tokio::test]
#[ignore = "live: Azurite in a container"]
async fn an_upload_that_is_cut_once_anywhere_arrives_whole() {
    let large = large();
    for step in ["comp=block&", "comp=blocklist"] {
        for fate in [Fate::CutRequest, Fate::LoseAnswer] {
            let container = azurite().container();
            let direct = container.store();
            let mut once = Some(fate.clone());
            let plan = move |asked: &Asked| match asked.is("PUT") && asked.line.contains(step) {
                true => once.take().unwrap_or(Fate::Pass),
                false => Fate::Pass,
            };
            let proxy = Proxy::start(container.address, plan).await;
            let store = container.by(proxy.address).store_with(&[("retry_for", "20s")]);
            let bytes = write(&store, "a", large.clone()).await;
            assert_eq!(bytes.unwrap_or_else(|e| panic!("{step}, {fate:?}: {}", chain(&e))), 40 << 20);
            assert!(proxy.seen(|line| line.contains(step)) > 1, "{step}: it was not cut");
            assert!(body(&direct, "a").await == large, "{step}, {fate:?}: other bytes");
        }
    }
}

#[tokio::test]
#[ignore = "live: Azurite in a container"]
async fn a_store_is_marked_and_what_is_created_once_stays() {
    let container = azurite().container();
    let direct: Arc<dyn Store> = Arc::new(container.store());
    let (_, new) = Catalog::init(Arc::clone(&direct), Arc::new(SystemClock)).await.unwrap();
    let keys: Vec<_> = direct.list_keys(None).map_ok(|key| key.to_string()).try_collect().await.unwrap();
    assert_eq!((new, keys), (true, vec!["store.json".to_owned()]), "tried, and nothing is left of that");

    let mut once = Some(Fate::LoseAnswer);
    let plan = move |asked: &Asked| match asked.is("PUT") {
        true => once.take().unwrap_or(Fate::Pass),
        false => Fate::Pass,
    };
    let proxy = Proxy::start(container.address, plan).await;
    let store = container.by(proxy.address).store();
    store.create(&key("a"), Bytes::from_static(b"run 1")).await.unwrap();
    assert_eq!(proxy.seen(|line| line.starts_with("PUT")), 2, "its answer was lost");
    for body in ["run 1", "run 2"] {
        let again = direct.create(&key("a"), Bytes::from_static(body.as_bytes())).await;
        assert!(again.unwrap_err().is_already_exists());
    }
}

#[tokio::test]
#[ignore = "live: Azurite in a container"]
async fn a_container_that_is_not_there_is_the_error() {
    let nowhere = Container { name: "no-such-container".to_owned(), address: azurite().address };
    let store = Arc::new(nowhere.store());
    for e in [
        store.create(&key("a"), Bytes::new()).await.unwrap_err(),
        write(&store, "b", large()).await.unwrap_err(),
        store.read(&key("a")).await.err().unwrap(),
        store.list_dirs(None).await.unwrap_err(),
        store.delete_prefix(&key("a")).await.unwrap_err(),
    ] {
        let told = matches!(&e, StoreError::NotAStore { message } if message.contains("make the container"));
        assert!(told, "{e:?}");
    }
    let e = Catalog::open(store, Arc::new(SystemClock)).await.unwrap_err();
    assert!(chain(&e).contains("make the container"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "live: Azurite in a container"]
async fn a_wrong_key_is_told_and_never_shown() {
    let container = azurite().container();
    // `hunter2-hunter2`
    let store = container.store_with(&[("account_key", "aHVudGVyMi1odW50ZXIy")]);
    for e in [
        store.create(&key("a"), Bytes::new()).await.unwrap_err(),
        store.read(&key("a")).await.err().unwrap(),
        store.list_dirs(None).await.unwrap_err(),
    ] {
        let all = format!("{} {e:?} {store:?}", chain(&e));
        assert!(matches!(e, StoreError::PermissionDenied { .. }), "{all}");
        assert!(chain(&e).contains("does not accept the key") && !chain(&e).contains('\n'), "{all}");
        assert!(!all.contains(KEY) && !all.contains("aHVudGVyMi1odW50ZXIy"), "{all}");
        assert!(advice(&e).is_some_and(|help| help.contains("account_key")));
    }
}

#[tokio::test]
async fn a_missing_permission_is_named_with_the_role_that_gives_it() {
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let container = Container { name: "ours".to_owned(), address: nobody };
    let said = |code: &str, more: &str| {
        format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>Not now.\nRequestId:7\nTime:8</Message>{more}</Error>"
        )
    };
    let mismatch = said("AuthorizationPermissionMismatch", "");
    let proxy = Proxy::start(nobody, move |_| Fate::Say("403 Forbidden", mismatch.clone())).await;
    let container = container.by(proxy.address);
    let store = container.store();
    for (e, permission) in [
        (store.create(&key("b"), Bytes::new()).await.unwrap_err(), "write"),
        (write(&store, "b", large()).await.unwrap_err(), "write"),
        (store.read(&key("a")).await.err().unwrap(), "read"),
        (store.delete(&key("a")).await.unwrap_err(), "delete"),
        (store.list_dirs(None).await.unwrap_err(), "list"),
    ] {
        assert!(matches!(e, StoreError::PermissionDenied { .. }), "{permission}: {e:?}");
        let line = chain(&e);
        assert!(line.contains(&format!("`{permission}` is missing")) && !line.contains('\n'), "{line}");
        let help = advice(&e).unwrap();
        assert!(help.contains("`Storage Blob Data Contributor` on the container `ours`"), "{help}");
    }

    let late = "<AuthenticationErrorDetail>Signature not valid in the specified time frame: sig=hunter2                </AuthenticationErrorDetail>";
    let late = said("AuthenticationFailed", late);
    let proxy = Proxy::start(nobody, move |_| Fate::Say("403 Forbidden", late.clone())).await;
    let e = container.by(proxy.address).store().create(&key("b"), Bytes::new()).await.unwrap_err();
    assert!(chain(&e).contains("the SAS has expired") && !format!("{e:?}").contains("sig=hunter2"), "{e:?}");
}
