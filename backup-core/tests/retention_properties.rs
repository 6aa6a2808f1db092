//! What must hold for every policy and every set of backups.
#![expect(clippy::unwrap_used, reason = "a broken test helper may panic")]

use std::collections::BTreeSet;
use std::time::Duration;

use backup_core::BackupId;
use backup_core::retention::{
    Decision, DeleteOlderThan, EntryState, KeepLast, Ladder, MaxTotalBytes, PlanEntry, PlanOptions, Policy,
    RetentionPlan,
};
use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use proptest::sample::select;

const STATES: [EntryState; 9] = [
    EntryState::Good,
    EntryState::Suspect,
    EntryState::Damaged,
    EntryState::Pending,
    EntryState::Legacy,
    EntryState::Incomplete,
    EntryState::Aborted,
    EntryState::Deleting,
    EntryState::Unreadable,
];

fn epoch() -> DateTime<Utc> {
    "2026-03-09T00:00:00Z".parse().unwrap()
}

fn entry_at(quarter_hour: i64, state: EntryState, size: u64) -> PlanEntry {
    let at = epoch() + TimeDelta::minutes(15 * quarter_hour);
    let id: BackupId = format!("redis/15min/{}", at.format("%Y%m%d_%H%M%S")).parse().unwrap();
    PlanEntry::new(id, size, state)
}

/// Moments of very different density: a crowd within a day, some within months, a few over years.
fn moments() -> impl Strategy<Value = BTreeSet<i64>> {
    let quarter_hours = prop_oneof![4 => -96_i64..96, 3 => -10_000_i64..0, 1 => -200_000_i64..0];
    prop::collection::btree_set(quarter_hours, 0..40)
}

fn entries() -> impl Strategy<Value = Vec<PlanEntry>> {
    let traits = (
        prop_oneof![3 => Just(EntryState::Good), 2 => select(&STATES[..])],
        0_u64..2_000,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.1, -100_i64..100),
    );
    (moments(), prop::collection::vec(traits, 40)).prop_map(|(moments, traits)| {
        let make = |(at, (state, size, held, in_use, proven, lock)): (i64, (_, _, _, _, _, Option<i64>))| {
            let mut entry = entry_at(at, state, size);
            entry.held = held;
            entry.in_use = in_use;
            entry.verified_by_restore = proven;
            entry.retain_until = lock.map(|days| epoch() + TimeDelta::days(days));
            entry
        };
        moments.into_iter().zip(traits).map(make).collect()
    })
}

fn ladder() -> impl Strategy<Value = Ladder> {
    (0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4).prop_filter_map(
        "empty",
        |(a, b, c, d, e, f)| {
            Ladder { latest: a, hourly: b, daily: c, weekly: d, monthly: e, yearly: f }.checked().ok()
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    let age = (1_u64..3_000).prop_map(|h| DeleteOlderThan::new(Duration::from_secs(h * 3600)).unwrap());
    let bytes = (1_u64..20_000).prop_map(|b| MaxTotalBytes::new(b).unwrap());
    let last = (1_u32..12).prop_map(|n| KeepLast::new(n).unwrap());
    let keeps = prop_oneof![
        1 => age.clone().prop_map(Policy::limited_only_by),
        1 => last.clone().prop_map(Policy::keeping),
        1 => ladder().prop_map(Policy::keeping),
        1 => (last, ladder()).prop_map(|(n, l)| Policy::keeping(n).or_keeping(l)),
    ];
    (keeps, prop::option::of(age), prop::option::of(bytes)).prop_map(|(mut policy, age, bytes)| {
        if let Some(age) = age {
            policy = policy.limited_by(age);
        }
        if let Some(bytes) = bytes {
            policy = policy.limited_by(bytes);
        }
        policy
    })
}

fn options() -> impl Strategy<Value = PlanOptions> {
    any::<bool>().prop_map(|legacy| PlanOptions::complete_listing().with_legacy(legacy))
}

fn kept(plan: &RetentionPlan) -> BTreeSet<BackupId> {
    plan.items().iter().filter(|i| i.decision == Decision::Keep).map(|i| i.id.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_order_of_the_entries_does_not_matter(
        (sorted, shuffled) in entries().prop_flat_map(|e| (Just(e.clone()), Just(e).prop_shuffle())),
        policy in policy(),
        options in options(),
    ) {
        let plan = |entries: &[PlanEntry]| RetentionPlan::compute(&policy, entries, options, epoch());
        prop_assert_eq!(plan(&sorted), plan(&shuffled));
    }

    #[test]
    fn a_second_plan_after_applying_the_first_deletes_nothing(
        mut entries in entries(),
        policy in policy(),
        options in options(),
    ) {
        let first = RetentionPlan::compute(&policy, &entries, options, epoch());
        let kept = kept(&first);
        entries.retain(|e| kept.contains(&e.id));
        let second = RetentionPlan::compute(&policy, &entries, options, epoch());
        prop_assert_eq!(second.deletions().collect::<Vec<_>>(), Vec::<&_>::new());
    }

    #[test]
    fn the_floors_hold(entries in entries(), policy in policy(), options in options()) {
        let plan = RetentionPlan::compute(&policy, &entries, options, epoch());
        prop_assert_eq!(plan.items().len(), entries.len());
        let kept = kept(&plan);
        let good = || entries.iter().filter(|e| e.state == EntryState::Good);
        let newest = |of: &mut dyn Iterator<Item = &PlanEntry>| of.map(|e| e.id.clone()).max();
        let newest_good = newest(&mut good());
        let newest_proven = newest(&mut good().filter(|e| e.verified_by_restore));
        for must in newest_good.iter().chain(&newest_proven) {
            prop_assert!(kept.contains(must), "{} must stay", must);
        }
        for e in &entries {
            let locked = e.in_use || e.retain_until.is_some_and(|t| t > epoch());
            let held = e.held && e.state != EntryState::Deleting;
            let untouchable = matches!(e.state, EntryState::Pending | EntryState::Incomplete | EntryState::Unreadable)
                || (e.state == EntryState::Legacy && !options.include_legacy);
            let only_hope = matches!(e.state, EntryState::Suspect | EntryState::Damaged | EntryState::Legacy)
                && newest_good.as_ref().is_none_or(|n| *n < e.id);
            if locked || held || untouchable || only_hope {
                prop_assert!(kept.contains(&e.id), "{} ({:?}) must stay", e.id, e.state);
            } else if matches!(e.state, EntryState::Deleting | EntryState::Aborted) {
                prop_assert!(!kept.contains(&e.id), "{} ({:?}) must go", e.id, e.state);
            }
        }
        prop_assert!(plan.items().iter().all(|i| !i.reason.is_empty()));
    }

    #[test]
    fn after_a_listing_error_nothing_goes(entries in entries(), policy in policy()) {
        let plan = RetentionPlan::compute(&policy, &entries, PlanOptions::partial_listing(), epoch());
        prop_assert_eq!(plan.deletions().count(), 0);
    }

    #[test]
    fn a_backup_more_never_costs_a_newer_one_its_place(
        entries in entries(),
        policy in policy(),
        at in -10_000_i64..96,
        state in select(&STATES[..]),
        size in 0_u64..2_000,
    ) {
        let extra = entry_at(at, state, size);
        prop_assume!(entries.iter().all(|e| e.id != extra.id));
        let options = PlanOptions::complete_listing();
        let before = kept(&RetentionPlan::compute(&policy, &entries, options, epoch()));
        let more: Vec<_> = entries.iter().cloned().chain([extra.clone()]).collect();
        let after = kept(&RetentionPlan::compute(&policy, &more, options, epoch()));
        let lost: Vec<_> = before.difference(&after).filter(|id| **id > extra.id).collect();
        prop_assert_eq!(lost, Vec::<&BackupId>::new());
    }

    #[test]
    fn the_ladder_does_not_look_at_the_clock(entries in entries(), ladder in ladder(), years in -30_i64..30) {
        let without_locks: Vec<_> =
            entries.into_iter().map(|mut e| { e.retain_until = None; e }).collect();
        let plan = |now| RetentionPlan::compute(&ladder, &without_locks, PlanOptions::complete_listing(), now);
        prop_assert_eq!(plan(epoch()), plan(epoch() + TimeDelta::days(365 * years)));
    }

    #[test]
    fn bad_backups_take_no_place_from_good_ones(entries in entries(), n in 1_u32..12) {
        let plan = RetentionPlan::compute(
            &KeepLast::new(n).unwrap(), &entries, PlanOptions::complete_listing(), epoch(),
        );
        let kept = kept(&plan);
        let mut good: Vec<_> = entries.iter().filter(|e| e.state == EntryState::Good).map(|e| &e.id).collect();
        good.sort();
        for id in good.iter().rev().take(n as usize) {
            prop_assert!(kept.contains(*id), "{} is one of the last {}", id, n);
        }
    }
}
