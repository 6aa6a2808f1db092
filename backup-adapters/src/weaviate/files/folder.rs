//! A backup folder at a path of this host.

mod closed;
mod pack;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{AdapterError, ByteStream, OpContext, keep_aside};

use self::closed::Closed;
use super::Files;
use crate::on_disk::{blocking, failed};

/// How often it is looked whether the server is done.
const TICK: Duration = Duration::from_millis(20);

/// The folder.
#[derive(Debug)]
pub(in crate::weaviate) struct Folder(pub(in crate::weaviate) PathBuf);

#[async_trait]
impl Files for Folder {
    async fn archive(&self, cx: &OpContext, id: &str) -> Result<ByteStream<AdapterError>, AdapterError> {
        Ok(pack::archive(cx.clone(), self.0.join(id), |_| Ok(())))
    }

    /// The server writes each piece of data once, into a file of its own: who has closed it, is done with it. What it writes
    /// anew is its descriptions, which are JSON.
    async fn follow(
        &self,
        cx: &OpContext,
        id: &str,
        over: &Arc<AtomicBool>,
    ) -> Option<ByteStream<AdapterError>> {
        let (folder, top) = (self.0.clone(), self.0.join(id));
        let watched = top.clone();
        let mut closed = match blocking(move || Closed::watch(&folder, &watched)).await {
            Ok(closed) => closed,
            // A host has a limit of watches: then it is read in the end, as everywhere else.
            Err(e) => {
                tracing::debug!(error = %e, "The server's files are read when it is done.");
                return None;
            }
        };
        let over = Arc::clone(over);
        let early = move |out: &mut pack::Out| {
            while !over.load(Ordering::Acquire) {
                out.check_wanted()?;
                for path in closed.wait(TICK)? {
                    if path.extension().is_none_or(|e| e != "json") && path.is_file() {
                        out.add(&path)?;
                    }
                }
            }
            Ok(())
        };
        Some(pack::archive(cx.clone(), top, early))
    }

    async fn read(&self, _cx: &OpContext, path: &str) -> Result<Vec<u8>, AdapterError> {
        let path = self.0.join(path);
        blocking(move || fs::read(&path).map_err(failed("read", &path))).await
    }

    async fn size(&self, id: &str) -> Option<u64> {
        let path = self.0.join(id);
        blocking(move || keep_aside::measure(&path).map_err(failed("measure", &path)))
            .await
            .ok()
            .map(|(bytes, _)| bytes)
    }

    async fn names(&self, _cx: &OpContext) -> Result<Vec<String>, AdapterError> {
        let folder = self.0.clone();
        blocking(move || {
            let unreadable = failed("list", &folder);
            let entries = match fs::read_dir(&folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries.map_err(&unreadable)?,
            };
            let mut names = Vec::new();
            for entry in entries {
                names.extend(entry.map_err(&unreadable)?.file_name().into_string().ok());
            }
            Ok(names)
        })
        .await
    }

    async fn remove(&self, id: &str) -> Result<(), AdapterError> {
        let path = self.0.join(id);
        blocking(move || keep_aside::remove(&path).map_err(failed("remove", &path))).await
    }
}
