//! Services of the host: programs beside them, and systemd units by a stand-in for `systemctl`.

#![cfg(feature = "_runtime")]
#![expect(clippy::unwrap_used, reason = "assertions of tests")]

mod exec;
mod unit;
