//! `[stores.<name>]` and `copies`: what they become, and what a mistake in them says.
#![expect(clippy::unwrap_used, reason = "a broken test helper may panic")]

use std::path::{Path, PathBuf};

use backup_core::ConfigError;
use backup_core::config::Config;
use backup_core::plan::BackupPlan;
use backup_core::retention::{EntryState, PlanEntry, PlanOptions, RetentionPlan};

mod config_stub;

const THREE: &str = "
copies = ['second']
store.url = '/fast'
[intervals.hourly]
services = ['data']
keep = 1
[intervals.daily]
services = ['data']
copies = ['second', 'cloud']
[services.data]
kind = 'files'
paths = ['/srv']
[stores.second]
url = './disk2'
keep = 2
[stores.second.intervals.hourly]
keep = 3
[stores.cloud]
url = 's3://bucket/host'
options = { region = 'x' }
";

fn read(text: &str) -> Result<BackupPlan, ConfigError> {
    Config::parse(text, "backup.toml")?.resolve(&config_stub::registry(), Path::new("/etc/backup"))
}

/// How many of five a plan keeps in a series.
fn kept(plan: &BackupPlan, interval: &str) -> usize {
    let Some(policy) = &plan.interval(interval).unwrap().policy else { return usize::MAX };
    let entry = |n| {
        PlanEntry::new(format!("data/{interval}/2026030{n}_000000").parse().unwrap(), 1, EntryState::Good)
    };
    let entries: Vec<_> = (1..=5).map(entry).collect();
    let now = "2026-03-09T00:00:00Z".parse().unwrap();
    5 - RetentionPlan::compute(policy, &entries, PlanOptions::complete_listing(), now).deletions().count()
}

#[test]
fn each_store_has_a_place_and_a_retention_of_its_own() {
    let plan = read(THREE).unwrap();
    let names: Vec<_> = plan.stores.keys().map(|n| n.as_str()).collect();
    assert_eq!(names, ["cloud", "primary", "second"]);
    assert_eq!((plan.store_name.as_str(), plan.store.url.as_str()), ("primary", "/fast"));
    assert_eq!(
        plan.stores.values().find(|s| s.name.as_str() == "cloud").unwrap().store.options["region"],
        "x"
    );
    for (store, hourly, daily) in
        [("primary", 1, usize::MAX), ("second", 3, 2), ("cloud", usize::MAX, usize::MAX)]
    {
        let plan = plan.for_store(store).unwrap();
        assert_eq!((kept(&plan, "hourly"), kept(&plan, "daily")), (hourly, daily), "{store}");
        assert_eq!(kept(&plan, "manual"), usize::MAX, "{store}: what nobody scheduled");
        assert_eq!(plan.store_name.as_str(), store);
    }
    assert_eq!(plan.for_store("second").unwrap().store.url, "/etc/backup/disk2");
    let copies =
        |i: &str| -> Vec<&str> { plan.copies_of(&i.parse().unwrap()).iter().map(|n| n.as_str()).collect() };
    assert_eq!(copies("hourly"), ["second"]);
    assert_eq!(copies("daily"), ["second", "cloud"]);
    assert_eq!((copies("manual"), copies("of-old")), (vec!["second"], vec!["second"]));
    // No store of this host is ever backed up.
    let excluded = plan.excluded();
    assert!(
        ["/fast", "/etc/backup/disk2"].iter().all(|p| excluded.contains(&PathBuf::from(p))),
        "{excluded:?}"
    );
}

#[test]
fn a_bandwidth_is_a_rate() {
    let plan = read(&format!("limits.bandwidth = '50MiB/s'\n{THREE}")).unwrap();
    assert_eq!(plan.limits.bandwidth, Some(50 << 20));
    let error = read(&format!("limits.bandwidth = '50MiB'\n{THREE}")).unwrap_err().to_string();
    assert!(error.contains("limits.bandwidth") && error.contains("50MiB/s"), "{error}");
}

#[test]
fn mistakes_are_named_with_what_exists() {
    for (from, to, message, help) in [
        (
            "copies = ['second']",
            "copies = ['secnd']",
            "copies: unknown store `secnd`",
            "did you mean `second`?",
        ),
        (
            "'second', 'cloud'",
            "'clod'",
            "intervals.daily.copies: unknown store `clod`",
            "did you mean `cloud`?",
        ),
        ("copies = ['second']", "copies = ['primary']", "copies: `primary` is [store]", ""),
        ("copies = ['second']", "copies = ['second', 'second']", "copies: `second` is named twice", ""),
        (
            "[stores.cloud]",
            "[stores.primary]",
            "stores.primary: `primary` is the name of [store]",
            "another name",
        ),
        ("s3://bucket/host", "/fast/", "stores.cloud.url: is where the store `primary` is", ""),
        ("./disk2", "/fast", "stores.second.url: is where the store `primary` is", ""),
        (
            "stores.second.intervals.hourly",
            "stores.second.intervals.horly",
            "unknown interval `horly`",
            "hourly",
        ),
        ("keep = 2", "keeep = 2", "stores.second: unknown key `keeep`", "keep"),
        ("keep = 3", "services = ['data']", "stores.second.intervals.hourly: unknown key `services`", "keep"),
        ("keep = 2", "keep = 0", "stores.second.keep: keeping the last 0", ""),
        ("url = './disk2'", "", "stores.second: the key `url` is missing", ""),
        ("url = './disk2'", "url = ' '", "stores.second.url: the URL is empty", ""),
    ] {
        assert!(THREE.contains(from), "{from}");
        let error = read(&THREE.replacen(from, to, 1)).map(drop).expect_err(to);
        let (text, hint) = (error.to_string(), error.help().unwrap_or_default().to_owned());
        assert!(text.contains(message) && hint.contains(help), "{to}: {text} / {hint}");
        assert!(text.starts_with("backup.toml: ") && !text.contains('\n'), "{text}");
    }
}
