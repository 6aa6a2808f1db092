//! `backup spot`: the two minutes between the notice that a spot instance ends and its end.

use std::sync::Arc;
use std::time::Duration;

use backup_adapters::notify::{self, Channel};
use backup_adapters::spot::{Surroundings, steps};
use backup_core::Interval;
use backup_core::config::{SpotAction, SpotConfig};
use backup_core::engine::{FlushReport, FlushRequest};
use backup_core::plan::SPOT;
use tokio::time::Instant;

use crate::context::{Context, Done, Session};
use crate::error::CliError;

mod reach;
mod simulate;
mod watch;

/// Save what can be saved when this spot instance is taken away
///
/// AWS gives a spot instance two minutes. `watch` waits for the notice; then it ends what is at work, backs up what is
/// small and precious first (Redis, .env), has volumes snapshot, pushes an emergency commit of each repository, backs up
/// Neo4j as far as the time allows, copies what is good to the other stores, stops model servers, and tells people.
/// [spot] in the configuration says what, and [[spot.steps]] in which order.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup spot watch                   wait for the notice; for a service that always runs
  backup spot simulate --dry-run      what would be done, in which order, and how long it may take
  backup spot simulate                do it now, as an exercise
  backup spot simulate --notice 60s   with less time

[spot] may be empty. What a notice saved is in the interval `spot`: `backup recover` takes it if it is the newest.")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Watch(watch::Args),
    Simulate(simulate::Args),
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        cx.refuse_store(
            "backups go to [store] first, and from there to where `copies` says",
            "leave it out",
        )?;
        let Some(file) = cx.config_file()? else {
            return Err(CliError::usage("there is no configuration that says what is to be saved")
                .hint("`backup init` writes one; add `[spot]` to it"));
        };
        let prepared = cx.prepare_file(&file)?;
        let Some(config) = prepared.plan.spot.clone() else {
            return Err(CliError::usage("the section [spot] is missing in the configuration").hint(
                "add `[spot]`; below it e.g. `repositories = [\"/srv/app\"]` and `stop = [\"model-server\"]`, or nothing",
            ));
        };
        match &self.what {
            What::Watch(args) => args.run(cx, prepared, config).await,
            What::Simulate(args) => {
                let session = cx.open(prepared, crate::context::Opening::Existing).await?;
                args.run(cx, &Spot::new(session, config)).await
            }
        }
    }
}

/// What a notice is answered with.
struct Spot {
    session: Session,
    config: SpotConfig,
    channels: Vec<Arc<dyn Channel>>,
}

impl Spot {
    fn new(session: Session, config: SpotConfig) -> Self {
        let secrets: Arc<dyn backup_core::SecretResolver> = Arc::new(crate::secrets::Secrets);
        let channels = notify::channels(&session.plan().notify, &secrets);
        Self { session, config, channels }
    }

    fn request(&self, left: Duration, fate: String, rehearsal: bool) -> Result<FlushRequest, CliError> {
        let plan = self.session.plan();
        let mut excluded = plan.excluded();
        excluded.push(self.session.engine.state().root().to_owned());
        let surroundings = Surroundings {
            channels: self.channels.clone(),
            excluded,
            docker: plan.compose.as_ref().and_then(|c| c.docker.clone()),
            fate,
        };
        Ok(FlushRequest {
            interval: Interval::new(SPOT).map_err(backup_core::ConfigError::from)?,
            steps: steps(&self.config, &surroundings),
            deadline: Instant::now() + left,
            rehearsal,
        })
    }

    /// The steps that need the store, and those that tell people of them.
    fn over_the_store(&self, request: FlushRequest) -> FlushRequest {
        let of_store =
            |a: &SpotAction| matches!(a, SpotAction::BackUp(_) | SpotAction::Copy(_) | SpotAction::Notice);
        let wanted = |name: &str| self.config.steps.iter().any(|s| s.name == name && of_store(&s.action));
        let mut request = request;
        request.steps.retain(|step| wanted(&step.name));
        request
    }

    async fn flush(&self, cx: &Context, request: &FlushRequest) -> Result<FlushReport, CliError> {
        let report = self.session.engine.flush(request).await?;
        report.ended.iter().for_each(|line| cx.ui.note(line));
        Ok(report)
    }
}
