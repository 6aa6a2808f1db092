//! What the README and its companions say is so: configurations are valid, and the tests and files that they name exist.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::path::Path;

use backup_core::config::Config;
use backup_core::{ConfigError, Secret, SecretRef, SecretResolver};

const README: &str = include_str!("../../README.md");
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
const TRAPS: &str = include_str!("../../docs/traps.md");
const SPOT: &str = include_str!("../../docs/spot.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("\n```{language}\n");
    text.split(&open).skip(1).map(|rest| rest.split_once("\n```").unwrap().0).collect()
}

/// What stands between backticks, line by line.
fn in_backticks(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_configuration_is_valid() {
    let configs = blocks(README, "toml");
    assert!(configs.len() >= 2, "{configs:?}");
    for text in configs {
        let config = Config::parse(text, "README.md").unwrap_or_else(|e| panic!("{e}\n{text}"));
        let plan = config.resolve(&backup_adapters::builtin_adapters(), Path::new("/etc/backup"));
        plan.unwrap_or_else(|e| panic!("{e}\n{text}"));
    }
}

#[derive(Debug)]
struct AnySecret;

impl SecretResolver for AnySecret {
    fn resolve(&self, _: &SecretRef) -> Result<Secret, ConfigError> {
        Ok(Secret::new("any"))
    }
}

#[tokio::test]
async fn every_store_opens() {
    for text in blocks(README, "toml") {
        let config = Config::parse(text, "README.md").unwrap();
        let plan = config.resolve(&backup_adapters::builtin_adapters(), Path::new("/etc/backup")).unwrap();
        for store in plan.stores.values() {
            let store = store.store.resolved(&AnySecret).unwrap();
            backup_adapters::builtin_stores().open(&store).await.unwrap();
        }
    }
}

#[test]
fn every_test_that_is_named_exists() {
    for text in [README, TRAPS] {
        assert!(in_backticks(text).filter(|word| word.contains(".rs::")).count() > 20);
    }
    let named = in_backticks(README)
        .chain(in_backticks(TRAPS))
        .chain(in_backticks(SPOT))
        .filter_map(|word| word.split_once(".rs::"));
    for (file, test) in named {
        let path = root().join(format!("{file}.rs"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.contains(&format!("fn {test}(")), "{file}.rs has no test `{test}`");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for text in [README, ARCHITECTURE] {
        for target in text.split("](").skip(1).map(|rest| rest.split_once(')').unwrap().0) {
            assert!(target.starts_with("https://") || root().join(target).exists(), "{target} is not there");
        }
    }
}

#[test]
fn every_file_of_the_architecture_exists() {
    let paths: Vec<&str> = in_backticks(ARCHITECTURE)
        .filter(|word| {
            word.starts_with("backup-") && word.contains("/src/") && !word.contains(['<', '*', '{'])
        })
        .collect();
    assert!(paths.len() > 20, "{paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "{path} is not there");
    }
}
