//! What tells the server that the parts of a large upload arrived as they were sent.
//!
//! A signed SHA-256 does, at the price of one more hash on both sides. A CRC-64/NVME that the server compares does for far
//! less, and is [what AWS's own clients send][aws]; but a server that does not know it takes anything. So each process tries
//! it before its first large upload: of two parts that differ in nothing but the sum, the wrong one must be refused and the
//! right one taken. Everything small is signed as a whole in any case, `metadata.json` with the SHA-256 of every file above all.
//!
//! Without TLS, a signed part cannot be replaced on its way. Who could do that can answer in the server's place as well, so
//! that a signature makes no upload more certain there: what is stored is compared with its SHA-256 at verifications and
//! restores, whatever way it came.
//!
//! [aws]: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html

use std::collections::BTreeMap;
use std::sync::Arc;

use backup_core::{Advice, ConfigError, StoreError, StoreKey};
use http::Method;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::multipart::MultipartStore as _;
use object_store::{ObjectStore as Backend, PutMultipartOptions};
use tokio::sync::OnceCell;

use super::ObjectStore;
use super::api::{Api, Call, value};
use super::cloud::Cloud;

/// The body of a part that is tried, its sum ([the check value of CRC-64/NVME][crc] in base64), and one that is wrong by a bit.
///
/// [crc]: https://reveng.sourceforge.io/crc-catalogue/all.htm#crc.cat.crc-64-nvme
const BODY: &str = "123456789";
const RIGHT: &str = "rosUhgp5mIg=";
const WRONG: &str = "rosUhgp5mIk=";

/// What the option `checksum` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksums {
    /// The CRC where the server compares it, else SHA-256.
    Auto,
    /// The CRC, or an error.
    Crc64Nvme,
    /// SHA-256, signed; also what the client's own options say.
    Sha256,
}

impl Checksums {
    /// From the options of a store.
    pub(super) fn take(options: &mut BTreeMap<String, String>, cloud: Cloud) -> Result<Self, ConfigError> {
        let wrong = |key: &str, hint: &str| {
            Err(ConfigError::new(format!("the option `{key}` of the store is wrong")).hint(hint))
        };
        let said = options.remove("checksum");
        if cloud != Cloud::S3 {
            return match said {
                Some(_) => wrong("checksum", "only S3 has it"),
                None => Ok(Self::Sha256),
            };
        }
        let is =
            |key: &str, of| key.to_ascii_lowercase().parse().is_ok_and(|key: AmazonS3ConfigKey| key == of);
        let named = |of| options.iter().any(|(key, value)| is(key, of) && value != "false");
        let (algorithm, unsigned) =
            (named(AmazonS3ConfigKey::Checksum), named(AmazonS3ConfigKey::UnsignedPayload));
        match said.as_deref() {
            Some(_) if algorithm || unsigned => {
                wrong("checksum", "take `checksum_algorithm` and `unsigned_payload` out, which it decides")
            }
            None if unsigned && !algorithm => wrong(
                "unsigned_payload",
                "nothing would tell that bytes were altered on their way: take it out, `checksum` decides",
            ),
            None if algorithm => Ok(Self::Sha256),
            None | Some("auto") => Ok(Self::Auto),
            Some("crc64nvme") => Ok(Self::Crc64Nvme),
            Some("sha256") => Ok(Self::Sha256),
            Some(_) => wrong("checksum", "it is \"auto\", \"crc64nvme\" or \"sha256\""),
        }
    }
}

/// The client whose parts have a CRC instead of a signed SHA-256, once the server was tried.
pub(super) struct Sums {
    required: bool,
    /// Makes clients with the same credentials.
    builder: AmazonS3Builder,
    /// `None` inside: the server does not compare.
    client: OnceCell<Option<Arc<AmazonS3>>>,
}

impl Sums {
    pub(super) fn new(checksums: Checksums, builder: AmazonS3Builder) -> Option<Self> {
        let required = checksums == Checksums::Crc64Nvme;
        (checksums != Checksums::Sha256).then(|| Self { required, builder, client: OnceCell::new() })
    }
}

impl ObjectStore {
    /// The client for an upload of `key` in parts.
    pub(super) async fn uploader(
        &self,
        key: &StoreKey,
        options: &PutMultipartOptions,
    ) -> Result<Arc<dyn Backend>, StoreError> {
        let (Some(sums), Some(api)) = (&self.sums, &self.api) else { return Ok(Arc::clone(&self.inner)) };
        match sums.client.get_or_try_init(|| self.try_sums(sums, api, key, options.clone())).await? {
            Some(client) => Ok(Arc::clone(client) as _),
            None if !sums.required => Ok(Arc::clone(&self.inner)),
            None => Err(StoreError::other(
                "write",
                key,
                Advice::new(
                    "the server does not compare the checksum (CRC-64/NVME) of what it gets",
                    "take `checksum` out of the options of the store: payloads are then signed",
                ),
            )),
        }
    }

    /// By an upload beside `key` that is aborted: nothing is ever to be seen of it.
    async fn try_sums(
        &self,
        sums: &Sums,
        api: &Api,
        key: &StoreKey,
        options: PutMultipartOptions,
    ) -> Result<Option<Arc<AmazonS3>>, StoreError> {
        let builder = sums.builder.clone().with_unsigned_payload(true);
        let client = builder.with_checksum_algorithm(Checksum::CRC64NVME).build();
        let client = client.map_err(|e| self.write_fault("write", key, e))?;
        let beside = StoreKey::new(format!("{key}.try")).map_err(|e| StoreError::other("write", key, e));
        let Some(beside) = or_refused(sums, beside)? else { return Ok(None) };
        let path = self.path("write", &beside)?;
        let begun = client.create_multipart_opts(&path, options).await;
        let Some(id) = or_refused(sums, begun.map_err(|e| self.write_fault("write", key, e)))? else {
            return Ok(None);
        };
        let (wrong, right) = tokio::join!(
            self.try_part(api, &beside, &id, 1, WRONG),
            self.try_part(api, &beside, &id, 2, RIGHT)
        );
        if let Err(error) = client.abort_multipart(&path, &id).await {
            // Like an upload of a process that was killed: invisible, and removed as that is.
            tracing::debug!(%error, "The upload that tried the server stays there.");
        }
        let taken = or_refused(sums, right)?.is_some();
        let compares = match wrong {
            // Refused, as it should be.
            Err(StoreError::Other { retryable: false, .. }) => taken,
            Err(e) => return Err(e),
            Ok(()) => false,
        };
        tracing::debug!(compares, "The server was tried with CRC-64/NVME.");
        Ok(compares.then(|| Arc::new(client)))
    }

    async fn try_part(
        &self,
        api: &Api,
        key: &StoreKey,
        id: &str,
        number: u8,
        sum: &str,
    ) -> Result<(), StoreError> {
        let query = format!("partNumber={number}&uploadId={}", value(id));
        let (method, key, body) = (Method::PUT, Some(key), BODY.to_owned());
        let call = Call { operation: "write", method, key, query: &query, body, crc64nvme: Some(sum) };
        self.call(api, call).await.map(drop).map_err(|refused| refused.error)
    }
}

/// `None` if the server refuses something that it may take without the CRC; other errors would be the same without.
fn or_refused<T>(sums: &Sums, answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Err(error @ StoreError::Other { retryable: false, .. }) if !sums.required => {
            tracing::debug!(%error, "The server takes no CRC-64/NVME.");
            Ok(None)
        }
        answer => answer.map(Some),
    }
}
