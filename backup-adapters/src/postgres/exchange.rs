//! Names that are exchanged one after the other, where statements about databases are no part of transactions
//! (YugabyteDB).
//!
//! A death in the middle would leave an application without its database. So the exchange is announced before: journal
//! and watchdog then see to it that the old names come back, or that an exchange of which only the doors are still closed
//! is completed.

use std::time::Duration;

use backup_core::runtime::{Announced, Interruption, InterruptionEntry, Replay};
use backup_core::{AdapterError, Event, OpContext, StepToken};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Settings;
use super::facts::{Database, ServerFacts};
use super::link::Link;
use super::sql::ident;
use super::swap::{Move, home_besides, renames, spare_prefix, terminating};

/// How long an exchange may take before the watchdog takes it back: YugabyteDB needs seconds for each statement.
const LIMIT: Duration = Duration::from_secs(600);

/// What the journal knows about an exchange.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Exchange {
    spare: String,
    databases: Vec<Place>,
}

/// One database: as it was, and as it shall be.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    oid: u64,
    was: String,
    was_open: bool,
    to: String,
    open: bool,
}

/// Gives databases their names, one by one. After an error they have those that they had.
pub(super) async fn one_by_one(
    link: &Link,
    home: &str,
    pending: &[(Database, Move)],
    statements: Vec<String>,
) -> Result<(), AdapterError> {
    let place = |(now, wanted): &(Database, Move)| Place {
        oid: now.oid,
        was: now.name.clone(),
        was_open: now.allows_connections,
        to: wanted.to.clone(),
        open: wanted.open,
    };
    let exchange = Exchange { spare: spare_prefix(link), databases: pending.iter().map(place).collect() };
    let announced = announce(link, &exchange).await?;
    let named: Vec<(u64, String)> = pending.iter().map(|(now, _)| (now.oid, now.name.clone())).collect();
    let close = pending.iter().map(|(now, _)| allow(&now.name, false));
    let opened = pending.iter().filter(|(_, wanted)| wanted.open);
    let all: Vec<String> =
        close.chain(statements).chain(opened.map(|(_, wanted)| allow(&wanted.to, true))).collect();
    for statement in all {
        phase(&link.cx, &statement);
        let changed = tokio::select! {
            biased;
            changed = link.query(home, &statement) => changed,
            error = terminating(link, home, &named) => Err(error),
        };
        let Err(failure) = changed else { continue };
        let error = failure.explain("cannot exchange the databases");
        // Also when the operation was cancelled or its time is over. If it fails, journal and watchdog remember.
        let calm = link.calm(LIMIT);
        match settle(&calm, &exchange).await {
            Ok(_) => announced.undone().await?,
            Err(second) => tracing::warn!(error = %second, "an exchange of databases is not taken back yet"),
        }
        return Err(error);
    }
    announced.undone().await
}

fn allow(name: &str, open: bool) -> String {
    format!("ALTER DATABASE {} ALLOW_CONNECTIONS {open}", ident(name))
}

fn phase(cx: &OpContext, phase: &str) {
    cx.events.emit(Event::Phase { service: cx.service.clone(), phase: phase.to_owned() });
}

async fn announce(link: &Link, exchange: &Exchange) -> Result<Announced, AdapterError> {
    let token = StepToken::new(exchange)?;
    // A container; what is on a host is known by its databases' numbers.
    let instance = match link.in_container {
        true => link.cx.within(link.runtime.inspect()).await??.instance,
        false => String::new(),
    };
    let what = "exchange databases of";
    Interruption::announce(link.cx.interruption(), what, instance, token, Instant::now() + LIMIT).await
}

/// Takes an exchange back that a run did not end, or completes it if every name is right already.
pub(super) async fn bring_back(
    settings: &Settings,
    cx: &OpContext,
    entry: &InterruptionEntry,
    token: &StepToken,
) -> Result<Replay, AdapterError> {
    let exchange: Exchange = token.get()?;
    let here = cx.journal.place().host;
    if here != entry.place.host {
        return Ok(Replay::Foreign(format!("it was made on host `{}`", entry.place.host)));
    }
    let link = Link::open(settings, cx).await?;
    if link.in_container {
        let now = cx.within(link.runtime.inspect()).await??.instance;
        if now != entry.instance {
            return Ok(Replay::Foreign(format!("`{}` was made anew since", entry.service)));
        }
    }
    let changed = settle(&link, &exchange).await?;
    let disarmed = cx.watchdog.disarm(entry).await;
    cx.journal.clear(entry).await?;
    disarmed?;
    Ok(if changed { Replay::Undone } else { Replay::NothingToDo })
}

/// The old names, open as they were; or the new ones, if each is in its place. Whether there was something to do.
async fn settle(link: &Link, exchange: &Exchange) -> Result<bool, AdapterError> {
    let facts = ServerFacts::ask(link).await?;
    let ours = |place: &&Place| {
        let known = |name: &str| name == place.was || name == place.to || name.starts_with(&exchange.spare);
        facts.by_oid(place.oid).is_some_and(|now| known(&now.name))
    };
    let places: Vec<&Place> = exchange.databases.iter().filter(ours).collect();
    let named = |name: &str, place: &Place| facts.by_oid(place.oid).is_some_and(|now| now.name == name);
    let complete = places.len() == exchange.databases.len() && places.iter().all(|p| named(&p.to, p));
    let mut pending = Vec::new();
    for place in places {
        let Some(now) = facts.by_oid(place.oid) else { continue };
        let (to, open) = match complete {
            true => (&place.to, place.open),
            false => (&place.was, place.was_open),
        };
        if now.name != *to || now.allows_connections != open {
            pending.push((now.clone(), Move { oid: place.oid, to: to.clone(), open }));
        }
    }
    let names: Vec<&str> = pending.iter().map(|(now, _)| now.name.as_str()).collect();
    let home = home_besides(link, &names);
    let named: Vec<(u64, String)> = pending.iter().map(|(now, _)| (now.oid, now.name.clone())).collect();
    let spare = format!("{}_back", exchange.spare);
    let renames = renames(&pending, &spare).into_iter();
    let renames =
        renames.map(|(from, to)| format!("ALTER DATABASE {} RENAME TO {}", ident(&from), ident(&to)));
    let doors = pending.iter().map(|(_, wanted)| allow(&wanted.to, wanted.open));
    let failed = |f: super::fault::Failure| f.explain("cannot take an exchange of databases back");
    for statement in renames.chain(doors) {
        tokio::select! {
            biased;
            changed = link.query(home, &statement) => changed.map_err(failed)?,
            error = terminating(link, home, &named) => return Err(failed(error)),
        };
    }
    Ok(!pending.is_empty())
}
