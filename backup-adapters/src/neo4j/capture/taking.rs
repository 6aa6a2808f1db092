//! The interruption: what is done to the server, and that it comes back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::runtime::{self, Interruption, InterruptionKind};
use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext};
use tokio::time::Instant;

use super::super::Neo4j;
use super::super::mode::CaptureMode;
use super::super::replica::{self, How};
use super::super::server::{self, SYSTEM};
use super::super::tools;
use super::clones::{copies, prepare};
use super::taken::{Taken, What, list_dumps};
use super::{Found, lacks_room, phase, remove_all};
use crate::on_disk::blocking;

/// A capture at work.
pub(super) struct Taking {
    pub(super) neo4j: Neo4j,
    pub(super) cx: OpContext,
    pub(super) mode: CaptureMode,
    pub(super) limit: Duration,
    /// Whether the file system can clone files, if that was tried.
    pub(super) clones: bool,
    /// What its data occupies.
    pub(super) bytes: u64,
    pub(super) found: Found,
}

/// How long a server may take to end.
#[derive(Debug, PartialEq, Eq)]
struct Patience {
    /// Before it is killed.
    grace: Duration,
    /// For an exercise to count as one that the time sufficed for.
    in_time: Option<Duration>,
}

impl Patience {
    /// On a host that goes away, half of what is left: the dump needs its part, too.
    fn of(cx: &OpContext, stop_timeout: Duration) -> Self {
        let half = cx.remaining().map(|left| left / 2);
        match half {
            Some(half) if cx.last_chance => Self { grace: stop_timeout.min(half), in_time: None },
            Some(half) if cx.rehearsal => Self { grace: stop_timeout, in_time: Some(stop_timeout.min(half)) },
            _ => Self { grace: stop_timeout, in_time: None },
        }
    }
}

impl Taking {
    pub(super) async fn run(self) -> Result<Taken, AdapterError> {
        match self.mode {
            CaptureMode::StopDump => self.dump().await,
            _ => self.copy().await,
        }
    }

    /// Stops the server; one that had to be killed is started again, to recover, and stopped once more.
    async fn stop(&self, exit_codes: &mut BTreeMap<String, i64>) -> Result<Interruption, AdapterError> {
        let cx = &self.cx;
        let Patience { grace, in_time } = Patience::of(cx, self.neo4j.stop_timeout);
        for attempt in 1..=2 {
            phase(cx, "stopping the server");
            let mut limit = cx.remaining().unwrap_or(self.limit).min(self.limit);
            if cx.rehearsal {
                // Nobody kills a server for an exercise: what it needs to end in order, it gets.
                limit = limit.max(grace + Duration::from_secs(1));
            }
            let began = Instant::now();
            let deadline = began + limit;
            let kind = InterruptionKind::Stop { grace };
            let runtime = std::sync::Arc::new(self.neo4j.server.docker.clone());
            let mut stopped = Interruption::begin(runtime, cx.interruption(), kind, deadline).await?;
            let exit = stopped.exit_status();
            if let Some(code) = exit.and_then(|e| e.code) {
                exit_codes.insert("neo4j".to_owned(), code);
            }
            if let Some(in_time) = in_time.filter(|in_time| began.elapsed() > *in_time) {
                stopped.end().await?;
                let what = format!(
                    "{} took {} s to end: on a notice it would be killed after {} s",
                    self.neo4j.server,
                    began.elapsed().as_secs(),
                    in_time.as_secs()
                );
                return Err(AdapterError::new(AdapterErrorKind::Timeout, what));
            }
            if !exit.is_some_and(|e| e.killed) {
                return Ok(stopped);
            }
            stopped.end().await?;
            if attempt == 1 {
                cx.warn(format!(
                    "{} did not end within {} s and was killed: it is started to recover, and stopped once more",
                    self.neo4j.server,
                    grace.as_secs()
                ));
                drop(self.neo4j.server.wait(cx).await?);
            }
        }
        Err(AdapterError::new(
            AdapterErrorKind::Conflict,
            format!(
                "{} does not end within {} s (`stop_timeout`): it was killed twice, and runs again",
                self.neo4j.server,
                grace.as_secs()
            ),
        ))
    }

    /// Freezes the server. Control groups of version 1 cannot always at the first attempt, while processes come and go.
    async fn pause(&self, deadline: Instant) -> Result<Interruption, AdapterError> {
        let mut attempt = 1;
        loop {
            let runtime = std::sync::Arc::new(self.neo4j.server.docker.clone());
            let cx = self.cx.interruption();
            match Interruption::begin(runtime, cx, InterruptionKind::Pause, deadline).await {
                Err(e) if e.kind() == AdapterErrorKind::Other && attempt < 3 => attempt += 1,
                done => return done,
            }
        }
    }

    async fn dump(self) -> Result<Taken, AdapterError> {
        let (server, cx) = (&self.neo4j.server, &self.cx);
        let files = tools::open_folder(cx.spool.join("dumps")).await?;
        // Ready before the server goes down.
        let helper = tools::beside(server, cx, &self.found.places, self.found.major(), &files).await?;
        let names: Vec<String> = match &self.found.facts {
            Some(facts) => facts.databases.iter().map(|d| d.name.clone()).collect(),
            // Newer programs know by themselves.
            None if self.found.major() >= 5 => Vec::new(),
            None => {
                let dir = self.found.places.data.join("databases");
                blocking(move || replica::folders(&dir)).await?
            }
        };
        let mut exit_codes = BTreeMap::new();
        let mut stopped = match self.stop(&mut exit_codes).await {
            Ok(stopped) => stopped,
            Err(e) => {
                helper.close().await?;
                return Err(e);
            }
        };
        let from = cx.clock.now();
        let began = Instant::now();
        phase(cx, "dumping its databases");
        let dumped = async {
            for arguments in tools::dump(self.found.major(), &names) {
                let code = tools::admin(&helper, cx, &arguments).await?;
                exit_codes.insert("neo4j-admin".to_owned(), code);
            }
            Ok::<_, AdapterError>(())
        };
        let dumped = dumped.await;
        let to = cx.clock.now();
        let closed = helper.close().await;
        let (interruption, after, warnings) = self.back(&mut stopped, began).await?;
        dumped.map_err(|e| self.explain(e))?;
        closed?;
        let found = blocking(move || list_dumps(&files)).await?;
        for name in names.iter().chain([&SYSTEM.to_owned()]) {
            if !found.iter().any(|(n, _, _)| n == name) {
                let what = format!("`neo4j-admin` made no dump of database `{name}`");
                return Err(AdapterError::corrupt(what));
            }
        }
        Ok(Taken {
            mode: self.mode,
            found: self.found,
            what: What::Dumps(found),
            remove: Vec::new(),
            from,
            to,
            interruption,
            exit_codes,
            after,
            warnings,
        })
    }

    /// `neo4j-admin` does not say why it cannot dump: the disk is full, or a crash left what it has to.
    fn explain(&self, e: AdapterError) -> AdapterError {
        if e.kind() != AdapterErrorKind::Other {
            return e;
        }
        if let Err(full) = lacks_room(&self.cx, self.mode, self.bytes) {
            return AdapterError::new(full.kind(), full.to_string()).with_source(e);
        }
        if self.found.facts.is_some() {
            return e;
        }
        let what = format!(
            "{} does not run, and what it left cannot be dumped: if it did not end cleanly, start it once, to recover",
            self.neo4j.server
        );
        AdapterError::new(AdapterErrorKind::Conflict, what).with_source(e)
    }

    /// Copies files: cloned within their mounts, or to the spool.
    async fn copy(self) -> Result<Taken, AdapterError> {
        let how = match self.mode {
            CaptureMode::StopCopy | CaptureMode::PauseCopy => How::Copy,
            CaptureMode::Online if !self.clones => How::Copy,
            _ => How::Reflink,
        };
        let bases = prepare(&self.cx, &self.found.places, how).await?;
        let taken = match self.mode {
            CaptureMode::Online => self.online(bases.clone()).await,
            _ => self.copy_into(how, bases.clone()).await,
        };
        if taken.is_err() {
            // The first error tells more; what is left is found by the run's id.
            let _second = remove_all(bases).await;
        }
        taken
    }

    async fn copy_into(self, how: How, bases: Vec<PathBuf>) -> Result<Taken, AdapterError> {
        let (cx, places) = (&self.cx, self.found.places.clone());
        let mut exit_codes = BTreeMap::new();
        let from = cx.clock.now();
        let mut began = Instant::now();
        let mut interruption = if self.mode == CaptureMode::StopCopy {
            let stopped = self.stop(&mut exit_codes).await?;
            began = Instant::now();
            stopped
        } else {
            phase(cx, "pausing the server");
            let deadline = began + cx.remaining().unwrap_or(self.limit).min(self.limit);
            self.pause(deadline).await?
        };
        phase(cx, if how == How::Reflink { "cloning its files" } else { "copying its files" });
        let ends = Instant::now() + interruption.remaining();
        let (alive_cx, (data, logs)) = (cx.clone(), copies(&bases));
        let copied = blocking(move || {
            let alive = move || {
                alive_cx.check_alive()?;
                if Instant::now() < ends {
                    return Ok(());
                }
                let what = "the copy takes longer than the service may be interrupted (`max_interruption`)";
                Err(AdapterError::new(AdapterErrorKind::Timeout, what))
            };
            let except = [places.transactions.clone(), places.data.join("dumps")];
            replica::copy(&places.data, &data, &except, how, &alive)?;
            replica::copy(&places.transactions, &logs, &[], how, &alive)
        })
        .await;
        let to = cx.clock.now();
        let (lasted, after, warnings) = self.back(&mut interruption, began).await?;
        copied?;
        Ok(Taken {
            mode: self.mode,
            found: self.found,
            what: What::files(&bases),
            remove: bases,
            from,
            to,
            interruption: lasted,
            exit_codes,
            after,
            warnings,
        })
    }

    /// Ends the interruption, and waits until the server answers. How long it did not, and what it counts now.
    async fn back(
        &self,
        interruption: &mut Interruption,
        began: Instant,
    ) -> Result<(Duration, Option<Evidence>, Vec<String>), AdapterError> {
        let (server, cx) = (&self.neo4j.server, &self.cx);
        let mut lasted = interruption.end().await?;
        let Some(facts) = &self.found.facts else { return Ok((lasted, None, Vec::new())) };
        // Also if the capture was cancelled or has used its time up: what it did to the service is seen through.
        let mut calm = cx.clone();
        calm.cancel = tokio_util::sync::CancellationToken::new();
        calm.deadline = Some(Instant::now() + runtime::Patience::LIMIT);
        let stopped = self.mode == CaptureMode::StopDump || self.mode == CaptureMode::StopCopy;
        if stopped {
            phase(cx, "waiting for the server to answer");
        }
        let counted = async {
            let mut bolt = server.wait(&calm).await?;
            // A stop lasts until the server answers again, not until its container runs.
            let answered = began.elapsed();
            let after = server::evidence(&calm, &mut bolt, &facts.databases).await?;
            bolt.close(&calm).await;
            Ok::<_, AdapterError>((answered, after))
        };
        match counted.await {
            Ok((answered, after)) => {
                if stopped {
                    lasted = lasted.max(answered);
                }
                Ok((lasted, Some(after), Vec::new()))
            }
            Err(e) => {
                let what = format!("after the capture, {server} could not be asked: {e}");
                cx.warn(what.clone());
                Ok((lasted, None, vec![what]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backup_core::{RunId, SystemClock, Timestamp};

    use super::*;

    #[test]
    fn an_exercise_has_the_time_that_a_notice_has_and_kills_nothing() {
        let at = Timestamp::new("2026-03-09T04:38:20Z".parse().unwrap());
        let run = RunId::generate(at.time());
        let mut cx = OpContext::new("graph".parse().unwrap(), run, at, "/nowhere", Arc::new(SystemClock));
        cx.deadline = Some(Instant::now() + Duration::from_secs(60));
        let usual = Duration::from_secs(180);
        let about = |time: Duration| time.as_secs_f64().round() as u64;
        let any_day = Patience { grace: usual, in_time: None };
        assert_eq!(Patience::of(&cx, usual), any_day);
        cx.last_chance = true;
        let notice = Patience::of(&cx, usual);
        assert_eq!((about(notice.grace), notice.in_time), (30, None));
        (cx.last_chance, cx.rehearsal) = (false, true);
        let exercise = Patience::of(&cx, usual);
        assert_eq!((exercise.grace, exercise.in_time.map(about)), (usual, Some(30)));
        assert_eq!(Patience::of(&cx, Duration::from_secs(9)).in_time, Some(Duration::from_secs(9)));
    }
}
