//! Tenants that are not loaded, which the server leaves out of a backup without a word: they are made active for its
//! duration. Journal and watchdog know of it before.

use std::collections::BTreeMap;

use backup_core::runtime::{Announced, Interruption, InterruptionEntry, InterruptionKind, Replay};
use backup_core::{AdapterError, AdapterErrorKind, OpContext, StepToken};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::Inactive;
use super::api::Api;
use super::server::Server;

/// By default, so many are woken at most: each takes memory.
const FEW: usize = 100;

/// In one request.
const BATCH: usize = 100;

/// How long they may stay awake where the run has no budget.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(6 * 3600);

/// What the journal keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Woken {
    pub(super) tenants: BTreeMap<String, Vec<String>>,
}

/// What to do about `inactive` tenants: those to wake, or an error.
///
/// # Errors
/// `Conflict` if there are more than may be woken without being asked.
pub(super) fn decide(
    api: &Api,
    mode: Inactive,
    inactive: &BTreeMap<String, Vec<String>>,
) -> Result<bool, AdapterError> {
    let many = inactive.values().map(Vec::len).sum::<usize>();
    match mode {
        _ if many == 0 => Ok(false),
        Inactive::LeaveOut => Ok(false),
        Inactive::Activate => Ok(true),
        Inactive::Auto if many <= FEW => Ok(true),
        Inactive::Auto => {
            let what = format!(
                "{} has {many} inactive tenants, which its backups leave out: set `inactive_tenants` to \"activate\" \
                 (all are loaded for the duration) or \"leave-out\"",
                api.name()
            );
            Err(AdapterError::new(AdapterErrorKind::Conflict, what))
        }
    }
}

/// Makes them active. What is returned must be undone by [`lull`].
///
/// # Errors
/// Those of the journal and of the requests; what was made active stays so, and the journal knows.
pub(super) async fn announce(
    server: &Server,
    cx: &OpContext,
    tenants: BTreeMap<String, Vec<String>>,
) -> Result<Announced, AdapterError> {
    let instance = match server.runtime() {
        Some(runtime) => runtime.inspect().await?.instance,
        None => server.to_string(),
    };
    let token = StepToken::new(&Woken { tenants })?;
    let deadline = Instant::now() + cx.remaining().unwrap_or(LIMIT);
    Interruption::announce(cx.interruption(), "activate tenants of", instance, token, deadline).await
}

pub(super) async fn set(
    api: &Api,
    cx: &OpContext,
    tenants: &BTreeMap<String, Vec<String>>,
    status: &str,
) -> Result<(), AdapterError> {
    for (class, names) in tenants {
        for batch in names.chunks(BATCH) {
            let body: Vec<_> =
                batch.iter().map(|name| json!({ "name": name, "activityStatus": status })).collect();
            match api.put(cx, &format!("/v1/schema/{class}/tenants"), &json!(body)).await {
                // The collection, or one of them, is gone: one by one then.
                Err(e) if matches!(e.kind(), AdapterErrorKind::NotFound | AdapterErrorKind::Other) => {
                    for one in &body {
                        match api.put(cx, &format!("/v1/schema/{class}/tenants"), &json!([one])).await {
                            Err(e)
                                if matches!(
                                    e.kind(),
                                    AdapterErrorKind::NotFound | AdapterErrorKind::Other
                                ) => {}
                            done => drop(done?),
                        }
                    }
                }
                done => drop(done?),
            }
        }
    }
    Ok(())
}

/// Makes them inactive again.
pub(super) async fn lull(
    api: &Api,
    cx: &OpContext,
    tenants: &BTreeMap<String, Vec<String>>,
) -> Result<(), AdapterError> {
    set(api, cx, tenants, "COLD").await
}

/// Undoes what the journal says.
pub(super) async fn bring_back(
    server: &Server,
    cx: &OpContext,
    entry: &InterruptionEntry,
) -> Result<Replay, AdapterError> {
    let InterruptionKind::Other { token, .. } = &entry.kind else {
        return Err(AdapterError::unsupported("this is no interruption of tenants"));
    };
    let woken: Woken = token.get()?;
    // Their state lies in the data: also a container that was made anew since has it.
    let api = server.connect(cx).await?;
    lull(&api, cx, &woken.tenants).await?;
    Ok(Replay::Undone)
}
