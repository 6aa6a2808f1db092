//! How to restore an archive with `tar`.

use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind, ArtifactMeta, HandContext, HandStep, shell_quote};
use serde::{Deserialize, Serialize};

use super::restore::{archive, mounts_below};
use super::roots::{Root, RootKind};
use super::rules::{Excluded, RuleSpec};

/// What an archive leaves out below its roots, as far as it is known before the walk: whoever moves a root aside by hand
/// moves that along. An attribute of the archive.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    /// Stores and the state directory.
    own: Vec<PathBuf>,
    /// Other file systems.
    mounts: Vec<PathBuf>,
    /// Whether there are patterns or Git's rules, whose matches are not listed.
    rules: bool,
}

impl LeftOut {
    pub(crate) const ATTRIBUTE: &str = "left_out";

    /// Blocking.
    pub(crate) fn find(roots: &[Root], rules: &RuleSpec, excluded: &Excluded) -> Self {
        let mut out = Self { rules: rules.gitignore || !rules.exclude.is_empty(), ..Self::default() };
        for root in roots.iter().filter(|r| r.kind == RootKind::Dir) {
            // Where the kernel does not tell, a root with a mount below it cannot be moved either.
            let mounts = mounts_below(&root.path).unwrap_or_default();
            let mut own: Vec<PathBuf> = excluded.below(&root.path).map(Path::to_owned).collect();
            own.sort_unstable();
            let inside_own = |m: &PathBuf| own.iter().any(|o| m != o && m.starts_with(o));
            let crossed = |m: &PathBuf| rules.cross_mounts && !own.contains(m);
            out.mounts.extend(mounts.iter().filter(|m| !inside_own(m) && !crossed(m)).cloned());
            // A mount point cannot be renamed, whatever is on it.
            out.own.extend(own.into_iter().filter(|o| !mounts.contains(o)));
        }
        // JSON has no other names; what has one of those is told of like the matches of a pattern.
        let before = out.own.len() + out.mounts.len();
        out.own.retain(|p| p.to_str().is_some());
        out.mounts.retain(|p| p.to_str().is_some());
        out.rules |= out.own.len() + out.mounts.len() < before;
        out
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn attribute(&self) -> Result<serde_json::Value, AdapterError> {
        serde_json::to_value(self).map_err(|e| {
            AdapterError::new(AdapterErrorKind::Other, "cannot record what the backup leaves out")
                .with_source(e)
        })
    }

    fn of(artifact: &ArtifactMeta) -> Self {
        let stored = artifact.attributes.get(Self::ATTRIBUTE).cloned();
        stored.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default()
    }
}

/// The steps: extract, then one for each root.
pub(crate) fn steps(backup: &HandContext<'_>) -> Vec<HandStep> {
    let Ok((artifact, roots)) = archive(backup.metadata) else { return Vec::new() };
    if let (true, [root]) = (super::bare::is_bare(artifact), roots.as_slice()) {
        let (path, old) = (root.path.display().to_string(), format!("{}.old", root.path.display()));
        let (path, old) = (shell_quote(&path), shell_quote(&old));
        let decode = backup.decode(artifact);
        return vec![HandStep::new(
            "Put the file into its place; what is there is kept beside it.",
            format!("if [ -e {path} ]; then mv {path} {old}; fi; (umask 077 && {decode} > {path})"),
        )];
    }
    let extract = format!(
        "mkdir -p restored && {} | tar -x --numeric-owner -p --xattrs --xattrs-include='*' -C restored",
        backup.decode(artifact)
    );
    let mut steps = vec![HandStep::new(
        "Extract the archive into a new folder.\nAs root, owners are restored too; names are those of the original paths \
         without the leading slash.",
        extract,
    )];
    let left_out = LeftOut::of(artifact);
    steps.extend(roots.iter().map(|root| put_into_place(root, &left_out)));
    steps
}

fn put_into_place(root: &Root, left_out: &LeftOut) -> HandStep {
    let quote = |p: &Path| shell_quote(&p.display().to_string());
    let shown = root.path.display();
    let old = format!("{shown}.old");
    let mut text = format!(
        "Put `{shown}` into its place.\nStop what writes to it first. What is there now stays beside it as `{old}`."
    );
    let mut command = String::new();
    let here = |paths: &[PathBuf]| -> Vec<PathBuf> {
        paths.iter().filter(|p| p.starts_with(&root.path)).cloned().collect()
    };
    let (own, mounts) = (here(&left_out.own), here(&left_out.mounts));
    if !mounts.is_empty() {
        text.push_str(&format!(
            " Unmount {} before, and mount what belongs there again afterwards: the backup leaves it out.",
            list(&mounts)
        ));
    }
    for mount in &mounts {
        let mount = quote(mount);
        command.push_str(&format!("if mountpoint -q {mount}; then echo {mount} is mounted >&2; false; fi\n"));
    }
    let (path, old_path) = (quote(&root.path), shell_quote(&old));
    let above = quote(root.path.parent().unwrap_or(&root.path));
    let member = shell_quote(&format!("restored/{}", root.member));
    command.push_str(&format!(
        "if [ -e {path} ]; then mv -T --backup=numbered {path} {old_path}; fi\n\
         mkdir -p {above} && mv -T {member} {path}"
    ));
    if !own.is_empty() {
        text.push_str(&format!(
            " The backup leaves out {}, which moves along and is moved back by the last commands.",
            list(&own)
        ));
    }
    for dir in &own {
        let Ok(inside) = dir.strip_prefix(&root.path) else { continue };
        let from = quote(&Path::new(&old).join(inside));
        let (to, above) = (quote(dir), quote(dir.parent().unwrap_or(dir)));
        command.push_str(&format!(
            "\nif [ -e {from} ] && [ ! -e {to} ]; then mkdir -p {above} && mv -T {from} {to}; fi"
        ));
    }
    if left_out.rules && root.kind == RootKind::Dir {
        text.push_str(&format!(
            " The backup does not say by name what `exclude` or Git's rules left out of it: that moves along, too. \
             `diff -rq {old_path} {path}` shows what is only there; move back what you need."
        ));
    }
    HandStep::new(text, command)
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", ")
}
