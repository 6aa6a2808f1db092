//! Files are created by one thread and filled by another.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use backup_adapters::files::FilesConfig;
use backup_core::*;
use tar::{EntryType, Header};

use crate::support::*;

#[tokio::test]
async fn many_files_and_a_large_one_come_back_with_the_times_of_their_directories() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    let top = bench.path("app");
    for d in 0..12 {
        let dir = top.join(format!("{d:02}"));
        fs::create_dir_all(&dir).unwrap();
        for n in 0..60_usize {
            fs::write(dir.join(n.to_string()), vec![b'x'; n * 97 * (d % 3)]).unwrap();
        }
        // Links to what was created just before.
        fs::hard_link(dir.join("59"), dir.join("link")).unwrap();
        chown(dir.join("7"), Some(7474), Some(7475)).unwrap();
        fs::set_permissions(dir.join("7"), Permissions::from_mode(0o6755)).unwrap();
        let large: Vec<u8> = (0..9_000_000_u32).map(|i| i.to_le_bytes()[d % 4]).collect();
        if d % 5 == 0 {
            fs::write(dir.join("5-large"), large).unwrap();
        }
        let old = UNIX_EPOCH + Duration::from_secs(1_000_000 + d as u64);
        File::open(dir.join("8")).unwrap().set_modified(old).unwrap();
        File::open(&dir).unwrap().set_modified(old).unwrap();
    }
    let before = picture(&top);
    let captured = bench.capture().await.unwrap();
    let out = bench.path("out");
    bench.restore(&captured, RestoreTarget::Dir(out.clone()), "20260102_000000").await.unwrap();
    assert_same(&before, &picture(&out.join(top.strip_prefix("/").unwrap())));
}

#[tokio::test]
async fn the_last_of_several_states_of_a_file_stays() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    fs::create_dir(bench.path("app")).unwrap();
    fs::write(bench.path("app/f"), "x").unwrap();
    let mut captured = bench.capture().await.unwrap();
    let name = bench.path("app/f").strip_prefix("/").unwrap().to_owned();
    let mut archive = tar::Builder::new(Vec::new());
    for n in 1..=200_usize {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(n as u64);
        // The first ones are the longest: what is left of them would show.
        let content = format!("{n} ").repeat(20_000 / n);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, &name, content.as_bytes()).unwrap();
    }
    captured.bytes = archive.into_inner().unwrap();
    let out = bench.path("out");
    bench.restore(&captured, RestoreTarget::Dir(out.clone()), "20260102_000000").await.unwrap();
    let file = out.join(name);
    assert_eq!(fs::read_to_string(&file).unwrap(), "200 ".repeat(100));
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), UNIX_EPOCH + Duration::from_secs(200));
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
}

const INSIDE: &str = "FILES_TEST_INSIDE";

/// Runs a test again in a mount name space of its own, whose mounts end with it, however it ends.
fn again_with_mounts(test: &str) {
    let run = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("util-linux is installed");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && out.contains("1 passed"), "{}: {out}\n{err}", run.status);
}

#[tokio::test]
async fn a_full_disk_is_one_error_and_leaves_nothing() {
    if std::env::var_os(INSIDE).is_none() {
        return again_with_mounts("fill::a_full_disk_is_one_error_and_leaves_nothing");
    }
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    let (top, out) = (bench.path("app"), bench.path("out"));
    fs::create_dir(&out).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&out));
    let target = RestoreTarget::Dir(out.clone());
    // More than the queue holds, so that the parser meets the end of the other thread, and so little that it does not.
    for (what, files, length, behind) in
        [("large", 1, 40 << 20, 0), ("many", 400, 100_000, 0), ("at the end", 1, 5 << 20, 3)]
    {
        fs::create_dir(&top).unwrap();
        for n in 0..files {
            fs::write(top.join(format!("f{n}")), vec![1; length]).unwrap();
        }
        for n in 0..behind {
            fs::write(top.join(format!("z{n}")), "behind").unwrap();
        }
        let captured = bench.capture().await.unwrap();
        let e = bench.restore(&captured, target.clone(), "20260102_000000").await.expect_err(what);
        assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{what}: {}", chain(&e));
        assert!(
            e.to_string().starts_with("cannot write `") && e.to_string().contains("app/f"),
            "{what}: {e}"
        );
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{what}");
        let space = rustix::fs::statvfs(&out).unwrap();
        assert_eq!(space.f_bfree, space.f_blocks, "{what}: no file is still open");

        // An archive that is damaged as well: what went wrong first is told.
        if what == "large" {
            let cut = Captured { bytes: captured.bytes[..30 << 20].to_vec(), ..captured };
            let e = bench.restore(&cut, target.clone(), "20260102_000000").await.expect_err(what);
            assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{what}: {}", chain(&e));
        }
        fs::remove_dir_all(&top).unwrap();
    }
    fs::create_dir(&top).unwrap();
    fs::write(top.join("f"), "small").unwrap();
    let captured = bench.capture().await.unwrap();
    bench.restore(&captured, target, "20260103_000000").await.unwrap();
    assert_eq!(fs::read_to_string(out.join(top.strip_prefix("/").unwrap()).join("f")).unwrap(), "small");
}

#[tokio::test]
async fn a_cancelled_restore_says_so_and_leaves_nothing() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    fs::create_dir(bench.path("app")).unwrap();
    fs::write(bench.path("app/f"), vec![1; 3 << 20]).unwrap();
    let captured = bench.capture().await.unwrap();
    let out = bench.path("out");
    let cx = bench.context("20260102_000000");
    let target = RestoreTarget::Dir(out.clone());
    let plan = bench.adapter.plan_restore(&cx, &captured.metadata, &target).await.unwrap();
    cx.cancel.cancel();
    let source = source(captured.bytes.clone(), &captured.metadata);
    let e = bench.adapter.stage(&cx, &plan, &source).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Cancelled, "{}", chain(&e));
    assert!(!out.exists() || fs::read_dir(&out).unwrap().count() == 0);
}
