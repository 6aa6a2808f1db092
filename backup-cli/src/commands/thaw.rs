//! `backup thaw`: what lies in an archive of the object storage is brought back.

use backup_core::engine::ThawedFile;
use backup_core::{BackupId, Readiness, Thaw as Ask, ThawSpeed};

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::format;
use crate::render::table::{self, Column};

/// Bring a backup back from an archive of the object storage
///
/// Rules of a bucket may move old backups into classes that cannot be read at once. This asks for the files of one that were,
/// and tells how far they are; ask again to see. Until then nothing can restore or verify it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup thaw neo4j/monthly/20260309_043820
  backup thaw neo4j/monthly/20260309_043820 --speed bulk --days 14
  backup thaw neo4j/monthly/20260309_043820 --dry-run")]
pub(crate) struct Thaw {
    /// The backup: SERVICE/INTERVAL/TIMESTAMP
    #[arg(value_name = "BACKUP")]
    id: BackupId,

    /// For how many days it is to stay readable
    #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=365))]
    days: u32,

    /// How fast: `expedited` (minutes, not from every archive), `standard` (hours) or `bulk` (a day or two, the cheapest)
    #[arg(long, value_name = "SPEED", default_value = "standard")]
    speed: Speed,

    /// Only look
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Speed {
    Expedited,
    Standard,
    Bulk,
}

impl Thaw {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        let speed = match self.speed {
            Speed::Expedited => ThawSpeed::Expedited,
            Speed::Standard => ThawSpeed::Standard,
            Speed::Bulk => ThawSpeed::Bulk,
        };
        let ask = (!self.dry_run).then_some(Ask { days: self.days, speed });
        let files = session.engine.thaw(&self.id, ask).await?;
        let waiting = files.iter().filter(|f| f.state == Readiness::Underway).count();
        let archived = files.iter().filter(|f| f.state == Readiness::Archived).count();
        cx.ui.product(&text(&files));
        cx.ui.note(&match (waiting, archived) {
            (0, 0) => format!("{} can be read", self.id),
            (waiting, 0) => format!(
                "{waiting} of {} files are on their way: `backup thaw {} --dry-run` tells when they are there",
                files.len(),
                self.id
            ),
            (_, archived) => {
                format!("{archived} of {} files lie in an archive: `backup thaw {}` asks for them", files.len(), self.id)
            }
        });
        Ok(Done::ok().with("id", &self.id).with("ready", waiting + archived == 0).with("files", &files))
    }
}

fn text(files: &[ThawedFile]) -> String {
    let mut table = table::new(&[Column::Left("FILE"), Column::Right("SIZE"), Column::Left("STATE")]);
    for file in files {
        let state = match file.state {
            Readiness::Now => "can be read",
            Readiness::Underway => "on its way",
            Readiness::Archived => "in an archive",
        };
        table.add_row([file.name.clone(), format::size(file.bytes), state.to_owned()]);
    }
    table::text(&table)
}
