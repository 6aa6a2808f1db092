//! What the answers of a server mean, and what to do about them.

use std::error::Error;
use std::fmt;

use backup_core::{Advice, BoxError, StoreError, StoreKey};
use chrono::{DateTime, NaiveDateTime};

use super::ObjectStore;
use super::again::ALTERED;
use super::api::Refusal;
use super::cloud::Cloud;

/// An answer that was no success. The client gives it as text only.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// `AccessDenied` and the like; empty if there was no body, as for `HEAD`.
    code: String,
    message: String,
    /// What Azure and Google say besides. It may hold what was signed: only looked into, never shown.
    details: String,
    /// The request was one for a listing, whatever it was for.
    listing: bool,
    /// By how much the clocks differ, if it tells.
    skew: Option<chrono::TimeDelta>,
}

impl Answer {
    /// The answer that `e` is about; `None` if none came.
    fn of(e: &(dyn Error + 'static)) -> Option<Self> {
        let (mut next, mut listing) = (Some(e), false);
        while let Some(e) = next {
            let text = e.to_string();
            listing |= text.starts_with("Error performing list request");
            for begin in ["Server returned non-2xx status code: ", "Server returned error response: "] {
                if let Some(rest) = text.strip_prefix(begin) {
                    return Some(Self { listing, ..Self::parse(rest) });
                }
            }
            // One object of a deletion in bulk, which as a whole succeeded.
            if text.starts_with("DeleteObjects request failed for key")
                && let Some(code) = between(&text, "(code: ", ")")
            {
                let status = if code == "AccessDenied" { 403 } else { 500 };
                return Some(Self { status, code: code.to_owned(), ..Self::default() });
            }
            next = e.source();
        }
        None
    }

    /// `403 Forbidden: <?xml …>`. The body may name keys and what was signed: only what is meant for people is taken.
    fn parse(text: &str) -> Self {
        let tag = |name: &str| between(text, &format!("<{name}>"), &format!("</{name}>"));
        let status = text.get(..3).and_then(|digits| digits.parse().ok()).unwrap_or(500);
        let theirs = tag("ServerTime").and_then(|t| DateTime::parse_from_rfc3339(t).ok());
        let ours = tag("RequestTime").and_then(|t| NaiveDateTime::parse_from_str(t, "%Y%m%dT%H%M%SZ").ok());
        Self {
            status,
            code: tag("Code").unwrap_or_default().to_owned(),
            message: said(tag("Message").unwrap_or_default()),
            details: said(tag("AuthenticationErrorDetail").or_else(|| tag("Details")).unwrap_or_default()),
            listing: false,
            skew: theirs.zip(ours).map(|(theirs, ours)| ours.and_utc() - theirs.to_utc()),
        }
    }

    fn may_pass(&self) -> bool {
        matches!(self.status, 200 | 408 | 429 | 500 | 502..=504)
            || matches!(
                self.code.as_str(),
                "SlowDown" | "RequestTimeout" | "InternalError" | "OperationAborted"
            )
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answers {}", self.status)?;
        for part in [&self.code, &self.message].into_iter().filter(|part| !part.is_empty()) {
            write!(f, ", {part}")?;
        }
        Ok(())
    }
}

impl Error for Answer {}

/// The first line: Azure adds the request's id and time on others.
fn said(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().trim_end_matches('.').to_owned()
}

pub(super) fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once(end).map(|(within, _)| within)
}

/// The answer that `e` is about, if one came: its status, and what it says.
pub(super) fn answer(e: &object_store::Error) -> Option<(u16, String)> {
    Answer::of(e).map(|answer| (answer.status, answer.to_string()))
}

/// The last cause: the others are about the client.
pub(super) fn deepest(e: &(dyn Error + 'static)) -> String {
    let mut last = e;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// Whether another attempt may get another answer.
pub(super) fn may_pass(e: &object_store::Error) -> bool {
    matches!(e, object_store::Error::Generic { .. }) && Answer::of(e).is_none_or(|answer| answer.may_pass())
}

impl ObjectStore {
    /// The error of `operation` on `key`, in our words.
    pub(super) fn fault(
        &self,
        operation: &'static str,
        key: &StoreKey,
        e: object_store::Error,
    ) -> StoreError {
        use object_store::Error as E;
        if let Some(answer) = Answer::of(&e)
            && let Some(said) = self.answered(operation, &key.to_string(), answer)
        {
            return said;
        }
        let name = || key.to_string();
        match e {
            E::NotFound { .. } => StoreError::NotFound { key: key.clone() },
            E::AlreadyExists { .. } => StoreError::AlreadyExists { key: key.clone() },
            E::PermissionDenied { source, .. } | E::Unauthenticated { source, .. } => {
                StoreError::PermissionDenied { operation, key: name(), source }
            }
            E::Generic { source, .. } => retryable(operation, key, unanswered(source)),
            e => StoreError::other(operation, key, e),
        }
    }

    /// The same for writes: what they miss is the bucket, not the key.
    pub(super) fn write_fault(
        &self,
        operation: &'static str,
        key: &StoreKey,
        e: object_store::Error,
    ) -> StoreError {
        match self.fault(operation, key, e) {
            StoreError::NotFound { .. } => self.no_bucket(),
            e => e,
        }
    }

    /// The same for listings.
    pub(super) fn list_fault(&self, prefix: Option<&StoreKey>, e: object_store::Error) -> StoreError {
        if let Some(prefix) = prefix {
            return self.write_fault("list", prefix, e);
        }
        if let Some(answer) = Answer::of(&e)
            && let Some(said) = self.answered("list", &self.url, answer)
        {
            return said;
        }
        match e {
            object_store::Error::NotFound { .. } => self.no_bucket(),
            object_store::Error::Unauthenticated { source, .. } => {
                StoreError::PermissionDenied { operation: "list", key: self.url.clone(), source }
            }
            e => StoreError::Other {
                operation: "list",
                key: self.url.clone(),
                retryable: may_pass(&e),
                source: unanswered(e.into()),
            },
        }
    }

    fn no_bucket(&self) -> StoreError {
        StoreError::NotAStore {
            message: format!(
                "`{}` is not there: make the {}, or correct the URL",
                self.url,
                self.cloud.place()
            ),
        }
    }

    /// What a refused call of our own means, and whether another one may be answered differently.
    pub(super) fn refusal(
        &self,
        operation: &'static str,
        key: &str,
        status: u16,
        body: &str,
    ) -> (Refusal, bool) {
        let answer = Answer::parse(&format!("{status:03}: {body}"));
        let (code, may_pass) = (answer.code.clone(), answer.may_pass());
        let about_locks = code == "ObjectLockConfigurationNotFoundError"
            || answer.message.to_ascii_lowercase().replace(' ', "").contains("objectlockconfiguration");
        let other = |source: BoxError| StoreError::Other {
            operation,
            key: key.to_owned(),
            retryable: may_pass,
            source,
        };
        let error = match (status, code.as_str()) {
            (404, "NoSuchKey" | "") => match StoreKey::new(key) {
                Ok(key) => StoreError::NotFound { key },
                Err(e) => other(e.into()),
            },
            (400, _) if about_locks => other(
                Advice::new(
                    "the bucket has no Object Lock",
                    "turn it on with the versions that it needs, `aws s3api put-object-lock-configuration --bucket … \
                     --object-lock-configuration ObjectLockEnabled=Enabled`, or take `object_lock` out of the store's options",
                )
                .with_source(answer)
                .into(),
            ),
            (404 | 405 | 501, _) => other(
                Advice::new(
                    "the server cannot do that",
                    "take what asks for it, `object_lock` for example, out of the options of the store",
                )
                .with_source(answer)
                .into(),
            ),
            _ => self.answered(operation, key, answer).unwrap_or_else(|| {
                other(format!("the server answers {status}, {code}").into())
            }),
        };
        (Refusal { code, error }, may_pass)
    }

    /// The error of a call of our own that could not even be sent.
    pub(super) fn call_fault(
        &self,
        operation: &'static str,
        key: &str,
        e: object_store::Error,
    ) -> StoreError {
        if let Some(answer) = Answer::of(&e)
            && let Some(said) = self.answered(operation, key, answer)
        {
            return said;
        }
        let (key, retryable) = (key.to_owned(), may_pass(&e));
        match e {
            object_store::Error::Unauthenticated { source, .. } => {
                StoreError::PermissionDenied { operation, key, source }
            }
            e => StoreError::Other { operation, key, retryable, source: unanswered(e.into()) },
        }
    }

    /// `None` for what the client understood by itself.
    fn answered(&self, operation: &'static str, key: &str, mut answer: Answer) -> Option<StoreError> {
        let details = std::mem::take(&mut answer.details);
        let denied =
            |source: BoxError| StoreError::PermissionDenied { operation, key: key.to_owned(), source };
        let other = |retryable, source: BoxError| StoreError::Other {
            operation,
            key: key.to_owned(),
            retryable,
            source,
        };
        let advised = |message: String, help: &str, answer| -> BoxError {
            Advice::new(message, help).with_source(answer).into()
        };
        let keys = self.cloud.credentials();
        Some(match (answer.status, answer.code.as_str()) {
            (_, "NoSuchBucket" | "ContainerNotFound") => self.no_bucket(),
            (_, "NoSuchUpload") => other(
                false,
                advised(
                    "the upload was aborted by somebody else".to_owned(),
                    "let the lifecycle rule of the bucket wait longer before it aborts uploads (7 days)",
                    answer,
                ),
            ),
            // Sent several times already.
            (400, code) if ALTERED.contains(&code) => other(
                false,
                advised(
                    "the bytes do not arrive as they are sent".to_owned(),
                    "look at what alters them: a proxy, the network, the memory of either host",
                    answer,
                ),
            ),
            (400, "InvalidRequest") if answer.message.contains("Object Lock parameters") => other(
                false,
                advised(
                    "the bucket locks what is written to it".to_owned(),
                    "put `object_lock = \"bucket\"` into the options of the store",
                    answer,
                ),
            ),
            (403, "InvalidObjectState") => other(
                false,
                advised(
                    "it lies in an archive, and cannot be read until it was brought back".to_owned(),
                    "`backup thaw SERVICE/INTERVAL/TIMESTAMP` asks for it, and tells how far it is",
                    answer,
                ),
            ),
            (404 | 409 | 412 | 304, _) => return None,
            (507, _) | (_, "XMinioStorageFull") => {
                StoreError::NoSpace { operation, key: key.to_owned(), source: answer.into() }
            }
            (_, "RequestTimeTooSkewed") => {
                let wrong = match answer.skew {
                    Some(skew) => {
                        let way = if skew > chrono::TimeDelta::zero() { "fast" } else { "slow" };
                        format!("the clock of this host is {} minutes {way}", skew.num_minutes().abs())
                    }
                    None => "the clock of this host is wrong by more than 15 minutes".to_owned(),
                };
                other(
                    false,
                    advised(
                        wrong,
                        "set the clock, and let NTP keep it: `timedatectl status` shows both",
                        answer,
                    ),
                )
            }
            (403, code)
                if self.cloud == Cloud::Azure
                    && (code == "AuthenticationFailed"
                        || answer.message.contains("failed to authenticate")) =>
            {
                // The key is right, but not now: of a SAS, or by the clock of this host.
                let what = match details.contains("time frame") || details.contains("date header") {
                    true => "the SAS has expired or is not valid yet, or the clock of this host is wrong",
                    false => "the server does not accept the key or the SAS",
                };
                denied(advised(what.to_owned(), keys, answer))
            }
            (401, _) if self.cloud != Cloud::S3 => {
                denied(advised("the server does not accept the credentials".to_owned(), keys, answer))
            }
            (_, "InvalidAccessKeyId") => {
                denied(advised("the server does not know this access key".to_owned(), keys, answer))
            }
            (_, "SignatureDoesNotMatch") => {
                denied(advised("the secret key does not belong to the access key".to_owned(), keys, answer))
            }
            (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => denied(advised(
                "the session token has expired, or is not valid any more".to_owned(),
                "put a new `session_token`, with the keys that came with it, where the old ones are, or use a role, \
                     whose keys are renewed",
                answer,
            )),
            (_, "AuthorizationHeaderMalformed" | "PermanentRedirect") => other(
                false,
                advised(
                    "the bucket is in another region".to_owned(),
                    "set `region` in the options of the store to that of the bucket",
                    answer,
                ),
            ),
            (501, _) | (_, "NotImplemented") => other(
                false,
                advised(
                    "the server cannot do that".to_owned(),
                    "use a server that knows conditional puts (`If-None-Match: *`); if one process at a time writes to the store, \
                     its option `single_writer = \"true\"` does without",
                    answer,
                ),
            ),
            (401 | 403, _) | (_, "AccessDenied") => {
                // AWS and Google name what is missing where it is not what the call is called by: a key of KMS, above all.
                let theirs = between(&answer.message, "not authorized to perform: ", " ")
                    .or_else(|| between(&details, "does not have ", " access"))
                    .filter(|name| !name.contains(char::is_whitespace));
                let ours = self.cloud.permission(if answer.listing { "list" } else { operation });
                let missing = theirs.unwrap_or(ours).to_owned();
                let help = self.cloud.grant(&self.url, &missing);
                denied(advised(format!("the permission `{missing}` is missing"), &help, answer))
            }
            _ => other(answer.may_pass(), answer.into()),
        })
    }
}

/// Where nobody answered, the client's words are about its own retries: what the network said is enough.
pub(super) fn unanswered(source: BoxError) -> BoxError {
    let mut chain = vec![source.to_string()];
    let mut next = source.source();
    while let Some(e) = next {
        chain.push(e.to_string());
        next = e.source();
    }
    let sent = chain.iter().any(|text| text.contains("error sending request"));
    match chain.pop().filter(|_| sent && !chain.is_empty()) {
        Some(deepest) => {
            tracing::debug!(error = %backup_core::chain(source.as_ref()), "No answer.");
            format!("the server does not answer: {deepest}").into()
        }
        None => source,
    }
}

pub(super) fn retryable(operation: &'static str, key: &StoreKey, source: BoxError) -> StoreError {
    StoreError::Other { operation, key: key.to_string(), retryable: true, source }
}

#[cfg(test)]
mod tests {
    use backup_core::{Store as _, chain};

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_in_a_few_words() {
        let options = [
            ("endpoint", "http://127.0.0.1:1"),
            ("allow_http", "true"),
            ("access_key_id", "a"),
            ("secret_access_key", "b"),
            ("retry_for", "1s"),
        ];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let store = ObjectStore::from_url("s3://bucket/host", &options).unwrap();
        let key = StoreKey::new("store.json").unwrap();
        let said = chain(&store.read(&key).await.err().unwrap());
        assert!(said.contains("does not answer: ") && said.contains("refused"), "{said}");
        assert!(!said.contains("retries"), "{said}");
    }
}
