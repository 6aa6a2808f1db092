//! Roles that a restored database needs and the server does not have.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::sql::{ident, statements, take_ident};

/// The statements of a dump of roles that make `missing` roles as they were, and those that it does not know.
///
/// Roles that the server has are left as they are: a restore of data changes nobody's password.
pub(super) fn to_create(globals: &str, missing: &BTreeSet<String>) -> (String, Vec<String>) {
    let (mut make, mut grants) = (String::new(), String::new());
    let mut known = BTreeSet::new();
    for statement in statements(globals) {
        let of = |prefix: &str| statement.strip_prefix(prefix).and_then(take_ident).map(|(name, _)| name);
        if let Some(role) = of("CREATE ROLE ").filter(|r| missing.contains(r)) {
            known.insert(role);
            line(&mut make, &statement);
        } else if of("ALTER ROLE ").is_some_and(|r| missing.contains(&r)) {
            line(&mut make, &statement);
        } else if let Some((group, rest)) = statement.strip_prefix("GRANT ").and_then(take_ident)
            && let Some((member, _)) = rest.trim_start().strip_prefix("TO ").and_then(take_ident)
            && (missing.contains(&group) || missing.contains(&member))
        {
            line(&mut grants, &statement);
        }
    }
    let unknown: Vec<String> = missing.difference(&known).cloned().collect();
    for role in &unknown {
        line(&mut make, &format!("CREATE ROLE {} NOLOGIN", ident(role)));
    }
    // A membership may name a role that is gone, too.
    (format!("{make}\\set ON_ERROR_STOP off\n{grants}"), unknown)
}

fn line(out: &mut String, statement: &str) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(out, "{statement};");
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBALS: &str = "--\n-- Roles\n--\n\nCREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'SCRAM;x';\n\
        CREATE ROLE \"o;ld\";\nALTER ROLE \"o;ld\" WITH NOLOGIN;\nALTER ROLE app SET search_path TO 'a';\n\
        GRANT \"o;ld\" TO app GRANTED BY postgres;\nCREATE ROLE postgres;\nALTER ROLE postgres WITH PASSWORD 'x';\n";

    #[test]
    fn only_missing_roles_are_made() {
        let missing = BTreeSet::from(["app".to_owned(), "ghost".to_owned()]);
        let (script, unknown) = to_create(GLOBALS, &missing);
        assert_eq!(unknown, ["ghost"]);
        let expected = "CREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'SCRAM;x';\n\
            ALTER ROLE app SET search_path TO 'a';\nCREATE ROLE \"ghost\" NOLOGIN;\n\\set ON_ERROR_STOP off\n\
            GRANT \"o;ld\" TO app GRANTED BY postgres;\n";
        assert_eq!(script, expected);
    }
}
