//! The engine's archive API: for files that do not change while they are read, because it reports no errors (what goes
//! wrong shows only in what is missing), and because it holds the container's lock until its answer was read.

use std::sync::Arc;

use backup_core::{AdapterError, AdapterErrorKind, ByteStream};
use bollard::query_parameters::{ContainerArchiveInfoOptions, DownloadFromContainerOptions};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::{StreamExt as _, stream};

use super::engine::Engine;

/// What the engine knows of a path in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    /// In bytes.
    pub(super) size: u64,
    /// As Go has it: permissions in the low bits, the type in the high ones.
    mode: u32,
    /// RFC 3339.
    pub(super) changed: String,
    /// Where a symbolic link leads in the end.
    link: Option<String>,
}

impl Stat {
    /// Whether it is a plain file: no bit of Go's `os.ModeType` is set.
    fn is_file(&self) -> bool {
        self.mode & 0x8F28_0000 == 0
    }
}

/// Looks at `path`; a symbolic link is not followed.
pub(super) async fn stat(engine: &Engine, container: &str, path: &str) -> Result<Stat, AdapterError> {
    let options = ContainerArchiveInfoOptions { path: path.to_owned() };
    let request = engine.client().await?.get_container_archive_info(container, Some(options));
    let stat = match engine.call(&format!("look at `{path}` in the container"), request).await {
        // The answer to a HEAD request has no text that says what was not found.
        Err(e) if e.kind() == AdapterErrorKind::NotFound => return Err(missing(path)),
        other => other?,
    };
    Ok(Stat {
        size: stat.size.try_into().unwrap_or(0),
        mode: stat.file_mode,
        changed: stat.modification_time.unwrap_or_default(),
        link: Some(stat.link_target).filter(|l| !l.is_empty()),
    })
}

pub(super) fn missing(path: &str) -> AdapterError {
    AdapterError::new(AdapterErrorKind::NotFound, format!("there is no file `{path}` in the container"))
}

/// The plain file that `path` leads to, and what it is like.
pub(super) async fn file(
    engine: &Engine,
    container: &str,
    path: &str,
) -> Result<(String, Stat), AdapterError> {
    let mut at = path.to_owned();
    // The engine follows links to their end; a second one means that somebody changes them.
    for _ in 0..4 {
        let found = stat(engine, container, &at).await?;
        match found.link {
            Some(link) => at = link,
            None if found.is_file() => return Ok((at, found)),
            None => break,
        }
    }
    Err(AdapterError::unsupported(format!("`{path}` in the container is not a plain file")))
}

/// The bytes of the plain file at `path`, which was `before` when it was looked at last. Holds the container's lock
/// until it was read or dropped.
pub(super) async fn read(
    engine: Arc<Engine>,
    container: String,
    path: String,
    before: Stat,
) -> Result<ByteStream<AdapterError>, AdapterError> {
    let options = DownloadFromContainerOptions { path: path.clone() };
    let answer = engine.client().await?.download_from_container(&container, Some(options)).boxed();
    let parser = OneFile::new(before.size);
    let reading = Reading { engine, container, path, before, answer, parser };
    Ok(stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(reading))),
            Ok(None) => None,
            Err(e) => Some((Err(e), None)),
        }
    })
    .boxed())
}

struct Reading {
    engine: Arc<Engine>,
    container: String,
    path: String,
    before: Stat,
    answer: stream::BoxStream<'static, Result<Bytes, bollard::errors::Error>>,
    parser: OneFile,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, AdapterError> {
        let path = &self.path;
        let cut = |_| {
            let what = format!("`{path}` did not arrive whole: it changed, or could not be read to its end");
            AdapterError::new(AdapterErrorKind::Changed, what)
        };
        // What came last may hold more than was taken out.
        let mut came = Bytes::new();
        loop {
            let piece = self.parser.push(came).map_err(cut)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            let Some(next) = self.answer.next().await else { break };
            came = next.map_err(|e| self.engine.error(&format!("read `{path}` in the container"), e))?;
        }
        self.parser.finish().map_err(cut)?;
        if stat(&self.engine, &self.container, path).await? != self.before {
            let what = format!("`{path}` in the container changed while it was read");
            return Err(AdapterError::new(AdapterErrorKind::Changed, what));
        }
        Ok(None)
    }
}

const BLOCK: usize = 512;

/// Takes the one file out of a tar archive, and accepts nothing but such an archive, complete to its last block.
struct OneFile {
    expected: u64,
    at: At,
    buffer: BytesMut,
    /// From an extended header: for sizes that the ordinary one cannot hold.
    size: Option<u64>,
}

enum At {
    Header,
    /// In an extended header: so many bytes with padding, so many without.
    Extended(usize, usize),
    /// In the file: so many bytes are left, and then so many of padding.
    Body(u64, usize),
    /// Behind the file: so many bytes of zeros were there.
    End(usize),
}

/// It is no such archive.
#[derive(Debug, PartialEq, Eq)]
struct NotOneFile;

impl OneFile {
    fn new(expected: u64) -> Self {
        Self { expected, at: At::Header, buffer: BytesMut::new(), size: None }
    }

    /// The file's next bytes; empty if more has to come first.
    fn push(&mut self, came: Bytes) -> Result<Bytes, NotOneFile> {
        if let (At::Body(left, _), true) = (&mut self.at, self.buffer.is_empty())
            && *left >= came.len() as u64
        {
            *left -= came.len() as u64;
            return Ok(came);
        }
        self.buffer.extend_from_slice(&came);
        loop {
            match self.at {
                At::Header if self.buffer.len() >= BLOCK => {
                    let block = self.buffer.split_to(BLOCK);
                    self.header(&block)?;
                }
                At::Extended(padded, size) if self.buffer.len() >= padded => {
                    let text = self.buffer.split_to(padded);
                    self.size = size_in(text.get(..size).unwrap_or_default()).or(self.size);
                    self.at = At::Header;
                }
                At::Body(left, padding) if left > 0 => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                    self.at = At::Body(left - n as u64, padding);
                    return Ok(self.buffer.split_to(n).freeze());
                }
                At::Body(_, padding) if self.buffer.len() >= padding => {
                    self.buffer.advance(padding);
                    self.at = At::End(0);
                }
                At::End(zeros) => {
                    if self.buffer.iter().any(|b| *b != 0) {
                        return Err(NotOneFile);
                    }
                    self.at = At::End(zeros + self.buffer.len());
                    self.buffer.clear();
                    return Ok(Bytes::new());
                }
                _ => return Ok(Bytes::new()),
            }
        }
    }

    fn header(&mut self, block: &[u8]) -> Result<(), NotOneFile> {
        let header = tar::Header::from_byte_slice(block);
        let size = header.entry_size().map_err(|_| NotOneFile)?;
        let kind = header.entry_type();
        if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() || kind.is_gnu_longname() {
            let size = usize::try_from(size).ok().filter(|s| *s <= 1 << 20).ok_or(NotOneFile)?;
            self.at = At::Extended(size.next_multiple_of(BLOCK), size);
            return Ok(());
        }
        let size = self.size.unwrap_or(size);
        if !kind.is_file() || size != self.expected {
            return Err(NotOneFile);
        }
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.at = At::Body(size, usize::try_from(padding).unwrap_or(0));
        Ok(())
    }

    /// The archive ended.
    fn finish(&self) -> Result<(), NotOneFile> {
        match self.at {
            // An archive ends with two blocks of zeros; one that broke off does not.
            At::End(zeros) if zeros >= 2 * BLOCK => Ok(()),
            _ => Err(NotOneFile),
        }
    }
}

/// The size in the records of an extended header, `<length> <key>=<value>` each.
fn size_in(records: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(records).ok()?;
    text.lines().find_map(|l| l.split_once(" size=")?.1.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(size: usize) -> (Vec<u8>, Vec<u8>) {
        let body: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut builder = tar::Builder::new(Vec::new());
        let records = [("mtime", &b"1.5"[..])];
        builder.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(size as u64);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, "f", body.as_slice()).unwrap();
        (builder.into_inner().unwrap(), body)
    }

    fn take(bytes: &[u8], expected: usize, piece: usize) -> Result<Vec<u8>, NotOneFile> {
        let mut parser = OneFile::new(expected as u64);
        let mut all = Vec::new();
        for piece in bytes.chunks(piece) {
            let mut piece = Bytes::copy_from_slice(piece);
            loop {
                let part = parser.push(piece)?;
                if part.is_empty() {
                    break;
                }
                all.extend_from_slice(&part);
                piece = Bytes::new();
            }
        }
        parser.finish()?;
        Ok(all)
    }

    #[test]
    fn one_file_is_taken_out() {
        for size in [0, 1, 511, 512, 513, 5000] {
            let (archive, body) = archive(size);
            for piece in [1, 7, 512, 4096, 1 << 20] {
                assert_eq!(take(&archive, size, piece).unwrap(), body, "{size} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let (archive, body) = archive(5000);
        for end in [0, 100, 1024, 1536, 3000, archive.len() - 1025, archive.len() - 512] {
            assert_eq!(take(&archive[..end], 5000, 700), Err(NotOneFile), "{end}");
        }
        assert_eq!(take(&archive, 5001, 700), Err(NotOneFile));
        let twice = [&archive[..archive.len() - 1024], &archive].concat();
        assert_eq!(take(&twice, 5000, 700), Err(NotOneFile));
        assert_eq!(take(&body, 5000, 700), Err(NotOneFile));
    }

    #[test]
    fn large_sizes_are_in_the_records() {
        assert_eq!(
            size_in(
                b"20 size=10737418240
13 mtime=1.5
"
            ),
            Some(10_737_418_240)
        );
        assert_eq!(
            size_in(
                b"13 mtime=1.5
"
            ),
            None
        );
    }
}
