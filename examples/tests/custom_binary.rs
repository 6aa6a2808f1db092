//! The example has every verb, for its own adapter too.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

#[path = "../examples/custom_binary.rs"]
#[expect(dead_code, reason = "its `main` reads the arguments of this process")]
mod custom_binary;

use std::path::Path;
use std::process::ExitCode;

const CONFIG: &str = "
state_dir = 'state'
[store]
url = 'store'
[services.hello]
kind = 'command'
command = 'echo hello'
";

/// Runs the program in this process, with the configuration in `dir`.
fn our_backup(dir: &Path, args: &[&str]) -> ExitCode {
    let config = dir.join("backup.toml");
    let first = ["our-backup", "--quiet", "--yes", "--config", config.to_str().unwrap()];
    custom_binary::program().run_from(first.iter().chain(args))
}

#[test]
fn it_backs_up_and_restores_what_only_it_knows() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("backup.toml"), CONFIG).unwrap();
    for args in [&["init"][..], &["run"], &["verify", "--level", "restore"], &["status"], &["adapters"]] {
        assert_eq!(our_backup(dir.path(), args), ExitCode::SUCCESS, "{args:?}");
    }
    let out = dir.path().join("out");
    let restore = ["restore", "hello", "--to", out.to_str().unwrap()];
    assert_eq!(our_backup(dir.path(), &restore), ExitCode::SUCCESS);
    assert_eq!(std::fs::read_to_string(out.join("output")).unwrap(), "hello\n");
}

#[test]
fn a_wrong_key_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = CONFIG.replace("command =", "comand =");
    std::fs::write(dir.path().join("backup.toml"), wrong).unwrap();
    assert_eq!(our_backup(dir.path(), &["run"]), ExitCode::from(backup_cli::exit_code::USAGE));
}
