//! Records of restores, in the state directory: written whole or not at all.

use std::fs;
use std::path::Path;

use backup_core::{AdapterError, AdapterErrorKind, keep_aside};
use serde::Serialize;

use crate::on_disk::{blocking, failed};

pub(super) async fn write_record<T: Serialize + Sync>(path: &Path, value: &T) -> Result<(), AdapterError> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "cannot record the restore").with_source(e)
    })?;
    let path = path.to_owned();
    blocking(move || {
        use std::io::Write;
        use std::os::unix::fs::DirBuilderExt;
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
        let written = || {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
            keep_aside::sync_dir(dir)
        };
        written().map_err(failed("write", &path))
    })
    .await
}

pub(super) async fn read_record<T: serde::de::DeserializeOwned + Send + 'static>(
    path: &Path,
) -> Result<Option<T>, AdapterError> {
    let path = path.to_owned();
    blocking(move || match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
            AdapterError::corrupt(format!("`{}` is no record of a restore", path.display())).with_source(e)
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", &path)(e)),
    })
    .await
}
