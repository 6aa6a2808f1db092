//! [`Patience`]: how long to wait for a service that starts.

use std::time::Duration;

use tokio::time::Instant;

use super::{RunState, ServiceRuntime, Signs};
use crate::error::{AdapterError, AdapterErrorKind, chain};

/// How long one may show nothing new that runs: an index of many gigabytes is loaded in silence.
const SILENT: Duration = Duration::from_secs(600);

/// How long one that ended may need to be started again by whoever does that.
const ENDED: Duration = Duration::from_secs(5);

/// How often one may be started meanwhile: something goes wrong each time.
const STARTS: usize = 4;

/// How often one is looked at from outside.
const LOOK: Duration = Duration::from_secs(1);

/// Waits for a service that starts, from its last sign of life: what it writes, and what it answers. The way back of one that
/// has ended need not wait.
#[derive(Debug)]
pub struct Patience<'a> {
    runtime: &'a dyn ServiceRuntime,
    began: Instant,
    looked: Option<Instant>,
    answer: String,
    last_lines: Vec<String>,
    /// The last sign of life.
    sign: Instant,
    down: Option<Instant>,
    started: Vec<String>,
}

impl<'a> Patience<'a> {
    /// The longest wait: some write for ever without getting anywhere, and others replay the log of many gigabytes.
    pub const LIMIT: Duration = Duration::from_secs(3600);

    /// With a service that was just started.
    #[must_use]
    pub fn with(runtime: &'a dyn ServiceRuntime) -> Self {
        let now = Instant::now();
        let (answer, last_lines, started) = (String::new(), Vec::new(), Vec::new());
        Self { runtime, began: now, looked: None, answer, last_lines, sign: now, down: None, started }
    }

    /// Whether it is worth to ask it again, after it gave `answer`.
    ///
    /// # Errors
    /// `Unavailable`: it has ended, or has shown nothing new for ten minutes. With its last lines; the source is `answer`.
    pub async fn after(&mut self, answer: AdapterError) -> Result<(), AdapterError> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let said = chain(&answer);
        if said != self.answer {
            self.answer = said;
            self.sign = Instant::now();
        }
        // Whoever cannot be looked at may be alive.
        if let Ok(signs) = self.runtime.signs().await {
            self.see(signs);
        }
        let ended = self.down.is_some_and(|since| since.elapsed() > ENDED);
        let what = if self.started.len() > STARTS {
            format!("it was started {} times and ends again and again", self.started.len())
        } else if ended {
            "it has ended".to_owned()
        } else if self.sign.elapsed() > SILENT {
            format!("it shows nothing new for {} s", SILENT.as_secs())
        } else if self.began.elapsed() > Self::LIMIT {
            format!("it is not ready after {} s", Self::LIMIT.as_secs())
        } else {
            return Ok(());
        };
        let wrote = match self.last_lines.as_slice() {
            [] => String::new(),
            lines => format!("; it wrote last: {}", lines.join(" | ")),
        };
        Err(AdapterError::new(AdapterErrorKind::Unavailable, format!("{what}{wrote}")).with_source(answer))
    }

    fn see(&mut self, Signs { state, started, last_lines }: Signs) {
        if last_lines != self.last_lines {
            self.last_lines = last_lines;
            self.sign = Instant::now();
        }
        if let Some(started) = started.filter(|s| self.started.last() != Some(s)) {
            self.started.push(started);
        }
        self.down = match state {
            RunState::Stopped => self.down.or_else(|| Some(Instant::now())),
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::FakeRuntime;

    fn late() -> AdapterError {
        AdapterError::new(AdapterErrorKind::Unavailable, "not yet")
    }

    /// How long it is waited for, in seconds, and why no longer. `each` is done every second.
    async fn waited(runtime: &FakeRuntime, mut each: impl FnMut(u64)) -> (u64, String) {
        let mut patience = Patience::with(runtime);
        for second in 0.. {
            each(second);
            if let Err(e) = patience.after(late()).await {
                assert_eq!(e.kind(), AdapterErrorKind::Unavailable);
                return (second, chain(&e));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        unreachable!("it ends")
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_silent_is_given_up_and_its_last_lines_are_told() {
        let runtime = FakeRuntime::new(RunState::Running);
        runtime.set_signs("once", "loading the index");
        let (seconds, why) = waited(&runtime, |_| ()).await;
        assert!((600..610).contains(&seconds), "{seconds}");
        assert_eq!(why, "it shows nothing new for 600 s; it wrote last: loading the index: not yet");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_goes_on_writing_is_waited_for_up_to_an_hour() {
        let runtime = FakeRuntime::new(RunState::Running);
        let (seconds, why) = waited(&runtime, |n| runtime.set_signs("once", &format!("{n} %"))).await;
        assert!(
            (3600..3610).contains(&seconds) && why.contains("not ready after 3600 s"),
            "{seconds}: {why}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ended_is_not_waited_for() {
        let runtime = FakeRuntime::new(RunState::Running);
        runtime.set_signs("once", "corrupt header");
        let ends = |n| {
            if n == 20 {
                runtime.set_state(RunState::Stopped);
            }
        };
        let (seconds, why) = waited(&runtime, ends).await;
        assert!((25..30).contains(&seconds), "{seconds}");
        assert_eq!(why, "it has ended; it wrote last: corrupt header: not yet");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_started_again_and_again_is_not_waited_for() {
        let runtime = FakeRuntime::new(RunState::Running);
        let again = |n| runtime.set_signs(&format!("start {}", n / 10), &format!("line {n}"));
        let (seconds, why) = waited(&runtime, again).await;
        assert!((40..50).contains(&seconds), "{seconds}");
        assert!(why.starts_with("it was started 5 times and ends again and again"), "{why}");
    }
}
