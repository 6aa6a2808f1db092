//! Captures of a server that goes on: its files are copied while it works on them, in the order that lets it recover
//! them, and once more if a checkpoint came in between. Then a second server recovers the copy, and Neo4j checks it: what
//! is stored is what passed.

mod database;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, Evidence};

use self::database::Database;
use super::super::mode::CaptureMode;
use super::super::proof::{self, Subject};
use super::super::replica::{self, How};
use super::super::server::{self, Facts, Server};
use super::clones::copies;
use super::phase;
use super::taken::{Taken, What};
use super::taking::Taking;
use crate::on_disk::blocking;
use crate::runtime::docker::Purpose;

/// What the evidence says of a copy that passed.
const PROVEN: &str = "a second server recovered the copy, and Neo4j's own check found nothing";

/// Whether the databases can be copied while the server works on them, and proven afterwards.
///
/// # Errors
/// `Unsupported`, naming one that cannot.
pub(super) fn refuse(server: &Server, facts: &Facts) -> Result<(), AdapterError> {
    for database in &facts.databases {
        let name = &database.name;
        if !database.is_online() {
            return Err(AdapterError::unsupported(format!(
                "database `{name}` of {server} is {}: `online` takes what it can open and check afterwards; start it, or \
                 use another `capture`",
                database.status
            )));
        }
        // `record-aligned-1.1`; empty where the server does not tell.
        if !database.store.is_empty() && !database.store.starts_with("record-") {
            return Err(AdapterError::unsupported(format!(
                "database `{name}` of {server} is stored as `{}`: `online` knows the record formats; use another `capture`",
                database.store
            )));
        }
    }
    Ok(())
}

impl Taking {
    /// Copies the files while the server works on them, and proves the copy.
    pub(super) async fn online(self, bases: Vec<PathBuf>) -> Result<Taken, AdapterError> {
        let Some(facts) = self.found.facts.clone() else {
            return Err(AdapterError::unsupported(format!("{} does not run", self.neo4j.server)));
        };
        let (server, cx) = (&self.neo4j.server, &self.cx);
        let from = cx.clock.now();
        let attempts = self.copy_live(&facts, &bases).await?;
        let to = cx.clock.now();
        let after = self.after(&facts).await?;
        let (data, logs) = copies(&bases);
        let subject = Subject {
            called: "captured",
            data: data.clone(),
            transactions: Some(logs.clone()),
            user: self.found.places.user(),
            image: None,
            major: self.found.major(),
            home: facts.home.clone(),
            purpose: Purpose::Work,
        };
        let proven = proof::prove(server, cx, &subject, proof::Also::Check).await?;
        let mut range = self.found.before.clone();
        range.counts_after.clone_from(&after.counts);
        let differences = range.contradictions(&proven);
        if !differences.is_empty() {
            let what =
                "a second server over the captured data counts what this one held neither before nor after";
            return Err(AdapterError::corrupt(format!("{what}: {}", differences.join("; "))));
        }
        blocking(move || replica::unlock(&data).and_then(|()| replica::unlock(&logs))).await?;
        let mut found = self.found;
        found.before.notes.insert("proof".to_owned(), PROVEN.to_owned());
        for (name, attempts) in attempts.into_iter().filter(|(_, attempts)| *attempts > 1) {
            found.before.notes.insert(format!("attempts.{name}"), attempts.to_string());
        }
        Ok(Taken {
            mode: CaptureMode::Online,
            found,
            what: What::files(&bases),
            remove: bases,
            from,
            to,
            interruption: Duration::ZERO,
            exit_codes: BTreeMap::from([("neo4j-admin".to_owned(), 0)]),
            after: Some(after),
            warnings: Vec::new(),
        })
    }

    /// Copies everything into `bases`; how often each database took.
    async fn copy_live(&self, facts: &Facts, bases: &[PathBuf]) -> Result<Vec<(String, u32)>, AdapterError> {
        let (cx, places) = (self.cx.clone(), self.found.places.clone());
        let ((data, logs), names) = (copies(bases), names(&facts.databases));
        phase(&cx, "copying its files while it runs");
        blocking(move || {
            let alive = || cx.check_alive();
            let databases = places.data.join("databases");
            let of = |name: String| Database {
                store: databases.join(&name),
                logs: places.transactions.join(&name),
                store_copy: data.join("databases").join(&name),
                logs_copy: logs.join(&name),
                name,
            };
            let all: Vec<Database> = names.into_iter().map(of).collect();
            let mut except = vec![places.transactions.clone(), places.data.join("dumps")];
            except.extend(all.iter().map(|d| d.store.clone()));
            replica::copy(&places.data, &data, &except, How::Live, &alive)?;
            let except: Vec<PathBuf> = all.iter().map(|d| d.logs.clone()).collect();
            replica::copy(&places.transactions, &logs, &except, How::Live, &alive)?;
            let copied = |d: Database| Ok((d.name.clone(), d.copy(&alive, &|what| phase(&cx, what))?));
            all.into_iter().map(copied).collect()
        })
        .await
    }

    /// What the server counts now.
    async fn after(&self, facts: &Facts) -> Result<Evidence, AdapterError> {
        let (server, cx) = (&self.neo4j.server, &self.cx);
        let mut bolt = server.connect(cx).await?;
        let databases = server::databases(cx, &mut bolt).await?;
        if names(&databases) != names(&facts.databases) {
            let what = format!("a database of {server} was made or dropped while its files were copied");
            return Err(AdapterError::new(AdapterErrorKind::Changed, what));
        }
        let evidence = server::evidence(cx, &mut bolt, &facts.databases).await?;
        bolt.close(cx).await;
        Ok(evidence)
    }
}

fn names(databases: &[server::Database]) -> Vec<String> {
    databases.iter().map(|d| d.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_proven_is_taken() {
        let server = Server {
            docker: crate::runtime::DockerRuntime::new("x"),
            port: 7687,
            user: "neo4j".into(),
            password: None,
        };
        let of = |status: &str, store: &str| {
            let database = server::Database::new("neo4j", status, store);
            refuse(&server, &Facts { databases: vec![database], ..Facts::default() })
        };
        for store in ["record-aligned-1.1", ""] {
            of("online", store).unwrap();
        }
        for (status, store, why) in
            [("offline", "", "is offline"), ("online", "block-block-1.1", "`block-block-1.1`")]
        {
            let e = of(status, store).unwrap_err();
            assert!(e.kind() == AdapterErrorKind::Unsupported && e.to_string().contains(why), "{e}");
        }
    }
}
