//! What the server says about itself and its databases.

use serde::{Deserialize, Serialize};

use super::link::Link;
use super::sql::{ident, literal};
use super::{Flavor, Settings};
use backup_core::{AdapterError, AdapterErrorKind, RunId, Timestamp};

/// Everything about the server, in one answer.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ServerFacts {
    pub(super) version: String,
    pub(super) user: String,
    pub(super) superuser: bool,
    pub(super) databases: Vec<Database>,
    pub(super) roles: Vec<String>,
    pub(super) tablespaces: Vec<String>,
}

/// One database: all that a dump of it does not hold. Written into backups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Database {
    #[serde(default)]
    pub(super) oid: u64,
    pub(super) name: String,
    pub(super) owner: String,
    pub(super) encoding: String,
    pub(super) collate: String,
    pub(super) ctype: String,
    /// `c` (the C library), `i` (ICU) or `b` (built in).
    #[serde(default)]
    pub(super) provider: Option<String>,
    /// The locale of the providers other than the C library.
    #[serde(default)]
    pub(super) locale: Option<String>,
    #[serde(default)]
    pub(super) icu_rules: Option<String>,
    pub(super) tablespace: String,
    pub(super) connection_limit: i64,
    #[serde(default)]
    pub(super) template: bool,
    #[serde(default = "yes")]
    pub(super) allows_connections: bool,
    #[serde(default = "yes")]
    pub(super) may_connect: bool,
    #[serde(default)]
    pub(super) size: Option<u64>,
    #[serde(default)]
    pub(super) comment: Option<String>,
    /// `None`: as every new database.
    #[serde(default)]
    pub(super) acl: Option<Vec<Grant>>,
    #[serde(default)]
    pub(super) settings: Option<Vec<Setting>>,
}

fn yes() -> bool {
    true
}

/// A right on a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    /// `None`: everybody.
    pub(super) grantee: Option<String>,
    pub(super) privilege: String,
    pub(super) grantable: bool,
}

/// A setting of a database, or of a role in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setting {
    pub(super) role: Option<String>,
    /// `name=value`.
    pub(super) setting: String,
}

/// What is in a database, less its rows.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Inside {
    /// The oldest first, partitions left out.
    pub(super) tables: Vec<(String, String)>,
    pub(super) table_count: u64,
    /// Estimated by the planner.
    pub(super) estimated_rows: f64,
    pub(super) extensions: Vec<(String, String)>,
    /// Roles that objects or rights in it belong to.
    pub(super) roles: Vec<String>,
    pub(super) tablespaces: Vec<String>,
    pub(super) public_schema: bool,
    pub(super) has_objects: bool,
}

/// As many tables of a database are counted one by one.
pub(super) const MAX_TABLES: usize = 1000;

const SERVER: &str = "SELECT json_build_object(
'version', current_setting('server_version'),
'user', current_user, 'superuser', (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
'roles', (SELECT json_agg(rolname) FROM pg_roles),
'tablespaces', (SELECT json_agg(spcname) FROM pg_tablespace),
'databases', (SELECT json_agg(json_build_object('oid', d.oid::bigint, 'name', d.datname,
 'owner', pg_get_userbyid(d.datdba), 'encoding', pg_encoding_to_char(d.encoding),
 'collate', d.datcollate, 'ctype', d.datctype, 'provider', to_jsonb(d)->>'datlocprovider',
 'locale', coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale'),
 'icu_rules', to_jsonb(d)->>'daticurules',
 'tablespace', (SELECT spcname FROM pg_tablespace t WHERE t.oid = d.dattablespace),
 'connection_limit', d.datconnlimit, 'template', d.datistemplate, 'allows_connections', d.datallowconn,
 'may_connect', coalesce(has_database_privilege(d.oid, 'CONNECT'), false),
 'size', CASE WHEN has_database_privilege(d.oid, 'CONNECT') AND NOT d.datistemplate THEN pg_database_size(d.oid) END,
 'comment', shobj_description(d.oid, 'pg_database'),
 'acl', (SELECT json_agg(json_build_object('grantee', CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END,
  'privilege', a.privilege_type, 'grantable', a.is_grantable)) FROM aclexplode(d.datacl) a),
 'settings', (SELECT json_agg(json_build_object('role', CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole) END,
  'setting', c)) FROM pg_db_role_setting s, unnest(s.setconfig) c WHERE s.setdatabase = d.oid)
) ORDER BY d.datname) FROM pg_database d))";

/// Tables with rows of their own, less those of the system and of extensions.
const USER_TABLES: &str = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'
AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')";

/// What is in the database that it runs in.
pub(super) fn inside_sql() -> String {
    format!(
        "SELECT json_build_object(
'tables', coalesce((SELECT json_agg(json_build_array(nspname, relname)) FROM (SELECT n.nspname, c.relname {USER_TABLES}
 AND NOT c.relispartition ORDER BY c.oid LIMIT {MAX_TABLES}) t), '[]'),
'table_count', (SELECT count(*) {USER_TABLES}),
'estimated_rows', coalesce((SELECT sum(greatest(c.reltuples, 0)) {USER_TABLES}), 0),
'extensions', coalesce((SELECT json_agg(json_build_array(extname, extversion) ORDER BY extname) FROM pg_extension), '[]'),
'roles', coalesce((SELECT json_agg(DISTINCT r.rolname) FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
 WHERE s.refclassid = 'pg_authid'::regclass AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())),
 '[]'),
'tablespaces', coalesce((SELECT json_agg(DISTINCT t.spcname) FROM pg_class c JOIN pg_tablespace t ON t.oid =
 c.reltablespace WHERE t.spcname <> 'pg_global'), '[]'),
'public_schema', EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public'),
'has_objects', EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname NOT IN
 ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%')
 OR EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname NOT IN
 ('pg_catalog', 'information_schema')) OR EXISTS (SELECT FROM pg_largeobject_metadata)
 OR EXISTS (SELECT FROM pg_namespace WHERE nspname NOT IN ('public', 'information_schema') AND nspname NOT LIKE 'pg\\_%')
 OR EXISTS (SELECT FROM pg_extension WHERE extname <> 'plpgsql'))"
    )
}

/// The SQL that lists every table with rows of its own, as `[schema, table]` each.
pub(super) fn tables_sql() -> String {
    format!("SELECT coalesce(json_agg(json_build_array(n.nspname, c.relname)), '[]') {USER_TABLES}")
}

/// The SQL that counts the rows of one table.
pub(super) fn count_sql(schema: &str, table: &str) -> String {
    format!(
        "SELECT json_build_array({}, {}, count(*)) FROM ONLY {}.{};\n",
        literal(schema),
        literal(table),
        ident(schema),
        ident(table)
    )
}

impl ServerFacts {
    pub(super) async fn ask(link: &Link) -> Result<Self, AdapterError> {
        let facts: Result<Self, _> = link.json(&link.home, SERVER).await;
        facts.map_err(|f| f.explain("cannot ask the server for its databases"))
    }

    pub(super) fn database(&self, name: &str) -> Option<&Database> {
        self.databases.iter().find(|d| d.name == name)
    }

    pub(super) fn by_oid(&self, oid: u64) -> Option<&Database> {
        self.databases.iter().find(|d| d.oid == oid)
    }

    /// The databases that the configuration selects, smallest first, and what is left out of them and why.
    pub(super) fn selected(&self, settings: &Settings) -> Result<(Vec<Database>, Vec<String>), AdapterError> {
        let mut left_out = Vec::new();
        let mut chosen: Vec<Database> = if settings.databases.is_empty() {
            let ordinary = |d: &&Database| {
                let internal = settings.flavor == Flavor::Yugabyte && d.name == "system_platform";
                !d.template && !internal
            };
            let mut chosen = Vec::new();
            for database in self.databases.iter().filter(ordinary) {
                if !database.allows_connections {
                    left_out
                        .push(format!("database `{}` allows no connections and is left out", database.name));
                } else if is_staged(&database.name) {
                    left_out
                        .push(format!("database `{}` is left of a restore and is left out", database.name));
                } else {
                    chosen.push(database.clone());
                }
            }
            chosen
        } else {
            let find = |name: &String| {
                self.database(name).cloned().ok_or_else(|| {
                    let there: Vec<&str> =
                        self.databases.iter().filter(|d| !d.template).map(|d| d.name.as_str()).collect();
                    let message = format!("the server has no database `{name}`; it has {}", there.join(", "));
                    AdapterError::new(AdapterErrorKind::NotFound, message)
                })
            };
            settings.databases.iter().map(find).collect::<Result<_, _>>()?
        };
        if let Some(closed) = chosen.iter().find(|d| !d.may_connect) {
            let message = format!(
                "role `{}` may not connect to database `{}`: grant it CONNECT, or name the `databases` to back up",
                self.user, closed.name
            );
            return Err(AdapterError::new(AdapterErrorKind::PermissionDenied, message));
        }
        chosen.sort_by_key(|d| (d.size.unwrap_or(u64::MAX), d.name.clone()));
        Ok((chosen, left_out))
    }
}

/// In the names of databases that a restore prepares.
const STAGED: &str = "_restore_";

/// The suffix of databases that `run` prepares.
pub(super) fn staged_suffix(run: &RunId) -> String {
    format!("{STAGED}{run}")
}

/// Whether a restore prepared this database.
fn is_staged(name: &str) -> bool {
    let moment =
        |run: &str| run.get(..15).is_some_and(|at| at.parse::<Timestamp>().is_ok()) && run.len() == 24;
    name.rsplit_once(STAGED).is_some_and(|(_, run)| moment(run))
}
