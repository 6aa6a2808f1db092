//! The contract of adapters, executed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use backup_adapters::{env::EnvConfig, files::FilesConfig};
use backup_core::testkit::adapter_suite::AdapterFixture;
use backup_core::{AdapterConfig, BuildContext, ServiceAdapter, ServiceName};

const CANARY: &str = "canary-5f1c";

/// One kind of adapter over `path` in a folder of its own.
struct Fixture {
    dir: tempfile::TempDir,
    path: &'static str,
    make: fn(String, &Path) -> Arc<dyn ServiceAdapter>,
}

fn build<C: AdapterConfig>(settings: String, base: &Path) -> Arc<dyn ServiceAdapter> {
    let table: toml::Table = settings.parse().unwrap();
    let config: C = table.try_into().unwrap();
    config.build(&BuildContext::new(ServiceName::new("data").unwrap(), base)).unwrap()
}

impl Fixture {
    fn files() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap(), path: "tree", make: build::<FilesConfig> };
        fs::create_dir_all(fixture.root().join("sub")).unwrap();
        fs::write(fixture.root().join("sub/small"), CANARY).unwrap();
        // More than a chunk, so that a body can be dropped midway.
        fs::write(fixture.root().join("large"), vec![7; 3 << 20]).unwrap();
        fixture
    }

    fn env() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap(), path: ".env", make: build::<EnvConfig> };
        fs::write(fixture.root(), format!("TOKEN={CANARY}\n")).unwrap();
        fixture
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join(self.path)
    }
}

/// Every file below `root`, or `root` itself, by its relative path.
fn contents(root: &Path) -> String {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.exists() {
            let hash = blake3::hash(&fs::read(&path).unwrap());
            found.insert(path.strip_prefix(root).unwrap().to_owned(), hash.to_hex());
        }
    }
    found.iter().fold(String::new(), |mut text, (path, hash)| {
        writeln!(text, "{} {hash}", path.display()).unwrap();
        text
    })
}

#[async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        (self.make)(format!("paths = ['{}']", self.path), self.dir.path())
    }
    async fn mutate(&self) {
        let file = if self.root().is_dir() { self.root().join("sub/small") } else { self.root() };
        fs::write(file, "CHANGED=1\n").unwrap();
    }
    async fn live(&self) -> String {
        contents(&self.root())
    }
    async fn restored(&self, dir: &Path) -> String {
        // Members are named by their whole path.
        contents(&dir.join(self.root().strip_prefix("/").unwrap()))
    }
    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        Some((self.make)("paths = ['missing']".into(), self.dir.path()))
    }
    fn canaries(&self) -> Vec<String> {
        vec![CANARY.into()]
    }
}

backup_core::adapter_conformance_tests!(files, || async { Fixture::files() });
backup_core::adapter_conformance_tests!(env, || async { Fixture::env() });
