//! What a capture tells in the end.

use backup_core::runtime::ServiceRuntime as _;
use backup_core::{AdapterError, CaptureReport, Consistency, Evidence};

use super::State;
use crate::weaviate::census::Schema;
use crate::weaviate::server::Server;

impl State {
    pub(super) async fn report(
        &mut self,
        server: &Server,
        after: Option<Result<(Schema, Evidence), AdapterError>>,
    ) -> Result<CaptureReport, AdapterError> {
        let (mode, consistency) = match self.files {
            Some(_) => (self.job.backend, Consistency::Dump),
            None => ("export", Consistency::OnlineUnverified),
        };
        let mut report = CaptureReport::new(mode, consistency, self.asked, self.done);
        if let Some((schema, before)) = self.before.take() {
            report.evidence = before;
            if self.files.is_none() {
                self.exported(&mut report.evidence);
            }
            match after {
                Some(Ok((now, after))) => self.compare(&schema, &now, &mut report, &after),
                // Without a second count the first one is exact only if nobody writes.
                Some(Err(e)) => self.warnings.push(format!("the objects were not counted afterwards: {e}")),
                None => {}
            }
        }
        report.evidence.notes.extend(std::mem::take(&mut self.notes));
        report.evidence.notes.insert("modules".to_owned(), self.facts.modules.join(", "));
        report.evidence.notes.insert("node".to_owned(), self.facts.node.clone());
        report.evidence.notes.insert("server_backup_ms".to_owned(), self.server_ms.to_string());
        report.service_version = Some(self.facts.version.clone());
        if let Some(docker) = &server.container {
            report.image = docker.inspect().await.ok().and_then(|i| i.image);
        }
        report.warnings = std::mem::take(&mut self.warnings);
        Ok(report)
    }

    /// What was exported is known exactly.
    fn exported(&mut self, evidence: &mut Evidence) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(found) = told.evidence() else { return };
        self.warnings.append(&mut told.warnings);
        self.taken = told.collections();
        let counted = std::mem::replace(&mut evidence.counts, found.counts);
        let all_there = ["collections", "tenants"].iter().all(|n| counted.get(*n) == evidence.counts.get(*n));
        // Which of those that are gone could be searched, nobody knows any more.
        if let Some(searchable) = counted.get("searchable").filter(|_| all_there) {
            evidence.counts.insert("searchable".to_owned(), *searchable);
        }
    }

    /// What a count may be anywhere between before and after.
    fn compare(&mut self, before: &Schema, now: &Schema, report: &mut CaptureReport, after: &Evidence) {
        for class in now.names().difference(&before.names()) {
            if !self.taken.contains(*class) {
                self.warnings
                    .push(format!("collection `{class}` was made meanwhile and is not in this backup"));
            }
        }
        let export = self.files.is_none();
        // An export has told of those that it does not hold.
        let deleted = before.names().difference(&now.names()).copied().collect::<Vec<_>>();
        for class in deleted.into_iter().filter(|class| !export || self.taken.contains(*class)) {
            self.warnings.push(format!("collection `{class}` was deleted meanwhile"));
        }
        let inactive = now.inactive();
        let unknown = |name: &str| {
            // Tenants that are asleep again were counted while they were awake.
            name == "searchable" && !inactive.is_empty()
                || inactive.iter().any(|(class, tenants)| {
                    name == format!("objects.{class}")
                        || tenants.iter().any(|t| name == format!("objects.{class}.{t}"))
                })
        };
        for (name, first) in report.evidence.counts.iter().filter(|(n, _)| !export || *n == "searchable") {
            let then = match after.counts.get(name) {
                Some(_) if unknown(name) => *first,
                Some(then) => *then,
                None if unknown(name) => *first,
                // Gone meanwhile: in the backup as a whole, in part, or not at all.
                None => 0,
            };
            if then != *first {
                report.evidence.counts_after.insert(name.clone(), then);
            }
        }
    }
}
