//! `backup completions`.

use clap_complete::Shell;

use crate::context::{Context, Done};
use crate::error::CliError;

/// Print the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup completions bash > /etc/bash_completion.d/backup
  backup completions zsh > ~/.zfunc/_backup")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

impl Args {
    pub(crate) fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut cx.cli.command(), cx.cli.name, &mut text);
        let text = String::from_utf8(text)
            .map_err(|e| CliError::failed("the completions are not text").because(&e))?;
        cx.ui.raw(&text);
        Ok(Done::ok())
    }
}
