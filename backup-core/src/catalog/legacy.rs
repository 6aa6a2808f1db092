//! Directories of the scripts that this program replaces: one data file each, and a metadata.json of seven fields, or none.

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use serde::Serialize;

use super::{Catalog, Fact, METADATA, RESTORE_MD, RUN, SHA256SUMS, TOMBSTONE};
use crate::error::BackupError;
use crate::id::BackupId;

/// What is in such a directory. All of it was written by others: to be shown, not to be believed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LegacyDir {
    /// Its files, less metadata.json, by name.
    pub files: Vec<LegacyFile>,
    /// `status` of metadata.json.
    pub status: Option<String>,
    /// `host` of metadata.json.
    pub host: Option<String>,
    /// `size_bytes` of metadata.json.
    pub size_bytes: Option<u64>,
    /// `backed_up_at` of metadata.json.
    pub backed_up_at: Option<DateTime<Utc>>,
    /// It holds files that only this program writes: no work of the scripts, but remains of a backup of ours.
    pub ours: bool,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LegacyFile {
    /// Its name in the directory, with `/` if it lies deeper.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Catalog {
    /// What is in a directory that is listed as `legacy`.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn legacy(&self, id: &BackupId) -> Result<LegacyDir, BackupError> {
        let prefix = id.dir();
        let listed: Vec<_> = self
            .store()
            .list(Some(&prefix))
            .try_collect()
            .await
            .map_err(|e| BackupError::store(format!("list {id}"), e))?;
        let mut dir = LegacyDir::default();
        let mut has_metadata = false;
        for object in listed {
            let Some(name) = object.key.below(&prefix) else { continue };
            match name {
                METADATA => has_metadata = true,
                RUN | TOMBSTONE | SHA256SUMS | RESTORE_MD => dir.ours = true,
                // A person's word, e.g. that it is held.
                name if Fact::parse(name).is_some() => {}
                name => dir.files.push(LegacyFile { name: name.to_owned(), bytes: object.bytes }),
            }
        }
        dir.files.sort_by(|a, b| a.name.cmp(&b.name));
        if has_metadata {
            dir.read(&self.read_file(id, METADATA).await?);
        }
        Ok(dir)
    }
}

impl LegacyDir {
    /// Takes what is readable of a metadata.json, field by field.
    fn read(&mut self, text: &[u8]) {
        let Ok(fields) = serde_json::from_slice::<serde_json::Map<_, _>>(text) else { return };
        let text = |key: &str| fields.get(key).and_then(serde_json::Value::as_str);
        // Shown on one line.
        let line = |key: &str| text(key).map(|t| t.chars().filter(|c| !c.is_control()).take(200).collect());
        self.status = line("status");
        self.host = line("host");
        self.size_bytes = fields.get("size_bytes").and_then(serde_json::Value::as_u64);
        self.backed_up_at = text("backed_up_at").and_then(|t| t.parse().ok());
        self.ours |= fields.contains_key("format_version");
    }
}
