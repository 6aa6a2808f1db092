//! `backup ebs prune`.

use std::collections::BTreeMap;
use std::time::Duration;

use backup_adapters::ebs::{PruneItem, SnapshotSet, plan_prune};
use backup_core::catalog::{BackupState, Filter};
use backup_core::{BackupId, ServiceName};
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::Cell;
use serde_json::json;

use super::{failed, operation, prepare, services};
use crate::context::{Context, Done, Opening};
use crate::error::CliError;
use crate::format;
use crate::render::report;
use crate::render::table::{self, Column};
use crate::ui::{DIM, GREEN, YELLOW};

/// Delete old snapshots
///
/// Only those that belong to this store, with their entries in the catalogue. Never the newest completed set of a volume, what
/// is not completed yet, what is held, or the newest good backup.
#[derive(Debug, clap::Args)]
pub(super) struct Prune {
    /// What is older than this goes
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = parse)]
    older_than: Duration,

    /// Only this service
    #[arg(short, long)]
    service: Option<ServiceName>,

    /// Show the verdicts and stop
    #[arg(short = 'n', long)]
    dry_run: bool,
}

fn parse(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}: write it like 7d or 36h"))
}

impl Prune {
    pub(super) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        cx.refuse_store("only the store that made snapshots deletes them", "leave it out")?;
        let prepared = prepare(cx)?;
        let services = services(&prepared.written, self.service.as_ref())?;
        let session = cx.open(prepared, Opening::Existing).await?;
        let catalog = session.engine.catalog();
        let older_than =
            TimeDelta::from_std(self.older_than).map_err(|_| CliError::usage("--older-than is too long"))?;
        let now = cx.clock.now();
        let (mut ids, mut strays, mut shown) = (Vec::new(), Vec::new(), Vec::new());
        for (name, ebs) in &services {
            session.engine.settle_pending(std::slice::from_ref(name)).await?;
            let (op, spool) = operation(cx, name, catalog.store_id())?;
            let mut sets = ebs.sets(&op).await.map_err(|e| failed(&e))?;
            sets.retain(|s| s.backup.as_ref().is_none_or(|b| b.service == *name));
            let listing = catalog.list_uncached(&Filter::service(name)).await?;
            if let Some(error) = listing.errors.first() {
                return Err(CliError::failed(format!("the store cannot be listed completely: {error}"))
                    .hint("nothing was deleted"));
            }
            let known: BTreeMap<&BackupId, &BackupState> =
                listing.entries.iter().map(|e| (&e.id, &e.state)).collect();
            let newest = listing.of(name).find(|e| e.is_good()).map(|e| &e.id);
            let held: Vec<&BackupId> = listing.entries.iter().filter(|e| e.held()).map(|e| &e.id).collect();
            let stays = |id: &BackupId| match id {
                id if newest == Some(id) => Some("the newest good backup".to_owned()),
                id if held.contains(&id) => Some("held".to_owned()),
                // Its run is at work, or a sweeper has yet to decide.
                id if known.get(id) == Some(&&BackupState::Incomplete) => {
                    Some("its backup is being made".to_owned())
                }
                _ => None,
            };
            for item in plan_prune(&sets, catalog.store_id(), older_than, now, stays) {
                shown.push(row(&item, now));
                cx.ui.json(&line(&item));
                if !item.delete {
                    continue;
                }
                let entry = item.set.backup.as_ref().filter(|b| known.contains_key(b));
                match entry {
                    Some(id) => ids.push(id.clone()),
                    None => strays.push((ebs.clone(), op.clone(), item.set.clone())),
                }
            }
            drop(spool);
        }
        if shown.is_empty() {
            cx.ui.note("no snapshots yet");
        } else {
            use Column::{Left, Right, Text};
            let mut table = table::new(&[
                Left("VERDICT"),
                Left("SNAPSHOTS"),
                Right("AGE"),
                Left("BACKUP"),
                Text("REASON"),
            ]);
            table.add_rows(shown);
            cx.ui.product(&table::text(&table));
        }
        let number = ids.len() + strays.len();
        let done = Done::ok().with("to_delete", number);
        if number == 0 {
            cx.ui.note("nothing to delete");
            return Ok(done);
        }
        let what = format::count(number, "snapshot set");
        if self.dry_run {
            cx.ui.note(&format!("would delete {what} (--dry-run)"));
            return Ok(done.with("dry_run", true));
        }
        if !cx.confirm(&format!("Delete {what}, for good?")).await? {
            return Ok(done.with("confirmed", false));
        }
        for (ebs, op, set) in strays {
            ebs.delete_set(&op, &set).await.map_err(|e| failed(&e))?;
            cx.ui.note(&format!("deleted {}, which no backup referred to", names(&set)));
        }
        if ids.is_empty() {
            return Ok(done);
        }
        let report = session.engine.remove(&ids, "older than asked for", cx.interrupt.graceful()).await?;
        Ok(report::conclude(cx, &report, "pruned").with("to_delete", number))
    }
}

fn names(set: &SnapshotSet) -> String {
    set.snapshots.iter().map(|s| s.id.as_str()).collect::<Vec<_>>().join(" ")
}

fn line(item: &PruneItem<'_>) -> serde_json::Value {
    json!({
        "event": "plan", "verb": "ebs prune", "decision": if item.delete { "delete" } else { "keep" },
        "reason": item.reason, "backup": item.set.backup,
        "snapshots": item.set.snapshots.iter().map(|s| &s.id).collect::<Vec<_>>(),
        "started_at": item.set.started_at(),
    })
}

fn row(item: &PruneItem<'_>, now: DateTime<Utc>) -> [Cell; 5] {
    let (word, style) = if item.delete { ("delete", YELLOW) } else { ("keep", GREEN) };
    [
        table::cell(word, style),
        Cell::new(names(item.set)),
        Cell::new(format::age(format::since(item.set.started_at(), now))),
        Cell::new(item.set.backup.as_ref().map(ToString::to_string).unwrap_or_default()),
        table::cell(&item.reason, DIM),
    ]
}
