//! What goes to the wrapper in the container: variables, the program's input in pieces, and the last word.

use std::io;

use backup_core::{AdapterError, ByteStream, CHUNK_BYTES, Secret};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

/// Feeds the program until `ended`, then lets the wrapper go.
///
/// Returns early with the error of the program's input; it must be killed then, because it has not seen the end of its
/// input. A connection that breaks is left to whoever reads from it to explain.
pub(super) async fn feed(
    mut to: impl AsyncWrite + Unpin + Send,
    env: &[(String, Secret)],
    input: Option<ByteStream<AdapterError>>,
    ended: &CancellationToken,
) -> Result<(), AdapterError> {
    if variables(&mut to, env).await.is_err() {
        return std::future::pending().await;
    }
    if let Some(input) = input {
        pieces(&mut to, input, ended).await?;
    }
    ended.cancelled().await;
    let last = async {
        to.write_all(b"Q\n").await?;
        to.flush().await?;
        to.shutdown().await
    };
    if let Err(e) = last.await {
        tracing::debug!(error = %e, "the wrapper was gone before it was let go");
    }
    Ok(())
}

/// Variables travel here, and not in the request that starts the program: engines write that to their debug log.
async fn variables(to: &mut (impl AsyncWrite + Unpin + Send), env: &[(String, Secret)]) -> io::Result<()> {
    for (_, value) in env {
        let value = value.expose();
        let lines = value.split('\n').count();
        to.write_all(format!("{lines}\n{value}\n").as_bytes()).await?;
    }
    to.flush().await
}

async fn pieces(
    to: &mut (impl AsyncWrite + Unpin + Send),
    input: ByteStream<AdapterError>,
    ended: &CancellationToken,
) -> Result<(), AdapterError> {
    // The other side holds a piece in memory.
    let mut input = input.flat_map(|item| stream::iter(item.map_or_else(|e| vec![Err(e)], cut))).boxed();
    loop {
        let Some(first) = ended.run_until_cancelled(input.next()).await else { return Ok(()) };
        let mut complete = first.is_none();
        let mut ready: Vec<Bytes> = first.transpose()?.into_iter().collect();
        let mut size = ready.iter().map(Bytes::len).sum::<usize>();
        // Each piece costs a process in the container: take what is there already.
        while !complete && size < CHUNK_BYTES {
            match input.next().now_or_never() {
                Some(Some(more)) => {
                    let more = more?;
                    size += more.len();
                    ready.push(more);
                }
                Some(None) => complete = true,
                None => break,
            }
        }
        let sent = async {
            if size > 0 {
                to.write_all(format!("{size}\n").as_bytes()).await?;
                for part in &ready {
                    to.write_all(part).await?;
                }
            }
            if complete {
                to.write_all(b"0\n").await?;
            }
            to.flush().await
        };
        if let Err(e) = sent.await {
            tracing::debug!(error = %e, "the input of a program in a container breaks off");
            return std::future::pending().await;
        }
        if complete {
            return Ok(());
        }
    }
}

fn cut(mut bytes: Bytes) -> Vec<Result<Bytes, AdapterError>> {
    let mut pieces = Vec::new();
    while bytes.len() > CHUNK_BYTES {
        pieces.push(Ok(bytes.split_to(CHUNK_BYTES)));
    }
    // An empty piece would mean the end.
    if !bytes.is_empty() {
        pieces.push(Ok(bytes));
    }
    pieces
}
