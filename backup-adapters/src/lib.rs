//! The built-in service adapters and stores, each behind a feature.
//!
//! [`builtin_adapters`] and [`builtin_stores`] are the two registration lists: one line each. They are plain values; a
//! program takes them, adds to them, or registers only what it wants:
//!
//! ```
//! # #[cfg(feature = "files")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use backup_core::AdapterRegistry;
//! use backup_core::config::Config;
//!
//! let adapters = AdapterRegistry::new().with::<backup_adapters::files::FilesConfig>();
//! let text = "store.url = '/mnt/backups'\n[services.data]\nkind = 'files'\npaths = ['/srv/data']";
//! let plan = Config::parse(text, "backup.toml")?.resolve(&adapters, "/etc/backup".as_ref())?;
//! assert_eq!(plan.service("data")?.adapter.kind(), "files");
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "files"))]
//! # fn main() {}
//! ```
//!
//! | Feature (all on by default) | What it adds |
//! |---|---|
//! | `files` | directories and globs as one tar archive |
//! | `env` | dotenv files, kept when they changed |
//! | `sqlite` | a SQLite database through its own backup API; bundles SQLite |
//! | `redis` | a Redis or Valkey server, over the wire |
//! | `postgres` | a PostgreSQL or YugabyteDB (YSQL) server, with its own client programs |
//! | `weaviate` | a Weaviate server, by its own backup API |
//! | `neo4j` | a Neo4j server in a container, cloned while paused or dumped while stopped |
//! | `spot` | the notice before a spot instance ends, and what is done then besides backing up |
//! | `ebs` | snapshots of the EBS volumes of an EC2 instance |
//! | `object` | stores at `s3://`, `az://` and `gs://`, and over a client of one's own |

use std::sync::Arc;

#[cfg(feature = "object")]
use backup_core::SplitStore;
use backup_core::{AdapterRegistry, ConfigError, LocalStore, Store, StoreRegistry};

#[cfg(any(feature = "redis", feature = "weaviate"))]
mod beside;
#[cfg(feature = "ebs")]
pub mod ebs;
#[cfg(feature = "env")]
pub mod env;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "_tar")]
mod in_use;
#[cfg(any(feature = "redis", feature = "postgres", feature = "neo4j"))]
mod legacy;
#[cfg(feature = "neo4j")]
pub mod neo4j;
#[cfg(feature = "spot")]
pub mod notify;
#[cfg(any(feature = "_tar", feature = "redis"))]
mod on_disk;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "_runtime")]
pub mod runtime;
#[cfg(feature = "spot")]
pub mod spot;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "object")]
pub mod stores;
#[cfg(feature = "_tar")]
#[cfg_attr(
    not(feature = "files"),
    expect(dead_code, unreachable_pub, reason = "`env` alone uses a part of it")
)]
mod tree;
#[cfg(feature = "weaviate")]
pub mod weaviate;

/// Every adapter that this build has, in the order in which they discover: what an earlier one protects, a later one
/// leaves out.
#[must_use]
pub fn builtin_adapters() -> AdapterRegistry {
    let r = AdapterRegistry::new();
    #[cfg(feature = "redis")]
    let r = r.with::<redis::RedisConfig>();
    #[cfg(not(feature = "redis"))]
    let r = r.with_disabled("redis", "redis");
    #[cfg(feature = "postgres")]
    let r = r.with::<postgres::PostgresConfig>();
    #[cfg(not(feature = "postgres"))]
    let r = r.with_disabled("postgres", "postgres");
    #[cfg(feature = "weaviate")]
    let r = r.with::<weaviate::WeaviateConfig>();
    #[cfg(not(feature = "weaviate"))]
    let r = r.with_disabled("weaviate", "weaviate");
    #[cfg(feature = "neo4j")]
    let r = r.with::<neo4j::Neo4jConfig>();
    #[cfg(not(feature = "neo4j"))]
    let r = r.with_disabled("neo4j", "neo4j");
    #[cfg(feature = "sqlite")]
    let r = r.with::<sqlite::SqliteConfig>();
    #[cfg(not(feature = "sqlite"))]
    let r = r.with_disabled("sqlite", "sqlite");
    #[cfg(feature = "ebs")]
    let r = r.with::<ebs::EbsConfig>();
    #[cfg(not(feature = "ebs"))]
    let r = r.with_disabled("ebs", "ebs");
    #[cfg(feature = "env")]
    let r = r.with::<env::EnvConfig>();
    #[cfg(not(feature = "env"))]
    let r = r.with_disabled("env", "env");
    #[cfg(feature = "files")]
    let r = r.with::<files::FilesConfig>();
    #[cfg(not(feature = "files"))]
    let r = r.with_disabled("files", "files");
    r
}

/// Every store that this build has, by URL scheme. None of them knows the environment.
#[must_use]
pub fn builtin_stores() -> StoreRegistry {
    builtin_stores_in(|_| None)
}

/// The same for programs that have an environment: what configures the clients of clouds everywhere, `AWS_REGION` above
/// all, configures the stores here. `environment` looks a variable up.
#[must_use]
pub fn builtin_stores_in(
    environment: impl Fn(&str) -> Option<String> + Clone + Send + Sync + 'static,
) -> StoreRegistry {
    #[cfg(not(feature = "object"))]
    drop(environment);
    let r = StoreRegistry::new().with_scheme("file", |url, options| async move {
        if let Some(key) = options.keys().next() {
            return Err(
                ConfigError::new(format!("unknown option `{key}`")).hint("a directory has no options")
            );
        }
        let path = url.to_file_path().map_err(|()| {
            ConfigError::new(format!("`{url}` is not a path of this host"))
                .hint("write `file:///absolute/path`")
        })?;
        Ok(Arc::new(LocalStore::new(path)) as Arc<dyn Store>)
    });
    #[cfg(feature = "object")]
    let r = object_stores(r, environment);
    #[cfg(not(feature = "object"))]
    let r = ["s3", "az", "gs"].into_iter().fold(r, |r, scheme| r.with_disabled(scheme, "object"));
    r
}

#[cfg(feature = "object")]
fn object_stores(
    r: StoreRegistry,
    environment: impl Fn(&str) -> Option<String> + Clone + Send + Sync + 'static,
) -> StoreRegistry {
    ["s3", "az", "gs"].into_iter().fold(r, |r, scheme| {
        let environment = environment.clone();
        r.with_scheme(scheme, move |url, options| {
            let environment = environment.clone();
            async move {
                let mut options = match scheme {
                    "az" => stores::complete_azure(options, &environment),
                    "gs" => stores::complete_google(options, &environment),
                    _ => stores::complete(options, &environment)?,
                };
                let leases = options.remove("leases_bucket");
                let open = |url: &url::Url| {
                    stores::ObjectStore::from_url(url.as_str(), &options)
                        .map(|s| Arc::new(s) as Arc<dyn Store>)
                };
                let store = open(&url)?;
                let Some(bucket) = leases else { return Ok(store) };
                let mut beside = url.clone();
                let usable = beside.set_host(Some(&bucket)).is_ok() && beside.host_str() != url.host_str();
                if !usable {
                    return Err(ConfigError::new("the option `leases_bucket` of the store is wrong")
                        .hint("it is the name of another bucket"));
                }
                Ok(Arc::new(SplitStore::with_leases_in(store, open(&beside)?)) as Arc<dyn Store>)
            }
        })
    })
}
