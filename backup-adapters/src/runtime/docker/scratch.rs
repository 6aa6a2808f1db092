//! What a container for a test restore may take of the host: what is left over, and no more. Production runs beside it.

use std::time::Duration;

use backup_core::AdapterError;
use bollard::models::{ContainerInspectResponse, ContainerStatsResponse, HostConfig};
use bollard::query_parameters::StatsOptions;
use futures::StreamExt as _;

use super::engine::Engine;
use super::{name_of, state_of};
use crate::runtime::memory::{self, Grant, Need};

/// What a container beside a service's is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// A part of a backup, or of a restore over the service: it is not slowed down, and never refused.
    #[default]
    Work,
    /// A test restore, which is thrown away: whatever is live goes first. Refused if the memory is not there.
    Scratch,
}

/// What a container beside a service's can reach, and what can reach it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// All that the service can.
    #[default]
    Service,
    /// Nothing but this host, over a network of its own.
    Isolated,
    /// Nothing at all: programs are run in it.
    None,
}

/// The share of processor time where it is scarce: 1024 is usual.
const CPU_SHARES: i64 = 128;
/// The share of the disks where they are busy, from 10 to 1000: 500 is usual.
const BLKIO_WEIGHT: u16 = 100;
/// The first that the kernel ends where memory runs out.
const OOM_SCORE: i64 = 1000;
/// Processes and threads. A server of Java has some hundred.
const PIDS: i64 = 4096;

/// How long the engine may take to tell what a container uses.
const STATS: Duration = Duration::from_secs(10);

/// Takes from a test restore what production needs. `all`: also what not every engine can do.
pub(super) fn restrain(host: &mut HostConfig, all: bool) {
    host.oom_score_adj = Some(OOM_SCORE);
    host.cpu_shares = Some(CPU_SHARES);
    if all {
        host.blkio_weight = Some(BLKIO_WEIGHT);
        host.pids_limit = Some(PIDS);
    }
    // Swapping would push what production has in memory out, too.
    host.memory_swap = host.memory;
}

/// Whether the engine could not do something of what [`restrain`] asks for if it may: a kernel without a weight for disks says so
/// only when the container starts.
pub(super) fn is_too_much(error: &AdapterError) -> bool {
    let text = backup_core::chain(error).to_lowercase();
    ["blkio", "io.weight", "io.bfq", "pids"].iter().any(|word| text.contains(word))
}

/// The memory that the container of a test restore may take, and that no other test restore gets meanwhile.
///
/// It needs what the service's container may take; where that is not bounded, `usual`, which the caller knows; else what the
/// service uses now; else nobody knows, and it is tried. One without a bound gets most of what is available, so that it
/// cannot take what others are about to use.
///
/// # Errors
/// `NoSpace` if there is less than it needs.
pub(super) async fn most_memory(
    engine: &Engine,
    service: &ContainerInspectResponse,
    usual: Option<u64>,
) -> Result<Grant, AdapterError> {
    let need = match (limit(service), usual) {
        (Some(bytes), _) => Some(Need { bytes, why: "the service's container has that", limits: true }),
        (None, Some(bytes)) => Some(Need { bytes, why: "its server takes that", limits: false }),
        (None, None) => used(engine, service).await.map(|bytes| Need {
            bytes,
            why: "the service takes that now",
            limits: false,
        }),
    };
    memory::take(name_of(service), need, || available(engine)).await
}

/// The same for a container whose limit is chosen.
///
/// # Errors
/// `NoSpace` if there is less.
pub(super) async fn chosen(engine: &Engine, bytes: u64) -> Result<Grant, AdapterError> {
    let need = Need { bytes, why: "its server is given that", limits: true };
    memory::take(engine.service(), Some(need), || available(engine)).await
}

/// What the container may take, if that is bounded.
fn limit(container: &ContainerInspectResponse) -> Option<u64> {
    let limit = container.host_config.as_ref()?.memory?;
    u64::try_from(limit).ok().filter(|bytes| *bytes > 0)
}

/// What a running container takes, without what the kernel would give back at once.
async fn used(engine: &Engine, container: &ContainerInspectResponse) -> Option<u64> {
    let running = container.state.as_ref().map(state_of)?;
    if running != backup_core::runtime::RunState::Running {
        return None;
    }
    let client = engine.client().await.ok()?;
    let options = StatsOptions { stream: false, one_shot: true };
    let mut stats = Box::pin(client.stats(container.id.as_deref()?, Some(options)));
    let told = tokio::time::timeout(STATS, stats.next()).await.ok()??.ok()?;
    of_stats(&told)
}

fn of_stats(stats: &ContainerStatsResponse) -> Option<u64> {
    let memory = stats.memory_stats.as_ref()?;
    let detail = |name: &str| memory.stats.as_ref()?.get(name).copied();
    // The first is of the older hierarchy of control groups.
    let cached = detail("total_inactive_file").or_else(|| detail("inactive_file")).unwrap_or(0);
    memory.usage.map(|usage| usage.saturating_sub(cached)).filter(|bytes| *bytes > 0)
}

/// What the engine's host can give now; of another host, all that it has.
async fn available(engine: &Engine) -> Option<u64> {
    if engine.socket().is_some()
        && let Some(bytes) = memory::available().await
    {
        return Some(bytes);
    }
    let info = engine.client().await.ok()?.info();
    let total = engine.call("ask for the memory of the engine's host", info).await.ok()?.mem_total?;
    u64::try_from(total).ok().filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use backup_core::AdapterErrorKind;

    use super::*;

    #[test]
    fn cached_files_are_no_use_of_memory() {
        let stats = |detail: &str| {
            let json = format!(r#"{{"memory_stats": {{"usage": 1000, "stats": {{"{detail}": 400}}}}}}"#);
            of_stats(&serde_json::from_str(&json).unwrap())
        };
        assert_eq!(stats("total_inactive_file"), Some(600));
        assert_eq!(stats("inactive_file"), Some(600));
        assert_eq!(stats("other"), Some(1000));
        assert_eq!(of_stats(&ContainerStatsResponse::default()), None);
    }

    #[test]
    fn a_missing_weight_is_told_from_other_trouble() {
        let of = |text: &str| is_too_much(&AdapterError::new(AdapterErrorKind::Other, text));
        assert!(of("cannot start: open /sys/fs/cgroup/x/io.weight: no such file"));
        assert!(of("Range of blkio weight is from 10 to 1000"));
        assert!(!of("exec: \"neo4j\": executable file not found"));
    }
}
