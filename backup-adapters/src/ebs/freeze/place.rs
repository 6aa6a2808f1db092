//! What may be frozen: a mount point that nothing lies on which the backup, or the host, needs to go on.
//!
//! Paths say nothing: bind mounts and links lead anywhere. What counts is the device that the kernel gives for a file, and
//! for the mount that it is in (of btrfs the two differ).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind as Kind};

use super::refused;
use crate::ebs::Host;
use crate::ebs::host::{Device, Mount};

/// Something that must not stand still, and what it is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) what: &'static str,
    pub(super) path: PathBuf,
}

impl Needed {
    pub(super) fn new(what: &'static str, path: impl Into<PathBuf>) -> Self {
        Self { what, path: path.into() }
    }
}

/// What every host needs to go on.
const HOST: [(&str, &str); 9] = [
    ("the root file system", "/"),
    ("the programs of this host", "/usr"),
    ("the settings of this host", "/etc"),
    ("the running state of this host", "/run"),
    ("temporary files", "/tmp"),
    ("temporary files", "/var/tmp"),
    ("the logs of this host", "/var/log"),
    ("the data of the container engine", "/var/lib/docker"),
    ("the data of the container engine", "/var/lib/containerd"),
];

/// A file system that may be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileSystem {
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// Its device.
    pub(super) device: Device,
    /// The volumes that it lies on; empty if that cannot be told.
    pub(super) volumes: Vec<String>,
}

/// The file systems of `mounts`, if each may be frozen. `set` are the volumes of which snapshots are made.
pub(super) fn inspect(
    host: &Host,
    mounts: &[PathBuf],
    needed: &[Needed],
    set: &[String],
) -> Result<Vec<FileSystem>, AdapterError> {
    let table = host.mount_table();
    let of_host = HOST.iter().map(|(what, path)| Needed::new(what, *path)).filter(|n| n.path.exists());
    let needed: Vec<Needed> =
        of_host.chain(open_files()).chain(swap_files(host)).chain(needed.to_vec()).collect();
    let mut found: Vec<FileSystem> = Vec::new();
    for mount in mounts {
        let refused = |said: &str, help: &str| {
            Err(refused(Kind::InvalidConfig, format!("cannot freeze `{}`", mount.display()), said, help))
        };
        let real = fs::canonicalize(mount)
            .map_err(|e| AdapterError::io(format!("cannot look at `{}`", mount.display()), e))?;
        // Of several at one place the last one is seen.
        let Some(row) = table.iter().rfind(|m| m.target == real) else {
            let at = mount_of(&table, &real).map(|m| m.target.display().to_string()).unwrap_or_default();
            let help = format!("name the place where its file system is mounted: `{at}`");
            return refused("it is no mount point", &help);
        };
        let own = devices(&table, &real);
        if let Some(n) = needed.iter().find(|n| !under(host, &table, &n.path).is_disjoint(&own)) {
            let said = format!("{} (`{}`) would stand still, too", n.what, n.path.display());
            return refused(&said, "take it out of `freeze`: what it holds has to go on while it is frozen");
        }
        if let Some(same) = found.iter().find(|f| own.contains(&f.device)) {
            return refused(
                &format!("it is the same file system as `{}`", same.mount.display()),
                "name each file system once in `freeze`",
            );
        }
        let serials = host.serials_under(row.device);
        let volumes: Vec<String> = serials.into_iter().flatten().collect();
        if let Some(other) = volumes.iter().find(|v| !set.contains(v)) {
            let said = format!("it is on {other}, of which no snapshot is made");
            return refused(&said, "take it out of `freeze`, or its volume into `volumes`");
        }
        found.push(FileSystem { mount: real, device: row.device, volumes });
    }
    Ok(found)
}

/// The innermost mount that holds `path`.
fn mount_of<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let holding = table.iter().enumerate().filter(|(_, m)| path.starts_with(&m.target));
    holding.max_by_key(|(n, m)| (m.target.components().count(), *n)).map(|(_, m)| m)
}

/// The devices that a file, or the folder that it will be in, has.
fn devices(table: &[Mount], path: &Path) -> BTreeSet<Device> {
    let there = path.ancestors().find_map(|p| fs::canonicalize(p).ok());
    let Some(real) = there else { return BTreeSet::new() };
    let file = fs::metadata(&real).ok().map(|m| Device::of(m.dev()));
    let mount = mount_of(table, &real).map(|m| m.device);
    file.into_iter().chain(mount).collect()
}

/// The same, and what those lie on if they are files of another file system (loop devices).
fn under(host: &Host, table: &[Mount], path: &Path) -> BTreeSet<Device> {
    let mut all = devices(table, path);
    let mut next: Vec<Device> = all.iter().copied().collect();
    while let Some(device) = next.pop() {
        for file in host.files_under(device) {
            let new: Vec<Device> = devices(table, &file).into_iter().filter(|d| !all.contains(d)).collect();
            all.extend(new.iter().copied());
            next.extend(new);
        }
    }
    all
}

/// Where this program's output goes, if that is a file: whoever writes a line to it would wait.
fn open_files() -> impl Iterator<Item = Needed> {
    (1..=2).filter_map(|fd| {
        let fd = PathBuf::from(format!("/proc/self/fd/{fd}"));
        let is_file = fs::metadata(&fd).is_ok_and(|m| m.is_file());
        let path = fs::read_link(&fd).ok().filter(|_| is_file)?;
        Some(Needed::new("the output of this program", path))
    })
}

fn swap_files(host: &Host) -> impl Iterator<Item = Needed> {
    host.swap_files().into_iter().map(|path| Needed::new("a swap file", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(mounts: &[&str], needed: &[Needed]) -> String {
        let mounts: Vec<PathBuf> = mounts.iter().map(PathBuf::from).collect();
        let e = inspect(&Host::this(), &mounts, needed, &[]).unwrap_err();
        assert!(backup_core::chain(&e).contains("; "), "it says what to do: {e}");
        backup_core::chain(&e)
    }

    #[test]
    fn what_the_host_needs_is_refused_by_its_device() {
        let says = refusal(&["/"], &[]);
        assert!(says.contains("cannot freeze `/`: the root file system (`/`)"), "{says}");
        // A link and a detour lead to the same file system.
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(refusal(&[link.to_str().unwrap()], &[]).contains("the root file system"));
    }

    #[test]
    fn what_is_no_mount_point_is_refused_and_the_right_one_named() {
        let e = inspect(&Host::this(), &["/proc/self".into()], &[], &[]).unwrap_err();
        let says = backup_core::chain(&e);
        assert!(says.contains("no mount point; name") && says.contains("`/proc`"), "{says}");
    }

    #[test]
    fn what_will_be_there_counts_as_its_folder() {
        let needed = [Needed::new("a store", "/proc/1/not/there/yet")];
        let says = refusal(&["/proc"], &needed);
        assert!(says.contains("a store (`/proc/1/not/there/yet`)"), "{says}");
    }

    #[test]
    fn what_is_on_another_volume_is_refused_and_what_is_on_one_of_the_set_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // One that is a file system of its own everywhere stands for that of the volume.
        write(
            "proc/self/mountinfo",
            "98 1 8:1 / /mnt/my\\040data rw - xfs /dev/sda1 rw\n99 1 259:7 / /proc rw - xfs /dev/x rw\n",
        );
        let host = Host::at(dir.path());
        assert_eq!(host.mount_table()[0].target, Path::new("/mnt/my data"));
        let look = |set: &[String]| inspect(&host, &["/proc".into()], &[], set);
        assert_eq!(look(&[]).unwrap()[0].volumes, Vec::<String>::new(), "a disk without a serial number");
        write("sys/devices/nvme1n1/nvme1n1p1/partition", "1\n");
        write("sys/devices/nvme1n1/device/serial", "vol0abc      \n");
        fs::create_dir_all(dir.path().join("sys/dev/block")).unwrap();
        std::os::unix::fs::symlink("../../devices/nvme1n1/nvme1n1p1", dir.path().join("sys/dev/block/259:7"))
            .unwrap();
        let says = backup_core::chain(&look(&["vol-0def".to_owned()]).unwrap_err());
        assert!(says.contains("it is on vol-0abc, of which no snapshot is made; "), "{says}");
        assert_eq!(look(&["vol-0abc".to_owned()]).unwrap()[0].volumes, ["vol-0abc"]);
        // A mapping (LVM, LUKS) lies on what is below it.
        write("sys/devices/virtual/dm-0/dm/name", "data\n");
        let below = dir.path().join("sys/devices/virtual/dm-0/slaves");
        fs::create_dir_all(&below).unwrap();
        std::os::unix::fs::symlink("../../../nvme1n1/nvme1n1p1", below.join("nvme1n1p1")).unwrap();
        std::os::unix::fs::symlink("../../devices/virtual/dm-0", dir.path().join("sys/dev/block/253:0"))
            .unwrap();
        write("proc/self/mountinfo", "99 1 253:0 / /proc rw - xfs /dev/mapper/data rw\n");
        assert_eq!(look(&["vol-0abc".to_owned()]).unwrap()[0].volumes, ["vol-0abc"]);
        write("proc/swaps", "Filename Type Size Used Priority\n/proc/version file 1 0 -2\n");
        let says = backup_core::chain(&look(&["vol-0abc".to_owned()]).unwrap_err());
        assert!(says.contains("a swap file (`/proc/version`)"), "{says}");
    }
}
