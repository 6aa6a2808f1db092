//! Black-box tests of the `backup` binary: one binary, a module for each topic.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod azure;
mod bootstrap;
mod clocks;
mod config;
mod containers;
mod copy;
mod copy_kills;
mod credentials;
#[path = "../../backup-adapters/tests/common/disk.rs"]
#[expect(dead_code, reason = "the tests of the adapter use more of it")]
mod disk;
mod drill;
mod ebs;
mod ebs_freeze;
mod embed;
mod exit_codes;
mod faults;
mod full_disk;
mod help;
mod hosts;
mod interrupted;
mod json;
mod keys;
mod killed;
mod kills;
mod legacy;
mod many;
mod neo4j_kills;
mod recover;
mod recover_kills;
mod redis;
mod redis_kills;
mod redis_unit;
mod restore;
mod retention;
mod s3;
mod spot;
mod stack;
mod streams;
mod support;
mod systemd;
mod tour;
mod weaviate_kills;
mod wizard;

#[test]
fn no_test_file_is_forgotten() {
    let this = include_str!("runner.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(module) = name.strip_suffix(".rs").filter(|m| *m != "runner") else { continue };
        assert!(this.contains(&format!("mod {module};")), "{name} is not part of the runner");
    }
}
