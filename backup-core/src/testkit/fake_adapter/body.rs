//! Bodies that fail, hang or panic where the script says so.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::{Call, FakeAdapter};
use crate::context::OpContext;
use crate::error::{AdapterError, AdapterErrorKind};
use crate::id::ArtifactName;

/// How often whatever hangs looks whether it may go on.
pub(super) const LET_GO_POLL: Duration = Duration::from_millis(5);

/// Waits until the operation is cancelled or its deadline passes.
pub(super) async fn until_over(cx: &OpContext) -> AdapterError {
    let deadline = async {
        match cx.deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = cx.cancel.cancelled() => {}
        () = deadline => {}
    }
    cx.check_alive().err().unwrap_or_else(AdapterError::cancelled)
}

pub(super) fn body(
    adapter: FakeAdapter,
    cx: OpContext,
    name: ArtifactName,
    chunks: Vec<Bytes>,
) -> BoxStream<'static, Result<Bytes, AdapterError>> {
    let [fail_at, hang_at, panic_at] = {
        let script = &adapter.state().script;
        [&script.fail_at, &script.hang_at, &script.panic_at].map(|at| at.get(&name).copied())
    };
    // One item more than there are chunks: the end may fail, too.
    stream::iter(chunks.into_iter().map(Some).chain([None]).enumerate())
        .then(move |(n, chunk)| {
            let (cx, adapter, name) = (cx.clone(), adapter.clone(), name.clone());
            async move {
                assert!(panic_at != Some(n), "artifact `{name}` panics at chunk {n}, as the script says");
                if hang_at == Some(n) {
                    let let_go = async {
                        while adapter.state().script.hang_at.contains_key(&name) {
                            tokio::time::sleep(LET_GO_POLL).await;
                        }
                    };
                    tokio::select! {
                        biased;
                        over = until_over(&cx) => return Err(over),
                        () = let_go => {}
                    }
                }
                cx.check_alive()?;
                if fail_at == Some(n) {
                    let message = format!("artifact `{name}` fails at chunk {n}, as the script says");
                    return Err(AdapterError::new(AdapterErrorKind::Other, message));
                }
                if chunk.is_none() {
                    adapter.state().log.push(Call::ReadEnd(name));
                }
                Ok(chunk)
            }
        })
        .filter_map(|item| std::future::ready(item.transpose()))
        .boxed()
}
