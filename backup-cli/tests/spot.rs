//! The notice before a spot instance ends, and what is done then.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use self::server::Server;
use super::redis::until;
use super::support::{Ran, World, tree};

mod gate;
mod git;
mod reach;
mod remote;
mod saved;
pub(crate) mod server;
mod stop;

/// One minute after the tests' moment.
const NOTICE: &str = r#"{"action": "terminate", "time": "2026-03-09T04:39:20Z"}"#;

/// The name of a topic is a secret.
const TOPIC: &str = "canary-topic-77";
const TOKEN: &str = "canary-token-78";

const CONFIG: &str = "\
state_dir = 'state'
backup_configuration = false
store.url = 'store'
host = 'ip-10-0-0-1'
copies = ['far']
[stores.far]
url = 'far'
[intervals.hourly]
services = ['data', 'env']
[services.data]
kind = 'files'
paths = ['data']
[services.env]
kind = 'env'
paths = ['.env']
[notify.ntfy]
url = 'SERVER'
topic = { dotenv = '.env', key = 'NTFY_TOPIC' }
token = { file = 'token' }
[spot]
poll = '100ms'
metadata = 'SERVER'
";

struct Host {
    world: World,
    server: Server,
}

impl Host {
    fn new(more: &str) -> Self {
        let host = Self { world: World::new(), server: Server::start() };
        host.world.write("backup.toml", &format!("{}{more}", CONFIG.replace("SERVER", &host.server.url)));
        host.world.write(".env", &format!("NTFY_TOPIC={TOPIC}\n"));
        host.world.write("token", &format!("{TOKEN}\n"));
        host.world.fill();
        host.world.ok(&["init"]);
        host.world.ok(&["copy", "--to", "far"]);
        host
    }

    fn run(&self, args: &[&str]) -> Ran {
        let ran = self.world.run(args);
        for secret in [TOPIC, TOKEN] {
            assert!(!format!("{ran:?}").contains(secret), "{args:?} shows a secret: {ran:#?}");
        }
        ran
    }

    fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.world.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The watch, once it has looked.
    fn watch(&self, args: &[&str]) -> Child {
        let watch = self.spawn(&[&["spot", "watch"], args].concat());
        let look = "GET /latest/meta-data/events/recommendations/rebalance 404";
        until("a look", || self.server.asked(look) > 0);
        watch
    }

    fn titles(&self) -> Vec<String> {
        self.server.says(|s| s.posted.iter().map(|(m, _)| m["title"].as_str().unwrap().to_owned()).collect())
    }
}

fn end(child: Child) -> Ran {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    Ran { code: status.code().unwrap_or(-1), out, err }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
}

/// What a step came to.
#[track_caller]
fn step(ran: &Ran, name: &str) -> serde_json::Value {
    let found = ran.lines().into_iter().find(|l| l["event"] == "step-finished" && l["step"] == name);
    found.unwrap_or_else(|| panic!("no step {name}: {ran:#?}"))
}

#[test]
fn a_notice_is_answered_in_order_and_people_are_told() {
    let host = Host::new("");
    let watch = host.watch(&["--once", "--json"]);
    // A token that has expired is renewed in the same look.
    let looks = "GET /latest/meta-data/spot/instance-action 404";
    let before = host.server.asked(looks);
    host.server.expire();
    until("another look", || host.server.asked(looks) > before + 1);
    assert_eq!(host.server.asked("GET /latest/meta-data/spot/instance-action 401"), 1);
    assert_eq!(host.server.asked("PUT /latest/api/token 200"), 2);

    host.server.says(|s| s.notice = Some(NOTICE.to_owned()));
    let ran = end(watch);
    assert_eq!(ran.code, 0, "{ran:#?}");
    for secret in [TOPIC, TOKEN] {
        assert!(!format!("{ran:?}").contains(secret), "{ran:#?}");
    }
    for (name, outcome) in [
        ("alert", "ok"),
        ("env", "ok"),
        ("git", "skipped"),
        ("copy", "ok"),
        ("stop", "skipped"),
        ("notice", "ok"),
    ] {
        assert_eq!(step(&ran, name)["outcome"], outcome, "{name}: {ran:#?}");
    }
    let notice = ran.lines().into_iter().find(|l| l["event"] == "notice").unwrap();
    assert_eq!((notice["action"].as_str(), notice["left_ms"].as_u64()), (Some("terminate"), Some(60_000)));

    let posted = host.server.says(|s| s.posted.clone());
    assert_eq!(
        host.titles(),
        ["ip-10-0-0-1 goes away: terminate at 04:39:20 UTC", "ip-10-0-0-1: everything was saved"]
    );
    for (message, authorization) in &posted {
        assert_eq!(message["topic"], TOPIC);
        assert_eq!(authorization, &format!("Bearer {TOKEN}"));
    }
    assert_eq!(posted[0].0["priority"], 5);
    assert!(posted[1].0["message"].as_str().unwrap().contains("env ok"), "{posted:?}");

    // Only what is worth it without being told: the files are not.
    assert_eq!(host.world.good(), ["env/spot/20260309_043820"]);
    assert!(host.world.path("far/env/spot/20260309_043820/metadata.json").exists());
    let logged = host.run(&["logs"]);
    let run =
        logged.out.lines().find(|l| l.contains(" spot ")).unwrap().split(' ').next().unwrap().to_owned();
    let told = host.run(&["logs", &run]).out;
    assert!(["alert", "env", "copy", "notice"].iter().all(|step| told.contains(step)), "{told}");
}

#[test]
fn what_is_at_work_ends_within_five_seconds_and_nothing_new_begins() {
    // It accepts connections, and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let host = Host::new(&format!(
        "[services.slow]\nkind = 'redis'\nhost = '127.0.0.1'\nport = {port}\n[services.stuck]\nkind = 'redis'\nhost = '127.0.0.1'\nport = {port}\n"
    ));
    let (slow, mut stuck) =
        (host.spawn(&["run", "manual", "-s", "slow"]), host.spawn(&["run", "manual", "-s", "stuck"]));
    for name in ["slow", "stuck"] {
        let lock = host.world.path(&format!("state/locks/{name}.lock"));
        until("the lock", || std::fs::read_to_string(&lock).is_ok_and(|text| text.contains("run_id")));
    }
    // It does not hear that it should end.
    signal(&stuck, Signal::STOP);
    let watch = host.watch(&["--json"]);
    let began = Instant::now();
    host.server.says(|s| s.notice = Some(NOTICE.to_owned()));
    let slow = end(slow);
    assert_eq!(slow.code, 130, "{slow:#?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(stuck.wait().unwrap().code(), None, "it was killed");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());

    until("the notice to people", || host.titles().len() == 2);
    let refused = host.run(&["run", "hourly"]);
    refused.fails(1, "this host is about to go away");
    // What was announced stays announced: it is answered once.
    signal(&watch, Signal::TERM);
    let ran = end(watch);
    assert_eq!(ran.code, 130, "{ran:#?}");
    let report = ran.lines().into_iter().find(|l| l["event"] == "flush").unwrap();
    assert_eq!(report["ended"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(step(&ran, "env")["outcome"], "ok");
    // Redis does not answer, and holds up nothing else.
    assert_eq!(step(&ran, "notice")["outcome"], "ok");
    assert_eq!(host.run(&["run", "hourly"]).code, 0, "once the watch has ended");
}

#[test]
fn a_host_that_stayed_does_its_work_again() {
    let host = Host::new("");
    let mut watch = host.watch(&[]);
    // It was to be gone eight minutes ago.
    let over = r#"{"action": "stop", "time": "2026-03-09T04:30:00Z"}"#;
    host.server.says(|s| s.notice = Some(over.to_owned()));
    until("the notice to people", || host.titles().len() == 2);
    host.server.says(|s| s.notice = None);
    until("a run", || host.run(&["run", "hourly"]).code == 0);
    assert!(watch.try_wait().unwrap().is_none(), "and the watch goes on");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// Its time is over, or not told; then it is another one: each is answered once, with the time that there is in any case.
#[test]
fn odd_notices_are_answered_and_rubbish_is_none() {
    let host = Host::new("");
    let watch = host.watch(&["--json"]);
    let say = |text: &str| host.server.says(|s| s.notice = Some(text.to_owned()));
    let looks = "GET /latest/meta-data/spot/instance-action 200";
    let seen = |n: usize| {
        let before = host.server.asked(looks);
        until("looks", || host.server.asked(looks) > before + 2);
        assert_eq!(host.titles().len(), n, "{:?}", host.titles());
    };
    for rubbish in ["<html>captive portal</html>", "", "{}", "{\"action\": 7}"] {
        say(rubbish);
        seen(0);
    }
    for (n, notice, title) in [
        (1, r#"{"action": "terminate", "time": "2026-03-09T04:00:00Z"}"#, "terminate at 04:00:00 UTC"),
        (2, r#"{"action": "stop"}"#, "stop at a time that is not told"),
        (3, r#"{"action": "hibernate", "time": "soon"}"#, "hibernate at a time that is not told"),
        (4, NOTICE, "terminate at 04:39:20 UTC"),
    ] {
        host.world.write(".env", &format!("NTFY_TOPIC={TOPIC}\nN={n}\n"));
        say(notice);
        until("the notice to people", || host.titles().len() == 2 * n);
        assert!(host.titles()[2 * n - 2].ends_with(title), "{:?}", host.titles());
        assert_eq!(host.titles()[2 * n - 1], "ip-10-0-0-1: everything was saved");
        seen(2 * n);
    }
    signal(&watch, Signal::TERM);
    let ran = end(watch);
    let left = ran
        .lines()
        .iter()
        .filter(|l| l["event"] == "notice")
        .map(|l| l["left_ms"].as_u64())
        .collect::<Vec<_>>();
    assert_eq!(left, [20_000, 120_000, 20_000, 60_000].map(Some), "{ran:#?}");
    assert_eq!(ran.err.matches("a notice would be missed").count(), 1, "{ran:#?}");
    assert_eq!(host.world.good().len(), 4);
}

/// The timer's run is anywhere when the notice comes: whatever it has committed is whole, the rest is gone, and what the
/// notice is answered with is saved.
#[test]
fn a_notice_at_any_moment_of_a_run_leaves_what_is_whole() {
    // A generator of Numerical Recipes: also for data that compresses badly, and so takes its time.
    let mut random = 0x9e37_79b9_u64;
    let mut next = move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % (1 << 32);
        random
    };
    let lines: Vec<String> = (0..2_000_000).map(|_| format!("{:x}\n", next())).collect();
    let data = lines.concat();
    let prepared = || {
        let host = Host::new("");
        let config = host.world.read("backup.toml").replace("poll = '100ms'", "poll = '10ms'");
        host.world.write("backup.toml", &format!("{config}[compression]\nlevel = 9\n"));
        host.world.write("data/large", &data);
        host
    };
    let host = prepared();
    let began = Instant::now();
    assert_eq!(host.run(&["run", "hourly"]).code, 0);
    let whole = began.elapsed();
    let mut cut = 0;
    for round in 0..6 {
        let host = prepared();
        let watch = host.watch(&["--once", "--json"]);
        let run = host.spawn(&["run", "hourly"]);
        let pause = whole.mul_f64(next() as f64 / f64::from(u32::MAX));
        std::thread::sleep(pause);
        host.server.says(|s| s.notice = Some(NOTICE.to_owned()));
        let (run, watch) = (end(run), end(watch));
        cut += u32::from(run.code != 0);
        assert_eq!(watch.code, 0, "{round}, after {pause:?}: {watch:#?}");
        assert_eq!(step(&watch, "env")["outcome"], "ok", "{round}: {watch:#?}");
        assert!([0, 1, 3, 130].contains(&run.code), "{round}, after {pause:?}: {run:#?}");
        let good = host.world.good();
        assert!(good.contains(&"env/spot/20260309_043820".to_owned()), "{round}: {good:?}");
        // It may have been done already when it was told to stop.
        let told = run.out.lines().any(|line| line.starts_with("data ") && line.contains(" ok "));
        assert_eq!(good.contains(&"data/hourly/20260309_043820".to_owned()), told, "{round}: {run:#?}");
        assert!(told || run.code != 0, "{round}: {run:#?}");
        host.world.ok(&["verify", "--level", "content"]);
        // And afterwards nothing of it is in the way.
        let again = host.world.run_at("2026-03-10T05:00:00Z", &["run", "hourly"]);
        assert_eq!(again.code, 0, "{round}: {again:#?}");
        let states: Vec<_> = host.run(&["list", "--json"]).lines();
        let odd = states.iter().filter(|l| l["event"] == "backup" && l["state"] != "good").count();
        assert_eq!(odd, 0, "{round}: {states:#?}");
    }
    assert!(cut > 0, "no run was at work when its notice came");
}

#[test]
fn a_signal_does_not_cut_the_answer_short() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let host = Host::new(&format!(
        "steps = [{{ do = 'alert' }}, {{ do = 'back-up', services = ['slow'], budget = '3s' }}, {{ do = 'back-up', name = 'env', services = ['env'], after = ['back-up'] }}]\n\
         [services.slow]\nkind = 'redis'\nhost = '127.0.0.1'\nport = {port}\n"
    ));
    for (n, end_it) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        host.world.write(".env", &format!("NTFY_TOPIC={TOPIC}\nN={n}\n"));
        let watch = host.watch(&["--json"]);
        host.server.says(|s| s.notice = Some(NOTICE.to_owned()));
        until("the alert", || host.titles().len() == n + 1);
        signal(&watch, end_it);
        let ran = end(watch);
        assert_eq!(ran.code, 130, "{ran:#?}");
        assert_eq!(step(&ran, "back-up")["outcome"], "failed", "{ran:#?}");
        assert_eq!(step(&ran, "env")["outcome"], "ok", "{ran:#?}");
        assert_eq!(host.world.good().len(), n + 1);
        host.server.says(|s| (s.notice, s.asked) = (None, Vec::new()));
    }
}

#[test]
fn what_can_be_saved_here_is_when_the_network_is_gone() {
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let host = Host::new("repositories = ['app']\n");
    let app = host.world.path("app");
    host.world.write("app/main.rs", "unfinished\n");
    git::git(&app, &["init", "-q"]);
    git::git(&app, &["remote", "add", "origin", &format!("http://{gone}/app.git")]);
    let config = host.world.read("backup.toml").replace(&host.server.url, &format!("http://{gone}"));
    let s3 = format!("url = 's3://ours/here'\noptions = {{ endpoint = 'http://{gone}', allow_http = true }}");
    host.world.write("backup.toml", &config.replace("url = 'far'", &s3));
    let began = Instant::now();
    let ran = host.run(&["spot", "simulate", "--in-earnest", "--yes", "--notice", "15s", "--json"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(began.elapsed() < Duration::from_secs(16), "{:?}", began.elapsed());
    for failed in ["alert", "git", "copy", "notice"] {
        assert_eq!(step(&ran, failed)["outcome"], "failed", "{failed}: {ran:#?}");
    }
    assert_eq!(step(&ran, "env")["outcome"], "ok");
    assert_eq!(host.world.good(), ["env/spot/20260309_043820"]);
    assert!(git::git(&app, &["for-each-ref", "refs/heads/spot"]).contains("spot/ip-10-0-0-1"));
}

#[test]
fn a_recommendation_starts_copies_and_stops_nothing() {
    let host = Host::new("");
    host.world.ok(&["run", "hourly"]);
    std::fs::remove_dir_all(host.world.path("far/data")).unwrap();
    let watch = host.watch(&["--json"]);
    host.server.says(|s| s.rebalance = Some(r#"{"noticeTime": "2026-03-09T04:38:00Z"}"#.to_owned()));
    let copied = host.world.path("far/data/hourly/20260309_043820/metadata.json");
    until("the copy", || copied.exists());
    let looks = host.server.asked("GET /latest/meta-data/spot/instance-action 404");
    until("more looks", || host.server.asked("GET /latest/meta-data/spot/instance-action 404") > looks + 3);
    host.run(&["run", "hourly"]);
    signal(&watch, Signal::TERM);
    let ran = end(watch);
    assert_eq!(host.titles().len(), 1, "once, not at each look");
    assert!(ran.lines().iter().all(|l| l["event"] != "step-finished"), "{ran:#?}");
}

#[test]
fn a_service_that_does_not_answer_is_no_quiet_one() {
    let host = Host::new("");
    host.server.says(|s| s.silent = true);
    let mut watch = host.spawn(&["spot", "watch"]);
    // Line by line: it goes on.
    let mut err = std::io::BufReader::new(watch.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("a notice would be missed") {
        assert_ne!(std::io::BufRead::read_line(&mut err, &mut said).unwrap(), 0, "{said}");
    }
    assert!(said.contains("hop limit of 2"), "{said}");
    host.server.says(|s| s.silent = false);
    while !said.contains("answers again") {
        assert_ne!(std::io::BufRead::read_line(&mut err, &mut said).unwrap(), 0, "{said}");
    }
    host.server.says(|s| s.notice = Some(NOTICE.to_owned()));
    until("the notice to people", || host.titles().len() == 2);
    signal(&watch, Signal::KILL);
    let _killed = watch.wait();
}

#[test]
fn a_rehearsal_does_it_and_stops_nothing() {
    let host = Host::new("");
    let plan = host.run(&["spot", "simulate", "--dry-run"]);
    assert_eq!(plan.code, 0, "{plan:#?}");
    assert_eq!(plan.out.lines().count(), 7, "{plan:#?}");
    assert!(host.world.good().is_empty() && host.titles().is_empty(), "a plan does nothing");
    let ran = host.run(&["spot", "simulate", "--notice", "30s"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.err.contains("of 30 s"), "{ran:#?}");
    assert!(host.titles().iter().all(|t| t.starts_with("Rehearsal: ")), "{:?}", host.titles());
    assert_eq!(host.run(&["run", "hourly"]).code, 0);
}

#[test]
fn mistakes_are_told_before_the_worst_day() {
    let host = Host::new("");
    let right = host.world.read("backup.toml");
    let say = |more: &str| host.world.write("backup.toml", &format!("{right}{more}\n"));
    say("repositries = []");
    host.run(&["spot", "watch"]).fails(2, "repositries").hints("repositories");
    say("steps = [{ do = 'back-up', services = ['radis'] }]");
    host.run(&["spot", "watch"]).fails(2, "unknown service `radis`");
    say("");
    let without = host.world.read("backup.toml").split("[spot]").next().unwrap().to_owned();
    host.world.write("backup.toml", &without);
    host.run(&["spot", "watch"]).fails(2, "the section [spot] is missing").hints("add `[spot]`");
}

#[test]
fn the_usual_order_is_that_of_the_runbook_over_what_there_is() {
    let services = "[services.cache]\nkind = 'redis'\nport = 1\nhost = 'localhost'\n\
        [services.graph]\nkind = 'neo4j'\ncontainer = 'graph'\n";
    let steps = |more: &str| -> Vec<(String, String)> {
        let host = Host::new("");
        host.world.write("backup.toml", &format!("{}{services}{more}", host.world.read("backup.toml")));
        let lines = host.run(&["spot", "simulate", "--dry-run", "--json"]).lines();
        let steps = lines.iter().filter(|l| l["event"] == "step");
        let named = |l: &serde_json::Value| l["action"]["services"].as_array().cloned().unwrap_or_default();
        let text = |l: &serde_json::Value| {
            named(l).iter().map(|s| s.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        steps.map(|l| (l["name"].as_str().unwrap().to_owned(), text(l))).collect()
    };
    let names = |steps: &[(String, String)]| steps.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let usual = steps("");
    assert_eq!(
        names(&usual),
        ["alert", "redis", "env", "neo4j", "git", "copy", "copy-later", "stop", "notice"]
    );
    assert_eq!(
        (usual[1].1.as_str(), usual[5].1.as_str(), usual[6].1.as_str()),
        ("cache", "cache env", "graph")
    );
    // Whoever names more gets more, after what is worth more.
    let more = steps("[intervals.spot]\nservices = ['data', 'cache']\n");
    assert_eq!(names(&more), ["alert", "redis", "others", "git", "copy", "copy-later", "stop", "notice"]);
    assert_eq!(more[2].1, "data");
}
