//! What a plan says of one service's restore.

use std::path::Path;

use super::plan::Found;
use super::predict::History;
use super::{PlannedRestore, Verified};
use crate::adapter::SpaceNeed;
use crate::catalog::Entry;
use crate::engine::preview::Chosen;
use crate::engine::{Inner, RestorePreview};
use crate::error::{BackupError, chain};
use crate::metadata::Metadata;
use crate::plan::PlannedService;
use crate::stack::{Part, PartState};

/// The last step for one that is looked at again.
const UNLESS_IT_HOLDS_DATA: &str =
    "leave it alone if it holds data then; else restore into it, with what is there kept aside";

/// What all restores of a plan need: all at once, as nothing of what they replace is deleted.
#[derive(Debug, Default)]
pub(super) struct Needs {
    sure: Vec<SpaceNeed>,
    /// Of services that nobody can ask yet where their data will be.
    likely: Vec<SpaceNeed>,
}

impl Needs {
    /// Counts what a restore needs to what others need already; refused is the one that it does not suffice for.
    pub(super) fn add(&mut self, inner: &Inner, preview: Box<RestorePreview>) -> Result<Found, BackupError> {
        let before = self.sure.len();
        self.sure.extend_from_slice(&preview.plan.space);
        match inner.check_space(&self.sure) {
            Ok(_) => Ok(Found::Lost(preview)),
            Err(e) => {
                self.sure.truncate(before);
                Err(BackupError::Refused(format!("{}, with the services before it", chain(&e))))
            }
        }
    }

    /// The same for one that has to be made first, in the folder where such data lies if nobody says otherwise: told, and not
    /// refused.
    pub(super) fn add_likely(&mut self, inner: &Inner, root: Option<&Path>, planned: &mut PlannedRestore) {
        let Some(path) = root.map(Path::to_owned) else { return };
        let need = SpaceNeed { path, bytes: planned.plain_bytes };
        let Ok(room) = inner.check_space(&[SpaceNeed { bytes: 0, ..need.clone() }]) else { return };
        planned.space = room.into_iter().map(|r| crate::engine::Room { bytes: need.bytes, ..r }).collect();
        self.likely.push(need);
        let all: Vec<SpaceNeed> = self.sure.iter().chain(&self.likely).cloned().collect();
        if let Err(e) = inner.check_space(&all) {
            planned.warnings.push(format!("{}, with the services before it", chain(&e)));
        }
    }
}

impl Inner {
    /// Of one that could be asked.
    pub(super) async fn restore_of(
        &self,
        service: &PlannedService,
        preview: &RestorePreview,
        history: &History,
    ) -> PlannedRestore {
        let RestorePreview { entry, metadata, passed_over, plan, room, .. } = preview;
        PlannedRestore {
            steps: plan.steps.clone(),
            replaces: plan.replaces.clone(),
            space: room.clone(),
            ..self.planned(service, (entry, metadata, passed_over), history).await
        }
    }

    /// Of one that is looked at again, after a `first` step.
    pub(super) async fn later(
        &self,
        service: &PlannedService,
        Chosen { entry, metadata, passed_over }: &Chosen,
        first: String,
        history: &History,
    ) -> PlannedRestore {
        PlannedRestore {
            looks_again: true,
            steps: vec![first, UNLESS_IT_HOLDS_DATA.to_owned()],
            ..self.planned(service, (entry, metadata, passed_over), history).await
        }
    }

    /// Of one that has to be made first.
    pub(super) async fn absent(
        &self,
        service: &PlannedService,
        chosen: &Chosen,
        part: Option<&Part>,
        history: &History,
    ) -> PlannedRestore {
        let container = service.adapter.container().unwrap_or_default();
        let name = part.map_or(container.as_str(), |p| p.name.as_str());
        let how = match part.map(|p| p.state) {
            Some(PartState::Missing) | None => "make and start",
            Some(_) => "start",
        };
        let first = format!("{how} `{name}`, and wait until it answers");
        let mut planned = self.later(service, chosen, first, history).await;
        planned.starts = Some(name.to_owned());
        if let Some(part) = part {
            planned.warnings.extend(images(part, &chosen.metadata));
        }
        planned.predicted = history.with_start(planned.predicted.take(), &service.name);
        planned
    }

    async fn planned(
        &self,
        service: &PlannedService,
        (entry, metadata, passed_over): (&Entry, &Metadata, &[String]),
        history: &History,
    ) -> PlannedRestore {
        let predicted = match history.predict(&service.name, metadata.plain_bytes()) {
            Some(predicted) => Some(self.at_todays_pace(predicted, entry, metadata).await),
            None => None,
        };
        let verified = entry.last_verification().filter(|(_, ok, _)| *ok);
        PlannedRestore {
            backup: entry.id.clone(),
            state: entry.state.word().to_owned(),
            as_of: metadata.consistent_from,
            consistency: metadata.consistency,
            verified: verified.map(|(level, _, at)| Verified { level, at }),
            passed_over: passed_over.to_vec(),
            plain_bytes: metadata.plain_bytes(),
            stored_bytes: metadata.size_bytes,
            steps: Vec::new(),
            looks_again: false,
            starts: None,
            missing: self.missing_secrets(service),
            warnings: Vec::new(),
            replaces: Vec::new(),
            space: Vec::new(),
            predicted,
        }
    }

    /// One line each: better told now than in the midst of it.
    fn missing_secrets(&self, service: &PlannedService) -> Vec<String> {
        let all = service.secrets.iter();
        all.filter_map(|(key, secret)| Some(format!("{key}: {}", secret.missing(&*self.secrets)?))).collect()
    }
}

/// What an operator should know of the image that a service is made of.
fn images(part: &Part, backup: &Metadata) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(image) = part.image.as_ref().filter(|_| !part.has_image) {
        out.push(format!("the image `{image}` is not on this host: it is pulled or built first"));
    }
    if let (Some(then), Some(now)) = (backup.image.as_ref().map(|i| i.name.as_str()), part.image.as_deref())
        && then != now
    {
        out.push(format!("the backup was made of `{then}`; `{}` has the image `{now}`", part.name));
    }
    out
}
