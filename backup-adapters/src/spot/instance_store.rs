//! Which folders are on a disk that goes with the instance.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What the disks call themselves that are the instance's own.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/nvme-ssd-volumes.html>
const MODEL: &str = "Amazon EC2 NVMe Instance Storage";

/// Whether `path` is on a disk of the instance's own, which is empty wherever it is started next. `false` if nobody can tell.
#[must_use]
pub fn on_instance_store(path: &Path) -> bool {
    on_model(path, Path::new("/sys"), MODEL)
}

fn on_model(path: &Path, sys: &Path, model: &str) -> bool {
    let Ok(there) = path.metadata() else { return false };
    let device = there.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = sys.join(format!("dev/block/{major}:{minor}"));
    // A partition is a folder of its disk; a volume of LVM or RAID has those that it is made of as slaves.
    let Ok(block) = block.canonicalize() else { return false };
    let names = |dir: &Path| {
        let listed = std::fs::read_dir(dir.join("slaves"));
        listed.into_iter().flatten().flatten().filter_map(|slave| slave.path().canonicalize().ok())
    };
    let disks = std::iter::once(block.clone()).chain(names(&block));
    disks.flat_map(|disk| [disk.clone(), disk.parent().unwrap_or(&disk).to_owned()]).any(|disk| {
        std::fs::read_to_string(disk.join("device/model")).is_ok_and(|found| found.trim() == model)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_on_its_disk() {
        let (sys, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let device = data.path().metadata().unwrap().dev();
        let (disk, blocks) = (sys.path().join("devices/nvme1n1"), sys.path().join("dev/block"));
        std::fs::create_dir_all(disk.join("nvme1n1p1")).unwrap();
        std::fs::create_dir_all(disk.join("device")).unwrap();
        std::fs::create_dir_all(&blocks).unwrap();
        let name = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        std::os::unix::fs::symlink(disk.join("nvme1n1p1"), blocks.join(name)).unwrap();
        assert!(!on_model(data.path(), sys.path(), MODEL), "nobody can tell");
        std::fs::write(disk.join("device/model"), format!("{MODEL}        \n")).unwrap();
        assert!(on_model(data.path(), sys.path(), MODEL));
        std::fs::write(disk.join("device/model"), "Amazon Elastic Block Store\n").unwrap();
        assert!(!on_model(data.path(), sys.path(), MODEL));
    }
}
