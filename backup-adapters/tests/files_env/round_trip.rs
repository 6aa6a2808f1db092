//! Every kind of entry, through our extractor and through GNU tar in both directions. Needs root for owners, devices
//! and capabilities.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use backup_adapters::files::FilesConfig;
use backup_core::*;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, chownat, mknodat, utimensat};

use crate::support::*;

fn chown(path: &Path, uid: u32, gid: u32) {
    chownat(CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
        .unwrap();
}

fn touch(path: &Path, sec: i64, nsec: i64) {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// One of everything.
fn make_tree(top: &Path) {
    fs::create_dir_all(top.join("sub/empty")).unwrap();
    fs::write(top.join("plain"), "hello\n").unwrap();
    fs::write(top.join("empty"), "").unwrap();
    fs::write(top.join("block"), [7; 512]).unwrap();
    fs::write(top.join("sub/big"), (0..3_000_000_u32).map(|i| (i % 251) as u8).collect::<Vec<_>>()).unwrap();
    fs::write(top.join("owned"), "x").unwrap();
    chown(&top.join("owned"), 4_000_000_000, 2_097_152);
    fs::write(top.join("setuid"), "x").unwrap();
    chown(&top.join("setuid"), 7474, 7474);
    mode(&top.join("setuid"), 0o4755);
    mode(&top.join("sub/empty"), 0o3711);
    fs::hard_link(top.join("plain"), top.join("sub/hard")).unwrap();
    fs::hard_link(top.join("plain"), top.join("zz-hard")).unwrap();
    symlink("/nonexistent", top.join("dangling")).unwrap();
    symlink("x/".repeat(300), top.join("long-link")).unwrap();
    symlink("../plain", top.join("sub/link")).unwrap();
    chown(&top.join("dangling"), 1, 2);
    touch(&top.join("dangling"), 1_000_000_000, 5);

    let deep = top.join("a".repeat(200)).join("b".repeat(250));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("c".repeat(255)), "long").unwrap();
    let raw = OsStr::from_bytes(b"not utf-8 \xff\xfe\n");
    fs::write(top.join(raw), "raw").unwrap();
    fs::create_dir(top.join(OsStr::from_bytes(b"dir \xe9"))).unwrap();
    symlink(raw, top.join(OsStr::from_bytes(b"raw link \xff"))).unwrap();
    fs::write(top.join("Grüße und \"Zitat\" 'n'"), "utf-8").unwrap();

    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&[1; 5000], 8 << 20).unwrap();
    sparse.write_all_at(&[2; 100_000], 20 << 20).unwrap();
    let hole = File::create(top.join("hole")).unwrap();
    hole.set_len(10 << 20).unwrap();
    let tail = File::create(top.join(OsStr::from_bytes(b"tail \xff"))).unwrap();
    tail.write_all_at(b"end", (9 << 30) + 11).unwrap();

    mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    mknodat(CWD, top.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), null).unwrap();
    let disk = rustix::fs::makedev(259, 70_000);
    mknodat(CWD, top.join("disk"), FileType::BlockDevice, Mode::from_raw_mode(0o600), disk).unwrap();

    xattr::set(top.join("plain"), "user.text", b"value").unwrap();
    xattr::set(top.join("plain"), "user.bin=%", &[0, 1, 255, b'\n', b'=']).unwrap();
    xattr::set(top.join("sub"), "user.dir", b"").unwrap();
    xattr::set(top.join("dangling"), "trusted.link", b"t").unwrap();
    xattr::set(top.join("sparse"), "user.sparse", b"s").unwrap();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(top.join("setuid"), "security.capability", &capability).unwrap();

    touch(&top.join("plain"), 1_700_000_000, 123_456_789);
    touch(&top.join("empty"), -1, 500_000_000);
    touch(&top.join("block"), 20_000_000_000, 0);
    touch(&top.join("sub"), 1_600_000_000, 1);
    touch(&top.join("sub/empty"), 0, 0);
    touch(top, 1_500_000_000, 999_999_999);
}

/// `u::rw-, u:1234:r--, g::r--, m::r--, o::---` in the kernel's format.
fn acl(tags: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in tags {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

fn add_acls(top: &Path) {
    let none = u32::MAX;
    let access = acl(&[(1, 6, none), (2, 4, 1234), (4, 4, none), (0x10, 4, none), (0x20, 0, none)]);
    xattr::set(top.join("owned"), "system.posix_acl_access", &access).unwrap();
    let default = acl(&[(1, 7, none), (2, 5, 1234), (4, 5, none), (0x10, 5, none), (0x20, 0, none)]);
    xattr::set(top.join("sub/empty"), "system.posix_acl_default", &default).unwrap();
    touch(&top.join("sub/empty"), 0, 0);
}

fn below(dir: &Path, original: &Path) -> PathBuf {
    dir.join(original.strip_prefix("/").unwrap())
}

#[tokio::test]
async fn everything_comes_back_in_a_directory_and_in_its_place() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    let top = bench.path("app");
    make_tree(&top);
    add_acls(&top);
    let before = picture(&top);
    let captured = bench.capture().await.unwrap();
    // 9 GiB of holes are neither read nor stored.
    assert!(captured.bytes.len() < 8 << 20, "{}", captured.bytes.len());
    assert_eq!(captured.report.warnings, [""; 0]);
    assert_eq!(captured.report.mode, "tar");

    let out = bench.path("out");
    bench.restore(&captured, RestoreTarget::Dir(out.clone()), "20260102_000000").await.unwrap();
    assert_same(&before, &picture(&below(&out, &top)));
    let probed =
        bench.adapter.probe(&bench.context("20260102_000000"), &RestoreTarget::Dir(out)).await.unwrap();
    assert_eq!(probed.counts, captured.report.evidence.counts);

    fs::remove_dir_all(&top).unwrap();
    bench.restore(&captured, RestoreTarget::Live, "20260103_000000").await.unwrap();
    assert_same(&before, &picture(&top));
    let probed = bench.adapter.probe(&bench.context("20260103_000000"), &RestoreTarget::Live).await.unwrap();
    assert_eq!(probed.counts, captured.report.evidence.counts);
}

#[tokio::test]
async fn gnu_tar_extracts_an_identical_tree() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    let top = bench.path("app");
    make_tree(&top);
    add_acls(&top);
    let before = picture(&top);
    let captured = bench.capture().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let said = gnu_untar(&captured.bytes, out.path());
    assert_same(&before, &picture(&below(out.path(), &top)));
    // The standard's own keyword for names that are not UTF-8 is unknown to GNU tar, which takes the bytes as they are.
    let expected = ["hdrcharset", "in the future", "implausibly old"];
    let other = said.lines().filter(|l| !expected.iter().any(|e| l.contains(e)));
    assert_eq!(other.collect::<Vec<_>>(), [""; 0]);
}

#[tokio::test]
async fn an_archive_of_gnu_tar_is_extracted_and_checked() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    let top = bench.path("app");
    make_tree(&top);
    let before = picture(&top);
    let mut captured = bench.capture().await.unwrap();
    let archive = run(Command::new("tar")
        .args(["-c", "--format=pax", "--sparse", "--xattrs", "--xattrs-include=*", "-C", "/"])
        .arg(top.strip_prefix("/").unwrap()));
    captured.bytes = archive;
    let found = check(&*bench.adapter, &captured.metadata, &captured.bytes).unwrap();
    for count in ["files", "symlinks", "special", "bytes"] {
        assert_eq!(found.counts.get(count), captured.report.evidence.counts.get(count), "{count}");
    }
    let out = bench.path("out");
    bench.restore(&captured, RestoreTarget::Dir(out.clone()), "20260102_000000").await.unwrap();
    assert_same(&before, &picture(&below(&out, &top)));
}

#[tokio::test]
async fn the_steps_by_hand_give_the_same_tree() {
    let bench = Bench::new::<FilesConfig>("paths = ['my app', 'single.conf']");
    let top = bench.path("my app");
    make_tree(&top);
    fs::write(bench.path("single.conf"), "a").unwrap();
    let before = picture(&top);
    let captured = bench.capture().await.unwrap();
    fs::write(top.join("later"), "x").unwrap();
    let backup = tempfile::tempdir().unwrap();
    fs::write(backup.path().join("app.tar"), &captured.bytes).unwrap();
    for step in bench.adapter.by_hand(&HandContext { metadata: &captured.metadata }) {
        run(Command::new("bash").args(["-euc", &step.command]).current_dir(&backup));
    }
    assert_same(&before, &picture(&top));
    assert_eq!(fs::read(bench.path("single.conf")).unwrap(), b"a");
    assert!(bench.path("my app.old/later").exists());
}

#[tokio::test]
async fn what_is_inherited_where_it_is_built_does_not_stay() {
    let bench = Bench::new::<FilesConfig>("paths = ['in/app', 'in/file']");
    let (top, home) = (bench.path("in/app"), bench.path("in"));
    fs::create_dir_all(top.join("d")).unwrap();
    fs::write(top.join("d/f"), "x").unwrap();
    fs::write(home.join("file"), "x").unwrap();
    let before = (picture(&top), picture(&home.join("file")));
    let captured = bench.capture().await.unwrap();
    let none = u32::MAX;
    let default = acl(&[(1, 7, none), (2, 5, 1234), (4, 5, none), (0x10, 5, none), (0x20, 0, none)]);
    xattr::set(&home, "system.posix_acl_default", &default).unwrap();
    chown(&home, 0, 1234);
    mode(&home, 0o2755);
    bench.restore(&captured, RestoreTarget::Live, "20260102_000000").await.unwrap();
    assert_same(&before.0, &picture(&top));
    assert_same(&before.1, &picture(&home.join("file")));
}

#[tokio::test]
async fn sockets_are_left_out_with_a_warning() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    fs::create_dir(bench.path("app")).unwrap();
    let _socket = UnixListener::bind(bench.path("app/socket")).unwrap();
    let captured = bench.capture().await.unwrap();
    assert_eq!(captured.report.warnings.len(), 1);
    assert!(
        captured.report.warnings[0].contains("app/socket` is a socket"),
        "{:?}",
        captured.report.warnings
    );
}

#[tokio::test]
async fn the_order_is_always_the_same() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    make_tree(&bench.path("app"));
    // The folders above belong to others too: only what is below is compared.
    let start = |bytes: &[u8]| bytes.windows(7).position(|w| w == b"app/a\0\0" || w == b"app/aaa").unwrap();
    let (one, two) = (bench.capture().await.unwrap().bytes, bench.capture().await.unwrap().bytes);
    assert!(one[start(&one)..] == two[start(&two)..]);
}
