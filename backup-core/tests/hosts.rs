//! Many hosts in one bucket: runs, retention and copies of machines that are paused past their leases, wake up, and die at
//! any call of the store. One thread, and a scheduler that lets one call through at a time: the same seed is the same story.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "hosts/machine.rs"]
mod machine;
#[path = "hosts/truth.rs"]
mod truth;
#[path = "hosts/turns.rs"]
mod turns;

use std::time::Duration;

use chrono::TimeDelta;
use machine::Machine;
use truth::Truth;
use turns::{Fate, TAKES_OVER, Turns};

/// Each with a prefix of its own, in which it has two stores.
const HOSTS: usize = 3;
/// Of each host: the machine itself and the one that took its place, or whose operator prunes from elsewhere.
const MACHINES: usize = 2 * HOSTS;
const STEPS: usize = 2500;

/// Plays one story with clocks that are off by as much; returns what happened, call by call.
async fn story(seed: u64, steps: usize, off: TimeDelta) -> String {
    let mut dice = fastrand::Rng::with_seed(seed);
    let turns = Turns::new(off);
    let mut truth = Truth::new(&turns).await;
    let mut machines = Vec::new();
    for number in 0..MACHINES {
        machines.push(Machine::start(number, &turns, &mut dice).await);
    }
    let mut paused = [0_usize; MACHINES];
    for step in 0..steps {
        quiet(&turns, &machines).await;
        for machine in &mut machines {
            if machine.ended().await {
                truth.check(&turns, seed, step).await;
            }
            if machine.is_idle() && paused[machine.number] == 0 {
                machine.begin(&mut dice);
            }
        }
        quiet(&turns, &machines).await;
        paused.iter_mut().for_each(|left| *left = left.saturating_sub(1));
        let number = dice.usize(..MACHINES);
        match dice.u8(..) {
            0..2 => {
                turns.note(&format!("{number} dies"));
                machines[number].die(&turns, &mut dice).await;
            }
            2..4 => {
                turns.note(&format!("{number} sleeps"));
                paused[number] = dice.usize(50..400);
                // What it holds expires while it sleeps, sooner or later.
                if dice.bool() {
                    turns.clock.advance_secs(dice.i64(3000..8000));
                }
            }
            4..20 => turns.clock.advance_secs(dice.i64(1..300)),
            other => {
                let fate = match other {
                    20..22 => Fate::Fail,
                    22..24 => Fate::LoseAnswer,
                    _ => Fate::Pass,
                };
                turns.next(&mut dice, |number| paused[number] == 0, fate);
            }
        }
        if step % 20 == 0 {
            truth.check(&turns, seed, step).await;
        }
    }
    // Then all is well again: whatever was left is tidied up, and everything works.
    turns.note("all is well");
    for machine in &mut machines {
        machine.finish(&turns).await;
    }
    turns.clock.advance_secs(3 * 24 * 3600);
    for machine in &mut machines {
        machine.works(&turns, seed).await;
    }
    truth.check(&turns, seed, steps).await;
    truth.nothing_is_left(&turns, seed).await;
    turns.told()
}

/// Waits until nobody can go on without a turn: each machine has ended what it did, or asks for something.
async fn quiet(turns: &Turns, machines: &[Machine]) {
    for _ in 0..100_000 {
        // Whoever was let through goes on at once, as far as no thread works for it.
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
        if machines.iter().all(|m| !m.is_at_work() || turns.waits(m.number)) {
            return;
        }
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    panic!("somebody neither ends nor asks");
}

#[tokio::test]
async fn hosts_that_pause_and_die_never_hurt_each_other() {
    let mut taken_over = 0;
    for seed in 1..=4 {
        taken_over += story(seed, STEPS, TimeDelta::seconds(10)).await.matches(TAKES_OVER).count();
    }
    // Of the dead, and of those whose lease ended while they slept.
    assert!(taken_over > 10, "only {taken_over} copies were completed by another");
}

/// Then leases are taken early; whoever held them must find out before anything is done.
#[tokio::test]
async fn clocks_that_are_hours_off_harm_nothing() {
    for seed in 11..=14 {
        story(seed, STEPS, TimeDelta::hours(3)).await;
    }
}

#[tokio::test]
async fn the_same_seed_is_the_same_story() {
    let off = TimeDelta::seconds(10);
    let (first, second) = (story(7, 400, off).await, story(7, 400, off).await);
    let differ = first.lines().zip(second.lines()).position(|(a, b)| a != b);
    assert!(first == second, "from line {differ:?} on");
    assert!(first.lines().count() > 300 && first != story(8, 400, off).await);
}
