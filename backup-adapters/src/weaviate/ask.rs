//! Questions: GraphQL, which only reads in Weaviate. The answer is the first value in its data: ask for one.

use backup_core::{ANSWER_TIME, AdapterError, AdapterErrorKind, Answer, OpContext, RestoreTarget};
use reqwest::Method;
use serde_json::{Value, json};

use super::api::{Api, one_line};
use super::restore;
use super::server::Server;

const PATH: &str = "/v1/graphql";

/// Asks what a restore made.
pub(super) async fn ask(
    server: &Server,
    cx: &OpContext,
    target: &RestoreTarget,
    question: &str,
) -> Result<Option<String>, AdapterError> {
    if *target == RestoreTarget::Live {
        return of(&server.connect(cx).await?, cx, question).await;
    }
    let (_, answers) = restore::probe(server, cx, target, &[question.to_owned()]).await?;
    answers.into_iter().next().unwrap_or(Ok(None))
}

/// Asks one server all of them.
pub(super) async fn all(api: &Api, cx: &OpContext, questions: &[String]) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        answers.push(of(api, &cx.limited_to(ANSWER_TIME), question).await);
    }
    answers
}

async fn of(api: &Api, cx: &OpContext, question: &str) -> Result<Option<String>, AdapterError> {
    let answer = api.once(cx, Method::POST, PATH, Some(&json!({ "query": question }))).await?;
    if !answer.is_success() {
        return Err(api.refused(PATH, &answer));
    }
    let answer = answer.json();
    let errors: Vec<&str> =
        answer["errors"].as_array().into_iter().flatten().filter_map(|e| e["message"].as_str()).collect();
    if !errors.is_empty() || answer["data"].is_null() {
        let said = if errors.is_empty() { "nothing that is an answer".to_owned() } else { errors.join("; ") };
        let what = format!("{} says: {}", api.name(), one_line(&said));
        return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, what));
    }
    Ok(leaf(&answer["data"]))
}

/// The first value that holds no others; `None` if that is null, or if there is none.
fn leaf(value: &Value) -> Option<String> {
    fn first(value: &Value) -> Option<&Value> {
        match value {
            Value::Array(items) => items.iter().find_map(first),
            Value::Object(fields) => fields.values().find_map(first),
            leaf => Some(leaf),
        }
    }
    match first(value)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_found_however_deep() {
        let of = |text: &str| leaf(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"Aggregate":{"Doc":[{"meta":{"count":7}}]}}"#).unwrap(), "7");
        assert_eq!(of(r#"{"Get":{"Doc":[{"text":"a"},{"text":"b"}]}}"#).unwrap(), "a");
        assert_eq!(of(r#"{"Get":{"Doc":[]}}"#), None);
        assert_eq!(of(r#"{"Get":{"Doc":[{"text":null}]}}"#), None);
        assert_eq!(of(r#"{"a":[[],{}],"b":false}"#).unwrap(), "false");
    }
}
