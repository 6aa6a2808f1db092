//! What a good configuration becomes.
#![expect(clippy::unwrap_used, reason = "a broken test helper may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::config::{Config, IntervalConfig, ServiceConfig, StoreConfig};
use backup_core::plan::BackupPlan;
use backup_core::retention::{EntryState, KeepLast, PlanEntry, PlanOptions, Policy, RetentionPlan};
use backup_core::{
    AdapterConfig, AdapterError, AdapterErrorKind, AdapterRegistry, BackupError, BuildContext, ConfigError,
    DiscoverContext, Discovery, Interval, Secret, SecretRef, SecretResolver, ServiceAdapter, ServiceName,
    StoreRegistry,
};
use config_stub::{EnvConfig, FilesConfig, Stub, registry};
use serde::Deserialize;

mod config_stub;

/// Cannot look.
#[derive(Debug, Deserialize)]
struct BlindConfig {}

impl AdapterConfig for BlindConfig {
    const KIND: &'static str = "blind";
    const SUMMARY: &'static str = "nothing";
    const PROVEN: &'static str = "not at all";

    fn build(self, _: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        Ok(Arc::new(Stub("blind")))
    }

    fn discover(_: &DiscoverContext) -> Result<Discovery, AdapterError> {
        Err(AdapterError::new(AdapterErrorKind::PermissionDenied, "cannot look"))
    }
}

const WHOLE: &str = r#"
state_dir = "state"
host = "genesis"

[store]
url = "./backups"
options = { class = "cold" }

[intervals.15min]
services = ["redis", "off"]
keep = { latest = 4, hourly = 24 }
delete_older_than = "7 days"
max_total_bytes = "500GB"
timeout = "240s"
schedule = "*:0/15"

[services.redis]
kind = "env"
paths = [".env"]
after = ["data"]
max_age = "2h"
rto = "60s"
labels = { team = "core" }

[services.data]
kind = "files"
paths = ["data"]
timeout = "1h"

[services.off]
kind = "env"
paths = []
enabled = false

[limits]
threads = 2
parallel = 3

[compression]
level = 3

[guard]
ratio = 0.25
"#;

fn plan(text: &str) -> BackupPlan {
    Config::parse(text, "backup.toml").unwrap().resolve(&registry(), Path::new("/etc/backup")).unwrap()
}

fn names<'a>(services: impl IntoIterator<Item = &'a ServiceName>) -> Vec<&'a str> {
    services.into_iter().map(ServiceName::as_str).collect()
}

#[test]
fn every_key_arrives() {
    let plan = plan(WHOLE);
    assert_eq!(plan.state_dir.as_deref(), Some(Path::new("/etc/backup/state")));
    assert_eq!(plan.host.as_deref(), Some("genesis"));
    assert_eq!(plan.store.url, "/etc/backup/backups");
    assert_eq!(plan.store.options["class"], "cold");
    assert_eq!((plan.limits.threads, plan.limits.parallel), (Some(2), Some(3)));
    assert_eq!(plan.compression_level, 3);
    assert_eq!((plan.guard.enabled, plan.guard.ratio), (true, 0.25));
    assert_eq!(plan.excluded(), [PathBuf::from("/etc/backup/backups"), PathBuf::from("/etc/backup/state")]);

    let redis = plan.service("redis").unwrap();
    assert_eq!((redis.kind.as_str(), redis.adapter.kind()), ("env", "env"));
    assert_eq!(names(&redis.after), ["data"]);
    assert_eq!(redis.max_age, Some(Duration::from_secs(7200)));
    assert_eq!(redis.rto, Some(Duration::from_secs(60)));
    assert_eq!(redis.labels["team"], "core");

    let quarter = plan.interval("15min").unwrap();
    assert_eq!((names(&quarter.services), names(&quarter.disabled)), (vec!["redis"], vec!["off"]));
    assert_eq!(quarter.schedule.as_deref(), Some("*:0/15"));
    let budget = |service: &str, interval: &str| {
        plan.timeout(&ServiceName::new(service).unwrap(), &Interval::new(interval).unwrap())
    };
    assert_eq!(budget("redis", "15min"), Some(Duration::from_secs(240)));
    assert_eq!(budget("data", "15min"), Some(Duration::from_secs(3600)));
    assert_eq!(budget("redis", "manual"), None);
}

#[test]
fn the_configured_rules_are_the_policy() {
    let plan = plan(WHOLE);
    let policy = plan.interval("15min").unwrap().policy.clone().unwrap();
    let entry =
        |ts: &str, size| PlanEntry::new(format!("redis/15min/{ts}").parse().unwrap(), size, EntryState::Good);
    let entries = [
        entry("20260309_114500", 1),
        entry("20260309_113000", 1),
        entry("20260309_111500", 1),
        entry("20260309_110000", 1),
        entry("20260309_104500", 1),
        entry("20260309_103000", 1),
        entry("20260308_100000", 600_000_000_000),
        entry("20260301_100000", 1),
    ];
    let now = "2026-03-09T12:00:00Z".parse().unwrap();
    let retention = RetentionPlan::compute(&policy, &entries, PlanOptions::complete_listing(), now);
    let gone: Vec<_> =
        retention.deletions().map(|i| (i.id.timestamp.to_string(), i.reason.as_str())).collect();
    let gone: Vec<_> = gone.iter().map(|(t, r)| (t.as_str(), *r)).collect();
    assert_eq!(
        gone,
        [
            ("20260301_100000", "older than 7days"),
            ("20260308_100000", "more than 500.0 GB in all"),
            ("20260309_103000", "no rung of the ladder needs it"),
        ]
    );
}

#[test]
fn manual_always_exists_with_everything_enabled_and_keeps_everything() {
    let plan = plan(WHOLE);
    let manual = plan.interval("manual").unwrap();
    assert_eq!((names(&manual.services), names(&manual.disabled)), (vec!["data", "redis"], vec!["off"]));
    assert!(manual.policy.is_none());
    let own = format!("{WHOLE}\n[intervals.manual]\nservices = ['data']\nkeep = 2");
    let plan = self::plan(&own);
    assert_eq!(names(&plan.interval("manual").unwrap().services), ["data"]);
    assert!(plan.interval("manual").unwrap().policy.is_some());
}

#[test]
fn names_from_the_command_line_are_explained() {
    let plan = plan(WHOLE);
    let error = plan.interval("15mins").unwrap_err();
    assert_eq!(error.to_string(), "unknown interval `15mins`");
    assert_eq!(error.help(), Some("did you mean `15min`? configured: 15min, manual"));
    let error = plan.service("dta").unwrap_err();
    assert_eq!(error.help(), Some("did you mean `data`? configured: data, off, redis"));
}

#[test]
fn a_program_can_do_without_a_file() {
    let mut config = Config::new("/backups");
    let name = ServiceName::new("data").unwrap();
    let settings = toml::toml! { paths = ["x"] };
    config.add_service(name.clone(), ServiceConfig::new("files", settings.clone())).unwrap();
    assert!(config.add_service(name, ServiceConfig::new("files", settings)).is_err());
    let plan = config.resolve(&registry(), Path::new("/")).unwrap();
    assert_eq!(names(&plan.interval("manual").unwrap().services), ["data"]);
}

#[test]
fn a_program_makes_its_series_without_a_file_and_wrong_names_are_wrong_configuration() {
    fn planned(service: &str) -> Result<BackupPlan, BackupError> {
        let mut config = Config::new("/backups");
        let name = ServiceName::new(service)?;
        let settings = toml::toml! { paths = ["x"] };
        config.add_service(name.clone(), ServiceConfig::new("files", settings))?;
        let mut hourly = IntervalConfig::new([name]);
        hourly.timeout = Some(Duration::from_secs(60));
        hourly.policy = Some(Policy::keeping(KeepLast::new(2)?));
        config.intervals.insert(Interval::new("hourly")?, hourly);
        Ok(config.resolve(&registry(), Path::new("/"))?)
    }
    let plan = planned("data").unwrap();
    let hourly = plan.interval("hourly").unwrap();
    assert_eq!(names(&hourly.services), ["data"]);
    assert_eq!((hourly.timeout, hourly.policy.is_some()), (Some(Duration::from_secs(60)), true));
    let error = planned("no such/name").unwrap_err();
    assert!(matches!(&error, BackupError::Config(_)), "{error:?}");
    assert!(error.to_string().contains("`no such/name`"), "{error}");
}

#[test]
fn option_values_do_not_show_in_debug() {
    let config =
        Config::parse("[store]\nurl = 's3://k:hunter2@b'\noptions = { secret_access_key = 'hunter2' }", "f")
            .unwrap();
    let text = format!("{config:?}");
    assert!(text.contains("secret_access_key") && !text.contains("hunter2"), "{text}");
}

#[test]
#[should_panic(expected = "the adapter kind `env` is registered twice")]
fn a_kind_twice_is_found_at_start_up() {
    let _registry = registry().with::<EnvConfig>();
}

#[test]
fn kinds_are_described_in_order() {
    let registry = registry();
    assert_eq!(registry.kinds().collect::<Vec<_>>(), ["env", "files"]);
    assert_eq!(registry.describe().next().unwrap().summary, "dotenv files");
    assert_eq!(registry.disabled().collect::<Vec<_>>(), [("redis", "redis")]);
    let with = registry.with_disabled("files", "files");
    assert_eq!(with.disabled().count(), 1, "a registered kind is not disabled");
}

#[test]
fn discovery_passes_on_what_is_covered_and_survives_one_that_fails() {
    let registry = AdapterRegistry::new().with::<BlindConfig>().with::<EnvConfig>().with::<FilesConfig>();
    let all = registry.discover_all(DiscoverContext::new("/home"));
    let kinds: Vec<_> = all.iter().map(|d| (d.kind, d.result.is_ok())).collect();
    assert_eq!(kinds, [("blind", false), ("env", true), ("files", true)]);
    let found: Vec<_> = all.iter().filter_map(|d| d.result.as_ref().ok()).flat_map(|d| &d.found).collect();
    assert_eq!(found[1].covers, [PathBuf::from("/home/a")], "the env file is covered already");
    assert_eq!(names(found.iter().map(|f| &f.service)), ["data", "data-2"]);
}

fn store(url: &str) -> StoreConfig {
    StoreConfig { options: [("k".to_owned(), "v".to_owned())].into(), ..StoreConfig::new(url) }
}

#[tokio::test]
async fn stores_open_by_scheme_and_paths_are_file_urls() {
    let stores = StoreRegistry::new()
        .with_scheme("file", async |url, options| {
            assert_eq!(options["k"], "v");
            assert_eq!(url.to_file_path().unwrap(), Path::new("/mnt/my #1 disk%20"));
            Err(ConfigError::new("the factory was asked"))
        })
        .with_scheme("mem", |_, _| async { Err(ConfigError::new("unknown option `k`").at("options")) })
        .with_disabled("s3", "object");
    for (url, message, help) in [
        ("/mnt/my #1 disk%20", "store: the factory was asked", None),
        ("file:///mnt/my%20%231%20disk%2520", "store: the factory was asked", None),
        ("mem://", "store: options: unknown option `k`", None),
        (
            "fil:///x",
            "store.url: unknown kind of store `fil://`",
            Some("did you mean `file://`? available: file://, mem://"),
        ),
        (
            "s3://bucket",
            "store.url: stores at `s3://` are not in this program",
            Some("build it with the Cargo feature `object`"),
        ),
        ("relative", "store.url: the path `relative` is not absolute", None),
    ] {
        let error = stores.open(&store(url)).await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.help()), (message, help));
    }
}

#[test]
fn local_paths_are_known_for_exclusion() {
    for (url, path) in [
        ("/mnt/b", Some("/mnt/b")),
        ("file:///mnt/my%20disk", Some("/mnt/my disk")),
        ("file://localhost/mnt", Some("/mnt")),
        ("s3://bucket/prefix", None),
    ] {
        assert_eq!(store(url).local_path().as_deref(), path.map(Path::new), "{url}");
    }
}

#[derive(Debug)]
struct Told;

impl SecretResolver for Told {
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError> {
        match reference {
            SecretRef::Env(name) if name == "KEY" => Ok(Secret::new("hunter2")),
            other => Err(ConfigError::new(format!("no {other:?}"))),
        }
    }
}

#[test]
fn options_of_a_store_may_be_secrets_which_show_nowhere() {
    let text = "[store]\nurl = 's3://b/p'\n[store.options]\nregion = 'x'\nallow_http = true\n\
                secret_access_key = { env = 'KEY' }\nsession_token = { file = 'token' }\n";
    let plan = Config::parse(text, "backup.toml")
        .unwrap()
        .resolve(&AdapterRegistry::new(), "/etc/backup".as_ref())
        .unwrap();
    let mut store = plan.store;
    assert_eq!(store.options["allow_http"], "true");
    assert_eq!(store.secrets["session_token"], SecretRef::File("/etc/backup/token".into()));
    let e = store.resolved(&Told).unwrap_err().to_string();
    assert!(e.starts_with("store.options.session_token: "), "{e}");

    store.secrets.remove("session_token");
    let open = store.resolved(&Told).unwrap();
    assert_eq!(open.options["secret_access_key"], "hunter2");
    assert!(open.secrets.is_empty() && !format!("{store:?} {open:?}").contains("hunter2"));

    let e = Config::parse("[store]\nurl = 'x'\n[store.options]\nkey = { vault = 'x' }", "f")
        .unwrap_err()
        .to_string();
    assert!(e.contains("a secret such as"), "{e}");
}
