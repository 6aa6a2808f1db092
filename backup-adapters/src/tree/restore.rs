//! Restoring an archive in stages, for `files` and `env`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use backup_core::{
    AdapterError, AdapterErrorKind, ArtifactMeta, ArtifactName, Evidence, Leftover, Metadata, OpContext,
    Replaced, RestorePlan, RestoreSource, RestoreTarget, SpaceNeed, StepToken, keep_aside,
};
use serde::{Deserialize, Serialize};

use super::count::Counter;
use super::extract::Dest;
use super::live::Live;
use super::roots::{Root, RootKind, covers};
use super::rules::Excluded;
use super::units::{self, Unit};
use super::{bare, same, stage, walk};
use crate::in_use;
use crate::on_disk::{blocking, existing};

/// What [`plan`] decided.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    artifact: ArtifactName,
    roots: Vec<Root>,
    /// A directory to restore into; else every root goes to its own place.
    to: Option<PathBuf>,
}

/// What [`stage`](stage()) and [`switch`] did.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    switched: bool,
    /// Where the restored data was built.
    staging: Vec<PathBuf>,
    units: Vec<Unit>,
}

fn conflict(what: String) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Conflict, what)
}

/// The archive of a backup and the roots that it says it holds.
pub(crate) fn archive(backup: &Metadata) -> Result<(&ArtifactMeta, Vec<Root>), AdapterError> {
    let found = backup.artifacts.iter().find_map(|a| Some((a, a.attributes.get("roots")?)));
    let (artifact, roots) =
        found.ok_or_else(|| AdapterError::corrupt("the backup does not say what its archive holds"))?;
    let roots: Vec<Root> = serde_json::from_value(roots.clone())
        .map_err(|e| AdapterError::corrupt("the backup's list of roots is not readable").with_source(e))?;
    for root in &roots {
        // What names files on this host is not believed: absolute, canonical, and the same thing as the member.
        let plain = root
            .path
            .components()
            .all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_)));
        if !root.path.is_absolute()
            || !plain
            || super::roots::member_name(&root.path) != root.member.as_bytes()
        {
            return Err(AdapterError::corrupt(format!(
                "the root `{}` of the backup is not usable",
                root.path.display()
            )));
        }
    }
    Ok((artifact, roots))
}

/// Blocking.
pub(crate) fn plan(
    cx: &OpContext,
    live: &Live,
    backup: &Metadata,
    target: &RestoreTarget,
) -> Result<RestorePlan, AdapterError> {
    let (artifact, roots) = archive(backup)?;
    let bytes = room(artifact, &backup.evidence);
    let mut steps = Vec::new();
    let mut replaces = Vec::new();
    let mut space: Vec<SpaceNeed> = Vec::new();
    let to = match target {
        RestoreTarget::Live => {
            for root in &roots {
                cx.check_alive()?;
                plan_live(cx, live, root, &mut steps, &mut replaces)?;
                let path = existing(root.path.parent().unwrap_or(&root.path));
                let device = |p: &Path| fs::metadata(p).map(|m| std::os::unix::fs::MetadataExt::dev(&m)).ok();
                // How the bytes divide between several file systems is not known: each has to hold all of them.
                if !space.iter().any(|s| device(&s.path) == device(&path)) {
                    space.push(SpaceNeed { path, bytes });
                }
            }
            None
        }
        RestoreTarget::Dir(dir) => Some(dir.clone()),
        RestoreTarget::Scratch(scratch) => Some(scratch.dir.clone()),
        _ => return Err(AdapterError::unsupported("cannot restore to this kind of target")),
    };
    if let Some(dir) = &to {
        check_empty(cx, dir)?;
        steps.push(format!("extract everything into `{}`", dir.display()));
        space.push(SpaceNeed { path: existing(dir), bytes });
    }
    let token = StepToken::new(&Plan { artifact: artifact.name.clone(), roots, to })?;
    Ok(RestorePlan { target: target.clone(), steps, replaces: told(replaces), space, token })
}

/// What a file or directory takes up at least, on most file systems.
const FS_BLOCK: u64 = 4096;

/// Bytes that the restored tree takes up: each file in whole blocks, and a block for each directory.
fn room(artifact: &ArtifactMeta, evidence: &Evidence) -> u64 {
    let count = |name: &str| evidence.counts.get(name).copied();
    // The archive itself rounds up each file, and has a header for everything.
    let Some(bytes) = count("bytes") else { return artifact.plain_bytes };
    let entries = count("files").unwrap_or(0).saturating_add(count("directories").unwrap_or(0));
    bytes.saturating_add(entries.saturating_mul(FS_BLOCK))
}

fn check_empty(cx: &OpContext, dir: &Path) -> Result<(), AdapterError> {
    let ours = staging_in(dir, cx);
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.find(|e| !e.as_ref().is_ok_and(|e| e.path() == ours)) {
            None => Ok(()),
            Some(_) => Err(conflict(format!("`{}` is not empty", dir.display()))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(conflict(format!("`{}` is not a directory", dir.display())))
        }
        Err(e) => Err(AdapterError::io(format!("cannot look into `{}`", dir.display()), e)),
    }
}

fn plan_live(
    cx: &OpContext,
    live: &Live,
    root: &Root,
    steps: &mut Vec<String>,
    replaces: &mut Vec<Replaced>,
) -> Result<(), AdapterError> {
    let path = root.path.display();
    if !covers(&live.base, &live.paths, &root.path) && !cx.force {
        return Err(conflict(format!(
            "the backup holds `{path}`, which is not what the configuration names: restore elsewhere with `--to`"
        )));
    }
    let look = |e| AdapterError::io(format!("cannot look at `{path}`"), e);
    let there = match fs::symlink_metadata(&root.path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            steps.push(format!("build `{path}` beside its place and move it there"));
            return Ok(());
        }
        Err(e) => return Err(look(e)),
    };
    if there.is_dir() {
        let mounted = root.path.parent().is_none()
            || walk::handle(&root.path).is_ok_and(|fd| walk::is_mount_point(std::os::fd::AsFd::as_fd(&fd)));
        if mounted {
            return Err(conflict(format!(
                "`{path}` is a mount point and cannot be renamed: restore elsewhere with `--to`"
            )));
        }
        if live.rules.cross_mounts
            && let Some(mount) = mounts_below(&root.path).map_err(look)?.first()
        {
            return Err(conflict(format!(
                "`{}` is a mount point and cannot be replaced: restore elsewhere with `--to`",
                mount.display()
            )));
        }
    }
    if !cx.force
        && let Some(holder) = in_use::writers(&root.path).map_err(look)?.first()
    {
        return Err(conflict(format!(
            "`{}` is open for writing by process {} (`{}`): stop it first",
            holder.path.display(),
            holder.pid,
            holder.command
        )));
    }
    let left_out = if there.is_dir() { counter(cx, live, root)?.left_out } else { Vec::new() };
    let mut kept = Vec::new();
    if left_out.is_empty() {
        steps.push(format!("build `{path}` beside its place, then exchange the two"));
        kept.push(root.path.clone());
    } else {
        let names: Vec<String> = left_out.iter().map(|(p, _)| format!("`{}`", p.display())).collect();
        steps.push(format!(
            "build `{path}` beside its place, then exchange their entries; what the backup leaves out stays: {}",
            few(&names)
        ));
        let stays = left_out.into_iter().map(|(path, _)| path).collect();
        units::kept_aside(&root.path, &stays, &mut kept).map_err(look)?;
    }
    for path in kept {
        let kept_as = units::free_kept_path(&path, cx.timestamp).map_err(look)?.0;
        let (_, changed_at) = keep_aside::measure(&path).map_err(look)?;
        let what = path.display().to_string();
        replaces.push(Replaced { what, kept_as: kept_as.display().to_string(), changed_at });
    }
    Ok(())
}

/// How many replaced entries are named.
const NAMED: usize = 20;

/// The first of what is replaced, and how many more there are.
fn told(mut replaces: Vec<Replaced>) -> Vec<Replaced> {
    if replaces.len() > NAMED + 1 {
        let more = replaces.split_off(NAMED);
        replaces.push(Replaced {
            what: format!("{} more entries", more.len()),
            kept_as: "`<name>.backup.<time>` beside each".to_owned(),
            changed_at: more.iter().filter_map(|r| r.changed_at).max(),
        });
    }
    replaces
}

/// The first of `names`, and how many more there are.
fn few(names: &[String]) -> String {
    const FEW: usize = 5;
    let first = names.iter().take(FEW).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > FEW { format!("{first} and {} more", names.len() - FEW) } else { first }
}

/// What staged data will replace.
pub(crate) fn replaces(staged: &StepToken) -> Option<Vec<Replaced>> {
    let done: Done = staged.get().ok()?;
    let replaced = |unit: &Unit| {
        let (what, kept) = (unit.target(), unit.kept()?);
        Some(Replaced {
            what: what.display().to_string(),
            kept_as: kept.display().to_string(),
            changed_at: None,
        })
    };
    Some(told(done.units.iter().filter_map(replaced).collect()))
}

/// Walks a live root by the rules, to see what stays.
fn counter(cx: &OpContext, live: &Live, root: &Root) -> Result<Counter, AdapterError> {
    let mut counter = Counter::default();
    let root = Root { kind: RootKind::Dir, ..root.clone() };
    walk::walk(&root, &live.rules, &Excluded::new(&cx.excluded), &mut counter)?;
    if counter.too_many() {
        return Err(conflict(format!(
            "`{}` holds too much that the backup leaves out: restore elsewhere with `--to`",
            root.path.display()
        )));
    }
    Ok(counter)
}

/// Mount points below `dir`, from the kernel's table.
pub(crate) fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    let table = fs::read("/proc/self/mountinfo")?;
    let points = table.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4));
    let points = points.map(|p| PathBuf::from(std::ffi::OsString::from_vec(unescape(p))));
    Ok(points.filter(|p| p != dir && p.starts_with(dir)).collect())
}

/// The kernel writes blanks in its table as `\040`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\');
        let code = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 8).ok());
        out.push(code.unwrap_or(first));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    out
}

fn staging_in(dir: &Path, cx: &OpContext) -> PathBuf {
    keep_aside::staging_path(&dir.join("all"), &cx.run_id)
}

/// Where a restore builds: the prefix in the archive, and the place.
fn places(plan: &Plan, cx: &OpContext) -> Vec<(Vec<u8>, PathBuf)> {
    match &plan.to {
        Some(dir) => vec![(Vec::new(), staging_in(dir, cx))],
        None => {
            let place =
                |r: &Root| (r.member.clone().into_bytes(), keep_aside::staging_path(&r.path, &cx.run_id));
            plan.roots.iter().map(place).collect()
        }
    }
}

/// Extracts beside the targets and decides on the renames.
pub(crate) async fn stage(
    cx: &OpContext,
    live: &Live,
    plan: &RestorePlan,
    source: &RestoreSource,
) -> Result<StepToken, AdapterError> {
    let wanted: Plan = plan.token.get()?;
    let dests: Vec<Dest> = places(&wanted, cx)
        .into_iter()
        .filter_map(|(prefix, place)| {
            Some(Dest {
                prefix,
                below_top: false,
                parent: place.parent()?.to_owned(),
                name: place.file_name()?.to_owned(),
            })
        })
        .collect();
    let parents: Vec<PathBuf> = dests.iter().map(|d| d.parent.clone()).collect();
    blocking(move || {
        parents.iter().try_for_each(|dir| {
            fs::create_dir_all(dir)
                .map_err(|e| AdapterError::io(format!("cannot create `{}`", dir.display()), e))
        })
    })
    .await?;
    let staging: Vec<PathBuf> = dests.iter().map(|d| d.parent.join(&d.name)).collect();
    let mut body = source.open(&wanted.artifact).await?;
    if let (Some(artifact), [root]) = (source.metadata().artifact(&wanted.artifact), wanted.roots.as_slice())
        && bare::is_bare(artifact)
    {
        let (bytes, root) = (artifact.plain_bytes, root.clone());
        let changed = u64::try_from(source.metadata().consistent_from.timestamp()).unwrap_or(0);
        body = blocking(move || bare::archived(body, bytes, &root, changed)).await?;
    }
    for warning in stage::extract(cx, body, dests).await? {
        cx.warn(warning);
    }
    let (cx, live) = (cx.clone(), live.clone());
    blocking(move || {
        let units = decide(&cx, &live, &wanted, &staging).inspect_err(|_| {
            for place in &staging {
                // The first error tells more.
                let _second = keep_aside::remove(place);
            }
        })?;
        StepToken::new(&Done { switched: false, staging, units })
    })
    .await
}

fn decide(cx: &OpContext, live: &Live, plan: &Plan, staging: &[PathBuf]) -> Result<Vec<Unit>, AdapterError> {
    let mut units = Vec::new();
    if let (Some(dir), Some(staged)) = (&plan.to, staging.first()) {
        let fail = |e| AdapterError::io(format!("cannot look into `{}`", staged.display()), e);
        for entry in fs::read_dir(staged).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            units.push(Unit::new(&staged.join(&name), &dir.join(&name), cx.timestamp).map_err(fail)?);
        }
        return Ok(units);
    }
    for (root, staged) in plan.roots.iter().zip(staging) {
        let Ok(meta) = fs::symlink_metadata(staged) else {
            return Err(AdapterError::corrupt(format!("the archive does not hold `{}`", root.member)));
        };
        // To keep a copy of the same aside would be of no use. What cannot be compared is replaced.
        if same::same(staged, &root.path).unwrap_or(false) {
            continue;
        }
        let mut stay = units::Pinned::new();
        if meta.is_dir() && fs::symlink_metadata(&root.path).is_ok_and(|m| m.is_dir()) {
            stay = units::pinned(counter(cx, live, root)?.left_out, &root.path, staged);
        }
        units::plan(staged, &root.path, &stay, cx.timestamp, &mut units)?;
    }
    Ok(units)
}

/// Makes the staged data live: everything, or nothing. Blocking.
pub(crate) fn switch(staged: &StepToken) -> Result<StepToken, AdapterError> {
    let done: Done = staged.get()?;
    units::apply_all(&done.units)?;
    // Folders that stayed in place left their empty counterparts here.
    for place in &done.staging {
        keep_aside::remove(place)
            .map_err(|e| AdapterError::io(format!("cannot remove `{}`", place.display()), e))?;
    }
    StepToken::new(&Done { switched: true, ..done })
}

/// Blocking.
pub(crate) fn undo(cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
    let done: Done = switched.get()?;
    let mut units = Vec::new();
    for unit in done.units.iter().rev() {
        let back = unit.undo(cx.timestamp).map_err(|e| {
            AdapterError::io(format!("cannot put `{}` back as it was", unit.target().display()), e)
        })?;
        units.push(back);
    }
    StepToken::new(&Done { switched: true, staging: Vec::new(), units })
}

/// What was done so far. A restore that died while it staged has only its plan.
fn done(cx: &OpContext, token: &StepToken) -> Result<Done, AdapterError> {
    token.get::<Done>().or_else(|_| {
        let plan: Plan = token.get()?;
        let staging = places(&plan, cx).into_iter().map(|(_, place)| place).collect();
        Ok(Done { switched: false, staging, units: Vec::new() })
    })
}

fn occupied(done: &Done) -> Vec<PathBuf> {
    let kept = done.units.iter().filter_map(Unit::kept).filter(|_| done.switched).map(Path::to_owned);
    done.staging.iter().cloned().chain(kept).filter(|p| p.symlink_metadata().is_ok()).collect()
}

/// Blocking.
pub(crate) fn leftovers(cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
    let measure = |path: PathBuf| {
        let bytes = keep_aside::measure(&path).ok().map(|(bytes, _)| bytes);
        Leftover { what: path.display().to_string(), bytes }
    };
    Ok(occupied(&done(cx, token)?).into_iter().map(measure).collect())
}

/// Blocking.
pub(crate) fn discard(cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
    let done = done(cx, token)?;
    for unit in done.units.iter().filter(|_| !done.switched) {
        let begun = unit
            .is_begun()
            .map_err(|e| AdapterError::io(format!("cannot look at `{}`", unit.target().display()), e))?;
        if begun {
            return Err(conflict(format!(
                "the restore of `{}` was cut short while it went live: what was there before may lie beside it",
                unit.target().display()
            )));
        }
    }
    for path in occupied(&done) {
        keep_aside::remove(&path)
            .map_err(|e| AdapterError::io(format!("cannot remove `{}`", path.display()), e))?;
    }
    Ok(())
}

/// Removes what dead runs were building beside the roots. Blocking.
pub(crate) fn reclaim(roots: &[PathBuf], dead: &[backup_core::RunId]) -> Result<Vec<String>, AdapterError> {
    let mut removed = Vec::new();
    for (root, run) in roots.iter().flat_map(|r| dead.iter().map(move |run| (r, run))) {
        let place = keep_aside::staging_path(root, run);
        if place.symlink_metadata().is_ok() {
            keep_aside::remove(&place)
                .map_err(|e| AdapterError::io(format!("cannot remove `{}`", place.display()), e))?;
            removed.push(format!("removed `{}`", place.display()));
        }
    }
    Ok(removed)
}
