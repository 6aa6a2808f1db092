//! Base backups: the files of a whole PostgreSQL server, as `pg_basebackup` hands them over, with the WAL that makes them
//! one state and the manifest that names and sums up each of them.

mod check;
mod extract;
mod manifest;
mod plan;
mod restore;
mod take;
mod try_out;
mod verify;

use backup_core::{AdapterError, AdapterErrorKind};
use serde::Deserialize;

use super::Settings;
use super::link::Link;

pub(super) use self::check::{Base, evidence};
pub(super) use self::plan::plan;
pub(super) use self::restore::{Plan, bring_back, discard, leftovers, stage, switch, undo, was_refused};
pub(super) use self::take::{check, open};
pub(super) use self::try_out::try_out;
pub(super) use self::verify::{unpack, verified};

/// What the attribute `content` says, and the artifact's name.
pub(super) const BASE: &str = "base";

/// PostgreSQL 13: the first that writes manifests.
const FIRST: u32 = 130_000;

/// What the server says about itself.
#[derive(Debug, Deserialize)]
struct Server {
    version: u32,
    replication: bool,
    recovery: bool,
    senders: u32,
    wal_level: String,
    archiving: bool,
    tablespaces: Vec<String>,
    /// Only who may read all settings sees it.
    data_directory: Option<String>,
    /// Others than base backups.
    replicas: u32,
}

const SERVER: &str = "SELECT json_build_object('version', current_setting('server_version_num')::int,
'replication', (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),
'recovery', pg_is_in_recovery(), 'senders', current_setting('max_wal_senders')::int,
'wal_level', current_setting('wal_level'), 'archiving', current_setting('archive_mode') <> 'off',
'tablespaces', coalesce((SELECT json_agg(spcname) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')), '[]'),
'data_directory', (SELECT setting FROM pg_settings WHERE name = 'data_directory'),
'replicas', (SELECT count(*) FROM pg_stat_replication WHERE state <> 'backup'))";

impl Server {
    async fn ask(link: &Link) -> Result<Self, AdapterError> {
        let asked = link.json(&link.home, SERVER).await;
        asked.map_err(|f| f.explain("cannot ask the server about base backups"))
    }

    /// What keeps a base backup from being taken.
    fn refuse(&self, settings: &Settings) -> Result<(), AdapterError> {
        let refused = |kind, what: String| Err(AdapterError::new(kind, what));
        if self.version < FIRST {
            let what = "base backups need PostgreSQL 13 or newer, which writes a manifest: use dumps";
            return Err(AdapterError::unsupported(what));
        }
        if !self.replication {
            let user = settings.user.as_deref().unwrap_or("of the backup");
            return refused(
                AdapterErrorKind::PermissionDenied,
                format!("role `{user}` may not take base backups: `ALTER ROLE … REPLICATION` grants it"),
            );
        }
        if self.recovery {
            let what = "the server is a standby, whose base backup would become one, too: back up its primary, or use dumps";
            return Err(AdapterError::unsupported(what));
        }
        if self.senders == 0 || self.wal_level == "minimal" {
            let what = "base backups need `max_wal_senders` above 0 and `wal_level` above `minimal`";
            return refused(AdapterErrorKind::InvalidConfig, what.to_owned());
        }
        if !self.tablespaces.is_empty() {
            let what = format!(
                "table spaces lie outside of the data directory ({}), which a base backup here does not follow: use dumps",
                self.tablespaces.join(", ")
            );
            return Err(AdapterError::unsupported(what));
        }
        Ok(())
    }
}
