//! Roles instead of keys, end to end: an instance's by its metadata service, and a web identity's by STS. Both lend real keys
//! of a MinIO.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backup_adapters::stores::ObjectStore;
use backup_core::{Store as _, StoreError, StoreKey, WriteOptions, advice, chain};
use bytes::Bytes;
use futures::TryStreamExt as _;
use serde_json::{Value, json};

use crate::proxy::{Fate, Proxy};
use crate::server::{self, Bucket, Server};
use crate::tokens::{assume_role, expiring, header, large};

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

/// What a metadata service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// It lends keys that it calls valid for so many seconds.
    Keys(i64),
    NoRole,
    Forbidden,
    /// It takes connections, as through too few hops.
    Nothing,
}

/// The metadata service of an instance, version 2 alone: without a token of its own it says nothing.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>
struct Instance {
    url: String,
    says: Arc<Mutex<Says>>,
    /// `METHOD path`, in order.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Instance {
    /// It ends with the process.
    fn start(server: SocketAddr, says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let this = Self { url, says: Arc::new(Mutex::new(says)), asked: Arc::default() };
        let (says, asked) = (Arc::clone(&this.says), Arc::clone(&this.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (says, asked) = (Arc::clone(&says), Arc::clone(&asked));
                // What a client breaks off is broken off.
                std::thread::spawn(move || drop(serve(stream, server, &says, &asked)));
            }
        });
        this
    }

    /// A store without keys of its own.
    fn store(&self, bucket: &Bucket, more: &[(&str, &str)]) -> ObjectStore {
        let mut options = bucket.options();
        options.retain(|name, _| !name.contains("key"));
        options.insert("metadata_endpoint".to_owned(), self.url.clone());
        options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        ObjectStore::from_url(&bucket.url(), &options).unwrap()
    }

    fn lent(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|a| a.ends_with("/security-credentials/backup-role")).count()
    }
}

fn serve(
    stream: TcpStream,
    server: SocketAddr,
    says: &Mutex<Says>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    const ROLE: &str = "/latest/meta-data/iam/security-credentials/";
    let (mut head, mut reader) = (String::new(), BufReader::new(stream.try_clone()?));
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let head = head.to_lowercase();
    let words: Vec<&str> = head.split(' ').take(2).collect();
    asked.lock().unwrap().push(words.join(" "));
    let says = *says.lock().unwrap();
    if says == Says::Nothing {
        // Until the client gives up.
        return reader.read_line(&mut String::new()).map(drop);
    }
    let shown = head.contains("\r\nx-aws-ec2-metadata-token: of-the-instance\r\n");
    let asks_for_token = head.contains("\r\nx-aws-ec2-metadata-token-ttl-seconds: ");
    let (status, body) = match (words[0], words[1], says) {
        (.., Says::Forbidden) => ("403 Forbidden", String::new()),
        ("put", "/latest/api/token", _) if asks_for_token => ("200 OK", "of-the-instance".to_owned()),
        _ if !shown => ("401 Unauthorized", String::new()),
        ("get", path, Says::Keys(_)) if path == ROLE => ("200 OK", "backup-role".to_owned()),
        ("get", path, Says::Keys(seconds)) if path.strip_prefix(ROLE) == Some("backup-role") => {
            let mut keys: Value = serde_json::from_str(&assume_role(server, "")).unwrap();
            let end =
                backup_core::Clock::now(&backup_core::SystemClock) + chrono::TimeDelta::seconds(seconds);
            (keys["Expiration"], keys["Code"]) = (json!(end.to_rfc3339()), json!("Success"));
            ("200 OK", keys.to_string())
        }
        _ => ("404 Not Found", String::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    (&stream).write_all(format!("{head}{body}").as_bytes())
}

/// Everything that a run does: small and large, written, read, listed and deleted.
async fn works(store: &ObjectStore) {
    let large = large();
    store.create(&key("a"), Bytes::from_static(b"x")).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let mut writer = store.writer(&key("b"), WriteOptions::default()).await.unwrap();
    writer.write(large.clone()).await.unwrap();
    writer.finish().await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let read: Vec<Bytes> = store.read(&key("b")).await.unwrap().try_collect().await.unwrap();
    assert!(read.concat() == large);
    assert_eq!(store.read_range(&key("a"), 0..1).await.unwrap(), "x");
    let listed: Vec<StoreKey> = store.list_keys(None).try_collect().await.unwrap();
    assert_eq!(listed, [key("a"), key("b")]);
    store.delete_prefix(&key("b")).await.unwrap();
    store.delete(&key("a")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: MinIO in a container"]
async fn the_role_of_an_instance_is_enough_and_its_keys_are_renewed() {
    let minio = server::minio().address;
    let bucket = server::minio().bucket().await;
    let name = bucket.name.clone();
    let instance = Instance::start(minio, Says::Keys(3600));
    // Every request has to show the token of the keys: the server knows them no other way.
    let proxy = Proxy::start(minio, |asked| {
        assert!(header(asked, "x-amz-security-token").is_some_and(|t| !t.is_empty()), "{}", asked.line);
        Fate::Pass
    })
    .await;
    let store = instance.store(&bucket.by(proxy.address), &[]);
    works(&store).await;
    assert!(proxy.seen(|line| line.starts_with("GET")) > 3);
    let first: Vec<String> = instance.asked.lock().unwrap().clone();
    let role = "/latest/meta-data/iam/security-credentials/";
    let expected =
        ["put /latest/api/token".to_owned(), format!("get {role}"), format!("get {role}backup-role")];
    assert_eq!(first, expected, "keys that last are fetched once");

    // The service says that they end soon: there are others before that, and nobody is refused.
    *instance.says.lock().unwrap() = Says::Keys(1);
    let store = instance.store(&Bucket { name: name.clone(), address: proxy.address }, &[]);
    let before = instance.lent();
    store.create(&key("c"), Bytes::from_static(b"x")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(store.read_range(&key("c"), 0..1).await.unwrap(), "x");
    assert!(instance.lent() >= before + 2, "{} times", instance.lent() - before);

    // The server says it, whatever was promised.
    *instance.says.lock().unwrap() = Says::Keys(3600);
    let proxy = Proxy::start(minio, expiring(1, |asked| asked.is("GET"))).await;
    let store = instance.store(&Bucket { name, address: proxy.address }, &[]);
    let before = instance.lent();
    assert_eq!(store.read_range(&key("c"), 0..1).await.unwrap(), "x");
    store.delete(&key("c")).await.unwrap();
    assert_eq!(instance.lent(), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: MinIO in a container"]
async fn without_a_role_one_line_says_so_in_time() {
    let bucket = server::minio().bucket().await;
    // Where nobody listens, as on a host that is no instance.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{nobody}");
    for (says, elsewhere, told) in [
        (Says::NoRole, None, "the instance has no role"),
        (Says::Forbidden, None, "the metadata service of the instance answers 403"),
        (Says::Nothing, None, "the metadata service of the instance does not answer"),
        (Says::NoRole, Some(&nobody), "the metadata service of the instance does not answer"),
    ] {
        let instance = Instance::start(bucket.address, says);
        let more: Vec<(&str, &str)> =
            elsewhere.iter().map(|url| ("metadata_endpoint", url.as_str())).collect();
        // As it is unless somebody sets it: nobody waits these three minutes for keys that do not come.
        let store = instance.store(&bucket, &[&more[..], &[("retry_for", "3min")]].concat());
        let began = Instant::now();
        let (a, b) = (key("a"), key("b"));
        let written = async {
            let mut writer = store.writer(&b, WriteOptions::default()).await?;
            writer.write(Bytes::from(vec![1; 20 << 20])).await
        };
        let (created, read, looked, listed, thawed, written) = tokio::join!(
            store.create(&a, Bytes::new()),
            store.read(&a),
            store.head(&a),
            store.list_dirs(None),
            store.thaw(&a, None),
            written,
        );
        assert!(began.elapsed() < Duration::from_secs(15), "{says:?}: {:?}", began.elapsed());
        for e in [
            created.unwrap_err(),
            read.err().unwrap(),
            looked.unwrap_err(),
            listed.unwrap_err(),
            thawed.unwrap_err(),
            written.unwrap_err(),
        ] {
            let said = chain(&e);
            assert!(matches!(e, StoreError::PermissionDenied { .. }), "{says:?}: {e:?}");
            assert!(said.contains("there are no keys: ") && said.contains(told), "{says:?}: {said}");
            assert!(!said.contains('\n') && !said.contains("retries"), "{said}");
            assert!(advice(&e).is_some_and(|help| help.contains("access_key_id")), "{:?}", advice(&e));
        }
    }
}

/// STS over HTTPS, to which a certificate of its own makes no difference here. It knows one role and one token, and lends
/// real keys of `MINIO`.
const STS: &str = r#"
import os, boto3
from werkzeug.serving import run_simple
from werkzeug.wrappers import Request, Response

sts = boto3.client("sts", endpoint_url="http://MINIO", region_name="us-east-1",
    aws_access_key_id=os.environ["MINIO_ROOT_USER"], aws_secret_access_key=os.environ["MINIO_ROOT_PASSWORD"])

@Request.application
def app(asked):
    said = [asked.args.get(name) for name in ("Action", "RoleArn", "WebIdentityToken")]
    if said != ["AssumeRoleWithWebIdentity", "arn:aws:iam::123456789012:role/backup", "web-token-canary"]:
        text = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error></ErrorResponse>"
        return Response(text, status=403)
    keys = sts.assume_role(RoleArn=said[1], RoleSessionName="backup", DurationSeconds=900)["Credentials"]
    keys["Expiration"] = keys["Expiration"].isoformat()
    tags = "".join(f"<{name}>{keys[name]}</{name}>" for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"))
    result = f"<AssumeRoleWithWebIdentityResult><Credentials>{tags}</Credentials></AssumeRoleWithWebIdentityResult>"
    return Response(f"<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResponse>", content_type="text/xml")

run_simple("0.0.0.0", 5000, app, ssl_context="adhoc")
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: MinIO, and an STS of its own in a container of moto's"]
async fn a_web_identity_is_enough_and_one_that_is_refused_is_told() {
    let minio = server::minio().address;
    let bucket = server::minio().bucket().await;
    let program = format!("python3 -c '{}'", STS.replace("MINIO\"", &format!("{minio}\"")));
    let image = server::image("BACKUP_TEST_MOTO_IMAGE", "backup-test/moto:5");
    let sts = Server::start("sts", &image, &program, 5000);
    let endpoint = format!("https://{}", sts.address);
    let proxy = Proxy::start(minio, |asked| {
        assert!(header(asked, "x-amz-security-token").is_some_and(|t| !t.is_empty()), "{}", asked.line);
        Fate::Pass
    })
    .await;
    let mut token = tempfile::NamedTempFile::new().unwrap();
    token.write_all(b"web-token-canary").unwrap();
    let token = token.path().to_str().unwrap();
    let role = "arn:aws:iam::123456789012:role/backup";
    let name = bucket.name.clone();
    let by = || Bucket { name: name.clone(), address: proxy.address };
    let store = |token: &str, role: &str, more: &[(&str, &str)]| {
        let mut options = by().options();
        options.retain(|name, _| !name.contains("key"));
        let named = [("web_identity_token_file", token), ("role_arn", role), ("endpoint_url_sts", &endpoint)];
        let all = named.iter().chain(more);
        options.extend(all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        ObjectStore::from_url(&by().url(), &options).unwrap()
    };
    let trusting = [("allow_invalid_certificates", "true")];
    works(&store(token, role, &trusting)).await;

    for (token, role, more, told) in [
        (token, "arn:aws:iam::123456789012:role/other", &trusting[..], "STS answers 403, AccessDenied"),
        ("/no/such/token", role, &trusting, "/no/such/token"),
        (token, role, &[("retry_for", "1s")], "STS does not answer: "),
    ] {
        let e = store(token, role, more).head(&key("a")).await.unwrap_err();
        let said = chain(&e);
        assert!(matches!(e, StoreError::PermissionDenied { .. }), "{e:?}");
        assert!(said.contains("there are no keys: ") && said.contains(told), "{told}: {said}");
        assert!(!said.contains('\n') && !format!("{said} {e:?}").contains("web-token-canary"), "{e:?}");
        assert!(advice(&e).is_some_and(|help| help.contains("AWS_WEB_IDENTITY_TOKEN_FILE")));
    }
}
