//! Interruptions of a fake service.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::script::Interrupts;
use crate::adapter::StepToken;
use crate::context::OpContext;
use crate::error::AdapterError;
use crate::runtime::{
    Announced, Interruption, InterruptionEntry, InterruptionKind, Replay, RunState, ServiceRuntime as _,
};
use crate::testkit::FakeRuntime;

/// How long a capture without a deadline may interrupt.
const LIMIT: Duration = Duration::from_secs(3600);

/// A capture that interrupts, or not.
pub(super) enum Interrupted {
    Not,
    Runtime(Interruption),
    Own(FakeRuntime, Announced),
}

pub(super) async fn begin(
    interrupts: Option<Interrupts>,
    cx: &OpContext,
) -> Result<Interrupted, AdapterError> {
    let deadline = cx.deadline.unwrap_or_else(|| Instant::now() + LIMIT);
    Ok(match interrupts {
        None => Interrupted::Not,
        Some(Interrupts::Runtime(runtime, kind)) => Interrupted::Runtime(
            Interruption::begin(Arc::new(runtime), cx.interruption(), kind, deadline).await?,
        ),
        Some(Interrupts::Own(runtime)) => {
            let token = StepToken::new(&"unpause")?;
            let announced = Interruption::announce(cx.interruption(), "fence", "c1", token, deadline).await?;
            runtime.pause().await?;
            Interrupted::Own(runtime, announced)
        }
    })
}

impl Interrupted {
    pub(super) async fn end(self) -> Result<(), AdapterError> {
        match self {
            Self::Not => Ok(()),
            Self::Runtime(mut interruption) => interruption.end().await.map(drop),
            Self::Own(runtime, announced) => {
                runtime.unpause().await?;
                announced.undone().await
            }
        }
    }
}

pub(super) async fn bring_back(
    interrupts: &Interrupts,
    cx: &OpContext,
    entry: &InterruptionEntry,
) -> Result<Replay, AdapterError> {
    match (interrupts, &entry.kind) {
        (Interrupts::Own(runtime), InterruptionKind::Other { token, .. }) => {
            let step: String = token.get()?;
            if step != "unpause" {
                return Err(AdapterError::corrupt("the token is another one's"));
            }
            if runtime.state() == RunState::Running {
                return Ok(Replay::NothingToDo);
            }
            runtime.unpause().await?;
            Ok(Replay::Undone)
        }
        (Interrupts::Runtime(runtime, _) | Interrupts::Own(runtime), _) => {
            Interruption::replay(&cx.interruption(), runtime, entry).await
        }
    }
}
