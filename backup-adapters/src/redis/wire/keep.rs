//! The copy of what a server holds, taken as a replica takes it.

use std::path::PathBuf;

use backup_core::{AdapterError, OpContext};
use futures::StreamExt;

use super::Job;
use crate::redis::conn::Server;
use crate::redis::kept::{self, Writer};
use crate::redis::rdb::Summary;
use crate::redis::stream;

/// Keeps what the server holds as `job.kept`: whole, checked and durable on return. A copy of an earlier attempt, after
/// which the server had its data back, steps aside.
pub(super) async fn capture(cx: &OpContext, server: &Server, job: &Job) -> Result<Summary, AdapterError> {
    if kept::exists(job.kept.clone()).await? {
        kept::rename(job.kept.clone(), job.earlier()).await?;
    }
    capture_to(cx, server, job.kept.clone()).await
}

/// The same, to any file.
pub(super) async fn capture_to(
    cx: &OpContext,
    server: &Server,
    path: PathBuf,
) -> Result<Summary, AdapterError> {
    let conn = server.connect(cx).await?;
    let link = stream::begin(conn, cx).await?;
    let (mut body, link) = stream::receive(link, cx);
    let writer = Writer::create(path);
    let copied = async {
        while let Some(piece) = body.next().await {
            if !writer.write(piece?).await {
                break;
            }
        }
        Ok(())
    };
    let copied = copied.await;
    drop(body);
    link.end().await;
    match copied {
        Ok(()) => writer.finish().await,
        Err(e) => {
            writer.abandon().await;
            Err(e)
        }
    }
}
