//! Asks a person what to restore, from what, and where to. The plan is shown after that, and the one question asked.

use std::path::PathBuf;

use backup_core::ServiceName;
use backup_core::catalog::{BackupState, Entry, Filter, Listing};
use backup_core::engine::Selector;
use chrono::{DateTime, Utc};

use super::list;
use crate::context::{Context, Session};
use crate::error::CliError;
use crate::format;

/// What a person chose.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) service: ServiceName,
    pub(super) selector: Selector,
    pub(super) to: Option<PathBuf>,
    /// It is suspect or damaged, and was chosen from a list that says so.
    pub(super) doubtful: bool,
}

/// Asks. `None` if the person thought better of it.
///
/// # Errors
/// Usage, if nobody is there who could answer.
pub(super) async fn ask(cx: &Context, session: &Session) -> Result<Option<Chosen>, CliError> {
    if !cx.ui.can_ask() {
        return Err(CliError::usage("which service?")
            .hint("name it: `backup restore SERVICE`; on a terminal you are asked"));
    }
    let listing = session.engine.catalog().list(&Filter::default()).await?;
    listing.errors.iter().for_each(|e| cx.ui.warn(e));
    let now = cx.clock.now();
    let services: Vec<&ServiceName> =
        session.plan().services.keys().filter(|name| restorable(&listing, name).next().is_some()).collect();
    if services.is_empty() {
        return Err(CliError::nothing("there is no backup to restore").hint("`backup run` makes one"));
    }
    let width = services.iter().map(|s| s.as_str().len()).max().unwrap_or(0);
    let lines = services.iter().map(|name| service_line(&listing, name, width, now)).collect();
    let Some(service) = cx.choose("Which service?", lines).await?.and_then(|n| services.get(n)) else {
        return Ok(None);
    };
    let entries: Vec<&Entry> = restorable(&listing, service).collect();
    let lines = entries.iter().map(|entry| entry_line(entry, now)).collect();
    let Some(entry) = cx.choose("Which backup?", lines).await?.and_then(|n| entries.get(n)) else {
        return Ok(None);
    };
    let targets = vec![
        "over the live service; what is there is kept aside".to_owned(),
        "into a directory; nothing is replaced".to_owned(),
    ];
    let to = match cx.choose("Where to?", targets).await? {
        Some(0) => None,
        Some(_) => match cx.ask("Which directory? It is created, or must be empty").await? {
            Some(dir) if !dir.trim().is_empty() => Some(cx.dir.join(dir.trim())),
            _ => return Ok(None),
        },
        None => return Ok(None),
    };
    Ok(Some(Chosen {
        service: (*service).clone(),
        selector: Selector::Exactly(entry.id.clone()),
        to,
        doubtful: matches!(entry.state, BackupState::Suspect | BackupState::Damaged { .. }),
    }))
}

/// The backups of a service that have contents, the newest first.
fn restorable<'a>(listing: &'a Listing, service: &'a ServiceName) -> impl Iterator<Item = &'a Entry> {
    let has_contents = |e: &&Entry| {
        matches!(
            e.state,
            BackupState::Good | BackupState::Suspect | BackupState::Damaged { .. } | BackupState::Legacy
        )
    };
    listing.of(service).filter(has_contents)
}

fn service_line(listing: &Listing, service: &ServiceName, width: usize, now: DateTime<Utc>) -> String {
    let newest = restorable(listing, service).find(|e| e.is_good());
    let state = newest.map_or_else(
        || "no good backup".to_owned(),
        |e| format!("newest good: {} ago, {}", age(e, now), format::size(e.size_bytes())),
    );
    format!("{service:width$}  {state}")
}

fn entry_line(entry: &Entry, now: DateTime<Utc>) -> String {
    let verified = list::verified(entry);
    let mut marks = vec![entry.state.word().to_owned()];
    marks.extend((!verified.is_empty()).then(|| format!("verified: {verified}")));
    marks.extend(entry.held().then(|| "held".to_owned()));
    let (age, size) = (age(entry, now), format::size(entry.size_bytes()));
    format!("{}/{}  {age:>7} ago  {size:>8}  {}", entry.id.interval, entry.id.timestamp, marks.join(", "))
}

fn age(entry: &Entry, now: DateTime<Utc>) -> String {
    format::age(format::since(entry.id.timestamp.time(), now))
}
