//! The emergency commit.

use super::*;

pub(super) fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=me", "-c", "user.email=me@here", "-c", "init.defaultBranch=main"]);
    let out = command.args(args).current_dir(dir).env("GIT_CONFIG_NOSYSTEM", "1").output().unwrap();
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

const BRANCH: &str = "spot/ip-10-0-0-1/20260309_043820";

/// A host whose code is in `app`, committed once and pushed to `remote.git`.
fn host() -> Host {
    let host = Host::new("repositories = ['app']\n");
    let (app, remote) = (host.world.path("app"), host.world.path("remote.git"));
    std::fs::create_dir_all(&app).unwrap();
    git(&host.world.path(""), &["init", "-q", "--bare", &remote.display().to_string()]);
    git(&app, &["init", "-q"]);
    git(&app, &["remote", "add", "origin", &remote.display().to_string()]);
    host.world.write("app/.gitignore", "ignored\n");
    for name in ["kept", "changed", "gone"] {
        host.world.write(&format!("app/{name}"), "old\n");
    }
    host.world.write("app/sub/.env", "A=old-secret\n");
    git(&app, &["add", "-A"]);
    git(&app, &["commit", "-qm", "first"]);
    git(&app, &["push", "-q", "-u", "origin", "main"]);
    host
}

fn flush(host: &Host) -> Ran {
    host.run(&["spot", "simulate", "--in-earnest", "--yes", "--notice", "60s", "--json"])
}

#[test]
fn the_state_of_a_work_tree_is_pushed_and_nothing_of_it_is_touched() {
    let host = host();
    let app = host.world.path("app");
    // A hook that stops everything.
    for hook in ["pre-commit", "commit-msg", "pre-push", "reference-transaction", "post-index-change"] {
        let path = app.join(".git/hooks").join(hook);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "#!/bin/sh\nexit 1\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    git(&app, &["config", "commit.gpgSign", "true"]);
    host.world.write("app/changed", "new\n");
    host.world.write("app/staged", "staged\n");
    git(&app, &["-c", "core.hooksPath=/dev/null", "add", "staged"]);
    host.world.write("app/staged", "and changed again\n");
    std::fs::remove_file(app.join("gone")).unwrap();
    host.world.write("app/untracked/file", "unknown\n");
    host.world.write("app/ignored", "never\n");
    host.world.write("app/sub/.env", "A=canary-new-secret\n");
    host.world.write("app/.env.local", "B=canary-other-secret\n");
    git(&app, &["init", "-q", "other"]);
    host.world.write("app/other/x", "of another repository\n");
    std::fs::File::create(app.join("huge")).unwrap().set_len(51 << 20).unwrap();
    let state = |app: &Path| {
        (
            git(app, &["status", "--porcelain"]),
            git(app, &["rev-parse", "HEAD"]),
            std::fs::read(app.join(".git/index")).unwrap(),
        )
    };
    let before = state(&app);

    let ran = flush(&host);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let said = step(&ran, "git")["said"].as_str().unwrap().to_owned();
    assert_eq!(
        said,
        format!(
            "app: pushed 4 changed files, without 1 that cannot be read or are larger than 50 MiB to origin as {BRANCH}"
        )
    );
    assert_eq!(state(&app), before, "what was being worked on is as it was");
    let left: Vec<_> =
        tree(&app.join(".git")).into_iter().filter(|(name, _)| name.contains("backup-spot")).collect();
    assert!(left.is_empty(), "{left:?}");

    let remote = host.world.path("remote.git");
    let names = git(&remote, &["ls-tree", "-r", "--name-only", BRANCH]);
    assert_eq!(
        names.lines().collect::<Vec<_>>(),
        [".gitignore", "changed", "kept", "staged", "untracked/file"]
    );
    assert_eq!(git(&remote, &["show", &format!("{BRANCH}:changed")]), "new\n");
    assert_eq!(git(&remote, &["show", &format!("{BRANCH}:staged")]), "and changed again\n");
    assert_eq!(git(&remote, &["rev-parse", &format!("{BRANCH}^")]).trim(), before.1.trim());
    let everything = git(&remote, &["log", "-p", "--all"]);
    assert!(everything.contains("old-secret") && !everything.contains("canary"), "what was public stays so");
}

/// A file that was written in the moment of the index, as long as before: only its content tells.
#[test]
fn a_change_in_the_very_moment_of_the_index_is_saved() {
    let host = host();
    let app = host.world.path("app");
    git(&app, &["config", "core.trustctime", "false"]);
    let (file, index) = (app.join("changed"), app.join(".git/index"));
    let moment = std::time::SystemTime::now() - Duration::from_secs(3600);
    let date =
        |path: &Path| std::fs::File::options().write(true).open(path).unwrap().set_modified(moment).unwrap();
    date(&file);
    git(&app, &["update-index", "--refresh"]);
    std::fs::write(&file, "new\n").unwrap();
    date(&file);
    date(&index);
    let ran = flush(&host);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(git(&host.world.path("remote.git"), &["show", &format!("{BRANCH}:changed")]), "new\n");
}

#[test]
fn backups_and_state_inside_a_work_tree_are_never_part_of_it() {
    let host = Host::new("repositories = ['.']\n");
    let here = host.world.path("");
    let remote = here.parent().unwrap().join("remote.git");
    git(&here, &["init", "-q", "--bare", &remote.display().to_string()]);
    git(&here, &["init", "-q"]);
    git(&here, &["remote", "add", "origin", &remote.display().to_string()]);
    // Nothing was ever committed here, and the store's own note is gone.
    for store in ["store", "far"] {
        let _not_there = std::fs::remove_file(here.join(store).join(".gitignore"));
    }
    let ran = flush(&host);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let names = git(&remote, &["ls-tree", "-r", "--name-only", BRANCH]);
    assert_eq!(names.lines().collect::<Vec<_>>(), ["backup.toml", "data/a.txt", "data/sub/b.txt", "token"]);
}

#[test]
fn a_merge_that_nobody_finished_is_saved_as_it_is() {
    let host = host();
    let app = host.world.path("app");
    git(&app, &["checkout", "-qb", "side"]);
    host.world.write("app/changed", "side\n");
    git(&app, &["commit", "-qam", "side"]);
    git(&app, &["checkout", "-q", "main"]);
    host.world.write("app/changed", "main\n");
    git(&app, &["commit", "-qam", "main"]);
    let merge = Command::new("git").args(["merge", "-q", "side"]).current_dir(&app).output().unwrap();
    assert!(!merge.status.success(), "a conflict");
    let ran = flush(&host);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let saved = git(&host.world.path("remote.git"), &["show", &format!("{BRANCH}:changed")]);
    assert!(saved.contains("<<<<<<<") && saved.contains("side\n"), "{saved}");
    assert!(git(&app, &["status"]).contains("You have unmerged paths"), "and it goes on");
}

#[test]
fn commits_that_were_not_pushed_are_and_what_is_safe_is_not_pushed_again() {
    let host = host();
    let app = host.world.path("app");
    // It holds a dotenv file: without it, this is not the commit that was pushed.
    git(&app, &["rm", "-q", "--cached", "sub/.env"]);
    git(&app, &["commit", "-qm", "no secrets"]);
    std::fs::remove_file(app.join("sub/.env")).unwrap();
    let head = git(&app, &["rev-parse", "HEAD"]);
    let ran = flush(&host);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(git(&host.world.path("remote.git"), &["rev-parse", BRANCH]), head, "the very commit");
    git(&app, &["push", "-q", "origin", "main"]);
    let ran = host.run(&["spot", "simulate", "--json"]);
    assert!(step(&ran, "git")["said"].as_str().unwrap().contains("in origin already"), "{ran:#?}");
}

#[test]
fn a_push_that_fails_leaves_the_branch_and_stops_nothing_else() {
    let host = host();
    let app = host.world.path("app");
    let gone = format!("http://me:canary-password@{}/x.git", "127.0.0.1:1");
    git(&app, &["remote", "set-url", "origin", &gone]);
    host.world.write("app/changed", "new\n");
    let ran = flush(&host);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(!format!("{ran:?}").contains("canary"), "{ran:#?}");
    let error = step(&ran, "git")["error"].as_str().unwrap().to_owned();
    assert!(error.contains(BRANCH) && error.contains("not pushed"), "{error}");
    assert_eq!(git(&app, &["show", &format!("{BRANCH}:changed")]), "new\n");
    assert_eq!(step(&ran, "env")["outcome"], "ok");
    assert!(host.titles().last().unwrap().contains("1 of 5 steps failed"), "{:?}", host.titles());
}

#[test]
fn a_rehearsal_pushes_nothing() {
    let host = host();
    host.world.write("app/changed", "new\n");
    let ran = host.run(&["spot", "simulate", "--json"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(
        step(&ran, "git")["said"].as_str().unwrap().starts_with("app: would push 1 changed file "),
        "{ran:#?}"
    );
    for dir in ["app", "remote.git"] {
        assert_eq!(git(&host.world.path(dir), &["for-each-ref", "refs/heads/spot"]), "", "{dir}");
    }
}

/// Root saves what belongs to somebody else: what it leaves there must be theirs, or they could not go on.
#[test]
#[ignore = "needs root, and the user `nobody`"]
fn another_users_work_tree_stays_that_users() {
    let host = host();
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let (app, remote) = (host.world.path("app"), host.world.path("remote.git"));
    let mut above = app.parent().unwrap();
    while above != std::env::temp_dir() {
        std::fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        above = above.parent().unwrap();
    }
    host.world.write("app/changed", "new\n");
    host.world.write("app/of-root", "private\n");
    let status = Command::new("chown").args(["-R", "nobody"]).args([&app, &remote]).status().unwrap();
    assert!(status.success());
    std::os::unix::fs::chown(app.join("of-root"), Some(0), None).unwrap();
    std::fs::set_permissions(app.join("of-root"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let ran = flush(&host);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(
        step(&ran, "git")["said"].as_str().unwrap().contains("without 1 that cannot be read"),
        "{ran:#?}"
    );
    let foreign = Command::new("find").args([&app, &remote]).args(["!", "-user", "nobody"]).output().unwrap();
    assert_eq!(String::from_utf8(foreign.stdout).unwrap().trim(), app.join("of-root").display().to_string());
}
