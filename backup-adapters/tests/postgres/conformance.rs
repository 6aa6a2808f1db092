//! The contract of adapters, in both formats and both flavours, for a server on the host.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::testkit::adapter_suite::AdapterFixture;
use backup_core::{OpContext, RunId, ServiceAdapter};

use crate::support::{CANARY, Canary, SAMPLE, adapter, shared, unique};

struct Fixture {
    database: String,
    keys: String,
}

impl Fixture {
    fn new(keys: &str) -> Self {
        let database = unique("conform \"x' =");
        let quoted = database.replace('"', "\"\"");
        shared().sql("postgres", &format!("CREATE DATABASE \"{quoted}\" TEMPLATE template0"));
        shared().sql(&database, SAMPLE);
        let keys =
            format!("databases = ['''{database}''']\nuser = 'pw'\npassword = {{ env = 'PW' }}\n{keys}\n");
        Self { database, keys }
    }
}

#[async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        shared().adapter(&self.keys)
    }

    async fn mutate(&self) {
        shared().sql(&self.database, "DELETE FROM people WHERE id = 7; INSERT INTO empty VALUES (1)");
    }

    async fn live(&self) -> String {
        shared().dump(&self.database)
    }

    async fn restored(&self, dir: &Path) -> String {
        let list: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("databases.json")).unwrap()).unwrap();
        let [one] = list.as_array().unwrap().as_slice() else { panic!("{list}") };
        match one.get("database") {
            Some(database) => shared().dump(database["staged"].as_str().unwrap()),
            None => shared().dump_of_file(&dir.join(one["file"]["file"].as_str().unwrap())),
        }
    }

    fn context(&self, mut cx: OpContext) -> OpContext {
        cx.secrets = Arc::new(Canary);
        cx.run_id = RunId::generate(cx.clock.now());
        cx
    }

    fn question(&self) -> String {
        "SELECT count(*) FROM people".into()
    }

    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        Some(adapter("socket = '/nonexistent'\n"))
    }

    fn canaries(&self) -> Vec<String> {
        vec![CANARY.to_owned()]
    }
}

backup_core::adapter_conformance_tests!(
    #[ignore = "needs PostgreSQL on the host"]
    custom,
    || async { Fixture::new("format = 'custom'") }
);
backup_core::adapter_conformance_tests!(
    #[ignore = "needs PostgreSQL on the host"]
    directory,
    || async { Fixture::new("format = 'directory'\njobs = 2") }
);
backup_core::adapter_conformance_tests!(
    #[ignore = "needs PostgreSQL on the host"]
    plain_exact,
    || async { Fixture::new("format = 'plain'\ncounts = 'exact'") }
);
backup_core::adapter_conformance_tests!(
    #[ignore = "needs PostgreSQL on the host"]
    yugabyte_stand_in,
    || async {
        let programs = crate::restore::stand_in(shared());
        Fixture::new(&format!("flavor = 'yugabyte'\nport = 5432\nprograms = '{programs}'"))
    }
);
