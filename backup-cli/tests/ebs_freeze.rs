//! File systems that `backup` has frozen for snapshots thaw, whatever becomes of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::disk::{Disk, Writer, freeze_line};
use super::ebs::Ec2;
use super::killed::{Run, pid, until};
use super::support::{Ran, World, ran};

/// How far a call of `CreateSnapshots` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    None,
    Made,
    Answered,
}

/// An EC2 that gets `CreateSnapshots` only when the test lets it go.
struct Slow {
    address: SocketAddr,
    call: Arc<(Mutex<Call>, Condvar)>,
}

impl Slow {
    fn before(server: &str) -> Self {
        let server: SocketAddr = server.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            call: Arc::new((Mutex::new(Call::None), Condvar::new())),
        };
        let call = Arc::clone(&this.call);
        // They end with this process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let call = Arc::clone(&call);
                // What a dead client leaves is broken off.
                std::thread::spawn(move || drop(serve(client, server, &call)));
            }
        });
        this
    }

    /// Waits until it was called.
    #[track_caller]
    fn called(&self) {
        let (call, changed) = &*self.call;
        let patience = Duration::from_secs(60);
        let waited = changed.wait_timeout_while(call.lock().unwrap(), patience, |c| *c == Call::None);
        assert!(!waited.unwrap().1.timed_out(), "nobody asks for snapshots");
    }

    fn answer(&self) {
        *self.call.0.lock().unwrap() = Call::Answered;
        self.call.1.notify_all();
    }
}

fn serve(client: TcpStream, server: SocketAddr, call: &(Mutex<Call>, Condvar)) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        // One request a connection.
        if !lower.starts_with("connection:") {
            head.push_str(&line);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if String::from_utf8_lossy(&body).contains("Action=CreateSnapshots") {
        let mut now = call.0.lock().unwrap();
        if *now == Call::None {
            *now = Call::Made;
            call.1.notify_all();
        }
        drop(call.1.wait_while(now, |c| *c != Call::Answered).unwrap());
    }
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes())?;
    upstream.write_all(&body)?;
    std::io::copy(&mut upstream, &mut &client)?;
    client.shutdown(std::net::Shutdown::Both)
}

/// A host with a disk that is written to.
struct Host {
    ec2: Ec2,
    slow: Slow,
    world: World,
    // In this order they go.
    writer: Writer,
    disk: Disk,
}

impl Host {
    fn new(which: &str, max: &str) -> Self {
        let (ec2, world, disk) = (Ec2::start(which), World::new(), Disk::ext4());
        let slow = Slow::before(&ec2.endpoint);
        ec2.configure(&world);
        let text = world.read("backup.toml").replace(&ec2.endpoint, &format!("http://{}", slow.address));
        // The keys of the service come last.
        let more = format!("{}max_interruption = '{max}'\n", freeze_line(&[&disk]));
        world.write("backup.toml", &format!("backup_configuration = false\n{text}{more}"));
        world.ok(&["init"]);
        let writer = Writer::on(&disk);
        Self { ec2, slow, world, writer, disk }
    }

    /// A run that has frozen the disk and waits for EC2.
    fn frozen(&self) -> Run {
        let mut command = self.world.command(&["ebs", "snapshot"]);
        command.env("AWS_EC2_METADATA_DISABLED", "true").stdout(Stdio::null()).stderr(Stdio::piped());
        let run = Run(command.process_group(0).spawn().unwrap());
        self.slow.called();
        assert!(self.writer.stands_still(), "somebody wrote");
        run
    }

    fn entries(&self) -> usize {
        let files = std::fs::read_dir(self.world.path("state/interruptions")).into_iter().flatten();
        files.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "json")).count()
    }

    fn watchdogs(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.world.path("state/interruptions")).into_iter().flatten();
        let armed = files.map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "armed"));
        armed.map(|p| std::fs::read_to_string(p).unwrap().trim().to_owned()).collect()
    }

    fn status(&self) -> String {
        self.world.run(&["status", "ebs"]).out
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Watchdogs of a test that failed. The disk thaws when it goes.
        for watchdog in self.watchdogs() {
            let _gone = kill_process(pid(&watchdog), Signal::KILL);
        }
        self.slow.answer();
    }
}

const SOON: Duration = Duration::from_secs(30);

#[test]
#[ignore = "live: moto in a container, root and loop devices"]
fn the_watchdog_thaws_for_a_killed_run() {
    let host = Host::new("killed", "20s");
    let mut run = host.frozen();
    assert_eq!((host.entries(), host.watchdogs().len()), (1, 1));
    let told = host.status();
    assert!(told.contains("which is at work: froze") && told.contains("mounted"), "{told}");
    run.0.kill().unwrap();
    let took = host.writer.goes_on();
    assert!(took < Duration::from_secs(3), "{took:?}");
    until("the journal is empty", SOON, || host.entries() == 0);
    assert!(!host.disk.is_frozen());
    run.0.wait().unwrap();

    // The next one is like any other.
    host.slow.answer();
    let ran = host.world.ok(&["ebs", "snapshot"]);
    assert!(!host.disk.is_frozen() && host.entries() == 0, "{ran:#?}");
    let lines = host.world.ok(&["show", "ebs", "--json"]).lines();
    let capture: &Value = lines.iter().find_map(|l| l["metadata"].get("capture")).unwrap();
    assert_eq!(capture["mode"], "create-snapshots-frozen", "{capture}");
    assert!(capture["interruption_ms"].as_u64().unwrap() > 0, "{capture}");
    let log = host.world.read("state/watchdog.log");
    assert!(log.contains("its run is dead"), "{log}");
}

#[test]
#[ignore = "live: moto in a container, root and loop devices"]
fn the_watchdog_thaws_for_a_run_that_sleeps_and_its_set_is_removed() {
    let host = Host::new("asleep", "4s");
    let began = Instant::now();
    let run = host.frozen();
    kill_process(pid(&run.0.id().to_string()), Signal::STOP).unwrap();
    host.writer.goes_on();
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    // Who sleeps may wake up and freeze: it is not forgotten.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(host.entries(), 1);
    kill_process(pid(&run.0.id().to_string()), Signal::CONT).unwrap();
    host.slow.answer();
    let mut run = run;
    let mut told = String::new();
    run.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(run.0.wait().unwrap().code(), Some(1), "{told}");
    assert!(told.contains("was brought back by the watchdog"), "{told}");
    until("the journal is empty", SOON, || host.entries() == 0);
    assert!(!host.disk.is_frozen());
    assert_eq!(host.ec2.snapshots(), 0);
}

#[test]
#[ignore = "live: moto in a container, root and loop devices"]
fn without_a_watchdog_resume_thaws() {
    let host = Host::new("resume", "60s");
    let run = host.frozen();
    for watchdog in host.watchdogs() {
        kill_process(pid(&watchdog), Signal::KILL).unwrap();
    }
    drop(run);
    assert!(host.writer.stands_still());
    let told = host.status();
    assert!(told.contains("did not end that: froze") && told.contains("backup resume"), "{told}");
    host.world.ok(&["resume"]);
    host.writer.goes_on();
    assert_eq!(host.entries(), 0);
}

#[test]
#[ignore = "live: moto in a container, root and loop devices"]
fn what_the_watchdog_writes_to_is_never_frozen() {
    let host = Host::new("state", "10s");
    host.slow.answer();
    let text = host.world.read("backup.toml");
    for (key, what) in [("state_dir = 'state'", "state"), ("store.url = 'store'", "store")] {
        let place = host.disk.path().join(what);
        let on_it = key.replace(&format!("'{what}'"), &format!("'{}'", place.display()));
        host.world.write("backup.toml", &text.replace(key, &on_it));
        host.world.ok(&["init"]);
        let ran = host.world.run(&["ebs", "snapshot"]);
        ran.fails(1, "a store or the state directory");
        assert!(
            ran.err.contains("take it out of `freeze`") && !ran.err.contains("in the background"),
            "{ran:#?}"
        );
        host.writer.goes_on();
    }
    // Its own output, too.
    host.world.write("backup.toml", &text);
    let log = std::fs::File::create(host.disk.path().join("log")).unwrap();
    let mut command = host.world.command(&["ebs", "snapshot"]);
    let ran = command.stdout(log).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(told.contains("the output of this program"), "{told}");
    assert_eq!(host.ec2.snapshots(), 0);
}

/// The program that has to thaw, and the containers of the host: by where they really lie, not by a usual place.
#[test]
#[ignore = "live: moto in a container, root and loop devices"]
fn what_holds_the_program_or_the_engines_data_is_never_frozen() {
    let host = Host::new("needed", "10s");
    host.slow.answer();
    // The program of a test is larger than the other disk.
    let disk = Disk::xfs();
    let writer = Writer::on(&disk);
    let text = host.world.read("backup.toml");
    host.world.write("backup.toml", &text.replace(&freeze_line(&[&host.disk]), &freeze_line(&[&disk])));
    let refused = |ran: Ran, what: &str| {
        ran.fails(1, what);
        assert!(ran.err.contains("take it out of `freeze`"), "{ran:#?}");
        assert!(ran.err.contains(&format!("cannot freeze `{}`", disk.path().display())), "{ran:#?}");
        writer.goes_on();
        assert_eq!((host.ec2.snapshots(), host.entries()), (0, 0));
    };
    let inner = host.world.command(&["ebs", "snapshot"]);
    let program = disk.path().join("backup");
    let mut strip = std::process::Command::new("strip");
    assert!(strip.arg("-o").arg(&program).arg(inner.get_program()).status().unwrap().success());
    let mut command = std::process::Command::new(&program);
    command.args(inner.get_args()).env_clear().current_dir(host.world.path("")).stdin(Stdio::null());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    refused(ran(&mut command), "this program");
    std::fs::remove_file(&program).unwrap();

    // Where the engine of the host listens, another one does, as far as this command sees.
    let socket = host.world.path("docker.sock");
    engine(&socket, &disk.path().join("docker"));
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", "mount --bind \"$0\" /var/run/docker.sock && exec \"$@\""])
        .arg(&socket)
        .arg(inner.get_program())
        .args(inner.get_args())
        .env_clear()
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir(host.world.path(""))
        .stdin(Stdio::null());
    refused(ran(&mut command), "the data of the container engine");
}

/// An engine at `socket` that has its data in `root`. It ends with this process.
fn engine(socket: &Path, root: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    let info = serde_json::json!({ "DockerRootDir": root }).to_string();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(&client);
            let mut first = String::new();
            reader.read_line(&mut first).unwrap();
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let body = match first.contains("/info") {
                true => info.as_str(),
                false => r#"{"ApiVersion":"1.41","Version":"20.10.24"}"#,
            };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
            let _broken = (&client)
                .write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
}
