//! Programs of others: their own adapters and stores, every verb.

use std::process::ExitCode;
use std::sync::Arc;

use backup_cli::{Cli, exit_code};
use backup_core::testkit::fake_adapter::FakeConfig;
use backup_core::{MemoryStore, Store};

use super::support::World;

const CONFIG: &str = r#"
state_dir = "state"
[store]
url = "vault://here"
[services.ledger]
kind = "fake"
artifacts = { books = ["one", "two"] }
[services.data]
kind = "files"
paths = ["data"]
"#;

/// A program with an adapter and a store of its own. Its store lives as long as the test.
fn program() -> Cli {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Cli::new()
        .named("ledger-backup", "9.9.9")
        .with_adapter::<FakeConfig>()
        .with_store("vault", move |_, _| {
            let store = Arc::clone(&store);
            async move { Ok(store) }
        })
        .with_builtins()
}

#[test]
fn a_program_of_ones_own_has_every_verb() {
    let world = World::new();
    world.fill();
    world.write("own.toml", CONFIG);
    let (cli, config) = (program(), world.path("own.toml"));
    let run = |args: &[&str]| {
        let config = config.to_str().unwrap();
        let code = cli.clone().run_from([&["ledger-backup", "--quiet", "--config", config], args].concat());
        format!("{code:?}")
    };
    let code = |code: u8| format!("{:?}", ExitCode::from(code));
    assert_eq!(run(&["run"]), code(exit_code::FAILED), "the store has no mark yet");
    for args in [&["init"][..], &["run"], &["verify"], &["status"], &["show", "ledger"], &["adapters"]] {
        assert_eq!(run(args), code(exit_code::OK), "{args:?}");
    }
    let out = world.path("out");
    assert_eq!(run(&["restore", "data", "--to", out.to_str().unwrap()]), code(exit_code::OK));
    assert_eq!(run(&["--version"]), code(exit_code::OK));
    assert_eq!(run(&["restore", "leger", "--dry-run"]), code(exit_code::USAGE));
}

#[test]
#[should_panic(expected = "is registered twice")]
fn one_kind_cannot_be_registered_twice() {
    let _twice = Cli::new().with_builtins().with_builtins();
}
