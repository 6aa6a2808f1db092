//! File systems of their own on loop devices, which tests may freeze. One that stays frozen would block the machine: so they are
//! thawed and unmounted however a test ends.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    pub(crate) fn ext4() -> Self {
        Self::new(tempfile::tempdir().unwrap(), "mkfs.ext4", 64 << 20)
    }

    pub(crate) fn xfs() -> Self {
        // The least that it takes.
        Self::new(tempfile::tempdir().unwrap(), "mkfs.xfs", 320 << 20)
    }

    /// One whose image lies on `other`.
    pub(crate) fn inside(other: &Self) -> Self {
        Self::new(tempfile::tempdir_in(other.path()).unwrap(), "mkfs.ext4", 16 << 20)
    }

    pub(crate) fn tmpfs() -> Self {
        let this = Self::empty(tempfile::tempdir().unwrap());
        run("mount", &["-t", "tmpfs", "none", &this.text()]);
        this
    }

    /// `other` at another place.
    pub(crate) fn bind(other: &Self) -> Self {
        let this = Self::empty(tempfile::tempdir().unwrap());
        run("mount", &["--bind", &other.text(), &this.text()]);
        run("mount", &["--make-private", &this.text()]);
        this
    }

    fn empty(dir: tempfile::TempDir) -> Self {
        let this = Self { dir };
        std::fs::create_dir(this.path()).unwrap();
        this
    }

    fn new(dir: tempfile::TempDir, mkfs: &str, bytes: u64) -> Self {
        let this = Self::empty(dir);
        let image = this.dir.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        run(mkfs, &["-q", image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), &this.text()]);
        run("mount", &["--make-private", &this.text()]);
        this
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn text(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    pub(crate) fn freeze(&self) {
        run("fsfreeze", &["--freeze", &self.text()]);
    }

    pub(crate) fn thaw(&self) {
        run("fsfreeze", &["--unfreeze", &self.text()]);
    }

    /// Whether it is frozen: only trying tells.
    pub(crate) fn is_frozen(&self) -> bool {
        let tried = Command::new("fsfreeze").arg("--freeze").arg(self.path()).output().unwrap();
        if tried.status.success() {
            self.thaw();
        }
        !tried.status.success()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let thaw = || drop(Command::new("fsfreeze").arg("--unfreeze").arg(self.path()).output());
        // A writer that waited has to end first; what is left open goes when it is closed.
        for lazy in [&["-q"][..], &["-q"], &["-q"], &["-l"]] {
            thaw();
            let done = Command::new("umount").args(lazy).arg(self.path()).output();
            if done.is_ok_and(|d| d.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A program that writes to a file all the time.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
}

impl Writer {
    pub(crate) fn on(disk: &Disk) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&written));
        let mut file = File::create(disk.path().join("hammered")).unwrap();
        std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                file.rewind().unwrap();
                file.write_all(b"more").unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, written }
    }

    /// How often it has written.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Whether it can write: looked at for half a second.
    pub(crate) fn stands_still(&self) -> bool {
        // The last write may just be counted.
        std::thread::sleep(Duration::from_millis(50));
        let before = self.written();
        std::thread::sleep(Duration::from_millis(450));
        self.written() == before
    }

    /// Waits until it writes; how long that took.
    #[track_caller]
    pub(crate) fn goes_on(&self) -> Duration {
        let (began, before) = (Instant::now(), self.written());
        while self.written() < before + 2 {
            assert!(began.elapsed() < Duration::from_secs(30), "nothing was written for 30 s");
            std::thread::sleep(Duration::from_millis(2));
        }
        began.elapsed()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output();
    let done = done.unwrap_or_else(|e| panic!("{program} (scripts/test installs it): {e}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The line of the configuration that freezes these.
pub(crate) fn freeze_line(disks: &[&Disk]) -> String {
    let paths: Vec<PathBuf> = disks.iter().map(|d| d.path()).collect();
    format!("freeze = {paths:?}\n")
}
