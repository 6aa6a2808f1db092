//! The help texts.

use super::support::World;

#[test]
fn the_short_help_fits_a_screen() {
    let help = World::new().ok(&["-h"]);
    assert!(help.err.is_empty());
    insta::assert_snapshot!(help.out, @r#"
    Back up, verify and recover the stateful services of a host

    Usage: backup [OPTIONS] <COMMAND>

    Commands:
      init         Write a configuration, unless there is one, and mark its stores
      run          Back up now
      list         List the backups in the store
      show         Show everything that is known of a backup
      status       Show whether every service is safe, and what to do if one is not
      verify       Prove that backups are what they were
      restore      Restore a service, over what is there or elsewhere
      bootstrap    Prepare an empty machine for `backup recover`, from nothing but the store
      recover      Bring every service of this host back
      drill        Rehearse the recovery of this host, into scratch
      undo         Put back what the newest restore of a service had replaced
      resume       Start services again that a killed run has left stopped, paused or fenced
      copy         Copy good backups to other stores
      spot         Save what can be saved when this spot instance is taken away
      prune        Delete what the retention of the intervals no longer keeps
      cleanup      Remove what restores kept aside, and what interrupted ones left
      hold         Keep a backup, whatever retention says
      unhold       Let retention judge a held backup again
      accept       Take a suspect backup as good
      thaw         Bring a backup back from an archive of the object storage
      ebs          Snapshots of the EBS volumes of an EC2 instance
      keys         Make, check and change the keys of encrypted backups
      logs         List the runs, or show the report of one
      adapters     List what this program can back up, and how far each is proven
      completions  Print the completions of a shell
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    Everywhere:
          --config <FILE>    Read this configuration instead of searching one ($BACKUP_CONFIG)
          --store <NAME>     Work on this store of [stores] instead of [store], whose name is primary
          --json             Print JSON lines; the last one is {"event":"summary",…}
      -q, --quiet            Say nothing but warnings and errors beside the result
      -v, --verbose...       Print the log to standard error; twice: all of it
          --color <WHEN>     Use colours: auto (which honours NO_COLOR), always or never
      -y, --yes              Answer every question with yes
          --identity <FILE>  Open encrypted backups with the key in this file, too
          --wait <TIME>      Wait this long (5min) for another process at work on the same service

    Exit codes:
        0  done
        1  failed
        2  wrong usage or configuration; nothing was begun
        3  some services failed, the others are safe
        4  nothing selected
        5  verification found damage
      130  interrupted
    "#);
}

#[test]
fn the_help_of_a_verb() {
    let help = World::new().ok(&["restore", "-h"]);
    insta::assert_snapshot!(help.out, @r#"
    Restore a service, over what is there or elsewhere

    Usage: backup restore [OPTIONS] [SERVICE]

    Arguments:
      [SERVICE]  The service; who leaves it out on a terminal is asked

    Options:
          --at <WHEN>            Take the newest good one of that moment or before (20260309_043820,
                                 "2026-03-09 04:38", 2026-03-09, RFC 3339; UTC), or exactly
                                 SERVICE/INTERVAL/TIMESTAMP
      -i, --interval <INTERVAL>  Only from this interval
          --only <ARTIFACT>      Only this part of the backup, as `backup show` names it, e.g. one
                                 database; may be repeated
          --to <DIR>             Restore into this directory instead; created if missing, must be empty
          --force                Go on in spite of doubts: a target in use, a backup that is suspect or
                                 damaged
      -n, --dry-run              Show the plan and stop
      -h, --help                 Print help (see more with '--help')

    Everywhere:
          --config <FILE>    Read this configuration instead of searching one ($BACKUP_CONFIG)
          --store <NAME>     Work on this store of [stores] instead of [store], whose name is primary
          --json             Print JSON lines; the last one is {"event":"summary",…}
      -q, --quiet            Say nothing but warnings and errors beside the result
      -v, --verbose...       Print the log to standard error; twice: all of it
          --color <WHEN>     Use colours: auto (which honours NO_COLOR), always or never
      -y, --yes              Answer every question with yes
          --identity <FILE>  Open encrypted backups with the key in this file, too
          --wait <TIME>      Wait this long (5min) for another process at work on the same service

    Examples:
      backup restore                                  asks: which service, which backup, where to
      backup restore redis --dry-run                  what it would do; changes nothing
      backup restore redis                            over the live service, after a question
      backup restore files --to ./out                 into a new directory
      backup restore postgres --only app              one of its databases; the others stay as they are
      backup restore redis --at "2026-03-09 04:00"    as it was then

    Exit codes: 0 restored · 1 failed, the old data is live · 2 it needs --yes, or wrong usage
    "#);
}

#[test]
fn the_version_is_one_line() {
    let version = World::new().ok(&["--version"]);
    assert_eq!(version.out, format!("backup {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(World::new().ok(&["completions", shell]).out.contains("verify"), "{shell}");
    }
}

#[test]
fn the_adapters_say_how_far_they_are_proven() {
    let adapters = World::new().ok(&["adapters"]);
    for kind in ["files", "env", "sqlite"] {
        assert!(adapters.out.lines().any(|l| l.starts_with(kind)), "{adapters:#?}");
    }
    assert!(adapters.out.contains("PROVEN") && adapters.out.contains("file://"), "{adapters:#?}");
}
