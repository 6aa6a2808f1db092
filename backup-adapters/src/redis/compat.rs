//! Which files a server loads. One that it cannot load it would only refuse after it has dropped what it had.

use backup_core::{AdapterError, AdapterErrorKind, Metadata, OpContext};

use super::conn::Conn;
use super::facts::Info;
use super::live::setting;
use super::rdb::Summary;
use super::resp::Reply;

/// The first version of the format that Valkey numbers by itself.
const VALKEY: u32 = 80;

/// The last version of Redis's format that Valkey loads.
const LAST_SHARED: u32 = 11;

/// The newest format that a server of this version loads, where that is known.
fn newest(live: &Info) -> Option<u32> {
    if live.is_valkey() {
        let major: u32 = live.get("valkey_version").split('.').next()?.parse().ok()?;
        return (major < 9).then_some(LAST_SHARED);
    }
    match live.numbers() {
        (5 | 6, _) => Some(9),
        (7, 0 | 1) => Some(10),
        (7, 2 | 3) => Some(11),
        (7, _) => Some(12),
        _ => None,
    }
}

/// Whether the program `server` of this version loads `file`.
pub(super) fn loads(server: &str, version: &str, file: &Summary) -> bool {
    let key = if server == "valkey" { "valkey_version" } else { "redis_version" };
    let live = Info::parse(&format!("{key}:{version}\nserver_name:{server}\n"));
    (!file.valkey || live.is_valkey())
        && file.modules.is_empty()
        && newest(&live).is_some_and(|newest| file.version <= newest)
}

fn name(file: &Summary) -> String {
    let family = if file.valkey { "Valkey" } else { "Redis" };
    let made_by = ["valkey-ver", "redis-ver"].iter().find_map(|key| file.aux.get(*key));
    match made_by {
        Some(version) => format!("{family} {version} (RDB version {})", file.version),
        None => format!("{family} with RDB version {}", file.version),
    }
}

fn refused(live: &Info, made_by: &str) -> AdapterError {
    let (kind, version) = match live.is_valkey() {
        true => ("Valkey", live.get("valkey_version")),
        false => ("Redis", live.get("redis_version")),
    };
    AdapterError::new(
        AdapterErrorKind::Conflict,
        format!("the backup was made by {made_by}, which {kind} {version} cannot load: use a newer server"),
    )
}

/// Refuses what metadata.json tells already: a backup of a Redis whose files the server does not load. Valkey writes such of
/// older versions, too: that is told by the file alone.
pub(super) fn refuse_newer(live: &Info, backup: &Metadata) -> Result<(), AdapterError> {
    let made_by = backup.service_version.as_deref().unwrap_or_default();
    let then = Info::parse(&format!("redis_version:{made_by}"));
    // Those that are not known yet write none that is older than the last one known.
    let wrote =
        if then.numbers() >= (8, 0) { newest(&Info::parse("redis_version:7.4")) } else { newest(&then) };
    match (wrote, newest(live)) {
        (Some(wrote), Some(loads)) if wrote > loads => Err(refused(live, &format!("Redis {made_by}"))),
        _ => Ok(()),
    }
}

/// Refuses a file that the server would not load: by its version, its number of databases, its modules, its memory.
pub(super) async fn refuse_unloadable(
    cx: &OpContext,
    conn: &mut Conn,
    live: &Info,
    file: &Summary,
) -> Result<(), AdapterError> {
    let conflict = |what: String| Err(AdapterError::new(AdapterErrorKind::Conflict, what));
    if file.valkey && !live.is_valkey() || newest(live).is_some_and(|newest| file.version > newest) {
        return Err(refused(live, &name(file)));
    }
    let databases = setting(cx, conn, "databases").await?.and_then(|n| n.parse::<u64>().ok());
    let last = file.databases.keys().next_back();
    if let (Some(databases), Some(last)) = (databases, last)
        && *last >= databases
    {
        return conflict(format!(
            "the backup has a database {last}, but `{}` has only {databases}: set `databases {}` in its configuration",
            cx.service,
            last + 1
        ));
    }
    if !file.modules.is_empty() {
        let loaded = conn.ask(cx, &["MODULE", "LIST"]).await?;
        if matches!(&loaded, Reply::Array(list) if list.is_empty()) {
            let modules: Vec<&str> = file.modules.iter().map(String::as_str).collect();
            return conflict(format!(
                "the backup has data of modules ({}), and `{}` has none loaded",
                modules.join(", "),
                cx.service
            ));
        }
    }
    let needs = file.aux.get("used-mem").and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let may = live.number("maxmemory").filter(|n| *n > 0).unwrap_or(u64::MAX);
    if needs > may && !cx.force {
        return conflict(format!(
            "the backup needed {needs} bytes of memory, `maxmemory` of `{}` is {may}: it would evict keys or refuse writes",
            cx.service
        ));
    }
    Ok(())
}

/// Refuses a file that is newer than `own`, which the server has just written: it loads all up to that.
pub(super) fn refuse_foreign(live: &Info, own: &Summary, file: &Summary) -> Result<(), AdapterError> {
    // Valkey writes older versions for replicas that do not say what they load.
    let numbered = live.is_valkey() && newest(live).is_none();
    let loads = match (numbered, file.valkey) {
        (true, false) => file.version <= LAST_SHARED,
        (true, true) => !own.valkey && file.version <= VALKEY || file.version <= own.version,
        (false, valkey) => valkey == own.valkey && file.version <= own.version,
    };
    if loads { Ok(()) } else { Err(refused(live, &name(file))) }
}
