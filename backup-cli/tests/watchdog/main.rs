//! Runs that are killed or stopped while they interrupt a service: it comes back, and no backup lies.
//!
//! This executable is the tests and, with `SWITCH_BACKUP` in its environment, the program that they call.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

mod host;
mod kills;
mod program;

fn main() -> ExitCode {
    if std::env::var_os(host::AS_PROGRAM).is_some() {
        return program::cli().run();
    }
    let trial = |(name, test): &(&str, fn())| {
        let test = *test;
        Trial::test(*name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&Arguments::from_args(), kills::TESTS.iter().map(trial).collect()).exit_code()
}
