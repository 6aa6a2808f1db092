//! A MinIO in a container, beside a server that keeps its backups in it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::{Server, docker, until};

/// Its keys: must never show.
pub(crate) const ID: &str = "canary-id-51c2";
pub(crate) const SECRET: &str = "canary-secret-90d7";

static NUMBER: AtomicU32 = AtomicU32::new(0);

#[expect(clippy::disallowed_methods, reason = "tests may be told of another image")]
fn image() -> String {
    std::env::var("BACKUP_TEST_MINIO_IMAGE").unwrap_or_else(|_| "backup-test/minio".to_owned())
}

/// A container with the bucket `vectors`, and the network that it is in; both are removed when this is dropped.
pub(crate) struct Storage {
    pub(crate) name: String,
}

impl Storage {
    pub(crate) async fn start() -> Self {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("backup-test-minio-{}-{n}", std::process::id());
        let storage = Self { name: name.clone() };
        let label = format!("backup-test={}", std::process::id());
        docker(&["network", "create", "--label", &label, &name]).await;
        let (id, secret) = (format!("MINIO_ROOT_USER={ID}"), format!("MINIO_ROOT_PASSWORD={SECRET}"));
        let image = image();
        let args =
            ["run", "-d", "--name", &name, "--label", &label, "--network", &name, "-e", &id, "-e", &secret];
        // A folder in its data is a bucket.
        let begin = "mkdir -p /data/vectors && exec minio server /data";
        docker(&[&args[..], &["--entrypoint", "sh", &image, "-c", begin]].concat()).await;
        until("the storage", async || storage.list(None).await.is_ok()).await;
        storage
    }

    /// Where this host reaches it.
    pub(crate) async fn endpoint(&self) -> String {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        format!("http://{}:9000", docker(&["inspect", "-f", format, &self.name]).await)
    }

    async fn bucket(&self) -> Arc<dyn ObjectStore> {
        let store = AmazonS3Builder::new()
            .with_bucket_name("vectors")
            .with_endpoint(self.endpoint().await)
            .with_allow_http(true)
            .with_access_key_id(ID)
            .with_secret_access_key(SECRET)
            .build();
        Arc::new(store.unwrap())
    }

    async fn list(&self, below: Option<&str>) -> object_store::Result<Vec<String>> {
        let listed = self.bucket().await.list(below.map(Path::from).as_ref());
        let mut names: Vec<_> = listed.map_ok(|o| o.location.to_string()).try_collect().await?;
        names.sort();
        Ok(names)
    }

    /// The names of all objects.
    pub(crate) async fn objects(&self) -> Vec<String> {
        self.list(None).await.unwrap()
    }

    pub(crate) async fn put(&self, name: &str) {
        self.bucket().await.put(&Path::from(name), "neighbour".into()).await.unwrap();
    }

    /// A server with no place for backups but this one. It calls it by its name, which this host does not know.
    pub(crate) async fn server(&self) -> Server {
        let endpoint = format!("BACKUP_S3_ENDPOINT={}:9000", self.name);
        let (id, secret) = (format!("AWS_ACCESS_KEY_ID={ID}"), format!("AWS_SECRET_ACCESS_KEY={SECRET}"));
        let mut options = vec!["--network", &self.name];
        for setting in [
            "ENABLE_MODULES=backup-s3",
            "BACKUP_FILESYSTEM_PATH=",
            "BACKUP_S3_BUCKET=vectors",
            "BACKUP_S3_PATH=some/where",
            "BACKUP_S3_USE_SSL=false",
            &endpoint,
            &id,
            &secret,
        ] {
            options.extend(["-e", setting]);
        }
        Server::with(&options).await
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["rm", "-fv", &self.name]).output();
        let _gone = Command::new("docker").args(["network", "rm", &self.name]).output();
    }
}
