//! What is counted, and how the counts are called.

use std::collections::BTreeMap;

use backup_core::Evidence;
use chrono::{DateTime, Utc};

use super::Counts;
use super::facts::Inside;
use super::format::Contents;
use super::sql::ident;

/// Counts of a backup are kept one by one for so many tables; all are in the totals.
const MAX_COUNTS: usize = 2000;

/// `rows.app.public.users`. Parts that would be misread are quoted.
pub(super) fn key<'a>(what: &str, parts: impl IntoIterator<Item = &'a str>) -> String {
    parts.into_iter().fold(what.to_owned(), |key, part| {
        let plain = !part.is_empty() && !part.contains(['.', '"']) && !part.chars().any(char::is_control);
        format!("{key}.{}", if plain { part.to_owned() } else { ident(&part.escape_debug().to_string()) })
    })
}

/// The counts of a dump's own content.
pub(super) fn of_contents(database: &str, contents: &Contents) -> Evidence {
    let mut evidence =
        Evidence::default().with_count(key("large_objects", [database]), contents.large_objects);
    if contents.counted {
        evidence = evidence.with_count(key("rows", [database]), contents.total());
        for ((schema, table), rows) in &contents.rows {
            evidence.counts.insert(key("rows", [database, schema, table]), *rows);
        }
    }
    if !contents.roles.is_empty()
        && let Ok(roles) = serde_json::to_string(&contents.roles)
    {
        evidence.notes.insert(ROLES.to_owned(), roles);
    }
    evidence
}

/// The note with the roles that a dump names of which nobody recorded them: JSON, a list.
const ROLES: &str = "roles";

/// The roles of that note.
pub(super) fn noted_roles(evidence: &Evidence) -> Vec<String> {
    evidence.notes.get(ROLES).and_then(|roles| serde_json::from_str(roles).ok()).unwrap_or_default()
}

/// What a capture has found out so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) evidence: Evidence,
    pub(super) exit_codes: BTreeMap<String, i64>,
    pub(super) warnings: Vec<String>,
    span: Option<(DateTime<Utc>, DateTime<Utc>)>,
    databases: u64,
    tables: usize,
}

impl Tally {
    /// A database was dumped whole.
    pub(super) fn dumped(&mut self, database: &str, inside: &Inside, contents: &Contents, counts: Counts) {
        self.databases += 1;
        let counted = &mut self.evidence.counts;
        counted.insert("databases".to_owned(), self.databases);
        counted.insert(key("tables", [database]), inside.table_count);
        counted.insert(key("large_objects", [database]), contents.large_objects);
        if contents.counted {
            counted.insert(key("rows", [database]), contents.total());
            // The oldest tables: that choice does not change when tables come and go.
            for (schema, table) in &inside.tables {
                let Some(rows) = contents.rows.get(&(schema.clone(), table.clone())) else { continue };
                if self.tables >= MAX_COUNTS {
                    break;
                }
                self.tables += 1;
                counted.insert(key("rows", [database, schema, table]), *rows);
            }
        }
        let notes = &mut self.evidence.notes;
        if counts == Counts::Estimated {
            notes.insert(key("estimated_rows", [database]), format!("{:.0}", inside.estimated_rows));
        }
        let extensions: Vec<String> = inside.extensions.iter().map(|(n, v)| format!("{n} {v}")).collect();
        notes.insert(key("extensions", [database]), extensions.join(", "));
    }

    /// A snapshot was taken between these moments.
    pub(super) fn between(&mut self, from: DateTime<Utc>, to: DateTime<Utc>) {
        let (first, last) = self.span.unwrap_or((from, to));
        self.span = Some((first.min(from), last.max(to)));
    }

    pub(super) fn span(&self, now: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
        self.span.unwrap_or((now, now))
    }

    pub(super) fn exited(&mut self, program: &str, code: Option<i64>) {
        if let Some(code) = code {
            self.exit_codes.insert(program.to_owned(), code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn keys_are_unambiguous() {
        assert_eq!(key("rows", ["app", "public", "users"]), "rows.app.public.users");
        assert_eq!(key("rows", ["a.b", "c d"]), "rows.\"a.b\".c d");
    }
}
