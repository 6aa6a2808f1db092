//! `backup list --all-hosts`: what each host has in a place that several share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backup_core::catalog::{Catalog, Entry, Filter, Listing};
use backup_core::config::{StoreConfig, StoresOfHosts};
use backup_core::state::StateDir;
use backup_core::{ServiceName, StoreKey, chain};
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::{CliError, one_line};
use crate::format;
use crate::render::table::{self, Column};
use crate::ui::{DIM, GREEN, RED, YELLOW};

/// How many hosts are looked at together.
const TOGETHER: usize = 8;

/// What is under the name of a host.
#[derive(Debug)]
struct Host {
    name: String,
    state: State,
    services: BTreeMap<ServiceName, Service>,
}

#[derive(Debug)]
enum State {
    Store,
    /// Not ours.
    Foreign(String),
    /// Ours, or maybe ours, and it cannot be read as a whole.
    Broken(String),
}

#[derive(Debug)]
struct Service {
    newest_good: Option<Entry>,
    good: usize,
    /// The state of its newest backup that is not being made or deleted.
    state: &'static str,
    style: anstyle::Style,
}

pub(super) async fn list(cx: &Context, service: Option<&ServiceName>) -> Result<Done, CliError> {
    let prepared = cx.prepared()?;
    let plan = &prepared.plan;
    let hosts = plan.stores.get(&plan.store_name).and_then(|store| store.hosts.clone()).ok_or_else(|| {
        CliError::usage(format!("no other host has a place beside the store `{}`", plan.store.url))
            .hint("write `{host}` into its URL, e.g. s3://bucket/{host}, and each host has its own")
    })?;
    let base = cx.with_secrets(&hosts.base).await?;
    let hosts = hosts.opened_with(base.clone());
    let place = cx.cli.stores.open(&base).await?;
    let names = place.list_dirs(None).await;
    let names =
        names.map_err(|e| CliError::failed(format!("cannot list the hosts in {place}")).because(&e))?;
    let state = StateDir::open(prepared.state_dir).ok();
    let names = names.into_iter().filter(|name| !name.starts_with('.'));
    let all: Vec<Host> = futures::stream::iter(names)
        .map(|name| look(cx, &hosts, state.as_ref(), service, name))
        .buffered(TOGETHER)
        .collect()
        .await;
    let now = cx.clock.now();
    if cx.ui.is_json() {
        all.iter().for_each(|host| cx.ui.json(&line(host, now)));
    } else if all.is_empty() {
        cx.ui.note(&format!("no host has backed up to {place} yet"));
    } else {
        cx.ui.product(&text(&all, now));
    }
    let count = |of: fn(&State) -> bool| all.iter().filter(|host| of(&host.state)).count();
    let broken = count(|state| matches!(state, State::Broken(_)));
    let done = if broken == 0 { Done::ok() } else { Done::code(crate::exit_code::FAILED) };
    Ok(done
        .with("hosts", count(|state| matches!(state, State::Store)))
        .with("foreign", count(|state| matches!(state, State::Foreign(_))))
        .with("broken", broken))
}

/// Whatever is wrong with one host says nothing of the others.
async fn look(
    cx: &Context,
    hosts: &StoresOfHosts,
    state: Option<&StateDir>,
    service: Option<&ServiceName>,
    name: String,
) -> Host {
    let (state, services) = match hosts.of(&name) {
        Err(e) => (State::Foreign(one_line(&e.to_string())), BTreeMap::new()),
        Ok(store) => match read(cx, &store, state, service).await {
            Ok(Some(listing)) => {
                let state = match listing.errors.as_slice() {
                    [] => State::Store,
                    [first, ..] => State::Broken(one_line(first)),
                };
                (state, services(&listing, cx.clock.now()))
            }
            Ok(None) => (State::Foreign("not a backup store (no store.json)".to_owned()), BTreeMap::new()),
            Err(e) => (State::Broken(one_line(&e)), BTreeMap::new()),
        },
    };
    Host { name, state, services }
}

/// The listing of one host; `None` if there is no store. Nothing is written but our own cache.
async fn read(
    cx: &Context,
    store: &StoreConfig,
    state: Option<&StateDir>,
    service: Option<&ServiceName>,
) -> Result<Option<Listing>, String> {
    let store = cx.cli.stores.open(store).await.map_err(|e| e.to_string())?;
    let mark = StoreKey::new("store.json").map_err(|e| e.to_string())?;
    match store.head(&mark).await {
        Ok(_) => {}
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(chain(&e)),
    }
    let catalog = Catalog::open(store, Arc::clone(&cx.clock)).await.map_err(|e| chain(&e))?;
    let catalog = match state.and_then(|state| state.cache(catalog.store_id()).ok()) {
        Some(cache) => catalog.with_cache(cache),
        None => catalog,
    };
    let filter = Filter { service: service.cloned(), interval: None };
    catalog.list(&filter).await.map(Some).map_err(|e| chain(&e))
}

fn services(listing: &Listing, now: DateTime<Utc>) -> BTreeMap<ServiceName, Service> {
    let names: BTreeSet<&ServiceName> = listing.entries.iter().map(|entry| &entry.id.service).collect();
    let of = |name: &ServiceName| {
        let all = || listing.of(name).filter(|entry| !super::is_unfinished(&entry.state));
        let newest = all().next();
        let style = newest.map_or(RED, |entry| super::style(&entry.state));
        Service {
            newest_good: listing.newest_good(name, Some(backup_core::Timestamp::new(now))).cloned(),
            good: all().filter(|entry| entry.is_good()).count(),
            state: newest.map_or("none", |entry| entry.state.word()),
            style,
        }
    };
    names.into_iter().map(|name| (name.clone(), of(name))).collect()
}

fn line(host: &Host, now: DateTime<Utc>) -> serde_json::Value {
    let (state, problem) = told(&host.state);
    let services = host.services.iter().map(|(name, service)| {
        let newest = service.newest_good.as_ref();
        json!({
            "service": name, "state": service.state, "good": service.good,
            "newest_good": newest.map(|entry| entry.id.to_string()),
            "age_s": newest.map(|entry| format::since(entry.fresh_at().time(), now).as_secs()),
            "size_bytes": newest.map(Entry::size_bytes),
        })
    });
    json!({
        "event": "host", "host": host.name, "state": state, "problem": problem,
        "services": services.collect::<Vec<_>>(),
    })
}

fn told(state: &State) -> (&'static str, Option<&str>) {
    match state {
        State::Store => ("store", None),
        State::Foreign(why) => ("foreign", Some(why)),
        State::Broken(why) => ("broken", Some(why)),
    }
}

fn text(all: &[Host], now: DateTime<Utc>) -> String {
    use Column::{Left, Right, Text};
    let columns = [
        Left("HOST"),
        Left("SERVICE"),
        Left("NEWEST GOOD"),
        Right("AGE"),
        Right("SIZE"),
        Right("GOOD"),
        Left("STATE"),
        Text("NOTE"),
    ];
    let mut table = table::new(&columns);
    for host in all {
        let (word, problem) = told(&host.state);
        if problem.is_some() || host.services.is_empty() {
            let style = match host.state {
                State::Broken(_) => RED,
                State::Foreign(_) => DIM,
                State::Store => YELLOW,
            };
            let word = if problem.is_some() { word } else { "empty" };
            let note = problem.unwrap_or("a store without backups");
            let cells = [&host.name, "", "", "", "", ""].map(|text: &str| comfy_table::Cell::new(text));
            table.add_row(cells.into_iter().chain([table::cell(word, style), table::cell(note, DIM)]));
        }
        for (name, service) in &host.services {
            let newest = service.newest_good.as_ref();
            let place = |entry: &Entry| format!("{}/{}", entry.id.interval, entry.id.timestamp);
            let age = |entry: &Entry| format::age(format::since(entry.fresh_at().time(), now));
            table.add_row([
                comfy_table::Cell::new(&host.name),
                comfy_table::Cell::new(name),
                match newest {
                    Some(entry) => table::cell(place(entry), GREEN),
                    None => table::cell("none", RED),
                },
                comfy_table::Cell::new(newest.map(age).unwrap_or_default()),
                comfy_table::Cell::new(newest.map(|e| format::size(e.size_bytes())).unwrap_or_default()),
                comfy_table::Cell::new(service.good),
                table::cell(service.state, service.style),
                comfy_table::Cell::new(""),
            ]);
        }
    }
    table::text(&table)
}
