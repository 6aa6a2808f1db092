//! From a URL, or from parts, to a store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{ConfigError, StoreCapabilities};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore as Backend, RetryConfig};
use url::Url;

use super::ObjectStore;
use super::cloud::{Clients, Cloud};
use super::create::LONGEST_PAUSE;
use super::lock::Lock;
use super::marks::Marks;
use super::sums::{Checksums, Sums};

/// How long requests are tried again, unless the options say it.
const RETRY_FOR: Duration = Duration::from_secs(180);

impl ObjectStore {
    /// Opens the store that `url` names: `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`, or `memory://`,
    /// which is empty and new at each call.
    ///
    /// For S3, `options` are those of `object_store`'s client: `region`, `endpoint`, `access_key_id`,
    /// `secret_access_key`, `session_token`, `allow_http`, `virtual_hosted_style_request`, `timeout`,
    /// `server_side_encryption` (`AES256` or `aws:kms`) with `sse_kms_key_id`, and others. For Azure: `account`,
    /// `account_key` or `sas_token`, `client_id` with `client_secret` and `tenant_id`, `endpoint`. For Google:
    /// `service_account` (a key file) or `service_account_key` (its text), `endpoint`. Besides, for each:
    ///
    /// * `single_writer = "true"`: the server does not know conditional puts, and one process at a time writes to the store.
    ///   Then [`StoreCapabilities::exclusive_create`] is false.
    /// * `retry_for`: how long a request is tried again (3 minutes).
    /// * `storage_class`: the class of artifacts, `"STANDARD_IA"`, or by interval, `"STANDARD_IA, monthly=GLACIER_IR"`; what
    ///   is read often stays in the usual one.
    /// * `tags` (S3, Azure): of artifacts, `"Project=x, Kind=backup"`.
    /// * `object_lock` (S3): `governance` or `compliance`, with `object_lock_for`, a time: what is committed becomes locked;
    ///   `bucket`: the bucket's default retention does it, and for how long is looked up.
    /// * `checksum` (S3): what proves that the parts of large uploads arrive as they were sent: `crc64nvme`, `sha256`, which is
    ///   signed and costs more, or `auto` (unless set), the first where the server was seen to compare it, else the second.
    ///
    /// Without keys the instance's role is asked (for Google first the application default credentials, which its client
    /// looks for in the home directory). Nothing else is taken from the environment, and no connection is made.
    ///
    /// # Errors
    /// [`ConfigError`] that says what is wrong with the URL, or names the option.
    pub fn from_url(url: &str, options: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let bad = |what: &str| {
            ConfigError::new(format!("`{url}` {what}")).hint(
                "write `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`, or `memory://`",
            )
        };
        let parsed = Url::parse(url).map_err(|e| bad(&format!("is not a URL: {e}")))?;
        let extras = !parsed.username().is_empty()
            || parsed.password().is_some()
            || parsed.port().is_some()
            || parsed.query().is_some()
            || parsed.fragment().is_some();
        if extras {
            // Not repeated: it may be a secret.
            return Err(ConfigError::new("a store's URL has no user, password, port, query or fragment")
                .hint("put the endpoint and the keys into the store's options"));
        }
        let prefix = Path::from_url_path(parsed.path()).map_err(|e| bad(&format!("is not usable: {e}")))?;
        match (parsed.scheme(), parsed.host_str().filter(|h| !h.is_empty())) {
            ("memory", None) => match options.keys().next() {
                Some(key) => Err(Cloud::S3.unknown(key)),
                None => {
                    let memory = Arc::new(InMemory::new());
                    Ok(Self::from_parts(memory, None, prefix.as_ref(), "memory://".to_owned())?
                        .with_capabilities(StoreCapabilities::full().with_durable(false)))
                }
            },
            ("memory", Some(_)) => Err(bad("names a host: write `memory:///prefix`")),
            (scheme, host) if let Some(cloud) = Cloud::of(scheme) => {
                let Some(place) = host else { return Err(bad(&format!("names no {}", cloud.place()))) };
                let mut options = options.clone();
                let own = Own::take(&mut options, cloud)?;
                let locks = own.lock.is_some();
                let Clients { inner, once, more } =
                    cloud.clients(place, &options, locks, own.retry(), &bad)?;
                let (api, builder) = more.unzip();
                if builder.is_none() && own.checksums == Checksums::Crc64Nvme {
                    let what =
                        "the option `checksum` of the store cannot be kept: directory buckets are not tried";
                    return Err(ConfigError::new(what).hint("take it out: payloads are then signed"));
                }
                let shown = url.trim_end_matches('/').to_owned();
                let store = Self::from_parts(inner, Some(once), prefix.as_ref(), shown)?;
                Ok(Self {
                    cloud,
                    capabilities: StoreCapabilities::full().with_exclusive_create(!own.single_writer),
                    retry_for: own.retry_for,
                    marks: own.marks,
                    lock: own.lock,
                    api: api.map(Arc::new),
                    sums: builder.and_then(|builder| Sums::new(own.checksums, builder)).map(Arc::new),
                    ..store
                })
            }
            (scheme, _) => Err(bad(&format!("cannot be opened: no store speaks `{scheme}`"))),
        }
    }

    /// A store over a client of your own, below `prefix` (may be empty); `url` is what is shown.
    ///
    /// `once` is the same storage through a client that never retries; without it, `inner` must not retry conditional
    /// puts, or a lost acknowledgement looks like a lost race. This signature follows the versions of `object_store`.
    ///
    /// # Errors
    /// [`ConfigError`] for a prefix that is no path.
    pub fn from_parts(
        inner: Arc<dyn Backend>,
        once: Option<Arc<dyn Backend>>,
        prefix: &str,
        url: String,
    ) -> Result<Self, ConfigError> {
        let prefix = Path::parse(prefix)
            .map_err(|e| ConfigError::new(format!("`{prefix}` is not a usable prefix: {e}")))?;
        let once = once.unwrap_or_else(|| Arc::clone(&inner));
        Ok(Self {
            inner,
            once,
            prefix,
            url,
            cloud: Cloud::S3,
            capabilities: StoreCapabilities::full(),
            retry_for: RETRY_FOR,
            marks: Marks::default(),
            lock: None,
            api: None,
            sums: None,
        })
    }

    /// Says what the storage guarantees; [`StoreCapabilities::full`] unless set.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: StoreCapabilities) -> Self {
        self.capabilities = capabilities;
        self
    }
}

/// Options that the client does not know.
#[derive(Debug)]
struct Own {
    single_writer: bool,
    retry_for: Duration,
    marks: Marks,
    lock: Option<Lock>,
    checksums: Checksums,
}

impl Own {
    fn take(options: &mut BTreeMap<String, String>, cloud: Cloud) -> Result<Self, ConfigError> {
        let wrong = |key: &str, hint: &str| {
            ConfigError::new(format!("the option `{key}` of the store is wrong")).hint(hint)
        };
        let single_writer = match options.remove("single_writer").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(wrong("single_writer", "it is \"true\" or \"false\"")),
        };
        let retry_for = match options.remove("retry_for") {
            None => RETRY_FOR,
            Some(text) => humantime::parse_duration(&text)
                .map_err(|_| wrong("retry_for", "write a time such as \"3min\""))?,
        };
        let marks = Marks::take(options, cloud)?;
        let lock = Lock::take(options, cloud)?;
        let checksums = Checksums::take(options, cloud)?;
        Ok(Self { single_writer, retry_for, marks, lock, checksums })
    }

    fn retry(&self) -> RetryConfig {
        let backoff = BackoffConfig { max_backoff: LONGEST_PAUSE, ..BackoffConfig::default() };
        RetryConfig { backoff, max_retries: usize::MAX, retry_timeout: self.retry_for }
    }
}

#[cfg(test)]
mod tests {
    use backup_core::{Store as _, StoreKey};

    use super::*;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[tokio::test]
    async fn an_s3_url_builds_without_a_network_and_keys_go_below_its_prefix() {
        let keys = options(&[
            ("region", "eu-west-1"),
            ("access_key_id", "AKIAEXAMPLE"),
            ("secret_access_key", "hunter2"),
            ("timeout", "20s"),
        ]);
        let store = ObjectStore::from_url("s3://bucket/some/pre%20fix/", &keys).unwrap();
        assert_eq!(store.to_string(), "s3://bucket/some/pre%20fix");
        assert!(store.capabilities().exclusive_create && store.capabilities().durable);
        // Kept as they are, also what a URL would encode.
        let key = StoreKey::new("redis/hourly/100 % #1.zst").unwrap();
        let path = store.path("read", &key).unwrap();
        assert_eq!(path.as_ref(), "some/pre fix/redis/hourly/100 % #1.zst");
        assert_eq!(store.key(&path, None), Some(key));
        assert!(!format!("{store:?}").contains("hunter2"));

        let top = ObjectStore::from_url("s3://bucket", &keys).unwrap();
        let key = StoreKey::new("store.json").unwrap();
        assert_eq!(top.path("read", &key).unwrap().as_ref(), "store.json");
    }

    #[test]
    fn what_cannot_be_opened_is_refused_by_name() {
        for (url, keys, says) in [
            ("s3://bucket/p", options(&[("regoin", "x")]), "`regoin`"),
            ("memory://", options(&[("region", "x")]), "`region`"),
            ("s3:///p", options(&[]), "names no bucket"),
            ("memory://p", options(&[]), "names a host"),
            ("gopher://x/y", options(&[]), "`gopher`"),
            ("nonsense", options(&[]), "is not a URL"),
            ("s3://user:hunter2@bucket/p", options(&[]), "no user"),
            ("s3://bucket/p", options(&[("conditional_put", "maybe")]), "cannot be used"),
            ("s3://bucket/p", options(&[("single_writer", "yes")]), "`single_writer`"),
            ("s3://bucket/p", options(&[("retry_for", "soon")]), "`retry_for`"),
            ("s3://bucket/p", options(&[("storage_class", "DEEP_ARCHIVE")]), "`storage_class`"),
            (
                "s3://bucket/p",
                options(&[("storage_class", "STANDARD, monthly=DEEP_ARCHIVE")]),
                "`storage_class`",
            ),
            ("s3://bucket/p", options(&[("storage_class", "A, B")]), "`storage_class`"),
            ("s3://bucket/p", options(&[("storage_class", "Not An Interval=B")]), "`storage_class`"),
            ("s3://bucket/p", options(&[("tags", "Project")]), "`tags`"),
            ("s3://bucket/p", options(&[("checksum", "md5")]), "`checksum`"),
            (
                "s3://bucket/p",
                options(&[("checksum", "auto"), ("checksum_algorithm", "sha256")]),
                "`checksum`",
            ),
            ("s3://bucket/p", options(&[("aws_unsigned_payload", "true")]), "`unsigned_payload`"),
            ("az://c/p", options(&[("account", "a"), ("checksum", "auto")]), "`checksum`"),
            (
                "s3://bucket--euw1-az1--x-s3/p",
                options(&[("s3_express", "true"), ("region", "eu-west-1"), ("checksum", "crc64nvme")]),
                "`checksum`",
            ),
            ("gs://b/p", options(&[("tags", "a=b")]), "`tags`"),
            ("s3://bucket/p", options(&[("object_lock", "yes"), ("object_lock_for", "1d")]), "`object_lock`"),
            ("s3://bucket/p", options(&[("object_lock", "governance")]), "`object_lock`"),
            ("s3://bucket/p", options(&[("object_lock_for", "1d")]), "`object_lock`"),
            (
                "s3://bucket/p",
                options(&[("object_lock", "compliance"), ("object_lock_for", "soon")]),
                "`object_lock_for`",
            ),
            ("az://c/p", options(&[("account", "a"), ("object_lock", "bucket")]), "`object_lock`"),
            ("az:///p", options(&[]), "names no container"),
            ("az://c/p", options(&[]), "account is not named"),
            ("az://c/p", options(&[("account", "a"), ("region", "x")]), "`region`"),
            ("az://c/p", options(&[("account", "a"), ("account_key", "hunter2!")]), "cannot be used"),
            ("az://c/p", options(&[("account", "a"), ("sas_token", "hunter2")]), "cannot be used"),
            ("az://c/p", options(&[("account", "a"), ("storage_class", "archive")]), "`storage_class`"),
            ("gs:///p", options(&[]), "names no bucket"),
            ("gs://b/p", options(&[("access_key_id", "x")]), "`access_key_id`"),
            ("gs://b/p", options(&[("service_account_key", "hunter2")]), "cannot be read"),
            (
                "gs://b/p",
                options(&[("service_account_key", "{\"private_key\": 7, \"hunter2\": 1}")]),
                "cannot be read",
            ),
            ("gs://b/p", options(&[("service_account", "/no/such/hunter2.json")]), "cannot be read"),
        ] {
            let e = ObjectStore::from_url(url, &keys).unwrap_err().to_string();
            assert!(e.contains(says) && !e.contains("hunter2"), "{url}: {e}");
        }
    }
}
