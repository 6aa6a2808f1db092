//! Databases change names: the restored ones become live, the old ones are kept aside.

use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, Leftover, OpContext};
use serde::{Deserialize, Serialize};

use super::facts::ServerFacts;
use super::link::Link;
use super::sql::{ident, literal, suffixed};
use super::{Flavor, Settings, exchange, scratch};

/// What a restore into a server remembers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) step: Step,
    pub(super) databases: Vec<Item>,
    /// A test restore: nothing becomes live.
    pub(super) scratch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Step {
    Planned,
    Staged,
    Switched,
}

/// One database. Object numbers tell which is which, whatever their names are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Item {
    /// The artifact with its dump.
    pub(super) artifact: String,
    /// The live name.
    pub(super) name: String,
    /// What the restored one is called until it goes live.
    pub(super) staged: String,
    /// What the one that was live is called afterwards.
    pub(super) kept: String,
    /// The restored one.
    pub(super) new: Option<u64>,
    /// The one that was live; `None` if there was none.
    pub(super) old: Option<u64>,
}

/// A database shall have this name, and let anybody in or not.
#[derive(Debug, Clone)]
pub(super) struct Move {
    pub(super) oid: u64,
    pub(super) to: String,
    pub(super) open: bool,
}

/// What a database that is kept aside is called.
pub(super) fn kept_name(name: &str, at: backup_core::Timestamp) -> String {
    suffixed(name, &format!("_backup_{at}"))
}

/// How often connections are ended, so that a name can change.
const TERMINATE_EVERY: Duration = Duration::from_millis(50);

pub(super) async fn switch(
    settings: &Settings,
    cx: &OpContext,
    mut plan: Plan,
) -> Result<Plan, AdapterError> {
    if plan.scratch {
        return Ok(Plan { step: Step::Switched, ..plan });
    }
    let link = Link::open(settings, cx).await?;
    let facts = ServerFacts::ask(&link).await?;
    for item in &mut plan.databases {
        let new = item.new.or_else(|| facts.database(&item.staged).map(|d| d.oid));
        item.new = new;
        if new.and_then(|oid| facts.by_oid(oid)).is_some_and(|d| d.name == item.name) {
            continue;
        }
        // What is live may be another than when the restore was planned.
        if let Some(live) = facts.database(&item.name) {
            item.old = Some(live.oid);
        }
    }
    arrange(settings, &link, &facts, &moves(&plan)?).await?;
    Ok(Plan { step: Step::Switched, ..plan })
}

fn moves(plan: &Plan) -> Result<Vec<Move>, AdapterError> {
    let mut moves = Vec::new();
    for item in &plan.databases {
        moves.extend(item.old.map(|oid| Move { oid, to: item.kept.clone(), open: false }));
        let oid = item.new.ok_or_else(|| gone(&item.staged))?;
        moves.push(Move { oid, to: item.name.clone(), open: true });
    }
    Ok(moves)
}

fn gone(name: &str) -> AdapterError {
    AdapterError::new(AdapterErrorKind::NotFound, format!("database `{name}` is gone"))
}

/// Puts the old databases back; the restored ones are kept aside as of now.
pub(super) async fn undo(settings: &Settings, cx: &OpContext, plan: Plan) -> Result<Plan, AdapterError> {
    let databases = plan.databases.into_iter().map(|item| Item {
        kept: kept_name(&item.name, cx.timestamp),
        new: item.old,
        old: item.new,
        ..item
    });
    let undone = Plan { databases: databases.collect(), ..plan };
    let link = Link::open(settings, cx).await?;
    let facts = ServerFacts::ask(&link).await?;
    let mut moves = Vec::new();
    for item in &undone.databases {
        moves.extend(item.old.map(|oid| Move { oid, to: item.kept.clone(), open: false }));
        moves.extend(item.new.map(|oid| Move { oid, to: item.name.clone(), open: true }));
    }
    arrange(settings, &link, &facts, &moves).await?;
    Ok(undone)
}

/// Gives databases their names. In PostgreSQL all at once, in one transaction that a crash undoes; where such statements
/// are no part of transactions (YugabyteDB), one after the other (`exchange`). Names that are right already stay: it can be repeated.
async fn arrange(
    settings: &Settings,
    link: &Link,
    facts: &ServerFacts,
    moves: &[Move],
) -> Result<(), AdapterError> {
    let mut pending = Vec::new();
    for wanted in moves {
        let now = facts.by_oid(wanted.oid).ok_or_else(|| gone(&wanted.to))?;
        if let Some(other) = facts.database(&wanted.to)
            && other.oid != wanted.oid
            && !moves.iter().any(|m| m.oid == other.oid && m.to != wanted.to)
        {
            let message = format!("there is another database `{}` already", wanted.to);
            return Err(AdapterError::new(AdapterErrorKind::Conflict, message));
        }
        if now.name != wanted.to || now.allows_connections != wanted.open {
            pending.push((now.clone(), wanted.clone()));
        }
    }
    if pending.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = pending.iter().map(|(now, _)| now.name.as_str()).collect();
    let home = home_besides(link, &names);
    let renames = renames(&pending, &spare_prefix(link));
    let mut statements: Vec<String> = renames
        .iter()
        .map(|(from, to)| format!("ALTER DATABASE {} RENAME TO {}", ident(from), ident(to)))
        .collect();
    for (now, wanted) in &pending {
        if now.allows_connections != wanted.open {
            statements.push(format!(
                "ALTER DATABASE {} ALLOW_CONNECTIONS {}",
                ident(&wanted.to),
                wanted.open
            ));
        }
    }
    match settings.flavor {
        Flavor::Postgres => {
            let script =
                format!("BEGIN;\nSET LOCAL lock_timeout = '60s';\n{};\nCOMMIT;\n", statements.join(";\n"));
            let named: Vec<(u64, String)> =
                pending.iter().map(|(now, _)| (now.oid, now.name.clone())).collect();
            // The transaction holds new connections off; those that are there are ended beside it.
            let renamed = tokio::select! {
                biased;
                renamed = link.script(home, script) => renamed,
                error = terminating(link, home, &named) => Err(error),
            };
            renamed.map(drop).map_err(|f| f.explain("cannot exchange the databases"))
        }
        Flavor::Yugabyte => exchange::one_by_one(link, home, &pending, statements).await,
    }
}

/// What names begin with that exist only within an exchange.
pub(super) fn spare_prefix(link: &Link) -> String {
    suffixed("exchange", &format!("_{}", link.cx.run_id))
}

/// The renames in an order in which each name is free when it is taken; two that exchange their names need a third one.
pub(super) fn renames(pending: &[(super::facts::Database, Move)], spare: &str) -> Vec<(String, String)> {
    let mut todo: Vec<(String, &str)> = pending
        .iter()
        .filter(|(now, wanted)| now.name != wanted.to)
        .map(|(now, wanted)| (now.name.clone(), wanted.to.as_str()))
        .collect();
    let mut out = Vec::new();
    while !todo.is_empty() {
        let free = todo.iter().position(|(_, to)| !todo.iter().any(|(from, _)| from == to));
        match free {
            Some(at) => {
                let (from, to) = todo.swap_remove(at);
                out.push((from, to.to_owned()));
            }
            None => {
                let Some((from, _)) = todo.first_mut() else { break };
                let spare = format!("{spare}_{}", out.len());
                out.push((std::mem::replace(from, spare.clone()), spare));
            }
        }
    }
    out
}

/// A database to work from that is none of `names`.
pub(super) fn home_besides<'a>(link: &'a Link, names: &[&str]) -> &'a str {
    let free = |home: &&str| !names.contains(home);
    [link.home.as_str(), "postgres", "template1"].into_iter().find(free).unwrap_or(&link.home)
}

/// Ends the sessions of these databases again and again until it is dropped; returns only if it cannot.
pub(super) async fn terminating(
    link: &Link,
    home: &str,
    databases: &[(u64, String)],
) -> super::fault::Failure {
    // By number and name: a look that comes late, after the exchange, finds nobody to end.
    let list: Vec<String> =
        databases.iter().map(|(oid, name)| format!("({oid}, {})", literal(name))).collect();
    let sql = format!(
        "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_database d ON d.oid = a.datid JOIN (VALUES {}) \
         v(oid, name) ON v.oid = d.oid::bigint AND v.name = d.datname WHERE a.pid <> pg_backend_pid()",
        list.join(", ")
    );
    loop {
        match link.query(home, &sql).await {
            Ok(_) => {}
            // Sessions of superusers and of autovacuum are not everybody's: the exchange says if they stand in its way.
            Err(failure)
                if failure.mentions("must be a superuser") || failure.mentions("permission denied") =>
            {
                return std::future::pending().await;
            }
            Err(failure) => return failure,
        }
        tokio::time::sleep(TERMINATE_EVERY).await;
    }
}

/// Drops a database and ends its sessions; none of that name is success.
pub(super) async fn drop_database(link: &Link, name: &str) -> Result<(), AdapterError> {
    let home = home_besides(link, &[name]);
    let failed = |f: super::fault::Failure| f.explain(&format!("cannot drop database `{name}`"));
    let mut attempt = 1;
    loop {
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid()",
            literal(name)
        );
        link.query(home, &end).await.map_err(failed)?;
        match link.query(home, &format!("DROP DATABASE IF EXISTS {}", ident(name))).await {
            Ok(_) => return Ok(()),
            Err(f) if attempt < 5 && (f.mentions("being accessed") || f.passes()) => {
                link.cx.within(tokio::time::sleep(Duration::from_millis(200) * attempt)).await?;
                attempt += 1;
            }
            Err(f) => return Err(failed(f)),
        }
    }
}

/// The databases that a token still occupies, with their sizes.
fn occupied<'a>(
    facts: &'a ServerFacts,
    plan: &Plan,
) -> Result<Vec<&'a super::facts::Database>, AdapterError> {
    let mut found = Vec::new();
    for item in &plan.databases {
        let kept = match plan.step {
            Step::Switched if !plan.scratch => item.old.and_then(|oid| facts.by_oid(oid)),
            _ => facts.database(&item.staged),
        };
        let moved = |oid: u64| facts.by_oid(oid).is_some_and(|d| d.name != item.name);
        if plan.step != Step::Switched && item.old.is_some_and(moved) {
            let message =
                format!("the exchange of database `{}` is not finished: what was live lies aside", item.name);
            return Err(AdapterError::new(AdapterErrorKind::Conflict, message));
        }
        // Whatever a token says: what is live stays.
        found.extend(kept.filter(|d| d.name != item.name));
    }
    Ok(found)
}

pub(super) async fn leftovers(
    settings: &Settings,
    cx: &OpContext,
    plan: &Plan,
) -> Result<Vec<Leftover>, AdapterError> {
    let link = Link::open(settings, cx).await?;
    let facts = ServerFacts::ask(&link).await?;
    let occupied = occupied(&facts, plan)?;
    Ok(occupied
        .into_iter()
        .map(|d| Leftover { what: format!("database {}", d.name), bytes: d.size })
        .collect())
}

pub(super) async fn discard(settings: &Settings, cx: &OpContext, plan: &Plan) -> Result<(), AdapterError> {
    let link = Link::open(settings, cx).await?;
    let facts = ServerFacts::ask(&link).await?;
    for database in occupied(&facts, plan)? {
        drop_database(&link, &database.name).await?;
    }
    // A restore that died while it staged may have left files where its programs ran.
    scratch::sweep(settings, &link).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(oid: u64, name: &str, to: &str) -> (super::super::facts::Database, Move) {
        let database = serde_json::json!({
            "oid": oid, "name": name, "owner": "o", "encoding": "UTF8", "collate": "C", "ctype": "C",
            "tablespace": "pg_default", "connection_limit": -1,
        });
        (serde_json::from_value(database).unwrap(), Move { oid, to: to.to_owned(), open: true })
    }

    #[test]
    fn a_name_is_free_when_it_is_taken() {
        let chain = [named(1, "new", "live"), named(2, "live", "old")];
        let text =
            |r: &[(String, String)]| r.iter().map(|(a, b)| format!("{a}>{b}")).collect::<Vec<_>>().join(" ");
        assert_eq!(text(&renames(&chain, "x")), "live>old new>live");
        let exchange = [named(1, "a", "b"), named(2, "b", "a")];
        assert_eq!(text(&renames(&exchange, "x")), "a>x_0 b>a x_0>b");
        assert_eq!(text(&renames(&[named(1, "a", "a")], "x")), "");
    }
}
