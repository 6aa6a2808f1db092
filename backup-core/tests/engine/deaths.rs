//! Recoveries and undos that die in a call of an adapter: nobody tidies up, and whoever comes next finds what was left.

use backup_core::engine::RecoveryRequest;
use backup_core::state::{RestoreJournal, RestorePhase};
use backup_core::testkit::fake_adapter::text_of;
use tokio_util::sync::CancellationToken;

use super::*;

const ASKED: &str = "
store.url = 'memory://'
intervals.hourly = { services = ['a', 'b'], keep = 5 }
services.a = { kind = 'fake', after = ['b'], smoke = ['one'] }
services.b = { kind = 'fake', smoke = ['one'] }
";

/// What has begun by then, in which call a run dies, whether the call has done its work, and what is noted of it.
const DEATHS: [(&str, Step, bool, RestorePhase); 7] = [
    ("restoring beside the target", Step::Stage, false, RestorePhase::Staging),
    ("restoring beside the target", Step::Stage, true, RestorePhase::Staging),
    ("switching", Step::Switch, false, RestorePhase::Switching),
    ("switching", Step::Switch, true, RestorePhase::Switching),
    ("comparing with the evidence", Step::Probe, false, RestorePhase::Switched),
    ("writing to it", Step::ProveWritable, false, RestorePhase::Switched),
    ("asking the smoke queries", Step::Ask, false, RestorePhase::Switched),
];

/// Lets a service hang from a phase on: the same calls are made before, to look.
#[derive(Debug, Clone)]
struct Trap {
    service: &'static str,
    phase: &'static str,
    fake: FakeAdapter,
    step: Step,
    done: bool,
}

impl Trap {
    fn set(&self) {
        self.fake.script(|s| match self.done {
            true => s.hanging_after.insert(self.step),
            false => s.hanging.insert(self.step),
        });
    }
}

impl EventSink for Trap {
    fn emit(&self, event: Event) {
        if let Event::Phase { service, phase } = event
            && service.as_str() == self.service
            && phase == self.phase
        {
            self.set();
        }
    }
}

/// A process of its own: what it has begun goes no further when it ends.
fn process<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn engine(w: &World, events: impl EventSink) -> Engine {
    Engine::builder(w.engine.plan().clone(), w.engine.catalog().clone(), w.engine.state().clone())
        .clock(Arc::new(w.clock.clone()))
        .events(Arc::new(events))
        .lock_patience(Duration::ZERO)
        .build()
}

/// Ends with `work` in the midst of it, where the trap has caught it.
fn dies<T>(trap: &Trap, work: impl Future<Output = T>) {
    let caught = async {
        while !trap.fake.log().contains(&Asked::Hangs(trap.step)) {
            tokio::task::yield_now().await;
        }
    };
    process(async {
        tokio::select! {
            _ = work => panic!("{trap:?} did not catch it"),
            caught = tokio::time::timeout(Duration::from_secs(60), caught) => caught.unwrap(),
        }
    });
    trap.fake.script(|s| (s.hanging.clear(), s.hanging_after.clear()));
}

/// Two services that were backed up, and lost everything; what they hold then and what they held.
async fn lost() -> (World, [FakeAdapter; 2], [String; 2], [String; 2]) {
    let fakes = [adapter(), adapter()];
    let w = World::with_config(ASKED, &[("a", fakes[0].clone()), ("b", fakes[1].clone())]).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    let held = lives(&fakes);
    for fake in &fakes {
        fake.script(|s| s.set_artifact("one", [""]));
        fake.script(|s| s.set_artifact("two", [""]));
    }
    w.clock.advance_secs(60);
    let now = lives(&fakes);
    (w, fakes, now, held)
}

fn lives(fakes: &[FakeAdapter; 2]) -> [String; 2] {
    [0, 1].map(|at| text_of(&fakes[at].live()))
}

async fn recover(engine: &Engine) -> RunReport {
    let plan = engine.plan_recovery(&RecoveryRequest::default()).await.unwrap();
    engine.recover(&plan, CancellationToken::new()).await.unwrap()
}

fn journals(w: &World, service: &str) -> Vec<RestoreJournal> {
    w.engine.state().restores(&service.parse().unwrap()).unwrap()
}

/// A new process brings everything back, and leaves nothing that is half done or stays once it is cleaned up.
fn is_brought_back(w: &World, fakes: &[FakeAdapter; 2], held: &[String; 2], case: &str) {
    w.clock.advance_secs(60);
    process(async {
        let engine = engine(w, backup_core::NoEvents);
        let report = recover(&engine).await;
        assert!(report.is_ok(), "{case}: {report:?}");
        assert_eq!(lives(fakes), *held, "{case}");
        for service in ["a", "b"] {
            let journals = journals(w, service);
            let done = |j: &RestoreJournal| matches!(j.phase, RestorePhase::Switched | RestorePhase::Undone);
            assert!(journals.iter().all(done), "{case}: {journals:?}");
        }
        let request = BackupRequest::new(Interval::new("hourly").unwrap());
        assert_eq!(engine.back_up(&request).await.unwrap().outcome(), Outcome::Ok, "{case}");
        engine.cleanup(&[], CancellationToken::new()).await.unwrap();
        assert_eq!(lives(fakes), *held, "{case}");
        engine.shutdown().await;
    });
    for (service, fake) in ["a", "b"].iter().zip(fakes) {
        assert!(journals(w, service).is_empty(), "{case}");
        assert_eq!(fake.beside(), 0, "{case}: `{service}` keeps what nobody will ask for");
    }
}

#[test]
fn a_recovery_that_dies_in_any_call_is_completed_by_the_next() {
    for (phase, step, done, noted) in DEATHS {
        for (at, service) in ["a", "b"].into_iter().enumerate() {
            let case = format!("{service} in {step}, done: {done}");
            let (w, fakes, before, held) = process(lost());
            let trap = Trap { service, phase, fake: fakes[at].clone(), step, done };
            dies(&trap, recover(&engine(&w, trap.clone())));
            let newest = journals(&w, service).pop().unwrap();
            assert_eq!(newest.phase, noted, "{case}");
            let went_live = noted == RestorePhase::Switched || (step == Step::Switch && done);
            let wanted = if went_live { &held } else { &before };
            assert_eq!(lives(&fakes)[at], wanted[at], "{case}");
            is_brought_back(&w, &fakes, &held, &case);
        }
    }
}

#[test]
fn a_recovery_that_dies_in_any_call_can_be_undone() {
    for (phase, step, done, noted) in DEATHS {
        let case = format!("{step}, done: {done}");
        let (w, fakes, before, held) = process(lost());
        let trap = Trap { service: "a", phase, fake: fakes[0].clone(), step, done };
        dies(&trap, recover(&engine(&w, trap.clone())));
        w.clock.advance_secs(60);
        let undone = process(async {
            engine(&w, backup_core::NoEvents).undo(&a(), CancellationToken::new()).await.unwrap()
        });
        // What never came near going live was removed, and there is nothing to undo.
        assert_eq!(undone.is_ok(), noted != RestorePhase::Staging, "{case}: {undone:?}");
        assert_eq!(lives(&fakes), [before[0].clone(), held[1].clone()], "{case}: only `a` was asked for");
        is_brought_back(&w, &fakes, &held, &case);
    }
}

#[test]
fn an_undo_that_dies_is_completed_by_the_next_or_by_a_recovery() {
    for done in [false, true] {
        for again in [true, false] {
            let case = format!("done: {done}, undone again: {again}");
            let (w, fakes, before, held) = process(lost());
            assert!(process(recover(&w.engine)).is_ok());
            w.clock.advance_secs(60);
            let fake = fakes[0].clone();
            let trap = Trap { service: "a", phase: "", fake, step: Step::Undo, done };
            trap.set();
            let engine_of_undo = engine(&w, backup_core::NoEvents);
            dies(&trap, engine_of_undo.undo(&a(), CancellationToken::new()));
            assert_eq!(journals(&w, "a").pop().unwrap().phase, RestorePhase::Undoing, "{case}");
            w.clock.advance_secs(60);
            if again {
                let undone = process(async {
                    engine(&w, backup_core::NoEvents).undo(&a(), CancellationToken::new()).await.unwrap()
                });
                assert_eq!(outcome(&undone), (Outcome::Ok, String::new()), "{case}");
                assert_eq!(lives(&fakes)[0], before[0], "{case}");
            }
            is_brought_back(&w, &fakes, &held, &case);
        }
    }
}
