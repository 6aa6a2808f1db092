//! Keys that are lent for a time, by a role of an instance, a container or a web identity: new ones are fetched when the
//! server says that the old ones have expired.
//!
//! The client fetches new ones only by the time that they came with, which a clock that is wrong, or somebody who withdrew
//! them, makes useless. It signs a request once, also if it then tries it several times: so requests are looked at, and
//! signed anew, where they leave.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{Advice, chain};
use object_store::CredentialProvider;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredential, AwsCredentialProvider,
};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use tokio::sync::RwLock;
use tokio::time::timeout;

use super::again::Again;
use super::fault;

/// How long the first keys are waited for: who lends none mostly does not answer either, and would be asked for minutes.
const FIRST: Duration = Duration::from_secs(10);

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
    let (whose, had) = (Whose::of(&builder), AtomicBool::new(false));
    let keys = Arc::new(Keys { lender: builder.clone(), whose, current, had });
    let connector = Again::shared(Renewing(Arc::clone(&keys)));
    let like = builder.with_credentials(Arc::clone(&keys) as _).with_http_connector(connector);
    Ok(Built { s3: like.clone().build()?, like, connector: Box::new(Renewing(keys)) })
}

/// Lent keys.
struct Keys {
    /// Asks for keys without knowing of those that it once got.
    lender: AmazonS3Builder,
    whose: Whose,
    current: RwLock<AwsCredentialProvider>,
    /// There were some.
    had: AtomicBool,
}

/// Whose role it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    WebIdentity,
    Container,
    Instance,
}

impl Whose {
    /// As the client goes by it.
    fn of(builder: &AmazonS3Builder) -> Self {
        use AmazonS3ConfigKey as Key;
        let has = |keys: &[Key]| keys.iter().all(|key| builder.get_config_value(key).is_some());
        if has(&[Key::WebIdentityTokenFile, Key::RoleArn]) {
            return Self::WebIdentity;
        }
        let full = [Key::ContainerCredentialsFullUri, Key::ContainerAuthorizationTokenFile];
        match has(&[Key::ContainerCredentialsRelativeUri]) || has(&full) {
            true => Self::Container,
            false => Self::Instance,
        }
    }

    /// The error if it lends no keys. `None`: nobody answers in time. What the lender answers is not the store's answer.
    fn lends_none(self, e: Option<&object_store::Error>) -> object_store::Error {
        let (lender, help) = match self {
            Self::WebIdentity => {
                ("STS", "compare AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN with whom the role trusts")
            }
            Self::Container => {
                ("what lends them to containers", "compare AWS's variables of this container with its role")
            }
            Self::Instance => (
                "the metadata service of the instance",
                "put `access_key_id` and `secret_access_key` into the options of the store or AWS's variables, or give the \
                 instance a role; in a container its metadata service needs a hop limit of 2",
            ),
        };
        let why = match e.map(|e| (fault::answer(e), e)) {
            None => format!("{lender} does not answer"),
            Some((Some((404, _)), _)) if self == Self::Instance => "the instance has no role".to_owned(),
            Some((Some((_, said)), _)) => said.replacen("the server", lender, 1),
            Some((None, e)) if chain(e).contains("error sending request") => {
                format!("{lender} does not answer: {}", fault::deepest(e))
            }
            Some((None, e)) => fault::deepest(e),
        };
        let source = Advice::new(format!("there are no keys: {why}"), help).into();
        object_store::Error::Unauthenticated { path: lender.to_owned(), source }
    }
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
        let lent = match self.had.load(Ordering::Relaxed) {
            true => current.get_credential().await,
            false => match timeout(FIRST, current.get_credential()).await {
                Ok(lent) => lent,
                Err(_) => return Err(self.whose.lends_none(None)),
            },
        };
        if let Err(error) = &lent {
            tracing::debug!(%error, "No keys are lent.");
        }
        let keys = lent.map_err(|e| self.whose.lends_none(Some(&e)))?;
        self.had.store(true, Ordering::Relaxed);
        Ok(keys)
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
