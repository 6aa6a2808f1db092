//! `backup hold`, `unhold` and `accept`: a person's word about one backup.

use backup_core::BackupId;
use backup_core::catalog::FactKind;

use crate::context::{Context, Done};
use crate::error::CliError;

/// Keep a backup, whatever retention says
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup hold redis/daily/20260309_043820
  backup hold redis/daily/20260309_043820 --note \"before the migration\"")]
pub(crate) struct Hold {
    #[command(flatten)]
    mark: Mark,
}

/// Let retention judge a held backup again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup unhold redis/daily/20260309_043820")]
pub(crate) struct Unhold {
    #[command(flatten)]
    mark: Mark,
}

/// Take a suspect backup as good
///
/// A backup is suspect when it holds much less than the ones before it. Look at it first: `backup show ID`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup accept redis/daily/20260309_043820 --note \"the old sessions were purged\"")]
pub(crate) struct Accept {
    #[command(flatten)]
    mark: Mark,
}

#[derive(Debug, clap::Args)]
struct Mark {
    /// The backup: SERVICE/INTERVAL/TIMESTAMP
    #[arg(value_name = "BACKUP")]
    id: BackupId,

    /// Why; kept beside the backup
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

impl Hold {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        self.mark.add(cx, FactKind::Hold, "held").await
    }
}

impl Unhold {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        self.mark.add(cx, FactKind::Unhold, "no longer held").await
    }
}

impl Accept {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        self.mark.add(cx, FactKind::Accept, "accepted").await
    }
}

impl Mark {
    async fn add(&self, cx: &Context, kind: FactKind, done: &str) -> Result<Done, CliError> {
        let session = cx.session().await?;
        session.engine.mark(&self.id, kind, self.note.clone()).await?;
        cx.ui.note(&format!("{} is {done}", self.id));
        Ok(Done::ok().with("id", &self.id).with("fact", kind))
    }
}
