//! What is left out of a tree.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::{ConfigError, keep_aside};
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// Why something is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// An `exclude` pattern.
    Pattern,
    /// Git ignores it.
    Git,
    /// A store or the state directory.
    Excluded,
    /// Kept aside by a restore.
    SetAside,
    /// A mount point that is not crossed: the empty directory stays.
    Mount,
}

/// The rules, as they are configured.
#[derive(Debug, Clone, Default)]
pub(crate) struct RuleSpec {
    pub(crate) exclude: Vec<String>,
    pub(crate) gitignore: bool,
    pub(crate) cross_mounts: bool,
}

impl RuleSpec {
    /// # Errors
    /// A pattern that does not parse, by name.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.matcher(Path::new("/")).map(|_| ()).map_err(|e| ConfigError::new(e).at("exclude"))
    }

    /// Whether a pattern excludes this path by its name alone.
    pub(crate) fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        let matcher = self.matcher(path.parent().unwrap_or(path));
        matcher.is_ok_and(|m| m.matched(path, is_dir).is_ignore())
    }

    fn matcher(&self, root: &Path) -> Result<Gitignore, String> {
        let mut builder = GitignoreBuilder::new(root);
        for pattern in &self.exclude {
            builder.add_line(None, pattern).map_err(|_| format!("`{pattern}` is not a pattern"))?;
        }
        builder.build().map_err(|e| e.to_string())
    }
}

/// Directories that are never part of a backup.
#[derive(Debug, Clone, Default)]
pub(crate) struct Excluded {
    ids: HashSet<(u64, u64)>,
    paths: HashSet<PathBuf>,
}

impl Excluded {
    /// Blocking.
    pub(crate) fn new(paths: &[PathBuf]) -> Self {
        let mut out = Self::default();
        for path in paths {
            // What is not there cannot be met, and what cannot be looked at is still known by its name.
            if let Ok(meta) = fs::metadata(path) {
                out.ids.insert((meta.dev(), meta.ino()));
            }
            out.paths.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone()));
        }
        out
    }

    pub(crate) fn contains(&self, path: &Path, id: (u64, u64)) -> bool {
        self.ids.contains(&id) || self.paths.contains(path)
    }

    /// Those that lie below `dir`.
    pub(crate) fn below<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = &'a Path> {
        self.paths.iter().map(PathBuf::as_path).filter(move |p| *p != dir && p.starts_with(dir))
    }

    /// The one that `path` lies in.
    pub(crate) fn around(&self, path: &Path) -> Option<&Path> {
        path.ancestors().find_map(|p| self.paths.get(p)).map(PathBuf::as_path)
    }
}

#[derive(Debug)]
enum Layer {
    /// Rules above do not hold below: a repository of its own, or Git's own folder.
    Barrier,
    Rules(Gitignore),
}

/// The rules while one root is walked.
#[derive(Debug)]
pub(crate) struct Rules {
    exclude: Gitignore,
    git: Option<Vec<Layer>>,
    /// For each directory that we are in: the number of layers outside of it.
    marks: Vec<usize>,
    in_repository: Vec<bool>,
    pub(crate) cross_mounts: bool,
}

impl Rules {
    /// Rules for the tree at `root`, a canonical path. Blocking: reads the ignore files above it.
    ///
    /// # Errors
    /// A pattern that does not parse.
    pub(crate) fn new(spec: &RuleSpec, root: &Path) -> io::Result<Self> {
        let top = if root.is_dir() { root } else { root.parent().unwrap_or(root) };
        let exclude = spec.matcher(top).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let mut rules = Self {
            exclude,
            git: None,
            marks: Vec::new(),
            in_repository: vec![false],
            cross_mounts: spec.cross_mounts,
        };
        if spec.gitignore {
            rules.git = Some(Vec::new());
            rules.above(root);
        }
        Ok(rules)
    }

    /// Loads the ignore files of the repository that `root` is a part of, from its top down.
    fn above(&mut self, root: &Path) {
        let above: Vec<&Path> = root.ancestors().skip(1).collect();
        let Some(top) = above.iter().position(|dir| dir.join(".git").exists()) else { return };
        for dir in above.iter().take(top + 1).rev() {
            let has = |name: &str| dir.join(name).exists();
            self.enter(dir, has(".git"), has(".gitignore"));
        }
    }

    /// Begins a directory. Every call needs a [`leave`](Self::leave).
    pub(crate) fn enter(&mut self, dir: &Path, has_git: bool, has_gitignore: bool) {
        let Some(layers) = &mut self.git else { return };
        let before = layers.len();
        let mut repository = self.in_repository.last().copied().unwrap_or(false);
        if dir.file_name() == Some(OsStr::new(".git")) {
            layers.push(Layer::Barrier);
            repository = false;
        } else if has_git {
            layers.push(Layer::Barrier);
            repository = true;
            let mut builder = GitignoreBuilder::new(dir);
            // Like Git, without the lines that do not parse.
            let _bad_lines = builder.add(dir.join(".git/info/exclude"));
            if let Ok(rules) = builder.build() {
                layers.push(Layer::Rules(rules));
            }
        }
        if repository && has_gitignore {
            let (rules, _bad_lines) = Gitignore::new(dir.join(".gitignore"));
            layers.push(Layer::Rules(rules));
        }
        self.marks.push(before);
        self.in_repository.push(repository);
    }

    /// Ends a directory.
    pub(crate) fn leave(&mut self) {
        let Some(layers) = &mut self.git else { return };
        layers.truncate(self.marks.pop().unwrap_or(0));
        self.in_repository.pop();
    }

    /// Whether an entry is left out by its name.
    pub(crate) fn left_out(&self, path: &Path, is_dir: bool) -> Option<Why> {
        if path.file_name().is_some_and(keep_aside::is_set_aside) {
            return Some(Why::SetAside);
        }
        if self.exclude.matched(path, is_dir).is_ignore() {
            return Some(Why::Pattern);
        }
        for layer in self.git.iter().flatten().rev() {
            let Layer::Rules(rules) = layer else { break };
            let found = rules.matched(path, is_dir);
            if found.is_ignore() {
                // Git's own folder is no part of the work tree: no pattern reaches it.
                return (path.file_name() != Some(OsStr::new(".git"))).then_some(Why::Git);
            }
            if found.is_whitelist() {
                break;
            }
        }
        None
    }
}
