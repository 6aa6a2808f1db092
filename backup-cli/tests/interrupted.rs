//! Restores that were killed, with the real adapters: every verb brings them to a sane end, and nothing is lost.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::support::{CONFIG, World, tree};

const LATER: &str = "2026-03-09T05:00:00Z";

/// A service `data` of each kind.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Files,
    Env,
    Sqlite,
}

const KINDS: [Kind; 3] = [Kind::Files, Kind::Env, Kind::Sqlite];

struct Case {
    world: World,
    kind: Kind,
}

impl Case {
    /// Backed up as `old`, changed to `new`, restored; the journal as the restore left it.
    fn restored(kind: Kind) -> (Self, Value) {
        let world = World::new();
        let service = match kind {
            Kind::Files => "kind = \"files\"\npaths = [\"data\"]",
            Kind::Env => "kind = \"env\"\npaths = [\"data\"]",
            Kind::Sqlite => "kind = \"sqlite\"\npath = \"data\"",
        };
        world.write("backup.toml", &CONFIG.replace("kind = \"files\"\npaths = [\"data\"]", service));
        let case = Self { world, kind };
        case.put("old");
        case.world.ok(&["init"]);
        case.world.ok(&["run"]);
        case.put("new");
        case.world.ok(&["restore", "data", "--yes"]);
        assert_eq!(case.get(), "old", "{kind:?}");
        let journal = case.journals().pop().unwrap();
        (case, serde_json::from_str(&std::fs::read_to_string(journal).unwrap()).unwrap())
    }

    fn journals(&self) -> Vec<PathBuf> {
        let dir = self.world.path("state/restores/data");
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect()
    }

    fn write_journal(&self, journal: &Value) {
        let run = journal["run_id"].as_str().unwrap();
        let path = self.world.path("state/restores/data").join(format!("{run}.json"));
        std::fs::write(path, journal.to_string()).unwrap();
        // A killed process leaves its run behind.
        std::fs::create_dir_all(self.world.path("state/runs").join(run).join("data")).unwrap();
        std::fs::write(self.world.path("state/runs").join(run).join(".lock"), "").unwrap();
    }

    fn put(&self, text: &str) {
        match self.kind {
            Kind::Files => self.world.write("data/f", text),
            Kind::Env => self.world.write("data", text),
            Kind::Sqlite => {
                let db = rusqlite::Connection::open(self.world.path("data")).unwrap();
                db.execute_batch("CREATE TABLE IF NOT EXISTS t (x); DELETE FROM t").unwrap();
                db.execute("INSERT INTO t VALUES (?)", [text]).unwrap();
            }
        }
    }

    fn get(&self) -> String {
        match self.kind {
            Kind::Files => self.world.read("data/f"),
            Kind::Env => self.world.read("data"),
            Kind::Sqlite => {
                let db = rusqlite::Connection::open(self.world.path("data")).unwrap();
                db.query_row("SELECT x FROM t", [], |row| row.get(0)).unwrap()
            }
        }
    }

    fn staged(&self, journal: &Value) -> PathBuf {
        self.world.path(&format!(".data.restore-{}", journal["run_id"].as_str().unwrap()))
    }

    /// What lies beside `data`.
    fn beside(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.world.path("")).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n.starts_with("data.backup.") || n.starts_with(".data.")).collect()
    }

    fn kept(&self) -> PathBuf {
        match self.beside().as_slice() {
            [one] if one.starts_with("data.backup.") => self.world.path(one),
            other => panic!("{:?}: {other:?}", self.kind),
        }
    }

    /// Killed between the exchange of the names and the last rename: the old data has the staged name.
    fn half_switched(kind: Kind) -> Self {
        let (case, mut journal) = Self::restored(kind);
        std::fs::rename(case.kept(), case.staged(&journal)).unwrap();
        journal["phase"] = json!("switching");
        journal["switched"] = Value::Null;
        case.write_journal(&journal);
        case
    }
}

#[test]
fn killed_while_it_staged() {
    for kind in KINDS {
        for verb in [&["restore", "data", "--yes"][..], &["undo", "data", "--yes"], &["cleanup", "--yes"]] {
            let (case, mut journal) = Case::restored(kind);
            case.world.ok(&["cleanup", "--yes"]);
            case.put("new");
            match kind {
                Kind::Files => {
                    std::fs::create_dir(case.staged(&journal)).unwrap();
                    std::fs::write(case.staged(&journal).join("f"), "half").unwrap();
                }
                _ => std::fs::write(case.staged(&journal), "half").unwrap(),
            }
            journal["phase"] = json!("staging");
            journal["staged"] = Value::Null;
            journal["switched"] = Value::Null;
            case.write_journal(&journal);
            // Captures go on, and leave what is not theirs.
            let run = case.world.run_at(LATER, &["run"]);
            assert_eq!(run.code, 0, "{kind:?}: {run:#?}");
            let before = case.get();
            let ran = case.world.run_at(LATER, verb);
            let expected = if verb[0] == "undo" { 4 } else { 0 };
            assert_eq!(ran.code, expected, "{kind:?} {verb:?}: {ran:#?}");
            assert!(!ran.err.contains("warning"), "{kind:?} {verb:?}: {ran:#?}");
            assert_eq!(case.get(), before, "{kind:?} {verb:?}");
            let cleaned = case.world.run_at(LATER, &["cleanup", "--yes"]);
            assert_eq!(cleaned.code, 0, "{kind:?} {verb:?}: {cleaned:#?}");
            assert_eq!(case.beside(), [""; 0], "{kind:?} {verb:?}");
            assert!(case.journals().is_empty(), "{kind:?} {verb:?}");
        }
    }
}

#[test]
fn killed_while_it_went_live() {
    for kind in KINDS {
        for verb in ["restore", "undo", "cleanup"] {
            let case = Case::half_switched(kind);
            let run = case.world.run_at(LATER, &["run"]);
            run.fails(1, "interrupted while it went live");
            let ran = match verb {
                "cleanup" => case.world.run_at(LATER, &["cleanup", "--yes"]),
                verb => case.world.run_at(LATER, &[verb, "data", "--yes"]),
            };
            assert_eq!(ran.code, 0, "{kind:?} {verb}: {ran:#?}");
            assert_eq!(case.get(), if verb == "undo" { "new" } else { "old" }, "{kind:?} {verb}");
            assert!(case.beside().iter().all(|n| n.starts_with("data.backup.")), "{kind:?} {verb}");
            if verb == "cleanup" {
                // What was live before that restore is not lost: nobody was shown that it would be.
                let undone = case.world.run_at(LATER, &["undo", "data", "--yes"]);
                assert_eq!(undone.code, 0, "{kind:?}: {undone:#?}");
                assert_eq!(case.get(), "new", "{kind:?}");
            }
            case.world.run_at(LATER, &["cleanup", "--yes"]);
            assert_eq!(case.beside(), [""; 0], "{kind:?} {verb}");
            assert_eq!(case.world.run_at(LATER, &["run"]).code, 0, "{kind:?} {verb}");
        }
    }
}

#[test]
fn killed_after_it_was_undone() {
    for kind in KINDS {
        for verb in ["restore", "undo", "cleanup"] {
            let (case, before) = Case::restored(kind);
            case.world.ok(&["undo", "data", "--yes"]);
            assert_eq!(case.get(), "new", "{kind:?}");
            // As a kill before the last note leaves it.
            let path = case.journals().pop().unwrap();
            let mut journal: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            journal["phase"] = json!("undoing");
            journal["switched"] = before["switched"].clone();
            case.write_journal(&journal);
            case.world.run_at(LATER, &["run"]).fails(1, "interrupted while it went live");
            let ran = match verb {
                "cleanup" => case.world.run_at(LATER, &["cleanup", "--yes"]),
                verb => case.world.run_at(LATER, &[verb, "data", "--yes"]),
            };
            assert_eq!(ran.code, 0, "{kind:?} {verb}: {ran:#?}");
            assert_eq!(case.get(), if verb == "restore" { "old" } else { "new" }, "{kind:?} {verb}");
            case.world.run_at(LATER, &["cleanup", "--yes"]);
            assert_eq!(case.beside(), [""; 0], "{kind:?} {verb}");
        }
    }
}

#[test]
fn an_interrupted_undo_takes_no_older_restore_with_it() {
    let (case, _) = Case::restored(Kind::Files);
    case.put("newer");
    case.world.run_at(LATER, &["restore", "data", "--yes"]);
    let all = || -> Vec<Value> {
        let read = |path: &PathBuf| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        case.journals().iter().map(read).collect()
    };
    let second = |j: &Value| j["started_at"].as_str().unwrap().starts_with("2026-03-09T05");
    let before = all().into_iter().find(second).unwrap();
    case.world.run_at(LATER, &["undo", "data", "--yes"]);
    assert_eq!(case.get(), "newer");
    let mut journal = all().into_iter().find(second).unwrap();
    journal["phase"] = json!("undoing");
    journal["switched"] = before["switched"].clone();
    case.write_journal(&journal);
    let ran = case.world.run_at("2026-03-09T06:00:00Z", &["undo", "data", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(case.get(), "newer");
    assert!(all().iter().any(|j| j["phase"] == "switched"), "the older one is undone only when asked for");
}

/// A killed restore whose staged data is gone cannot be finished: it must not block the service for ever.
#[test]
fn what_cannot_be_finished_is_given_up() {
    for kind in KINDS {
        let (case, mut journal) = Case::restored(kind);
        case.world.ok(&["undo", "data", "--yes"]);
        std::fs::remove_file(case.journals().pop().unwrap()).unwrap();
        match kind {
            Kind::Files => std::fs::remove_dir_all(case.kept()).unwrap(),
            _ => std::fs::remove_file(case.kept()).unwrap(),
        }
        journal["phase"] = json!("switching");
        journal["switched"] = Value::Null;
        case.write_journal(&journal);
        let ran = case.world.run_at(LATER, &["cleanup", "--yes"]);
        assert_eq!(ran.code, 0, "{kind:?}: {ran:#?}");
        assert!(ran.err.contains("gave up the interrupted restore"), "{kind:?}: {ran:#?}");
        assert_eq!(case.get(), "new", "{kind:?}");
        assert_eq!(case.world.run_at(LATER, &["run"]).code, 0, "{kind:?}");
    }
}

/// A stage that fails leaves nothing beside the target and nothing to clean up.
#[test]
fn a_failed_stage_leaves_nothing() {
    for kind in KINDS {
        let (case, _) = Case::restored(kind);
        case.world.ok(&["cleanup", "--yes"]);
        case.put("new");
        let stored =
            tree(&case.world.path("store")).into_iter().find(|(p, _)| p.ends_with(".zst")).unwrap().0;
        case.world.damage(&case.world.path("store").join(stored));
        let ran = case.world.run_at(LATER, &["restore", "data", "--yes"]);
        assert_eq!(ran.code, 1, "{kind:?}: {ran:#?}");
        assert!(!ran.err.contains("warning"), "{kind:?}: {ran:#?}");
        assert_eq!(case.get(), "new", "{kind:?}");
        assert_eq!(case.beside(), [""; 0], "{kind:?}");
        assert!(case.world.ok(&["cleanup", "--yes"]).err.contains("nothing to remove"), "{kind:?}");
    }
}
