//! What belongs to a database and is in no dump of it: its owner, encoding and locale, settings, rights, comment.
//!
//! Settings go into an artifact of their own and not into metadata.json: some keep secrets in them.

use std::fmt::Write as _;

use backup_core::{AdapterError, AdapterErrorKind};

use super::facts::{Database, Setting};
use super::sql::{ident, literal};

/// The line that a restore reads; for people the same follows as SQL.
const MARK: &str = "-- properties: ";

/// Settings that are lists of quoted names.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

fn unserialisable(e: serde_json::Error) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Other, "cannot write the properties of databases").with_source(e)
}

/// What metadata.json may show of a database.
pub(super) fn public(database: &Database) -> Result<serde_json::Value, AdapterError> {
    let shown = Database { settings: None, ..database.clone() };
    serde_json::to_value(shown).map_err(unserialisable)
}

/// The artifact: a script that makes the databases, with the same as data in its first line.
pub(super) fn script(databases: &[Database]) -> Result<String, AdapterError> {
    let data = serde_json::to_string(databases).map_err(unserialisable)?;
    let mut out = format!("{MARK}{data}\n");
    for database in databases {
        out.push('\n');
        for statement in
            [create(database, &database.name, true)].into_iter().chain(apply(database, &database.name))
        {
            // Writing to a String cannot fail.
            let _infallible = writeln!(out, "{statement};");
        }
    }
    Ok(out)
}

/// Reads [`script`]'s first line.
pub(super) fn parse(script: &str) -> Result<Vec<Database>, AdapterError> {
    let data = script.lines().next().and_then(|l| l.strip_prefix(MARK));
    let data = data.ok_or_else(|| AdapterError::corrupt("the artifact with the properties is another"))?;
    serde_json::from_str(data)
        .map_err(|e| AdapterError::corrupt("the properties of databases are not readable").with_source(e))
}

/// Makes an empty database like `database` under another name.
pub(super) fn create(database: &Database, name: &str, with_tablespace: bool) -> String {
    let mut sql = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        ident(name),
        literal(&database.encoding),
        literal(&database.collate),
        literal(&database.ctype)
    );
    let locale = database.locale.as_deref().map(literal);
    match (database.provider.as_deref(), locale) {
        (Some("i"), Some(locale)) => sql.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {locale}")),
        (Some("b"), Some(locale)) => {
            sql.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}"));
        }
        _ => {}
    }
    if let Some(rules) = &database.icu_rules {
        sql.push_str(&format!(" ICU_RULES {}", literal(rules)));
    }
    if with_tablespace && database.tablespace != "pg_default" {
        sql.push_str(&format!(" TABLESPACE {}", ident(&database.tablespace)));
    }
    sql
}

/// Gives `name` what `database` had besides its content.
pub(super) fn apply(database: &Database, name: &str) -> Vec<String> {
    let target = ident(name);
    let mut out = vec![format!("ALTER DATABASE {target} OWNER TO {}", ident(&database.owner))];
    if database.connection_limit != -1 {
        out.push(format!("ALTER DATABASE {target} CONNECTION LIMIT {}", database.connection_limit));
    }
    if let Some(comment) = &database.comment {
        out.push(format!("COMMENT ON DATABASE {target} IS {}", literal(comment)));
    }
    for Setting { role, setting } in database.settings.iter().flatten() {
        let Some((key, value)) = setting.split_once('=') else { continue };
        let of = match role {
            Some(role) => format!("ALTER ROLE {} IN DATABASE {target}", ident(role)),
            None => format!("ALTER DATABASE {target}"),
        };
        // Names such as `app.key` are written part by part.
        let parts: Vec<String> = key.split('.').map(ident).collect();
        out.push(format!("{of} SET {} TO {}", parts.join("."), setting_value(key, value)));
    }
    if let Some(acl) = &database.acl {
        out.push(format!("REVOKE ALL ON DATABASE {target} FROM PUBLIC"));
        out.push(format!("REVOKE ALL ON DATABASE {target} FROM {}", ident(&database.owner)));
        for grant in acl {
            let to = grant.grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), ident);
            let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
            out.push(format!("GRANT {} ON DATABASE {target} TO {to}{option}", grant.privilege));
        }
    }
    out
}

fn setting_value(key: &str, value: &str) -> String {
    if !LISTS.contains(&key) {
        return literal(value);
    }
    let mut elements = vec![String::new()];
    let mut quoted = false;
    for c in value.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => elements.push(String::new()),
            c if c.is_whitespace() && !quoted => {}
            c => {
                if let Some(last) = elements.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    let elements: Vec<String> = elements.iter().map(|e| literal(e)).collect();
    elements.join(", ")
}

/// The roles that a database's properties name.
pub(super) fn roles(database: &Database) -> impl Iterator<Item = &String> {
    let grantees = database.acl.iter().flatten().filter_map(|g| g.grantee.as_ref());
    let set = database.settings.iter().flatten().filter_map(|s| s.role.as_ref());
    [&database.owner].into_iter().chain(grantees).chain(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Database {
        serde_json::from_value(serde_json::json!({
            "name": "we\"ird", "owner": "o'x", "encoding": "UTF8", "collate": "C", "ctype": "C", "tablespace": "pg_default",
            "connection_limit": 7, "comment": "it's",
            "acl": [{"grantee": null, "privilege": "CONNECT", "grantable": false}],
            "settings": [{"role": null, "setting": "search_path=\"$user\", public"}, {"role": "r", "setting": "app.key=a,b"}],
        }))
        .unwrap()
    }

    #[test]
    fn properties_survive_the_artifact() {
        let databases = vec![sample()];
        let script = script(&databases).unwrap();
        assert_eq!(parse(&script).unwrap(), databases);
        assert!(
            script.contains("ALTER DATABASE \"we\"\"ird\" SET \"search_path\" TO '$user', 'public';"),
            "{script}"
        );
        assert!(
            script.contains("ALTER ROLE \"r\" IN DATABASE \"we\"\"ird\" SET \"app\".\"key\" TO 'a,b';"),
            "{script}"
        );
        assert!(parse("SELECT 1").is_err());
    }

    #[test]
    fn metadata_shows_no_settings() {
        assert!(!public(&sample()).unwrap().to_string().contains("a,b"));
    }
}
