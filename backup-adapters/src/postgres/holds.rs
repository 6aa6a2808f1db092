//! Whether the server holds data: told quickly, however much that is, and also while others use it.

use backup_core::{AdapterError, Evidence, OpContext};

use super::evidence::key;
use super::facts::{ServerFacts, tables_sql};
use super::link::Link;
use super::sql::ident;
use super::{Settings, probe};

/// So many rows of a table are counted at most: it takes some milliseconds each.
const ENOUGH: u64 = 100_000;

/// The rows of each selected database; `rows_at_least` if a table has more than are counted.
pub(super) async fn data(settings: &Settings, cx: &OpContext) -> Result<Evidence, AdapterError> {
    let link = Link::open(settings, cx).await?;
    probe::refuse_while_set_up(&link).await?;
    let facts = ServerFacts::ask(&link).await?;
    let mut evidence = Evidence::default();
    for database in facts.selected(settings)?.0 {
        let name = database.name.as_str();
        let failed = |f: super::fault::Failure| f.explain(&format!("cannot look into database `{name}`"));
        let tables: Vec<(String, String)> = link.json(name, &tables_sql()).await.map_err(failed)?;
        let mut script = String::new();
        for (schema, table) in &tables {
            let table = format!("{}.{}", ident(schema), ident(table));
            script.push_str(&format!(
                "SELECT count(*) FROM (SELECT FROM ONLY {table} LIMIT {ENOUGH}) AS enough;\n"
            ));
        }
        script.push_str("SELECT count(*) FROM (SELECT FROM pg_largeobject_metadata LIMIT 1) AS enough;\n");
        let answer = link.script(name, script).await.map_err(failed)?;
        let mut counts: Vec<u64> = answer.lines().filter_map(|l| l.trim().parse().ok()).collect();
        let large_objects = counts.pop().unwrap_or(0);
        let what = if counts.iter().any(|n| *n >= ENOUGH) { "rows_at_least" } else { "rows" };
        evidence.counts.insert(key(what, [name]), counts.iter().sum());
        evidence.counts.insert(key("any_large_object", [name]), large_objects);
    }
    Ok(evidence)
}
