//! Names and texts in SQL and in connection strings.

/// As SQL writes an identifier.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As SQL writes a text, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// The value of `-d` for a database of any name. (A bare name with `=` in it would be taken for a connection string.)
pub(super) fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// PostgreSQL's limit for a name, in bytes.
const NAME_BYTES: usize = 63;

/// `name` with `suffix`, within the limit. A name that has to be cut carries a hash, so that no two become one.
pub(super) fn suffixed(name: &str, suffix: &str) -> String {
    if name.len() + suffix.len() <= NAME_BYTES {
        return format!("{name}{suffix}");
    }
    let hash = blake3::hash(name.as_bytes()).to_hex();
    let hash = hash.get(..6).unwrap_or_default();
    let room = NAME_BYTES.saturating_sub(suffix.len() + hash.len() + 1);
    let end = (0..=room.min(name.len())).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
    format!("{}_{hash}{suffix}", name.get(..end).unwrap_or_default())
}

/// Splits a script into its statements, without comments between them and without the commands of psql.
pub(super) fn statements(script: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut current = String::new();
    let mut chars = script.chars().peekable();
    let mut quote = None;
    let mut line_start = true;
    while let Some(c) = chars.next() {
        let first = std::mem::replace(&mut line_start, c == '\n');
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '-') if chars.peek() == Some(&'-') => {
                chars.by_ref().find(|c| *c == '\n');
                line_start = true;
                continue;
            }
            (None, '\\') if first && current.trim().is_empty() => {
                chars.by_ref().find(|c| *c == '\n');
                line_start = true;
                continue;
            }
            (None, ';') => {
                out.push(std::mem::take(&mut current).trim().to_owned());
                continue;
            }
            (None, _) => {}
        }
        current.push(c);
    }
    out.retain(|s| !s.is_empty());
    out
}

/// The identifier at the beginning of `text`, and the rest.
pub(super) fn take_ident(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || matches!(c, ',' | ';')).unwrap_or(text.len());
        let (name, rest) = text.split_at_checked(end)?;
        return (!name.is_empty()).then(|| (name.to_owned(), rest));
    };
    let mut name = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(ident("we\"ird"), "\"we\"\"ird\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'"), " E'a\\\\'''");
        assert_eq!(conninfo("a'b\\"), "dbname='a\\'b\\\\'");
    }

    #[test]
    fn suffixed_names_fit_and_differ() {
        assert_eq!(suffixed("app", "_backup_20260309_043820"), "app_backup_20260309_043820");
        let long = |last: char| suffixed(&format!("{}{last}", "ü".repeat(30)), "_backup_20260309_043820");
        assert!(long('a').len() <= NAME_BYTES && long('a').ends_with("_backup_20260309_043820"));
        assert_ne!(long('a'), long('b'));
    }

    #[test]
    fn scripts_are_split() {
        let script =
            "-- a; comment\n\\restrict x\nCREATE ROLE \"a;b\";\nALTER ROLE x PASSWORD 'it''s;';\n\n-- end\n";
        assert_eq!(statements(script), ["CREATE ROLE \"a;b\"", "ALTER ROLE x PASSWORD 'it''s;'"]);
        assert_eq!(take_ident(" \"a\"\"b\" WITH"), Some(("a\"b".to_owned(), " WITH")));
        assert_eq!(take_ident("x WITH"), Some(("x".to_owned(), " WITH")));
    }
}
