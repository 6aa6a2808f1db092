//! Finding SQLite databases in a directory tree, by their content.
//!
//! What Git ignores is looked at too: that is where databases usually are.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, DiscoverContext, Discovered, Discovery, LeftOut, ServiceName, keep_aside};

use super::check::MAGIC;
use super::connect::{SIDECARS, sidecar};

const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 200_000;
const MAX_FOUND: usize = 50;

/// Folders that hold what can be made again. Hidden folders are caches and tools' own data.
const SKIPPED: [&str; 2] = ["node_modules", "target"];

pub(super) fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
    let mut discovery = Discovery::default();
    let mut names = BTreeSet::new();
    let mut entries = 0;
    let mut todo = vec![(cx.dir.clone(), 0)];
    while let Some((dir, depth)) = todo.pop() {
        let mut listed: Vec<_> = match fs::read_dir(&dir) {
            Ok(listed) => listed.flatten().collect(),
            Err(e) if depth == 0 => {
                return Err(AdapterError::io(format!("cannot list `{}`", dir.display()), e));
            }
            Err(e) => {
                left_out(
                    &mut discovery,
                    cx,
                    &dir,
                    &format!("cannot be listed ({e}): databases in it are not found"),
                );
                continue;
            }
        };
        listed.sort_by_key(|e| std::cmp::Reverse(e.file_name()));
        let mut files = Vec::new();
        for entry in listed {
            entries += 1;
            let (name, path) = (entry.file_name(), entry.path());
            let known = |paths: &[PathBuf]| paths.contains(&path);
            if keep_aside::is_set_aside(&name) || known(&cx.covered) || known(&cx.excluded) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !skipped(&name) => {
                    if depth + 1 > MAX_DEPTH {
                        left_out(&mut discovery, cx, &path, "is too deep to be searched for databases");
                    } else {
                        todo.push((path, depth + 1));
                    }
                }
                Ok(kind) if kind.is_file() => files.push(path),
                _ => {}
            }
        }
        for path in files.into_iter().rev() {
            let bytes = match database_size(&path) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(e) => {
                    left_out(&mut discovery, cx, &path, &format!("cannot be read ({e})"));
                    continue;
                }
            };
            if discovery.found.len() >= MAX_FOUND {
                left_out(&mut discovery, cx, &path, "is one database too many: configure it by hand");
                continue;
            }
            match found(cx, &path, bytes, &mut names) {
                Some(found) => discovery.found.push(found),
                None => {
                    left_out(&mut discovery, cx, &path, "has a name that is not UTF-8: configure it by hand");
                }
            }
        }
        if entries > MAX_ENTRIES {
            let why = format!("more than {MAX_ENTRIES} files: the rest was not searched for databases");
            left_out(&mut discovery, cx, &cx.dir, &why);
            break;
        }
    }
    Ok(discovery)
}

fn skipped(name: &OsStr) -> bool {
    name.to_str().is_some_and(|n| n.starts_with('.') || SKIPPED.contains(&n))
}

fn left_out(discovery: &mut Discovery, cx: &DiscoverContext, path: &Path, why: &str) {
    let what = path.strip_prefix(&cx.dir).ok().filter(|p| !p.as_os_str().is_empty()).unwrap_or(path);
    discovery.left_out.push(LeftOut { what: what.display().to_string(), why: why.to_owned() });
}

/// The size of a database; `None` if it is none. An empty file is a database only to those who know it.
fn database_size(path: &Path) -> std::io::Result<Option<u64>> {
    let bytes = fs::metadata(path)?.len();
    // A database is made of pages of at least 512 bytes: most files need not be opened.
    if bytes == 0 || !bytes.is_multiple_of(512) {
        return Ok(None);
    }
    let mut magic = [0; MAGIC.len()];
    File::open(path)?.read_exact(&mut magic)?;
    Ok((magic == *MAGIC).then_some(bytes))
}

fn found(
    cx: &DiscoverContext,
    path: &Path,
    bytes: u64,
    names: &mut BTreeSet<ServiceName>,
) -> Option<Discovered> {
    let relative = path.strip_prefix(&cx.dir).ok()?.to_str()?;
    let stem = path.file_stem()?.to_str()?;
    let service = (1..)
        .map(|n| if n == 1 { stem.to_owned() } else { format!("{stem}-{n}") })
        .map(|name| service_name(&name))
        .find(|name| !names.contains(name))?;
    names.insert(service.clone());
    let mut settings = toml::Table::new();
    settings.insert("path".into(), relative.into());
    let covers = SIDECARS.iter().map(|s| sidecar(path, s)).chain([path.to_owned()]).collect();
    Some(Discovered { service, summary: format!("SQLite database, {bytes} bytes"), settings, covers })
}

/// A service's name as close to `text` as the rule allows.
fn service_name(text: &str) -> ServiceName {
    let plain: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.') { c } else { '-' })
        .collect();
    let plain = plain.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let tail: String = plain.chars().rev().take(64).collect::<Vec<_>>().into_iter().rev().collect();
    ServiceName::new(tail.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()))
        .unwrap_or_else(|_| database_name())
}

fn database_name() -> ServiceName {
    ServiceName::new("database").expect("a valid name")
}
