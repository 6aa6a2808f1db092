//! The files of a backup, in memory: for whoever looks for a value as it was then.

use std::path::PathBuf;

use backup_core::{AdapterError, RestoreSource, Secret};
use futures::StreamExt;

use crate::tree::parse::{Parser, Sink};
use crate::tree::pax::{Kind, Member};

/// The most that is read of one backup, in bytes: dotenv files are small.
const MOST: u64 = 16 << 20;

/// A dotenv file, as a backup holds it.
#[derive(Debug, Clone)]
pub struct DotenvFile {
    /// Where it was.
    pub path: PathBuf,
    /// What it says, secrets included.
    pub text: Secret,
}

/// The files of a backup by [`EnvConfig`](super::EnvConfig); those that are not UTF-8 are left out.
///
/// # Errors
/// `Corrupt` if the backup is damaged or no archive, or too large for memory (16 MiB); those of the store.
pub async fn read(source: &RestoreSource) -> Result<Vec<DotenvFile>, AdapterError> {
    let mut files = Files::default();
    for artifact in &source.metadata().artifacts {
        if artifact.plain_bytes > MOST {
            let what = format!("artifact `{}` is too large for dotenv files", artifact.name);
            return Err(AdapterError::corrupt(what));
        }
        let (mut parser, mut body) = (Parser::new(), source.open(&artifact.name).await?);
        while let Some(piece) = body.next().await {
            parser.feed(&piece?, &mut files)?;
        }
        parser.finish()?;
    }
    Ok(files.done)
}

#[derive(Debug, Default)]
struct Files {
    done: Vec<DotenvFile>,
    current: Option<(PathBuf, Vec<u8>)>,
}

impl Sink for Files {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        use std::os::unix::ffi::OsStrExt;
        let path = std::path::Path::new("/").join(std::ffi::OsStr::from_bytes(&member.path));
        self.current = matches!(member.kind, Kind::File).then(|| (path, Vec::new()));
        Ok(())
    }

    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), AdapterError> {
        if let Some((_, text)) = &mut self.current {
            text.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        if let Some((path, text)) = self.current.take()
            && let Ok(text) = String::from_utf8(text)
        {
            self.done.push(DotenvFile { path, text: Secret::new(text) });
        }
        Ok(())
    }
}
