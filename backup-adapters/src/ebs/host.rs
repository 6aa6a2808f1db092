//! This host's block devices: which of them is a volume, what is on it, and where it is mounted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use backup_core::{AdapterError, AdapterErrorKind, Advice};
use serde::{Deserialize, Serialize};

use super::error;

/// Where this host shows its devices.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

/// A device, as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Device {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Device {
    /// The one that `stat` gives.
    pub(super) fn of(dev: u64) -> Self {
        Self { major: rustix::fs::major(dev), minor: rustix::fs::minor(dev) }
    }
}

/// One row of the table of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) device: Device,
    pub(super) target: PathBuf,
}

/// How deep mappings of devices are followed.
const MAPPINGS: usize = 8;

/// The end of the superblocks that are known, in bytes from the begin of a device.
const SUPERBLOCKS: usize = 2048;

impl Host {
    /// This one.
    #[must_use]
    pub fn this() -> Self {
        Self::at("/")
    }

    /// One whose `/dev`, `/sys` and `/proc` are below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The block device that a volume is. On Nitro instances the names say nothing, but the serial number is the volume's
    /// id without its dash (<https://docs.aws.amazon.com/ebs/latest/userguide/nvme-ebs-volumes.html>); elsewhere it is
    /// named as it was attached, or `xvd…` instead of `sd…`.
    #[must_use]
    pub fn find(&self, volume: &str, attached_as: &str) -> Option<PathBuf> {
        let serial = volume.replacen('-', "", 1);
        let disks = fs::read_dir(self.root.join("sys/block")).ok();
        for disk in disks.into_iter().flatten().flatten() {
            let found = fs::read_to_string(disk.path().join("device/serial")).unwrap_or_default();
            if found.trim() == serial {
                return Some(self.root.join("dev").join(disk.file_name()));
            }
        }
        let name =
            attached_as.strip_prefix("/dev/").filter(|name| !name.is_empty() && !name.contains('/'))?;
        let xen = name.strip_prefix("sd").map(|rest| format!("xvd{rest}"));
        let names = [Some(name.to_owned()), xen];
        // Where there are NVMe disks, a `/dev/sdf` is somebody's link, if anything.
        let is_nitro = fs::read_dir(self.root.join("sys/class/nvme")).is_ok_and(|mut d| d.next().is_some());
        names.into_iter().flatten().map(|n| self.root.join("dev").join(n)).find(|p| !is_nitro && p.exists())
    }

    /// Where these volumes are mounted, as far as that can be seen.
    pub(super) fn mounts(&self, volumes: &[String]) -> BTreeMap<String, String> {
        let table = self.mounted();
        let of = |volume: &String| {
            let device = self.find(volume, "")?;
            let begins = device.to_str()?;
            let is_it = |source: &str| {
                source.strip_prefix(begins).is_some_and(|rest| {
                    rest.is_empty() || rest.strip_prefix('p').is_some_and(|n| n.parse::<u32>().is_ok())
                })
            };
            let (_, target) = table.iter().find(|(source, _)| is_it(source))?;
            Some((volume.clone(), target.clone()))
        };
        volumes.iter().filter_map(of).collect()
    }

    /// Sources and targets of what is mounted.
    fn mounted(&self) -> Vec<(String, String)> {
        let table = fs::read_to_string(self.root.join("proc/self/mounts")).unwrap_or_default();
        let line = |line: &str| {
            let mut words = line.split(' ');
            // Spaces in paths are written in octal there.
            let mut word = || words.next().map(|w| w.replace("\\040", " "));
            Some((word()?, word()?))
        };
        table.lines().filter_map(line).collect()
    }

    /// What is mounted, in the order of mounting: proc_pid_mountinfo(5).
    pub(super) fn mount_table(&self) -> Vec<Mount> {
        let table = fs::read_to_string(self.root.join("proc/self/mountinfo")).unwrap_or_default();
        let row = |line: &str| {
            let mut words = line.split(' ').skip(2);
            let (major, minor) = words.next()?.split_once(':')?;
            let device = Device { major: major.parse().ok()?, minor: minor.parse().ok()? };
            let target = unescaped(words.nth(1)?);
            Some(Mount { device, target })
        };
        table.lines().filter_map(row).collect()
    }

    /// The volumes that a block device lies on: that of a partition's disk, or of what is below a mapping (LVM, LUKS,
    /// RAID). `None` for a disk whose serial number is not a volume's.
    pub(super) fn serials_under(&self, device: Device) -> Vec<Option<String>> {
        let volume = |disk: PathBuf| {
            let serial = fs::read_to_string(disk.join("device/serial")).unwrap_or_default();
            let id = serial.trim().strip_prefix("vol").filter(|id| !id.is_empty())?;
            Some(format!("vol-{}", id.trim_start_matches('-')))
        };
        self.disks_under(device).into_iter().map(volume).collect()
    }

    /// The files that it lies on, by way of loop devices.
    pub(super) fn files_under(&self, device: Device) -> Vec<PathBuf> {
        let file = |disk: PathBuf| fs::read_to_string(disk.join("loop/backing_file")).ok();
        let files = self.disks_under(device).into_iter().filter_map(file);
        files.map(|file| PathBuf::from(file.trim_end_matches('\n'))).collect()
    }

    fn disks_under(&self, device: Device) -> Vec<PathBuf> {
        let block = self.root.join(format!("sys/dev/block/{}:{}", device.major, device.minor));
        // What is no block device has no disk, as far as this tells.
        fs::canonicalize(&block).map_or_else(|_| vec![block], |path| disks(path, MAPPINGS))
    }

    /// Files that are swapped to: proc_swaps(5).
    pub(super) fn swap_files(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string(self.root.join("proc/swaps")).unwrap_or_default();
        let file = |line: &str| {
            let mut words = line.split_whitespace();
            let path = words.next()?;
            (words.next()? == "file").then(|| unescaped(path))
        };
        table.lines().skip(1).filter_map(file).collect()
    }

    /// That a file system may be mounted at `dir` without hiding anything.
    ///
    /// # Errors
    /// `Conflict` if something is there.
    pub(super) fn check_free(&self, dir: &Path) -> Result<(), AdapterError> {
        let shown = dir.display();
        if !dir.is_absolute() {
            return Err(error(AdapterErrorKind::InvalidConfig, format!("`{shown}` is no absolute path")));
        }
        if self.mounted().iter().any(|(_, target)| Path::new(target) == dir) {
            return Err(taken(format!("something is mounted at `{shown}`")));
        }
        match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
            Ok(true) => Err(taken(format!("`{shown}` is not empty"))),
            Ok(false) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(AdapterError::io(format!("cannot look into `{shown}`"), e)),
        }
    }

    /// The part of a disk that has a file system, and which: the disk itself, or its largest partition that has one.
    ///
    /// # Errors
    /// `NotFound` if there is none that is known; I/O.
    pub(super) fn file_system(&self, disk: &Path) -> Result<(PathBuf, &'static str), AdapterError> {
        if let Some(kind) = magic(disk)? {
            return Ok((disk.to_owned(), kind));
        }
        let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let parts = fs::read_dir(self.root.join("sys/block").join(&name)).ok();
        let mut best: Option<(u64, PathBuf, &'static str)> = None;
        for part in parts.into_iter().flatten().flatten() {
            let file = part.file_name().to_string_lossy().into_owned();
            if !file.starts_with(&name) {
                continue;
            }
            let size = fs::read_to_string(part.path().join("size")).ok().and_then(|s| s.trim().parse().ok());
            let (size, path) = (size.unwrap_or(0), self.root.join("dev").join(&file));
            if let Some(kind) = magic(&path)?
                && best.as_ref().is_none_or(|(largest, ..)| size > *largest)
            {
                best = Some((size, path, kind));
            }
        }
        best.map(|(_, path, kind)| (path, kind)).ok_or_else(|| {
            let cause =
                Advice::new("neither XFS nor ext4 is on it", "look with `lsblk -f`, and mount it by hand");
            error(AdapterErrorKind::NotFound, format!("cannot mount `{}`", disk.display())).with_source(cause)
        })
    }

    /// Mounts a volume at `dir`, which is made.
    ///
    /// # Errors
    /// Those of the file system, and what `mount` says.
    pub(super) async fn mount(&self, disk: &Path, dir: &Path) -> Result<PathBuf, AdapterError> {
        self.check_free(dir)?;
        let (device, kind) = self.file_system(disk)?;
        fs::create_dir_all(dir)
            .map_err(|e| AdapterError::io(format!("cannot make `{}`", dir.display()), e))?;
        let mut command = tokio::process::Command::new("mount");
        command.args(["-t", kind]);
        if kind == "xfs" {
            // Its twin may be mounted on this very host: two of one id are refused otherwise.
            command.args(["-o", "nouuid"]);
        }
        command.arg(&device).arg(dir).stdin(Stdio::null());
        let what = format!("cannot mount `{}` at `{}`", device.display(), dir.display());
        let out = command.output().await.map_err(|e| AdapterError::io(what.clone(), e))?;
        if out.status.success() {
            return Ok(device);
        }
        let said = String::from_utf8_lossy(&out.stderr);
        let said = said.lines().next().unwrap_or("mount failed").trim().to_owned();
        let cause = Advice::new(said, "only root may mount; `dmesg` tells more");
        Err(error(AdapterErrorKind::Other, what).with_source(cause))
    }
}

fn disks(path: PathBuf, depth: usize) -> Vec<PathBuf> {
    let below = fs::read_dir(path.join("slaves")).into_iter().flatten().flatten();
    let below: Vec<PathBuf> = below.filter_map(|d| fs::canonicalize(d.path()).ok()).collect();
    if !below.is_empty() && depth > 0 {
        return below.into_iter().flat_map(|path| disks(path, depth - 1)).collect();
    }
    let is_part = path.join("partition").exists();
    vec![path.parent().filter(|_| is_part).map(Path::to_owned).unwrap_or(path)]
}

/// A path of the kernel's tables, in which blanks and the like are written in octal.
fn unescaped(path: &str) -> PathBuf {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(codes.iter().fold(path.to_owned(), |path, (code, is)| path.replace(code, is)))
}

fn taken(what: String) -> AdapterError {
    let cause = Advice::new("it would be hidden", "name another directory with `--mount`");
    error(AdapterErrorKind::Conflict, what).with_source(cause)
}

/// The file system on a device, by the marks of XFS (at 0) and of ext2, 3 and 4 (at 1080).
fn magic(device: &Path) -> Result<Option<&'static str>, AdapterError> {
    let fail = |e| AdapterError::io(format!("cannot read `{}`", device.display()), e);
    let mut begin = Vec::with_capacity(SUPERBLOCKS);
    File::open(device).map_err(fail)?.take(SUPERBLOCKS as u64).read_to_end(&mut begin).map_err(fail)?;
    Ok(if begin.starts_with(b"XFSB") {
        Some("xfs")
    } else if begin.get(1080..1082) == Some(&[0x53, 0xEF]) {
        Some("ext4")
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, content: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn nvme_disks_are_found_by_serial_whatever_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let (root, host) = (dir.path(), Host::at(dir.path()));
        write(root, "sys/block/nvme0n1/device/serial", b"vol0aaa\n");
        write(root, "sys/block/nvme2n1/device/serial", b"vol0bbb             \n");
        write(root, "sys/class/nvme/nvme0/model", b"");
        write(root, "dev/sdf", b"a link of somebody");
        assert_eq!(host.find("vol-0bbb", "/dev/sdf"), Some(root.join("dev/nvme2n1")));
        assert_eq!(host.find("vol-0ccc", "/dev/sdf"), None, "a name proves nothing there");
        let at = format!(
            "{0}/dev/nvme2n1p1 /mnt/my\\040data xfs rw 0 0\nproc /proc proc rw 0 0\n",
            root.display()
        );
        write(root, "proc/self/mounts", at.as_bytes());
        let found = host.mounts(&["vol-0aaa".to_owned(), "vol-0bbb".to_owned()]);
        assert_eq!(found, BTreeMap::from([("vol-0bbb".to_owned(), "/mnt/my data".to_owned())]));
    }

    #[test]
    fn on_xen_the_name_tells() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "dev/xvdf", b"");
        assert_eq!(Host::at(dir.path()).find("vol-0bbb", "/dev/sdf"), Some(dir.path().join("dev/xvdf")));
    }

    #[test]
    fn file_systems_are_told_by_their_marks_also_on_partitions() {
        let dir = tempfile::tempdir().unwrap();
        let (root, host) = (dir.path(), Host::at(dir.path()));
        let mut ext4 = vec![0; 4096];
        ext4[1080..1082].copy_from_slice(&[0x53, 0xEF]);
        write(root, "dev/nvme1n1", b"XFSB and more");
        write(root, "dev/nvme2n1", &[0; 4096]);
        write(root, "dev/nvme2n1p1", &ext4);
        write(root, "dev/nvme2n1p2", b"XFSB");
        write(root, "sys/block/nvme2n1/nvme2n1p1/size", b"100\n");
        write(root, "sys/block/nvme2n1/nvme2n1p2/size", b"900\n");
        assert_eq!(host.file_system(&root.join("dev/nvme1n1")).unwrap(), (root.join("dev/nvme1n1"), "xfs"));
        assert_eq!(host.file_system(&root.join("dev/nvme2n1")).unwrap(), (root.join("dev/nvme2n1p2"), "xfs"));
        write(root, "dev/empty", &[0; 4096]);
        let e = host.file_system(&root.join("dev/empty")).unwrap_err();
        assert!(backup_core::advice(&e).unwrap().contains("lsblk"));
    }

    #[test]
    fn nothing_is_hidden_by_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (root, host) = (dir.path(), Host::at(dir.path()));
        write(root, "full/file", b"x");
        fs::create_dir(root.join("empty")).unwrap();
        fs::create_dir(root.join("used")).unwrap();
        write(root, "proc/self/mounts", format!("/dev/x {}/used xfs rw 0 0\n", root.display()).as_bytes());
        host.check_free(&root.join("empty")).unwrap();
        host.check_free(&root.join("not/there")).unwrap();
        for (at, says) in [("full", "not empty"), ("used", "is mounted")] {
            let e = host.check_free(&root.join(at)).unwrap_err();
            assert!(e.kind() == AdapterErrorKind::Conflict && e.to_string().contains(says), "{e}");
        }
        assert!(host.check_free(Path::new("relative")).is_err());
    }

    fn run(program: &str, args: &[&str]) -> String {
        let out = std::process::Command::new(program).args(args).output().unwrap();
        assert!(out.status.success(), "{program} {args:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Unmounts and detaches whatever becomes of the test.
    #[derive(Default)]
    struct Undo(Vec<[String; 3]>);

    impl Drop for Undo {
        fn drop(&mut self) {
            for [program, option, what] in self.0.drain(..).rev() {
                let _ended = std::process::Command::new(program).arg(option).arg(what).status();
            }
        }
    }

    #[tokio::test]
    #[ignore = "live: root, loop devices and xfsprogs"]
    async fn the_twin_of_a_mounted_volume_is_mounted_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (host, mut undo) = (Host::this(), Undo::default());
        let image = File::create(at("image")).unwrap();
        image.set_len(320 << 20).unwrap();
        run("mkfs.xfs", &["-q", &at("image")]);
        run("cp", &["--sparse=always", &at("image"), &at("twin")]);
        let mut disks = Vec::new();
        for file in ["image", "twin"] {
            let disk = run("losetup", &["-f", "--show", &at(file)]);
            undo.0.push(["losetup".to_owned(), "-d".to_owned(), disk.clone()]);
            disks.push(disk);
        }
        fs::create_dir(at("there")).unwrap();
        run("mount", &["-t", "xfs", &disks[0], &at("there")]);
        undo.0.push(["umount".to_owned(), "-l".to_owned(), at("there")]);
        let target = PathBuf::from(at("restored"));
        let mounted = host.mount(Path::new(&disks[1]), &target).await;
        undo.0.push(["umount".to_owned(), "-l".to_owned(), at("restored")]);
        assert_eq!(mounted.unwrap(), Path::new(&disks[1]));
        let e = host.mount(Path::new(&disks[1]), &target).await.unwrap_err();
        assert!(e.kind() == AdapterErrorKind::Conflict && e.to_string().contains("is mounted"), "{e}");
    }
}
