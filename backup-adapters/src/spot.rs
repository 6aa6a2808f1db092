//! The two minutes between the notice that a spot instance ends and its end: who gives the notice ([`Imds`]), and what is
//! done then besides backing up ([`steps`]).

use std::path::PathBuf;
use std::sync::Arc;

use backup_core::config::{SpotAction, SpotConfig};
use backup_core::engine::{FlushAction, FlushStep, FlushWork};

use crate::notify::Channel;

mod git;
mod imds;
mod instance_store;
mod stop;
mod tell;

pub use imds::{Imds, Notice, NoticeKind, Signals};
pub use instance_store::on_instance_store;

/// What the steps need to know besides their configuration.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The channels to people.
    pub channels: Vec<Arc<dyn Channel>>,
    /// What no commit may contain: stores, the state directory. Absolute.
    pub excluded: Vec<PathBuf>,
    /// The Docker engine that the containers are on, if not the local one.
    pub docker: Option<String>,
    /// What happens to the host, for people, e.g. `terminate at 16:02:00 UTC`.
    pub fate: String,
}

/// The steps of `config`, which a plan has completed, ready for [`Engine::flush`](backup_core::Engine::flush).
#[must_use]
pub fn steps(config: &SpotConfig, surroundings: &Surroundings) -> Vec<FlushStep> {
    let mut saved = Vec::new();
    let mut steps = Vec::new();
    for step in &config.steps {
        let work = match &step.action {
            SpotAction::BackUp(services) => {
                saved.extend(services.iter().cloned());
                FlushWork::BackUp(services.clone())
            }
            SpotAction::Copy(services) if services.is_empty() => FlushWork::Copy(saved.clone()),
            SpotAction::Copy(services) => FlushWork::Copy(services.clone()),
            other => FlushWork::Other(action(other, config, surroundings)),
        };
        let (name, after, budget) = (step.name.clone(), step.after.clone(), step.budget);
        steps.push(FlushStep { name, after, budget, work });
    }
    steps
}

fn action(action: &SpotAction, config: &SpotConfig, around: &Surroundings) -> Arc<dyn FlushAction> {
    let channels = around.channels.clone();
    match action {
        SpotAction::Git => Arc::new(git::Git {
            repositories: config.repositories.clone(),
            remote: config.remote.clone(),
            excluded: around.excluded.clone(),
        }),
        SpotAction::Stop => Arc::new(stop::Stop {
            containers: config.stop.clone(),
            units: config.stop_units.clone(),
            docker: around.docker.clone(),
        }),
        SpotAction::Notice => Arc::new(tell::Outcome { channels }),
        _ => Arc::new(tell::Alert { channels, fate: around.fate.clone() }),
    }
}
