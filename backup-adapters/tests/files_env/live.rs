//! Restoring over what is there: kept aside, undone, refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use backup_adapters::env::EnvConfig;
use backup_adapters::files::FilesConfig;
use backup_core::*;

use crate::support::*;

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Like [`picture`], without the folders' own times.
fn contents(path: &Path) -> BTreeMap<PathBuf, String> {
    let files = picture(path).into_keys().map(|p| (p.clone(), path.join(p)));
    files.filter(|(_, p)| p.is_file()).map(|(name, p)| (name, read(&p))).collect()
}

/// `recover` leaves alone what holds data: folders and empty dotenv files that a start has made are none.
#[tokio::test]
async fn folders_and_empty_dotenv_files_are_no_data() {
    let files = Bench::new::<FilesConfig>("paths = ['app']");
    let env = Bench::new::<EnvConfig>("paths = ['.env']");
    fs::create_dir_all(files.path("app/a/b")).unwrap();
    write(&env.path(".env"), "# to be filled in\n");
    for bench in [&files, &env] {
        let found = bench.adapter.data(&bench.context("20260102_000000")).await.unwrap();
        assert!(found.counts.values().all(|n| *n == 0), "{found:?}");
    }
    write(&files.path("app/a/b/empty"), "");
    write(&env.path(".env"), "A=1\n");
    for bench in [&files, &env] {
        let found = bench.adapter.data(&bench.context("20260102_000000")).await.unwrap();
        assert!(found.counts.values().any(|n| *n == 1), "{found:?}");
    }
}

#[tokio::test]
async fn old_data_stays_aside_and_undo_brings_it_back_any_number_of_times() {
    let bench = Bench::new::<FilesConfig>("paths = ['app', 'one.conf']");
    let (top, conf) = (bench.path("app"), bench.path("one.conf"));
    write(&top.join("d/f"), "old");
    write(&conf, "old");
    let backed_up = (picture(&top), picture(&conf));
    let captured = bench.capture().await.unwrap();
    write(&top.join("d/f"), "new");
    write(&top.join("more"), "new");
    write(&conf, "new");
    let changed = (picture(&top), picture(&conf));
    let now = || (picture(&top), picture(&conf));

    let cx = bench.context("20260102_000000");
    let plan = bench.adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    assert_eq!(plan.replaces.len(), 2);
    assert!(plan.replaces[0].changed_at.is_some());
    assert_eq!(plan.replaces[0].kept_as, bench.path("app.backup.20260102_000000").display().to_string());
    assert_eq!(plan.space.len(), 1);
    let staged =
        bench.adapter.stage(&cx, &plan, &source(captured.bytes.clone(), &captured.metadata)).await.unwrap();
    assert!(now() == changed, "staging changes nothing");
    assert_eq!(bench.adapter.leftovers(&cx, &staged).await.unwrap().len(), 2);
    let mut switched = StepToken::new(&0).unwrap();
    for _ in 0..2 {
        switched = bench.adapter.switch(&cx, &plan, &staged).await.unwrap();
        assert!(now() == backed_up);
        assert!(picture(&bench.path("app.backup.20260102_000000")) == changed.0);
    }
    let mut token = switched;
    for (i, expected) in [&changed, &backed_up, &changed].into_iter().enumerate() {
        let cx = bench.context(&format!("20260103_00000{i}"));
        let mut next = token.clone();
        for _ in 0..2 {
            next = bench.adapter.undo(&cx, &token).await.unwrap();
            assert!(now() == *expected, "undo {i}");
        }
        token = next;
        assert_eq!(bench.adapter.leftovers(&cx, &token).await.unwrap().len(), 2);
    }
    for _ in 0..2 {
        bench.adapter.discard(&cx, &token).await.unwrap();
    }
    assert!(now() == changed);
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), 2);
}

#[tokio::test]
async fn restoring_twice_gives_the_same() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    let top = bench.path("app");
    write(&top.join("d/f"), "old");
    let before = picture(&top);
    let captured = bench.capture().await.unwrap();
    // The same second: the names for what is kept aside give way.
    for at in ["20260102_000000", "20260102_000000", "20260102_000001"] {
        bench.restore(&captured, RestoreTarget::Live, at).await.unwrap();
        assert_same(&before, &picture(&top));
    }
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), 4);
}

#[tokio::test]
async fn if_one_root_cannot_be_switched_none_is() {
    let bench = Bench::new::<FilesConfig>("paths = ['a', 'b', 'c']");
    for name in ["a", "b"] {
        write(&bench.path(name).join("f"), "old");
    }
    write(&bench.path("c"), "old");
    let captured = bench.capture().await.unwrap();
    for name in ["a", "b"] {
        write(&bench.path(name).join("f"), "new");
    }
    fs::remove_file(bench.path("c")).unwrap();
    let cx = bench.context("20260102_000000");
    let plan = bench.adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    let staged =
        bench.adapter.stage(&cx, &plan, &source(captured.bytes.clone(), &captured.metadata)).await.unwrap();
    // Somebody takes the free name meanwhile.
    write(&bench.path("c"), "new");
    bench.adapter.switch(&cx, &plan, &staged).await.unwrap_err();
    for name in ["a/f", "b/f", "c"] {
        assert_eq!(read(&bench.path(name)), "new");
    }
    assert!(!bench.path("a.backup.20260102_000000").exists());
    // Nothing was lost: it can be tried again.
    fs::remove_file(bench.path("c")).unwrap();
    bench.adapter.switch(&cx, &plan, &staged).await.unwrap();
    for name in ["a/f", "b/f", "c"] {
        assert_eq!(read(&bench.path(name)), "old");
    }
}

#[tokio::test]
async fn stores_and_what_was_left_out_stay_in_place() {
    let mut bench = Bench::new::<FilesConfig>("paths = ['.']\nexclude = ['.env', 'node_modules/']");
    let top = bench.path("");
    bench.excluded = vec![top.join("var/backups")];
    for name in [
        "src/a",
        "src/b",
        "web/index",
        "web/node_modules/x",
        ".env",
        "var/backups/store.json",
        "var/x",
        "gone/f",
    ] {
        write(&top.join(name), "old");
    }
    let backed_up = contents(&top);
    let captured = bench.capture().await.unwrap();
    assert_eq!(captured.report.evidence.counts["files"], 5);
    for name in [
        "src/a",
        "web/index",
        "web/node_modules/x",
        ".env",
        "var/backups/store.json",
        "var/x",
        "src/c",
        "top",
        "only/node_modules/y",
    ] {
        write(&top.join(name), "new");
    }
    fs::remove_dir_all(top.join("gone")).unwrap();
    let changed = contents(&top);

    let switched = bench.restore(&captured, RestoreTarget::Live, "20260102_000000").await.unwrap();
    let mut expected = backed_up;
    for stays in ["web/node_modules/x", ".env", "var/backups/store.json", "only/node_modules/y"] {
        expected.insert(stays.into(), "new".into());
    }
    let now = |top: &Path| {
        let mut now = contents(top);
        now.retain(|p, _| !p.to_str().unwrap().contains(".backup."));
        now
    };
    assert_eq!(now(&top), expected);
    let cx = bench.context("20260103_000000");
    let counts = bench.adapter.probe(&cx, &RestoreTarget::Live).await.unwrap().counts;
    assert_eq!(counts["files"], captured.report.evidence.counts["files"]);

    bench.adapter.undo(&cx, &switched).await.unwrap();
    assert_eq!(now(&top), changed);
}

/// What the operator reads before, after and when it is undone names the places where the old data really is.
#[tokio::test]
async fn where_entries_change_places_one_by_one_their_real_places_are_told() {
    let mut bench = Bench::new::<FilesConfig>("paths = ['app']\nexclude = ['.env']");
    let top = bench.path("app");
    bench.excluded = vec![top.join("var/store")];
    let same = ["src/a", "var/deep/x", "var/store/store.json", ".env"];
    same.iter().for_each(|name| write(&top.join(name), "old"));
    let captured = bench.capture().await.unwrap();
    // The store was written later, as it always is: that is no write that would be lost.
    let old = std::time::SystemTime::UNIX_EPOCH;
    for name in ["src", "src/a", "var/deep", "var/deep/x"] {
        fs::File::open(top.join(name)).unwrap().set_modified(old).unwrap();
    }
    write(&top.join("later"), "new");
    fs::File::open(top.join("later")).unwrap().set_modified(old).unwrap();
    // Names of an earlier restore are taken.
    write(&top.join("src.backup.20260102_000000"), "earlier");

    let cx = bench.context("20260102_000000");
    let plan = bench.adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    assert!(plan.steps[0].contains("`.env`") || plan.steps[0].contains(".env`"), "{:?}", plan.steps);
    assert!(plan.steps[0].contains("var/store`"), "{:?}", plan.steps);
    let source = source(captured.bytes.clone(), &captured.metadata);
    let staged = bench.adapter.stage(&cx, &plan, &source).await.unwrap();
    let told = bench.adapter.replaces(&staged).unwrap();
    let places = |replaces: &[Replaced]| -> Vec<(String, String)> {
        replaces.iter().map(|r| (r.what.clone(), r.kept_as.clone())).collect()
    };
    assert_eq!(places(&told), places(&plan.replaces));
    let expected = [
        ("later", "later.backup.20260102_000000"),
        ("src", "src.backup.20260102_000001"),
        ("var/deep", "var/deep.backup.20260102_000000"),
    ];
    let full = |name: &str| top.join(name).display().to_string();
    assert_eq!(places(&told), expected.map(|(what, kept)| (full(what), full(kept))));
    assert!(plan.replaces.iter().all(|r| r.changed_at == Some(chrono::DateTime::UNIX_EPOCH)), "{plan:?}");

    let switched = bench.adapter.switch(&cx, &plan, &staged).await.unwrap();
    let left = bench.adapter.leftovers(&cx, &switched).await.unwrap();
    let mut left: Vec<String> = left.into_iter().map(|l| l.what).collect();
    left.sort();
    assert_eq!(left, expected.map(|(_, kept)| full(kept)));
    assert_eq!(
        (read(&top.join("later.backup.20260102_000000")), top.join("later").exists()),
        ("new".into(), false)
    );
}

#[tokio::test]
async fn a_hundred_replaced_entries_are_not_all_named() {
    let mut bench = Bench::new::<FilesConfig>("paths = ['app']");
    let top = bench.path("app");
    bench.excluded = vec![top.join("store")];
    write(&top.join("store/x"), "x");
    (0..100).for_each(|n| write(&top.join(format!("f{n:03}")), "old"));
    let captured = bench.capture().await.unwrap();
    let cx = bench.context("20260102_000000");
    let plan = bench.adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    assert_eq!(plan.replaces.len(), 21);
    assert_eq!(plan.replaces[20].what, "80 more entries");
    assert!(plan.replaces[20].changed_at.is_some());
}

/// Ends the program even if the test fails.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

#[tokio::test]
async fn a_target_that_is_open_for_writing_is_refused_unless_forced() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    let top = bench.path("app");
    write(&top.join("f"), "old");
    let captured = bench.capture().await.unwrap();
    let file = fs::OpenOptions::new().append(true).open(top.join("f")).unwrap();
    let program = Program(Command::new("cat").stdin(Stdio::piped()).stdout(file).spawn().unwrap());
    let mut cx = bench.context("20260102_000000");
    let e = bench.adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict);
    assert!(e.to_string().contains(&format!("process {} (", program.0.id())), "{e}");
    cx.force = true;
    bench.adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    drop(program);
    cx.force = false;
    // A reader does no harm.
    let file = fs::File::open(top.join("f")).unwrap();
    let _reader = Program(Command::new("sleep").arg("60").stdin(file).spawn().unwrap());
    bench.adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
}

#[tokio::test]
async fn a_directory_must_be_empty_and_gets_everything_or_nothing() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    write(&bench.path("app/f"), "old");
    let captured = bench.capture().await.unwrap();
    write(&bench.path("full/x"), "x");
    let full = RestoreTarget::Dir(bench.path("full"));
    let e = bench.restore(&captured, full, "20260102_000000").await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict);
    fs::create_dir(bench.path("scratch")).unwrap();
    let cx = bench.context("20260102_000000");
    let scratch = ScratchHandle { dir: bench.path("scratch"), run_id: cx.run_id.clone() };
    let target = RestoreTarget::Scratch(scratch);
    bench.restore(&captured, target.clone(), "20260102_000000").await.unwrap();
    let found = bench.adapter.probe(&cx, &target).await.unwrap();
    assert_eq!(found.counts, captured.report.evidence.counts);
}

#[derive(Debug, Default)]
struct Warnings(Mutex<Vec<String>>);

impl EventSink for Warnings {
    fn emit(&self, event: Event) {
        if let Event::Warning { message, .. } = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

#[tokio::test]
async fn a_failing_body_leaves_nothing_and_lost_attributes_are_told() {
    let bench = Bench::new::<FilesConfig>("paths = ['app']");
    write(&bench.path("app/f"), "old");
    xattr::set(bench.path("app/f"), "user.a", b"x").unwrap();
    let mut captured = bench.capture().await.unwrap();
    // An attribute of a kind that no file system has.
    let mut cx = bench.context("20260102_000000");
    let warnings = Arc::new(Warnings::default());
    cx.events = Arc::<Warnings>::clone(&warnings);
    let good = captured.bytes.clone();
    let at = good.windows(6).position(|w| w == b"user.a").unwrap();
    captured.bytes[at..at + 6].copy_from_slice(b"nope.a");
    let target = RestoreTarget::Dir(bench.path("out"));
    let plan = bench.adapter.plan_restore(&cx, &captured.metadata, &target).await.unwrap();
    bench.adapter.stage(&cx, &plan, &source(captured.bytes.clone(), &captured.metadata)).await.unwrap();
    let said = warnings.0.lock().unwrap().clone();
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("`nope.a`"), "{said:?}");

    let killed = bench.context("20260104_000000");
    let plan = bench.adapter.plan_restore(&killed, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    bench.adapter.stage(&killed, &plan, &source(good, &captured.metadata)).await.unwrap();
    let before = fs::read_dir(bench.path("")).unwrap().count();
    let removed = bench.adapter.reclaim(&cx, std::slice::from_ref(&killed.run_id)).await.unwrap();
    assert_eq!(removed.len(), 1);
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), before - 1);
    assert_eq!(bench.adapter.reclaim(&cx, &[killed.run_id]).await.unwrap(), [""; 0]);
}
