//! Two answers to uploads that the client does not understand: bytes that were altered on their way are sent again, and a
//! store that is full is not asked for minutes whether it still is.

use std::error::Error;
use std::fmt;
use std::sync::OnceLock;

use async_trait::async_trait;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpService,
};

/// How often the same bytes are sent: what is altered each time is not so by chance.
const TIMES: usize = 4;

/// Makes clients that do so, over those of another connector.
#[derive(Debug)]
pub(super) struct Again<C> {
    connector: C,
    /// The one client, with its connections, of all that ask; they must mean the same options.
    one: Option<OnceLock<HttpClient>>,
}

impl<C: HttpConnector> Again<C> {
    pub(super) fn new(connector: C) -> Self {
        Self { connector, one: None }
    }

    /// One client for all: to make one takes as long as some requests.
    pub(super) fn shared(connector: C) -> Self {
        Self { connector, one: Some(OnceLock::new()) }
    }
}

impl<C: HttpConnector> HttpConnector for Again<C> {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        if let Some(client) = self.one.as_ref().and_then(OnceLock::get) {
            return Ok(client.clone());
        }
        let client = HttpClient::new(Requests(self.connector.connect(options)?));
        Ok(self.one.as_ref().map_or(client.clone(), |one| one.get_or_init(|| client).clone()))
    }
}

#[derive(Debug)]
struct Requests(HttpClient);

#[async_trait]
impl HttpService for Requests {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut sent = 0;
        loop {
            // Bodies are shared, not copied.
            let answer = self.0.execute(request.clone()).await?;
            sent += 1;
            let status = answer.status().as_u16();
            if !matches!(status, 400 | 507) {
                return Ok(answer);
            }
            let (head, body) = answer.into_parts();
            let text = body.bytes().await?;
            if status == 507 {
                let said = String::from_utf8_lossy(&text).into_owned();
                return Err(HttpError::new(HttpErrorKind::Unknown, Full(said)));
            }
            if sent == TIMES || !altered(&text) {
                return Ok(HttpResponse::from_parts(head, text.into()));
            }
            tracing::warn!(uri = %request.uri().path(), "The bytes arrived altered, and are sent again.");
        }
    }
}

fn altered(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    ALTERED.iter().any(|code| text.contains(&format!("<Code>{code}</Code>")))
}

/// What servers say when a sum does not fit the bytes: AWS, and MinIO for each of the two sums.
pub(super) const ALTERED: [&str; 3] =
    ["BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"];

/// The answer of a store that is full, in the words of the client's own errors, which are understood in one place.
#[derive(Debug)]
struct Full(String);

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server returned non-2xx status code: 507 Insufficient Storage: {}", self.0)
    }
}

impl Error for Full {}
