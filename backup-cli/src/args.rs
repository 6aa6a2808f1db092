//! The command line as a whole. Each verb's own arguments are beside the verb, in `commands`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ColorChoice, Parser, Subcommand};

use crate::{commands, exit_code};

/// Back up, verify and recover the stateful services of a host
///
/// Without a configuration file it looks at the current directory: `backup run` finds what is in it and backs that up
/// to ./backups.
#[derive(Debug, Parser)]
#[command(
    after_help = exit_code::HELP,
    after_long_help = AFTER_HELP,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub(crate) struct Root {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const AFTER_HELP: &str = "\
The first minute:
  backup run                        back up this directory to ./backups
  backup list                       what there is
  backup verify                     prove that it can be read and is what it was
  backup restore files --to ./out   get it back, elsewhere

On the worst day:
  backup status                     what is safe, what is not, what to do next
  backup recover --dry-run          what it would take to have everything back, and how long
  backup recover                    do it: every service that does not hold its data
  backup restore SERVICE --dry-run  what a restore would do; changes nothing
  backup restore SERVICE            do it; what was there is kept aside
  backup bootstrap STORE            on an empty machine: the configuration, from the store
  backup undo SERVICE               put back what was there
  backup show SERVICE --by-hand     the commands to do it without this program

The configuration is the first of: --config, $BACKUP_CONFIG, ./backup.toml, /etc/backup/backup.toml.

Exit codes:
    0  done
    1  failed
    2  wrong usage or configuration; nothing was begun
    3  some services failed, the others are safe
    4  nothing selected
    5  verification found damage
  130  interrupted";

/// What every verb understands.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// Read this configuration instead of searching one ($BACKUP_CONFIG)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Work on this store of [stores] instead of [store], whose name is primary
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) store: Option<String>,

    /// Print JSON lines; the last one is {"event":"summary",…}
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Say nothing but warnings and errors beside the result
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Print the log to standard error; twice: all of it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Use colours: auto (which honours NO_COLOR), always or never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub(crate) color: ColorChoice,

    /// Answer every question with yes
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,

    /// Open encrypted backups with the key in this file, too
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) identity: Vec<PathBuf>,

    /// Wait this long (5min) for another process at work on the same service
    #[arg(long, global = true, value_name = "TIME", default_value = "5min", value_parser = parse_wait)]
    #[arg(hide_default_value = true)]
    pub(crate) wait: Duration,
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}: write it like 30s, 5min or 1h"))
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Init(commands::init::Args),
    Run(commands::run::Args),
    List(commands::list::Args),
    Show(commands::show::Args),
    Status(commands::status::Args),
    Verify(commands::verify::Args),
    Restore(commands::restore::Args),
    #[cfg(feature = "full")]
    Bootstrap(commands::bootstrap::Args),
    Recover(commands::recover::Args),
    Drill(commands::drill::Args),
    Undo(commands::undo::Args),
    Resume(commands::resume::Args),
    Copy(commands::copy::Args),
    #[cfg(feature = "full")]
    Spot(commands::spot::Args),
    Prune(commands::prune::Args),
    Cleanup(commands::cleanup::Args),
    Hold(commands::marks::Hold),
    Unhold(commands::marks::Unhold),
    Accept(commands::marks::Accept),
    Thaw(commands::thaw::Thaw),
    #[cfg(feature = "full")]
    Ebs(commands::ebs::Args),
    Keys(commands::keys::Args),
    Logs(commands::logs::Args),
    Adapters(commands::adapters::Args),
    Completions(commands::completions::Args),
    #[command(hide = true)]
    Watchdog(commands::watchdog::Args),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Root::command().debug_assert();
    }

    #[test]
    fn every_verb_has_examples() {
        for verb in Root::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("backup "), "{}", verb.get_name());
        }
    }
}
