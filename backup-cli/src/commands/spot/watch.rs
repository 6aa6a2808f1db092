//! `backup spot watch`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use backup_adapters::notify::{Message, Urgency, tell};
use backup_adapters::spot::{Imds, Notice, NoticeKind, on_instance_store};
use backup_core::config::SpotConfig;
use backup_core::engine::{CopyRequest, FlushRequest};
use backup_core::{Outcome, ServiceName, chain};
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Spot;
use super::reach::Stores;
use crate::commands::ebs;
use crate::context::{Context, Done, Prepared};
use crate::error::CliError;
use crate::format;

/// What AWS promises between the notice and the end, and the least that is tried for if the clock or the notice says that
/// it is over already.
const PROMISED: Duration = Duration::from_secs(120);
const LEAST: Duration = Duration::from_secs(20);

/// What a store must be reached for before the end, for anything to be saved to it.
const WORTH_IT: Duration = Duration::from_secs(5);

/// How long after its announced end a host must still be there to count as one that stayed.
const STAYED: TimeDelta = TimeDelta::minutes(5);

/// How long EC2 is asked at the start: the watch does not wait for it.
const ASKING: Duration = Duration::from_secs(10);

/// How often trouble is told again: that nobody could tell us of a notice, or that a store cannot be reached.
pub(super) const REMIND: Duration = Duration::from_secs(600);

/// Wait for the notice, and answer it
///
/// Asks the instance metadata service every five seconds. A rebalance recommendation (the instance is at a higher risk)
/// starts copies, and stops nothing. A signal that comes while a notice is answered does not cut that short.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End after the first notice was answered
    #[arg(long)]
    once: bool,
}

/// What was seen so far.
#[derive(Default)]
struct Seen {
    /// The notice that was answered, and the end that it announced.
    notice: Option<(Notice, DateTime<Utc>)>,
    rebalance: Option<DateTime<Utc>>,
    /// Since when the service has not answered, and when that was told.
    silent: Option<(DateTime<Utc>, tokio::time::Instant)>,
    copying: Option<(CancellationToken, JoinSet<()>)>,
}

impl Args {
    pub(super) async fn run(
        &self,
        cx: &Context,
        prepared: Prepared,
        config: SpotConfig,
    ) -> Result<Done, CliError> {
        let imds = Imds::new(config.metadata.as_deref())
            .map_err(|e| CliError::usage("[spot] cannot be watched").because(&e))?;
        let stop = cx.interrupt.graceful();
        let (mut stores, session) = Stores::open(cx, prepared).await?;
        let mut spot = Spot::new(session, config);
        warn_of_what_would_be_lost(cx, &spot).await;
        warn_of_volumes(cx, &spot).await;
        cx.ui.note(&format!("watching for a notice, every {}", format::duration(spot.config.poll)));
        let mut seen = Seen::default();
        let mut tick = tokio::time::interval(spot.config.poll);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                session = stores.changed() => {
                    spot = Spot::new(session?, spot.config);
                    continue;
                }
                _ = tick.tick() => {}
            }
            let signals = match imds.look().await {
                Ok(signals) => {
                    if let Some((since, _)) = seen.silent.take() {
                        cx.ui.note(&format!(
                            "the metadata service answers again; it did not since {}",
                            format::time(since)
                        ));
                    }
                    signals
                }
                // Not that there is no notice: only that nobody could tell.
                Err(e) => {
                    silent(cx, &mut seen, &chain(&e));
                    continue;
                }
            };
            // A host that was to stop, or whose notice was withdrawn, may still be there: it does its work again.
            if seen.notice.is_some_and(|(_, end)| cx.clock.now() > end + STAYED) {
                spot.session.engine.end_emergency();
            }
            if let Some(notice) = signals.notice {
                if seen.notice.is_some_and(|(answered, _)| answered == notice) {
                    continue;
                }
                seen.notice = Some((notice, notice.time.unwrap_or(cx.clock.now() + PROMISED)));
                if let Some((cancel, copying)) = seen.copying.take() {
                    cancel.cancel();
                    let _late = tokio::time::timeout(Duration::from_secs(2), copying.join_all()).await;
                }
                // A signal does not cut this short: the system that shuts down sends one.
                if let Some(over_the_store) = answer(cx, &spot, &mut stores, notice).await? {
                    spot = over_the_store;
                }
                if self.once || stop.is_cancelled() {
                    break;
                }
            } else if signals.rebalance.is_some() && seen.rebalance != signals.rebalance {
                seen.rebalance = signals.rebalance;
                seen.copying = Some(copy_now(cx, &spot));
            }
        }
        if let Some((cancel, copying)) = seen.copying {
            cancel.cancel();
            copying.join_all().await;
        }
        Ok(Done::ok())
    }
}

fn silent(cx: &Context, seen: &mut Seen, why: &str) {
    let now = tokio::time::Instant::now();
    let (since, told) = seen.silent.unwrap_or_else(|| (cx.clock.now(), now));
    if seen.silent.is_none() || now.duration_since(told) >= REMIND {
        cx.ui.warn(&format!("a notice would be missed: {why}"));
        seen.silent = Some((since, now));
    } else {
        seen.silent = Some((since, told));
    }
}

/// Answers a notice. What needs the store is done as soon as that can be reached, and the rest at once; returns what is
/// watched with from then on, if it was reached only now.
async fn answer(
    cx: &Context,
    spot: &Spot,
    stores: &mut Stores<'_>,
    notice: Notice,
) -> Result<Option<Spot>, CliError> {
    let left = time_left(notice, cx.clock.now());
    let fate = match notice.time {
        Some(time) => format!("{} at {}", notice.kind, time.format("%H:%M:%S UTC")),
        None => format!("{} at a time that is not told", notice.kind),
    };
    cx.ui.warn(&format!("this host goes away: {fate}"));
    if cx.ui.is_json() {
        let time = notice.time;
        cx.ui.json(
            &json!({ "event": "notice", "action": notice.kind, "time": time, "left_ms": left.as_millis() }),
        );
    }
    let request = spot.request(left, fate.clone(), false)?;
    if stores.is_open() {
        flush(cx, spot, &request).await;
        return Ok(None);
    }
    // The next attempt may be a minute away.
    stores.hurry();
    let once_reached = async {
        let latest = request.deadline.checked_sub(WORTH_IT).unwrap_or(request.deadline);
        let session = match tokio::time::timeout_at(latest, stores.opened()).await {
            Ok(opened) => opened?,
            Err(_) => return Ok(None),
        };
        let spot = Spot::new(session, spot.config.clone());
        let left = request.deadline.saturating_duration_since(tokio::time::Instant::now());
        let request = spot.over_the_store(spot.request(left, fate, false)?);
        flush(cx, &spot, &request).await;
        Ok(Some(spot))
    };
    let ((), reached) = tokio::join!(flush(cx, spot, &request), once_reached);
    reached
}

/// Does the steps, and tells what came of them.
async fn flush(cx: &Context, spot: &Spot, request: &FlushRequest) {
    let report = match spot.flush(cx, request).await {
        Ok(report) => report,
        // Another process answers it already.
        Err(e) => {
            cx.ui.error(&e);
            return;
        }
    };
    if cx.ui.is_json() {
        cx.ui.json(
            &json!({ "event": "flush", "steps": report.steps, "ended": report.ended, "ms": report.ms }),
        );
    }
    let failed = report.steps.iter().filter(|s| !matches!(s.outcome, Outcome::Ok | Outcome::Skipped)).count();
    let took = format::millis(report.ms);
    match failed {
        0 => cx.ui.note(&format!("everything was saved, in {took}")),
        n => cx.ui.warn(&format!("{n} of {} steps failed; it took {took}", report.steps.len())),
    }
}

/// How long the host has. Hibernation begins with the notice.
fn time_left(notice: Notice, now: DateTime<Utc>) -> Duration {
    let told = notice.time.map_or(PROMISED, |time| (time - now).to_std().unwrap_or_default());
    match notice.kind {
        NoticeKind::Hibernate => LEAST,
        _ => told.clamp(LEAST, PROMISED),
    }
}

/// Copies what is good to the other stores, beside the watch.
fn copy_now(cx: &Context, spot: &Spot) -> (CancellationToken, JoinSet<()>) {
    cx.ui.warn("this host is at a higher risk of being taken away: copying what is good; nothing is stopped");
    let message = Message {
        title: "This host may be taken away soon".to_owned(),
        text: "AWS recommends to rebalance. Backups are being copied; nothing is stopped.".to_owned(),
        urgency: Urgency::High,
    };
    let cancel = CancellationToken::new();
    let (engine, ui, channels) =
        (spot.session.engine.clone(), std::sync::Arc::clone(&cx.ui), spot.channels.clone());
    let copies = spot.session.plan().has_copies();
    let request = CopyRequest { cancel: cancel.clone(), ..CopyRequest::default() };
    let mut task = JoinSet::new();
    task.spawn(async move {
        if let Err(e) = tell(&channels, &message).await {
            ui.note(&chain(&e));
        }
        if copies && let Err(e) = engine.copy(&request).await {
            ui.warn(&chain(&e));
        }
    });
    (cancel, task)
}

/// What no notice can save.
async fn warn_of_what_would_be_lost(cx: &Context, spot: &Spot) {
    let plan = spot.session.plan();
    let places = plan.excluded().into_iter().chain([spot.session.engine.state().root().to_owned()]);
    // The configuration may name the state directory, too: each is told once.
    let places: BTreeSet<PathBuf> = places.chain(spot.config.repositories.iter().cloned()).collect();
    let places = places.into_iter().map(|place| (None, place)).chain(live_data(cx, spot).await);
    for (service, place) in places.filter(|(_, place)| on_instance_store(place)) {
        let whose = service.map_or_else(String::new, |name| format!(", the data of `{name}`,"));
        cx.ui.warn(&format!(
            "`{}`{whose} is on a disk of the instance's own, which is empty wherever it is started next",
            place.display()
        ));
    }
    for tree in spot.config.repositories.iter().filter(|tree| !tree.join(".git").exists()) {
        cx.ui.warn(&format!(
            "`{}` is no Git work tree: no emergency commit can be made of it",
            tree.display()
        ));
    }
    if plan.store.local_path().is_some() && !plan.has_copies() {
        cx.ui
            .warn("backups stay on this host only: `copies` in the configuration would bring them elsewhere");
    }
}

/// Where the services have their data. All are asked at once: the watch does not wait for an engine that hangs.
async fn live_data(cx: &Context, spot: &Spot) -> Vec<(Option<ServiceName>, PathBuf)> {
    let asked = spot.session.plan().services.values().map(async |service| {
        let (operation, _spool) = ebs::operation(cx, &service.name, "").ok()?;
        let paths = tokio::time::timeout(ASKING, service.adapter.live_paths(&operation)).await.ok()?;
        Some(paths.into_iter().map(|path| (Some(service.name.clone()), path)).collect::<Vec<_>>())
    });
    join_all(asked).await.into_iter().flatten().flatten().collect()
}

/// Volumes that end with the instance, as far as there is a service that may ask EC2.
async fn warn_of_volumes(cx: &Context, spot: &Spot) {
    // Without one, nothing is known of volumes.
    let Ok(services) = ebs::services(&spot.session.written, None) else { return };
    for (name, volumes) in services {
        let Ok((operation, _spool)) = ebs::operation(cx, &name, "") else { continue };
        match tokio::time::timeout(ASKING, volumes.ending_with_the_instance(&operation)).await {
            Ok(Ok(ending)) => ending.iter().for_each(|volume| {
                cx.ui.warn(&format!(
                    "{volume} is deleted when this instance ends (DeleteOnTermination): `aws ec2 modify-instance-attribute` changes that"
                ));
            }),
            Ok(Err(e)) => cx.ui.warn(&format!("{name}: {}", chain(&e))),
            Err(_) => cx.ui.warn(&format!("{name}: EC2 does not answer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_what_the_notice_says_within_reason() {
        let now: DateTime<Utc> = "2026-03-09T04:38:20Z".parse().unwrap();
        let left = |kind, seconds| {
            time_left(Notice { kind, time: Some(now + TimeDelta::seconds(seconds)) }, now).as_secs()
        };
        assert_eq!(left(NoticeKind::Terminate, 100), 100);
        // A clock that is wrong.
        assert_eq!(left(NoticeKind::Terminate, 3600), 120);
        assert_eq!(left(NoticeKind::Stop, -3600), 20);
        assert_eq!(left(NoticeKind::Hibernate, 100), 20);
        assert_eq!(time_left(Notice { kind: NoticeKind::Stop, time: None }, now), PROMISED);
    }
}
