//! What a server says of itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backup_core::{AdapterError, AdapterErrorKind, OpContext};

use super::conn::Conn;
use super::resp::Reply;

/// The answer to `INFO`.
#[derive(Debug, Clone, Default)]
pub(super) struct Info(BTreeMap<String, String>);

impl Info {
    /// Asks for everything that `INFO` tells by default.
    pub(super) async fn read(conn: &mut Conn, cx: &OpContext) -> Result<Self, AdapterError> {
        let text = conn.call(cx, &["INFO"]).await?.text().unwrap_or_default();
        Ok(Self::parse(&text))
    }

    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of them.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.text(key)?.parse().ok()
    }

    /// A field that is `0` or `1`.
    pub(super) fn is(&self, key: &str) -> bool {
        self.text(key) == Some("1")
    }

    /// Name and version of the server, e.g. `7.0.15` or `valkey 8.0.1`.
    pub(super) fn version(&self) -> Option<String> {
        match (self.text("server_name"), self.text("valkey_version"), self.text("redis_version")) {
            (Some(name), Some(own), _) if name != "redis" => Some(format!("{name} {own}")),
            (Some(name), None, Some(version)) if name != "redis" => Some(format!("{name} {version}")),
            (_, _, version) => version.map(str::to_owned),
        }
    }
}

/// Settings of a server; those that it does not tell are missing.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    known: BTreeMap<String, String>,
    /// Why it does not tell.
    refusal: Option<String>,
}

/// What the adapter may want to know: no secrets among them.
const WANTED: [&str; 10] = [
    "dir",
    "dbfilename",
    "appendonly",
    "appenddirname",
    "appendfilename",
    "rdbchecksum",
    "save",
    "stop-writes-on-bgsave-error",
    "repl-diskless-sync",
    "repl-diskless-sync-delay",
];

impl Settings {
    /// Asks for the settings that matter, one by one, as old servers know it. A user without the right to do so gets none.
    pub(super) async fn read(conn: &mut Conn, cx: &OpContext) -> Result<Self, AdapterError> {
        let mut settings = Self::default();
        for key in WANTED {
            match conn.ask(cx, &["CONFIG", "GET", key]).await? {
                Reply::Error(e) => {
                    settings.refusal = Some(e);
                    break;
                }
                reply => {
                    if let [_, value] = reply.items()
                        && let Some(value) = value.text()
                    {
                        settings.known.insert(key.to_owned(), value);
                    }
                }
            }
        }
        Ok(settings)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.known.get(key).map(String::as_str)
    }

    /// Where the server writes its file.
    ///
    /// # Errors
    /// `PermissionDenied`, naming the right, if it does not tell; `Unsupported` if the command is renamed.
    pub(super) fn rdb_path(&self, conn: &Conn) -> Result<PathBuf, AdapterError> {
        match (self.text("dir"), self.text("dbfilename"), &self.refusal) {
            (Some(dir), Some(name), _) => Ok(PathBuf::from(dir).join(name)),
            (_, _, Some(refusal)) => Err(conn.refused("CONFIG GET", refusal)),
            _ => Err(conn.trouble(AdapterErrorKind::Unsupported, "does not tell where its file is")),
        }
    }

    /// Whether a failed save makes the server refuse writes.
    pub(super) fn failed_save_stops_writes(&self) -> bool {
        self.text("stop-writes-on-bgsave-error") != Some("no") && self.text("save") != Some("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_name_their_server() {
        let of = |text: &str| Info::parse(text).version();
        assert_eq!(of("# Server\r\nredis_version:7.0.15\r\n").as_deref(), Some("7.0.15"));
        assert_eq!(of("redis_version:7.2.4\r\nserver_name:redis\r\n").as_deref(), Some("7.2.4"));
        let valkey = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n";
        assert_eq!(of(valkey).as_deref(), Some("valkey 8.1.0"));
        assert_eq!(of(""), None);
    }
}
