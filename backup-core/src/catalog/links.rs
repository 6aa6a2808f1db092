//! Symbolic links where a service or a series would be: a store follows none, and must not be silent about it.

use std::path::{Path, PathBuf};

use super::{Catalog, Filter, mark_key};
use crate::id::{Interval, ServiceName};

impl Catalog {
    /// One line for each link that hides backups, in a store that is a directory of this host.
    pub(super) async fn links(&self, filter: &Filter) -> Vec<String> {
        // Who asks for what is a link itself gets an error of the store.
        let root = self.store.local_path(&mark_key()).and_then(|p| p.parent().map(PathBuf::from));
        let (Some(root), None) = (root, &filter.interval) else { return Vec::new() };
        let service = filter.service.clone();
        let find = move || {
            let is_interval = |name: &str| name.parse::<Interval>().is_ok();
            let mut links = Vec::new();
            match service {
                Some(service) => links = entries(&root.join(service.as_str()), is_interval).0,
                None => {
                    let (at_top, services) = entries(&root, |name| name.parse::<ServiceName>().is_ok());
                    links.extend(at_top);
                    links.extend(services.iter().flat_map(|dir| entries(dir, is_interval).0));
                }
            }
            links.sort_unstable();
            links.iter().map(|link| told(link)).collect()
        };
        tokio::task::spawn_blocking(find).await.unwrap_or_default()
    }
}

/// The links to directories in `dir`, and its directories, as far as their names can be ours. What cannot be read is
/// told by the listing itself.
fn entries(dir: &Path, is_ours: impl Fn(&str) -> bool) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut links, mut dirs) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(&is_ours) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
            Ok(kind) if kind.is_symlink() && entry.path().is_dir() => links.push(entry.path()),
            _ => {}
        }
    }
    (links, dirs)
}

fn told(path: &Path) -> String {
    format!(
        "`{}` is a symbolic link: a store follows none, so what lies behind it is not listed (a bind mount would do)",
        path.display()
    )
}
