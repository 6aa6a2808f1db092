//! Servers in containers, and buckets in them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backup_adapters::stores::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutPayload};

/// Its keys: must never show.
pub(crate) const ID: &str = "canary-id-51c2";
pub(crate) const SECRET: &str = "canary-secret-90d7";

/// A server that all tests of this process share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Its container.
    pub(crate) name: String,
    /// Its standard input is the server's life: however this process ends, it closes, and the container goes.
    _life: Child,
}

/// A new and empty bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

pub(crate) fn minio() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start("minio", &minio_image(), "minio server /data", 9000))
}

/// One of its own, with so much room.
pub(crate) fn small_minio(bytes: u64) -> Server {
    let disk = format!("/data:size={bytes}");
    Server::start_with("small-minio", &minio_image(), "minio server /data", 9000, &["--tmpfs", &disk])
}

fn minio_image() -> String {
    image("BACKUP_TEST_MINIO_IMAGE", "backup-test/minio")
}

pub(crate) fn moto() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let image = image("BACKUP_TEST_MOTO_IMAGE", "backup-test/moto:5");
        Server::start("moto", &image, "python3 -m moto.server -H 0.0.0.0 -p 5000", 5000)
    })
}

#[expect(clippy::disallowed_methods, reason = "tests may be told of another image")]
pub(crate) fn image(variable: &str, usual: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| usual.to_owned())
}

impl Server {
    pub(crate) fn start(name: &str, image: &str, program: &str, port: u16) -> Self {
        Self::start_with(name, image, program, port, &[])
    }

    /// With more arguments for Docker.
    pub(crate) fn start_with(name: &str, image: &str, program: &str, port: u16, more: &[&str]) -> Self {
        let pid = std::process::id();
        let name = format!("backup-test-store-{name}-{pid}");
        let mut life = Command::new("docker")
            .args(["run", "--rm", "-i", "--name", &name, "--label", &format!("backup-test={pid}")])
            .args(["-e", &format!("MINIO_ROOT_USER={ID}"), "-e", &format!("MINIO_ROOT_PASSWORD={SECRET}")])
            // So that it knows server-side encryption with keys.
            .args(["-e", "MINIO_KMS_SECRET_KEY=ours:bm90IGEgc2VjcmV0IGJ1dCB0aGlydHktdHdvIGJ5dGU="])
            .args(["-e", &format!("AZURITE_ACCOUNTS={}:{}", crate::azure::ACCOUNT, crate::azure::KEY)])
            .args(more)
            .args(["--entrypoint", "sh", image, "-c", &format!("{program} & cat >/dev/null")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            if let Some(address) = address(&name, port)
                && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
            {
                return Self { address, name, _life: life };
            }
            let ended = life.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "{name} did not start ({ended:?}): is there the image {image}? stack/build makes it"
            );
            assert!(Instant::now() < until, "{name} does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The name of a bucket that is not there yet.
    pub(crate) fn unmade(&self) -> Bucket {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        Bucket { name: format!("test-{}-{n}", std::process::id()), address: self.address }
    }

    pub(crate) async fn bucket(&self) -> Bucket {
        self.unmade().made().await
    }
}

impl Bucket {
    pub(crate) async fn made(self) -> Self {
        let client = self.client();
        let until = Instant::now() + Duration::from_secs(60);
        // A put to the bucket itself creates it. The answer lacks what that of an object has, and a server that has
        // just begun to listen may not be ready: the listing tells.
        loop {
            let _odd_answer = client.put(&Path::default(), PutPayload::new()).await;
            match client.list_with_delimiter(None).await {
                Ok(_) => return self,
                Err(e) => assert!(Instant::now() < until, "no bucket can be made: {e}"),
            }
        }
    }
}

/// Where this host reaches a container.
fn address(container: &str, port: u16) -> Option<SocketAddr> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let out = Command::new("docker").args(["inspect", "-f", format, container]).output().unwrap();
    Some(SocketAddr::new(String::from_utf8_lossy(&out.stdout).trim().parse().ok()?, port))
}

impl Bucket {
    /// The same bucket, by way of a proxy.
    pub(crate) fn by(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// The options of a store in it.
    pub(crate) fn options(&self) -> BTreeMap<String, String> {
        [
            ("endpoint", format!("http://{}", self.address).as_str()),
            ("allow_http", "true"),
            ("region", "us-east-1"),
            ("access_key_id", ID),
            ("secret_access_key", SECRET),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    pub(crate) fn url(&self) -> String {
        format!("s3://{}/some/where", self.name)
    }

    pub(crate) fn store(&self) -> ObjectStore {
        self.store_with(&[])
    }

    /// A store with options changed or added.
    pub(crate) fn store_with(&self, more: &[(&str, &str)]) -> ObjectStore {
        let mut options = self.options();
        options.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        ObjectStore::from_url(&self.url(), &options).unwrap()
    }

    /// The bucket as others see it.
    pub(crate) fn client(&self) -> AmazonS3 {
        let builder = AmazonS3Builder::new().with_bucket_name(&self.name).with_allow_http(true);
        let builder = builder.with_endpoint(format!("http://{}", self.address));
        builder.with_access_key_id(ID).with_secret_access_key(SECRET).build().unwrap()
    }
}

/// What another client does with all rights: AWS's own, in the container of moto.
pub(crate) fn boto(bucket: &Bucket, program: &str) -> String {
    let moto = &moto().name;
    let text = format!(
        "import boto3\ns3 = boto3.client('s3', endpoint_url='http://{}', region_name='us-east-1', \
         aws_access_key_id='{ID}', aws_secret_access_key='{SECRET}')\nb = '{}'\n{program}",
        bucket.address, bucket.name
    );
    let out = Command::new("docker").args(["exec", moto, "python3", "-c", &text]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
