//! Work on the file systems of this host that adapters share.

use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind};

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "work on files stopped unexpectedly").with_source(e)
    })?
}

/// The error for what was tried with `path`: "cannot read `/a/b`".
#[cfg(any(feature = "redis", feature = "postgres", feature = "weaviate", feature = "neo4j"))]
pub(crate) fn failed(what: &str, path: &Path) -> impl Fn(std::io::Error) -> AdapterError + use<> {
    let message = format!("cannot {what} `{}`", path.display());
    move |e| AdapterError::io(message.clone(), e)
}

/// The nearest directory at or above `path` that exists.
pub(crate) fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}
