//! The same for restores: the server runs with the old data or the new, and what was begun can be given up.

use super::Host;
use crate::killed::{DEADLINE, End, PATIENCE, text, until};

/// One kill: the server holds what it held, or what the backup holds, before and after the restore is given up.
fn round(host: &Host, phase: &str, end: End) {
    let what = format!("restore, {end:?} in `{phase}`");
    text(&host.cypher("MERGE (:Later)"));
    let run = host.folder.start_to(phase, &["restore", "neo4j", "--interval", "base", "--yes"]);
    if phase.starts_with("starting a second server") {
        until("the second server", PATIENCE, || host.over().len() == 2);
    }
    run.kill(end);
    until(&what, DEADLINE, || host.folder.is_over() && host.runs());
    let sound = || ["1000", "1001"].contains(&host.count().as_str());
    until(&what, PATIENCE, sound);
    // What was half live is finished or taken back first; what it kept aside goes with the second.
    host.folder.ok(&["cleanup", "--yes"]);
    until(&what, PATIENCE, sound);
    host.folder.ok(&["run", "often"]);
    host.folder.ok(&["cleanup", "--yes"]);
    assert!(host.runs(), "{what}");
    host.assert_tidy(&what);
}

#[test]
#[ignore = "needs Docker and root"]
fn restores_of_neo4j_killed_in_each_phase() {
    let host = Host::new("restores");
    host.configure("clone");
    host.folder.ok(&["run", "base"]);
    for (phase, end) in [
        ("unpacking the files", End::Group),
        ("starting a second server over the restored data", End::Group),
        ("stopping the server", End::Process),
        ("replacing its data", End::Group),
        ("starting the server", End::Process),
        ("waiting for the server to open its data", End::Group),
    ] {
        round(&host, phase, end);
    }
    text(&host.cypher("MERGE (:Later)"));
    host.folder.ok(&["restore", "neo4j", "--interval", "base", "--yes"]);
    assert_eq!(host.count(), "1000");
}
