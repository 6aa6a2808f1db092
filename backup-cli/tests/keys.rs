//! Encryption, as whoever has the keys and whoever has not sees it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use super::support::{FIRST, Ran, TWO, World, find, ran, tree};

const SECRET: &str = "hunter2-canary";

/// [`TWO`] for a key in `key`, backed up; the configuration does not say where the key is.
fn encrypted() -> (World, String) {
    encrypted_with(|_| ())
}

/// The same, with more data.
fn encrypted_with(more: impl FnOnce(&World)) -> (World, String) {
    let world = World::new();
    let public = world.ok(&["keys", "new", "key"]).out.trim().to_owned();
    configure(&world, &format!("encryption.recipients = ['{public}']\n"));
    world.write(".env", &format!("PASSWORD={SECRET}\n"));
    world.fill();
    more(&world);
    world.ok(&["init"]);
    world.ok(&["run", "hourly"]);
    (world, public)
}

fn configure(world: &World, encryption: &str) {
    world.write("backup.toml", &format!("{encryption}{TWO}"));
}

fn with_key(public: &str) -> String {
    with_identity(public, "{ file = 'key' }")
}

fn with_identity(public: &str, identity: &str) -> String {
    format!("encryption = {{ recipients = ['{public}'], identity = {identity} }}\n")
}

/// What anybody who reads the store, the state directory or the screen could find.
fn canary_is_nowhere(world: &World, ran: &[&Ran]) {
    let secret_key = world.read("key").lines().last().unwrap().to_owned();
    for dir in ["store", "state"] {
        for (path, bytes) in tree(&world.path(dir)) {
            let text = String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
            for canary in [SECRET, secret_key.as_str()] {
                assert!(!text.contains(canary), "{dir}/{path} has {canary}");
            }
        }
    }
    for ran in ran {
        for canary in [SECRET, secret_key.as_str()] {
            assert!(!ran.out.contains(canary) && !ran.err.contains(canary), "{ran:#?}");
        }
    }
}

fn shell(dir: &Path, script: &str) -> std::process::Output {
    Command::new("bash").args(["-ec", script]).current_dir(dir).output().unwrap()
}

#[test]
fn a_key_is_made_for_its_owner_alone_and_never_overwritten() {
    let world = World::new();
    let made = world.ok(&["keys", "new", "key"]);
    let public = made.out.trim();
    assert!(public.starts_with("age1") && !made.err.contains("AGE-SECRET"), "{made:#?}");
    assert!(world.read("key").contains(&format!("# public key: {public}\nAGE-SECRET-KEY-1")));
    assert_eq!(std::fs::metadata(world.path("key")).unwrap().permissions().mode() & 0o777, 0o600);
    let before = world.read("key");
    world.run(&["keys", "new", "key"]).fails(1, "`key`").hints("never overwritten");
    assert_eq!(world.read("key"), before);
    // What it says to write is a configuration.
    let says: String = made.err.lines().map(|l| format!("{}\n", l.trim())).collect();
    let says = says.split_once("[encryption]").unwrap().1;
    world.write("backup.toml", &format!("{TWO}[encryption]{says}"));
    world.ok(&["init"]);
}

#[test]
fn backups_are_made_without_the_secret_key_and_restored_with_it() {
    let (world, public) = encrypted();
    let missing = world.run(&["restore", "env", "--to", "out"]);
    missing
        .fails(1, &format!("env/hourly/{FIRST} is encrypted for {public}: no key is configured"))
        .hints("--identity");
    assert!(!world.path("out").exists());
    let stored = world.ok(&["verify", "--level", "stored"]);
    let content = world.run(&["verify", "env", "--level", "content"]);
    assert_eq!(content.code, 1, "{content:#?}");
    assert_eq!(world.good().len(), 3, "a missing key is no damage");

    let other = world.ok(&["keys", "new", "other"]);
    let wrong = world.run(&["restore", "env", "--to", "out", "--identity", "other"]);
    wrong.fails(1, "the key at hand does not open it");
    world.run(&["restore", "env", "--to", "out", "--identity", "none"]).fails(1, "none");
    let restored = world.ok(&["restore", "env", "--to", "out", "--identity", "key"]);
    assert_eq!(
        std::fs::read_to_string(find(&world.path("out"), ".env")).unwrap(),
        format!("PASSWORD={SECRET}\n")
    );
    let proven = world.ok(&["verify", "--level", "restore", "--identity", "key"]);

    let shown = world.ok(&["show", "data"]);
    assert!(shown.out.contains(&format!("encrypted for {public}")), "{shown:#?}");
    assert!(
        shown.out.contains("holds         bytes 11, directories 5, files 2"),
        "the host knows its own counts: {shown:#?}"
    );
    canary_is_nowhere(&world, &[&stored, &content, &other, &wrong, &restored, &proven, &shown]);
}

/// Unchanged content is seen to be unchanged by a host that cannot read its own backups, and stored anew for new keys.
#[test]
fn an_unchanged_service_makes_no_new_backup_until_the_keys_change() {
    let (world, _) = encrypted();
    world.ok(&["run", "hourly", "--service", "env"]);
    assert_eq!(world.good().iter().filter(|id| id.starts_with("env")).count(), 1);
    let new = world.ok(&["keys", "new", "new"]).out.trim().to_owned();
    world.ok(&["keys", "rotate", "--to", &new, "--yes"]);
    assert!(world.read("backup.toml").contains(&new));
    world.ok(&["run", "hourly", "--service", "env"]);
    assert_eq!(world.good().iter().filter(|id| id.starts_with("env")).count(), 2);
    world.ok(&["restore", "env", "--to", "out", "--identity", "new"]);
}

/// Promise 3: sha256sum, age, zstd and tar are enough.
#[test]
fn it_is_restored_by_hand() {
    let (world, _) = encrypted();
    let dir = world.path(&format!("store/env/hourly/{FIRST}"));
    let text = std::fs::read_to_string(dir.join("RESTORE.md")).unwrap();
    let commands: Vec<&str> = text.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    let script = format!(
        "sha256sum -c SHA256SUMS\nage -d -i {key} env_{FIRST}.tar.zst.age | zstd -dcq | tar -tf -\n\
         age -d -i {key} private.json.age",
        key = world.path("key").display(),
    );
    let done = shell(&dir, &script);
    let out = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && out.contains(".env") && out.contains("plain_blake3"), "{out}");
    assert!(
        text.contains("IDENTITY=") && commands.iter().any(|c| c.contains("age -d -i \"$IDENTITY\"")),
        "{text}"
    );
}

#[test]
fn keys_check_tells_which_services_today_s_key_opens() {
    let (world, public) = encrypted();
    let missing = world.run(&["keys", "check"]);
    missing.fails(1, "no key is configured");
    assert_eq!(missing.out.matches("missing").count(), 3, "{missing:#?}");
    configure(&world, &with_key(&public));
    let all = world.ok(&["keys", "check"]);
    assert_eq!(all.out.matches("opens it").count(), 3, "{all:#?}");

    // One for another key, one damaged behind its private part, and one in clear.
    let other = world.ok(&["keys", "new", "other"]).out.trim().to_owned();
    world.write("backup.toml", &format!("{}{TWO}encrypt = '{other}'\n", with_key(&public)));
    world.ok(&["run", "hourly", "--service", "env"]);
    let some = world.run(&["keys", "check", "--json"]);
    assert_eq!(some.code, 3, "{some:#?}");
    let checks = some.lines();
    let env = checks.iter().find(|l| l["service"] == "env").unwrap();
    assert_eq!((&env["opens"], &env["recipients"][0]), (&false.into(), &other.into()), "{env}");
    assert_eq!(some.summary()["opened"], 2);
    let file = find(&world.path("store"), &format!("data_{FIRST}.tar.zst.age"));
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let damaged = world.run(&["keys", "check"]);
    assert!(damaged.err.contains(&format!("`data_{FIRST}.tar.zst.age` is damaged")), "{damaged:#?}");

    world.write("backup.toml", TWO);
    let before = world.run(&["keys", "check"]);
    assert!(before.err.contains("is not yet for the keys that the configuration names"), "{before:#?}");
}

/// A variable or a program gives the key as well as a file, and neither shows it.
#[test]
fn the_key_may_come_from_a_variable_or_a_program() {
    let (world, public) = encrypted();
    let text = world.read("key");
    let secret = text.lines().last().unwrap();
    let with = |variable: &str, args: &[&str]| ran(world.command(args).env("THE_KEY", variable));
    let opened = |variable: &str, to: &str| {
        let checked = with(variable, &["keys", "check"]);
        assert_eq!((checked.code, checked.out.matches("opens it").count()), (0, 3), "{checked:#?}");
        let restored = with(variable, &["restore", "env", "--to", to]);
        assert_eq!(restored.code, 0, "{restored:#?}");
        let found = std::fs::read_to_string(find(&world.path(to), ".env")).unwrap();
        assert_eq!(found, format!("PASSWORD={SECRET}\n"));
        canary_is_nowhere(&world, &[&checked, &restored]);
    };
    let closed = |variable: &str, why: &str| {
        let refused = with(variable, &["restore", "env", "--to", "nothing"]);
        assert!(refused.code != 0 && refused.err.contains(why), "{why}: {refused:#?}");
        assert!(!world.path("nothing").exists());
        canary_is_nowhere(&world, &[&refused]);
    };
    world.ok(&["keys", "new", "other"]);
    let other = world.read("other");

    configure(&world, &with_identity(&public, "{ env = 'THE_KEY' }"));
    opened(secret, "by-variable");
    opened(&text, "by-whole-file");
    closed(&other, "does not open it");
    let unset = world.run(&["restore", "env", "--to", "nothing"]);
    assert!(unset.code != 0 && unset.err.contains("THE_KEY"), "{unset:#?}");

    let program = world.path("program").display().to_string();
    configure(&world, &with_identity(&public, &format!("{{ command = ['/bin/sh', '{program}'] }}")));
    world.write("program", &format!("echo '{secret}'\n"));
    opened("", "by-program");
    world.write("program", &format!("echo '{}'\n", other.lines().last().unwrap()));
    closed("", "does not open it");
    world.write("program", "exit 7\n");
    closed("", "/bin/sh");
}

#[test]
fn a_rotation_keeps_the_old_key_and_leaves_everything_as_it_was_if_it_cannot() {
    let (world, public) = encrypted();
    let (config, key) = (world.read("backup.toml"), world.read("key"));
    // The secret key is not here: only the public one can be changed.
    world.run(&["keys", "rotate", "--yes"]).fails(1, "no identity file").hints("--to");
    world.run(&["keys", "rotate", "--to", "age1nonsense", "--yes"]).fails(2, "age1nonsense");
    world.run(&["keys", "rotate", "--from", "age1nothere", "--to", &public, "--yes"]).fails(2, "age1nothere");
    assert_eq!((world.read("backup.toml"), world.read("key")), (config, key.clone()));

    configure(&world, &with_key(&public));
    std::fs::set_permissions(world.path("backup.toml"), std::fs::Permissions::from_mode(0o640)).unwrap();
    world.run(&["keys", "rotate"]).fails(2, "confirmation");
    let rotated = world.ok(&["keys", "rotate", "--yes"]);
    let new = rotated.out.trim();
    assert_eq!(world.read("backup.toml"), format!("{}{TWO}", with_key(new)));
    assert!(world.read("key").starts_with(&key) && world.read("key").contains(new));
    for (file, mode) in [("key", 0o600), ("backup.toml", 0o640)] {
        assert_eq!(std::fs::metadata(world.path(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
    }
    world.ok(&["run", "hourly"]);
    world.ok(&["verify", "--all", "--level", "content"]);
    world.ok(&["keys", "check"]);
    canary_is_nowhere(&world, &[&rotated]);
}

/// All but its end decrypts: what came before proves nothing, and none of it may stay.
#[test]
fn a_file_whose_last_byte_is_another_one_is_not_restored_and_leaves_nothing() {
    const CANARY: &str = "plain-canary";
    let outside = |world: &World| {
        let mut all = tree(&world.path(".."));
        all.retain(|(path, _)| !path.starts_with("work/store/") && !path.starts_with("work/state/"));
        all
    };
    // Several chunks of age, of which the first holds the canary.
    let much = |world: &World| {
        world.write("data/a.txt", &format!("{CANARY}\n"));
        let noise = (0..100_000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        world.write("data/z.txt", &noise.collect::<String>());
    };
    for target in [&["--to", "out"][..], &["--yes"]] {
        let (world, _) = encrypted_with(much);
        let file = find(&world.path("store"), &format!("data_{FIRST}.tar.zst.age"));
        let mut bytes = std::fs::read(&file).unwrap();
        assert!(bytes.len() > 3 * 65536, "{} bytes", bytes.len());
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        world.write("data/a.txt", "what is there now\n");
        let before = outside(&world);
        let restore = [&["restore", "data", "--identity", "key"], target].concat();
        let failed = world.run(&restore);
        assert!(failed.code != 0 && failed.err.contains("damaged"), "{failed:#?}");
        assert!(outside(&world) == before, "{target:?}: {failed:#?}");
        for dir in ["store", "state"] {
            for (path, bytes) in tree(&world.path(dir)) {
                let text = String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
                assert!(!text.contains(CANARY), "{dir}/{path}");
            }
        }
        // The same file as it was: nothing but that byte was in the way.
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        world.ok(&["verify", "data", "--all", "--level", "stored"]);
        world.ok(&restore);
        let root = if target[0] == "--to" { world.path("out") } else { world.path("data") };
        assert_eq!(std::fs::read_to_string(find(&root, "a.txt")).unwrap(), format!("{CANARY}\n"));
    }
}

/// The store alone, and the key that somebody kept elsewhere.
#[test]
fn an_empty_machine_is_brought_back_with_the_key() {
    let (world, _) = encrypted();
    let config = world.read("backup.toml");
    for path in ["data", "state"] {
        std::fs::remove_dir_all(world.path(path)).unwrap();
    }
    for path in [".env", "backup.toml"] {
        std::fs::remove_file(world.path(path)).unwrap();
    }
    world.run(&["bootstrap", "store", "--yes"]).fails(1, "is encrypted for age1").hints("--identity");
    assert!(!world.path("backup.toml").exists());
    let done = world.ok(&["bootstrap", "store", "--yes", "--identity", "key"]);
    assert!(done.err.contains("recover --identity"), "{done:#?}");
    assert_eq!(world.read("backup.toml"), config);
    let plan = world.run(&["recover", "--dry-run"]);
    assert!(plan.out.contains("no key is configured"), "{plan:#?}");
    world.ok(&["recover", "--yes", "--identity", "key"]);
    assert_eq!(world.read(".env"), format!("PASSWORD={SECRET}\n"));
    assert_eq!(world.read("data/sub/b.txt"), "beta\n");
}

/// The key of somebody else: told of each service in one line before anything is asked, and nothing is touched, also of what
/// was to be overwritten.
#[test]
fn a_recovery_with_a_wrong_key_says_so_and_touches_nothing() {
    let (world, public) = encrypted();
    world.ok(&["keys", "new", "other"]);
    std::fs::remove_file(world.path(".env")).unwrap();
    world.write("data/a.txt", "newer\n");
    let outside = || {
        let mut all = tree(&world.path(""));
        // A run leaves its report, and its folder for plans.
        all.retain(|(path, _)| !path.starts_with("store/.") && !path.starts_with("state"));
        all
    };
    let before = outside();
    let why = "the key at hand does not open it";
    for recover in [&["recover", "--yes"][..], &["recover", "--yes", "--overwrite", "data"]] {
        let ran = world.run(&[recover, &["--identity", "other"]].concat());
        assert_eq!(ran.code, 1, "{ran:#?}");
        let errors: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.iter().all(|line| line.contains(why)), "{ran:#?}");
        let of = |line: &&str| line.split(": ").nth(1).unwrap_or_default().to_owned();
        // What holds data is left alone before anybody wants to open its backup.
        let wanted = if recover.len() == 2 { &["env"][..] } else { &["env", "data"] };
        assert_eq!(errors.iter().map(of).collect::<Vec<_>>(), wanted, "one line for each: {ran:#?}");
        assert!(!ran.err.contains("backup undo"), "nothing was replaced: {ran:#?}");
        assert_eq!(outside(), before, "{ran:#?}");
        assert!(!world.path("state/restores/env").exists() && !world.path("state/restores/data").exists());
        canary_is_nowhere(&world, &[&ran]);
    }
    assert_eq!(world.good().len(), 3, "a wrong key is no damage");
    // With its own, it goes on as if nothing had been.
    configure(&world, &with_key(&public));
    world.ok(&["recover", "--yes"]);
    assert_eq!(world.read(".env"), format!("PASSWORD={SECRET}\n"));
    assert_eq!(world.read("data/a.txt"), "newer\n");
}

/// Whoever encrypts has no secret key in the watchdog's or anybody's arguments: the file's name is all that is passed.
#[test]
fn a_drill_reads_encrypted_backups_with_the_key_and_fails_loudly_without() {
    let (world, _) = encrypted();
    let without = world.run(&["drill"]);
    assert!(
        without.code == 1 && without.out.contains("FAILED") || without.err.contains("no key"),
        "{without:#?}"
    );
    let with = world.ok(&["drill", "--identity", "key"]);
    canary_is_nowhere(&world, &[&without, &with]);
}
