//! The file's tables as serde reads them, and the checks that need no adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::explain::{quoted_key, read_table};
use super::spot;
use super::stores::{self, named_once};
use super::values::{Keep, Rate, Size, Span};
use super::{
    ComposeConfig, Config, DEFAULT_COMPRESSION_LEVEL, Encrypt, EncryptionConfig, Guard, IntervalConfig,
    Limits, SERVICE_KEYS, ServiceConfig, StoreConfig,
};
use crate::error::ConfigError;
use crate::id::{Interval, ServiceName, StoreName};
use crate::retention::{DeleteOlderThan, KeepLast, MaxTotalBytes, Policy};
use crate::secret::SecretRef;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    store: Option<RawStore>,
    #[serde(default)]
    stores: BTreeMap<String, toml::Table>,
    #[serde(default)]
    copies: Vec<StoreName>,
    state_dir: Option<PathBuf>,
    host: Option<String>,
    rto: Option<Span>,
    #[serde(default)]
    intervals: BTreeMap<String, toml::Table>,
    #[serde(default)]
    services: BTreeMap<String, toml::Table>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    compression: RawCompression,
    #[serde(default)]
    guard: RawGuard,
    compose: Option<RawCompose>,
    encryption: Option<RawEncryption>,
    spot: Option<toml::Table>,
    notify: Option<toml::Table>,
    backup_configuration: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEncryption {
    recipients: Option<Texts>,
    passphrase: Option<SecretRef>,
    identity: Option<Secrets>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a public key, or a list of them")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        match texts {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "{ file = … }, { env = … }, { command = [ … ] }, { dotenv = …, key = … }, or a list of such"
)]
enum Secrets {
    One(SecretRef),
    Many(Vec<SecretRef>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "true, false, a public key, or a list of them")]
enum RawEncrypt {
    Whether(bool),
    For(Texts),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCompose {
    file: OneOrMany,
    project: Option<String>,
    env_file: Option<PathBuf>,
    docker: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a path, or a list of paths")]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStore {
    url: String,
    #[serde(default)]
    options: RawOptions,
}

/// What a store wants to know besides its URL.
#[derive(Default, Deserialize)]
#[serde(transparent)]
pub(super) struct RawOptions(BTreeMap<String, RawOption>);

impl RawStore {
    fn parsed(self) -> StoreConfig {
        self.options.of(self.url)
    }
}

impl RawOptions {
    pub(super) fn of(self, url: String) -> StoreConfig {
        let mut store = StoreConfig::new(url);
        for (key, value) in self.0 {
            let text = match value {
                RawOption::Secret(reference) => {
                    store.secrets.insert(key, reference);
                    continue;
                }
                RawOption::Text(text) => text,
                RawOption::Flag(flag) => flag.to_string(),
                RawOption::Number(number) => number.to_string(),
            };
            store.options.insert(key, text);
        }
        store
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text, true, false, a number, or a secret such as { env = … }")]
enum RawOption {
    Text(String),
    Flag(bool),
    Number(i64),
    Secret(SecretRef),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInterval {
    services: Vec<ServiceName>,
    keep: Option<Keep>,
    delete_older_than: Option<Span>,
    max_total_bytes: Option<Size>,
    timeout: Option<Span>,
    schedule: Option<String>,
    copies: Option<Vec<StoreName>>,
}

#[derive(Deserialize)]
struct RawService {
    kind: Option<String>,
    enabled: Option<bool>,
    #[serde(default)]
    after: Vec<ServiceName>,
    timeout: Option<Span>,
    max_age: Option<Span>,
    rto: Option<Span>,
    #[serde(default)]
    smoke: Vec<String>,
    encrypt: Option<RawEncrypt>,
    limits: Option<IgnoredAny>,
    hooks: Option<IgnoredAny>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    threads: Option<usize>,
    parallel: Option<usize>,
    bandwidth: Option<Rate>,
    io_priority: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCompression {
    level: Option<i32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuard {
    enabled: Option<bool>,
    ratio: Option<f64>,
}

/// Reads the whole file's table.
pub(super) fn read(table: toml::Table) -> Result<Config, ConfigError> {
    let raw: RawConfig = read_table(table, "", &[])?;
    let mut services = BTreeMap::new();
    for (name, table) in raw.services {
        let place = format!("services.{}", quoted_key(&name));
        let name = ServiceName::new(name).map_err(|e| ConfigError::from(e).at("services"))?;
        services.insert(name, service(table, &place)?);
    }
    let mut intervals = BTreeMap::new();
    for (name, table) in raw.intervals {
        let place = format!("intervals.{}", quoted_key(&name));
        let name = Interval::new(name).map_err(|e| ConfigError::from(e).at("intervals"))?;
        intervals.insert(name, interval(table, &place)?);
    }
    let store = raw.store.ok_or_else(|| {
        ConfigError::new("the section `[store]` is missing")
            .hint("say where backups go, e.g. `[store]` and below it `url = \"file:///mnt/backups\"`")
    })?;
    if store.url.trim().is_empty() {
        return Err(ConfigError::new("the URL is empty").at("store.url"));
    }
    if raw.state_dir.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
        return Err(ConfigError::new("the path is empty").at("state_dir"));
    }
    if let Some(host) = &raw.host {
        one_plain_line(host, "host")?;
    }
    Ok(Config {
        file_name: None,
        store: store.parsed(),
        stores: stores::read(raw.stores)?,
        copies: named_once(raw.copies, "copies")?,
        state_dir: raw.state_dir,
        host: raw.host,
        rto: duration(raw.rto),
        intervals,
        services,
        limits: limits(&raw.limits)?,
        compression_level: compression_level(&raw.compression)?,
        guard: guard(&raw.guard)?,
        compose: raw.compose.map(compose).transpose()?,
        encryption: raw.encryption.map(encryption).transpose()?.unwrap_or_default(),
        spot: raw.spot.map(spot::read).transpose()?,
        notify: raw.notify.map(spot::notify).transpose()?.unwrap_or_default(),
        backup_configuration: raw.backup_configuration.unwrap_or(true),
    })
}

fn service(mut table: toml::Table, place: &str) -> Result<ServiceConfig, ConfigError> {
    let core: toml::Table = SERVICE_KEYS.iter().filter_map(|key| table.remove_entry(*key)).collect();
    let raw: RawService = read_table(core, place, &[])?;
    let kind = raw.kind.ok_or_else(|| {
        ConfigError::new("the key `kind` is missing")
            .at(place)
            .hint("say which adapter it uses, e.g. `kind = \"files\"`; `backup adapters` lists them")
    })?;
    refuse(raw.hooks, "running hooks", &format!("{place}.hooks"))?;
    refuse(raw.limits, "limiting a single service", &format!("{place}.limits"))?;
    no_duplicates(&raw.after, &format!("{place}.after"))?;
    questions(&raw.smoke, &format!("{place}.smoke"))?;
    Ok(ServiceConfig {
        enabled: raw.enabled.unwrap_or(true),
        after: raw.after,
        timeout: duration(raw.timeout),
        max_age: duration(raw.max_age),
        rto: duration(raw.rto),
        smoke: raw.smoke,
        encrypt: match raw.encrypt {
            None => Encrypt::Default,
            Some(RawEncrypt::Whether(true)) => Encrypt::Yes,
            Some(RawEncrypt::Whether(false)) => Encrypt::No,
            Some(RawEncrypt::For(texts)) => Encrypt::For(texts.into()),
        },
        labels: raw.labels,
        ..ServiceConfig::new(kind, table)
    })
}

fn interval(table: toml::Table, place: &str) -> Result<IntervalConfig, ConfigError> {
    let raw: RawInterval = read_table(table, place, &[])?;
    let services_place = format!("{place}.services");
    if raw.services.is_empty() {
        return Err(ConfigError::new("the list of services is empty")
            .at(services_place)
            .hint("name at least one, or remove the interval"));
    }
    no_duplicates(&raw.services, &services_place)?;
    if let Some(schedule) = &raw.schedule {
        one_plain_line(schedule, &format!("{place}.schedule"))?;
    }
    let copies = raw.copies.map(|c| named_once(c, &format!("{place}.copies"))).transpose()?;
    Ok(IntervalConfig {
        policy: policy(raw.keep, raw.delete_older_than, raw.max_total_bytes, place)?,
        services: raw.services,
        timeout: duration(raw.timeout),
        schedule: raw.schedule,
        copies,
    })
}

pub(super) fn policy(
    keep: Option<Keep>,
    delete_older_than: Option<Span>,
    max_total_bytes: Option<Size>,
    place: &str,
) -> Result<Option<Policy>, ConfigError> {
    let keep = match keep {
        Some(Keep::Last(n)) => Some(KeepLast::new(n).map(Policy::keeping)),
        Some(Keep::Ladder(ladder)) => Some(ladder.checked().map(Policy::keeping)),
        None => None,
    };
    let mut policy = keep.transpose().map_err(|e| e.at(format!("{place}.keep")))?;
    if let Some(Span(age)) = delete_older_than {
        let limit = DeleteOlderThan::new(age).map_err(|e| e.at(format!("{place}.delete_older_than")))?;
        policy = Some(match policy {
            Some(policy) => policy.limited_by(limit),
            None => Policy::limited_only_by(limit),
        });
    }
    if let Some(Size(bytes)) = max_total_bytes {
        let limit = MaxTotalBytes::new(bytes).map_err(|e| e.at(format!("{place}.max_total_bytes")))?;
        policy = Some(match policy {
            Some(policy) => policy.limited_by(limit),
            None => Policy::limited_only_by(limit),
        });
    }
    Ok(policy)
}

fn limits(raw: &RawLimits) -> Result<Limits, ConfigError> {
    refuse(raw.io_priority, "setting the I/O priority", "limits.io_priority")?;
    for (value, key) in [(raw.threads, "threads"), (raw.parallel, "parallel")] {
        if value == Some(0) {
            return Err(ConfigError::new("must be at least 1").at(format!("limits.{key}")));
        }
    }
    let bandwidth = raw.bandwidth.map(|Rate(bytes)| bytes);
    Ok(Limits { threads: raw.threads, parallel: raw.parallel, bandwidth })
}

fn compression_level(raw: &RawCompression) -> Result<i32, ConfigError> {
    let level = raw.level.unwrap_or(DEFAULT_COMPRESSION_LEVEL);
    // 20 to 22 gain nothing in frames of 1 MiB, and cost much memory for each thread.
    if (1..=19).contains(&level) {
        Ok(level)
    } else {
        Err(ConfigError::new(format!("{level} is not a level: use 1 (fast) to 19 (small)"))
            .at("compression.level"))
    }
}

fn guard(raw: &RawGuard) -> Result<Guard, ConfigError> {
    let default = Guard::default();
    let ratio = raw.ratio.unwrap_or(default.ratio);
    if !(ratio > 0.0 && ratio <= 1.0) {
        return Err(ConfigError::new(format!("{ratio} is not a share: use more than 0, at most 1"))
            .at("guard.ratio")
            .hint("`enabled = false` switches the guard off"));
    }
    Ok(Guard { enabled: raw.enabled.unwrap_or(default.enabled), ratio })
}

fn encryption(raw: RawEncryption) -> Result<EncryptionConfig, ConfigError> {
    let recipients: Vec<String> = raw.recipients.map(Into::into).unwrap_or_default();
    if raw.passphrase.is_some() && !recipients.is_empty() {
        return Err(ConfigError::new("a passphrase excludes recipients: nobody else could open the files")
            .at("encryption")
            .hint("keep one of `recipients` and `passphrase`"));
    }
    let identities = match raw.identity {
        None => Vec::new(),
        Some(Secrets::One(one)) => vec![one],
        Some(Secrets::Many(many)) => many,
    };
    Ok(EncryptionConfig { recipients, passphrase: raw.passphrase, identities })
}

fn compose(raw: RawCompose) -> Result<ComposeConfig, ConfigError> {
    let files = match raw.file {
        OneOrMany::One(file) => vec![file],
        OneOrMany::Many(files) => files,
    };
    if files.is_empty() || files.iter().any(|f| f.as_os_str().is_empty()) {
        return Err(ConfigError::new("no file is named")
            .at("compose.file")
            .hint("write the path of the Compose file, or a list of paths in Compose's order"));
    }
    // What Compose takes for one; anything else would be an option or another project.
    let fits = |name: &String| {
        name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
    };
    if let Some(project) = raw.project.iter().find(|name| !fits(name)) {
        let message = format!("`{}` is no name of a project", project.escape_debug());
        return Err(ConfigError::new(message).at("compose.project").hint("use a-z, 0-9, - and _"));
    }
    Ok(ComposeConfig { files, project: raw.project, env_file: raw.env_file, docker: raw.docker })
}

/// Refuses what is reserved, rather than to ignore that the user relies on it.
fn refuse(value: Option<IgnoredAny>, what: &str, place: &str) -> Result<(), ConfigError> {
    match value {
        Some(_) => Err(ConfigError::new(format!("{what} is not available in this version"))
            .at(place)
            .hint("remove the key")),
        None => Ok(()),
    }
}

fn no_duplicates(names: &[ServiceName], place: &str) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(ConfigError::new(format!("`{name}` is named twice")).at(place)),
        None => Ok(()),
    }
}

/// A question may have many lines: some languages are written so. Other control characters are slips.
fn questions(all: &[String], place: &str) -> Result<(), ConfigError> {
    let odd = |q: &String| q.trim().is_empty() || q.chars().any(|c| c.is_control() && !"\n\r\t".contains(c));
    match all.iter().position(odd) {
        Some(at) => Err(ConfigError::new("must be a question as text, and not empty")
            .at(format!("{place}[{at}]"))
            .hint("write one query, e.g. `SELECT count(*) FROM orders`")),
        None => Ok(()),
    }
}

/// For text that goes into metadata and unit files.
fn one_plain_line(text: &str, place: &str) -> Result<(), ConfigError> {
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err(ConfigError::new("must be one line of text, and not empty").at(place));
    }
    Ok(())
}

fn duration(span: Option<Span>) -> Option<Duration> {
    span.map(|Span(d)| d)
}
