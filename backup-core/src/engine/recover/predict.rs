//! How long a recovery will take, from what earlier restores took.

use std::collections::BTreeMap;

use super::{Prediction, RecoveryAction, ScratchRestore, ServiceRecovery, StackSteps};
use crate::engine::{Inner, RunReport};
use crate::error::chain;
use crate::event::Outcome;
use crate::id::{ServiceName, Timestamp};

/// How many reports are read, the newest first.
const REPORTS: usize = 200;

/// The kinds of steps that show how long a restore takes: of the live service, and into scratch.
const LIVE: &str = "restore";
const SCRATCH: &str = "verify-restore";

/// A scratch server has to be started, too.
const SCRATCH_WORDS: &str = "the restore into scratch";

/// What earlier runs took.
#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct History {
    /// Of each service, the newest first.
    restores: BTreeMap<ServiceName, Vec<Sample>>,
    /// How long the newest start of what each runs in took, in ms.
    starts: BTreeMap<ServiceName, u64>,
    /// How long it took until all applications were there that the newest recovery started, in ms.
    applications: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Timestamp,
    live: bool,
    bytes: u64,
    ms: u64,
}

impl History {
    fn add(&mut self, report: &RunReport) {
        for step in &report.steps {
            let live = match step.kind.as_str() {
                LIVE => true,
                SCRATCH => false,
                _ => continue,
            };
            if step.outcome != Outcome::Ok {
                continue;
            }
            let at = Timestamp::new(report.finished_at);
            let sample = Sample { at, live, bytes: step.plain_bytes, ms: step.restore_ms.unwrap_or(step.ms) };
            self.restores.entry(step.service.clone()).or_default().push(sample);
        }
        let started = || report.parts.iter().filter(|p| p.kind == "start" && p.outcome == Outcome::Ok);
        for part in started() {
            if let Some(service) = &part.service {
                self.starts.entry(service.clone()).or_insert(part.ms);
            }
        }
        // They are started together.
        let applications = started().filter(|p| p.service.is_none()).map(|p| p.ms).max();
        self.applications = self.applications.or(applications);
    }

    /// How long applications will take to start, as far as that was ever measured. A stack that is not known yet is taken for
    /// the one of then.
    pub(super) fn applications(&self, stack: Option<&StackSteps>, restores: bool) -> u64 {
        let starts = stack.is_some_and(|s| !s.starts.is_empty() || (restores && s.unknown.is_some()));
        if starts { self.applications.unwrap_or(0) } else { 0 }
    }

    /// The newest restores into scratch, the newest first.
    pub(in crate::engine) fn scratch(&self, service: &ServiceName, most: usize) -> Vec<ScratchRestore> {
        let samples = self.restores.get(service).into_iter().flatten().filter(|s| !s.live);
        let restore = |s: &Sample| ScratchRestore { at: s.at, ms: s.ms, plain_bytes: s.bytes };
        samples.map(restore).take(most).collect()
    }

    /// For a backup of so many bytes. A restore of the live service tells more than one into scratch, a newer one more
    /// than an older one. More bytes take longer in proportion; fewer do not take less: what a server needs to start
    /// does not shrink.
    pub(super) fn predict(&self, service: &ServiceName, bytes: u64) -> Option<Prediction> {
        let samples = self.restores.get(service)?;
        let sample = samples.iter().find(|s| s.live).or(samples.first())?;
        let grown = if sample.bytes == 0 || bytes <= sample.bytes {
            u128::from(sample.ms)
        } else {
            u128::from(sample.ms) * u128::from(bytes) / u128::from(sample.bytes)
        };
        let what = if sample.live { "the restore" } else { SCRATCH_WORDS };
        Some(Prediction {
            ms: u64::try_from(grown).unwrap_or(u64::MAX),
            from: format!("{what} of {}", sample.at),
        })
    }

    /// The same for a service of which the container has to be made and started first.
    pub(super) fn with_start(
        &self,
        restore: Option<Prediction>,
        service: &ServiceName,
    ) -> Option<Prediction> {
        let Prediction { ms, from } = restore?;
        if from.starts_with(SCRATCH_WORDS) {
            return Some(Prediction { ms, from });
        }
        Some(match self.starts.get(service) {
            Some(start) => {
                let from = format!("{from} and its last start");
                Prediction { ms: ms.saturating_add(*start), from }
            }
            None => Prediction { ms, from: format!("{from}, without its start, which was never measured,") },
        })
    }
}

impl Inner {
    /// What the reports tell. One that cannot be read tells nothing.
    pub(in crate::engine) async fn history(&self) -> History {
        let mut history = History::default();
        let runs = match self.catalog.reports().await {
            Ok(runs) => runs,
            Err(e) => {
                self.warn(None, format!("no times of earlier restores: {}", chain(&e)));
                return history;
            }
        };
        for run in runs.into_iter().take(REPORTS) {
            let Ok(bytes) = self.catalog.read_report(&run).await else { continue };
            if let Ok(report) = serde_json::from_slice::<RunReport>(&bytes) {
                history.add(&report);
            }
        }
        history
    }
}

/// In an order in which none comes before one that it waits for, and else those first after which most is still to be done:
/// what takes long shall not begin last. What was never measured counts as nothing.
pub(super) fn longest_first(mut services: Vec<ServiceRecovery>) -> Vec<ServiceRecovery> {
    let ms = |s: &ServiceRecovery| match &s.action {
        RecoveryAction::Restore(restore) => restore.predicted.as_ref().map_or(0, |p| p.ms),
        _ => 0,
    };
    // They come in an order in which none is before one that it waits for: from the last, each dependent is known.
    let mut left: BTreeMap<ServiceName, u64> = BTreeMap::new();
    for service in services.iter().rev() {
        let dependents = services.iter().filter(|s| s.after.contains(&service.service));
        let longest = dependents.filter_map(|s| left.get(&s.service)).max().copied().unwrap_or(0);
        left.insert(service.service.clone(), ms(service).saturating_add(longest));
    }
    let mut out: Vec<ServiceRecovery> = Vec::new();
    while !services.is_empty() {
        let waits = |s: &ServiceRecovery| s.after.iter().any(|a| services.iter().any(|o| o.service == *a));
        let ready = services.iter().enumerate().filter(|(_, s)| !waits(s));
        // Of equals the first.
        let next = ready.min_by_key(|(_, s)| std::cmp::Reverse(left.get(&s.service).copied().unwrap_or(0)));
        let at = next.map_or(0, |(at, _)| at);
        out.push(services.remove(at));
    }
    out
}

/// How long all of it takes: along `after`, `parallel` at once, in the order of the plan. `None` if a time is not known.
pub(super) fn in_all(services: &[ServiceRecovery], parallel: usize) -> Option<u64> {
    let mut ends: BTreeMap<&ServiceName, u64> = BTreeMap::new();
    let mut lanes = vec![0_u64; parallel.max(1)];
    for service in services {
        let ms = match &service.action {
            RecoveryAction::Restore(restore) => restore.predicted.as_ref()?.ms,
            _ => 0,
        };
        let ready = service.after.iter().filter_map(|a| ends.get(a)).max().copied().unwrap_or(0);
        let end = if ms == 0 {
            ready
        } else {
            let lane = lanes.iter_mut().min()?;
            *lane = ready.max(*lane).saturating_add(ms);
            *lane
        };
        ends.insert(&service.service, end);
    }
    Some(ends.into_values().max().unwrap_or(0))
}

/// Which of what began and ended then were on the critical path: from the one that ended last, back along those that ended
/// last before each began.
pub(in crate::engine) fn critical_path(spans: &[(u64, u64)]) -> Vec<usize> {
    let mut path: Vec<usize> = Vec::new();
    let mut until = u64::MAX;
    loop {
        let before = spans.iter().enumerate().filter(|(at, (_, end))| *end <= until && !path.contains(at));
        let Some((at, (begin, _))) = before.max_by_key(|(_, (_, end))| *end) else { return path };
        path.push(at);
        until = *begin;
    }
}

#[cfg(test)]
mod tests {
    use super::super::PlannedRestore;
    use super::*;
    use crate::metadata::Consistency;

    fn name(name: &str) -> ServiceName {
        name.parse().unwrap()
    }

    fn service(of: &str, after: &[&str], ms: Option<u64>) -> ServiceRecovery {
        let restore = PlannedRestore {
            backup: format!("{of}/manual/20260101_000000").parse().unwrap(),
            state: "good".to_owned(),
            as_of: chrono::DateTime::UNIX_EPOCH,
            consistency: Consistency::Dump,
            verified: None,
            passed_over: Vec::new(),
            plain_bytes: 1,
            stored_bytes: 1,
            steps: Vec::new(),
            looks_again: false,
            starts: None,
            missing: Vec::new(),
            warnings: Vec::new(),
            replaces: Vec::new(),
            space: Vec::new(),
            predicted: ms.map(|ms| Prediction { ms, from: String::new() }),
        };
        ServiceRecovery {
            service: name(of),
            kind: "fake".to_owned(),
            after: after.iter().map(|a| name(a)).collect(),
            target_ms: None,
            max_age_ms: None,
            action: RecoveryAction::Restore(Box::new(restore)),
        }
    }

    #[test]
    fn the_whole_takes_as_long_as_its_longest_chain_on_two_lanes() {
        let all = [service("a", &[], Some(10)), service("b", &["a"], Some(20)), service("c", &[], Some(5))];
        assert_eq!(in_all(&all, 2), Some(30));
        assert_eq!(in_all(&all, 1), Some(35));
        let three = ["a", "b", "c"].map(|n| service(n, &[], Some(10)));
        assert_eq!(in_all(&three, 2), Some(20));
        assert_eq!(in_all(&[service("a", &[], None)], 2), None);
        assert_eq!(in_all(&[], 2), Some(0));
    }

    #[test]
    fn what_takes_long_begins_first_and_what_it_waits_for_before() {
        let names = |services: Vec<ServiceRecovery>| -> String {
            longest_first(services).iter().map(|s| s.service.as_str().to_owned()).collect()
        };
        let three = [("a", 10), ("b", 20), ("c", 30), ("d", 40)].map(|(n, ms)| service(n, &[], Some(ms)));
        assert_eq!(in_all(&three, 3), Some(50));
        assert_eq!(in_all(&longest_first(three.to_vec()), 3), Some(40));
        assert_eq!(names(three.to_vec()), "dcba");
        let chain = [service("e", &[], Some(1)), service("f", &[], Some(30)), service("g", &["e"], Some(40))];
        assert_eq!(names(chain.to_vec()), "egf");
        let unknown = ["a", "b"].map(|n| service(n, &[], None));
        assert_eq!(names(unknown.to_vec()), "ab");
    }

    #[test]
    fn the_critical_path_leads_back_from_the_last() {
        assert_eq!(critical_path(&[(0, 10), (0, 4), (4, 30), (10, 12)]), [2, 1]);
        assert_eq!(critical_path(&[(5, 5)]), [0]);
        assert!(critical_path(&[]).is_empty());
    }

    #[test]
    fn more_bytes_take_longer_and_a_live_restore_tells_more_than_a_newer_one_into_scratch() {
        let mut history = History::default();
        assert_eq!(history.predict(&name("a"), 1), None);
        let at = "20260101_000000".parse().unwrap();
        let live = Sample { at, live: true, bytes: 100, ms: 1000 };
        let scratch = Sample { at, live: false, bytes: 100, ms: 5000 };
        history.restores.insert(name("a"), vec![scratch, live]);
        let ms = |bytes| history.predict(&name("a"), bytes).unwrap().ms;
        assert_eq!((ms(50), ms(100), ms(300)), (1000, 1000, 3000));
        assert!(history.predict(&name("a"), 1).unwrap().from.contains("20260101_000000"));
    }

    #[test]
    fn applications_take_what_they_took_together_the_last_time() {
        let (known, nothing) =
            (StackSteps { starts: vec!["web".to_owned()], ..StackSteps::default() }, StackSteps::default());
        let unknown = StackSteps { unknown: Some("no .env".to_owned()), ..StackSteps::default() };
        let mut history = History::default();
        assert_eq!(history.applications(Some(&known), true), 0, "never measured");
        let report = |parts: &[(&str, Option<&str>, u64)]| -> RunReport {
            let part = |(part, service, ms): &(&str, Option<&str>, u64)| serde_json::json!({ "part": part, "service": service, "kind": "start", "outcome": "ok", "ms": ms, "error": null });
            let parts: Vec<_> = parts.iter().map(part).collect();
            let at = "2026-01-01T00:00:00Z";
            serde_json::from_value(serde_json::json!({
                "run_id": "20260101_000000-00000000", "verb": "recover", "host": "h", "tool": "t", "started_at": at, "finished_at": at,
                "steps": [], "parts": parts,
            }))
            .unwrap()
        };
        history.add(&report(&[("db", Some("a"), 9000)]));
        history.add(&report(&[("web", None, 700), ("shop", None, 900), ("db", Some("a"), 9000)]));
        history.add(&report(&[("web", None, 5000)]));
        assert_eq!(history.applications(Some(&known), false), 900);
        assert_eq!(history.applications(Some(&unknown), true), 900, "as many as then");
        for (stack, restores) in [(Some(&unknown), false), (Some(&nothing), true), (None, true)] {
            assert_eq!(history.applications(stack, restores), 0);
        }
    }
}
