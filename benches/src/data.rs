//! A tree of realistic data, the same for the same size and seed.
//!
//! It is made like the record stores of a graph database with what lies around them: pages of fixed-size records, a
//! file of zeros, a sparse file, blobs that do not compress, text logs, and many small files. As a whole it compresses
//! about 2.9:1 with `zstd -1`, which is what such a volume was measured to do.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use fastrand::Rng;

const MIB: u64 = 1 << 20;
/// The page of a record store, in bytes.
pub const PAGE_BYTES: usize = 8192;
const RECORD_BYTES: usize = 64;
/// The rest of a page is its header.
const RECORDS_PER_PAGE: usize = 127;
const SMALL_FILE_BYTES: usize = 4096;
const SMALL_FILES: u64 = 20_000;
const SMALL_FILES_PER_DIR: u64 = 256;

/// Record stores and their size in MiB, at full size.
const STORES: [(&str, u64); 5] = [
    ("neostore.relationshipstore.db", 1100),
    ("neostore.propertystore.db", 900),
    ("neostore.propertystore.db.strings", 500),
    ("neostore.nodestore.db", 450),
    ("neostore.relationshipgroupstore.db", 100),
];
const ZEROS_MIB: u64 = 128;
/// Half of it is a hole.
const SPARSE_MIB: u64 = 256;
const BLOB_MIB: u64 = 105;
const BLOBS: u64 = 2;
const LOG_MIB: u64 = 160;
const LOGS: u64 = 2;

/// Bytes of the tree that the proportions were taken from (3.95 GiB).
pub const FULL_BYTES: u64 =
    (1100 + 900 + 500 + 450 + 100 + ZEROS_MIB + SPARSE_MIB + BLOBS * BLOB_MIB + LOGS * LOG_MIB) * MIB
        + SMALL_FILES * SMALL_FILE_BYTES as u64;

/// What [`generate`] made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many files.
    pub files: u64,
    /// Sum of their lengths, in bytes, holes included.
    pub bytes: u64,
}

/// Makes about `total_bytes` of data in `dir`, which must not exist or be empty.
///
/// # Errors
/// Those of the file system; `AlreadyExists` if `dir` holds anything.
pub fn generate(dir: &Path, total_bytes: u64, seed: u64) -> io::Result<Summary> {
    fs::create_dir_all(dir)?;
    if fs::read_dir(dir)?.next().is_some() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("`{}` is not empty", dir.display()),
        ));
    }
    let mut tree = Tree { dir, total_bytes, rng: Rng::with_seed(seed), made: Summary::default() };
    fs::create_dir(dir.join("store"))?;
    for (name, mib) in STORES {
        let bytes = tree.scaled(mib * MIB);
        tree.file(&format!("store/{name}"), bytes, record_page)?;
    }
    let zeros = tree.scaled(ZEROS_MIB * MIB);
    tree.file("store/preallocated.tx", zeros, |_, _, page| page.fill(0))?;
    let sparse = tree.scaled(SPARSE_MIB * MIB);
    tree.file("store/index.sparse", sparse / 2, record_page)?;
    File::options().write(true).open(dir.join("store/index.sparse"))?.set_len(sparse)?;
    tree.made.bytes += sparse - sparse / 2;

    fs::create_dir(dir.join("blobs"))?;
    for i in 0..BLOBS {
        let bytes = tree.scaled(BLOB_MIB * MIB);
        tree.file(&format!("blobs/{i}.jpg"), bytes, |rng, _, page| rng.fill(page))?;
    }
    fs::create_dir(dir.join("logs"))?;
    for i in 0..LOGS {
        let bytes = tree.scaled(LOG_MIB * MIB);
        let mut lines = Lines::default();
        tree.file(&format!("logs/app-{i}.log"), bytes, |rng, _, page| lines.fill(rng, page))?;
    }
    for i in 0..tree.scaled(SMALL_FILES * PAGE_BYTES as u64) / PAGE_BYTES as u64 {
        let sub = format!("small/{:03}", i / SMALL_FILES_PER_DIR);
        if i % SMALL_FILES_PER_DIR == 0 {
            fs::create_dir_all(dir.join(&sub))?;
        }
        tree.small_file(&format!("{sub}/{i:06}.json"))?;
    }
    Ok(tree.made)
}

/// `bytes` (rounded down to pages) of a record store, in memory.
#[must_use]
pub fn record_store(bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed);
    let mut out = vec![0; bytes / PAGE_BYTES * PAGE_BYTES];
    for (i, page) in out.chunks_exact_mut(PAGE_BYTES).enumerate() {
        record_page(&mut rng, i as u64, page);
    }
    out
}

struct Tree<'a> {
    dir: &'a Path,
    total_bytes: u64,
    rng: Rng,
    made: Summary,
}

impl Tree<'_> {
    /// The share of `full` at the wanted size, in whole pages, at least one.
    fn scaled(&self, full: u64) -> u64 {
        let bytes = u128::from(full) * u128::from(self.total_bytes) / u128::from(FULL_BYTES);
        let page = PAGE_BYTES as u128;
        u64::try_from((bytes / page).max(1) * page).unwrap_or(u64::MAX)
    }

    /// A file of `bytes`, made page by page.
    fn file(
        &mut self,
        name: &str,
        bytes: u64,
        mut fill: impl FnMut(&mut Rng, u64, &mut [u8]),
    ) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(MIB as usize, File::create_new(self.dir.join(name))?);
        let mut page = vec![0; PAGE_BYTES];
        let mut left = bytes;
        for i in 0.. {
            if left == 0 {
                break;
            }
            fill(&mut self.rng, i, &mut page);
            let n = left.min(PAGE_BYTES as u64);
            out.write_all(&page[..n as usize])?;
            left -= n;
        }
        out.flush()?;
        self.made.files += 1;
        self.made.bytes += bytes;
        Ok(())
    }

    fn small_file(&mut self, name: &str) -> io::Result<()> {
        let rng = &mut self.rng;
        let mut text = String::with_capacity(SMALL_FILE_BYTES + 128);
        text.push_str("{\n");
        while text.len() < SMALL_FILE_BYTES {
            let (key, value, at) = (rng.u16(..500), rng.u64(..), rng.u32(..100_000));
            text.push_str(&format!(
                "  \"setting_{key}\": {{ \"value\": \"{value:016x}\", \"line\": {at} }},\n"
            ));
        }
        text.truncate(SMALL_FILE_BYTES);
        fs::write(self.dir.join(name), text)?;
        self.made.files += 1;
        self.made.bytes += SMALL_FILE_BYTES as u64;
        Ok(())
    }
}

/// A page of records: 12 % zero, half of the pointers null, the others mostly near.
fn record_page(rng: &mut Rng, page_number: u64, page: &mut [u8]) {
    let (header, records) = page.split_at_mut(PAGE_BYTES - RECORDS_PER_PAGE * RECORD_BYTES);
    header.fill(0);
    header[..8].copy_from_slice(&page_number.to_le_bytes());
    for (i, record) in records.chunks_exact_mut(RECORD_BYTES).enumerate() {
        record.fill(0);
        if rng.u32(..100) < 12 {
            continue;
        }
        let id = (page_number as u32).wrapping_mul(RECORDS_PER_PAGE as u32).wrapping_add(i as u32);
        record[0] = 1;
        record[1..5].copy_from_slice(&rng.u32(..1 << 26).to_le_bytes());
        record[5..9].copy_from_slice(&rng.u32(..1 << 26).to_le_bytes());
        record[9..11].copy_from_slice(&rng.u16(..24).to_le_bytes());
        for pointer in record[12..44].chunks_exact_mut(8) {
            let near = id.wrapping_add(rng.u32(..1 << 16));
            let value = if rng.bool() { u64::MAX } else { u64::from(near) };
            pointer.copy_from_slice(&value.to_le_bytes());
        }
        record[44..48].copy_from_slice(&id.wrapping_mul(3).to_le_bytes());
        record[52..55].copy_from_slice(&rng.u32(..).to_le_bytes()[..3]);
    }
}

/// An endless log, cut into pages.
#[derive(Default)]
struct Lines {
    ms: u64,
    rest: Vec<u8>,
}

impl Lines {
    fn fill(&mut self, rng: &mut Rng, page: &mut [u8]) {
        while self.rest.len() < page.len() {
            self.line(rng);
        }
        page.copy_from_slice(&self.rest[..page.len()]);
        self.rest.drain(..page.len());
    }

    fn line(&mut self, rng: &mut Rng) {
        self.ms += rng.u64(..40);
        let seconds = self.ms / 1000;
        let (hour, minute, second, ms) =
            (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, self.ms % 1000);
        let level = ["INFO ", "INFO ", "INFO ", "DEBUG", "WARN "][rng.usize(..5)];
        let path = ["users", "orders", "search", "health", "sessions", "graph/expand"][rng.usize(..6)];
        let (request, id, took) = (rng.u64(..), rng.u32(..200_000), rng.u32(..900));
        let status = if rng.u8(..) < 12 { 500 } else { 200 };
        let line = format!(
            "2026-01-01T{hour:02}:{minute:02}:{second:02}.{ms:03}Z {level} api request_id={request:016x} \
             method=GET path=/v1/{path}/{id} status={status} duration_ms={took}\n"
        );
        self.rest.extend_from_slice(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Name and contents of every file.
    fn files(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut out = Vec::new();
        let mut dirs = vec![root.to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    out.push((path.strip_prefix(root).unwrap().to_path_buf(), fs::read(&path).unwrap()));
                }
            }
        }
        out.sort();
        out
    }

    #[test]
    fn the_same_seed_makes_the_same_tree_of_the_wanted_size() {
        let dir = tempfile::tempdir().unwrap();
        let total = 8 << 20;
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        let made = generate(&a, total, 7).unwrap();
        assert_eq!(generate(&b, total, 7).unwrap(), made);
        let first = files(&a);
        assert!(first == files(&b));
        assert_eq!(first.len() as u64, made.files);
        assert_eq!(first.iter().map(|f| f.1.len() as u64).sum::<u64>(), made.bytes);
        assert!(made.bytes.abs_diff(total) < total / 20, "{made:?}");
        generate(&c, total, 8).unwrap();
        assert!(first != files(&c));
        assert_eq!(generate(&a, total, 7).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn it_has_a_hole_and_its_records_have_the_wanted_shape() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        generate(dir.path(), 64 << 20, 1).unwrap();
        let sparse = fs::metadata(dir.path().join("store/index.sparse")).unwrap();
        assert!(
            sparse.blocks() * 512 < sparse.len() * 3 / 4,
            "{} of {}",
            sparse.blocks() * 512,
            sparse.len()
        );

        let store = record_store(1 << 20, 1);
        let header = PAGE_BYTES - RECORDS_PER_PAGE * RECORD_BYTES;
        let records: Vec<&[u8]> =
            store.chunks(PAGE_BYTES).flat_map(|page| page[header..].chunks(RECORD_BYTES)).collect();
        let zero = records.iter().filter(|r| r.iter().all(|b| *b == 0)).count() * 100 / records.len();
        assert!((10..=14).contains(&zero), "{zero} % of the records are zero");
    }
}
