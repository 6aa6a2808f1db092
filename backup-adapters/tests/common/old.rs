//! A store with directories of the old scripts, and an engine over it.

use std::path::PathBuf;
use std::sync::Arc;

use backup_core::catalog::VerifyLevel;
use backup_core::config::Config;
use backup_core::engine::{RestorePreview, RestoreRequest, RunReport, Selector, VerifyRequest};
use backup_core::state::StateDir;
use backup_core::{
    AdapterConfig, AdapterRegistry, BackupError, BackupId, Catalog, Engine, LocalStore, Outcome,
    SecretResolver, ServiceName, SystemClock,
};
use tokio_util::sync::CancellationToken;

pub(crate) struct Old {
    pub(crate) engine: Engine,
    dir: tempfile::TempDir,
}

impl Old {
    /// A service `old` with these `keys`.
    pub(crate) async fn new<C: AdapterConfig>(keys: &str, secrets: Arc<dyn SecretResolver>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::new(dir.path().join("store"));
        store.create_root().await.unwrap();
        let config =
            format!("store.url = '{}'\n[services.old]\nkind = '{}'\n{keys}", store.root().display(), C::KIND);
        let registry = AdapterRegistry::new().with::<C>();
        let plan = Config::parse(&config, "t.toml").unwrap().resolve(&registry, dir.path()).unwrap();
        let (catalog, _) = Catalog::init(Arc::new(store), Arc::new(SystemClock)).await.unwrap();
        let state = StateDir::open(dir.path().join("state")).unwrap();
        Self { engine: Engine::builder(plan, catalog, state).secrets(secrets).build(), dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory with this one file.
    pub(crate) fn put(&self, at: &str, file: &str, bytes: &[u8]) -> BackupId {
        let id: BackupId = format!("old/hourly/{at}").parse().unwrap();
        let dir = self.path(&format!("store/{id}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(file), bytes).unwrap();
        id
    }

    fn service() -> ServiceName {
        "old".parse().unwrap()
    }

    pub(crate) async fn verify(&self, id: &BackupId, level: VerifyLevel) -> (Outcome, String) {
        let request = VerifyRequest { ids: vec![id.clone()], ..VerifyRequest::new(level) };
        said(&self.engine.verify(&request).await.unwrap())
    }

    pub(crate) async fn plan(&self, id: &BackupId, to: Option<&str>) -> Result<RestorePreview, BackupError> {
        let mut request = RestoreRequest::new(Self::service());
        request.selector = Selector::Exactly(id.clone());
        request.to = to.map(|to| self.path(to));
        self.engine.plan_restore(&request).await
    }

    pub(crate) async fn restore(&self, id: &BackupId, to: Option<&str>) -> (Outcome, String) {
        let preview = self.plan(id, to).await.unwrap_or_else(|e| panic!("{}", backup_core::chain(&e)));
        said(&self.engine.restore(&preview).await.unwrap())
    }

    pub(crate) async fn undo(&self) -> (Outcome, String) {
        said(&self.engine.undo(&Self::service(), CancellationToken::new()).await.unwrap())
    }
}

fn said(report: &RunReport) -> (Outcome, String) {
    let errors: Vec<String> = report.steps.iter().filter_map(|s| s.error.clone()).collect();
    (report.outcome(), errors.join("; "))
}

pub(crate) fn ok() -> (Outcome, String) {
    (Outcome::Ok, String::new())
}
