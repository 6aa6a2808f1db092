//! The bucket of the module `backup-s3`: which one it is says the server, how this host reaches it the configuration and
//! the environment of the server's container.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, ConfigError, OpContext, Secret};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::files::Bucket;
use crate::runtime::{DockerRuntime, ServiceSecret};

/// The module that writes into a bucket.
pub(super) const MODULE: &str = "backup-s3";

/// Where the module looks for the bucket unless it is told.
const AMAZON: &str = "amazonaws.com";
const REGION: &str = "us-east-1";

/// How long a request and all attempts of it may take.
const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(120);
const ATTEMPTS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// How this host reaches the bucket that the server keeps its backups in. Which bucket that is, the server tells; what
/// is not set is taken from the environment of its container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// Where the storage answers: `https://host:9000`. For a server that calls it by a name that this host does not know.
    pub endpoint: Option<Url>,
    /// The region; that of the server's container, or `us-east-1`, unless set.
    pub region: Option<String>,
    /// The id of an access key that may list, read and delete. Without keys the role of this machine is used.
    pub access_key: Option<ServiceSecret>,
    /// Its secret.
    pub secret_key: Option<ServiceSecret>,
}

impl S3Config {
    /// What can be said without a look at the server.
    pub(super) fn check(self, base: &std::path::Path, container: bool) -> Result<Self, ConfigError> {
        if let Some(url) = &self.endpoint
            && (!matches!(url.scheme(), "http" | "https")
                || url.host_str().is_none()
                || !url.username().is_empty()
                || url.password().is_some()
                || url.query().is_some()
                || url.fragment().is_some()
                || url.path() != "/")
        {
            // Not repeated: it may hold a password.
            return Err(ConfigError::new("the endpoint is no address of a storage").at("s3.endpoint").hint(
                "write `https://host` or `http://host:9000`, and the keys as `access_key` and `secret_key`",
            ));
        }
        if self.access_key.is_some() != self.secret_key.is_some() {
            return Err(ConfigError::new("one key is set without the other")
                .at("s3")
                .hint("set `access_key` and `secret_key`, or none of them"));
        }
        for (key, at) in [(&self.access_key, "s3.access_key"), (&self.secret_key, "s3.secret_key")] {
            if key.as_ref().is_some_and(ServiceSecret::in_container) && !container {
                return Err(ConfigError::new("a key in a container needs `container`").at(at));
            }
        }
        let at_base = |key: Option<ServiceSecret>| key.map(|key| key.relative_to(base));
        Ok(Self { access_key: at_base(self.access_key), secret_key: at_base(self.secret_key), ..self })
    }
}

/// What the server says of the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Host, and a port if it is not the usual one, as the server sees it.
    endpoint: String,
    bucket: String,
    path: String,
    tls: bool,
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bucket `{}`", self.bucket)
    }
}

impl Module {
    /// From the module's part of `/v1/meta`.
    pub(super) fn parse(meta: &Value) -> Option<Self> {
        let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
        let bucket = text("bucketName");
        (!bucket.is_empty()).then(|| Self {
            endpoint: text("endpoint"),
            path: text("rootName"),
            tls: meta["useSSL"].as_bool().unwrap_or(true),
            bucket,
        })
    }

    fn is_amazon(&self) -> bool {
        let host = self.endpoint.split(':').next().unwrap_or_default();
        host.is_empty() || host == AMAZON || host.ends_with(&format!(".{AMAZON}"))
    }

    /// Makes no contact to the bucket.
    ///
    /// # Errors
    /// Those of the keys; `Unsupported` for a path that begins with `/`.
    pub(super) async fn open(
        &self,
        cx: &OpContext,
        config: &S3Config,
        container: Option<&DockerRuntime>,
    ) -> Result<Bucket, AdapterError> {
        // Such a name begins with the slash, which not every storage tells from one without it.
        if self.path.starts_with('/') {
            let what =
                format!("BACKUP_S3_PATH of the server is `{}`: write it without the leading `/`", self.path);
            return Err(AdapterError::unsupported(what));
        }
        let root = Path::parse(&self.path).map_err(|e| {
            AdapterError::unsupported(format!("BACKUP_S3_PATH of the server is `{}`", self.path))
                .with_source(e)
        })?;
        let region = match &config.region {
            Some(region) => region.clone(),
            None => variable(cx, container, &["AWS_REGION", "AWS_DEFAULT_REGION"])
                .await?
                .map_or(REGION.to_owned(), |v| v.expose().to_owned()),
        };
        let (keys, token) = match (&config.access_key, &config.secret_key) {
            (Some(id), Some(secret)) => {
                let resolve = async |key: &ServiceSecret| Box::pin(key.resolve(cx, container)).await;
                (Some((resolve(id).await?, resolve(secret).await?)), None)
            }
            _ => {
                let id = variable(cx, container, &["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"]).await?;
                let secret = variable(cx, container, &["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"]).await?;
                (id.zip(secret), variable(cx, container, &["AWS_SESSION_TOKEN"]).await?)
            }
        };
        let endpoint = match &config.endpoint {
            Some(url) => Some(url.as_str().trim_end_matches('/').to_owned()),
            None if self.is_amazon() => None,
            None => Some(self.reachable(cx, container).await?),
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region(region)
            // Single requests are what every storage knows, and there are few files.
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: ATTEMPTS - 1,
                retry_timeout: PATIENCE,
            });
        let mut client = ClientOptions::new().with_connect_timeout(CONNECT).with_timeout(REQUEST);
        if let Some(url) = &endpoint {
            builder = builder.with_endpoint(url);
            client = client.with_allow_http(url.starts_with("http:"));
        }
        let mut secrets = Vec::new();
        if let Some((id, secret)) = keys {
            builder = builder.with_access_key_id(id.expose()).with_secret_access_key(secret.expose());
            secrets.extend([id, secret]);
            if let Some(token) = token {
                builder = builder.with_token(token.expose());
                secrets.push(token);
            }
        }
        let name = format!("{self} at `{}`", endpoint.as_deref().unwrap_or(AMAZON));
        let store = builder.with_client_options(client).build().map_err(|_| {
            // The cause may show the keys.
            AdapterError::new(AdapterErrorKind::InvalidConfig, format!("{name} cannot be used: look at `s3`"))
        })?;
        Ok(Bucket::new(Arc::new(store), root, name, secrets))
    }

    /// The storage's address for this host. Servers in containers call a neighbour by its name, which only they know.
    async fn reachable(
        &self,
        cx: &OpContext,
        container: Option<&DockerRuntime>,
    ) -> Result<String, AdapterError> {
        let (host, port) = self.endpoint.rsplit_once(':').unwrap_or((&self.endpoint, "80"));
        let neighbour = !self.tls && container.is_some() && !host.contains(['.', ':']) && host != "localhost";
        if let (true, Ok(port)) = (neighbour, port.parse::<u16>()) {
            for name in [host.to_owned(), format!("com.docker.compose.service={host}")] {
                if let Ok(address) = cx.within(DockerRuntime::new(name).endpoint(port)).await? {
                    return Ok(format!("http://{address}"));
                }
            }
        }
        Ok(format!("{}://{}", if self.tls { "https" } else { "http" }, self.endpoint))
    }
}

/// The first of these variables of the container that says something.
async fn variable(
    cx: &OpContext,
    container: Option<&DockerRuntime>,
    names: &[&str],
) -> Result<Option<Secret>, AdapterError> {
    let Some(docker) = container else { return Ok(None) };
    for name in names {
        let found = cx.within(docker.env(name)).await??;
        if let Some(value) = found.filter(|v| !v.expose().is_empty()) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_says_is_understood() {
        let parse = |meta: Value| Module::parse(&meta).unwrap();
        let own =
            parse(json!({ "endpoint": "minio:9000", "bucketName": "b", "rootName": "a/b", "useSSL": false }));
        assert_eq!((own.path.as_str(), own.tls, own.is_amazon()), ("a/b", false, false));
        let amazon = parse(json!({ "endpoint": "s3.amazonaws.com", "bucketName": "b", "useSSL": true }));
        assert!(amazon.is_amazon() && amazon.path.is_empty());
        assert!(
            parse(json!({ "endpoint": "s3.eu-west-1.amazonaws.com:443", "bucketName": "b" })).is_amazon()
        );
        assert!(!parse(json!({ "endpoint": "notamazonaws.com", "bucketName": "b" })).is_amazon());
        assert_eq!(Module::parse(&json!({})), None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let check = |text: &str, container| {
            let config: S3Config = toml::from_str(text).unwrap();
            config.check("/etc".as_ref(), container).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(check("endpoint = 'http://minio:9000'\nregion = 'x'", false), Ok(()));
        assert_eq!(check("access_key = { env = 'A' }\nsecret_key = { file = 'b' }", false), Ok(()));
        assert_eq!(check("access_key = { container_env = 'A' }\nsecret_key = { file = 'b' }", true), Ok(()));
        for (wrong, says) in [
            ("endpoint = 'ftp://h'", "s3.endpoint"),
            ("endpoint = 'http://u:hunter2@h'", "s3.endpoint"),
            ("endpoint = 'http://h/bucket'", "s3.endpoint"),
            ("access_key = { env = 'A' }", "without the other"),
            ("access_key = { container_env = 'A' }\nsecret_key = { file = 'b' }", "needs `container`"),
        ] {
            let e = check(wrong, false).unwrap_err();
            assert!(e.contains(says) && !e.contains("hunter2"), "{wrong}: {e}");
        }
        assert!(toml::from_str::<S3Config>("bucket = 'x'").is_err());
        assert!(toml::from_str::<S3Config>("secret_key = 'hunter2'").is_err());
    }
}
