//! Full disks: the binary in a mount name space of its own, whose mounts end with it.

use std::process::Command;

use super::support::{CONFIG, Ran, World, ran};

/// Runs a script with `$B`, the binary, where mounts are allowed. Needs the right to make a name space.
fn script(world: &World, text: &str) -> Ran {
    let root = rustix::process::geteuid().is_root();
    let mut command = Command::new("unshare");
    command.args(if root { &["--mount"][..] } else { &["--map-root-user", "--mount"] });
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(["sh", "-euc", text]).env_clear().env("PATH", path).env("HOME", world.path(""));
    command.env("B", assert_cmd::cargo::cargo_bin!("backup")).current_dir(world.path(""));
    ran(&mut command)
}

/// Fills what is left of the disk at `disk`.
const FILL: &str = "head -c 32m /dev/zero >disk/filler 2>disk/../noise || true";

#[test]
fn a_store_on_a_full_disk_says_so_keeps_what_it_has_and_can_be_pruned() {
    let world = World::new();
    world.fill();
    std::fs::create_dir(world.path("disk")).unwrap();
    // The state directory is on the same disk.
    let config = CONFIG.replace("\"store\"", "\"disk/store\"").replace("\"state\"", "\"disk/state\"");
    world.write("backup.toml", &config.replace("keep = 2", "keep = 9"));
    world.write("later.toml", &config.replace("keep = 2", "keep = 1"));
    let text = format!(
        "mount -t tmpfs -o size=16m none disk; $B init; $B run; $B run; $B run
         {FILL}; head -c 200k /dev/urandom >data/c
         if $B run; then exit 50; fi
         [ $($B list --json | grep -c '\"state\":\"good\"') = 3 ] || exit 51
         $B verify --all --level stored || exit 52
         $B --config later.toml prune --yes || exit 53
         [ $($B list --json | grep -c '\"state\":\"good\"') = 1 ] || exit 54
         rm disk/filler; $B run; $B verify --level content"
    );
    let ran = script(&world, &text);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.err.contains("no space left"), "{ran:#?}");
}

#[test]
fn a_restore_into_a_disk_that_fills_up_fails_clearly_and_leaves_nothing() {
    let world = World::configured();
    // Many small files need more room than their bytes tell.
    for n in 0..200 {
        world.write(&format!("data/{n}"), "x");
    }
    world.ok(&["run"]);
    world.write("data/a.txt", "changed");
    std::fs::create_dir(world.path("disk")).unwrap();
    // First there is room for the bytes alone, which is known before; then for the bytes, but not for the names.
    let text = "
        mount -t tmpfs -o size=400k none disk
        if $B restore data --to disk/out 2>refused; then exit 50; fi
        [ -z \"$(ls -A disk)\" ] || exit 51
        umount disk; mount -t tmpfs -o size=4m,nr_inodes=50 none disk
        if $B restore data --to disk/new/out 2>full; then exit 52; fi
        [ -z \"$(ls -A disk)\" ] || exit 53
        mkdir disk/out
        if $B restore data --to disk/out; then exit 54; fi
        [ -d disk/out ] || exit 55
        $B cleanup --yes";
    let ran = script(&world, text);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(world.read("refused").contains("not enough room"), "{}", world.read("refused"));
    assert!(world.read("full").contains("No space left on device"), "{}", world.read("full"));
    assert!(ran.err.contains("nothing to remove"), "{ran:#?}");
    assert_eq!(world.read("data/a.txt"), "changed");
}

#[test]
fn init_on_a_full_disk_leaves_nothing_and_can_be_repeated() {
    let world = World::new();
    for dir in ["disk", "beside"] {
        std::fs::create_dir(world.path(dir)).unwrap();
    }
    let text = format!(
        "mount -t tmpfs -o size=1m none disk; mkdir disk/.git disk/here; echo alpha >disk/here/a.txt
         {FILL}
         cd disk/here; if $B init; then exit 50; fi
         [ \"$(ls -A)\" = a.txt ] || exit 51
         cd ../../beside; if $B init --store ../disk/store; then exit 52; fi
         [ -z \"$(find ../disk/store -type f)\" ] || exit 53
         mv ../disk/.git ../disk/git; if $B init; then exit 54; fi; mv ../disk/git ../disk/.git
         [ -z \"$(find ../disk/store -type f)\" ] || exit 55
         rm ../disk/filler
         $B init; [ \"$(cat ../disk/store/.gitignore)\" = '*' ] || exit 56
         cd ../disk/here; $B init; $B run daily; $B verify"
    );
    let ran = script(&world, &text);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let errors: Vec<&str> = ran.err.lines().filter(|l| l.starts_with("error: ")).collect();
    assert!(errors.len() == 3 && errors.iter().all(|e| e.contains("o space left")), "{ran:#?}");
}
