//! Smoke queries: what a user wants restored data to answer, beyond that it is what the backup says. A backup of an emptied
//! service is valid, and comes back as such: only its user can tell that it is not what is wanted.

use super::{Inner, Run, StepReport, deadline};
use crate::adapter::{ANSWER_TIME, Answer, RestoreTarget, passes};
use crate::context::OpContext;
use crate::error::{AdapterErrorKind, BackupError, Stage, chain};
use crate::metadata::Evidence;
use crate::plan::PlannedService;

/// How many characters of an answer are shown, and of a question or an error.
const SHOWN: usize = 80;
const TOLD: usize = 200;

impl Inner {
    /// Asks a service that was just restored.
    pub(super) async fn ask_live(
        &self,
        run: &Run,
        service: &PlannedService,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        if service.smoke.is_empty() {
            return Ok(());
        }
        self.phase(&service.name, "asking the smoke queries");
        let mut answers = Vec::with_capacity(service.smoke.len());
        for question in &service.smoke {
            let cx = self.context(run, service, self.now(), deadline(Some(ANSWER_TIME)))?;
            let asked = cx.within(service.adapter.ask(&cx, &RestoreTarget::Live, question)).await;
            answers.push(asked.and_then(|answer| answer));
            if cx.cancel.is_cancelled() {
                return Err(BackupError::Cancelled);
            }
        }
        match judge(&service.smoke, &answers, false) {
            Verdict { failure: None, notes } => {
                step.notes.extend(notes);
                Ok(())
            }
            Verdict { failure: Some(failure), .. } => Err(BackupError::Refused(format!(
                "it has its data back as the backup says, but {failure}: `backup undo {}` puts back what was there before",
                service.name
            ))),
        }
    }

    /// Counts what scratch holds, and asks it what is to be asked.
    pub(super) async fn probe_and_ask(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        target: &RestoreTarget,
    ) -> Result<(Evidence, Vec<Answer>), BackupError> {
        let (adapter, can) = (&service.adapter, service.adapter.capabilities());
        let probed = match (can.probe, service.smoke.is_empty()) {
            (false, true) => return Ok((Evidence::default(), Vec::new())),
            (true, true) => adapter.probe(cx, target).await.map(|found| (found, Vec::new())),
            (true, false) => adapter.probe_and_ask(cx, target, &service.smoke).await,
            (false, false) => {
                let mut answers = Vec::with_capacity(service.smoke.len());
                for question in &service.smoke {
                    let cx = cx.limited_to(ANSWER_TIME);
                    let asked = cx.within(adapter.ask(&cx, target, question)).await;
                    answers.push(asked.and_then(|answer| answer));
                }
                Ok((Evidence::default(), answers))
            }
        };
        probed.map_err(|e| super::capture::adapter_error(service, Stage::Probe, e))
    }
}

/// What the answers of scratch come to. The backup is none the worse for a wrong one: it holds what was there. So this is a
/// failure of the verification and no damage, and nothing is noted about the backup.
pub(super) fn judge_scratch(
    service: &PlannedService,
    answers: &[Answer],
    step: &mut StepReport,
) -> Result<(), BackupError> {
    if answers.iter().any(|a| a.as_ref().is_err_and(|e| e.kind() == AdapterErrorKind::Cancelled)) {
        return Err(BackupError::Cancelled);
    }
    let Verdict { notes, failure } = judge(&service.smoke, answers, true);
    step.notes.extend(notes);
    match failure {
        Some(failure) => Err(BackupError::Refused(format!("the backup restores as it says, but {failure}"))),
        None => Ok(()),
    }
}

/// What answers come to.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    notes: Vec<String>,
    /// The first that does not pass, and how many more.
    failure: Option<String>,
}

/// `elsewhere`: where there need be no server that could be asked.
fn judge(questions: &[String], answers: &[Answer], elsewhere: bool) -> Verdict {
    let (mut passed, mut failures, mut unasked) = (0, Vec::new(), Vec::new());
    for (n, question) in questions.iter().enumerate() {
        let what = match answers.get(n) {
            None => "was not asked".to_owned(),
            Some(Ok(value)) if passes(value.as_deref()) => {
                passed += 1;
                continue;
            }
            Some(Ok(None)) => "gives nothing".to_owned(),
            Some(Ok(Some(value))) => format!("gives `{}`", cut(value, SHOWN)),
            Some(Err(e)) if elsewhere && e.kind() == AdapterErrorKind::Unsupported => {
                unasked.push(cut(&chain(e), TOLD));
                continue;
            }
            Some(Err(e)) if e.kind() == AdapterErrorKind::Timeout => {
                format!("is not answered within {} s", ANSWER_TIME.as_secs())
            }
            Some(Err(e)) => format!("fails: {}", cut(&chain(e), TOLD)),
        };
        failures.push(format!("smoke query `{}` {what}", cut(question, TOLD)));
    }
    let mut notes = Vec::new();
    if passed > 0 && failures.is_empty() {
        notes.push(format!("{passed} smoke {} passed", if passed == 1 { "query" } else { "queries" }));
    }
    if let Some(why) = unasked.first() {
        notes.push(match unasked.len() == questions.len() {
            true => format!("smoke queries were not asked: {why}"),
            false => format!("{} of {} smoke queries were not asked: {why}", unasked.len(), questions.len()),
        });
    }
    let more = failures.len().saturating_sub(1);
    let failure = failures.into_iter().next().map(|first| match more {
        0 => first,
        _ => format!("{first} (and {more} more of {} do not pass)", questions.len()),
    });
    Verdict { notes, failure }
}

/// `text` on one line, and not more than `most` characters of it.
fn cut(text: &str, most: usize) -> String {
    let line = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty());
    let line = line.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::AdapterError;

    fn judged(answers: &[Answer], elsewhere: bool) -> Verdict {
        let questions: Vec<String> = (1..=answers.len()).map(|n| format!("q{n}")).collect();
        judge(&questions, answers, elsewhere)
    }

    fn some(value: &str) -> Answer {
        Ok(Some(value.to_owned()))
    }

    #[test]
    fn all_that_pass_are_one_note() {
        let all = [some("1"), some("true")];
        assert_eq!(judged(&all, false).notes, ["2 smoke queries passed"]);
        assert_eq!(
            judged(&all[..1], true),
            Verdict { notes: vec!["1 smoke query passed".into()], failure: None }
        );
        assert_eq!(judged(&[], true), Verdict { notes: Vec::new(), failure: None });
    }

    #[test]
    fn the_first_failure_is_told_and_the_others_are_counted() {
        let all = [some("1"), some("0"), Ok(None)];
        let failure = judged(&all, false).failure.unwrap();
        assert_eq!(failure, "smoke query `q2` gives `0` (and 1 more of 3 do not pass)");
        assert_eq!(judged(&all[2..], false).failure.unwrap(), "smoke query `q1` gives nothing");
    }

    #[test]
    fn where_no_server_is_nothing_passes_in_silence() {
        let unsupported = || Err(AdapterError::unsupported("no server runs"));
        let verdict = judged(&[unsupported(), unsupported()], true);
        assert_eq!(
            (verdict.notes, verdict.failure),
            (vec!["smoke queries were not asked: no server runs".into()], None)
        );
        let verdict = judged(&[some("1"), unsupported()], true);
        assert_eq!(
            verdict.notes,
            ["1 smoke query passed", "1 of 2 smoke queries were not asked: no server runs"]
        );
        // An adapter that answers less than it was asked.
        assert_eq!(judge(&["q".into()], &[], true).failure.unwrap(), "smoke query `q` was not asked");
        assert!(judged(&[unsupported()], false).failure.unwrap().ends_with("fails: no server runs"));
    }

    #[test]
    fn no_more_than_a_line_is_shown() {
        let long = format!("a\nb {}", "é".repeat(500));
        let failed = [Err(AdapterError::corrupt(long.as_str()))];
        let failure = judge(&[long], &failed, true).failure.unwrap();
        assert!(!failure.contains('\n') && failure.chars().count() < 450, "{failure}");
        assert_eq!(cut("abcdef", 3), "abc…");
        assert_eq!(cut("abc", 3), "abc");
    }
}
