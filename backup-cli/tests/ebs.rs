//! `backup ebs` against a simulated EC2 (moto).

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::spot::server::Server;
use super::support::{Ran, World, ran};

/// Its keys: must never show.
const ID: &str = "canary-id-51c2";
const SECRET: &str = "canary-secret-90d7";

/// An EC2 with one instance of two volumes. Its standard input is its life: however this process ends, the container goes.
pub(crate) struct Ec2 {
    pub(crate) endpoint: String,
    name: String,
    life: Child,
    pub(crate) instance: String,
}

#[expect(clippy::disallowed_methods, reason = "tests may be told of another image")]
pub(crate) fn image() -> String {
    std::env::var("BACKUP_TEST_MOTO_IMAGE").unwrap_or_else(|_| "backup-test/moto:5".to_owned())
}

const CLIENT: &str = "import boto3; ec2 = boto3.client('ec2', endpoint_url='http://127.0.0.1:5000', region_name='eu-west-1', \
                      aws_access_key_id='a', aws_secret_access_key='b')\n";

impl Ec2 {
    pub(crate) fn start(which: &str) -> Self {
        let pid = std::process::id();
        let name = format!("backup-test-cli-ebs-{which}-{pid}");
        let life = Command::new("docker")
            .args(["run", "--rm", "-i", "--name", &name, "--label", &format!("backup-test={pid}")])
            .args([
                "--entrypoint",
                "sh",
                &image(),
                "-c",
                "python3 -m moto.server -H 0.0.0.0 -p 5000 & cat >/dev/null",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut ec2 = Self {
            endpoint: String::new(),
            name: name.clone(),
            life: life.unwrap(),
            instance: String::new(),
        };
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
            let out = Command::new("docker").args(["inspect", "-f", format, &name]).output().unwrap();
            let address = format!("{}:5000", String::from_utf8_lossy(&out.stdout).trim());
            if let Ok(socket) = address.parse()
                && TcpStream::connect_timeout(&socket, Duration::from_secs(1)).is_ok()
            {
                ec2.endpoint = format!("http://{address}");
                break;
            }
            assert!(Instant::now() < until, "moto does not answer: is there its image? stack/build makes it");
            std::thread::sleep(Duration::from_millis(100));
        }
        ec2.instance = ec2.python(
            "i = ec2.run_instances(ImageId='ami-12345678', MinCount=1, MaxCount=1)['Instances'][0]\n\
             v = ec2.create_volume(AvailabilityZone=i['Placement']['AvailabilityZone'], Size=9, VolumeType='gp3')\n\
             ec2.attach_volume(VolumeId=v['VolumeId'], InstanceId=i['InstanceId'], Device='/dev/sdf')\n\
             print(i['InstanceId'])",
        );
        ec2
    }

    /// What a script of its own client prints.
    pub(crate) fn python(&self, script: &str) -> String {
        let script = format!("{CLIENT}{script}");
        let out =
            Command::new("docker").args(["exec", &self.name, "python3", "-c", &script]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// How many snapshots have our tags.
    pub(crate) fn snapshots(&self) -> usize {
        let all = "ec2.describe_snapshots(OwnerIds=['self'], Filters=[{'Name': 'tag-key', 'Values': ['backup:run']}])";
        self.python(&format!("print(len({all}['Snapshots']))")).parse().unwrap()
    }

    pub(crate) fn configure(&self, world: &World) {
        world.write("id", ID);
        world.write("secret", SECRET);
        world.write(
            "backup.toml",
            &format!(
                "state_dir = 'state'\nstore.url = 'store'\n[intervals.spot]\nservices = ['ebs']\nkeep = 5\n\
                 [services.ebs]\nkind = 'ebs'\ninstance = '{}'\nregion = 'eu-west-1'\nendpoint = '{}'\n\
                 name_prefix = 'TruthSI'\ntags = {{ Project = 'truth-si' }}\n\
                 access_key_id = {{ file = 'id' }}\nsecret_access_key = {{ file = 'secret' }}\n",
                self.instance, self.endpoint
            ),
        );
    }

    fn run(&self, world: &World, now: &str, args: &[&str]) -> Ran {
        let mut command = world.command(args);
        // Nobody may ask the network that the tests run in.
        command.env("BACKUP_TEST_NOW", now).env("AWS_EC2_METADATA_DISABLED", "true");
        let ran = ran(&mut command);
        for secret in [ID, SECRET] {
            assert!(!format!("{ran:?}").contains(secret), "{args:?} shows a key: {ran:#?}");
        }
        ran
    }

    fn ok(&self, world: &World, now: &str, args: &[&str]) -> Ran {
        let ran = self.run(world, now, args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:#?}");
        ran
    }
}

impl Drop for Ec2 {
    fn drop(&mut self) {
        drop(self.life.stdin.take());
        let _gone = self.life.wait();
    }
}

/// moto dates snapshots by the real clock: an hour of the far future is later than all of them.
const NOW: &str = "2026-03-09T04:38:20Z";
/// And it dates them by the second: of two of the same second the younger backup is the newer set.
const SOON: &str = "2026-03-09T04:39:20Z";
const LATER: &str = "2099-01-01T00:00:00Z";

#[test]
#[ignore = "live: moto in a container"]
fn snapshots_are_made_listed_pruned_and_restored() {
    let ec2 = Ec2::start("tour");
    let world = World::new();
    ec2.configure(&world);
    ec2.ok(&world, NOW, &["init"]);
    ec2.ok(&world, NOW, &["ebs", "snapshot", "spot-warning"]);
    ec2.ok(&world, SOON, &["ebs", "snapshot"]);
    assert_eq!(ec2.snapshots(), 4);
    let listed = ec2.ok(&world, SOON, &["ebs", "list"]);
    for says in ["snap-", "vol-", "/dev/sdf", "9 GiB", "completed", "spot-warning", "manual", "ebs/spot/"] {
        assert!(listed.out.contains(says), "{says}: {listed:#?}");
    }
    let lines = ec2.ok(&world, SOON, &["ebs", "list", "--json"]).lines();
    let found: Vec<_> = lines.iter().filter(|l| l["event"] == "snapshot").collect();
    assert!(found.len() == 4 && found.iter().all(|l| l["state"] == "completed"), "{lines:#?}");
    let good = ec2.ok(&world, SOON, &["list", "ebs", "--json"]).lines();
    assert_eq!(good.iter().filter(|l| l["event"] == "backup" && l["state"] == "good").count(), 2);
    ec2.ok(&world, SOON, &["verify", "ebs", "--all"]);
    // Also of the configuration, which each run keeps.
    let status = ec2.run(&world, SOON, &["status"]);
    assert_eq!(status.code, 0, "{status:#?}");

    // The plan and the restore, by tags alone: the store is not there.
    std::fs::rename(world.path("store"), world.path("gone")).unwrap();
    let onto = ["ebs", "restore", "--instance", &ec2.instance];
    let plan = ec2.ok(&world, SOON, &[&onto[..], &["--dry-run"]].concat());
    for says in ["makes a volume in eu-west-1", "gp3", "as /dev/sdg", "first read"] {
        assert!(plan.out.contains(says), "{says}: {plan:#?}");
    }
    let volumes = "print(len(ec2.describe_volumes()['Volumes']))";
    assert_eq!(ec2.python(volumes), "2");
    ec2.ok(&world, SOON, &[&onto[..], &["--yes"]].concat());
    assert_eq!(ec2.python(volumes), "3");
    ec2.ok(&world, SOON, &["ebs", "list"]);
    std::fs::rename(world.path("gone"), world.path("store")).unwrap();

    // What is old goes with its entry; the newest stays however old it is.
    let none = ec2.ok(&world, SOON, &["ebs", "prune", "--yes"]);
    assert!(none.err.contains("nothing to delete"), "{none:#?}");
    let dry = ec2.ok(&world, LATER, &["ebs", "prune", "--dry-run"]);
    assert!(dry.out.contains("delete") && dry.out.contains("the newest completed one"), "{dry:#?}");
    assert_eq!(ec2.snapshots(), 4);
    ec2.ok(&world, LATER, &["ebs", "prune", "--yes"]);
    assert_eq!(ec2.snapshots(), 2);
    let left = ec2.ok(&world, SOON, &["list", "ebs", "--all", "--json"]).lines();
    let left: Vec<_> = left.iter().filter(|l| l["event"] == "backup").collect();
    assert!(left.len() == 1 && left[0]["state"] == "good", "no entry is left behind: {left:#?}");

    // What is deleted behind our back is damage.
    ec2.python("[ec2.delete_snapshot(SnapshotId=s['SnapshotId']) for s in ec2.describe_snapshots(OwnerIds=['self'], Filters=[{'Name': 'tag-key', 'Values': ['backup:run']}])['Snapshots']]");
    let ran = ec2.run(&world, "2026-03-09T06:00:00Z", &["verify", "ebs"]);
    assert_eq!(ran.code, 5, "{ran:#?}");
    assert!(ran.err.contains("is gone") || ran.out.contains("is gone"), "{ran:#?}");
}

#[test]
#[ignore = "live: moto in a container"]
fn what_is_wrong_is_told_in_one_line_with_what_to_do() {
    let ec2 = Ec2::start("errors");
    let world = World::new();
    ec2.configure(&world);
    ec2.ok(&world, NOW, &["init"]);
    let ran = ec2.run(&world, NOW, &["ebs", "snapshot", "daily"]);
    ran.fails(2, "interval `daily` has no service `ebs`").hints("[intervals.daily]");
    let ran = ec2.run(&world, NOW, &["ebs", "restore", "--dry-run", "--az", "eu-west-1a"]);
    ran.fails(1, "no completed set of snapshots of `ebs`").hints("backup ebs list");
    ec2.ok(&world, NOW, &["ebs", "snapshot"]);
    let ran = ec2.run(&world, NOW, &["ebs", "restore", "--dry-run"]);
    ran.fails(1, "which instance this is").hints("instance");
    let text = world.read("backup.toml").replace("= 'http://", "= 'http://127.0.0.1:1/");
    world.write("backup.toml", &text);
    let ran = ec2.run(&world, NOW, &["ebs", "list"]);
    ran.fails(1, "does not answer").hints("endpoint");
}

/// Nothing is configured but where EC2 is: who this is, in which region, and by which keys, its metadata service says.
#[test]
#[ignore = "live: moto in a container"]
fn an_instance_learns_from_its_metadata_service_who_it_is() {
    let (ec2, world, server) = (Ec2::start("itself"), World::new(), Server::start());
    let keys = format!(
        r#"{{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"{ID}","SecretAccessKey":"{SECRET}","Token":"canary-token-3b7e",
        "LastUpdated":"2026-01-01T00:00:00Z","Expiration":"2099-01-01T00:00:00Z"}}"#
    );
    server.says(|s| s.instance = Some([ec2.instance.clone(), "eu-west-1".to_owned(), keys]));
    ec2.configure(&world);
    let config = world.read("backup.toml");
    let said = ["instance = ", "region = ", "access_key_id = ", "secret_access_key = "];
    let bare = |said: &[&str]| -> String {
        config
            .lines()
            .filter(|line| !said.iter().any(|s| line.starts_with(s)))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let run = |args: &[&str]| {
        let mut command = world.command(args);
        let ran = ran(command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &server.url));
        for secret in [ID, SECRET, "canary-token"] {
            assert!(!format!("{ran:?}").contains(secret), "{args:?} shows a key: {ran:#?}");
        }
        ran
    };
    assert_eq!(bare(&said).lines().count() + 4, config.lines().count(), "{config}");
    world.write("backup.toml", &bare(&said));
    assert_eq!(run(&["init"]).code, 0);
    let made = run(&["ebs", "snapshot"]);
    assert_eq!((made.code, ec2.snapshots()), (0, 2), "{made:#?}");
    for of in ["instance-id", "placement/region", "iam/security-credentials/backup-role"] {
        assert!(server.asked(&format!("GET /latest/meta-data/{of} 200")) > 0, "{of}");
    }
    let of = ec2.python(
        "print({t['Value'] for s in ec2.describe_snapshots(OwnerIds=['self'])['Snapshots'] for t in s.get('Tags', []) if t['Key'] == 'Instance'})",
    );
    assert_eq!(of, format!("{{'{}'}}", ec2.instance));

    // It takes connections and says nothing, as through too few hops: two seconds, and what to do.
    world.write("backup.toml", &bare(&said[..1]));
    server.says(|s| s.silent = true);
    let began = Instant::now();
    let ran = run(&["ebs", "snapshot"]);
    let took = began.elapsed();
    ran.fails(1, "cannot find out which instance this is").hints("hop limit of 2");
    assert!((2..6).contains(&took.as_secs()), "{took:?}");
    // Nor has it a role.
    server.says(|s| (s.silent, s.instance) = (false, None));
    world.write("backup.toml", &bare(&said[2..]));
    let ran = run(&["ebs", "list"]);
    ran.fails(1, "there are no keys").hints("give the instance a role");
    assert_eq!(ec2.snapshots(), 2);
}

#[test]
fn without_a_service_of_the_kind_it_says_what_to_write() {
    let world = World::configured();
    for args in [&["ebs", "list"][..], &["ebs", "snapshot"], &["ebs", "prune"], &["ebs", "restore"]] {
        world.run(args).fails(2, "no service of the kind `ebs` is configured").hints("kind = \"ebs\"");
    }
    let empty = World::new();
    empty.run(&["ebs", "list"]).fails(2, "there is no configuration").hints("backup bootstrap");
}
