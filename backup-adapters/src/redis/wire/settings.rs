//! Settings of the server that would be in the way, and how they are put back.

use backup_core::{AdapterError, AdapterErrorKind, OpContext, Secret};
use tokio_rustls::rustls::crypto::ring;

use super::Reach;
use super::fence::{QUORUM, QUORUM_LAG};
use crate::redis::conn::{Conn, Server};
use crate::redis::live::setting;

const PASSWORD: &str = "masterauth";
const READ_ONLY: &str = "replica-read-only";
const ENCRYPTED: &str = "tls-replication";

/// What to set.
#[derive(Debug)]
pub(super) struct Settings {
    /// What the server will send us as password.
    pub(super) password: Secret,
    /// What is different while it follows us, besides the password.
    during: Vec<(&'static str, &'static str)>,
    /// Whether the password is ours, and not one that it has anyway.
    own_password: bool,
    /// As they were. No secrets: a password of the server's own is not touched.
    pub(super) before: Vec<(String, String)>,
}

impl Settings {
    /// Reads what there is.
    pub(super) async fn read(
        cx: &OpContext,
        conn: &mut Conn,
        server: &Server,
        reach: &Reach,
    ) -> Result<Self, AdapterError> {
        let (mut during, mut before) = (Vec::new(), Vec::new());
        let there = setting(cx, conn, PASSWORD).await?.unwrap_or_default();
        let own_password = there.is_empty();
        if own_password {
            before.push((PASSWORD.to_owned(), String::new()));
        }
        if setting(cx, conn, READ_ONLY).await?.as_deref() == Some("no") {
            during.push((READ_ONLY, "yes"));
            before.push((READ_ONLY.to_owned(), "no".to_owned()));
        }
        let encrypted = setting(cx, conn, ENCRYPTED).await?.as_deref() == Some("yes");
        if encrypted {
            during.push((ENCRYPTED, "no"));
            before.push((ENCRYPTED.to_owned(), "yes".to_owned()));
        }
        if (encrypted || server.tls.is_some()) && !reach.private && !cx.force {
            let what = format!(
                "`{}` is reached with TLS, but a restore over the wire sends the data unencrypted: restore on its own host",
                cx.service
            );
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
        before.extend(Self::quorum(cx, conn).await?);
        let password = if own_password { Secret::new(random()?) } else { Secret::new(there) };
        Ok(Self { password, during, own_password, before })
    }

    /// What the fence may change.
    pub(super) async fn quorum(
        cx: &OpContext,
        conn: &mut Conn,
    ) -> Result<Vec<(String, String)>, AdapterError> {
        let mut before = Vec::new();
        for name in [QUORUM, QUORUM_LAG] {
            if let Some(value) = setting(cx, conn, name).await? {
                before.push((name.to_owned(), value));
            }
        }
        Ok(before)
    }

    /// Sets them.
    pub(super) async fn apply(&self, cx: &OpContext, conn: &mut Conn) -> Result<(), AdapterError> {
        for (name, value) in &self.during {
            set(cx, conn, name, value).await?;
        }
        if self.own_password {
            set(cx, conn, PASSWORD, self.password.expose()).await?;
        }
        Ok(())
    }
}

/// Sets one.
pub(super) async fn set(
    cx: &OpContext,
    conn: &mut Conn,
    name: &str,
    value: &str,
) -> Result<(), AdapterError> {
    conn.call(cx, &["CONFIG", "SET", name, value]).await.map(drop)
}

/// Puts back the settings that are different now.
pub(super) async fn put_back(
    cx: &OpContext,
    conn: &mut Conn,
    before: &[(String, String)],
) -> Result<(), AdapterError> {
    for (name, value) in before {
        // Whoever may not set anything has changed nothing.
        if setting(cx, conn, name).await?.as_ref() != Some(value) {
            set(cx, conn, name, value).await?;
        }
    }
    Ok(())
}

/// 40 hex digits that nobody else has.
pub(in crate::redis) fn random() -> Result<String, AdapterError> {
    let mut bytes = [0; 20];
    ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| AdapterError::new(AdapterErrorKind::Other, "the system has no random numbers"))?;
    Ok(hex::encode(bytes))
}
