//! `backup_manifest`: each file with its size and checksum, the WAL that is needed, and a checksum over all that.

use std::collections::BTreeMap;

use backup_core::AdapterError;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Those that are known; the second (since 17) adds the number of the system.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;

/// A manifest whose own checksum is right.
#[derive(Debug)]
pub(super) struct Manifest {
    /// Size and CRC-32C by path.
    pub(super) files: BTreeMap<String, (u64, Option<u32>)>,
    /// WAL from and up to these positions.
    pub(super) wal: Vec<(u64, u64)>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "Files")]
    files: Vec<Entry>,
    #[serde(rename = "WAL-Ranges")]
    wal: Vec<Range>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

fn corrupt(what: impl std::fmt::Display) -> AdapterError {
    AdapterError::corrupt(format!("the manifest of the base backup {what}"))
}

/// Reads a manifest.
///
/// # Errors
/// `Corrupt` if it is not as the server wrote it.
pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, AdapterError> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| corrupt("is not readable").with_source(e))?;
    if !VERSIONS.contains(&raw.version) {
        return Err(corrupt(format!("has version {}, which is not known", raw.version)));
    }
    // Of everything before its last line, which holds the checksum.
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let end = memchr::memrchr(b'\n', body).map_or(0, |at| at + 1);
    let sum = hex::encode(Sha256::digest(bytes.get(..end).unwrap_or_default()));
    if !sum.eq_ignore_ascii_case(&raw.checksum) {
        return Err(corrupt("does not agree with its own checksum"));
    }
    let mut files = BTreeMap::new();
    for entry in raw.files {
        let path = match (entry.path, entry.encoded) {
            (Some(path), _) => path,
            (None, Some(encoded)) => {
                let bytes = hex::decode(&encoded).map_err(|e| corrupt("has a bad path").with_source(e))?;
                super::check::text(&bytes)
            }
            (None, None) => return Err(corrupt("has a file without a path")),
        };
        let sum = match (entry.algorithm.as_deref(), entry.checksum) {
            (Some("CRC32C"), Some(sum)) => {
                let bytes = hex::decode(&sum).ok().and_then(|b| <[u8; 4]>::try_from(b).ok());
                Some(bytes.ok_or_else(|| corrupt(format!("has a bad checksum of `{path}`")))?)
            }
            (None, None) => None,
            (other, _) => {
                let other = other.unwrap_or("none");
                return Err(corrupt(format!("sums up `{path}` with {other}: only CRC32C is read here")));
            }
        };
        // As the server's processor orders bytes, which is this way on all that are in use.
        if files.insert(path.clone(), (entry.size, sum.map(u32::from_le_bytes))).is_some() {
            return Err(corrupt(format!("names `{path}` twice")));
        }
    }
    let position = |text: &str| {
        let (high, low) = text.split_once('/')?;
        let part = |digits| u64::from_str_radix(digits, 16).ok();
        Some((part(high)? << 32) | part(low)?)
    };
    let range = |r: &Range| position(&r.start).zip(position(&r.end)).filter(|(from, to)| from < to);
    let wal: Option<Vec<_>> = raw.wal.iter().map(range).collect();
    let wal = wal.filter(|w| !w.is_empty()).ok_or_else(|| corrupt("does not say which WAL is needed"))?;
    Ok(Manifest { files, wal })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::postgres::base) fn signed(body: &str) -> String {
        let head = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n{body},\n");
        let sum = hex::encode(Sha256::digest(head.as_bytes()));
        format!("{head}\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    const BODY: &str = r#""Files": [
{ "Path": "PG_VERSION", "Size": 3, "Last-Modified": "x", "Checksum-Algorithm": "CRC32C", "Checksum": "01020304" },
{ "Encoded-Path": "61ff", "Size": 0, "Last-Modified": "x" }
],
"WAL-Ranges": [
{ "Timeline": 1, "Start-LSN": "1/2000028", "End-LSN": "1/2000100" }
]"#;

    #[test]
    fn manifests_are_read_and_proven() {
        let text = signed(BODY);
        let manifest = parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.files["PG_VERSION"], (3, Some(0x0403_0201)));
        assert_eq!(manifest.wal, [((1 << 32) + 0x200_0028, (1 << 32) + 0x200_0100)]);
        for changed in [text.replace("\"Size\": 3", "\"Size\": 4"), text.replace("PG_VERSION", "PG_VERSIOM")]
        {
            let e = parse(changed.as_bytes()).unwrap_err().to_string();
            assert!(e.contains("its own checksum"), "{e}");
        }
        for end in (0..text.len() - 2).step_by(7) {
            assert!(parse(text.get(..end).unwrap().as_bytes()).is_err(), "cut at {end}");
        }
    }
}
