//! `restore` without a service, on a terminal: what a person is asked, and what comes of the answers.

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::support::{FIRST, World};

/// A terminal with the binary in it.
struct Terminal {
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl Terminal {
    fn new(world: &World, args: &str) -> Self {
        let binary = assert_cmd::cargo::cargo_bin!("backup");
        let mut command = world.command(&[]);
        let mut terminal = std::process::Command::new("script");
        terminal.args(["-qec", &format!("{} {args}", binary.display()), "/dev/null"]);
        terminal.env_clear().envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        terminal.env("PATH", std::env::var_os("PATH").unwrap()).env("TERM", "xterm");
        terminal.current_dir(command.current_dir(world.path("")).get_current_dir().unwrap());
        let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut out, seen) = (child.stdout.take().unwrap(), Arc::new(Mutex::new(String::new())));
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { child, seen }
    }

    fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    /// Waits for a question, and presses keys.
    #[track_caller]
    fn answer(&mut self, question: &str, keys: &str) {
        let since = Instant::now();
        while !self.seen().contains(question) {
            assert!(since.elapsed() < Duration::from_secs(30), "{question}: {}", self.seen());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    fn end(mut self) -> (bool, String) {
        let ended = self.child.wait().unwrap().success();
        (ended, self.seen())
    }
}

const DOWN: &str = "\x1b[B";
const ENTER: &str = "\r";

#[test]
fn a_person_chooses_service_backup_and_target_and_is_asked_once() {
    let world = World::configured();
    world.ok(&["run", "hourly"]);
    world.write("data/a.txt", "changed\n");
    world.run_at("2026-03-09T05:38:20Z", &["run", "hourly"]);
    let mut terminal = Terminal::new(&world, "restore");
    terminal.answer("Which service?", ENTER);
    // The older one.
    terminal.answer("Which backup?", &format!("{DOWN}{ENTER}"));
    terminal.answer("Where to?", ENTER);
    terminal.answer("Restore `data` now?", "y\r");
    let (ended, seen) = terminal.end();
    assert!(ended && seen.contains("newest good") && seen.contains(&format!("hourly/{FIRST}")), "{seen}");
    assert_eq!(world.read("data/a.txt"), "alpha\n");

    let mut terminal = Terminal::new(&world, "restore");
    terminal.answer("Which service?", ENTER);
    terminal.answer("Which backup?", ENTER);
    terminal.answer("Where to?", &format!("{DOWN}{ENTER}"));
    terminal.answer("Which directory?", "elsewhere\r");
    let (ended, seen) = terminal.end();
    assert!(ended && world.path("elsewhere").exists(), "{seen}");
    assert_eq!(world.read("data/a.txt"), "alpha\n", "nothing was replaced");
}

#[test]
fn who_thinks_better_of_it_changes_nothing() {
    let world = World::configured();
    world.ok(&["run", "hourly"]);
    world.write("data/a.txt", "changed\n");
    for answers in
        [vec![("Which service?", "\x1b")], vec![("Which service?", ENTER), ("Which backup?", "\x1b")]]
    {
        let mut terminal = Terminal::new(&world, "restore");
        for (question, keys) in answers {
            terminal.answer(question, keys);
        }
        let (ended, seen) = terminal.end();
        assert!(ended && seen.contains("nothing was changed"), "{seen}");
    }
    assert_eq!(world.read("data/a.txt"), "changed\n");
}

#[test]
fn without_a_terminal_the_service_has_to_be_named() {
    let world = World::configured();
    world.run(&["restore"]).fails(2, "which service?").hints("backup restore SERVICE");
    world.run(&["restore", "--to", "x"]).fails(2, "which service?");
}
