//! Requests over HTTP, what their answers mean, and which failures pass by themselves.

use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, OpContext, Secret};
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Method};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// How long one request may take. A large schema takes seconds.
const REQUEST: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);

/// How long a server may fail to answer before it counts as gone, and how often it is asked meanwhile.
const PATIENCE: Duration = Duration::from_secs(45);
const AGAIN: Duration = Duration::from_millis(500);

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// The longest text of the server that an error repeats.
const MAX_TEXT: usize = 500;

/// One server, logged in.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    base: String,
    name: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// What the server says went wrong, on one line.
    pub(super) fn message(&self) -> String {
        let json = self.json();
        let said: Vec<&str> = match &json["error"] {
            Value::Array(all) => all.iter().filter_map(|e| e["message"].as_str()).collect(),
            Value::String(one) => vec![one.as_str()],
            _ => json["message"].as_str().into_iter().collect(),
        };
        if said.is_empty() { format!("HTTP {}", self.status) } else { one_line(&said.join("; ")) }
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Text of the server, fit for an error.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let mut line: String = words
        .into_iter()
        .filter(|w| !w.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(MAX_TEXT)
        .collect();
    if line.len() >= MAX_TEXT {
        line.push('…');
    }
    line
}

fn text(body: &Value) -> Bytes {
    body.to_string().into()
}

impl Api {
    /// Makes no contact. `base` has no slash at its end; `name` is what errors call the server.
    ///
    /// # Errors
    /// `InvalidConfig` for a key that no header can hold.
    pub(super) fn new(base: String, name: String, key: Option<&Secret>) -> Result<Self, AdapterError> {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            // The cause would show the key.
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| {
                let what = format!("the API key for {name} has characters that no header can hold");
                AdapterError::new(AdapterErrorKind::InvalidConfig, what)
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let client = Client::builder()
            .default_headers(headers)
            .timeout(REQUEST)
            .connect_timeout(CONNECT)
            // The key is for this server alone, and a library reads no environment.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| {
                AdapterError::new(AdapterErrorKind::Other, "cannot set up HTTP").with_source(e.without_url())
            })?;
        Ok(Self { client, base, name })
    }

    /// Whether both ask the same address.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.base == other.base
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// One request, once. Every status is an answer.
    ///
    /// # Errors
    /// `Unavailable` if no whole answer came; those of [`OpContext::within`].
    pub(super) async fn once(
        &self,
        cx: &OpContext,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, AdapterError> {
        self.request(cx, method, path, body.map(text), MAX_ANSWER).await
    }

    async fn request(
        &self,
        cx: &OpContext,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        max: usize,
    ) -> Result<Answer, AdapterError> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        cx.within(self.read(request, max)).await?
    }

    async fn read(&self, request: reqwest::RequestBuilder, max: usize) -> Result<Answer, AdapterError> {
        let broken = |e: reqwest::Error| {
            let what = match (e.is_connect(), e.is_timeout()) {
                (true, _) => "does not answer",
                (_, true) => "did not answer in time",
                _ => "did not answer to its end",
            };
            AdapterError::new(AdapterErrorKind::Unavailable, format!("{} {what}", self.name))
                .with_source(e.without_url())
        };
        let mut response = request.send().await.map_err(broken)?;
        let (status, mut body) = (response.status().as_u16(), Vec::new());
        while let Some(piece) = response.chunk().await.map_err(broken)? {
            body.extend_from_slice(&piece);
            if body.len() > max {
                let what = format!("{} answers with more than {max} bytes", self.name);
                return Err(AdapterError::corrupt(what));
            }
        }
        Ok(Answer { status, body })
    }

    /// Asks for something, patiently: again while the server does not answer or has an error of its own.
    ///
    /// # Errors
    /// Those of [`Self::refused`]; `Unavailable` once patience is at its end.
    pub(super) async fn get(&self, cx: &OpContext, path: &str) -> Result<Value, AdapterError> {
        Ok(self.patiently(cx, Method::GET, path, None, MAX_ANSWER).await?.json())
    }

    /// As [`Self::get`]: the answer as it came, and not more than `max` bytes of it.
    ///
    /// # Errors
    /// As [`Self::get`]; `Corrupt` for more.
    pub(super) async fn bytes(
        &self,
        cx: &OpContext,
        path: &str,
        max: usize,
    ) -> Result<Vec<u8>, AdapterError> {
        Ok(self.patiently(cx, Method::GET, path, None, max).await?.body)
    }

    /// As [`Self::get`], for a query by POST, which changes nothing.
    pub(super) async fn ask(&self, cx: &OpContext, path: &str, body: &Value) -> Result<Value, AdapterError> {
        self.send(cx, path, text(body)).await
    }

    /// As [`Self::ask`], of JSON as text; also for a change that may as well be made twice.
    pub(super) async fn send(
        &self,
        cx: &OpContext,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Value, AdapterError> {
        Ok(self.patiently(cx, Method::POST, path, Some(body.into()), MAX_ANSWER).await?.json())
    }

    /// As [`Self::get`], for a change that may as well be made twice.
    pub(super) async fn put(&self, cx: &OpContext, path: &str, body: &Value) -> Result<Value, AdapterError> {
        Ok(self.patiently(cx, Method::PUT, path, Some(text(body)), MAX_ANSWER).await?.json())
    }

    async fn patiently(
        &self,
        cx: &OpContext,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        max: usize,
    ) -> Result<Answer, AdapterError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let trouble = match self.request(cx, method.clone(), path, body.clone(), max).await {
                Ok(answer) if answer.is_success() => return Ok(answer),
                Ok(answer) if answer.status < 500 => return Err(self.refused(path, &answer)),
                Ok(answer) => self.refused(path, &answer),
                Err(e) if e.kind() == AdapterErrorKind::Unavailable => e,
                Err(e) => return Err(e),
            };
            if Instant::now() > until {
                return Err(trouble);
            }
            cx.within(sleep(AGAIN)).await?;
        }
    }

    /// The error for an answer that is no success.
    pub(super) fn refused(&self, path: &str, answer: &Answer) -> AdapterError {
        let (name, said) = (&self.name, answer.message());
        let path = path.split('?').next().unwrap_or(path);
        let (kind, what) = match answer.status {
            401 => {
                let what = format!("{name} does not accept the API key: set `api_key` ({said})");
                (AdapterErrorKind::PermissionDenied, what)
            }
            403 => (AdapterErrorKind::PermissionDenied, format!("{name} does not allow {path}: {said}")),
            404 => (AdapterErrorKind::NotFound, format!("{name} does not know {path}: {said}")),
            500.. => (AdapterErrorKind::Unavailable, format!("{name} failed at {path}: {said}")),
            _ => (AdapterErrorKind::Other, format!("{name} refused {path}: {said}")),
        };
        AdapterError::new(kind, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_and_bounded() {
        let answer = |status, body: &str| Answer { status, body: body.into() };
        assert_eq!(answer(422, r#"{"error":[{"message":"a\nb"},{"message":"c"}]}"#).message(), "a b; c");
        assert_eq!(answer(500, "<html>").message(), "HTTP 500");
        assert_eq!(
            answer(401, r#"{"code":401,"message":"anonymous access not enabled"}"#).message(),
            "anonymous access not enabled"
        );
        assert!(one_line(&"x".repeat(10_000)).len() < 600);
    }

    #[test]
    fn a_key_shows_nowhere() {
        let api = Api::new("http://h".into(), "it".into(), Some(&Secret::new("hunter2"))).unwrap();
        assert!(!format!("{api:?} {:?}", api.client).contains("hunter2"));
        let e = Api::new("http://h".into(), "it".into(), Some(&Secret::new("hunter2\n"))).unwrap_err();
        assert!(!backup_core::chain(&e).contains("hunter2"));
    }
}
