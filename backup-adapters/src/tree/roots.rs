//! From the configured paths and globs to the roots of an archive.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind, ConfigError, keep_aside};
use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use super::rules::{Excluded, RuleSpec};

/// A directory or file that is archived as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Root {
    /// Absolute, without symlinks.
    pub(crate) path: PathBuf,
    /// Its name in the archive: the path without the leading `/`.
    pub(crate) member: String,
    pub(crate) kind: RootKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RootKind {
    Dir,
    File,
}

/// The name of `path` in an archive; empty for `/`.
pub(crate) fn member_name(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes)
}

/// The directories above the roots, which an archive holds too, with their owners and modes; parents first.
pub(crate) fn parents(roots: &[Root]) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = roots
        .iter()
        .flat_map(|r| r.path.ancestors().skip(1))
        .filter(|p| p.parent().is_some())
        .map(Path::to_owned)
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

fn glob(part: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(part).literal_separator(true).backslash_escape(true).build()?.compile_matcher())
}

/// Checks the globs among `paths` without looking at the file system.
///
/// # Errors
/// Names the one that does not parse, or says that there is none at all.
pub(crate) fn validate(paths: &[String]) -> Result<(), ConfigError> {
    if paths.is_empty() {
        return Err(ConfigError::new("there is no path")
            .at("paths")
            .hint("paths = [\"/srv/app\", \"*.conf\"]"));
    }
    for path in paths {
        if path.is_empty() {
            return Err(ConfigError::new("a path is empty").at("paths"));
        }
        for part in path.split('/').filter(|p| is_pattern(p)) {
            if let Err(e) = glob(part) {
                return Err(ConfigError::new(format!("`{path}` is not a glob: {e}")).at("paths"));
            }
        }
    }
    Ok(())
}

/// Expands the configured paths. Symlinks are followed: what was named is what is wanted. A path below another one
/// is a part of it. `exclude` also holds for what a glob matches, and data that a restore kept aside never matches.
///
/// # Errors
/// `NotFound` names a path or glob without any match; `InvalidConfig` one that lies in a store.
pub(crate) fn expand(
    base: &Path,
    paths: &[String],
    rules: &RuleSpec,
    excluded: &Excluded,
) -> Result<Vec<Root>, AdapterError> {
    let mut found = Vec::new();
    for text in paths {
        let path = base.join(text);
        let literal = path.symlink_metadata().is_ok();
        let matches = if literal || !is_pattern(text) { vec![path] } else { expand_glob(base, text)? };
        if matches.is_empty() {
            return Err(AdapterError::new(AdapterErrorKind::NotFound, format!("nothing matches `{text}`")));
        }
        for path in matches {
            let io = |e| AdapterError::io(format!("cannot find `{}`", path.display()), e);
            let real = fs::canonicalize(&path).map_err(io)?;
            if let Some(store) = excluded.around(&real) {
                let what = format!("`{text}` lies in `{}`, which is never backed up", store.display());
                return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, what));
            }
            let file_type = fs::symlink_metadata(&real).map_err(io)?.file_type();
            if !literal && (file_type.is_socket() || rules.excludes(&path, file_type.is_dir())) {
                continue;
            }
            let kind = if file_type.is_dir() { RootKind::Dir } else { RootKind::File };
            let member = std::str::from_utf8(member_name(&real)).map(str::to_owned).map_err(|e| {
                let what = format!("the name of `{}` is not UTF-8: name the folder above it", real.display());
                AdapterError::new(AdapterErrorKind::InvalidConfig, what).with_source(e)
            })?;
            found.push(Root { path: real, member, kind });
        }
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    found.dedup();
    let mut roots: Vec<Root> = Vec::new();
    for root in found {
        // Sorted by components, everything below a root follows it directly.
        if !roots.last().is_some_and(|above| root.path.starts_with(&above.path)) {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// Whether `path`, absolute and without symlinks, is something that the configured paths name, or lies below. Works for
/// paths that are gone.
pub(crate) fn covers(base: &Path, paths: &[String], path: &Path) -> bool {
    let base = real(base);
    paths.iter().any(|text| {
        let named = base.join(text);
        if path.starts_with(&named) || path.starts_with(real(&named)) {
            return true;
        }
        // A glob may end above what it took, and begin with a symlink.
        is_pattern(text)
            && named
                .to_str()
                .and_then(|n| glob(n).ok())
                .is_some_and(|g| path.ancestors().any(|p| g.is_match(p)))
    })
}

/// `path` without symlinks and dots, as far as it exists.
fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(above), path.strip_prefix(above)) {
            let rest: PathBuf = rest.components().filter(|c| *c != Component::CurDir).collect();
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// The existing paths that a glob matches, one part of the path at a time. `**` crosses folders, wildcards match
/// hidden names too, symlinks to folders are not followed.
fn expand_glob(base: &Path, text: &str) -> Result<Vec<PathBuf>, AdapterError> {
    let parts: Vec<Component<'_>> = Path::new(text).components().collect();
    let mut found = vec![base.to_owned()];
    for (i, part) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        let name = part.as_os_str().to_str().unwrap_or_default();
        let mut next = Vec::new();
        for dir in found {
            if !is_pattern(name) {
                let path = dir.join(part);
                if path.symlink_metadata().is_ok() {
                    next.push(path);
                }
            } else if name == "**" {
                descend(&dir, last, &mut next).map_err(|e| list_error(&dir, e))?;
            } else {
                let bad = |e| {
                    AdapterError::new(AdapterErrorKind::InvalidConfig, format!("`{text}`")).with_source(e)
                };
                let matcher = glob(name).map_err(bad)?;
                for (path, is_dir) in list(&dir).map_err(|e| list_error(&dir, e))? {
                    if (last || is_dir) && path.file_name().is_some_and(|n| matcher.is_match(Path::new(n))) {
                        next.push(path);
                    }
                }
            }
        }
        next.sort_unstable();
        next.dedup();
        found = next;
    }
    Ok(found)
}

fn list_error(dir: &Path, e: io::Error) -> AdapterError {
    AdapterError::io(format!("cannot list `{}`", dir.display()), e)
}

fn list(dir: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .filter(|e| !e.as_ref().is_ok_and(|e| keep_aside::is_set_aside(&e.file_name())))
            .map(|e| e.and_then(|e| Ok((e.path(), e.file_type()?.is_dir()))))
            .collect(),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e),
    }
}

/// `dir` and all folders below it; with `files`, the files too.
fn descend(dir: &Path, files: bool, out: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for (path, is_dir) in list(&dir)? {
            if is_dir {
                todo.push(path);
            } else if files {
                out.push(path);
            }
        }
        if !files {
            out.push(dir);
        }
    }
    Ok(())
}
