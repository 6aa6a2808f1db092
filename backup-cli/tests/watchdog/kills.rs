//! The tests.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use super::host::{CANARY, Host, signal, stat, until};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_killed_run_is_made_good_within_two_seconds", a_killed_run_is_made_good_within_two_seconds),
    ("two_interruptions_at_once_both_end", two_interruptions_at_once_both_end),
    ("a_run_that_ends_takes_its_watchdog_along", a_run_that_ends_takes_its_watchdog_along),
    ("the_watchdog_is_on_its_own_and_tells_no_secret", the_watchdog_is_on_its_own_and_tells_no_secret),
    ("a_late_run_is_overruled_and_gives_no_backup", a_late_run_is_overruled_and_gives_no_backup),
    ("without_a_watchdog_the_next_run_does_it_first", without_a_watchdog_the_next_run_does_it_first),
    ("resume_does_it_also_without_the_store", resume_does_it_also_without_the_store),
    ("the_watchdog_does_it_also_without_the_store", the_watchdog_does_it_also_without_the_store),
    ("the_watchdog_tries_again", the_watchdog_tries_again),
    ("what_is_not_configured_any_more_is_told_and_stays", what_is_not_configured_any_more_is_told_and_stays),
    ("no_watchdog_no_interruption", no_watchdog_no_interruption),
];

fn ended(watchdogs: &[u32]) {
    assert!(!watchdogs.is_empty());
    until("the watchdogs have ended", || watchdogs.iter().all(|pid| stat(*pid).is_none()));
}

fn a_killed_run_is_made_good_within_two_seconds() {
    for service in ["a", "b"] {
        let host = Host::new(LONG);
        let mut run = host.interrupted(&[service]);
        let watchdogs = host.watchdogs();
        run.kill();
        let took = until("the service is back", || host.state(service) == "running");
        assert!(took < Duration::from_secs(2), "{took:?}");
        ended(&watchdogs);
        assert!(host.entries().is_empty());
        assert_eq!(host.good(), 0);
        // What it did is on record; the next run needs no help.
        assert!(host.ok(&["logs"]).contains("resume"), "{}", host.ok(&["logs"]));
        host.remove(&format!("{service}/hold"));
        host.ok(&["run"]);
        assert_eq!((host.good(), host.state(service).as_str()), (2, "running"));
    }
}

fn two_interruptions_at_once_both_end() {
    let host = Host::new(LONG);
    let mut run = host.interrupted(&["a", "b"]);
    let watchdogs = host.watchdogs();
    assert_eq!((host.entries().len(), watchdogs.len()), (2, 2));
    run.kill();
    ended(&watchdogs);
    assert_eq!((host.state("a").as_str(), host.state("b").as_str()), ("running", "running"));
    assert!(host.entries().is_empty());
}

fn a_run_that_ends_takes_its_watchdog_along() {
    let host = Host::new(LONG);
    let run = host.interrupted(&["a"]);
    let watchdogs = host.watchdogs();
    assert_eq!(watchdogs.len(), 1);
    let status = host.run(&["status", "a"]);
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(told.contains("which is at work: paused"), "{told}");
    host.remove("a/hold");
    let (stderr, code) = run.finish();
    assert_eq!(code, Some(0), "{stderr}");
    ended(&watchdogs);
    assert_eq!(host.log("a"), ["open running", "paused", "running"]);
    assert_eq!((host.good(), fs::read_dir(host.path("state/interruptions")).unwrap().count()), (1, 0));
    assert_eq!(fs::read_to_string(host.path("state/watchdog.log")).unwrap(), "");
}

fn the_watchdog_is_on_its_own_and_tells_no_secret() {
    let host = Host::new(LONG);
    let mut run = host.interrupted(&["a"]);
    let watchdog = host.watchdogs()[0];
    let session = |pid| stat(pid).unwrap()[3].clone();
    assert_eq!(session(watchdog), watchdog.to_string());
    assert_ne!(session(run.pid()), session(watchdog));
    let of = |what: &str| String::from_utf8(fs::read(format!("/proc/{watchdog}/{what}")).unwrap()).unwrap();
    assert!(!of("cmdline").contains(CANARY), "{}", of("cmdline"));
    assert!(of("environ").contains(CANARY), "it needs the secrets of the environment");
    assert_eq!(fs::read_link(format!("/proc/{watchdog}/fd/1")).unwrap().to_str(), Some("/dev/null"));
    // It holds neither the run's lock nor the service's: it must see that the run is dead.
    let locks = fs::read_dir(format!("/proc/{watchdog}/fd")).unwrap();
    let open: Vec<_> = locks.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
    assert!(!open.iter().any(|p| p.extension().is_some_and(|e| e == "lock")), "{open:?}");
    run.kill();
    until("the service is back", || host.state("a") == "running");
}

fn a_late_run_is_overruled_and_gives_no_backup() {
    for service in ["a", "b"] {
        let host = Host::new(Duration::from_millis(1500));
        let run = host.interrupted(&[service]);
        signal(run.pid(), Signal::STOP);
        let took = until("the service is back", || host.state(service) == "running");
        assert!(took > Duration::from_millis(500) && took < Duration::from_secs(4), "{took:?}");
        until("the journal is empty", || host.entries().is_empty());
        // The program that was thought dead goes on, and reads what has changed since.
        host.write(&format!("{service}/data"), "changed");
        host.remove(&format!("{service}/hold"));
        signal(run.pid(), Signal::CONT);
        let (stderr, code) = run.finish();
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("was brought back by the watchdog"), "{stderr}");
        assert_eq!((host.good(), host.state(service).as_str()), (0, "running"));
    }
}

fn without_a_watchdog_the_next_run_does_it_first() {
    let host = Host::new(LONG);
    let run = host.interrupted(&["a"]);
    host.kill_all(run);
    assert_eq!(host.state("a"), "paused");
    let status = host.run(&["status", "a"]);
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(1));
    assert!(told.contains("did not end that: paused") && told.contains("backup resume"), "{told}");
    host.remove("a/hold");
    let out = host.run(&["run", "manual", "--service", "a"]);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && stderr.contains("brought the service back"), "{stderr}");
    let log = ["open running", "paused", "bring back", "running", "open running", "paused", "running"];
    assert_eq!(host.log("a"), log);
    assert!(host.entries().is_empty());
}

fn resume_does_it_also_without_the_store() {
    for there in [true, false] {
        let host = Host::new(LONG);
        let run = host.interrupted(&["a", "b"]);
        host.kill_all(run);
        if !there {
            fs::rename(host.path("store"), host.path("unmounted")).unwrap();
        }
        host.ok(&["resume"]);
        assert_eq!((host.state("a").as_str(), host.state("b").as_str()), ("running", "running"));
        assert!(host.entries().is_empty());
        host.ok(&["resume"]);
    }
}

fn the_watchdog_does_it_also_without_the_store() {
    let host = Host::new(LONG);
    let mut run = host.interrupted(&["b"]);
    let watchdogs = host.watchdogs();
    fs::rename(host.path("store"), host.path("unmounted")).unwrap();
    run.kill();
    until("the service is back", || host.state("b") == "running");
    ended(&watchdogs);
    assert!(host.entries().is_empty());
    let log = fs::read_to_string(host.path("state/watchdog.log")).unwrap();
    assert!(log.contains("no report of this will be kept"), "{log}");
}

fn the_watchdog_tries_again() {
    let host = Host::new(LONG);
    host.write("a/broken", "");
    let mut run = host.interrupted(&["a"]);
    let watchdogs = host.watchdogs();
    run.kill();
    let attempts = |host: &Host| host.log("a").iter().filter(|l| *l == "bring back").count();
    until("it tried twice", || attempts(&host) >= 2);
    assert_eq!(host.state("a"), "paused");
    host.remove("a/broken");
    until("the service is back", || host.state("a") == "running");
    ended(&watchdogs);
    assert!(host.entries().is_empty());
    let log = fs::read_to_string(host.path("state/watchdog.log")).unwrap();
    assert!(log.contains("cannot switch it on") && log.contains("its run is dead"), "{log}");
}

fn what_is_not_configured_any_more_is_told_and_stays() {
    let host = Host::new(LONG);
    let run = host.interrupted(&["a"]);
    host.kill_all(run);
    host.configure(&[("b", true)]);
    let out = host.run(&["resume"]);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("service `a` is not in the configuration any more"), "{stderr}");
    assert_eq!((host.entries().len(), host.state("a").as_str()), (1, "paused"));
    host.ok(&["run"]);
    let out = host.run(&["status"]);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && stderr.contains("not in the configuration"), "{stderr}");
    host.configure(&[("a", false), ("b", true)]);
    host.ok(&["resume"]);
    assert_eq!((host.entries().len(), host.state("a").as_str()), (0, "running"));
}

fn no_watchdog_no_interruption() {
    let host = Host::new(LONG);
    // The log is no condition.
    fs::create_dir_all(host.path("state/watchdog.log")).unwrap();
    host.ok(&["run", "manual", "--service", "a"]);
    assert_eq!(host.log("a"), ["open running", "paused", "running"]);
    // The watchdog reads the configuration itself, and finds it unreadable.
    host.write("a/sabotage", "");
    let out = host.run(&["run", "manual", "--service", "a"]);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && stderr.contains("no watchdog for the service"), "{stderr}");
    assert_eq!(host.log("a")[3..], ["open running"], "it was not touched");
    assert!(host.entries().is_empty());
}
