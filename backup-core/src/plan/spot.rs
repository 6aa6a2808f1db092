//! What is done when a host is taken away: the steps of `[spot]`, or the usual ones over what is configured.

use std::collections::BTreeMap;
use std::path::Path;

use super::{PlannedInterval, PlannedService, unknown};
use crate::config::{NotifyConfig, NtfyConfig, SpotAction, SpotConfig, SpotStep};
use crate::error::ConfigError;
use crate::id::{Interval, ServiceName};

/// The series of what was saved on a notice.
pub const SPOT: &str = "spot";

/// The kinds of service that the usual order knows, by value for what they cost.
const FIRST: [&str; 2] = ["redis", "env"];
const LATER: &str = "neo4j";
const VOLUMES: &str = "ebs";

pub(super) fn plan(
    config: SpotConfig,
    interval: &PlannedInterval,
    written: bool,
    services: &BTreeMap<ServiceName, PlannedService>,
    base_dir: &Path,
) -> Result<SpotConfig, ConfigError> {
    let mut config = config;
    config.repositories = config.repositories.into_iter().map(|r| base_dir.join(r)).collect();
    for (n, step) in config.steps.iter().enumerate() {
        let (SpotAction::BackUp(named) | SpotAction::Copy(named)) = &step.action else { continue };
        if let Some(missing) = named.iter().find(|s| !interval.services.contains(s)) {
            let place = format!("spot.steps[{n}].services");
            if services.contains_key(missing) {
                return Err(ConfigError::new(format!(
                    "`{missing}` is not part of the interval `{SPOT}`, or disabled"
                ))
                .at(place)
                .hint(format!("add it to `services` of [intervals.{SPOT}]")));
            }
            return Err(unknown("service", missing.as_str(), services.keys()).at(place));
        }
    }
    if config.steps.is_empty() {
        config.steps = usual(interval, written, services);
    }
    Ok(config)
}

/// Alert, what is small and changes by the second, the code, snapshots of the volumes at once; then what takes longer, copies,
/// and the end of what only holds memory; the snapshots again, with the backups in them; the notice.
///
/// Without `[intervals.spot]` only the kinds that are known to be worth it or done in time; with it, all that it names.
fn usual(
    interval: &PlannedInterval,
    written: bool,
    services: &BTreeMap<ServiceName, PlannedService>,
) -> Vec<SpotStep> {
    let of = |wanted: &dyn Fn(&PlannedService) -> bool| -> Vec<ServiceName> {
        let known = interval.services.iter().filter_map(|name| services.get(name));
        known.filter(|s| wanted(s)).map(|s| s.name.clone()).collect()
    };
    let kind = |kind: &'static str| of(&|s| s.kind == kind);
    let others = match written {
        true => of(&|s| !FIRST.contains(&s.kind.as_str()) && s.kind != LATER && s.kind != VOLUMES),
        false => Vec::new(),
    };
    let mut steps = vec![SpotStep::new("alert", SpotAction::Alert, 10, &[])];
    let mut back_up = |name: &str, services: Vec<ServiceName>, seconds: u64, after: &[&str]| {
        let after: Vec<&str> = after.iter().copied().filter(|a| steps.iter().any(|s| s.name == *a)).collect();
        if !services.is_empty() {
            steps.push(SpotStep::new(name, SpotAction::BackUp(services), seconds, &after));
        }
    };
    back_up("snapshots", kind(VOLUMES), 20, &[]);
    for first in FIRST {
        back_up(first, kind(first), 45, &[]);
    }
    back_up(LATER, kind(LATER), 60, &FIRST);
    back_up("others", others, 60, &FIRST);
    steps.push(SpotStep::new("git", SpotAction::Git, 45, &[]));
    let first: Vec<&str> = FIRST.into_iter().filter(|f| steps.iter().any(|s| s.name == *f)).collect();
    let later: Vec<&str> =
        [LATER, "others"].into_iter().filter(|f| steps.iter().any(|s| s.name == *f)).collect();
    let named = |names: &[&str]| -> Vec<ServiceName> {
        let found = steps.iter().filter(|s| names.contains(&s.name.as_str()));
        let services = found.filter_map(|s| match &s.action {
            SpotAction::BackUp(services) => Some(services.clone()),
            _ => None,
        });
        services.flatten().collect()
    };
    let copy = |name: &str, after: &[&str]| SpotStep::new(name, SpotAction::Copy(named(after)), 110, after);
    let mut rest = Vec::new();
    if !first.is_empty() {
        rest.push(copy("copy", &first));
    }
    if !later.is_empty() {
        rest.push(copy("copy-later", &later));
    }
    rest.push(SpotStep::new("stop", SpotAction::Stop, 15, &first));
    let volumes = kind(VOLUMES);
    if !volumes.is_empty() {
        let saved: Vec<&str> = first.iter().chain(&later).copied().chain(["git", "snapshots"]).collect();
        rest.push(SpotStep::new("snapshots-again", SpotAction::BackUp(volumes), 20, &saved));
    }
    steps.extend(rest);
    let all: Vec<String> = steps.iter().map(|s| s.name.clone()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    steps.push(SpotStep::new("notice", SpotAction::Notice, 10, &all));
    steps
}

pub(super) fn notify(config: NotifyConfig, base_dir: &Path) -> NotifyConfig {
    let mut config = config;
    config.ntfy = config.ntfy.map(|n| NtfyConfig {
        topic: n.topic.relative_to(base_dir),
        token: n.token.map(|t| t.relative_to(base_dir)),
        url: n.url,
    });
    config
}

/// The series itself, if nobody wrote one: of everything, and it deletes nothing.
pub(super) fn name() -> Result<Interval, ConfigError> {
    Ok(Interval::new(SPOT)?)
}
