//! The server's own backup, and whether everything is in it.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use tokio::time::Instant;

use super::State;
use crate::weaviate::census::Schema;
use crate::weaviate::files::Files;
use crate::weaviate::job::phase;
use crate::weaviate::model;

/// What the server was told to make.
pub(super) struct Begun {
    at: Instant,
    /// The collections that it named.
    classes: BTreeSet<String>,
}

impl State {
    /// Tells the server to make its backup.
    pub(super) async fn begin(&mut self, cx: &OpContext) -> Result<Begun, AdapterError> {
        phase(cx, "the server makes its backup");
        let at = Instant::now();
        self.begun = true;
        Ok(Begun { at, classes: self.job.start(&self.api, cx).await? })
    }

    /// Waits for the server, and compares its backup with what is there. Its tenants are as they were as soon as it is done,
    /// not once its files are stored.
    pub(super) async fn finish(
        &mut self,
        cx: &OpContext,
        files: &dyn Files,
        schema: &Schema,
        begun: Begun,
    ) -> Result<(), AdapterError> {
        let Begun { at: began, classes: named } = begun;
        self.job.wait(&self.api, cx, Some(files)).await?;
        self.server_ms = began.elapsed().as_millis();
        self.done = cx.clock.now();
        let id = &self.job.id;
        let config = model::Config::parse(&files.read(cx, &format!("{id}/{}", model::CONFIG)).await?)?;
        if &config.id != id {
            let what = format!("the server wrote the backup `{}` in the folder of `{id}`", config.id);
            return Err(AdapterError::corrupt(what));
        }
        let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let (mut users, mut roles) = (false, false);
        for node in config.nodes.keys() {
            let bytes = files.read(cx, &format!("{id}/{node}/{}", model::NODE)).await?;
            let node = model::Node::parse(&bytes)?;
            (users, roles) = (users || node.users.is_some(), roles || node.roles.is_some());
            for class in node.classes() {
                let names = class.shards().map(|s| s.name.clone());
                shards.entry(class.name.clone()).or_default().extend(names);
            }
        }
        self.notes.insert("users".to_owned(), if users { "in the backup" } else { "none" }.to_owned());
        self.notes.insert("roles".to_owned(), if roles { "in the backup" } else { "none" }.to_owned());
        self.taken = shards.keys().cloned().collect();
        // Three lists, of which each could be shorter than what is there.
        let after = Schema::read(&self.api, cx).await?;
        let config = config.classes();
        let complete = |class: &str| {
            self.taken.contains(class)
                && config.contains(class)
                && (named.is_empty() || named.contains(class))
        };
        let missing: Vec<&str> =
            schema.names().intersection(&after.names()).copied().filter(|c| !complete(c)).collect();
        if !missing.is_empty() {
            let what = format!(
                "the backup of {} lacks the collections {}: may the user of the API key back up all?",
                self.api.name(),
                missing.join(", ")
            );
            return Err(AdapterError::new(AdapterErrorKind::PermissionDenied, what));
        }
        let (active, still) = (schema.active(), after.active());
        for (class, tenants) in &active {
            let (Some(in_backup), Some(still)) = (shards.get(class), still.get(class)) else { continue };
            let lost = |t: &&String| !in_backup.contains(*t) && still.contains(t);
            if let Some(tenant) = tenants.iter().find(lost) {
                let what = format!("the backup of {} lacks tenant `{tenant}` of `{class}`", self.api.name());
                return Err(AdapterError::corrupt(what));
            }
        }
        self.lull(cx).await?;
        phase(cx, "storing what was captured");
        Ok(())
    }
}
