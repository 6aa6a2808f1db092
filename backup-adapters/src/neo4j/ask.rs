//! Questions: Cypher that only reads.
//!
//! `MATCH (n:Page) RETURN count(n)` goes to the server's default database, `neo4j` unless it is configured otherwise;
//! `movies: MATCH …` to another one of its databases. Neo4j itself refuses to write, by the access mode of the transaction.

use backup_core::{ANSWER_TIME, AdapterError, AdapterErrorKind, Answer, OpContext, RestoreTarget};

use super::Neo4j;
use super::bolt::Bolt;
use super::restore;
use super::server::Database;

/// Asks what a restore made.
pub(super) async fn ask(
    neo4j: &Neo4j,
    cx: &OpContext,
    target: &RestoreTarget,
    question: &str,
) -> Result<Option<String>, AdapterError> {
    if *target == RestoreTarget::Live {
        let all = of_live(neo4j, cx, &[question.to_owned()]).await?;
        return all.into_iter().next().unwrap_or(Ok(None));
    }
    let (_, answers) = restore::probe(neo4j, cx, target, &[question.to_owned()]).await?;
    answers.into_iter().next().unwrap_or(Ok(None))
}

/// Asks the live server.
pub(super) async fn of_live(
    neo4j: &Neo4j,
    cx: &OpContext,
    questions: &[String],
) -> Result<Vec<Answer>, AdapterError> {
    let mut bolt = neo4j.server.connect(cx).await?;
    let databases = super::server::databases(cx, &mut bolt).await?;
    let answers = all(cx, &mut bolt, &databases, questions).await;
    bolt.close(cx).await;
    Ok(answers)
}

/// Asks one server after the other question.
pub(super) async fn all(
    cx: &OpContext,
    bolt: &mut Bolt,
    databases: &[Database],
    questions: &[String],
) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        let (database, query) = parts(question, |name| databases.iter().any(|d| d.name == name));
        let answer = bolt.first_value(&cx.limited_to(ANSWER_TIME), database.as_deref(), query).await;
        // The kind that says that nobody can be asked is not for a question that the server does not understand.
        answers.push(answer.map_err(|e| match e.kind() {
            AdapterErrorKind::Unsupported => {
                AdapterError::new(AdapterErrorKind::InvalidConfig, e.to_string())
            }
            _ => e,
        }));
    }
    answers
}

/// The database that a question names, and the query. Neo4j's names are not told apart by their case.
fn parts(question: &str, is_database: impl Fn(&str) -> bool) -> (Option<String>, &str) {
    let question = question.trim();
    match question.split_once(": ") {
        Some((name, query)) if is_database(&name.to_lowercase()) => (Some(name.to_lowercase()), query.trim()),
        _ => (None, question),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_stands_in_front() {
        let known = |name: &str| name == "movies";
        assert_eq!(parts("Movies: MATCH (n) RETURN 1", known), (Some("movies".into()), "MATCH (n) RETURN 1"));
        for plain in ["MATCH (n: Page) RETURN 1", "other: RETURN 1", "RETURN 1"] {
            assert_eq!(parts(plain, known), (None, plain));
        }
    }
}
