//! Whether the live server shows what was restored, once it is started.

use std::collections::BTreeMap;
use std::time::Duration;

use backup_core::runtime::Patience;
use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext};
use tokio::time::sleep;

use crate::weaviate::census::Schema;
use crate::weaviate::server::Server;

const LOOK: Duration = Duration::from_millis(200);

/// Waits until the live server answers.
pub(super) async fn ready(server: &Server, cx: &OpContext) -> Result<Schema, AdapterError> {
    let mut patience = server.container.as_ref().map(|docker| Patience::with(docker));
    loop {
        let asked = async {
            let api = server.connect(cx).await?;
            let answer = api.once(cx, reqwest::Method::GET, "/v1/.well-known/ready", None).await?;
            if !answer.is_success() {
                return Err(api.refused("/v1/.well-known/ready", &answer));
            }
            Schema::read(&api, cx).await
        };
        match asked.await {
            Err(e) if e.kind() == AdapterErrorKind::Unavailable => match &mut patience {
                Some(patience) => patience.after(e).await?,
                None => return Err(e),
            },
            // Keys that came with the backup, or went with it: that is for the operator to set.
            Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => {
                cx.warn(format!(
                    "the data is restored, but the API key is not that of the backup's time: {e}"
                ));
                return Ok(Schema::default());
            }
            done => return done,
        }
        cx.within(sleep(LOOK)).await?;
    }
}

/// Whether the live server shows the restored collections. Their objects were counted; writers are there again.
pub(super) async fn check(server: &Server, cx: &OpContext, expected: &Evidence) -> Result<(), AdapterError> {
    let schema = ready(server, cx).await?;
    let wanted: BTreeMap<&str, u64> = expected
        .counts
        .iter()
        .filter_map(|(name, n)| name.strip_prefix("objects.").filter(|c| !c.contains('.')).map(|c| (c, *n)))
        .collect();
    if schema.classes.is_empty() && !wanted.is_empty() {
        let api = server.connect(cx).await?;
        if Schema::read(&api, cx).await.is_err() {
            return Ok(());
        }
    }
    match wanted.keys().find(|class| !schema.classes.contains_key(**class)) {
        Some(missing) => Err(AdapterError::corrupt(format!(
            "{server} does not show collection `{missing}` after its start"
        ))),
        None => Ok(()),
    }
}
