//! The verbs: one file each, with its arguments (their comments are the help) and what it does.

use crate::args::Verb;
use crate::context::{Context, Done};
use crate::error::CliError;

pub(crate) mod adapters;
#[cfg(feature = "full")]
pub(crate) mod bootstrap;
pub(crate) mod cleanup;
pub(crate) mod completions;
pub(crate) mod copy;
pub(crate) mod drill;
#[cfg(feature = "full")]
pub(crate) mod ebs;
pub(crate) mod init;
pub(crate) mod keys;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod marks;
pub(crate) mod prune;
pub(crate) mod recover;
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod show;
#[cfg(feature = "full")]
pub(crate) mod spot;
pub(crate) mod status;
pub(crate) mod thaw;
pub(crate) mod undo;
pub(crate) mod verify;
pub(crate) mod watchdog;

impl Verb {
    /// Does it.
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        if matches!(self, Self::Resume(_) | Self::Adapters(_) | Self::Completions(_)) {
            cx.refuse_store("this verb works on no store", "leave it out")?;
        }
        match self {
            Self::Init(args) => args.run(cx).await,
            Self::Run(args) => args.run(cx).await,
            Self::List(args) => args.run(cx).await,
            Self::Show(args) => args.run(cx).await,
            Self::Status(args) => args.run(cx).await,
            Self::Verify(args) => args.run(cx).await,
            Self::Restore(args) => args.run(cx).await,
            #[cfg(feature = "full")]
            Self::Bootstrap(args) => args.run(cx).await,
            Self::Recover(args) => args.run(cx).await,
            Self::Drill(args) => args.run(cx).await,
            Self::Keys(args) => args.run(cx).await,
            #[cfg(feature = "full")]
            Self::Ebs(args) => args.run(cx).await,
            Self::Undo(args) => args.run(cx).await,
            Self::Resume(args) => args.run(cx).await,
            Self::Copy(args) => args.run(cx).await,
            #[cfg(feature = "full")]
            Self::Spot(args) => args.run(cx).await,
            Self::Prune(args) => args.run(cx).await,
            Self::Cleanup(args) => args.run(cx).await,
            Self::Hold(args) => args.run(cx).await,
            Self::Unhold(args) => args.run(cx).await,
            Self::Accept(args) => args.run(cx).await,
            Self::Thaw(args) => args.run(cx).await,
            Self::Logs(args) => args.run(cx).await,
            Self::Adapters(args) => args.run(cx),
            Self::Completions(args) => args.run(cx),
            Self::Watchdog(args) => args.run(cx).await,
        }
    }
}
