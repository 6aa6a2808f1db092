//! What of a directory would be backed up without any configuration.

use std::fs;
use std::path::Path;

use backup_core::{AdapterError, DiscoverContext, Discovered, Discovery, LeftOut, ServiceName};

use crate::tree::count::Counter;
use crate::tree::roots::{Root, RootKind, member_name};
use crate::tree::rules::{Excluded, RuleSpec, Why};

/// How many left-out entries are named.
const NAMED: usize = 20;

pub(super) fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
    let dir = fs::canonicalize(&cx.dir)
        .map_err(|e| AdapterError::io(format!("cannot look into `{}`", cx.dir.display()), e))?;
    let mut out = Discovery::default();
    let rules = RuleSpec { exclude: covered(cx, &dir), gitignore: true, cross_mounts: false };
    let root = Root {
        member: String::from_utf8_lossy(member_name(&dir)).into_owned(),
        path: dir.clone(),
        kind: RootKind::Dir,
    };
    let mut counter = Counter::default();
    crate::tree::walk::walk(&root, &rules, &Excluded::new(&cx.excluded), &mut counter)?;
    let mut ignored = 0;
    for (path, why) in &counter.left_out {
        let what = path.strip_prefix(&dir).unwrap_or(path).display().to_string();
        match why {
            Why::Git => {
                ignored += 1;
                if ignored <= NAMED {
                    out.left_out.push(left_out(what, "Git ignores it: set `gitignore = false` to have it"));
                }
            }
            Why::Mount => {
                let why = "another file system is mounted there: set `cross_mounts = true` to have it";
                out.left_out.push(left_out(what, why));
            }
            // Backed up by another adapter, or never.
            Why::Pattern | Why::Excluded | Why::SetAside => {}
        }
    }
    if ignored > NAMED {
        let what = format!("{} more entries", ignored - NAMED);
        out.left_out.push(left_out(what, "Git ignores them: set `gitignore = false` to have them"));
    }
    let counts = counter.counts;
    if counts.files + counts.symlinks + counts.special == 0 {
        return Ok(out);
    }
    let mut settings = toml::Table::new();
    settings.insert("paths".to_owned(), vec!["."].into());
    settings.insert("gitignore".to_owned(), true.into());
    if !rules.exclude.is_empty() {
        settings.insert("exclude".to_owned(), rules.exclude.into());
    }
    let files = if counts.files == 1 { "1 file".to_owned() } else { format!("{} files", counts.files) };
    if let Ok(service) = ServiceName::new("files") {
        let summary = format!("{files}, {}", size(counts.bytes));
        out.found.push(Discovered { service, summary, settings, covers: vec![dir] });
    }
    Ok(out)
}

fn left_out(what: String, why: &str) -> LeftOut {
    LeftOut { what, why: why.to_owned() }
}

/// Patterns for what other adapters protect.
fn covered(cx: &DiscoverContext, dir: &Path) -> Vec<String> {
    let mut patterns = Vec::new();
    for path in &cx.covered {
        let real = fs::canonicalize(path).unwrap_or_else(|_| cx.dir.join(path));
        if let Some(inside) = real.strip_prefix(dir).ok().and_then(Path::to_str).filter(|p| !p.is_empty()) {
            patterns.push(pattern(inside));
        }
    }
    patterns.sort_unstable();
    patterns.dedup();
    patterns
}

/// A pattern that matches exactly this path.
fn pattern(path: &str) -> String {
    let mut out = String::from("/");
    for c in path.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\' | '!' | '#' | ' ') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Decimal units, as disks are sold.
fn size(bytes: u64) -> String {
    let mut unit = "B";
    let mut whole = bytes;
    for next in ["kB", "MB", "GB", "TB"] {
        if whole < 10_000 {
            break;
        }
        whole = (whole + 500) / 1000;
        unit = next;
    }
    format!("{whole} {unit}")
}
