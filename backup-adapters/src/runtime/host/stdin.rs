//! The standard input of a program.

use backup_core::{AdapterError, ByteStream};
use futures::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;

use super::group::Group;

/// Writes `input` to a program and closes its standard input once all of it is written.
///
/// Resolves only with an error of `input`, after `group` was killed: the program must never take a part for the whole.
/// A program that does not want to read any more is no error: its exit status decides.
pub(super) async fn feed(
    stdin: Option<ChildStdin>,
    input: Option<ByteStream<AdapterError>>,
    group: &Group,
) -> AdapterError {
    if let (Some(mut stdin), Some(mut input)) = (stdin, input) {
        while let Some(chunk) = input.next().await {
            match chunk {
                Ok(chunk) => {
                    if let Err(error) = stdin.write_all(&chunk).await {
                        tracing::debug!(%error, "A program did not read all of its input.");
                        break;
                    }
                }
                Err(error) => {
                    group.kill();
                    return error;
                }
            }
        }
    }
    std::future::pending().await
}
