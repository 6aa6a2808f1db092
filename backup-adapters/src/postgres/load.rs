//! Loading dumps into databases beside the live ones.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::runtime::ExecCommand;
use backup_core::{AdapterError, ArtifactMeta, ByteStream, RestoreSource};
use futures::{StreamExt as _, stream};

use super::capture::{GLOBALS, PROPERTIES};
use super::evidence::noted_roles;
use super::facts::{Database, ServerFacts};
use super::fault::Failure;
use super::format::{DumpFormat, Parser};
use super::link::Link;
use super::restore::{format_of, is_legacy, of_content, parser_of, recorded, texts};
use super::sql::{conninfo, ident};
use super::swap::{Item, Plan, drop_database};
use super::{Flavor, Settings, probe, properties, roles, scratch};

/// The largest artifact that is read into memory: roles and properties.
const MAX_SCRIPT: usize = 64 << 20;

/// Loads a backup's databases under the names of a plan.
pub(super) struct Loader<'a> {
    pub(super) settings: &'a Settings,
    pub(super) link: &'a Link,
    pub(super) source: &'a RestoreSource,
}

impl Loader<'_> {
    /// All of them; their rows agree with the backup's evidence then.
    pub(super) async fn all(&self, plan: &mut Plan) -> Result<(), AdapterError> {
        let backup = self.source.metadata();
        let full = match of_content(backup, PROPERTIES) {
            Some(artifact) => properties::parse(&self.text(artifact).await?)?,
            None => Vec::new(),
        };
        let full: BTreeMap<&str, &Database> = full.iter().map(|d| (d.name.as_str(), d)).collect();
        let mut facts = ServerFacts::ask(self.link).await?;
        let missing = self.missing_roles(plan, &facts, &full);
        if !missing.is_empty() && !plan.scratch {
            self.make_roles(&missing).await?;
            facts = ServerFacts::ask(self.link).await?;
        }
        for item in &plan.databases {
            self.link.cx.check_alive()?;
            let artifact = self.artifact(item)?;
            let properties =
                full.get(item.name.as_str()).map(|d| (*d).clone()).or_else(|| recorded(artifact));
            // Nobody recorded how the database was made: the one that it replaces is the best that is known.
            let properties =
                properties.or_else(|| facts.database(&item.name).filter(|_| is_legacy(artifact)).cloned());
            self.one(item, artifact, properties.as_ref(), &facts, plan.scratch).await?;
        }
        probe::compare(self.link, plan, &backup.evidence).await?;
        let facts = ServerFacts::ask(self.link).await?;
        for item in &mut plan.databases {
            item.new = facts.database(&item.staged).map(|d| d.oid);
        }
        Ok(())
    }

    fn artifact(&self, item: &Item) -> Result<&ArtifactMeta, AdapterError> {
        let found = self.source.metadata().artifacts.iter().find(|a| a.name.as_str() == item.artifact);
        found.ok_or_else(|| AdapterError::corrupt(format!("the backup has no artifact `{}`", item.artifact)))
    }

    /// A small artifact as text.
    async fn text(&self, artifact: &ArtifactMeta) -> Result<String, AdapterError> {
        let mut body = self.source.open(&artifact.name).await?;
        let mut text = Vec::new();
        while let Some(chunk) = self.link.cx.within(body.next()).await? {
            text.extend_from_slice(&chunk?);
            if text.len() > MAX_SCRIPT {
                let what = format!("artifact `{}` is longer than {MAX_SCRIPT} bytes", artifact.name);
                return Err(AdapterError::corrupt(what));
            }
        }
        String::from_utf8(text).map_err(|e| {
            AdapterError::corrupt(format!("artifact `{}` is not text", artifact.name)).with_source(e)
        })
    }

    fn missing_roles(
        &self,
        plan: &Plan,
        facts: &ServerFacts,
        full: &BTreeMap<&str, &Database>,
    ) -> BTreeSet<String> {
        let mut needed = BTreeSet::new();
        for item in &plan.databases {
            let Ok(artifact) = self.artifact(item) else { continue };
            needed.extend(texts(artifact, "roles"));
            if is_legacy(artifact) {
                needed.extend(noted_roles(&self.source.metadata().evidence));
            }
            let known = full.get(item.name.as_str()).map(|d| (*d).clone()).or_else(|| recorded(artifact));
            needed.extend(known.iter().flat_map(properties::roles).cloned());
        }
        needed.retain(|role| !facts.roles.contains(role));
        needed
    }

    async fn make_roles(&self, missing: &BTreeSet<String>) -> Result<(), AdapterError> {
        let globals = match of_content(self.source.metadata(), GLOBALS) {
            Some(artifact) => self.text(artifact).await?,
            None => String::new(),
        };
        let (script, unknown) = roles::to_create(&globals, missing);
        if !unknown.is_empty() {
            let names = unknown.join(", ");
            self.link
                .cx
                .warn(format!("roles that the backup does not describe are made without login: {names}"));
        }
        let made = self.link.script(&self.link.home, script).await;
        made.map(drop).map_err(|f| f.explain("cannot create the roles that the backup needs"))
    }

    async fn one(
        &self,
        item: &Item,
        artifact: &ArtifactMeta,
        properties: Option<&Database>,
        facts: &ServerFacts,
        scratch: bool,
    ) -> Result<(), AdapterError> {
        let what = format!("cannot load database `{}`", item.name);
        let without_public =
            artifact.attributes.get("public_schema").and_then(|v| v.as_bool()) == Some(false);
        self.create(item, properties, facts, without_public).await?;
        let warnings = match self.load(item, artifact, facts, scratch).await {
            Err(failure) if failure.mentions("schema \"public\" already exists") => {
                // The dump makes it itself.
                self.create(item, properties, facts, true).await?;
                self.load(item, artifact, facts, scratch).await
            }
            other => other,
        };
        let said = warnings.map_err(|f| f.explain(&what))?;
        for line in said.lines().filter(|l| l.contains("warning:") || l.contains("WARNING:")).take(5) {
            self.link.cx.warn(format!("database `{}`: {}", item.name, line.trim()));
        }
        self.finish(item, properties, scratch).await.map_err(|f| f.explain(&what))?;
        let invalid = "SELECT coalesce(string_agg(c.relname, ', '), '') FROM pg_index i JOIN pg_class c ON c.oid = \
             i.indexrelid WHERE NOT i.indisvalid AND c.relkind = 'i'";
        let invalid = self.link.query(&item.staged, invalid).await.map_err(|f| f.explain(&what))?;
        let invalid = invalid.trim();
        if invalid.is_empty() {
            return Ok(());
        }
        Err(AdapterError::corrupt(format!("{what}: its indexes {invalid} were not built")))
    }

    async fn create(
        &self,
        item: &Item,
        properties: Option<&Database>,
        facts: &ServerFacts,
        without_public: bool,
    ) -> Result<(), AdapterError> {
        drop_database(self.link, &item.staged).await?;
        let sql = match properties {
            Some(known) => {
                let has_tablespace = facts.tablespaces.contains(&known.tablespace);
                if !has_tablespace {
                    self.link.cx.warn(format!(
                        "table space `{}` is missing: database `{}` goes to the default one",
                        known.tablespace, item.name
                    ));
                }
                properties::create(known, &item.staged, has_tablespace)
            }
            None => format!("CREATE DATABASE {} TEMPLATE template0", ident(&item.staged)),
        };
        let what = format!("cannot create a database for `{}`", item.name);
        self.link.query(&self.link.home, &sql).await.map_err(|f| f.explain(&what))?;
        if without_public {
            let dropped = self.link.query(&item.staged, "DROP SCHEMA IF EXISTS public").await;
            dropped.map_err(|f| f.explain(&what))?;
        }
        Ok(())
    }

    /// Feeds the dump to the program that reads it; what that said.
    async fn load(
        &self,
        item: &Item,
        artifact: &ArtifactMeta,
        facts: &ServerFacts,
        scratch: bool,
    ) -> Result<String, Failure> {
        let format = format_of(artifact);
        if format == DumpFormat::Directory {
            let refused = scratch::refuse_load(self.settings, self.link, artifact.plain_bytes).await;
            refused.map_err(|e| Failure::new(e, ""))?;
        }
        let command = self.command(item, artifact, format, facts, scratch);
        let body = self.source.open(&artifact.name).await.map_err(|e| Failure::new(e, ""))?;
        self.link.feed(command, proven(body, parser_of(artifact, &item.name))).await
    }

    fn command(
        &self,
        item: &Item,
        artifact: &ArtifactMeta,
        format: DumpFormat,
        facts: &ServerFacts,
        scratch: bool,
    ) -> ExecCommand {
        match format {
            // The database is a throw-away until it is whole: one transaction for everything would only add limits.
            DumpFormat::Plain => {
                let mut command = self.link.psql(&item.staged);
                command.argv.extend(["-f".to_owned(), "-".to_owned()]);
                command
            }
            DumpFormat::Custom | DumpFormat::Directory => {
                let mut argv = vec![self.link.programs.restore.clone()];
                argv.extend(["--no-password", "--exit-on-error"].map(str::to_owned));
                if texts(artifact, "tablespaces").iter().any(|t| !facts.tablespaces.contains(t)) {
                    argv.push("--no-tablespaces".to_owned());
                }
                if scratch && texts(artifact, "roles").iter().any(|r| !facts.roles.contains(r)) {
                    argv.extend(["--no-owner", "--no-privileges"].map(str::to_owned));
                }
                argv.extend(["-d".to_owned(), conninfo(&item.staged)]);
                if format == DumpFormat::Custom {
                    return self.link.command(argv);
                }
                argv.push(format!("--jobs={}", self.settings.jobs(&self.link.cx)));
                argv.push("--format=directory".to_owned());
                scratch::load(self.settings, self.link, &item.staged, argv)
            }
        }
    }

    /// Statistics, and what is in no dump.
    async fn finish(&self, item: &Item, properties: Option<&Database>, scratch: bool) -> Result<(), Failure> {
        // Statistics are what the planner needs; a server without ANALYZE works.
        let analyzed = self.link.script(&item.staged, "ANALYZE;\n".to_owned()).await;
        if let (Err(failure), Flavor::Postgres) = (analyzed, self.settings.flavor) {
            return Err(failure);
        }
        let Some(properties) = properties.filter(|_| !scratch) else { return Ok(()) };
        let script = properties::apply(properties, &item.staged).join(";\n");
        self.link.script(&self.link.home, format!("{script};\n")).await.map(drop)
    }
}

/// `body`, with an error in place of its end if it is no whole dump: a program that reads it would take the end for one.
pub(super) fn proven(body: ByteStream<AdapterError>, parser: Parser) -> ByteStream<AdapterError> {
    stream::try_unfold(Some((body, parser)), |state| async {
        let Some((mut body, mut parser)) = state else { return Ok(None) };
        match body.next().await {
            Some(chunk) => {
                let chunk = chunk?;
                parser.update(&chunk)?;
                Ok(Some((chunk, Some((body, parser)))))
            }
            None => parser.finish().map(|_| None),
        }
    })
    .boxed()
}
