//! Retention by example: boundaries of the calendar, and the traps that other tools fell into.
#![expect(clippy::unwrap_used, reason = "a broken test helper may panic")]

use std::time::Duration;

use backup_core::retention::{
    Candidate, Decision, DeleteOlderThan, EntryState, KeepAll, KeepLast, Ladder, MaxTotalBytes, PlanEntry,
    PlanOptions, Policy, RetentionPlan, RetentionPolicy, Verdict,
};
use chrono::{DateTime, TimeDelta, Utc};

const DAY: Duration = Duration::from_secs(86_400);

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn entry(timestamp: &str, state: EntryState) -> PlanEntry {
    PlanEntry::new(format!("redis/hourly/{timestamp}").parse().unwrap(), 100, state)
}

fn good(timestamps: &[&str]) -> Vec<PlanEntry> {
    timestamps.iter().map(|t| entry(t, EntryState::Good)).collect()
}

fn plan(policy: &dyn RetentionPolicy, entries: &[PlanEntry]) -> RetentionPlan {
    RetentionPlan::compute(policy, entries, PlanOptions::complete_listing(), at("2026-03-09T12:00:00Z"))
}

/// Timestamp and reason of what stays, newest first.
fn stays(plan: &RetentionPlan) -> Vec<(String, &str)> {
    let kept = plan.items().iter().filter(|i| i.decision == Decision::Keep);
    kept.map(|i| (i.id.timestamp.to_string(), i.reason.as_str())).collect()
}

fn stays_at(plan: &RetentionPlan) -> Vec<String> {
    stays(plan).into_iter().map(|(t, _)| t).collect()
}

fn goes(plan: &RetentionPlan) -> Vec<String> {
    plan.deletions().map(|i| format!("{}: {}", i.id.timestamp, i.reason)).collect()
}

#[test]
fn a_ladder_says_why_it_keeps() {
    let ladder = Ladder { latest: 1, daily: 2, ..Ladder::default() };
    let plan = plan(
        &ladder,
        &good(
            &["20260309_0400", "20260309_0300", "20260308_2300", "20260307_2300"]
                .map(|t| format!("{t}00"))
                .each_ref()
                .map(String::as_str),
        ),
    );
    assert_eq!(
        stays(&plan),
        [
            ("20260309_040000".to_owned(), "newest good, latest 1 of 1, daily 1 of 2"),
            ("20260308_230000".to_owned(), "daily 2 of 2"),
        ]
    );
    assert_eq!(
        goes(&plan),
        [
            "20260307_230000: no rung of the ladder needs it",
            "20260309_030000: no rung of the ladder needs it",
        ]
    );
    assert_eq!(plan.freed_bytes(), 200);
}

#[test]
fn iso_weeks_belong_to_the_iso_year() {
    let weekly = Ladder { weekly: 10, ..Ladder::default() };
    // 29 December 2025 and 1 January 2026 are both in 2026-W01; 5 January 2025 is in 2025-W01.
    let plan1 =
        plan(&weekly, &good(&["20260101_120000", "20251229_120000", "20251228_120000", "20250105_120000"]));
    assert_eq!(stays_at(&plan1), ["20260101_120000", "20251228_120000", "20250105_120000"]);
    // 2020 had a week 53, which reached to Sunday, 3 January 2021.
    let plan2 =
        plan(&weekly, &good(&["20210104_000000", "20210103_235959", "20201228_000000", "20201227_235959"]));
    assert_eq!(stays_at(&plan2), ["20210104_000000", "20210103_235959", "20201227_235959"]);
}

#[test]
fn a_leap_day_is_a_day_of_its_own() {
    let daily = Ladder { daily: 10, ..Ladder::default() };
    let days = ["20240301_000000", "20240229_235959", "20240229_000000", "20240228_235959"];
    assert_eq!(
        stays_at(&plan(&daily, &good(&days))),
        ["20240301_000000", "20240229_235959", "20240228_235959"]
    );
    let monthly = Ladder { monthly: 10, ..Ladder::default() };
    assert_eq!(stays_at(&plan(&monthly, &good(&days))), ["20240301_000000", "20240229_235959"]);
}

#[test]
fn midnight_and_new_year_separate_hours_months_and_years() {
    let entries = good(&["20260101_000000", "20251231_235959", "20251231_230000", "20241231_235959"]);
    for (ladder, expected) in [
        (
            Ladder { hourly: 9, ..Ladder::default() },
            vec!["20260101_000000", "20251231_235959", "20241231_235959"],
        ),
        (
            Ladder { monthly: 9, ..Ladder::default() },
            vec!["20260101_000000", "20251231_235959", "20241231_235959"],
        ),
        (Ladder { yearly: 2, ..Ladder::default() }, vec!["20260101_000000", "20251231_235959"]),
    ] {
        assert_eq!(stays_at(&plan(&ladder, &entries)), expected, "{ladder:?}");
    }
}

#[test]
fn an_hourly_rung_does_not_eat_the_15_minute_series() {
    // With `hourly` alone, three of four backups of a 15-minute series go; `latest` keeps them. The other series of the
    // same service is judged by itself: its newest one takes no place here.
    let ladder = Ladder { latest: 4, hourly: 3, ..Ladder::default() };
    let mut entries = Vec::new();
    for minutes in (0..180).step_by(15) {
        let t = at("2026-03-09T09:00:00Z") + TimeDelta::minutes(minutes);
        entries.push(entry(&t.format("%Y%m%d_%H%M%S").to_string(), EntryState::Good));
    }
    let hourly = PlanEntry::new("redis/15min/20260309_115959".parse().unwrap(), 1, EntryState::Good);
    entries.push(hourly);
    let plan = plan(&ladder, &entries);
    assert_eq!(
        stays_at(&plan),
        [
            "20260309_115959",
            "20260309_114500",
            "20260309_113000",
            "20260309_111500",
            "20260309_110000",
            "20260309_104500",
            "20260309_094500",
        ]
    );
}

#[test]
fn seven_bad_days_do_not_evict_the_good_ones() {
    let mut entries = good(&["20260301_000000", "20260228_000000"]);
    for day in 2..9 {
        let state = if day % 2 == 0 { EntryState::Suspect } else { EntryState::Damaged };
        entries.push(entry(&format!("2026030{day}_000000"), state));
    }
    for policy in [
        Policy::keeping(KeepLast::new(2).unwrap()),
        Policy::limited_only_by(DeleteOlderThan::new(2 * DAY).unwrap()),
    ] {
        let plan = plan(&policy, &entries);
        assert!(stays_at(&plan).contains(&"20260301_000000".to_owned()), "{policy:?}");
        assert_eq!(stays(&plan)[0], ("20260308_000000".to_owned(), "suspect: no newer good one"));
        assert_eq!(plan.deletions().filter(|i| i.state != EntryState::Good).count(), 0);
    }
}

#[test]
fn a_bad_one_goes_once_the_policy_would_have_let_a_good_one_go() {
    let mut entries = good(&["20260309_000000", "20260308_000000", "20260306_000000"]);
    entries.push(entry("20260307_000000", EntryState::Suspect));
    entries.push(entry("20260305_000000", EntryState::Damaged));
    let plan = plan(&KeepLast::new(3).unwrap(), &entries);
    assert_eq!(goes(&plan), ["20260305_000000: damaged, beyond the last 3"]);
    assert!(stays(&plan).contains(&("20260307_000000".to_owned(), "suspect: kept as last 3 of 3")));
    assert!(
        stays(&plan).contains(&("20260306_000000".to_owned(), "last 3 of 3")),
        "the suspect one took its place"
    );
}

#[test]
fn limits_never_remove_the_newest() {
    let old = good(&["20200102_000000", "20200101_000000"]);
    let by_age = Policy::keeping(KeepLast::new(5).unwrap()).limited_by(DeleteOlderThan::new(DAY).unwrap());
    let by_size = Policy::limited_only_by(MaxTotalBytes::new(1).unwrap());
    for policy in [by_age, by_size] {
        let candidates: Vec<_> =
            old.iter().map(|e| Candidate { timestamp: e.id.timestamp, size_bytes: 100 }).collect();
        let verdicts = policy.evaluate(&candidates, at("2026-03-09T12:00:00Z"));
        assert_eq!(verdicts.iter().map(Verdict::is_keep).collect::<Vec<_>>(), [true, false], "{policy:?}");
    }
}

#[test]
fn bytes_are_counted_over_what_the_other_rules_left() {
    let entries = good(&["20260309_110000", "20260309_100000", "20260308_100000", "20260307_100000"]);
    let daily = Ladder { daily: 3, ..Ladder::default() };
    let policy = Policy::keeping(daily).limited_by(MaxTotalBytes::new(200).unwrap());
    let plan = plan(&policy, &entries);
    assert_eq!(stays_at(&plan), ["20260309_110000", "20260308_100000"]);
    assert!(goes(&plan).contains(&"20260307_100000: more than 200 B in all".to_owned()));
}

#[test]
fn a_small_old_one_does_not_outlive_a_large_newer_one() {
    let mut entries = good(&["20260309_000000", "20260308_000000", "20260307_000000"]);
    entries[1].size_bytes = 10_000;
    let plan = plan(&Policy::limited_only_by(MaxTotalBytes::new(300).unwrap()), &entries);
    assert_eq!(stays_at(&plan), ["20260309_000000"]);
}

#[test]
fn backups_from_the_future_are_not_old() {
    let entries = good(&["20280101_000000", "20270101_000000", "20260309_000000"]);
    assert_eq!(goes(&plan(&DeleteOlderThan::new(DAY).unwrap(), &entries)), Vec::<String>::new());
}

#[test]
fn ages_at_the_limit_stay_and_huge_ages_do_not_overflow() {
    let entries = good(&["20260309_110000", "20260308_120000", "20260308_115959"]);
    assert_eq!(
        goes(&plan(&DeleteOlderThan::new(DAY).unwrap(), &entries)),
        ["20260308_115959: older than 1day"]
    );
    assert_eq!(plan(&DeleteOlderThan::new(Duration::MAX).unwrap(), &entries).deletions().count(), 0);
}

#[test]
fn what_keeps_nothing_is_refused() {
    assert!(KeepLast::new(0).is_err());
    assert!(Ladder::default().checked().is_err());
    assert!(DeleteOlderThan::new(Duration::ZERO).is_err());
    assert!(MaxTotalBytes::new(0).is_err());
}

#[test]
fn legacy_ones_satisfy_no_floor_and_go_only_when_asked() {
    let mut entries = good(&["20260309_000000"]);
    entries.extend(["20260308_000000", "20260307_000000"].map(|t| entry(t, EntryState::Legacy)));
    let policy = KeepLast::new(2).unwrap();
    assert_eq!(plan(&policy, &entries).deletions().count(), 0);
    let ask = PlanOptions::complete_listing().with_legacy(true);
    let now = at("2026-03-09T12:00:00Z");
    assert_eq!(
        goes(&RetentionPlan::compute(&policy, &entries, ask, now)),
        ["20260307_000000: legacy, beyond the last 2"]
    );
    // Without a good one they are all there is.
    assert_eq!(RetentionPlan::compute(&policy, &entries[1..], ask, now).deletions().count(), 0);
}

#[test]
fn a_begun_deletion_is_finished_even_where_everything_is_kept() {
    let mut entries = good(&["20260309_000000"]);
    entries.push(entry("20260308_000000", EntryState::Deleting));
    assert_eq!(goes(&plan(&KeepAll, &entries)), ["20260308_000000: its deletion was begun"]);
}

#[test]
fn a_policy_that_says_too_little_deletes_nothing_by_that() {
    #[derive(Debug)]
    struct Silent;
    impl RetentionPolicy for Silent {
        fn evaluate(&self, _: &[Candidate], _: DateTime<Utc>) -> Vec<Verdict> {
            Vec::new()
        }
    }
    let entries = good(&["20260309_000000", "20260308_000000"]);
    assert_eq!(plan(&Silent, &entries).deletions().count(), 0);
    assert_eq!(plan(&Policy::keeping(Silent), &entries).deletions().count(), 0);
}

#[test]
fn even_a_hostile_policy_cannot_take_the_last_good_one() {
    #[derive(Debug)]
    struct DeleteAll;
    impl RetentionPolicy for DeleteAll {
        fn evaluate(&self, newest_first: &[Candidate], _: DateTime<Utc>) -> Vec<Verdict> {
            vec![Verdict::Delete("because".into()); newest_first.len()]
        }
    }
    let mut entries = good(&["20260309_000000", "20260308_000000", "20260307_000000", "20260306_000000"]);
    entries[1].verified_by_restore = true;
    entries[2].verified_by_restore = true;
    entries[3].held = true;
    assert_eq!(
        stays(&plan(&DeleteAll, &entries)),
        [
            ("20260309_000000".to_owned(), "newest good"),
            ("20260308_000000".to_owned(), "newest one proven by a restore"),
            ("20260306_000000".to_owned(), "held"),
        ]
    );
}
