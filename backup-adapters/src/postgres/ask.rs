//! Questions: SQL queries in a transaction that only reads.
//!
//! `SELECT count(*) FROM orders` goes to the one database that `databases` names, else to the one that is everywhere:
//! `postgres`, or `yugabyte`. `app: SELECT …` goes to that database of the server. A question is what can stand in
//! parentheses (SELECT, WITH, VALUES, TABLE): so it is one statement, and its first value comes with its type.

use std::path::Path;

use backup_core::{ANSWER_TIME, AdapterError, AdapterErrorKind, OpContext};

use super::facts::ServerFacts;
use super::link::Link;
use super::restore::{Listed, read_list};
use super::{Flavor, Settings, apart};

/// Asks the live server.
pub(super) async fn live(
    settings: &Settings,
    cx: &OpContext,
    question: &str,
) -> Result<Option<String>, AdapterError> {
    let link = Link::open(settings, cx).await?;
    let facts = ServerFacts::ask(&link).await?;
    let known = |name: &str| facts.database(name).is_some();
    let (named, query) = parts(question, known);
    let database = named.map_or_else(|| usual(settings, &link.home, known), str::to_owned);
    first_value(&link, &database, query).await
}

/// Asks the databases that a restore into scratch made on a server, under the names that they had.
pub(super) async fn scratch(
    settings: &Settings,
    cx: &OpContext,
    dir: &Path,
    question: &str,
) -> Result<Option<String>, AdapterError> {
    let (mut databases, mut apart) = (Vec::new(), None);
    for listed in read_list(dir).await? {
        match listed {
            Listed::Database { name, staged, server } => {
                databases.push((name, staged));
                apart = server;
            }
            Listed::Base { .. } => {
                return Err(AdapterError::unsupported(
                    "no server runs over the files of a base backup in scratch",
                ));
            }
            Listed::File { .. } => return Err(AdapterError::unsupported("no server runs in a directory")),
        }
    }
    let link = apart::link(settings, cx, apart.as_deref()).await?;
    let facts = ServerFacts::ask(&link).await?;
    let held = |name: &str| databases.iter().any(|(n, _)| n == name);
    // One that the server has and the backup lacks is no part of the query: it is missing.
    let (named, query) = parts(question, |name| held(name) || facts.database(name).is_some());
    let wanted = named.map_or_else(|| usual(settings, &link.home, held), str::to_owned);
    match databases.iter().find(|(name, _)| *name == wanted) {
        Some((_, staged)) => first_value(&link, staged, query).await,
        None => {
            let mut names: Vec<&str> = databases.iter().map(|(name, _)| name.as_str()).collect();
            names.sort_unstable();
            let what = format!(
                "the backup holds no database `{wanted}`: begin the question with one that it holds ({}), as in `app: SELECT 1`",
                names.join(", ")
            );
            Err(AdapterError::new(AdapterErrorKind::NotFound, what))
        }
    }
}

/// The database that a question names, and the query.
fn parts(question: &str, is_database: impl Fn(&str) -> bool) -> (Option<&str>, &str) {
    let question = question.trim();
    let (named, query) = match question.split_once(": ") {
        Some((name, query)) if is_database(name) => (Some(name), query),
        _ => (None, question),
    };
    (named, query.trim_end_matches(|c: char| c == ';' || c.is_whitespace()))
}

/// The database of questions that name none.
fn usual(settings: &Settings, home: &str, is_database: impl Fn(&str) -> bool) -> String {
    match (settings.databases.as_slice(), settings.flavor) {
        ([one], _) => one.clone(),
        (_, Flavor::Yugabyte) if is_database(Flavor::Yugabyte.user()) => Flavor::Yugabyte.user().to_owned(),
        _ => home.to_owned(),
    }
}

async fn first_value(link: &Link, database: &str, query: &str) -> Result<Option<String>, AdapterError> {
    let left = link.cx.remaining().unwrap_or(ANSWER_TIME).min(ANSWER_TIME);
    let statements = [
        "BEGIN READ ONLY".to_owned(),
        format!("SET LOCAL statement_timeout = {}", left.as_millis().max(1)),
        // A comment at the end of the query ends with its line.
        format!(
            "SELECT to_json(\"the answer\".\"first value\") FROM (\n{query}\n) AS \"the answer\"(\"first value\") LIMIT 1"
        ),
        "ROLLBACK".to_owned(),
    ];
    let answer = link.statements(database, statements).await;
    let answer =
        answer.map_err(|f| f.explain(&format!("database `{database}` does not answer the query")))?;
    Ok(value(answer.trim()))
}

/// What JSON says; nothing is null.
fn value(json: &str) -> Option<String> {
    match serde_json::from_str(json) {
        Ok(serde_json::Value::Null) => None,
        Ok(serde_json::Value::String(text)) => Some(text),
        Ok(other) => Some(other.to_string()),
        Err(_) if json.is_empty() => None,
        Err(_) => Some(json.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_stands_in_front() {
        let known = |name: &str| name == "app";
        assert_eq!(parts(" app: SELECT 1; \n", known), (Some("app"), "SELECT 1"));
        assert_eq!(parts("SELECT 'a: b'", known), (None, "SELECT 'a: b'"));
        assert_eq!(parts("other: SELECT 1", known), (None, "other: SELECT 1"));
    }

    #[test]
    fn questions_without_one_go_to_the_only_one_or_the_usual_one() {
        let settings = |text: &str| toml::from_str::<Settings>(text).unwrap();
        assert_eq!(usual(&settings("databases = ['app']"), "postgres", |_| true), "app");
        assert_eq!(usual(&settings("databases = ['a', 'b']"), "postgres", |_| true), "postgres");
        assert_eq!(usual(&settings("flavor = 'yugabyte'"), "postgres", |_| true), "yugabyte");
        assert_eq!(usual(&settings("flavor = 'yugabyte'"), "postgres", |_| false), "postgres");
    }

    #[test]
    fn values_are_told_apart() {
        assert_eq!((value("null"), value("")), (None, None));
        assert_eq!(value("7").unwrap(), "7");
        assert_eq!(value("false").unwrap(), "false");
        assert_eq!(value("\"x: \\\"y\\\"\"").unwrap(), "x: \"y\"");
        assert_eq!(value("[]").unwrap(), "[]");
    }
}
