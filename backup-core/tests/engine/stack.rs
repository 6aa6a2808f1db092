//! Recoveries of a host that has lost what its services run in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::engine::{RecoveryAction, RecoveryPlan, RecoveryRequest};
use backup_core::testkit::fake_adapter::text_of;
use backup_core::{AdapterError, AdapterErrorKind, Part, PartState, Stack};
use tokio_util::sync::CancellationToken;

use super::*;

const HOST: &str = "
store.url = 'memory://'
intervals.hourly = { services = ['db', 'env', 'web-files'], keep = 5 }
services.db = { kind = 'fake' }
services.env = { kind = 'fake' }
services.web-files = { kind = 'fake' }
";

/// `db` runs in the container `db-1`; `web` and `job` are applications.
#[derive(Debug, Clone)]
struct Fake {
    states: Arc<Mutex<BTreeMap<String, PartState>>>,
    orders: Arc<Mutex<Vec<String>>>,
    db: FakeAdapter,
    /// What the definition is missing.
    unknown: Arc<Mutex<Option<FakeAdapter>>>,
    refuses: Arc<Mutex<Option<&'static str>>>,
    /// It starts, and never answers.
    silent: Arc<Mutex<bool>>,
    /// It goes on writing, in so many lines so far.
    talks: Arc<Mutex<Option<u64>>>,
    /// The image of `db`, and whether it is on the host.
    image: Arc<Mutex<Option<(&'static str, bool)>>>,
    data_root: Arc<Mutex<Option<PathBuf>>>,
}

#[async_trait]
impl Stack for Fake {
    async fn parts(&self) -> Result<Vec<Part>, AdapterError> {
        if let Some(env) = &*self.unknown.lock().unwrap()
            && !text_of(&env.live()).contains("hello world")
        {
            return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, "no values for its variables"));
        }
        let part = |(name, state): (&String, &PartState)| {
            let mut part = Part::new(name);
            part.containers = vec![format!("{name}-1")];
            part.state = *state;
            if let Some((image, here)) = self.image.lock().unwrap().filter(|_| name == "db") {
                (part.image, part.has_image) = (Some(image.to_owned()), here);
            }
            part
        };
        Ok(self.states.lock().unwrap().iter().map(part).collect())
    }

    async fn start(&self, parts: &[String]) -> Result<(), AdapterError> {
        self.orders.lock().unwrap().push(format!("start {}", parts.join(" ")));
        if let Some(why) = *self.refuses.lock().unwrap() {
            return Err(AdapterError::new(AdapterErrorKind::Other, why));
        }
        for part in parts {
            self.states.lock().unwrap().insert(part.clone(), PartState::Running);
        }
        if parts.iter().any(|p| p == "db") && !*self.silent.lock().unwrap() {
            self.db.script(|s| {
                s.failing.clear();
                s.missing = false;
            });
        }
        Ok(())
    }

    async fn data_root(&self) -> Option<PathBuf> {
        self.data_root.lock().unwrap().clone()
    }

    async fn stop(&self, parts: &[String]) -> Result<(), AdapterError> {
        self.orders.lock().unwrap().push(format!("stop {}", parts.join(" ")));
        for part in parts {
            self.states.lock().unwrap().insert(part.clone(), PartState::Stopped(Some(0)));
        }
        Ok(())
    }

    async fn last_lines(&self, part: &str) -> Vec<String> {
        if let Some(lines) = &mut *self.talks.lock().unwrap() {
            *lines += 1;
            return vec![format!("replayed {lines} records")];
        }
        vec![format!("the last of {part}")]
    }
}

impl Fake {
    fn orders(&self) -> Vec<String> {
        std::mem::take(&mut self.orders.lock().unwrap())
    }

    fn has(&self, image: &'static str, here: bool) {
        *self.image.lock().unwrap() = Some((image, here));
    }

    fn set(&self, part: &str, state: PartState) {
        self.states.lock().unwrap().insert(part.to_owned(), state);
    }
}

struct Host {
    w: World,
    stack: Fake,
    db: FakeAdapter,
    env: FakeAdapter,
}

fn empty(fake: &FakeAdapter) {
    fake.script(|s| {
        s.set_artifact("one", [""]);
        s.set_artifact("two", [""]);
    });
}

/// Backed up; then the database's container is gone, and the applications run on.
async fn host() -> Host {
    let (db, env, files) = (adapter(), adapter(), adapter());
    db.script(|s| (s.container, s.image) = (Some("db-1".to_owned()), Some("db:1".to_owned())));
    env.script(|s| s.comes_first = true);
    let w = World::with_config(HOST, &[("db", db.clone()), ("env", env.clone()), ("web-files", files)]).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    let states =
        [("db", PartState::Missing), ("job", PartState::Stopped(Some(0))), ("web", PartState::Running)];
    let stack = Fake {
        states: Arc::new(Mutex::new(states.map(|(n, s)| (n.to_owned(), s)).into())),
        orders: Arc::default(),
        db: db.clone(),
        unknown: Arc::default(),
        refuses: Arc::default(),
        silent: Arc::default(),
        talks: Arc::default(),
        image: Arc::default(),
        data_root: Arc::default(),
    };
    empty(&db);
    db.script(|s| s.failing.extend([Step::Probe, Step::Plan]));
    let w = w.with_stack(stack.clone());
    Host { w, stack, db, env }
}

impl Host {
    async fn plan(&self) -> RecoveryPlan {
        self.w.engine.plan_recovery(&RecoveryRequest::default()).await.unwrap()
    }

    async fn recover(&self) -> RunReport {
        self.w.clock.advance_secs(60);
        let plan = self.plan().await;
        self.w.engine.recover(&plan, CancellationToken::new()).await.unwrap()
    }
}

fn parts(report: &RunReport) -> Vec<(&str, &str, Outcome)> {
    report.parts.iter().map(|p| (p.part.as_str(), p.kind.as_str(), p.outcome)).collect()
}

#[tokio::test]
async fn what_is_missing_is_made_and_what_uses_it_comes_last() {
    let h = host().await;
    let plan = h.plan().await;
    assert_eq!(h.stack.orders(), [] as [String; 0], "a plan changes nothing");
    let stack = plan.stack.clone().unwrap();
    assert_eq!((stack.stops, stack.starts), (vec!["web".to_owned()], vec!["job".into(), "web".into()]));
    let (service, restore) = plan.restores().next().unwrap();
    assert_eq!((service.service.as_str(), restore.starts.as_deref()), ("db", Some("db")));
    assert!(restore.steps[0].contains("make and start `db`"), "{:?}", restore.steps);

    let report = h.recover().await;
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    let of_db = report.steps.iter().find(|s| s.service.as_str() == "db").unwrap();
    assert_eq!(of_db.outcome, Outcome::Ok);
    assert!(of_db.notes.iter().any(|n| n == "it takes writes") && of_db.restore_ms.is_some());
    assert!(text_of(&h.db.live()).contains("hello world"));
    assert_eq!(h.stack.orders(), ["stop web", "start db", "start job web"]);
    let ok = Outcome::Ok;
    assert_eq!(
        parts(&report),
        [("web", "stop", ok), ("db", "start", ok), ("job", "start", ok), ("web", "start", ok)]
    );
    assert!(h.w.engine.state().fenced().unwrap().is_empty());

    // What was measured predicts the next one.
    h.stack.set("job", PartState::Stopped(Some(0)));
    assert_eq!(h.recover().await.outcome(), Outcome::Skipped, "nothing is left to be done");
    assert_eq!(h.stack.orders(), [] as [String; 0]);
    h.stack.set("db", PartState::Missing);
    let plan = h.plan().await;
    let from = plan.restores().next().unwrap().1.predicted.clone().unwrap().from;
    assert!(from.contains("its last start"), "{from}");
}

/// Data that is still there is newer than any backup.
#[tokio::test]
async fn what_holds_data_once_it_runs_is_left_alone() {
    let h = host().await;
    h.db.script(|s| s.set_artifact("one", ["newer"]));
    h.stack.set("db", PartState::Stopped(Some(137)));
    let plan = h.plan().await;
    assert!(plan.restores().next().unwrap().1.steps[0].starts_with("start `db`"));
    let report = h.recover().await;
    assert!(report.is_ok(), "{report:?}");
    assert!(text_of(&h.db.live()).contains("newer"));
    assert_eq!(h.stack.orders(), ["stop web", "start db", "start job web"]);

    h.stack.set("db", PartState::Stopped(Some(137)));
    let request = RecoveryRequest { overwrite: vec!["db".parse().unwrap()], ..RecoveryRequest::default() };
    let plan = h.w.engine.plan_recovery(&request).await.unwrap();
    assert!(h.w.engine.recover(&plan, CancellationToken::new()).await.unwrap().is_ok());
    assert!(text_of(&h.db.live()).contains("hello world"));
}

/// An application that finds an empty database may fill it.
#[tokio::test]
async fn applications_stay_stopped_while_a_service_is_not_back() {
    for step in [Step::Stage, Step::ProveWritable] {
        let h = host().await;
        let fails = h.env.clone().failing(step);
        empty(&fails);
        let report = h.recover().await;
        assert_eq!(report.outcome(), Outcome::Failed, "{step}");
        // What has its data back keeps it, if nobody can write to it either.
        assert_eq!(text_of(&fails.live()).contains("hello world"), step == Step::ProveWritable, "{step}");
        assert_eq!(h.stack.orders(), ["stop web", "start db"], "{step}");
        assert!(h.w.events.warnings().iter().any(|w| w.contains("not started, because env")), "{step}");
        assert_eq!(h.w.engine.state().fenced().unwrap(), ["web"]);
        // The next one that brings it back starts what this one stopped, and knows of it without any restore, too.
        fails.script(|s| {
            s.failing.clear();
            s.set_artifact("one", ["by hand"]);
        });
        let stack = h.plan().await.stack.unwrap();
        assert_eq!((stack.stops.len(), stack.starts), (0, vec!["web".to_owned()]), "{step}");
        assert!(h.recover().await.is_ok());
        assert_eq!(h.stack.orders(), ["start web"]);
    }
}

#[tokio::test]
async fn one_that_cannot_be_made_stops_no_other_service() {
    let h = host().await;
    empty(&h.env);
    *h.stack.refuses.lock().unwrap() = Some("no such image: db:1");
    let report = h.recover().await;
    let of_db = report.steps.iter().find(|s| s.service.as_str() == "db").unwrap();
    assert!(of_db.error.as_ref().unwrap().contains("no such image: db:1"), "{of_db:?}");
    assert!(text_of(&h.env.live()).contains("hello world"));
    assert!(!text_of(&h.db.live()).contains("hello world"));
    let events = h.w.events.0.lock().unwrap();
    assert!(
        events.iter().any(
            |e| matches!(e, Event::PartFinished { last_lines, .. } if last_lines == &["the last of db"])
        )
    );
}

/// Containers are made from a definition that reads a file which is itself restored.
#[tokio::test]
async fn a_stack_that_is_not_known_yet_is_looked_at_again() {
    let h = host().await;
    empty(&h.env);
    h.db.script(|s| s.missing = true);
    *h.stack.unknown.lock().unwrap() = Some(h.env.clone());
    let plan = h.plan().await;
    assert!(plan.stack.as_ref().unwrap().unknown.is_some());
    let order: Vec<&str> = plan.services.iter().map(|s| s.service.as_str()).collect();
    assert_eq!(order, ["env", "db", "web-files"]);
    assert_eq!(plan.services[1].after, ["env".parse().unwrap()]);
    assert!(matches!(&plan.services[1].action, RecoveryAction::Restore(r) if r.starts.is_some()));
    let report = h.recover().await;
    assert!(report.is_ok(), "{report:?}");
    assert!(text_of(&h.db.live()).contains("hello world"));
    assert_eq!(h.stack.orders(), ["stop web", "start db", "start job web"]);
}

/// It runs, and its password was in a file that is gone.
#[tokio::test]
async fn one_that_cannot_be_asked_before_a_file_is_back_is_looked_at_again() {
    let h = host().await;
    empty(&h.env);
    h.stack.set("db", PartState::Running);
    h.db.script(|s| s.set_artifact("one", ["newer"]));
    let plan = h.plan().await;
    let (_, restore) = plan.restores().find(|(s, _)| s.service.as_str() == "db").unwrap();
    assert!(restore.looks_again && restore.starts.is_none(), "{restore:?}");
    assert!(restore.steps[0].starts_with("look again: now "), "{:?}", restore.steps);
    let (db, env) = (h.db.clone(), h.env.clone());
    let meanwhile = async {
        while !text_of(&env.live()).contains("hello world") {
            tokio::task::yield_now().await;
        }
        db.script(|s| s.failing.clear());
    };
    let (report, ()) = tokio::join!(h.recover(), meanwhile);
    assert!(report.is_ok(), "{report:?}");
    assert!(text_of(&h.db.live()).contains("newer"), "it held data");
    // With nothing that could come back first, it is what it is.
    h.db.script(|s| s.failing.extend([Step::Probe, Step::Plan]));
    assert!(matches!(&h.plan().await.services[1].action, RecoveryAction::Blocked { .. }));
}

/// Without a stack nobody makes a container, whatever else comes back.
#[tokio::test]
async fn without_a_stack_a_missing_container_is_what_stands_in_the_way() {
    let (db, env) = (adapter(), adapter());
    env.script(|s| s.comes_first = true);
    db.script(|s| s.container = Some("db-1".to_owned()));
    let adapters = [("db", db.clone()), ("env", env.clone()), ("web-files", adapter())];
    let w = World::with_config(HOST, &adapters).await;
    w.back_up().await;
    empty(&env);
    db.script(|s| s.missing = true);
    let plan = w.engine.plan_recovery(&RecoveryRequest::default()).await.unwrap();
    let of_db = plan.services.iter().find(|s| s.service.as_str() == "db").unwrap();
    assert!(
        matches!(&of_db.action, RecoveryAction::Blocked { why } if why.contains("no such service")),
        "{of_db:?}"
    );
    let report = w.engine.recover(&plan, CancellationToken::new()).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Failed);
    assert!(text_of(&env.live()).contains("hello world"));
}

/// It runs, answers nobody and writes nothing: that ends, with its last words, and the others come back.
#[tokio::test(start_paused = true)]
async fn one_that_never_answers_is_given_up_and_the_others_come_back() {
    let h = host().await;
    empty(&h.env);
    *h.stack.silent.lock().unwrap() = true;
    let began = tokio::time::Instant::now();
    let report = h.recover().await;
    let waited = began.elapsed().as_secs();
    assert!((60..90).contains(&waited), "{waited} s");
    let of_db = report.steps.iter().find(|s| s.service.as_str() == "db").unwrap();
    assert!(of_db.error.as_ref().unwrap().contains("no progress for 60 s"), "{of_db:?}");
    assert!(text_of(&h.env.live()).contains("hello world"));
    assert_eq!(h.stack.orders(), ["stop web", "start db"], "applications wait");
}

/// A host that was just started: the server reads its log, and has everything. What a restore would do it can say already.
#[tokio::test(start_paused = true)]
async fn one_that_runs_and_does_not_answer_yet_is_waited_for() {
    let h = host().await;
    h.stack.set("db", PartState::Starting);
    h.db.script(|s| {
        s.failing.clear();
        s.silent = true;
        s.set_artifact("one", ["newer"]);
    });
    let plan = h.plan().await;
    let (_, restore) = plan.restores().find(|(s, _)| s.service.as_str() == "db").unwrap();
    assert!(restore.looks_again && restore.starts.is_none(), "{restore:?}");
    assert!(restore.steps[0].starts_with("wait until it answers: now "), "{:?}", restore.steps);
    let later = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        h.db.script(|s| s.silent = false);
    };
    let (report, ()) = tokio::join!(h.recover(), later);
    assert!(report.is_ok(), "{report:?}");
    assert!(text_of(&h.db.live()).contains("newer"), "it held data");
    assert!(!h.stack.orders().iter().any(|o| o.starts_with("start db")), "it ran");

    // One that never answers is not restored over, unless that is asked for.
    h.stack.set("db", PartState::Running);
    h.db.script(|s| s.silent = true);
    let of_db = h.recover().await.steps.into_iter().find(|s| s.service.as_str() == "db").unwrap();
    assert!(of_db.error.as_ref().unwrap().contains("no progress for 60 s"), "{of_db:?}");
    assert!(text_of(&h.db.live()).contains("newer"));
    let overwrite = vec!["db".parse().unwrap()];
    let request = RecoveryRequest { overwrite, ..RecoveryRequest::default() };
    let plan = h.w.engine.plan_recovery(&request).await.unwrap();
    let (_, restore) = plan.restores().find(|(s, _)| s.service.as_str() == "db").unwrap();
    assert!(!restore.looks_again, "{restore:?}");
}

/// The wait runs from the last sign of progress: a log of many gigabytes is replayed for longer than one may be silent.
#[tokio::test(start_paused = true)]
async fn one_that_shows_progress_is_waited_for() {
    let h = host().await;
    *h.stack.silent.lock().unwrap() = true;
    *h.stack.talks.lock().unwrap() = Some(0);
    let later = async {
        tokio::time::sleep(Duration::from_secs(1500)).await;
        h.db.script(|s| s.failing.clear());
    };
    let (report, ()) = tokio::join!(h.recover(), later);
    assert!(report.is_ok(), "{report:?}");
    assert!(text_of(&h.db.live()).contains("hello world"));
}

/// A plan says what will surprise: an image that has to be fetched, and one that is not what the backup was made of.
#[tokio::test]
async fn a_plan_names_an_image_that_is_missing_or_another_one() {
    let h = host().await;
    let warnings = async |image: &'static str, here: bool| {
        h.stack.has(image, here);
        let plan = h.plan().await;
        let (_, restore) = plan.restores().find(|(s, _)| s.service.as_str() == "db").unwrap();
        restore.warnings.clone()
    };
    assert_eq!(warnings("db:1", true).await, [] as [String; 0]);
    let missing = warnings("db:1", false).await;
    assert!(missing.len() == 1 && missing[0].contains("`db:1` is not on this host"), "{missing:?}");
    let other = warnings("db:2", true).await;
    assert!(
        other.len() == 1 && other[0].contains("was made of `db:1`; `db` has the image `db:2`"),
        "{other:?}"
    );
}

/// Nobody can ask a container that is not there where its data will be: what the backup holds is needed where such data lies.
#[tokio::test]
async fn a_plan_says_how_much_is_free_for_one_that_has_to_be_made() {
    let h = host().await;
    let planned = async |root: Option<&str>| {
        *h.stack.data_root.lock().unwrap() = root.map(PathBuf::from);
        let plan = h.plan().await;
        plan.restores().find(|(s, _)| s.service.as_str() == "db").unwrap().1.clone()
    };
    let unknown = planned(None).await;
    assert!(unknown.space.is_empty() && unknown.warnings.is_empty(), "{unknown:?}");
    let here = h.w.dir.path();
    let known = planned(here.to_str()).await;
    let [room] = known.space.as_slice() else { panic!("{known:?}") };
    assert!(room.path == here && room.bytes == known.plain_bytes && room.free > room.bytes, "{room:?}");
    assert!(known.warnings.is_empty(), "{known:?}");
    // A file system on which nothing is ever free.
    let full = planned(Some("/proc")).await;
    assert!(
        full.space[0].free == 0 && full.warnings[0].contains("not enough room below `/proc`"),
        "{full:?}"
    );
}
