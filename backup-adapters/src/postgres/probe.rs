//! Counting what is there: in databases, and in files of dumps.

use std::path::Path;

use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext};
use tokio::task::spawn_blocking;

use super::evidence::{key, of_contents};
use super::facts::{ServerFacts, count_sql, inside_sql, tables_sql};
use super::format::Parser;
use super::link::{Link, parse};
use super::restore::{Listed, read_list};
use super::swap::Plan;
use super::{Capture, Counts, Settings, apart, base};

/// Counts everything in `database` under the name `name`.
pub(super) async fn count(link: &Link, database: &str, name: &str) -> Result<Evidence, AdapterError> {
    let failed =
        |f: super::fault::Failure| f.explain(&format!("cannot count what is in database `{database}`"));
    let inside: super::facts::Inside = link.json(database, &inside_sql()).await.map_err(failed)?;
    let tables: Vec<(String, String)> = link.json(database, &tables_sql()).await.map_err(failed)?;
    let mut script = "SET statement_timeout = 0;\n".to_owned();
    tables.iter().for_each(|(schema, table)| script.push_str(&count_sql(schema, table)));
    script.push_str("SELECT count(*) FROM pg_largeobject_metadata;\n");
    script.push_str("SELECT count(*) FROM pg_extension WHERE extconfig IS NOT NULL;\n");
    let answer = link.script(database, script).await.map_err(failed)?;
    let mut evidence = Evidence::default().with_count(key("tables", [name]), inside.table_count);
    let mut lines = answer.lines();
    let mut total = 0_u64;
    for _ in &tables {
        let (schema, table, rows): (String, String, u64) = parse(lines.next().unwrap_or_default())?;
        total += rows;
        evidence.counts.insert(key("rows", [name, &schema, &table]), rows);
    }
    let mut number = || lines.next().and_then(|l| l.trim().parse::<u64>().ok());
    if let Some(large_objects) = number() {
        evidence.counts.insert(key("large_objects", [name]), large_objects);
    }
    // Extensions may have rows of their own in a dump, which are not counted here.
    if number() == Some(0) {
        evidence.counts.insert(key("rows", [name]), total);
    }
    Ok(evidence)
}

/// Counts the databases that the configuration selects. Rows only where nobody else could change them meanwhile: right
/// after a restore the applications come back.
pub(super) async fn live(settings: &Settings, cx: &OpContext) -> Result<Evidence, AdapterError> {
    let link = match Link::open(settings, cx).await {
        Err(e) if e.kind() == AdapterErrorKind::PermissionDenied && base::was_refused(cx).await? => {
            return Ok(Evidence::default());
        }
        link => link?,
    };
    refuse_while_set_up(&link).await?;
    let facts = ServerFacts::ask(&link).await?;
    let (databases, _) = facts.selected(settings)?;
    let mut evidence = Evidence::default();
    for database in databases {
        let used = others(&link, &database.name).await?;
        // Whoever copies files does not want to wait for a scan of every table.
        let quick = settings.capture == Capture::Basebackup && settings.counts != Counts::Exact;
        let mut counted = if quick || settings.counts == Counts::Off {
            Evidence::default()
        } else {
            count(&link, &database.name, &database.name).await?
        };
        if used || others(&link, &database.name).await? {
            counted.counts.retain(|key, _| !key.starts_with("rows.") && !key.starts_with("large_objects."));
            counted.notes.insert(
                key("rows", [database.name.as_str()]),
                "not counted: others are connected, and may change them".to_owned(),
            );
        }
        evidence.merge(counted);
    }
    Ok(evidence)
}

/// Images of PostgreSQL set a new cluster up with a server that listens on its socket alone, and start another one then (the
/// public image's `docker-entrypoint.sh`, `docker_temp_server_start`): whoever takes the first for the second loses it.
pub(super) async fn refuse_while_set_up(link: &Link) -> Result<(), AdapterError> {
    if !link.in_container {
        return Ok(());
    }
    let sql = "SELECT count(*) FROM pg_settings WHERE name = 'listen_addresses' AND setting = '' AND source = 'command line'";
    let answer =
        link.query(&link.home, sql).await.map_err(|f| f.explain("cannot look at the server's settings"))?;
    match answer.trim() {
        "0" => Ok(()),
        _ => Err(AdapterError::new(
            AdapterErrorKind::Unavailable,
            "the server is still being set up: it listens on its socket alone",
        )),
    }
}

/// Commits a change of each database that the configuration selects, of which nothing is ever to be seen.
pub(super) async fn take_a_write(settings: &Settings, cx: &OpContext) -> Result<(), AdapterError> {
    let link = Link::open(settings, cx).await?;
    let facts = ServerFacts::ask(&link).await?;
    let (databases, _) = facts.selected(settings)?;
    let schema = super::sql::ident(&format!("backup_proof_{}", cx.run_id));
    for database in databases {
        // Statements in one string are one transaction.
        let sql = format!("CREATE SCHEMA {schema}; DROP SCHEMA {schema}");
        let name = &database.name;
        let done = link.query(name, &sql).await;
        done.map_err(|f| f.explain(&format!("database `{name}` takes no writes")))?;
    }
    Ok(())
}

/// Whether somebody else is connected to `database`.
async fn others(link: &Link, database: &str) -> Result<bool, AdapterError> {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = {} AND application_name <> {} AND pid <> pg_backend_pid()",
        super::sql::literal(database),
        super::sql::literal(&super::link::tag(&link.cx.run_id))
    );
    let others = link.query(&link.home, &sql).await;
    let others = others.map_err(|f| f.explain("cannot ask for the sessions of the server"))?;
    Ok(others.trim() != "0")
}

/// Counts what a restore made below `dir`.
pub(super) async fn elsewhere(
    settings: &Settings,
    cx: &OpContext,
    dir: &Path,
    scratch: bool,
) -> Result<Evidence, AdapterError> {
    let mut evidence = Evidence::default();
    let mut link = None;
    for listed in read_list(dir).await? {
        match listed {
            Listed::Base { data } => {
                evidence.merge(base::evidence(&base::verified(cx, dir.join(&data)).await?));
                if scratch {
                    // Last: a server changes its data when it starts.
                    evidence.merge(base::try_out(settings, cx, dir.join(data)).await?);
                }
            }
            Listed::Database { name, staged, server } => {
                let link = match &mut link {
                    Some(link) => link,
                    None => link.insert(apart::link(settings, cx, server.as_deref()).await?),
                };
                evidence.merge(count(link, &staged, &name).await?);
            }
            Listed::File { name, file, format } => {
                let path = dir.join(file);
                let parsed = spawn_blocking(move || {
                    use std::io::Read as _;
                    let failed = |e| AdapterError::io(format!("cannot read `{}`", path.display()), e);
                    let mut file = std::fs::File::open(&path).map_err(failed)?;
                    let mut parser = Parser::new(format, &name);
                    let mut chunk = vec![0; backup_core::CHUNK_BYTES];
                    loop {
                        match file.read(&mut chunk).map_err(failed)? {
                            0 => return Ok(of_contents(&name, &parser.finish()?)),
                            n => parser.update(chunk.get(..n).unwrap_or_default())?,
                        }
                    }
                });
                evidence.merge(parsed.await.unwrap_or_else(|e| {
                    let what = "the reading of a dump broke off";
                    Err(AdapterError::new(AdapterErrorKind::Other, what).with_source(e))
                })?);
            }
        }
    }
    Ok(evidence)
}

/// Whether a plan's databases hold what the backup's evidence says.
pub(super) async fn compare(link: &Link, plan: &Plan, expected: &Evidence) -> Result<(), AdapterError> {
    for item in &plan.databases {
        let found = count(link, &item.staged, &item.name).await?;
        let differences = expected.contradictions(&found);
        if !differences.is_empty() {
            let what =
                format!("the restored database `{}` is not as it was: {}", item.name, differences.join("; "));
            return Err(AdapterError::corrupt(what));
        }
    }
    Ok(())
}
