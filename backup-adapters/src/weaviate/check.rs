//! The content check: the archive holds one backup that succeeded, with every collection and every chunk that it names,
//! and each chunk is an archive that can be unpacked to its end.

use std::collections::BTreeMap;
use std::io::{self, Write};

use backup_core::{AdapterError, CheckPurpose, ContentCheck, Evidence};

use super::model::{self, Config, Node};
use crate::tree::parse::{Parser, Sink};
use crate::tree::pax::{Kind, Member};
use crate::tree::show;

/// The longest description that is kept, in bytes.
const MAX_JSON: u64 = 256 << 20;

/// What a compressed chunk begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Checks one archive as it passes.
pub(super) struct BackupCheck {
    parser: Parser,
    inside: Inside,
}

impl BackupCheck {
    pub(super) fn new(purpose: &CheckPurpose) -> Self {
        let inside = Inside { unpack: !matches!(purpose, CheckPurpose::Capture), ..Inside::default() };
        Self { parser: Parser::new(), inside }
    }
}

impl ContentCheck for BackupCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.parser.feed(bytes, &mut self.inside)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        self.parser.finish()?;
        self.inside.judge()
    }
}

/// What was seen in the archive.
#[derive(Default)]
struct Inside {
    unpack: bool,
    current: Current,
    config: Option<(String, Vec<u8>)>,
    nodes: BTreeMap<String, Vec<u8>>,
    /// The files in each chunk, by node, class and chunk; `None` if it was not unpacked.
    chunks: BTreeMap<(String, String, String), Option<u64>>,
}

#[derive(Default)]
enum Current {
    #[default]
    Nothing,
    Config(String, Vec<u8>),
    Node(String, Vec<u8>),
    Chunk((String, String, String), Box<Chunk>),
}

fn broken(path: &str, what: impl std::fmt::Display) -> AdapterError {
    AdapterError::corrupt(format!("`{path}` of the backup {what}"))
}

impl Sink for Inside {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        let path = show(&member.path);
        self.current = Current::Nothing;
        match member.kind {
            Kind::Dir => return Ok(()),
            Kind::File => {}
            _ => return Err(broken(&path, "is neither a file nor a folder")),
        }
        let parts: Vec<&str> = path.split('/').collect();
        let description = matches!(parts.as_slice(), [_, model::CONFIG] | [_, _, model::NODE]);
        if description && member.size > MAX_JSON {
            return Err(broken(&path, "is too large"));
        }
        self.current = match parts.as_slice() {
            [id, model::CONFIG] => Current::Config((*id).to_owned(), Vec::new()),
            [_, node, model::NODE] => Current::Node((*node).to_owned(), Vec::new()),
            [_, node, class, chunk] if chunk.starts_with("chunk-") => {
                let key = ((*node).to_owned(), (*class).to_owned(), (*chunk).to_owned());
                Current::Chunk(key, Box::new(Chunk::new(self.unpack)))
            }
            _ => Current::Nothing,
        };
        Ok(())
    }

    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), AdapterError> {
        match &mut self.current {
            Current::Nothing => Ok(()),
            Current::Config(_, all) | Current::Node(_, all) => {
                all.extend_from_slice(bytes);
                Ok(())
            }
            Current::Chunk((node, class, name), chunk) => chunk
                .update(bytes)
                .map_err(|e| broken(&format!("{node}/{class}/{name}"), "is damaged").with_source(e)),
        }
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        match std::mem::take(&mut self.current) {
            Current::Nothing => {}
            Current::Config(id, all) => {
                if self.config.replace((id, all)).is_some() {
                    return Err(AdapterError::corrupt("the archive holds more than one backup"));
                }
            }
            Current::Node(node, all) => drop(self.nodes.insert(node, all)),
            Current::Chunk(key, chunk) => {
                let (node, class, name) = &key;
                let damaged = format!("{node}/{class}/{name}");
                let files = chunk.finish().map_err(|e| broken(&damaged, "is damaged").with_source(e))?;
                self.chunks.insert(key, files);
            }
        }
        Ok(())
    }
}

impl Inside {
    fn judge(self) -> Result<Evidence, AdapterError> {
        let Some((folder, config)) = &self.config else {
            return Err(AdapterError::corrupt(format!("the archive has no `{}`", model::CONFIG)));
        };
        let config = Config::parse(config)?;
        if &config.id != folder {
            return Err(AdapterError::corrupt(format!("backup `{}` lies in folder `{folder}`", config.id)));
        }
        let mut shards = 0;
        for (name, listed) in &config.nodes {
            let Some(node) = self.nodes.get(name) else {
                return Err(broken(&format!("{name}/{}", model::NODE), "is missing"));
            };
            let node = Node::parse(node)?;
            if node.id != config.id {
                return Err(broken(
                    &format!("{name}/{}", model::NODE),
                    format_args!("is of backup `{}`", node.id),
                ));
            }
            for class in listed.classes.iter().flatten() {
                let Some(class) = node.classes().find(|c| &c.name == class) else {
                    return Err(broken(
                        &format!("{name}/{}", model::NODE),
                        format_args!("lacks collection `{class}`"),
                    ));
                };
                shards += class.shards().count();
                self.chunks_of(name, class)?;
            }
        }
        Ok(Evidence::default()
            .with_count("collections", config.classes().len() as u64)
            .with_count("shards", shards as u64))
    }

    /// Every chunk is there and holds the files of its shards.
    fn chunks_of(&self, node: &str, class: &model::Class) -> Result<(), AdapterError> {
        let mut placed = 0;
        for (number, shards) in class.chunks.iter().flatten() {
            let key = (node.to_owned(), class.name.clone(), format!("chunk-{number}"));
            let path = format!("{node}/{}/chunk-{number}", class.name);
            let Some(found) = self.chunks.get(&key) else { return Err(broken(&path, "is missing")) };
            placed += shards.len();
            let files = |s: &&model::Shard| shards.contains(&s.name);
            let wanted: usize =
                class.shards().filter(files).map(|s| s.files.as_ref().map_or(0, Vec::len)).sum();
            if let Some(found) = found
                && *found < wanted as u64
            {
                return Err(broken(&path, format_args!("holds {found} files of {wanted}")));
            }
        }
        if placed < class.shards().count() {
            return Err(broken(&format!("{node}/{}", class.name), "lacks shards in its chunks"));
        }
        Ok(())
    }
}

/// Counts the files of an archive.
#[derive(Debug, Default)]
struct Count {
    files: u64,
}

impl Sink for Count {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        self.files += u64::from(member.kind != Kind::Dir);
        Ok(())
    }

    fn data(&mut self, _: u64, _: &[u8]) -> Result<(), AdapterError> {
        Ok(())
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        Ok(())
    }
}

/// The near end of a decoder: an archive that is counted.
struct Unpacked {
    parser: Parser,
    count: Count,
    trouble: Option<AdapterError>,
}

impl Unpacked {
    fn new() -> Self {
        Self { parser: Parser::new(), count: Count::default(), trouble: None }
    }

    fn finish(self) -> Result<u64, AdapterError> {
        match self.trouble {
            Some(trouble) => Err(trouble),
            None => self.parser.finish().map(|()| self.count.files),
        }
    }
}

impl Write for Unpacked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.parser.feed(bytes, &mut self.count).map_err(|e| {
            self.trouble = Some(e);
            io::Error::other("the chunk is no archive")
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A chunk, in whatever form the server wrote it.
enum Chunk {
    /// Too little was seen to tell.
    Begin {
        head: Vec<u8>,
        unpack: bool,
    },
    Plain(Unpacked),
    Gzip(flate2::write::GzDecoder<Unpacked>),
    Zstd(zstd::stream::write::Decoder<'static, Unpacked>),
    /// Compressed, and not to be unpacked now.
    Skipped,
}

impl Chunk {
    fn new(unpack: bool) -> Self {
        Self::Begin { head: Vec::new(), unpack }
    }

    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        let damaged = |e: io::Error| AdapterError::corrupt("it cannot be unpacked").with_source(e);
        match self {
            Self::Begin { head, unpack } => {
                head.extend_from_slice(bytes);
                if head.len() < ZSTD.len() {
                    return Ok(());
                }
                let head = std::mem::take(head);
                *self = match (head.starts_with(&GZIP), head.starts_with(&ZSTD), *unpack) {
                    (false, false, _) => Self::Plain(Unpacked::new()),
                    (_, _, false) => Self::Skipped,
                    (true, ..) => Self::Gzip(flate2::write::GzDecoder::new(Unpacked::new())),
                    (_, true, _) => {
                        Self::Zstd(zstd::stream::write::Decoder::new(Unpacked::new()).map_err(damaged)?)
                    }
                };
                self.update(&head)
            }
            Self::Plain(out) => out.parser.feed(bytes, &mut out.count),
            Self::Gzip(decoder) => decoder.write_all(bytes).map_err(damaged),
            Self::Zstd(decoder) => decoder.write_all(bytes).map_err(damaged),
            Self::Skipped => Ok(()),
        }
    }

    /// The files in it.
    fn finish(self) -> Result<Option<u64>, AdapterError> {
        let damaged = |e: io::Error| AdapterError::corrupt("it cannot be unpacked").with_source(e);
        match self {
            Self::Begin { .. } => Err(AdapterError::corrupt("it is empty")),
            Self::Plain(out) => out.finish().map(Some),
            Self::Gzip(decoder) => decoder.finish().map_err(damaged)?.finish().map(Some),
            Self::Zstd(mut decoder) => {
                decoder.flush().map_err(damaged)?;
                decoder.into_inner().finish().map(Some)
            }
            Self::Skipped => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weaviate::files::archive_of;

    /// An archive of `files`, by their paths.
    fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut all = Vec::new();
        for (path, content) in files {
            let one = archive_of(path, content).unwrap();
            all.extend_from_slice(&one[..one.len() - 1024]);
        }
        all.resize(all.len() + 1024, 0);
        all
    }

    fn chunk() -> Vec<u8> {
        archive(&[("doc/a", b"1".to_vec()), ("doc/b", vec![7; 5000])])
    }

    fn backup(chunk: Vec<u8>, status: &str, files: &str) -> Vec<u8> {
        let config = format!(r#"{{"id":"b","status":"{status}","nodes":{{"n":{{"classes":["Doc"]}}}}}}"#);
        let node = format!(
            r#"{{"id":"b","status":"SUCCESS","classes":[{{"name":"Doc","shards":[{{"name":"s","files":[{files}]}}],"chunks":{{"1":["s"]}}}}]}}"#
        );
        archive(&[
            ("b/backup_config.json", config.into()),
            ("b/n/Doc/chunk-1", chunk),
            ("b/n/backup.json", node.into()),
        ])
    }

    fn check(bytes: &[u8], step: usize) -> Result<Evidence, AdapterError> {
        let purpose = CheckPurpose::Verify { spool: "/".into() };
        let mut check = Box::new(BackupCheck::new(&purpose));
        bytes.chunks(step).try_for_each(|piece| check.update(piece))?;
        check.finish()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn every_form_of_chunk_is_unpacked() {
        let plain = chunk();
        for chunk in [plain.clone(), gzip(&plain), zstd::encode_all(plain.as_slice(), 1).unwrap()] {
            let bytes = backup(chunk.clone(), "SUCCESS", r#""a","b""#);
            for step in [1, 700, 1 << 20] {
                assert_eq!(check(&bytes, step).unwrap().counts["collections"], 1);
            }
            let mut cut = chunk.clone();
            cut.truncate(chunk.len() - 600.min(chunk.len() / 2));
            assert!(check(&backup(cut, "SUCCESS", r#""a""#), 1000).is_err(), "a cut chunk");
        }
        let mut flipped = gzip(&plain);
        let at = flipped.len() / 2;
        flipped[at] ^= 0x55;
        assert!(check(&backup(flipped, "SUCCESS", r#""a""#), 1000).is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let said = |bytes: &[u8]| backup_core::chain(&check(bytes, 4096).unwrap_err());
        assert!(said(&backup(chunk(), "FAILED", r#""a""#)).contains("says FAILED"));
        assert!(said(&backup(chunk(), "SUCCESS", r#""a","b","c""#)).contains("holds 2 files of 3"));
        assert!(said(&backup(Vec::new(), "SUCCESS", "")).contains("chunk-1"));
        assert!(said(&archive(&[("b/n/backup.json", b"{}".to_vec())])).contains("no `backup_config.json`"));
        let config = br#"{"id":"b","status":"SUCCESS","nodes":{"n":{"classes":["Doc"]}}}"#.to_vec();
        assert!(
            said(&archive(&[("b/backup_config.json", config.clone())]))
                .contains("n/backup.json` of the backup is missing")
        );
        assert!(said(&archive(&[("other/backup_config.json", config)])).contains("lies in folder"));
    }
}
