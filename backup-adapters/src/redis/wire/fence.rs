//! Holds back writers, in such a way that they go on by themselves if we do not live to let them.

use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use tokio::time::{Instant, sleep};

use super::settings::set;
use crate::redis::conn::{Conn, Server};
use crate::redis::facts::Info;
use crate::redis::resp::Reply;

/// How long a pause lasts that nobody prolongs.
const PAUSE: Duration = Duration::from_secs(15);

/// How often it is prolonged.
const PROLONG: Duration = Duration::from_secs(4);

/// More replicas than any server has: without them it accepts no writes.
const NO_QUORUM: &str = "1000000";

/// The setting that takes their place where a server cannot pause writers (before 6.2), or its user may not. Its value
/// before is among those that are put back.
pub(super) const QUORUM: &str = "min-replicas-to-write";
pub(super) const QUORUM_LAG: &str = "min-replicas-max-lag";

/// Writers are held back.
#[derive(Debug, Clone)]
pub(super) struct Fence {
    /// Until when, at least, without a gap since the beginning; `None` for as long as we want.
    until: Option<Arc<Mutex<Instant>>>,
}

/// Sees to it that they are.
#[derive(Debug)]
pub(super) struct Keeper {
    pause: Option<(Conn, Arc<Mutex<Instant>>)>,
    server: Server,
}

impl Fence {
    /// From now on no writer gets through. With a pause they wait; without it they get errors.
    pub(super) async fn raise(
        cx: &OpContext,
        server: &Server,
        live: &Info,
    ) -> Result<(Self, Keeper), AdapterError> {
        let mut conn = server.connect(cx).await?;
        if live.numbers() >= (6, 2) {
            let began = Instant::now();
            match pause(cx, &mut conn).await? {
                Reply::Error(e) if e.starts_with("NOPERM") || e.starts_with("ERR") => {}
                Reply::Error(e) => return Err(conn.refused("CLIENT PAUSE", &e)),
                _ => {
                    let until = Arc::new(Mutex::new(began + PAUSE));
                    let keeper = Keeper { pause: Some((conn, Arc::clone(&until))), server: server.clone() };
                    return Ok((Self { until: Some(until) }, keeper));
                }
            }
        }
        set(cx, &mut conn, QUORUM_LAG, "10").await?;
        set(cx, &mut conn, QUORUM, NO_QUORUM).await?;
        Ok((Self { until: None }, Keeper { pause: None, server: server.clone() }))
    }

    /// Whether nobody can have got through since it was raised.
    pub(super) fn held(&self) -> bool {
        self.until
            .as_ref()
            .is_none_or(|until| Instant::now() < *until.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether keys do not even expire meanwhile.
    pub(super) fn stops_expiry(&self) -> bool {
        self.until.is_some()
    }
}

async fn pause(cx: &OpContext, conn: &mut Conn) -> Result<Reply, AdapterError> {
    conn.ask(cx, &["CLIENT", "PAUSE", &PAUSE.as_millis().to_string(), "WRITE"]).await
}

impl Keeper {
    /// Keeps it up for as long as it is polled.
    pub(super) async fn keep(mut self, cx: &OpContext) -> Infallible {
        loop {
            sleep(PROLONG).await;
            let Some((conn, until)) = &mut self.pause else { continue };
            let began = Instant::now();
            match pause(cx, conn).await {
                Ok(Reply::Error(_)) => {}
                Ok(_) => {
                    let mut until = until.lock().unwrap_or_else(PoisonError::into_inner);
                    // Once there was a gap, there is no way back.
                    if began < *until {
                        *until = began + PAUSE;
                    }
                }
                // The server may have been started anew; whether the fence held is asked for where it matters.
                Err(_) => {
                    if let Ok(fresh) = self.server.connect(cx).await {
                        *conn = fresh;
                    }
                }
            }
        }
    }
}

/// Lets writers go on. Harmless where none wait.
pub(super) async fn lower(cx: &OpContext, conn: &mut Conn) -> Result<(), AdapterError> {
    match conn.ask(cx, &["CLIENT", "UNPAUSE"]).await? {
        // Before 6.2, or without the right: then there was no pause, or it ends by itself.
        Reply::Error(e) if e.starts_with("ERR") || e.starts_with("NOPERM") => Ok(()),
        Reply::Error(e) => Err(AdapterError::new(
            AdapterErrorKind::Other,
            format!("`{}` does not let its writers go on: {e}", cx.service),
        )),
        _ => Ok(()),
    }
}
