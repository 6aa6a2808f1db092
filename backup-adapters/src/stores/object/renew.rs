//! Keys that are lent for a time, by a role of an instance, a container or a web identity: new ones are fetched when the
//! server says that the old ones have expired.
//!
//! The client fetches new ones only by the time that they came with, which a clock that is wrong, or somebody who withdrew
//! them, makes useless. It signs a request once, also if it then tries it several times: so requests are looked at, and
//! signed anew, where they leave.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredential, AwsCredentialProvider,
};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use tokio::sync::RwLock;

use super::again::Again;

/// The client of `builder`.
pub(super) struct Built {
    pub(super) s3: AmazonS3,
    /// Makes others with the same keys.
    pub(super) like: AmazonS3Builder,
    /// Makes what calls of our own are sent by.
    pub(super) connector: Box<dyn HttpConnector>,
}

/// The client of `builder`; if its keys are lent, with those that renew them.
pub(super) fn build(builder: AmazonS3Builder) -> object_store::Result<Built> {
    use AmazonS3ConfigKey as Key;
    let own = [Key::AccessKeyId, Key::SecretAccessKey].iter().any(|k| builder.get_config_value(k).is_some());
    let unsigned = builder.get_config_value(&Key::SkipSignature).is_some_and(|skip| skip != "false");
    if own || unsigned {
        // Who needs no keys still gets what would ask for some, with other options.
        let again = if own { Again::shared } else { Again::new };
        let like = builder.with_http_connector(again(ReqwestConnector::default()));
        let connector = Box::new(ReqwestConnector::default());
        return Ok(Built { s3: like.clone().build()?, like, connector });
    }
    let current = RwLock::new(Arc::clone(builder.clone().build()?.credentials()));
    let keys = Arc::new(Keys { lender: builder.clone(), current });
    let connector = Again::shared(Renewing(Arc::clone(&keys)));
    let like = builder.with_credentials(Arc::clone(&keys) as _).with_http_connector(connector);
    Ok(Built { s3: like.clone().build()?, like, connector: Box::new(Renewing(keys)) })
}

/// Lent keys.
struct Keys {
    /// Asks for keys without knowing of those that it once got.
    lender: AmazonS3Builder,
    current: RwLock<AwsCredentialProvider>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

#[async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let current = Arc::clone(&*self.current.read().await);
        current.get_credential().await
    }
}

impl Keys {
    /// Others than those with the session token `expired`, if there are any: of several requests that meet the end of the
    /// same keys, the first one fetches new ones.
    async fn others(&self, expired: &str) -> object_store::Result<Option<Arc<AwsCredential>>> {
        let is_other = |keys: &AwsCredential| keys.token.as_deref() != Some(expired);
        let mut current = self.current.write().await;
        let known = current.get_credential().await?;
        if is_other(&known) {
            return Ok(Some(known));
        }
        let lender = Arc::clone(self.lender.clone().build()?.credentials());
        let lent = lender.get_credential().await?;
        if !is_other(&lent) {
            return Ok(None);
        }
        *current = lender;
        Ok(Some(lent))
    }

    /// `request`, signed with other keys; `None` if there are none.
    async fn sign(&self, mut request: HttpRequest) -> Option<HttpRequest> {
        let header = |name: &str| request.headers().get(name)?.to_str().ok();
        let (expired, digest) = (header(TOKEN)?, header(DIGEST)?);
        // AWS4-HMAC-SHA256 Credential=<id>/<date>/<region>/<service>/aws4_request, SignedHeaders=…
        let scope = header("authorization")?.split_once("Credential=")?.1.split(',').next()?;
        let mut parts = scope.rsplit('/').skip(1).map(str::to_owned);
        let (service, region) = (parts.next()?, parts.next()?);
        let digest = digest.to_owned();
        let keys = match self.others(expired).await {
            Ok(keys) => keys?,
            Err(error) => {
                tracing::warn!(%error, "The keys have expired, and no others could be fetched.");
                return None;
            }
        };
        tracing::debug!("The keys have expired: going on with others.");
        // `None` for a body that is not signed.
        let known = hex::decode(&digest).ok();
        // The digest stands for the body also where that is not signed.
        let authorizer =
            AwsAuthorizer::new(&keys, &service, &region).with_sign_payload(digest != UNSIGNED_PAYLOAD);
        authorizer.try_authorize(&mut request, known.as_deref()).ok()?;
        Some(request)
    }
}

const TOKEN: &str = "x-amz-security-token";
const DIGEST: &str = "x-amz-content-sha256";
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// Makes clients that sign anew what was signed with keys that have expired.
#[derive(Debug)]
struct Renewing(Arc<Keys>);

impl HttpConnector for Renewing {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Requests { client, keys: Arc::clone(&self.0) }))
    }
}

#[derive(Debug)]
struct Requests {
    client: HttpClient,
    keys: Arc<Keys>,
}

#[async_trait]
impl HttpService for Requests {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Bodies are shared, not copied. An answer to HEAD has no body that could say why.
        let (again, silent) = (request.clone(), request.method().as_str() == "HEAD");
        let answer = self.client.execute(request).await?;
        if !matches!(answer.status().as_u16(), 400 | 403) {
            return Ok(answer);
        }
        let bad = answer.status().as_u16() == 400;
        let (head, body) = answer.into_parts();
        let text = body.bytes().await?;
        let said = String::from_utf8_lossy(&text).contains("<Code>ExpiredToken</Code>");
        if (said || bad && silent)
            && let Some(again) = self.keys.sign(again).await
        {
            return self.client.execute(again).await;
        }
        Ok(HttpResponse::from_parts(head, text.into()))
    }
}
