//! The contract of adapters, for `sqlite` in both journal modes.

use std::path::Path;
use std::sync::Arc;

use crate::support::{Db, insert};
use async_trait::async_trait;
use backup_adapters::sqlite::Sqlite;
use backup_core::ServiceAdapter;
use backup_core::testkit::adapter_suite::AdapterFixture;
use rusqlite::Connection;

struct Fixture(Db);

fn dump(path: &Path) -> String {
    let conn = Connection::open(path).unwrap();
    let mut query = conn.prepare("SELECT id, text FROM log ORDER BY id").unwrap();
    let rows = query.query_map([], |r| Ok(format!("{} {}\n", r.get::<_, i64>(0)?, r.get::<_, String>(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

#[async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        Arc::new(self.0.adapter())
    }
    async fn mutate(&self) {
        self.0
            .connect()
            .execute_batch("UPDATE log SET text = text || 'x'; DELETE FROM log WHERE id = 1")
            .unwrap();
    }
    async fn live(&self) -> String {
        dump(&self.0.path)
    }
    async fn restored(&self, dir: &Path) -> String {
        dump(&dir.join("app.db"))
    }
    fn question(&self) -> String {
        "SELECT count(*) FROM log".into()
    }
    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        Some(Arc::new(Sqlite::new(self.0.dir.path().join("missing.db"))))
    }
}

backup_core::adapter_conformance_tests!(wal, || async { Fixture(Db::new("wal", 500)) });
backup_core::adapter_conformance_tests!(rollback, || async { Fixture(Db::new("delete", 500)) });
backup_core::adapter_conformance_tests!(wal_of_a_crashed_service, || async {
    // The `-wal` holds rows that no checkpoint ever moved, as after a crash.
    let db = Db::new("wal", 10);
    let writer = db.connect();
    insert(&writer, 300);
    let crashed = Db::nowhere();
    for suffix in ["", "-wal"] {
        std::fs::copy(db.beside(suffix), crashed.beside(suffix)).unwrap();
    }
    Fixture(crashed)
});
