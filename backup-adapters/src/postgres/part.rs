//! Parts of a backup: some of its databases.

use backup_core::{AdapterError, AdapterErrorKind, ArtifactName, Metadata};

use super::base;
use super::evidence::key;
use super::restore::{database_of, of_content};

/// The backup as if it had only the databases of the artifacts `only`: with all roles, of which a restore makes those that are
/// needed and missing.
pub(super) fn of(backup: &Metadata, only: &[ArtifactName]) -> Result<Metadata, AdapterError> {
    if of_content(backup, base::BASE).is_some() {
        return Err(AdapterError::unsupported("a base backup is of the whole server, and restored as that"));
    }
    let is_dump =
        |name: &ArtifactName| backup.artifacts.iter().any(|a| a.name == *name && database_of(a).is_some());
    if let Some(missing) = only.iter().find(|name| !is_dump(name)) {
        let dumps = backup.artifacts.iter().filter(|a| database_of(a).is_some());
        let dumps: Vec<&str> = dumps.map(|a| a.name.as_str()).collect();
        let what = format!("the backup has no database `{missing}`: it has {}", dumps.join(", "));
        return Err(AdapterError::new(AdapterErrorKind::NotFound, what));
    }
    let mut part = backup.clone();
    part.artifacts.retain(|a| database_of(a).is_none() || only.contains(&a.name));
    // Totals of the server are no evidence of a part of it.
    let databases: Vec<String> =
        part.artifacts.iter().filter_map(database_of).map(|d| key("", [d.as_str()])).collect();
    let is_of_part = |count: &String| {
        databases.iter().any(|database| {
            let rest = count
                .find('.')
                .and_then(|dot| count.get(dot..))
                .and_then(|c| c.strip_prefix(database.as_str()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    part.evidence.counts.retain(|count, _| is_of_part(count));
    part.evidence.counts_after.retain(|count, _| is_of_part(count));
    part.size_bytes = part.artifacts.iter().flat_map(|a| &a.files).map(|f| f.stored_bytes).sum();
    Ok(part)
}
