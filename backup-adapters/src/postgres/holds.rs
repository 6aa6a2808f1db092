//! Whether the server holds data: told quickly, however much that is, and also while others use it.

use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext};

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
        let (counts, large_objects) = numbers(&answer, tables.len())
            .ok_or_else(|| AdapterError::new(AdapterErrorKind::Other, odd(name)))?;
        let what = if counts.iter().any(|n| *n >= ENOUGH) { "rows_at_least" } else { "rows" };
        evidence.counts.insert(key(what, [name]), counts.iter().sum());
        evidence.counts.insert(key("any_large_object", [name]), large_objects);
    }
    Ok(evidence)
}

/// One number for each table, and the one of large objects: what is no number must not become "holds nothing".
fn numbers(answer: &str, tables: usize) -> Option<(Vec<u64>, u64)> {
    let lines = answer.lines().map(str::trim).filter(|l| !l.is_empty());
    let mut counts = lines.map(|l| l.parse().ok()).collect::<Option<Vec<u64>>>()?;
    let large_objects = counts.pop()?;
    (counts.len() == tables).then_some((counts, large_objects))
}

fn odd(database: &str) -> String {
    format!("the client did not answer with a number for each table of database `{database}`")
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn an_answer_that_is_not_whole_is_no_answer() {
        assert_eq!(numbers("3\n 4\n0\n", 2), Some((vec![3, 4], 0)));
        assert_eq!(numbers("0\n", 0), Some((vec![], 0)));
        for odd in ["", "3\n0\n", "3\n4\n5\n0\n", "NOTICE\n4\n0\n"] {
            assert_eq!(numbers(odd, 2), None, "{odd:?}");
        }
    }
}
