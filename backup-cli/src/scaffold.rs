//! `backup.toml`, written from what was discovered.

use backup_core::{Discovered, KindDiscovery, LeftOut};
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::error::CliError;

/// A service that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) kind: &'static str,
    pub(crate) service: Discovered,
}

/// What is in a directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Survey {
    pub(crate) found: Vec<Found>,
    pub(crate) left_out: Vec<LeftOut>,
    /// The Compose project that services run in.
    pub(crate) compose: Option<Project>,
}

/// A Compose project, as the labels of its containers name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Project {
    pub(crate) name: String,
    pub(crate) files: Vec<String>,
}

impl Survey {
    /// Puts together what the adapters found. One that failed is something left out, never a silent gap.
    pub(crate) fn of(discoveries: Vec<KindDiscovery>) -> Self {
        let mut survey = Self::default();
        for KindDiscovery { kind, result } in discoveries {
            match result {
                Ok(discovery) => {
                    survey.found.extend(discovery.found.into_iter().map(|service| Found { kind, service }));
                    survey.left_out.extend(discovery.left_out);
                }
                Err(e) => {
                    survey.left_out.push(LeftOut { what: kind.to_owned(), why: backup_core::chain(&e) });
                }
            }
        }
        survey
    }
}

const HEAD: &str = "\
# What `backup` protects, and where to. Every key is checked: a misspelt one is an error, not a surprise.
# `backup status` tells how each service stands, `backup adapters` which kinds there are.

";

const NO_SERVICES: &str = "
# Nothing was found here that could be protected. A service looks like this:
#
# [services.data]
# kind = \"files\"
# paths = [\"/srv/data\"]
# max_age = \"26h\"
#
# [intervals.daily]
# services = [\"data\"]
# keep = { latest = 3, daily = 7, weekly = 4, monthly = 6 }
";

/// The text of a configuration for people to go on with.
pub(crate) fn configuration(
    store: &str,
    state_dir: Option<&str>,
    survey: &Survey,
) -> Result<String, CliError> {
    let found = survey.found.as_slice();
    let mut doc = DocumentMut::new();
    if let Some(dir) = state_dir {
        doc.insert("state_dir", value(dir));
        comment_key(doc.as_table_mut(), "state_dir", "# Locks, journals and caches of this host.\n");
    }
    let mut table = Table::new();
    table.insert("url", value(store));
    comment_key(
        &mut table,
        "url",
        "# A path, or a URL such as s3://bucket/prefix. Best on another disk than what is protected.\n",
    );
    insert(&mut doc, "store", table, if state_dir.is_some() { "\n" } else { "" });
    if found.is_empty() {
        return Ok(format!("{HEAD}{doc}{NO_SERVICES}"));
    }

    let mut daily = Table::new();
    daily.insert("services", value(found.iter().map(|f| f.service.service.as_str()).collect::<Array>()));
    let mut keep = toml_edit::InlineTable::new();
    for (rung, n) in [("latest", 3), ("daily", 7), ("weekly", 4), ("monthly", 6)] {
        keep.insert(rung, n.into());
    }
    daily.insert("keep", value(keep));
    comment_key(
        &mut daily,
        "keep",
        "# The newest good one always stays, whatever stands here. Other forms: keep = 7, or no `keep` to keep all.\n",
    );
    daily.insert("timeout", value("2h"));
    comment_key(&mut daily, "timeout", "# Each service's budget.\n");
    let mut intervals = Table::new();
    intervals.set_implicit(true);
    daily.decor_mut().set_prefix(
        "\n# A series of backups with its own rhythm: `backup run daily`. Have as many as you like.\n",
    );
    intervals.insert("daily", Item::Table(daily));
    doc.insert("intervals", Item::Table(intervals));

    let mut services = services(found)?;
    for (n, (_, service)) in services.iter_mut().enumerate() {
        let Some(service) = service.as_table_mut() else { continue };
        service.insert("max_age", value("26h"));
        if n == 0 {
            comment_key(
                service,
                "max_age",
                "# `backup status` is critical when the newest good backup is older.\n",
            );
        }
    }
    doc.insert("services", Item::Table(services));
    if let Some(project) = &survey.compose {
        let mut table = Table::new();
        match project.files.as_slice() {
            [one] => table.insert("file", value(one)),
            many => table.insert("file", value(many.iter().map(String::as_str).collect::<Array>())),
        };
        table.insert("project", value(&project.name));
        let prefix = "\n# What `backup recover` makes containers from that are gone, and whose applications it stops meanwhile.\n";
        insert(&mut doc, "compose", table, prefix);
    }
    Ok(format!("{HEAD}{doc}"))
}

/// The `[services]` table of what was found.
pub(crate) fn services(found: &[Found]) -> Result<Table, CliError> {
    let mut services = Table::new();
    services.set_implicit(true);
    for Found { kind, service } in found {
        let unusable = |e: &(dyn std::error::Error + 'static)| {
            CliError::failed(format!("what was found as `{}` cannot be written down", service.service))
                .because(e)
        };
        let settings = toml::to_string(&service.settings).map_err(|e| unusable(&e))?;
        let settings: DocumentMut = settings.parse().map_err(|e: toml_edit::TomlError| unusable(&e))?;
        let mut table = Table::new();
        table.insert("kind", value(*kind));
        for (key, item) in settings.as_table() {
            table.insert(key, item.clone());
        }
        let summary = crate::error::one_line(&service.summary);
        table.decor_mut().set_prefix(format!("\n# {summary}\n"));
        services.insert(service.service.as_str(), Item::Table(table));
    }
    Ok(services)
}

fn insert(doc: &mut DocumentMut, name: &str, mut table: Table, prefix: &str) {
    table.decor_mut().set_prefix(prefix);
    doc.insert(name, Item::Table(table));
}

fn comment_key(table: &mut Table, key: &str, comment: &str) {
    if let Some(mut key) = table.key_mut(key) {
        key.leaf_decor_mut().set_prefix(comment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup_core::config::Config;

    fn found() -> Found {
        let settings = "paths = ['.', 'with \"quotes\"']\n[options]\ndeep = 1".parse().unwrap();
        let service = Discovered {
            service: "a.b".parse().unwrap(),
            summary: "two\nlines".into(),
            settings,
            covers: Vec::new(),
        };
        Found { kind: "files", service }
    }

    fn survey() -> Survey {
        let project = Project { name: "app".into(), files: vec!["/srv/a.yaml".into(), "/srv/b.yaml".into()] };
        Survey { found: vec![found()], compose: Some(project), ..Survey::default() }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for state_dir in [None, Some("./backups/.state")] {
            let text = configuration("./backups", state_dir, &survey()).unwrap();
            let config = Config::parse(&text, "backup.toml").unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(config.store.url, "./backups");
            let (name, service) = config.services.first_key_value().unwrap();
            assert_eq!((name.as_str(), service.kind.as_str()), ("a.b", "files"));
            assert_eq!(service.settings, found().service.settings);
            assert_eq!(config.intervals.values().next().unwrap().services, std::slice::from_ref(name));
            let compose = config.compose.unwrap();
            assert_eq!((compose.project.as_deref(), compose.files.len()), (Some("app"), 2));
        }
    }

    #[test]
    fn without_services_the_text_is_still_a_configuration() {
        let text = configuration("s3://b/p", None, &Survey::default()).unwrap();
        assert!(Config::parse(&text, "backup.toml").unwrap().services.is_empty());
    }
}
