//! What is left when the host is gone: the worst day, whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::ebs::Ec2;
use super::super::s3::{KEYS, Storage, burn, host};
use super::*;

/// A Redis server over `data` in the work directory. Killed when dropped.
struct Redis(Child);

impl Redis {
    fn start(world: &World) -> Self {
        let dir = world.path("redis");
        std::fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket", "redis.sock"]).current_dir(&dir);
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let redis = Self(server.expect("redis-server is installed"));
        until("the server", || cli(world, &["PING"]) == "PONG");
        redis
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn cli(world: &World, args: &[&str]) -> String {
    let out = Command::new("redis-cli").arg("-s").arg(world.path("redis/redis.sock")).args(args).output();
    String::from_utf8_lossy(&out.unwrap().stdout).trim().to_owned()
}

/// Appends one number after the other to a list, and counts those that the server acknowledged.
struct Writer {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(world: &World) -> Self {
        use std::io::{Read as _, Write as _};
        let socket = world.path("redis/redis.sock");
        let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
            let mut answer = [0; 64];
            while !stopped.load(Ordering::SeqCst) {
                let next = count.load(Ordering::SeqCst) + 1;
                // The server may be gone: that is the point.
                if stream.write_all(format!("RPUSH list {next}\r\n").as_bytes()).is_err() {
                    return;
                }
                match stream.read(&mut answer) {
                    Ok(n) if n > 0 && answer[0] == b':' => count.store(next, Ordering::SeqCst),
                    _ => return,
                }
            }
        });
        Self { acknowledged, stop, thread: Some(thread) }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ended = self.thread.take().unwrap().join();
    }
}

/// A notice under load, encrypted copies to the cloud, everything killed at the announced moment; only the bucket, the key
/// and the Git server are left.
#[test]
#[ignore = "live: MinIO in a container, redis-server"]
fn what_was_acknowledged_before_the_notice_comes_back_from_the_cloud() {
    let storage = Storage::start("spot");
    let (world, server) = (World::new(), Server::start());
    let public = host(&world);
    let app = world.path("app");
    let remote = world.path("remote.git");
    git::git(&world.path(""), &["init", "-q", "--bare", &remote.display().to_string()]);
    world.write("app/main.rs", "unfinished\n");
    git::git(&app, &["init", "-q"]);
    git::git(&app, &["remote", "add", "origin", &remote.display().to_string()]);
    let mut redis = Redis::start(&world);
    world.write(
        "backup.toml",
        &format!(
            "state_dir = 'state'\nencryption.recipients = ['{public}']\ncopies = ['cloud']\nstore.url = 'fast'\nhost = 'here'\n\
             stores.cloud = {{ url = 's3://ours/here', options = {{ allow_http = true }} }}\n\
             intervals.hourly = {{ services = ['redis', 'env'] }}\n\
             spot = {{ poll = '100ms', metadata = '{}', repositories = ['app'] }}\n\
             [services.redis]\nkind = 'redis'\nsocket = 'redis/redis.sock'\n\
             [services.env]\nkind = 'env'\npaths = ['.env']\n",
            server.url
        ),
    );
    storage.ok(&world, &["init"]);
    cli(&world, &["EVAL", "for n = 1, 20000 do redis.call('SET', 'k' .. n, string.rep('x', 500)) end", "0"]);
    let earlier = [KEYS[0], KEYS[1], ("BACKUP_TEST_NOW", "2026-03-09T04:00:00Z")];
    let hourly = storage.run(&world, &["run", "hourly"], &earlier);
    assert_eq!(hourly.code, 0, "{hourly:#?}");
    world.write(".env", "PASSWORD=plain-canary\nNEW=yes\n");
    let writer = Writer::start(&world);

    let mut watch = world.command(&["spot", "watch"]);
    let endpoint = format!("http://{}", storage.address);
    watch.env("AWS_ENDPOINT_URL_S3", endpoint).env("AWS_REGION", "us-east-1").envs(KEYS);
    let mut watch = watch.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("a look", || server.asked("GET /latest/meta-data/spot/instance-action 404") > 0);
    until("writes", || writer.acknowledged() > 1000);
    // A timer fires at the worst moment.
    let mut timer = world.command(&["run", "hourly"]);
    let timer = timer.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let lock = world.path("state/locks/redis.lock");
    until("its run", || {
        std::fs::read_to_string(&lock).is_ok_and(|text| text.contains(&timer.id().to_string()))
    });
    // Twenty seconds, for the sake of those who wait for this test.
    let began = Instant::now();
    let notice = r#"{"action": "terminate", "time": "2026-03-09T04:38:40Z"}"#;
    let before = writer.acknowledged();
    server.says(|s| s.notice = Some(notice.to_owned()));
    std::thread::sleep(Duration::from_secs(20).saturating_sub(began.elapsed()));
    assert_ne!(end(timer).code, 0, "it made room");
    watch.kill().unwrap();
    redis.0.kill().unwrap();
    watch.wait().unwrap();
    drop(writer);
    drop(redis);
    assert!(!storage.has("plain-canary"), "it left the host encrypted");
    burn(&world, &["key", "remote.git"]);

    storage.ok(
        &world,
        &["bootstrap", "s3://ours/here", "--option", "allow_http=true", "--yes", "--identity", "key"],
    );
    let redis = Redis::start(&world);
    storage.ok(&world, &["recover", "--store", "cloud", "--yes", "--identity", "key"]);
    assert_eq!(world.read(".env"), "PASSWORD=plain-canary\nNEW=yes\n");
    let list = cli(&world, &["LRANGE", "list", "0", "-1"]);
    let there: Vec<u64> = list.lines().map(|l| l.parse().unwrap()).collect();
    assert!(there.len() as u64 >= before, "{} of {before} acknowledged writes", there.len());
    assert!(there.iter().zip(1..).all(|(found, n)| *found == n), "without a hole");
    assert_eq!(cli(&world, &["STRLEN", "k20000"]), "500");
    let branches = git::git(&remote, &["for-each-ref", "--format=%(refname:short)", "refs/heads/spot"]);
    assert_eq!(git::git(&remote, &["show", &format!("{}:main.rs", branches.trim())]), "unfinished\n");
    drop(redis);
}

/// Volumes are snapshot at once, and again with what was saved meanwhile; what would be deleted with the instance is told before.
#[test]
#[ignore = "live: moto in a container"]
fn volumes_are_snapshot_at_once_and_again_with_the_backups() {
    let ec2 = Ec2::start("spot");
    let mapping = "{'DeviceName': '/dev/sdf', 'Ebs': {'DeleteOnTermination': True}}";
    let instance = &ec2.instance;
    ec2.python(&format!(
        "ec2.modify_instance_attribute(InstanceId='{instance}', BlockDeviceMappings=[{mapping}])"
    ));
    let (world, server) = (World::new(), Server::start());
    ec2.configure(&world);
    let config = world.read("backup.toml");
    let spot = format!("[spot]\npoll = '100ms'\nmetadata = '{}'\n", server.url);
    world.write("backup.toml", &format!("{config}{spot}"));
    world.ok(&["init"]);
    let mut watch = world.command(&["spot", "watch", "--once", "--json"]);
    let watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("a look", || server.asked("GET /latest/meta-data/spot/instance-action 404") > 0);
    server.says(|s| s.notice = Some(NOTICE.to_owned()));
    let ran = end(watch);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.err.contains("/dev/sdf") && ran.err.contains("DeleteOnTermination"), "{ran:#?}");
    for name in ["snapshots", "snapshots-again"] {
        assert_eq!(step(&ran, name)["outcome"], "ok", "{ran:#?}");
    }
    assert_eq!(ec2.snapshots(), 4, "two volumes, twice");
    let reasons = ec2.python(
        "print({t['Value'] for s in ec2.describe_snapshots(OwnerIds=['self'])['Snapshots'] for t in s.get('Tags', []) if t['Key'] == 'Reason'})",
    );
    assert_eq!(reasons, "{'spot-warning'}");
}
