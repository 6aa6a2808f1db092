//! What differs between the kinds of object storage: the client, and the words that its users know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backup_core::ConfigError;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientConfigKey, ObjectStore as Backend, RetryConfig};

use super::api::Api;
use super::renew::{self, Built};

/// How long one request may take: a part of 16 MiB, of which four are on their way, over a line of 3 Mbit/s. That of the
/// client is 30 s, in which a slow line does not take a part.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(180);

/// The clients of one store.
pub(super) struct Clients {
    pub(super) inner: Arc<dyn Backend>,
    /// The same, which tries nothing again.
    pub(super) once: Arc<dyn Backend>,
    /// Of S3: what those cannot do, and what makes others with the same keys.
    pub(super) more: Option<(Api, AmazonS3Builder)>,
}

/// Lets each object and each part have its SHA-256 as a checksum, too: without one, a bucket with a default retention takes
/// nothing ([PutObject][put]). It is the one that is signed, so that nothing more is hashed. Only where that may be: a
/// server that is not AWS's may refuse what it does not know.
///
/// [put]: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
fn summed(builder: AmazonS3Builder, locks: bool) -> AmazonS3Builder {
    let told = |key| builder.get_config_value(&key).is_some_and(|value| value != "false");
    let other = told(AmazonS3ConfigKey::Endpoint) || told(AmazonS3ConfigKey::S3Endpoint);
    let named = told(AmazonS3ConfigKey::Checksum) || told(AmazonS3ConfigKey::UnsignedPayload);
    match named || (other && !locks) {
        true => builder,
        false => builder.with_checksum_algorithm(Checksum::SHA256),
    }
}

/// Whose protocol it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cloud {
    S3,
    Azure,
    Google,
}

impl Cloud {
    pub(super) fn of(scheme: &str) -> Option<Self> {
        Some(match scheme {
            "s3" => Self::S3,
            "az" => Self::Azure,
            "gs" => Self::Google,
            _ => return None,
        })
    }

    /// What holds the objects.
    pub(super) fn place(self) -> &'static str {
        if self == Self::Azure { "container" } else { "bucket" }
    }

    /// The clients for `place`, with the options of the store; of S3, `locks` if what is written may be locked at once.
    pub(super) fn clients(
        self,
        place: &str,
        options: &BTreeMap<String, String>,
        locks: bool,
        retry: RetryConfig,
        unusable: &dyn Fn(&str) -> ConfigError,
    ) -> Result<Clients, ConfigError> {
        let patience = format!("{}s", REQUEST_TIMEOUT.as_secs());
        let cannot = |e: object_store::Error| unusable(&format!("cannot be used: {e}"));
        let named = options.iter().map(|(key, value)| (self.spelled(key), value));
        let never = RetryConfig { max_retries: 0, ..retry.clone() };
        let (inner, once): (Arc<dyn Backend>, Arc<dyn Backend>) = match self {
            Self::S3 => {
                let mut builder = AmazonS3Builder::new()
                    .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), patience);
                for (key, value) in named {
                    builder = builder.with_config(key.parse().map_err(|_| self.unknown(&key))?, value);
                }
                let builder = summed(builder.with_bucket_name(place).with_retry(retry), locks);
                let Built { s3, like, connector } = renew::build(builder.clone()).map_err(cannot)?;
                let api = Api::new(&s3, &builder, options, REQUEST_TIMEOUT, connector.as_ref());
                let once = like.clone().with_retry(never).build().map_err(cannot)?;
                let more = api.map_err(cannot)?.map(|api| (api, like));
                return Ok(Clients { inner: Arc::new(s3), once: Arc::new(once), more });
            }
            Self::Azure => {
                let mut builder = MicrosoftAzureBuilder::new()
                    .with_config(AzureConfigKey::Client(ClientConfigKey::Timeout), patience);
                for (key, value) in named {
                    builder = builder.with_config(key.parse().map_err(|_| self.unknown(&key))?, value);
                }
                if builder.get_config_value(&AzureConfigKey::AccountName).is_none() {
                    return Err(unusable("cannot be used: the storage account is not named")
                        .hint("put `account` into the options of the store, or set AZURE_STORAGE_ACCOUNT"));
                }
                let builder = builder.with_container_name(place);
                let client = |retry| builder.clone().with_retry(retry).build().map_err(cannot);
                (Arc::new(client(retry)?), Arc::new(client(never)?))
            }
            Self::Google => {
                let mut builder = GoogleCloudStorageBuilder::new()
                    .with_config(GoogleConfigKey::Client(ClientConfigKey::Timeout), patience);
                for (key, value) in named {
                    builder = builder.with_config(key.parse().map_err(|_| self.unknown(&key))?, value);
                }
                let builder = builder.with_bucket_name(place);
                // What it says of a key that is none may be a piece of it.
                let unread = |_| {
                    unusable("cannot be used: its credentials cannot be read").hint(
                        "`service_account` is the path of a key file, `service_account_key` the text of one (JSON)",
                    )
                };
                let client = |retry| builder.clone().with_retry(retry).build().map_err(unread);
                (Arc::new(client(retry)?), Arc::new(client(never)?))
            }
        };
        Ok(Clients { inner, once, more: None })
    }

    /// The client's name of an option.
    pub(super) fn spelled(self, key: &str) -> String {
        let key = key.to_ascii_lowercase();
        match (self, key.as_str()) {
            (Self::Azure, "account") => "account_name".to_owned(),
            (Self::Azure, "key") => "account_key".to_owned(),
            (Self::Azure, "sas") => "sas_token".to_owned(),
            (Self::Google, "endpoint") => "base_url".to_owned(),
            _ => key,
        }
    }

    pub(super) fn unknown(self, key: &str) -> ConfigError {
        ConfigError::new(format!("unknown option `{key}` of the store")).hint(match self {
            Self::S3 => {
                "there are `region`, `endpoint`, `access_key_id`, `secret_access_key`, `allow_http` and others of S3"
            }
            Self::Azure => {
                "there are `account`, `account_key`, `sas_token`, `client_id`, `client_secret`, `tenant_id`, `endpoint` and \
                 others of Azure"
            }
            Self::Google => "there are `service_account`, `service_account_key`, `endpoint` and others of Google",
        })
    }

    /// Classes in which nothing can be read at once.
    pub(super) fn is_offline(self, class: &str) -> bool {
        match self {
            Self::S3 => matches!(class, "GLACIER" | "DEEP_ARCHIVE"),
            Self::Azure => class.eq_ignore_ascii_case("archive"),
            // Its class ARCHIVE answers at once.
            Self::Google => false,
        }
    }

    pub(super) fn online_classes(self) -> &'static str {
        match self {
            Self::S3 => {
                "verify and restore read at once: STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING and GLACIER_IR allow it"
            }
            _ => "verify and restore read at once: Hot, Cool and Cold allow it",
        }
    }

    /// The permission that an operation needs.
    pub(super) fn permission(self, operation: &str) -> &'static str {
        let [read, list, delete, abort, write] = match self {
            Self::S3 => [
                "s3:GetObject",
                "s3:ListBucket",
                "s3:DeleteObject",
                "s3:AbortMultipartUpload",
                "s3:PutObject",
            ],
            // Those of a SAS, which are those of the roles in other words.
            Self::Azure => ["read", "list", "delete", "write", "write"],
            Self::Google => [
                "storage.objects.get",
                "storage.objects.list",
                "storage.objects.delete",
                "storage.multipartUploads.abort",
                "storage.objects.create",
            ],
        };
        match operation {
            "lock" => "s3:PutObjectRetention",
            "thaw" => "s3:RestoreObject",
            "look up the lock of" => "s3:GetObjectRetention",
            "list the uploads of" => "s3:ListBucketMultipartUploads",
            "read" | "look up" => read,
            "list" => list,
            "delete" => delete,
            "abort the write of" => abort,
            _ => write,
        }
    }

    /// How to give `permission` on the store at `url`.
    pub(super) fn grant(self, url: &str, permission: &str) -> String {
        let place = url.split_once("://").map_or(url, |(_, place)| place);
        let bucket = place.split('/').next().unwrap_or(place);
        match self {
            Self::S3 => {
                let resource = match permission {
                    "s3:ListBucket" | "s3:ListBucketMultipartUploads" => format!("arn:aws:s3:::{bucket}"),
                    other if other.starts_with("s3:") => format!("arn:aws:s3:::{place}/*"),
                    // Which key it is, only the server knows.
                    _ => "*".to_owned(),
                };
                let quoted = |text: &str| format!("\"{}\"", text.escape_default());
                let (permission, resource) = (quoted(permission), quoted(&resource));
                format!(
                    r#"add to the policy: {{"Effect":"Allow","Action":{permission},"Resource":{resource}}}"#
                )
            }
            Self::Azure => format!(
                "give the identity the role `Storage Blob Data Contributor` on the container `{bucket}`, or make a SAS with the \
                 permissions racwdl; a firewall of the account answers the same"
            ),
            Self::Google => format!(
                "give the service account the role `roles/storage.objectAdmin` on the bucket `{bucket}`: gcloud storage buckets \
                 add-iam-policy-binding gs://{bucket} --member=serviceAccount:… --role=roles/storage.objectAdmin"
            ),
        }
    }

    /// What to do about credentials that are not accepted.
    pub(super) fn credentials(self) -> &'static str {
        match self {
            Self::S3 => {
                "correct `access_key_id`, `secret_access_key` and `session_token` in the options of the store, or where it takes \
                 them from"
            }
            Self::Azure => {
                "correct `account`, `account_key` or `sas_token` in the options of the store, or where it takes them from"
            }
            Self::Google => {
                "correct `service_account` or `service_account_key` in the options of the store, or where it takes them from"
            }
        }
    }
}
