//! Objects in S3's archives: Glacier Flexible Retrieval, Deep Archive, and the archive tiers of Intelligent-Tiering.
//!
//! Procedures: [HeadObject] tells where an object is and whether it is on its way, [RestoreObject] asks for it.
//!
//! [HeadObject]: https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
//! [RestoreObject]: https://docs.aws.amazon.com/AmazonS3/latest/API/API_RestoreObject.html

use backup_core::{Readiness, StoreError, StoreKey, Thaw, ThawSpeed};
use http::Method;

use super::ObjectStore;
use super::api::{Answered, Api, Call};

impl ObjectStore {
    pub(super) async fn thaw_object(
        &self,
        api: &Api,
        key: &StoreKey,
        ask: Option<Thaw>,
    ) -> Result<Readiness, StoreError> {
        let call = Call { operation: "look up", method: Method::HEAD, key: Some(key), ..Call::default() };
        let there = self.call(api, call).await.map_err(|refused| refused.error)?;
        let header = |name: &str| header(&there, name);
        // Of Intelligent-Tiering, what was brought back stays.
        let tiered = !header("x-amz-archive-status").is_empty();
        let archived = tiered || matches!(header("x-amz-storage-class"), "GLACIER" | "DEEP_ARCHIVE");
        let restore = header("x-amz-restore");
        match ask {
            _ if restore.contains("ongoing-request=\"true\"") => Ok(Readiness::Underway),
            _ if !archived || restore.contains("ongoing-request=\"false\"") => Ok(Readiness::Now),
            None => Ok(Readiness::Archived),
            Some(ask) => self.ask_for(api, key, ask, tiered).await,
        }
    }

    async fn ask_for(
        &self,
        api: &Api,
        key: &StoreKey,
        Thaw { days, speed }: Thaw,
        tiered: bool,
    ) -> Result<Readiness, StoreError> {
        let tier = match speed {
            ThawSpeed::Expedited => "Expedited",
            ThawSpeed::Standard => "Standard",
            ThawSpeed::Bulk => "Bulk",
        };
        let days = if tiered { String::new() } else { format!("<Days>{days}</Days>") };
        let body = format!(
            "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{days}\
             <GlacierJobParameters><Tier>{tier}</Tier></GlacierJobParameters></RestoreRequest>"
        );
        let call = Call {
            operation: "thaw",
            method: Method::POST,
            key: Some(key),
            query: "restore",
            body,
            ..Call::default()
        };
        match self.call(api, call).await {
            Ok(_) => Ok(Readiness::Underway),
            Err(refused) if refused.code == "RestoreAlreadyInProgress" => Ok(Readiness::Underway),
            Err(refused) => Err(refused.error),
        }
    }
}

fn header<'a>(answered: &'a Answered, name: &str) -> &'a str {
    answered.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
