//! Waits until what a server holds is on its disk, so that it survives a restart.

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use tokio::time::sleep;

use super::LOOK;
use crate::redis::bgsave;
use crate::redis::conn::Conn;
use crate::redis::facts::{Info, Settings};

/// With AOF on: until the log was rewritten from what is in memory, which the server begins by itself after a
/// resynchronisation. With AOF off: until it has saved its file.
pub(super) async fn persist(cx: &OpContext, conn: &mut Conn) -> Result<(), AdapterError> {
    if !Info::read(conn, cx).await?.is("aof_enabled") {
        return save(cx, conn).await;
    }
    let mut tried = false;
    loop {
        let info = Info::read(conn, cx).await?;
        if !info.is("aof_rewrite_in_progress") && !info.is("aof_rewrite_scheduled") {
            match info.get("aof_last_bgrewrite_status") {
                "ok" => return Ok(()),
                _ if tried => {
                    let what = "could not rewrite its append-only file: is its disk full? Its log tells more";
                    return Err(conn.trouble(AdapterErrorKind::NoSpace, what));
                }
                _ => {
                    tried = true;
                    let _busy = conn.ask(cx, &["BGREWRITEAOF"]).await?;
                }
            }
        }
        cx.within(sleep(LOOK)).await?;
    }
}

/// Makes the server save its file, and waits for it.
pub(super) async fn save(cx: &OpContext, conn: &mut Conn) -> Result<(), AdapterError> {
    let settings = Settings::read(conn, cx).await?;
    bgsave::save(conn, cx, &settings).await.map(drop)
}
