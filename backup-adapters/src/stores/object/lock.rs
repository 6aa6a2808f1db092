//! Object Lock of S3: what is locked, nobody deletes or replaces before its time, whoever has the keys.
//!
//! Procedures: [PutObjectRetention] and [GetObjectRetention]. A lock is put on an object after it was written, so that
//! uploads are the same with and without; what is between the two is as unlocked as it was before.
//!
//! [PutObjectRetention]: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObjectRetention.html
//! [GetObjectRetention]: https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectRetention.html

use std::collections::BTreeMap;
use std::time::Duration;

use backup_core::{ConfigError, ObjectLock, StoreError, StoreKey};
use chrono::{DateTime, SecondsFormat, Utc};
use http::Method;

use super::ObjectStore;
use super::api::{Api, Call};
use super::cloud::Cloud;
use super::fault::between;

/// Who locks, and how firmly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Who has `s3:BypassGovernanceRetention` may still delete.
    Governance(Duration),
    /// Nobody may.
    Compliance(Duration),
    /// The bucket has a default retention.
    Bucket,
}

impl Lock {
    /// From the options of a store.
    pub(super) fn take(
        options: &mut BTreeMap<String, String>,
        cloud: Cloud,
    ) -> Result<Option<Self>, ConfigError> {
        let wrong = |key: &str, hint: &str| {
            Err(ConfigError::new(format!("the option `{key}` of the store is wrong")).hint(hint))
        };
        let (mode, time) = (options.remove("object_lock"), options.remove("object_lock_for"));
        if cloud != Cloud::S3 && (mode.is_some() || time.is_some()) {
            return wrong(
                "object_lock",
                "only S3 has it; let a policy of the container or bucket keep what is there",
            );
        }
        let time = match time.as_deref().map(humantime::parse_duration) {
            None => None,
            Some(Ok(time)) if time >= Duration::from_secs(60) => Some(time),
            Some(_) => return wrong("object_lock_for", "write a time of at least a minute, such as \"30d\""),
        };
        Ok(Some(match (mode.as_deref(), time) {
            (None, None) => return Ok(None),
            (Some("governance"), Some(time)) => Self::Governance(time),
            (Some("compliance"), Some(time)) => Self::Compliance(time),
            (Some("bucket"), None) => Self::Bucket,
            (Some("governance" | "compliance"), None) => {
                return wrong("object_lock", "say for how long: object_lock_for = \"30d\"");
            }
            (Some("bucket"), Some(_)) => {
                return wrong(
                    "object_lock_for",
                    "with object_lock = \"bucket\", the bucket's default retention says it",
                );
            }
            _ => return wrong("object_lock", "it is \"governance\", \"compliance\" or \"bucket\""),
        }))
    }

    pub(super) fn told(self) -> ObjectLock {
        match self {
            Self::Governance(time) | Self::Compliance(time) => ObjectLock::For(time),
            Self::Bucket => ObjectLock::OfTheStore,
        }
    }
}

impl ObjectStore {
    pub(super) async fn lock_object(
        &self,
        key: &StoreKey,
        until: Option<DateTime<Utc>>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        let Some(api) = &self.api else {
            return Err(StoreError::other("lock", key, "this store cannot lock what it holds"));
        };
        let Some(until) = until else { return self.locked_until(api, key).await };
        let mode = match self.lock {
            Some(Lock::Compliance(_)) => "COMPLIANCE",
            _ => "GOVERNANCE",
        };
        let date = until.to_rfc3339_opts(SecondsFormat::Secs, true);
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{mode}</Mode>\
             <RetainUntilDate>{date}</RetainUntilDate></Retention>"
        );
        let call = Call {
            operation: "lock",
            method: Method::PUT,
            key: Some(key),
            query: "retention",
            body,
            ..Call::default()
        };
        match self.call(api, call).await {
            Ok(_) => Ok(Some(until)),
            // One that lasts longer is not made shorter, which servers refuse in different words.
            Err(refused) if !is_passing(&refused.error) => match self.locked_until(api, key).await {
                Ok(Some(there)) if there >= until => Ok(Some(there)),
                _ => Err(refused.error),
            },
            Err(refused) => Err(refused.error),
        }
    }

    async fn locked_until(&self, api: &Api, key: &StoreKey) -> Result<Option<DateTime<Utc>>, StoreError> {
        let (operation, query) = ("look up the lock of", "retention");
        let call = Call { operation, key: Some(key), query, ..Call::default() };
        match self.call(api, call).await {
            Ok(found) => {
                let date = between(&found.body, "<RetainUntilDate>", "</RetainUntilDate>");
                let date = date.and_then(|date| DateTime::parse_from_rfc3339(date).ok());
                Ok(date.map(|date| date.to_utc()))
            }
            Err(refused) if refused.code == "NoSuchObjectLockConfiguration" => Ok(None),
            Err(refused) => Err(refused.error),
        }
    }
}

fn is_passing(e: &StoreError) -> bool {
    matches!(e, StoreError::Other { retryable: true, .. })
}
