//! A simulated EC2 in a container, and an account in it for each test.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{BehaviorVersion, Builder, Credentials, Region};
use aws_sdk_ec2::types::{Snapshot, VolumeType};
use backup_adapters::ebs::{Ebs, EbsConfig};
use backup_core::{
    BuildContext, ConfigError, Interval, OpContext, RunId, Secret, SecretRef, SecretResolver, ServiceName,
    SystemClock, Timestamp,
};
use chrono::{DateTime, TimeDelta};

/// Its keys: must never show.
pub(crate) const ID: &str = "canary-id-51c2";
pub(crate) const SECRET: &str = "canary-secret-90d7";

/// A server that all tests of this process share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Its standard input is the server's life: however this process ends, it closes, and the container goes.
    _life: Child,
}

#[expect(clippy::disallowed_methods, reason = "tests may be told of another image")]
pub(crate) fn moto() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let image =
            std::env::var("BACKUP_TEST_MOTO_IMAGE").unwrap_or_else(|_| "backup-test/moto:5".to_owned());
        let pid = std::process::id();
        let name = format!("backup-test-ebs-moto-{pid}");
        let program = "python3 -m moto.server -H 0.0.0.0 -p 5000 & cat >/dev/null";
        let mut life = Command::new("docker")
            .args(["run", "--rm", "-i", "--name", &name, "--label", &format!("backup-test={pid}")])
            .args(["--entrypoint", "sh", &image, "-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
            let out = Command::new("docker").args(["inspect", "-f", format, &name]).output().unwrap();
            if let Ok(ip) = String::from_utf8_lossy(&out.stdout).trim().parse()
                && TcpStream::connect_timeout(&SocketAddr::new(ip, 5000), Duration::from_secs(1)).is_ok()
            {
                return Server { address: SocketAddr::new(ip, 5000), _life: life };
            }
            let ended = life.try_wait().unwrap();
            assert!(ended.is_none(), "moto did not start: is there the image {image}? stack/build makes it");
            assert!(Instant::now() < until, "moto does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
    })
}

/// A region with one instance of two volumes, which no other test uses.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) client: Client,
    pub(crate) region: &'static str,
    pub(crate) instance: String,
    pub(crate) zone: String,
    pub(crate) data: String,
}

const REGIONS: [&str; 26] = [
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eu-central-1",
    "eu-north-1",
    "eu-south-1",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-northeast-1",
    "sa-east-1",
    "ca-central-1",
    "ca-west-1",
    "eu-central-2",
    "eu-south-2",
    "ap-east-1",
    "ap-south-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-northeast-2",
    "ap-northeast-3",
    "me-south-1",
];
static NEXT: AtomicUsize = AtomicUsize::new(0);

impl Account {
    pub(crate) async fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        assert!(n < REGIONS.len(), "more tests than regions");
        Self::at(REGIONS[n]).await
    }

    pub(crate) async fn at(region: &'static str) -> Self {
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new(ID, SECRET, None, None, "test"))
            .region(Region::new(region))
            .endpoint_url(format!("http://{}", moto().address))
            .build();
        let client = Client::from_conf(config);
        let mut account =
            Self { client, region, instance: String::new(), zone: String::new(), data: String::new() };
        (account.instance, account.zone) = account.new_instance().await;
        account.data = account.new_volume("/dev/sdf").await;
        account
    }

    pub(crate) async fn new_instance(&self) -> (String, String) {
        let run = self.client.run_instances().image_id("ami-12345678").min_count(1).max_count(1).send();
        let run = run.await.unwrap();
        let instance = &run.instances()[0];
        let zone = instance.placement().unwrap().availability_zone().unwrap();
        (instance.instance_id().unwrap().to_owned(), zone.to_owned())
    }

    /// A volume of 9 GiB of type gp3, attached to the instance.
    pub(crate) async fn new_volume(&self, device: &str) -> String {
        let made = self.client.create_volume().availability_zone(&self.zone).size(9);
        let made = made.volume_type(VolumeType::Gp3).iops(4000).throughput(250).send().await.unwrap();
        let id = made.volume_id().unwrap().to_owned();
        self.client
            .attach_volume()
            .volume_id(&id)
            .instance_id(&self.instance)
            .device(device)
            .send()
            .await
            .unwrap();
        id
    }

    /// Every snapshot of ours, not those that come with moto.
    pub(crate) async fn snapshots(&self) -> Vec<Snapshot> {
        let all = self.client.describe_snapshots().owner_ids("self").send().await.unwrap();
        let ours = |s: &&Snapshot| s.tags().iter().any(|t| t.key() == Some("backup:run"));
        all.snapshots().iter().filter(ours).cloned().collect()
    }

    /// Volumes that were made of snapshots by a restore.
    pub(crate) async fn restored(&self) -> Vec<aws_sdk_ec2::types::Volume> {
        let all = self.client.describe_volumes().send().await.unwrap();
        let is = |v: &&aws_sdk_ec2::types::Volume| {
            v.tags().iter().any(|t| t.value().is_some_and(|v| v.contains("-restored-")))
        };
        all.volumes().iter().filter(is).cloned().collect()
    }

    pub(crate) fn settings(&self, endpoint: SocketAddr) -> String {
        format!(
            "instance = '{}'\nregion = '{}'\nendpoint = 'http://{endpoint}'\nname_prefix = 'TruthSI'\n\
             tags = {{ Project = 'truth-si' }}\n\
             access_key_id = {{ env = 'ID' }}\nsecret_access_key = {{ env = 'SECRET' }}\n",
            self.instance, self.region
        )
    }

    /// The adapter, by way of `endpoint`, with further settings.
    pub(crate) fn adapter(&self, endpoint: SocketAddr, more: &str) -> Ebs {
        let config: EbsConfig = toml::from_str(&format!("{}{more}", self.settings(endpoint))).unwrap();
        Ebs::new(config, &BuildContext::new(service(), "/")).unwrap()
    }
}

pub(crate) fn service() -> ServiceName {
    ServiceName::new("ebs").unwrap()
}

/// Knows the keys.
#[derive(Debug)]
pub(crate) struct Keys;

impl SecretResolver for Keys {
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError> {
        match reference {
            SecretRef::Env(name) if name == "ID" => Ok(Secret::new(ID)),
            SecretRef::Env(name) if name == "SECRET" => Ok(Secret::new(SECRET)),
            _ => Err(ConfigError::new("unknown secret")),
        }
    }
}

/// The context of a backup of the interval, for the store `ours`.
pub(crate) fn context(interval: &str) -> OpContext {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let n = i64::try_from(NUMBER.fetch_add(1, Ordering::SeqCst)).unwrap();
    let at = DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::seconds(n);
    let run = RunId::generate(at);
    let mut cx = OpContext::new(service(), run, Timestamp::new(at), "/nonexistent", Arc::new(SystemClock));
    cx.interval = Some(Interval::new(interval).unwrap());
    "ours".clone_into(&mut cx.store_id);
    cx.secrets = Arc::new(Keys);
    cx
}
