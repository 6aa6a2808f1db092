//! The steps by hand where the backup leaves something out of its roots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use backup_adapters::files::FilesConfig;
use backup_core::*;

use crate::support::*;

fn write_all(top: &Path, names: &[&str]) {
    for name in names {
        fs::create_dir_all(top.join(name).parent().unwrap()).unwrap();
        fs::write(top.join(name), name).unwrap();
    }
}

fn steps(bench: &Bench, captured: &Captured) -> Vec<HandStep> {
    let steps = bench.adapter.by_hand(&HandContext { metadata: &captured.metadata });
    for step in &steps {
        assert!(step.text.lines().next().unwrap().len() < 80, "a heading, not a paragraph: {}", step.text);
    }
    steps
}

/// All steps in one shell, as somebody would who stands in the backup's folder.
fn perform(steps: &[HandStep], folder: &Path) -> Output {
    let script: Vec<&str> = steps.iter().map(|s| s.command.as_str()).collect();
    Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script.join("\n")])
        .current_dir(folder)
        .output()
        .unwrap()
}

#[tokio::test]
async fn a_store_inside_is_moved_back_and_what_patterns_leave_out_is_told() {
    let mut bench = Bench::new::<FilesConfig>("paths = ['my app']\nexclude = ['*.log']");
    let top = bench.path("my app");
    // The archive lies in the very store that the backup leaves out.
    let folder = top.join("var/back ups/app/1");
    bench.excluded = vec![top.join("var/back ups"), bench.path("elsewhere")];
    write_all(&top, &["f", "var/x", "a.log", "var/back ups/store.json", "var/back ups/app/1/run.json"]);
    let captured = bench.capture().await.unwrap();
    fs::write(folder.join("app.tar"), &captured.bytes).unwrap();
    fs::write(top.join("f"), "changed").unwrap();
    let steps = steps(&bench, &captured);
    let text = &steps[1].text;
    assert!(text.contains("leaves out `") && text.contains("var/back ups`"), "{text}");
    assert!(
        !text.contains("elsewhere") && text.contains("Git's rules") && text.contains("diff -rq"),
        "{text}"
    );

    // A second time, too: nothing is lost, and the store is where it belongs.
    for aside in ["my app.old", "my app.old.~1~"] {
        let done = perform(&steps, &folder);
        assert!(done.status.success(), "{done:?}");
        assert_eq!(fs::read_to_string(top.join("f")).unwrap(), "f");
        assert_eq!(
            fs::read_to_string(top.join("var/back ups/store.json")).unwrap(),
            "var/back ups/store.json"
        );
        assert!(folder.join("app.tar").exists() && !top.join("a.log").exists());
        assert!(bench.path(aside).join("f").exists());
        fs::remove_dir_all(folder.join("restored")).unwrap();
    }
    let first = bench.path("my app.old.~1~");
    assert_eq!(fs::read_to_string(first.join("f")).unwrap(), "changed");
    assert!(first.join("a.log").exists() && !first.join("var/back ups").exists());
}

/// Unmounts even if the test fails.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _done = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn what_is_mounted_below_stops_the_move_before_it_begins() {
    let mut bench = Bench::new::<FilesConfig>("paths = ['app', 'other']");
    let top = bench.path("app");
    write_all(&top, &["f", "data/hidden", "store/hidden"]);
    write_all(&bench.path("other"), &["f"]);
    bench.excluded = vec![top.join("store")];
    let mount = |name: &str| {
        run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(top.join(name)));
        Mount(top.join(name))
    };
    // A mounted store cannot be moved back: it is a mount in the first place.
    let (data, store) = (mount("data"), mount("store"));
    let captured = bench.capture().await.unwrap();
    let folder = bench.path("backup");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("app.tar"), &captured.bytes).unwrap();
    fs::write(top.join("f"), "changed").unwrap();
    let steps = steps(&bench, &captured);
    assert!(
        steps[1].text.contains("/app/data`") && steps[1].text.contains("/app/store`"),
        "{}",
        steps[1].text
    );
    assert!(!steps[1].text.contains("Git's rules"), "{}", steps[1].text);
    assert!(!steps[2].text.contains("nmount"), "of the other root: {}", steps[2].text);
    drop(store);
    let refused = perform(&steps, &folder);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("app/data is mounted"), "{refused:?}");
    assert_eq!(fs::read_to_string(top.join("f")).unwrap(), "changed");
    drop(data);
    fs::remove_dir_all(folder.join("restored")).unwrap();
    let done = perform(&steps, &folder);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(fs::read_to_string(top.join("f")).unwrap(), "f");
    assert!(top.join("data").is_dir());
}
