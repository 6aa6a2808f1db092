//! The client programs: the server's own in its container, those of its version on the host.

use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind};
use tokio::task::spawn_blocking;

use super::link::Link;
use super::{Flavor, Settings};

/// Where Debian keeps the programs of each version, and others theirs.
const HOST_FOLDERS: [&str; 2] = ["/usr/lib/postgresql", "/opt/homebrew/opt"];
const PGDG_PREFIX: &str = "/usr/pgsql-";
/// Where images of YugabyteDB keep them.
const YUGABYTE_FOLDERS: [&str; 4] =
    ["", "/home/yugabyte/postgres/bin/", "/home/yugabyte/bin/", "/opt/yugabyte/postgres/bin/"];

/// The programs by name or path.
#[derive(Debug, Clone, Default)]
pub(super) struct Programs {
    pub(super) psql: String,
    pub(super) dump: String,
    pub(super) dumpall: String,
    pub(super) restore: String,
    pub(super) basebackup: String,
}

impl Programs {
    pub(super) fn unknown() -> Self {
        Self::default()
    }

    /// Those in `folder` (with its slash; may be empty).
    fn within(flavor: Flavor, folder: &str) -> Self {
        let [psql, dump, dumpall] = match flavor {
            Flavor::Postgres => ["psql", "pg_dump", "pg_dumpall"],
            Flavor::Yugabyte => ["ysqlsh", "ysql_dump", "ysql_dumpall"],
        };
        let path = |name: &str| format!("{folder}{name}");
        Self {
            psql: path(psql),
            dump: path(dump),
            dumpall: path(dumpall),
            restore: path("pg_restore"),
            basebackup: path("pg_basebackup"),
        }
    }
}

/// Finds programs that run. On the host any version of `psql` will do for now.
pub(super) async fn find(link: &Link, settings: &Settings) -> Result<Programs, AdapterError> {
    let with_slash = |p: &Path| format!("{}/", p.display());
    if let Some(folder) = &settings.programs {
        return Ok(Programs::within(settings.flavor, &with_slash(folder)));
    }
    let folders: Vec<String> = match (&settings.container, settings.flavor) {
        (_, Flavor::Yugabyte) => YUGABYTE_FOLDERS.map(str::to_owned).to_vec(),
        (Some(_), Flavor::Postgres) => vec![String::new()],
        (None, Flavor::Postgres) => {
            let mut found: Vec<String> = on_host().await.iter().map(|(_, p)| with_slash(p)).collect();
            found.push(String::new());
            found
        }
    };
    let mut first = None;
    for folder in folders {
        let mut programs = Programs::within(settings.flavor, &folder);
        // The client beside it may lie in another of the folders.
        match link.run(link.command([programs.dump.as_str(), "--version"])).await {
            Ok(_) => {
                if settings.flavor == Flavor::Yugabyte {
                    programs.psql = ysqlsh(link, &folder).await;
                }
                return Ok(programs);
            }
            Err(failure) => {
                let error = failure.explain(&format!("cannot run `{}`", programs.dump));
                let elsewhere = matches!(error.kind(), AdapterErrorKind::Other | AdapterErrorKind::NotFound);
                // A container that is not there is no missing program.
                if !elsewhere || (error.kind() == AdapterErrorKind::NotFound && settings.container.is_some())
                {
                    return Err(error);
                }
                first.get_or_insert(error);
            }
        }
    }
    let first = first.map(|e| backup_core::chain(&e)).unwrap_or_default();
    let message = format!("the client programs are not found ({first}): set `programs` to their folder");
    Err(AdapterError::new(AdapterErrorKind::InvalidConfig, message))
}

async fn ysqlsh(link: &Link, folder: &str) -> String {
    for folder in [folder].into_iter().chain(YUGABYTE_FOLDERS) {
        let psql = format!("{folder}ysqlsh");
        if link.run(link.command([psql.as_str(), "--version"])).await.is_ok() {
            return psql;
        }
    }
    "ysqlsh".to_owned()
}

/// The folders with programs on this host and their major versions, newest first.
pub(super) async fn on_host() -> Vec<(u32, PathBuf)> {
    spawn_blocking(|| {
        let mut found = Vec::new();
        for folder in HOST_FOLDERS {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().replace("postgresql@", "");
                if let Ok(major) = name.parse() {
                    found.push((major, entry.path().join("bin")));
                }
            }
        }
        for major in 9..40 {
            found.push((major, PathBuf::from(format!("{PGDG_PREFIX}{major}/bin"))));
        }
        found.retain(|(_, p)| p.join("pg_dump").is_file());
        found.sort_unstable_by(|a, b| b.cmp(a));
        found
    })
    .await
    .unwrap_or_default()
}

/// The major version in the output of `--version`, e.g. of `pg_dump (PostgreSQL) 15.20 (Debian …)`.
fn major(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Chooses the programs of the server's version; refuses older ones, which do not know everything that it has.
pub(super) async fn match_server(link: &mut Link, settings: &Settings) -> Result<(), AdapterError> {
    let number = link.query(&link.home, "SHOW server_version_num").await;
    let number = number.map_err(|f| f.explain("cannot ask for the server's version"))?;
    let server = number.trim().parse::<u32>().unwrap_or(0) / 10_000;
    if settings.programs.is_none() && settings.flavor == Flavor::Postgres {
        let found = on_host().await;
        // Its own version; else the next newer one.
        if let Some((_, folder)) = found.iter().rev().find(|(major, _)| *major >= server) {
            link.programs = Programs::within(settings.flavor, &format!("{}/", folder.display()));
        }
    }
    let version = link.run(link.command([link.programs.dump.as_str(), "--version"])).await;
    let version = version.map_err(|f| f.explain(&format!("cannot run `{}`", link.programs.dump)))?;
    match major(&version) {
        Some(client) if client < server => {
            let message = format!(
                "`{}` is of version {client}, older than the server's {server}: install the client programs of version \
                 {server}, or set `programs` to their folder",
                link.programs.dump
            );
            Err(AdapterError::new(AdapterErrorKind::InvalidConfig, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("pg_dump (PostgreSQL) 15.20 (Debian 15.20-1)\n"), Some(15));
        assert_eq!(major("ysql_dump (YSQL) 11.2-YB-2.18.0.0-b0"), Some(11));
        assert_eq!(major("pg_dump (PostgreSQL) 17beta1"), Some(17));
        assert_eq!(major("nonsense"), None);
    }
}
