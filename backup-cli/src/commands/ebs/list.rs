//! `backup ebs list`.

use std::collections::BTreeSet;

use backup_adapters::ebs::{Snapshot, SnapshotSet, SnapshotState};
use backup_core::{ExternalState, ServiceName};
use chrono::{DateTime, Utc};
use comfy_table::Cell;
use serde_json::json;

use super::{failed, operation, prepare, services};
use crate::context::{Context, Done, Opening};
use crate::error::CliError;
use crate::format;
use crate::render::table::{self, Column};
use crate::ui::{DIM, GREEN, RED, YELLOW};

/// List the snapshots of the account
///
/// Those that a backup made, on any host, and those with the configured tag Project, as the old script made them. Backups that
/// were pending and are complete by now are noted as good.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only this service
    #[arg(short, long)]
    service: Option<ServiceName>,
}

impl List {
    pub(super) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let prepared = prepare(cx)?;
        let services = services(&prepared.written, self.service.as_ref())?;
        let mut sets: Vec<SnapshotSet> = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, ebs) in &services {
            let (op, _spool) = operation(cx, name, "")?;
            for set in ebs.sets(&op).await.map_err(|e| failed(&e))? {
                // Two services may see the same account.
                if set.snapshots.first().is_some_and(|s| seen.insert(s.id.clone())) {
                    sets.push(set);
                }
            }
        }
        let now = cx.clock.now();
        let number: usize = sets.iter().map(|s| s.snapshots.len()).sum();
        for s in sets.iter().flat_map(|set| set.snapshots.iter().map(move |s| line(set, s))) {
            cx.ui.json(&s);
        }
        if number == 0 {
            cx.ui.note("no snapshots yet: `backup ebs snapshot` makes them");
        } else {
            cx.ui.product(&text(&sets, now));
        }
        // The store may be on a volume that is to be restored: what there is, is told all the same.
        let names: Vec<ServiceName> = services.into_iter().map(|(name, _)| name).collect();
        match cx.open(prepared, Opening::Existing).await {
            Ok(session) => {
                for pending in session.engine.settle_pending(&names).await? {
                    match pending.state {
                        ExternalState::Complete => cx.ui.note(&format!("{} is complete: good", pending.id)),
                        ExternalState::Pending(how_far) => {
                            cx.ui.note(&format!("{} is pending: {how_far}", pending.id));
                        }
                        // The engine has warned.
                        _ => {}
                    }
                }
            }
            Err(e) => cx.ui.note(&format!("the catalogue was not brought up to date: {}", e.message)),
        }
        Ok(Done::ok().with("snapshots", number))
    }
}

fn line(set: &SnapshotSet, s: &Snapshot) -> serde_json::Value {
    json!({
        "event": "snapshot", "id": s.id, "volume": s.volume, "device": s.device(), "state": s.state,
        "progress": s.progress, "message": s.message, "started_at": s.started_at, "reason": s.reason(), "gib": s.gib,
        "encrypted": s.encrypted, "instance": s.instance(), "backup": set.backup, "owner": set.owner,
        "set_completed": set.is_completed(),
    })
}

fn text(sets: &[SnapshotSet], now: DateTime<Utc>) -> String {
    use Column::{Left, Right};
    let mut table = table::new(&[
        Left("SNAPSHOT"),
        Left("VOLUME"),
        Left("DEVICE"),
        Right("SIZE"),
        Left("STATE"),
        Right("AGE"),
        Left("STARTED"),
        Left("REASON"),
        Left("BACKUP"),
    ]);
    for (set, s) in sets.iter().flat_map(|set| set.snapshots.iter().map(move |s| (set, s))) {
        let (word, style) = match s.state {
            SnapshotState::Completed if set.is_completed() => ("completed".to_owned(), GREEN),
            SnapshotState::Completed => ("completed, set is not".to_owned(), YELLOW),
            SnapshotState::Error => ("error".to_owned(), RED),
            other => (format!("{} {}", other.word(), s.progress), YELLOW),
        };
        let backup = set.backup.as_ref().map(ToString::to_string);
        table.add_row([
            Cell::new(&s.id),
            Cell::new(&s.volume),
            Cell::new(s.device().unwrap_or("?")),
            Cell::new(format!("{} GiB", s.gib)),
            table::cell(word, style),
            Cell::new(format::age(format::since(s.started_at, now))),
            Cell::new(format::time(s.started_at)),
            Cell::new(s.reason().unwrap_or_default()),
            table::cell(backup.unwrap_or_else(|| "made elsewhere".to_owned()), DIM),
        ]);
    }
    table::text(&table)
}
