//! What is left out, and files that change while they are read.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use backup_adapters::files::FilesConfig;
use backup_core::*;
use futures::StreamExt;

use crate::support::*;

/// The names in an archive below `top`, as GNU tar lists them.
fn names(captured: &Captured, top: &Path) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &captured.bytes).unwrap();
    let listed = String::from_utf8(run(Command::new("tar").arg("-tf").arg(file.path()))).unwrap();
    let top = format!("{}/", top.strip_prefix("/").unwrap().display());
    listed.lines().filter_map(|l| l.strip_prefix(&top)).filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

fn write_all(top: &Path, files: &[&str]) {
    for file in files {
        let path = top.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, *file).unwrap();
    }
}

#[tokio::test]
async fn exclude_patterns_work_like_gitignore() {
    let bench = Bench::new::<FilesConfig>(
        "paths = ['app']\nexclude = ['*.log', '!keep.log', '/cache', 'tmp/', 'a/**/z', 'sp ace?']",
    );
    let top = bench.path("app");
    write_all(
        &top,
        &[
            "x.log",
            "keep.log",
            "d/y.log",
            "cache/f",
            "d/cache/f",
            "tmp/f",
            "d/tmp",
            "a/b/c/z",
            "a/y",
            "sp ace1",
        ],
    );
    let captured = bench.capture().await.unwrap();
    assert_eq!(
        names(&captured, &top),
        ["a/", "a/b/", "a/b/c/", "a/y", "d/", "d/cache/", "d/cache/f", "d/tmp", "keep.log"]
    );
}

#[tokio::test]
async fn what_git_ignores_is_left_out_if_asked_and_git_itself_stays() {
    let bench = Bench::new::<FilesConfig>("paths = ['repo/part']\ngitignore = true");
    let (repo, top) = (bench.path("repo"), bench.path("repo/part"));
    write_all(
        &repo,
        &[
            ".git/HEAD",
            "part/.env",
            "part/target/x",
            "part/src/a.o",
            "part/src/b.c",
            "part/src/deep/keep.o",
            "part/secret",
            "part/nested/.git/x.o",
            "part/nested/x.o",
            "part/not.log",
        ],
    );
    fs::create_dir(repo.join(".git/info")).unwrap();
    fs::write(repo.join(".git/info/exclude"), "secret\n").unwrap();
    fs::write(repo.join(".gitignore"), "target/\n*.o\n.env\n").unwrap();
    fs::write(top.join("src/.gitignore"), "!deep/keep.o\n").unwrap();
    let captured = bench.capture().await.unwrap();
    let found = names(&captured, &top);
    let expected = [
        "nested/",
        "nested/.git/",
        "nested/.git/x.o",
        "nested/x.o",
        "not.log",
        "src/",
        "src/.gitignore",
        "src/b.c",
        "src/deep/",
        "src/deep/keep.o",
    ];
    assert_eq!(found, expected);
    // Without a repository, Git ignores nothing.
    fs::remove_dir_all(repo.join(".git")).unwrap();
    assert!(names(&bench.capture().await.unwrap(), &top).contains(&"target/x".to_owned()));
}

#[tokio::test]
async fn a_store_inside_and_what_restores_kept_aside_are_never_included() {
    let mut bench = Bench::new::<FilesConfig>("paths = ['app', '*.conf']");
    let top = bench.path("app");
    write_all(
        &top,
        &["f", "backups/store.json", "d/state/x", "d.backup.20260101_000000/old", "d.backup.mine"],
    );
    write_all(&bench.path(""), &["a.conf", "a.conf.backup.20260101_000000"]);
    // By another name, and through a symlink.
    symlink(top.join("d/state"), bench.path("link")).unwrap();
    bench.excluded = vec![top.join("../app/backups"), bench.path("link")];
    let captured = bench.capture().await.unwrap();
    assert_eq!(names(&captured, &top), ["d/", "d.backup.mine", "f"]);
    assert_eq!(captured.report.evidence.counts["files"], 3);
    bench.excluded = vec![bench.path("")];
    assert_eq!(bench.capture().await.unwrap_err().kind(), AdapterErrorKind::InvalidConfig);
}

/// Unmounts even if the test fails.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _done = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn mount_points_are_crossed_only_on_request() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    let top = bench.path("app");
    write_all(&top, &["f", "data/hidden", "bound/hidden", "elsewhere/in"]);
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(top.join("data")));
    let _data = Mount(top.join("data"));
    // Of the same file system: device numbers do not tell.
    run(Command::new("mount").arg("--bind").arg(top.join("elsewhere")).arg(top.join("bound")));
    let _bound = Mount(top.join("bound"));
    write_all(&top, &["data/inside"]);

    let captured = bench.capture().await.unwrap();
    assert_eq!(names(&captured, &top), ["bound/", "data/", "elsewhere/", "elsewhere/in", "f"]);
    assert_eq!(captured.report.warnings.len(), 2);
    assert!(captured.report.warnings[1].contains("data` is a mount point"), "{:?}", captured.report.warnings);

    // A live restore leaves the mounted data where it is.
    fs::write(top.join("f"), "changed").unwrap();
    bench.restore(&captured, RestoreTarget::Live, "20260102_000000").await.unwrap();
    assert_eq!(fs::read_to_string(top.join("f")).unwrap(), "f");
    assert!(top.join("data/inside").exists() && top.join("bound/in").exists());

    let crossing = build::<FilesConfig>(bench.base.path(), "paths = ['app']\ncross_mounts = true");
    let captured = capture(&*crossing, &bench.context("20260101_000000")).await.unwrap();
    assert!(names(&captured, &top).contains(&"data/inside".to_owned()));
    let cx = bench.context("20260103_000000");
    let refused = crossing.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap_err();
    assert_eq!(refused.kind(), AdapterErrorKind::Conflict);
    assert!(refused.to_string().contains("mount point"), "{refused}");
}

const BIG: u64 = 20 << 20;

/// Takes the file and the number of the chunk that came.
type Change = fn(&Path, usize);

/// Reads a capture of a big file and two small ones, and calls `meanwhile` with its path at every chunk: the writer
/// is at most a few chunks ahead, so that the file is being read then.
async fn disturbed(
    settings: &str,
    mut meanwhile: impl FnMut(&Path, usize),
) -> Result<(Bench, Captured), AdapterError> {
    let bench = Bench::new::<FilesConfig>(settings);
    let top = bench.path("app");
    write_all(&top, &["a-before", "z-after"]);
    let big = top.join("big");
    fs::write(&big, vec![b'x'; BIG as usize]).unwrap();
    let mut parts = bench.adapter.open(&bench.context("20260101_000000")).await.unwrap().into_parts();
    let artifact = parts.artifacts.next().await.unwrap().unwrap();
    let ArtifactBody::Stream(mut body) = artifact.body else { panic!() };
    let (mut bytes, mut number) = (Vec::new(), 0);
    while let Some(chunk) = body.next().await {
        match chunk {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(e) => {
                (parts.release)(ReadOutcome::Failed).await.unwrap();
                return Err(e);
            }
        }
        number += 1;
        meanwhile(&big, number);
    }
    let report = (parts.release)(ReadOutcome::Complete).await.unwrap();
    let metadata = metadata("files", artifact.name, artifact.attributes, &bytes, &report);
    let found = check(&*bench.adapter, &metadata, &bytes).unwrap();
    assert_eq!(report.evidence.contradictions(&found), [""; 0]);
    assert_eq!(found.counts["files"], 3);
    Ok((bench, Captured { bytes, metadata: metadata.into(), report }))
}

fn grow(path: &Path) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
}

async fn restored(bench: &Bench, captured: &Captured) -> PathBuf {
    let out = bench.path("out");
    bench.restore(captured, RestoreTarget::Dir(out.clone()), "20260102_000000").await.unwrap();
    let top = out.join(bench.path("app").strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(top.join("a-before")).unwrap(), "a-before");
    assert_eq!(fs::read_to_string(top.join("z-after")).unwrap(), "z-after");
    top.join("big")
}

#[tokio::test]
async fn a_file_that_changes_once_is_read_again() {
    let (bench, captured) = disturbed("paths = ['app']", |big, n| {
        if n == 1 {
            grow(big);
        }
    })
    .await
    .unwrap();
    assert_eq!(captured.report.warnings, [""; 0]);
    assert_eq!(captured.report.evidence.counts["bytes"], BIG + 4 + 8 + 7);
    let big = restored(&bench, &captured).await;
    assert!(fs::read(big).unwrap() == fs::read(bench.path("app/big")).unwrap());
    // GNU tar takes the last one too.
    let out = tempfile::tempdir().unwrap();
    gnu_untar(&captured.bytes, out.path());
    assert_same(
        &picture(&bench.path("app")),
        &picture(&out.path().join(bench.path("app").strip_prefix("/").unwrap())),
    );
}

#[tokio::test]
async fn a_file_that_keeps_changing_fails_the_backup_by_name() {
    let changes: [Change; 4] = [
        |big, _| grow(big),
        |big, n| File::options().write(true).open(big).unwrap().set_len(BIG - n as u64 * 200_000).unwrap(),
        // Neither its length nor its name changes.
        |big, n| File::options().write(true).open(big).unwrap().write_all(&[n as u8; 9]).unwrap(),
        |big, _| drop(fs::remove_file(big)),
    ];
    for change in changes {
        let e = disturbed("paths = ['app']", change).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Changed);
        assert!(e.to_string().contains("app/big` changed while it was read"), "{e}");
    }
}

#[tokio::test]
async fn a_recorded_change_leaves_the_archive_whole() {
    let changes: [(&str, Change); 3] = [
        ("it grew", |big, _| grow(big)),
        ("it shrank", |big, n| {
            let length = BIG.saturating_sub(n as u64 * 300_000);
            File::options().write(true).open(big).unwrap().set_len(length).unwrap();
        }),
        ("it vanished", |big, _| drop(fs::remove_file(big))),
    ];
    for (what, change) in changes {
        let (bench, captured) = disturbed("paths = ['app']\non_change = 'record'", change).await.unwrap();
        let warnings = &captured.report.warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("big` changed while it was read"), "{warnings:?}");
        if what != "it shrank" {
            assert!(warnings[0].contains(what), "{warnings:?}");
        }
        assert!(captured.report.evidence.notes["changed"].contains("app/big"));
        let big = restored(&bench, &captured).await;
        assert!(fs::read(big).unwrap().iter().all(|b| matches!(b, b'x' | 0 | b'm' | b'o' | b'r' | b'e')));
    }
}

#[tokio::test]
async fn a_dropped_capture_ends_and_a_cancelled_one_says_so() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    write_all(&bench.path("app"), &["f"]);
    fs::write(bench.path("app/big"), vec![1; BIG as usize]).unwrap();
    let parts = bench.adapter.open(&bench.context("20260101_000000")).await.unwrap().into_parts();
    drop(parts.artifacts);
    (parts.release)(ReadOutcome::Cancelled).await.unwrap();

    let cx = bench.context("20260101_000000");
    cx.cancel.cancel();
    assert_eq!(capture(&*bench.adapter, &cx).await.unwrap_err().kind(), AdapterErrorKind::Cancelled);
}

#[tokio::test]
async fn what_is_missing_is_named() {
    for (settings, name) in [("paths = ['app/none']", "none"), ("paths = ['*.nothing']", "*.nothing")] {
        let bench = Bench::new::<FilesConfig>(settings);
        for e in [
            bench.adapter.check(&bench.context("20260101_000000")).await.unwrap_err(),
            bench.capture().await.unwrap_err(),
        ] {
            assert_eq!(e.kind(), AdapterErrorKind::NotFound);
            assert!(e.to_string().contains(name), "{e}");
        }
    }
}

#[test]
fn bad_settings_name_the_key() {
    let cases = [
        ("paths = []", "paths: there is no path"),
        ("paths = ['a[']", "paths: `a[` is not a glob"),
        ("paths = ['a']\nexclude = ['[z-a]']", "exclude: `[z-a]` is not a pattern"),
    ];
    for (settings, message) in cases {
        let config: FilesConfig = toml::from_str(settings).unwrap();
        let e = config.build(&BuildContext::new(ServiceName::new("app").unwrap(), "/")).unwrap_err();
        assert!(e.to_string().contains(message), "{e}");
    }
    assert!(toml::from_str::<FilesConfig>("paths = ['a']\non_change = 'ignore'").is_err());
    assert!(toml::from_str::<FilesConfig>("paths = ['a']\nexcludes = []").is_err());
}

#[tokio::test]
async fn globs_name_files_and_symlinks_lead_to_what_is_meant() {
    let bench = Bench::new::<FilesConfig>("paths = ['conf/*.{a,b}', '**/deep.txt', 'current', 'app']");
    let base = bench.path("");
    write_all(
        &base,
        &["conf/1.a", "conf/2.b", "conf/3.c", "x/y/deep.txt", "deep.txt", "v1/f", "app/deep.txt"],
    );
    symlink("v1", base.join("current")).unwrap();
    let captured = bench.capture().await.unwrap();
    let roots = captured.metadata.artifacts[0].attributes["roots"].as_array().unwrap();
    let paths: Vec<&str> = roots.iter().map(|r| r["path"].as_str().unwrap()).collect();
    let expected = ["app", "conf/1.a", "conf/2.b", "deep.txt", "v1", "x/y/deep.txt"];
    let expected: Vec<String> = expected.iter().map(|p| base.join(p).display().to_string()).collect();
    assert_eq!(paths, expected);
    assert_eq!(roots[4]["kind"], "dir");
    assert_eq!(roots[5]["kind"], "file");
}

#[test]
fn discovery_says_what_it_found_and_what_it_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    let top = fs::canonicalize(dir.path()).unwrap();
    write_all(
        &top,
        &[".git/HEAD", "src/main.c", "target/x", ".env", "data/app.db", "backups/b", "web/.env.local"],
    );
    fs::write(top.join(".gitignore"), "target/\n.env*\n").unwrap();
    let mut cx = DiscoverContext::new(dir.path());
    cx.excluded = vec![top.join("backups")];
    let env = backup_adapters::env::EnvConfig::discover(&cx).unwrap().found.remove(0);
    assert_eq!(env.summary, ".env, web/.env.local");
    cx.covered = env.covers;
    cx.covered.push(top.join("data/app.db"));
    let files = FilesConfig::discover(&cx).unwrap();
    assert_eq!(files.left_out.len(), 1, "{:?}", files.left_out);
    assert_eq!(files.left_out[0].what, "target");
    let found = &files.found[0];
    assert_eq!(found.summary, "3 files, 33 B");
    assert_eq!(found.settings["exclude"].to_string(), r#"["/.env", "/data/app.db", "/web/.env.local"]"#);
    // What it proposes can be used as it is.
    let config: FilesConfig = found.settings.clone().try_into().unwrap();
    config.build(&BuildContext::new(found.service.clone(), dir.path())).unwrap();
}
