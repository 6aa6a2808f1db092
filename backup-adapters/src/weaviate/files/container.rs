//! A backup folder in a volume that cannot be reached from here: by programs in the container.

use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::runtime::{ExecCommand, ServiceRuntime as _};
use backup_core::{AdapterError, ByteStream, OpContext};
use futures::StreamExt;

use super::Files;
use crate::runtime::DockerRuntime;

/// The folder, as the server sees it.
#[derive(Debug)]
pub(in crate::weaviate) struct InContainer {
    docker: DockerRuntime,
    folder: PathBuf,
}

impl InContainer {
    pub(in crate::weaviate) fn new(docker: DockerRuntime, folder: PathBuf) -> Self {
        Self { docker, folder }
    }

    async fn output(&self, cx: &OpContext, command: &[&str]) -> Result<Vec<u8>, AdapterError> {
        let run = self.docker.exec(ExecCommand::new(command.iter().copied()).with_deadline(cx.deadline));
        let mut run = cx.within(run).await??;
        let mut all = Vec::new();
        while let Some(piece) = cx.within(run.stdout.next()).await? {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }
}

#[async_trait]
impl Files for InContainer {
    async fn archive(&self, cx: &OpContext, id: &str) -> Result<ByteStream<AdapterError>, AdapterError> {
        let folder = self.folder.display().to_string();
        let command = ExecCommand::new(["tar", "-cf", "-", "-C", &folder, id]).with_deadline(cx.deadline);
        Ok(cx.within(self.docker.exec(command)).await??.stdout)
    }

    async fn read(&self, cx: &OpContext, path: &str) -> Result<Vec<u8>, AdapterError> {
        self.output(cx, &["cat", &self.folder.join(path).display().to_string()]).await
    }

    async fn size(&self, _id: &str) -> Option<u64> {
        None
    }

    async fn names(&self, cx: &OpContext) -> Result<Vec<String>, AdapterError> {
        let all = self.output(cx, &["ls", "-A1", &self.folder.display().to_string()]).await?;
        Ok(String::from_utf8_lossy(&all).lines().map(str::to_owned).collect())
    }

    async fn remove(&self, id: &str) -> Result<(), AdapterError> {
        let path = self.folder.join(id).display().to_string();
        let mut run = self.docker.exec(ExecCommand::new(["rm", "-rf", &path])).await?;
        while let Some(piece) = run.stdout.next().await {
            piece?;
        }
        Ok(())
    }
}
