//! The `backup` binary: the command line with everything that is built in.

use std::process::ExitCode;

fn main() -> ExitCode {
    backup_cli::Cli::new().with_builtins().run()
}
