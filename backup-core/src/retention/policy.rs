//! Simple rules, and their composition.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{Candidate, RetentionPolicy, Verdict};
use crate::error::ConfigError;

/// Keeps everything: for series without a policy. Begun deletions are still finished.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeepAll;

impl RetentionPolicy for KeepAll {
    fn evaluate(&self, newest_first: &[Candidate], _: DateTime<Utc>) -> Vec<Verdict> {
        vec![Verdict::Keep("everything is kept".into()); newest_first.len()]
    }
}

/// Keeps the newest ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepLast(u32);

impl KeepLast {
    /// Keeps the newest `n`.
    ///
    /// # Errors
    /// [`ConfigError`] if `n` is zero.
    pub fn new(n: u32) -> Result<Self, ConfigError> {
        if n == 0 {
            return Err(ConfigError::new("keeping the last 0 keeps nothing").hint("use 1 or more"));
        }
        Ok(Self(n))
    }
}

impl RetentionPolicy for KeepLast {
    fn evaluate(&self, newest_first: &[Candidate], _: DateTime<Utc>) -> Vec<Verdict> {
        let n = self.0;
        (1..=newest_first.len())
            .map(|position| {
                if u32::try_from(position).is_ok_and(|p| p <= n) {
                    Verdict::Keep(format!("last {position} of {n}").into())
                } else {
                    Verdict::Delete(format!("beyond the last {n}").into())
                }
            })
            .collect()
    }
}

/// Rules put together: a backup is kept if **any** keep rule keeps it (or there is none) and **no** limit removes it.
///
/// Limits see only what is still kept, in the order in which they were added, so that a limit on bytes does not count
/// what goes anyway. There is no empty policy: that would keep nothing, or silently everything ([`KeepAll`] says so).
#[derive(Debug, Clone)]
pub struct Policy {
    keeps: Vec<Arc<dyn RetentionPolicy>>,
    limits: Vec<Arc<dyn RetentionPolicy>>,
}

impl Policy {
    /// Keeps what `rule` keeps.
    pub fn keeping(rule: impl RetentionPolicy + 'static) -> Self {
        Self { keeps: vec![Arc::new(rule)], limits: Vec::new() }
    }

    /// Keeps whatever `limit` does not remove.
    pub fn limited_only_by(limit: impl RetentionPolicy + 'static) -> Self {
        Self { keeps: Vec::new(), limits: vec![Arc::new(limit)] }
    }

    /// Keeps what `rule` keeps, too.
    #[must_use]
    pub fn or_keeping(mut self, rule: impl RetentionPolicy + 'static) -> Self {
        // Without any rule everything is kept already; a first one would make it less.
        if !self.keeps.is_empty() {
            self.keeps.push(Arc::new(rule));
        }
        self
    }

    /// Lets go of what `limit` removes.
    #[must_use]
    pub fn limited_by(mut self, limit: impl RetentionPolicy + 'static) -> Self {
        self.limits.push(Arc::new(limit));
        self
    }
}

impl RetentionPolicy for Policy {
    fn evaluate(&self, newest_first: &[Candidate], now: DateTime<Utc>) -> Vec<Verdict> {
        let mut rules = self.keeps.iter();
        let mut verdicts = match rules.next() {
            Some(rule) => complete(rule.evaluate(newest_first, now), newest_first.len()),
            None => Vec::new(),
        };
        for rule in rules {
            let others = complete(rule.evaluate(newest_first, now), newest_first.len());
            verdicts = verdicts.into_iter().zip(others).map(|(a, b)| either(a, b)).collect();
        }
        let mut without_rule = self.keeps.is_empty();
        if without_rule {
            verdicts = vec![Verdict::Keep("".into()); newest_first.len()];
        }
        for limit in &self.limits {
            let kept: Vec<usize> =
                verdicts.iter().enumerate().filter(|(_, v)| v.is_keep()).map(|(i, _)| i).collect();
            let candidates: Vec<Candidate> =
                kept.iter().filter_map(|&i| newest_first.get(i)).copied().collect();
            let limited = complete(limit.evaluate(&candidates, now), candidates.len());
            for (index, verdict) in kept.into_iter().zip(limited) {
                // A limit's own reason to keep is worth telling only where no rule gave one.
                if let Some(slot) = verdicts.get_mut(index)
                    && (without_rule || !verdict.is_keep())
                {
                    *slot = verdict;
                }
            }
            without_rule = false;
        }
        verdicts
    }
}

/// Keep wins; both reasons are told.
fn either(a: Verdict, b: Verdict) -> Verdict {
    match (a, b) {
        (Verdict::Keep(a), Verdict::Keep(b)) => Verdict::Keep(format!("{a}, {b}").into()),
        (keep @ Verdict::Keep(_), Verdict::Delete(_)) | (Verdict::Delete(_), keep @ Verdict::Keep(_)) => keep,
        (Verdict::Delete(a), Verdict::Delete(b)) => Verdict::Delete(format!("{a}, {b}").into()),
    }
}

/// A policy that answers short keeps the rest.
pub(super) fn complete(mut verdicts: Vec<Verdict>, len: usize) -> Vec<Verdict> {
    verdicts.resize(len, Verdict::Keep("the policy does not say".into()));
    verdicts
}
