//! Archives that were made to do harm, or are damaged.

use std::fs;
use std::path::Path;

use backup_adapters::files::FilesConfig;
use backup_core::*;
use tar::{EntryType, Header};

use crate::support::*;

/// A member with any name and link target.
fn member(kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn file(name: &str) -> Vec<u8> {
    member(EntryType::Regular, name.as_bytes(), b"", b"evil")
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut out = members.concat();
    out.resize(out.len() + 1024, 0);
    out
}

async fn sample() -> (Bench, Captured) {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    fs::create_dir(bench.path("app")).unwrap();
    fs::write(bench.path("app/f"), "good").unwrap();
    fs::write(bench.path("victim"), "untouched").unwrap();
    let captured = bench.capture().await.unwrap();
    (bench, captured)
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn nothing_is_ever_written_outside() {
    let (bench, mut captured) = sample().await;
    let base = bench.path("");
    let inside = |name: &str| format!("{}/{name}", base.join("app").strip_prefix("/").unwrap().display());
    let victim = base.join("victim").display().to_string();
    let symlink = |name: &str, to: &str| member(EntryType::Symlink, name.as_bytes(), to.as_bytes(), b"");
    let link = |name: &str, to: &str| member(EntryType::Link, name.as_bytes(), to.as_bytes(), b"");
    let dir = |name: &str| member(EntryType::Directory, name.as_bytes(), b"", b"");
    let archives = [
        ("absolute", vec![file(&victim)]),
        ("climbs", vec![file(&inside("../victim"))]),
        ("climbs from the top", vec![file("../../../../../../../../tmp/x")]),
        (
            "writes through a symlink",
            vec![symlink(&inside("s"), &base.display().to_string()), file(&inside("s/victim"))],
        ),
        ("goes through a symlink to the top", vec![symlink(&inside("s"), "../.."), dir(&inside("s/new"))]),
        ("becomes a symlink", vec![dir(&inside("d")), symlink(&inside("d"), "/tmp"), file(&inside("d/x"))]),
        ("links to an outer file", vec![link(&inside("h"), &victim), file(&inside("h"))]),
        ("links by climbing", vec![link(&inside("h"), &inside("../victim"))]),
        (
            "links through a symlink",
            vec![symlink(&inside("s"), &base.display().to_string()), link(&inside("h"), &inside("s/victim"))],
        ),
        ("links to what is not there", vec![link(&inside("h"), &inside("none"))]),
        (
            "is a symlink at the top",
            vec![symlink(inside("").trim_end_matches('/'), "/tmp"), file(&inside("x"))],
        ),
    ];
    for (what, members) in archives {
        captured.bytes = archive(&members);
        let before = picture(&base);
        for (at, target) in [
            ("20260102_000000", RestoreTarget::Live),
            ("20260102_000001", RestoreTarget::Dir(base.join("out"))),
        ] {
            let live = target == RestoreTarget::Live;
            let e = bench.restore(&captured, target, at).await.expect_err(what);
            assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{what}: {}", chain(&e));
            if !live {
                assert_eq!(entries(&base.join("out")), [""; 0], "{what}");
                fs::remove_dir(base.join("out")).unwrap();
            }
        }
        let after = picture(&base);
        // Staging came and went: only the folder's own time may differ.
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{what}");
        assert_eq!(fs::read_to_string(base.join("victim")).unwrap(), "untouched", "{what}");
        assert_eq!(fs::read_to_string(base.join("app/f")).unwrap(), "good", "{what}");
    }
}

#[tokio::test]
async fn damage_is_found_wherever_it_is() {
    let (bench, mut captured) = sample().await;
    let good = captured.bytes.clone();
    let verdict = |bytes: &[u8]| check(&*bench.adapter, &captured.metadata, bytes);
    assert!(verdict(&good).is_ok());
    for cut in [0, 1, 511, 512, good.len() - 1024, good.len() - 512, good.len() - 1] {
        assert_eq!(verdict(&good[..cut]).unwrap_err().kind(), AdapterErrorKind::Corrupt, "cut at {cut}");
    }
    let mut longer = good.clone();
    longer.extend([b'x'; 512]);
    assert!(verdict(&longer).is_err(), "garbage after the end");
    // Zeros are how tar fills its last record.
    longer.truncate(good.len());
    longer.extend([0; 512]);
    assert!(verdict(&longer).is_ok());
    for at in (0..512).step_by(7) {
        let mut flipped = good.clone();
        flipped[at] ^= 0x41;
        assert!(verdict(&flipped).is_err(), "a flip in the first header at {at}");
    }
    captured.bytes = good[..good.len() - 1024].to_vec();
    let e = bench.restore(&captured, RestoreTarget::Live, "20260102_000000").await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Corrupt);
    assert_eq!(entries(&bench.path("")), ["app", "victim"]);
}

#[tokio::test]
async fn absurd_sizes_are_refused_before_memory_is_taken() {
    let (bench, captured) = sample().await;
    for kind in [EntryType::XHeader, EntryType::GNULongName] {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let e = check(&*bench.adapter, &captured.metadata, header.as_bytes()).unwrap_err();
        assert!(e.to_string().contains("impossible size"), "{e}");
    }
}

#[tokio::test]
async fn roots_of_a_backup_are_not_believed() {
    let (bench, captured) = sample().await;
    let mut metadata = (*captured.metadata).clone();
    for (path, member) in [("/etc/../tmp/x", "etc/../tmp/x"), ("tmp/x", "tmp/x"), ("/tmp/x", "tmp/y")] {
        let roots = serde_json::json!([{ "path": path, "member": member, "kind": "dir" }]);
        metadata.artifacts[0].attributes.insert("roots".into(), roots);
        let cx = bench.context("20260102_000000");
        let e = bench.adapter.plan_restore(&cx, &metadata, &RestoreTarget::Live).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{path}");
    }
    // Something that the configuration does not name is not replaced.
    let roots = serde_json::json!([{ "path": "/etc", "member": "etc", "kind": "dir" }]);
    metadata.artifacts[0].attributes.insert("roots".into(), roots);
    let cx = bench.context("20260102_000000");
    let e = bench.adapter.plan_restore(&cx, &metadata, &RestoreTarget::Live).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict);
}
