//! Uploads that a killed process began: invisible, but paid for.
//!
//! Procedure: [ListMultipartUploads], page by page, of the whole bucket: MinIO lists none below a prefix, and there are
//! never many.
//!
//! [ListMultipartUploads]: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html

use std::time::Duration;

use backup_core::{StoreError, StoreKey};
use chrono::{DateTime, TimeDelta, Utc};
use http::Method;
use object_store::path::Path;
use serde::Deserialize;

use super::ObjectStore;
use super::api::{Answered, Api, Call, Refusal, value};

/// A bucket with more unfinished uploads than a hundred pages needs its lifecycle rule.
const PAGES: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default)]
    upload: Vec<Upload>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: DateTime<Utc>,
}

impl ObjectStore {
    /// Aborts the uploads below `prefix` that were begun at least `untouched` ago. Who may not list them, or asks a server
    /// that does not, leaves them to the bucket's rules.
    pub(super) async fn abort_abandoned(
        &self,
        api: &Api,
        prefix: &StoreKey,
        untouched: Duration,
    ) -> Result<(), StoreError> {
        let mut query = "uploads".to_owned();
        for _ in 0..PAGES {
            let call = Call { operation: "list the uploads of", query: &query, ..Call::default() };
            let answered = match self.call(api, call).await {
                Ok(answered) => answered,
                Err(Refusal { error: error @ StoreError::Other { retryable: true, .. }, .. }) => {
                    return Err(error);
                }
                Err(Refusal { error, .. }) => {
                    tracing::debug!(%error, "Uploads cannot be listed: the rules of the bucket may end them.");
                    return Ok(());
                }
            };
            let now = said_at(&answered);
            let page: Page = match quick_xml::de::from_str(&answered.body) {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!(%error, "The list of uploads cannot be read.");
                    return Ok(());
                }
            };
            for upload in &page.upload {
                self.abort_if_old(api, prefix, upload, now, untouched).await?;
            }
            if !page.is_truncated || page.next_key_marker.is_empty() {
                return Ok(());
            }
            let (key, id) = (value(&page.next_key_marker), value(&page.next_upload_id_marker));
            query = format!("key-marker={key}&upload-id-marker={id}&uploads");
        }
        Ok(())
    }

    async fn abort_if_old(
        &self,
        api: &Api,
        prefix: &StoreKey,
        upload: &Upload,
        now: Option<DateTime<Utc>>,
        untouched: Duration,
    ) -> Result<(), StoreError> {
        let key = Path::parse(&upload.key).ok().and_then(|path| self.key(&path, Some(prefix)));
        let age = TimeDelta::from_std(untouched).unwrap_or(TimeDelta::MAX);
        // By a server that tells no time nothing is old.
        let is_old = untouched.is_zero() || now.is_some_and(|now| now - upload.initiated >= age);
        let Some(key) = key.filter(|_| is_old) else { return Ok(()) };
        let query = format!("uploadId={}", value(&upload.upload_id));
        let operation = "abort the write of";
        let call =
            Call { operation, method: Method::DELETE, key: Some(&key), query: &query, ..Call::default() };
        match self.call(api, call).await {
            Ok(_) => Ok(()),
            // Somebody else was faster.
            Err(refused) if refused.code == "NoSuchUpload" => Ok(()),
            Err(refused) => Err(refused.error),
        }
    }
}

/// The server's clock, by which uploads are dated.
fn said_at(answered: &Answered) -> Option<DateTime<Utc>> {
    let date = answered.headers.get(http::header::DATE).and_then(|date| date.to_str().ok());
    date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()).map(|date| date.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_uploads_is_read() {
        let text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Bucket>b</Bucket><KeyMarker></KeyMarker><NextKeyMarker>a/b&amp;c</NextKeyMarker>\
            <NextUploadIdMarker>7</NextUploadIdMarker><MaxUploads>1</MaxUploads><IsTruncated>true</IsTruncated>\
            <Upload><Key>a/b&amp;c</Key><UploadId>7</UploadId><Initiator><ID>i</ID></Initiator>\
            <StorageClass>STANDARD</StorageClass><Initiated>2026-03-09T04:38:20.000Z</Initiated></Upload>\
            <CommonPrefixes/></ListMultipartUploadsResult>";
        let page: Page = quick_xml::de::from_str(text).unwrap();
        assert!(page.is_truncated && page.upload.len() == 1 && page.next_key_marker == "a/b&c");
        assert_eq!((page.upload[0].key.as_str(), page.upload[0].upload_id.as_str()), ("a/b&c", "7"));
        let none: Page = quick_xml::de::from_str("<ListMultipartUploadsResult/>").unwrap();
        assert!(!none.is_truncated && none.upload.is_empty());
    }
}
