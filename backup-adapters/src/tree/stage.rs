//! Extracts a body while it arrives, on two blocking threads: one takes it apart and creates, one fills and completes files.

use std::path::PathBuf;
use std::thread;

use backup_core::{AdapterError, AdapterErrorKind, ByteStream, OpContext, keep_aside};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::apply::Apply;
use super::extract::{Dest, Extractor};
use super::fill;
use super::parse::Parser;

/// Chunks that may wait for the disk.
const AHEAD: usize = 4;

enum Message {
    Data(Bytes),
    /// The body is verified to its end. A channel that closes without this one is a failure.
    End,
}

/// Extracts `body` to its verified end and makes the result durable; returns warnings. What an earlier call left in
/// the same places goes first. On `Err`, and when the future is dropped, nothing stays there.
///
/// # Errors
/// `Corrupt` for an archive that is damaged or hostile; I/O errors; what the body says.
pub(crate) async fn extract(
    cx: &OpContext,
    mut body: ByteStream<AdapterError>,
    dests: Vec<Dest>,
) -> Result<Vec<String>, AdapterError> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let context = cx.clone();
    let task = tokio::task::spawn_blocking(move || {
        let places: Vec<PathBuf> = dests.iter().map(|d| d.parent.join(&d.name)).collect();
        let done = clear(&places).and_then(|()| write(&context, receiver, dests));
        if done.is_err() {
            // The error itself says more than a failure to tidy up.
            let _second = clear(&places);
        }
        done
    });
    let mut failed = None;
    while let Some(chunk) = body.next().await {
        match chunk {
            Ok(chunk) => {
                if sender.send(Message::Data(chunk)).await.is_err() {
                    break;
                }
            }
            Err(e) => {
                failed = Some(e);
                break;
            }
        }
    }
    if failed.is_none() {
        // A closed channel: the other side has an error to tell.
        let _closed = sender.send(Message::End).await;
    }
    drop(sender);
    let done = task.await.map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "the writer of the files stopped unexpectedly")
            .with_source(e)
    })?;
    match failed {
        Some(e) => Err(e),
        None => done,
    }
}

fn clear(places: &[PathBuf]) -> Result<(), AdapterError> {
    for place in places {
        keep_aside::remove(place)
            .map_err(|e| AdapterError::io(format!("cannot remove `{}`", place.display()), e))?;
    }
    Ok(())
}

/// Both halves of the work, to the end of both.
fn write(
    cx: &OpContext,
    receiver: mpsc::Receiver<Message>,
    dests: Vec<Dest>,
) -> Result<Vec<String>, AdapterError> {
    let mut parents: Vec<PathBuf> = dests.iter().map(|d| d.parent.clone()).collect();
    parents.dedup();
    let done = thread::scope(|scope| {
        let (feeder, filler) = fill::pair();
        let filling = thread::Builder::new()
            .spawn_scoped(scope, || filler.run(cx))
            .map_err(|e| AdapterError::io("cannot start a thread that writes files", e))?;
        let parsed = parse(cx, receiver, Extractor::new(dests, feeder));
        // What went wrong there came first, and may be why it ended here.
        let filled = filling.join().map_err(|_panic| {
            AdapterError::new(AdapterErrorKind::Other, "the thread that writes files stopped unexpectedly")
        })??;
        Ok(parsed?.merge(filled))
    })?;
    for parent in parents {
        keep_aside::sync_file_system(&parent).map_err(|e| {
            AdapterError::io(format!("cannot make the data in `{}` durable", parent.display()), e)
        })?;
    }
    Ok(done.warnings())
}

fn parse(
    cx: &OpContext,
    mut receiver: mpsc::Receiver<Message>,
    mut extractor: Extractor,
) -> Result<Apply, AdapterError> {
    let mut parser = Parser::new();
    loop {
        match receiver.blocking_recv() {
            Some(Message::Data(chunk)) => {
                cx.check_alive()?;
                extractor.feed(&mut parser, chunk)?;
            }
            Some(Message::End) => break,
            None => return Err(AdapterError::cancelled()),
        }
    }
    parser.finish()?;
    extractor.finish()
}
