//! A program of one's own: everything that `backup` can do, and one kind of service more.
//!
//! ```sh
//! cargo run --package backup-examples --example custom_binary -- adapters
//! ```

#[path = "custom_adapter.rs"]
#[expect(dead_code, reason = "its `main` is a program by itself")]
mod custom_adapter;

use std::process::ExitCode;

use backup_cli::Cli;
use custom_adapter::CommandOutput;

/// The program, for `main` and for its tests.
pub(crate) fn program() -> Cli {
    Cli::new().named("our-backup", "1.0.0").with_builtins().with_adapter::<CommandOutput>()
}

pub(crate) fn main() -> ExitCode {
    program().run()
}
