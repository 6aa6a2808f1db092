//! Calls of S3 that `object_store` does not make: locks, unfinished uploads, archives, and parts with a wrong sum. Signed and
//! sent by its own parts, so that credentials, time-outs and proxies are the same.

use std::collections::BTreeMap;
use std::time::Duration;

use backup_core::{StoreError, StoreKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpConnector, HttpErrorKind, HttpRequest, HttpRequestBody};
use object_store::{ClientConfigKey, ClientOptions};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::ObjectStore;

/// What a signature leaves as it is in a path (AWS's "create a canonical request").
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The same in a value of a query.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The pause before another attempt.
const PAUSE: Duration = Duration::from_millis(500);

/// A bucket, and what its calls are signed with.
pub(super) struct Api {
    client: HttpClient,
    credentials: AwsCredentialProvider,
    /// Anonymous calls are not signed.
    signed: bool,
    region: String,
    /// Without a slash at its end.
    bucket: String,
}

/// One call: a GET of the bucket itself, without a body, unless it says otherwise.
#[derive(Default)]
pub(super) struct Call<'a> {
    /// In the words of an error.
    pub(super) operation: &'static str,
    pub(super) method: Method,
    /// `None`: the bucket itself.
    pub(super) key: Option<&'a StoreKey>,
    /// Encoded, without the question mark.
    pub(super) query: &'a str,
    /// XML, but for parts of uploads.
    pub(super) body: String,
    /// Such a sum of the body, in base64: it goes with that instead of a signature.
    pub(super) crc64nvme: Option<&'a str>,
}

/// What came back, other than success.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) error: StoreError,
}

/// An answer that is one.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) headers: http::HeaderMap,
    pub(super) body: String,
}

impl Api {
    /// The calls of `s3`, which `builder` became with `options`; `connector` makes clients like its own. `None` for directory buckets, which have sessions.
    pub(super) fn new(
        s3: &AmazonS3,
        builder: &AmazonS3Builder,
        options: &BTreeMap<String, String>,
        patience: Duration,
        connector: &dyn HttpConnector,
    ) -> object_store::Result<Option<Self>> {
        let told = |key| builder.get_config_value(&key);
        let is = |key| told(key).is_some_and(|value| value == "true");
        if is(AmazonS3ConfigKey::S3Express) {
            return Ok(None);
        }
        let mut client = ClientOptions::new().with_timeout(patience);
        for (key, value) in options {
            if let Ok(AmazonS3ConfigKey::Client(key)) = key.to_ascii_lowercase().parse() {
                client = client.with_config(key, value);
            }
        }
        let region = told(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
        let name = told(AmazonS3ConfigKey::Bucket).unwrap_or_default();
        let endpoint = told(AmazonS3ConfigKey::S3Endpoint).or_else(|| told(AmazonS3ConfigKey::Endpoint));
        let virtual_host = is(AmazonS3ConfigKey::VirtualHostedStyleRequest);
        // As `object_store` has it: an endpoint of virtual hosts is that of the bucket.
        let bucket = match (endpoint.map(|e| e.trim_end_matches('/').to_owned()), virtual_host) {
            (Some(endpoint), true) => endpoint,
            (Some(endpoint), false) => format!("{endpoint}/{name}"),
            (None, true) => format!("https://{name}.s3.{region}.amazonaws.com"),
            (None, false) => format!("https://s3.{region}.amazonaws.com/{name}"),
        };
        if bucket.starts_with("http://") {
            client = client.with_config(ClientConfigKey::AllowHttp, "true");
        }
        Ok(Some(Self {
            client: connector.connect(&client)?,
            credentials: std::sync::Arc::clone(s3.credentials()),
            signed: !is(AmazonS3ConfigKey::SkipSignature),
            region,
            bucket,
        }))
    }

    async fn request(&self, path: &str, call: &Call<'_>) -> object_store::Result<HttpRequest> {
        let generic = |source: backup_core::BoxError| object_store::Error::Generic { store: "S3", source };
        let mut url = format!("{}/{}", self.bucket, utf8_percent_encode(path, PLAIN));
        if !call.query.is_empty() {
            url = format!("{url}?{}", call.query);
        }
        let mut request = Request::builder().method(call.method.clone()).uri(url);
        if let Some(sum) = call.crc64nvme {
            request = request.header("x-amz-checksum-crc64nvme", sum);
        } else if !call.body.is_empty() {
            // S3 insists on a sum of what changes locks.
            let sum = STANDARD.encode(Sha256::digest(&call.body));
            request = request.header("x-amz-checksum-sha256", sum).header("content-type", "application/xml");
        }
        let body = HttpRequestBody::from(call.body.clone());
        let mut request = request.body(body).map_err(|e| generic(e.into()))?;
        if self.signed {
            let credential = self.credentials.get_credential().await?;
            let authorizer = AwsAuthorizer::new(&credential, "s3", &self.region);
            authorizer.with_sign_payload(call.crc64nvme.is_none()).try_authorize(&mut request, None)?;
        }
        Ok(request)
    }
}

impl ObjectStore {
    /// Makes a call, and again for as long as another answer may come. All of them may be made twice.
    pub(super) async fn call(&self, api: &Api, call: Call<'_>) -> Result<Answered, Refusal> {
        let path = match call.key.map(|key| self.path(call.operation, key)).transpose() {
            Ok(path) => path,
            Err(error) => return Err(Refusal { code: String::new(), error }),
        };
        let path = path.as_ref().map_or("", |path| path.as_ref());
        let shown = call.key.map_or_else(|| self.url.clone(), ToString::to_string);
        let until = Instant::now() + self.retry_for;
        loop {
            let refused = |error| Refusal { code: String::new(), error };
            // Anew each time: its signature holds for some minutes only.
            let request = match api.request(path, &call).await {
                Ok(request) => request,
                Err(e) => return Err(refused(self.call_fault(call.operation, &shown, e))),
            };
            let (refusal, may_pass) = match api.client.execute(request).await {
                Ok(answer) => {
                    let (parts, body) = answer.into_parts();
                    match body.collect().await {
                        Ok(body) => {
                            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
                            if parts.status.is_success() {
                                return Ok(Answered { headers: parts.headers, body });
                            }
                            self.refusal(call.operation, &shown, parts.status.as_u16(), &body)
                        }
                        Err(e) => (refused(unanswered(&call, &shown, e.into())), true),
                    }
                }
                Err(e) => {
                    let may_pass = !matches!(e.kind(), HttpErrorKind::Decode);
                    (refused(unanswered(&call, &shown, e.into())), may_pass)
                }
            };
            if !may_pass || Instant::now() >= until {
                return Err(refusal);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn unanswered(call: &Call<'_>, key: &str, source: backup_core::BoxError) -> StoreError {
    let source = super::fault::unanswered(source);
    StoreError::Other { operation: call.operation, key: key.to_owned(), retryable: true, source }
}

/// A value as a query has it.
pub(super) fn value(text: &str) -> String {
    utf8_percent_encode(text, VALUE).to_string()
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}
