//! Keys that expire while they are used: real ones of MinIO's STS, lent by an endpoint as containers have it, and a proxy
//! that ends them before their time.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backup_adapters::stores::ObjectStore;
use backup_core::{Store as _, StoreError, StoreKey, WriteOptions, advice, chain};
use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::proxy::{Asked, Fate, Proxy};
use crate::server::{self, Bucket, ID, SECRET};

const EXPIRED: &str =
    "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>";

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

/// Three parts of an upload, five pieces of a download.
pub(crate) fn large() -> Bytes {
    (0..(40_u64 << 20) / 8).flat_map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

pub(crate) fn header<'a>(asked: &'a Asked, name: &str) -> Option<&'a str> {
    let mut headers = asked.head.lines().filter_map(|line| line.split_once(':'));
    headers.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Lends keys: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>.
struct Lender {
    url: String,
    /// What it wants to be shown.
    token: tempfile::NamedTempFile,
    lent: Arc<AtomicU32>,
    /// It has no others than those that it lent last.
    stuck: Arc<AtomicBool>,
}

impl Lender {
    /// It ends with the process.
    fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let mut token = tempfile::NamedTempFile::new().unwrap();
        token.write_all(b"pod-token").unwrap();
        let lender = Self { url, token, lent: Arc::default(), stuck: Arc::default() };
        let (lent, stuck) = (Arc::clone(&lender.lent), Arc::clone(&lender.stuck));
        std::thread::spawn(move || {
            let mut last = String::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = [0; 4096];
                let n = stream.read(&mut head).unwrap();
                let head = String::from_utf8_lossy(&head[..n]).to_lowercase();
                assert!(head.contains("authorization: pod-token"), "{head}");
                if last.is_empty() || !stuck.load(Ordering::SeqCst) {
                    last = assume_role(server, "");
                }
                lent.fetch_add(1, Ordering::SeqCst);
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", last.len());
                stream.write_all(format!("{head}{last}").as_bytes()).unwrap();
            }
        });
        lender
    }

    fn store(&self, bucket: &Bucket) -> ObjectStore {
        let mut options = bucket.options();
        options.retain(|name, _| !name.contains("key"));
        options.insert("container_credentials_full_uri".to_owned(), self.url.clone());
        let token = self.token.path().display().to_string();
        options.insert("container_authorization_token_file".to_owned(), token);
        ObjectStore::from_url(&bucket.url(), &options).unwrap()
    }

    fn lent(&self) -> u32 {
        self.lent.load(Ordering::SeqCst)
    }
}

/// Keys for 15 minutes, the least: <https://min.io/docs/minio/linux/developers/security-token-service/AssumeRole.html>.
/// They may do what `policy` says; everything, if that is empty.
pub(crate) fn assume_role(server: SocketAddr, policy: &str) -> String {
    let user = format!("{ID}:{SECRET}");
    let form = "Action=AssumeRole&Version=2011-06-15&DurationSeconds=900";
    let mut curl = Command::new("curl");
    curl.args(["-sf", "--aws-sigv4", "aws:amz:us-east-1:sts", "--user", &user, "-d", form]);
    if !policy.is_empty() {
        curl.args(["--data-urlencode", &format!("Policy={policy}")]);
    }
    let out = curl.arg(format!("http://{server}/")).output().expect("curl is installed");
    let text = String::from_utf8(out.stdout).unwrap();
    let tag = |name: &str| {
        let value = text.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once("</"));
        value.unwrap_or_else(|| panic!("no {name}: {text}")).0.to_owned()
    };
    serde_json::json!({
        "AccessKeyId": tag("AccessKeyId"), "SecretAccessKey": tag("SecretAccessKey"),
        "Token": tag("SessionToken"), "Expiration": tag("Expiration"),
    })
    .to_string()
}

/// Ends the keys that are used for the `nth` request of a kind, from then on, for every request.
pub(crate) fn expiring(nth: usize, kind: impl Fn(&Asked) -> bool) -> impl FnMut(&Asked) -> Fate {
    let (mut seen, mut expired) = (0, None);
    move |asked| {
        let token = header(asked, "x-amz-security-token").unwrap_or_default().to_owned();
        assert!(!token.is_empty(), "it is signed with lent keys: {}", asked.line);
        seen += usize::from(kind(asked));
        if seen == nth && expired.is_none() {
            expired = Some(token.clone());
        }
        match expired == Some(token) {
            true => Fate::Say("400 Bad Request", EXPIRED.to_owned()),
            false => Fate::Pass,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: MinIO in a container"]
async fn keys_that_expire_in_the_middle_are_renewed() {
    let lender = Lender::start(server::minio().address);
    let large = large();
    for nth in [1, 2] {
        let bucket = server::minio().bucket().await;
        let direct = bucket.store();
        let proxy = Proxy::start(bucket.address, expiring(nth, |asked| asked.step() == Some("part"))).await;
        let before = lender.lent();
        let store = lender.store(&bucket.by(proxy.address));
        let mut writer =
            store.writer(&key("large"), WriteOptions::data(Some(large.len() as u64))).await.unwrap();
        writer.write(large.clone()).await.unwrap();
        writer.finish().await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(lender.lent() - before, 2, "not once for each part that was on its way");
        let there: Vec<Bytes> = direct.read(&key("large")).await.unwrap().try_collect().await.unwrap();
        assert!(there.concat() == large, "part {nth}");
    }

    let bucket = server::minio().bucket().await;
    let direct = bucket.store();
    let mut writer = direct.writer(&key("large"), WriteOptions::default()).await.unwrap();
    writer.write(large.clone()).await.unwrap();
    writer.finish().await.unwrap();
    let name = bucket.name.clone();
    let proxy = Proxy::start(bucket.address, expiring(3, |asked| asked.is("GET"))).await;
    let store = lender.store(&bucket.by(proxy.address));
    let read: Vec<Bytes> = store.read(&key("large")).await.unwrap().try_collect().await.unwrap();
    assert!(read.concat() == large);

    // What has no body to say it with, and what is put once.
    for nth in [1, 2, 3, 4] {
        let bucket = Bucket { name: name.clone(), address: server::minio().address };
        let proxy = Proxy::start(bucket.address, expiring(nth, |_| true)).await;
        let store = lender.store(&bucket.by(proxy.address));
        let small = key(&format!("small-{nth}"));
        assert_eq!(store.head(&key("large")).await.unwrap().bytes, large.len() as u64, "{nth}");
        store
            .create(&small, Bytes::from_static(b"x"))
            .await
            .unwrap_or_else(|e| panic!("{nth}: {}", chain(&e)));
        assert_eq!(store.list_dirs(None).await.unwrap(), Vec::<String>::new());
        store.delete(&small).await.unwrap();
    }
}

/// Those of the configuration, and those of a lender that has no others: one line, at once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: MinIO in a container"]
async fn keys_that_nobody_renews_are_the_error_at_once() {
    let bucket = server::minio().bucket().await;
    let proxy = Proxy::start(bucket.address, |_| Fate::Say("400 Bad Request", EXPIRED.to_owned())).await;
    let bucket = bucket.by(proxy.address);
    let lender = Lender::start(server::minio().address);
    lender.stuck.store(true, Ordering::SeqCst);
    let began = Instant::now();
    for store in [bucket.store_with(&[("session_token", "canary-token-8812")]), lender.store(&bucket)] {
        let errors = Mutex::new(Vec::new());
        let note = |e: StoreError| errors.lock().unwrap().push(e);
        note(store.create(&key("a"), Bytes::new()).await.unwrap_err());
        note(store.read(&key("a")).await.err().unwrap());
        note(store.list_dirs(None).await.unwrap_err());
        let mut writer = store.writer(&key("b"), WriteOptions::default()).await.unwrap();
        note(writer.write(Bytes::from(vec![1; 20 << 20])).await.unwrap_err());
        for e in errors.into_inner().unwrap() {
            let said = chain(&e);
            assert!(matches!(e, StoreError::PermissionDenied { .. }), "{e:?}");
            assert!(said.contains("session token") && said.contains("expired"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(advice(&e).is_some_and(|help| help.contains("session_token")), "{:?}", advice(&e));
            assert!(!format!("{said} {e:?} {store:?}").contains("canary-token"), "{e:?}");
        }
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
