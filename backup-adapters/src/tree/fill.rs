//! Writes the data of files and completes them, on a thread of its own, while another one takes the archive apart and
//! creates what is in it: the two halves of a restore's work.
//!
//! Jobs go over in batches of about [`BYTES`] of archive or [`FILES`] files, at most [`QUEUE`] of them waiting: that
//! bounds memory and open files. Data is handed over in the chunk that it came in.

use std::fs::File;
use std::mem;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use backup_core::{AdapterError, OpContext};
use bytes::Bytes;

use super::apply::Apply;
use super::direct::{Output, Scratch};
use super::pax::Member;
use super::show;

const BYTES: usize = 1 << 20;
const FILES: usize = 32;
const QUEUE: usize = 4;

/// What is to be done, in order: data and the end belong to the file that began last.
#[derive(Debug)]
enum Job {
    Begin(File, Box<Member>),
    Data(u64, Bytes),
    End,
}

/// The near end, which collects batches. Dropping it ends the other one, after what was handed over.
#[derive(Debug)]
pub(crate) struct Feeder {
    sender: SyncSender<Vec<Job>>,
    batch: Vec<Job>,
    /// Bytes of the archive and finished files since the last batch. Headers count: a file's attributes and the
    /// chunks that it keeps alive take memory as well as its data.
    bytes: usize,
    files: usize,
}

/// The far end.
#[derive(Debug)]
pub(crate) struct Filler(Receiver<Vec<Job>>);

pub(crate) fn pair() -> (Feeder, Filler) {
    let (sender, receiver) = sync_channel(QUEUE);
    (Feeder { sender, batch: Vec::new(), bytes: 0, files: 0 }, Filler(receiver))
}

impl Feeder {
    /// An empty file, just created.
    pub(crate) fn begin(&mut self, file: File, member: Box<Member>) {
        self.batch.push(Job::Begin(file, member));
    }

    /// Data of the file that began last.
    pub(crate) fn data(&mut self, offset: u64, bytes: Bytes) {
        self.batch.push(Job::Data(offset, bytes));
    }

    /// The file that began last has all its data.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(crate) fn end(&mut self) -> Result<(), AdapterError> {
        self.batch.push(Job::End);
        self.files += 1;
        if self.files >= FILES { self.flush() } else { Ok(()) }
    }

    /// So many bytes of the archive are taken apart.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(crate) fn passed(&mut self, bytes: usize) -> Result<(), AdapterError> {
        self.bytes += bytes;
        if self.bytes >= BYTES { self.flush() } else { Ok(()) }
    }

    /// Hands over what there is.
    ///
    /// # Errors
    /// The other side has ended: its error is the one to tell.
    pub(crate) fn flush(&mut self) -> Result<(), AdapterError> {
        (self.bytes, self.files) = (0, 0);
        if self.batch.is_empty() {
            return Ok(());
        }
        self.sender.send(mem::take(&mut self.batch)).map_err(|_ended| AdapterError::cancelled())
    }
}

impl Filler {
    /// Works until the feeder is gone and everything that it handed over is done.
    ///
    /// # Errors
    /// I/O errors, by the file's name; `Cancelled` and `Timeout` of `cx`.
    pub(crate) fn run(self, cx: &OpContext) -> Result<Apply, AdapterError> {
        let mut apply = Apply::new();
        let mut scratch = Scratch::default();
        let mut current: Option<(Output, Box<Member>)> = None;
        for batch in self.0 {
            cx.check_alive()?;
            for job in batch {
                match (job, &mut current) {
                    (Job::Begin(file, member), _) => {
                        current = Some((Output::new(file, in_a_row(&member)), member));
                    }
                    (Job::Data(offset, bytes), Some((file, member))) => {
                        file.write(&mut scratch, offset, &bytes).map_err(|e| cannot_write(member, e))?;
                    }
                    (Job::End, Some((file, member))) => {
                        file.finish(&mut scratch).map_err(|e| cannot_write(member, e))?;
                        complete(&mut apply, file.file(), member)?;
                        current = None;
                    }
                    (Job::Data(..) | Job::End, None) => {}
                }
            }
        }
        Ok(apply)
    }
}

/// How much is written in one go, on average.
fn in_a_row(member: &Member) -> u64 {
    match &member.sparse {
        None => member.size,
        Some(segments) => {
            segments.iter().map(|(_, length)| length).sum::<u64>() / segments.len().max(1) as u64
        }
    }
}

fn complete(apply: &mut Apply, file: &File, member: &Member) -> Result<(), AdapterError> {
    if member.sparse.is_some() {
        file.set_len(member.size)
            .map_err(|e| AdapterError::io(format!("cannot extend `{}`", show(&member.path)), e))?;
    }
    apply.open(file.as_fd(), member)
}

fn cannot_write(member: &Member, e: std::io::Error) -> AdapterError {
    AdapterError::io(format!("cannot write `{}`", show(&member.path)), e)
}
