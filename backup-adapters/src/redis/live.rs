//! What a restore wants to know of a server.

use std::net::SocketAddr;

use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext};

use super::conn::{Conn, Server};
use super::facts::Info;
use super::resp::Reply;

impl Info {
    /// A field; empty if there is none.
    pub(super) fn get(&self, key: &str) -> &str {
        self.text(key).unwrap_or_default()
    }

    /// Whether it is a replica of another server, or of us.
    pub(super) fn is_replica(&self) -> bool {
        self.get("role") == "slave"
    }

    pub(super) fn is_valkey(&self) -> bool {
        self.get("server_name") == "valkey"
    }

    /// Of Redis; that which Valkey claims to be like is 7.2.
    pub(super) fn numbers(&self) -> (u32, u32) {
        let mut parts = self.get("redis_version").split('.').map(|n| n.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    /// Whether its data goes back to the full resynchronisation that we named `id`: it took in all of it, and has not
    /// been started anew since.
    pub(super) fn holds(&self, id: &str) -> bool {
        !self.is("loading") && (self.get("master_replid") == id || self.get("master_replid2") == id)
    }

    /// Whether it is a replica of what was or is a port of ours at `address`.
    pub(super) fn follows(&self, address: SocketAddr) -> bool {
        let same_port = self.number("master_port") == Some(address.port().into());
        self.get("master_host") == address.ip().to_string()
            // Of an earlier attempt, which is no more.
            && (same_port || self.get("master_link_status") == "down")
    }

    /// Its keys, counted as those of a file are.
    pub(super) fn evidence(&self) -> Evidence {
        let (mut evidence, mut sum) = (Evidence::default(), (0, 0));
        for (name, fields) in self.fields() {
            let Some(number) = name.strip_prefix("db").filter(|n| n.parse::<u64>().is_ok()) else { continue };
            let of = |field: &str| {
                let mut fields = fields.split(',').filter_map(|f| f.split_once('='));
                fields.find(|(k, _)| *k == field).and_then(|(_, v)| v.parse::<u64>().ok()).unwrap_or(0)
            };
            let (all, lasting) = (of("keys"), of("keys").saturating_sub(of("expires")));
            evidence.counts.insert(format!("db{number}.keys"), all);
            evidence.counts.insert(format!("db{number}.keys_without_ttl"), lasting);
            sum = (sum.0 + all, sum.1 + lasting);
        }
        evidence.counts.insert("keys".into(), sum.0);
        evidence.counts.insert("keys_without_ttl".into(), sum.1);
        if let Some(libraries) = self.number("number_of_libraries") {
            evidence.counts.insert("functions".into(), libraries);
        }
        evidence
    }
}

/// The value of a setting; `None` if the server does not know it.
pub(super) async fn setting(
    cx: &OpContext,
    conn: &mut Conn,
    name: &str,
) -> Result<Option<String>, AdapterError> {
    let answer = conn.call(cx, &["CONFIG", "GET", name]).await?;
    Ok(answer.items().get(1).and_then(Reply::text))
}

/// Writes a key and removes it, so that nobody else sees it.
pub(super) async fn take_a_write(server: &Server, cx: &OpContext) -> Result<(), AdapterError> {
    let mut conn = server.connect(cx).await?;
    let key = format!("backup:proof:{}", cx.run_id);
    // Should the connection break in between, the server drops what was queued.
    conn.call(cx, &["MULTI"]).await?;
    conn.call(cx, &["SET", &key, "1", "PX", "10000"]).await?;
    conn.call(cx, &["DEL", &key]).await?;
    let failed = |reply: &Reply| match reply {
        Reply::Error(e) => Some(e.clone()),
        _ => None,
    };
    match conn.call(cx, &["EXEC"]).await?.items().iter().find_map(failed) {
        Some(error) => Err(conn.refused("SET", &error)),
        None => Ok(()),
    }
}

/// Refuses what must not be replaced: a server that others follow, or that follows others.
pub(super) async fn refuse(cx: &OpContext, conn: &mut Conn, info: &Info) -> Result<(), AdapterError> {
    let conflict = |what: String| Err(AdapterError::new(AdapterErrorKind::Conflict, what));
    let server = &cx.service;
    match info.get("redis_mode") {
        "sentinel" => return conflict(format!("`{server}` is a Sentinel, which holds no data")),
        "cluster" => {
            return conflict(format!(
                "`{server}` is a node of a cluster: restore with the cluster's own tools (redis-cli --cluster import)"
            ));
        }
        _ => {}
    }
    if info.is_replica() {
        let (host, port) = (info.get("master_host"), info.get("master_port"));
        return conflict(format!("`{server}` is a replica of {host}:{port}: restore that one"));
    }
    if info.number("connected_slaves").unwrap_or(0) > 0 {
        let who = info.get("slave0").split(',').take(2).collect::<Vec<_>>().join(",");
        return conflict(format!(
            "`{server}` has replicas ({who}): detach them (REPLICAOF NO ONE) and attach them again afterwards"
        ));
    }
    // A Sentinel says hello on this channel of every server that it watches. Who may not ask does not find out.
    let heard = conn.ask(cx, &["PUBSUB", "NUMSUB", "__sentinel__:hello"]).await?;
    if heard.items().get(1).and_then(Reply::text).is_some_and(|n| n != "0") {
        return conflict(format!(
            "`{server}` is watched by a Sentinel, which would appoint another primary meanwhile: SENTINEL REMOVE it there first"
        ));
    }
    if info.is("loading") {
        return Err(AdapterError::new(
            AdapterErrorKind::Unavailable,
            format!("`{server}` still loads its data: try again later"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_counted_by_database() {
        let info = Info::parse("# Keyspace\r\ndb0:keys=10,expires=4,avg_ttl=0\r\ndb3:keys=1,expires=1\r\n");
        let counts = info.evidence().counts;
        assert_eq!((counts["keys"], counts["keys_without_ttl"]), (11, 6));
        assert_eq!((counts["db0.keys_without_ttl"], counts["db3.keys_without_ttl"]), (6, 0));
    }
}
