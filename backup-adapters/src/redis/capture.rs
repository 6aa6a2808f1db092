//! From a server to a stream: which mode, what the server says of itself, and the report.

use backup_core::runtime::ServiceRuntime as _;
use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupSource, ByteStream, CaptureReport,
    Consistency, OpContext, ReadOutcome,
};
use chrono::{DateTime, TimeDelta, Utc};

use super::bgsave::Saved;
use super::conn::{Conn, Server};
use super::facts::{Info, Settings};
use super::stream::{Link, Payload};
use super::{CaptureMode, bgsave, room, stream};

/// What a capture has found out before its bytes come.
struct Found {
    info: Info,
    settings: Settings,
    /// How far the server's clock is ahead of ours.
    clock_ahead: TimeDelta,
    warnings: Vec<String>,
}

/// Captures the data of `server`.
pub(super) async fn open(
    server: &Server,
    mode: CaptureMode,
    cx: &OpContext,
) -> Result<BackupSource, AdapterError> {
    let mut conn = server.connect(cx).await?;
    let mut found = look(&mut conn, server, cx).await?;
    if let Some(warning) = room::check_memory(server, &found.info, cx).await? {
        found.warnings.push(warning);
    }
    let refused = match mode {
        CaptureMode::BgSave => None,
        CaptureMode::Stream => return Ok(streamed(stream::begin(conn, cx).await?, server, found, cx)),
        CaptureMode::Auto => match stream::begin(conn, cx).await {
            Ok(link) => return Ok(streamed(link, server, found, cx)),
            Err(e) => match e.kind() {
                AdapterErrorKind::PermissionDenied | AdapterErrorKind::Unsupported => Some(e),
                _ => return Err(e),
            },
        },
    };
    match saved(server, found, cx, refused.as_ref()).await {
        Ok(source) => Ok(source),
        Err(second) => Err(match refused {
            // Both ways are closed: the better one is the one to open.
            Some(first) => AdapterError::new(first.kind(), first.to_string()).with_source(
                AdapterError::new(second.kind(), format!("nor does BGSAVE work: {second}"))
                    .with_source(second),
            ),
            None => second,
        }),
    }
}

async fn look(conn: &mut Conn, server: &Server, cx: &OpContext) -> Result<Found, AdapterError> {
    let mut warnings = Vec::new();
    let asked = cx.clock.now();
    let info = match Info::read(conn, cx).await {
        Ok(info) => info,
        Err(e) if matches!(e.kind(), AdapterErrorKind::PermissionDenied | AdapterErrorKind::Unsupported) => {
            warnings.push(format!("{e}; the backup does not tell version and role"));
            Info::default()
        }
        Err(e) => return Err(e),
    };
    let settings = Settings::read(conn, cx).await?;
    if info.text("redis_mode") == Some("sentinel") {
        let what = "is a Sentinel, which holds no data: name the server itself";
        return Err(conn.trouble(AdapterErrorKind::InvalidConfig, what));
    }
    if info.is("cluster_enabled") {
        warnings
            .push(format!("Redis at {server} is one node of a cluster: its own slots are here, no others"));
    }
    if info.text("role") == Some("slave") && info.text("master_link_status") == Some("down") {
        warnings.push(format!("Redis at {server} is a replica without its primary: its data may be old"));
    }
    if settings.text("rdbchecksum") == Some("no") {
        warnings
            .push("the server writes no checksums (rdbchecksum no): flipped bits would not be found".into());
    }
    let clock = info.number("server_time_usec").and_then(|us| i64::try_from(us).ok());
    let clock_ahead =
        clock.and_then(DateTime::from_timestamp_micros).map_or(TimeDelta::zero(), |t| t - asked);
    Ok(Found { info, settings, clock_ahead, warnings })
}

/// A source that streams from `link`.
fn streamed(link: Link, server: &Server, mut found: Found, cx: &OpContext) -> BackupSource {
    if let Payload::Sized(bytes) = &link.payload {
        found.warnings.push(format!(
            "the server wrote a temporary file of {bytes} bytes for this: `repl-diskless-sync yes` spares it that"
        ));
    }
    let (asked, begun) = (link.asked, link.begun);
    let size = match &link.payload {
        Payload::Sized(bytes) => Some(*bytes),
        Payload::Marked(_) => None,
    };
    let (body, receiving) = stream::receive(link, cx);
    let artifact = artifact(body, size, &found, cx);
    let (server, cx) = (server.clone(), cx.clone());
    BackupSource::single(artifact, async move |outcome| {
        let received = receiving.end().await;
        // A snapshot for another replica may have begun before we asked for ours.
        let made = received.made_at.and_then(|s| DateTime::from_timestamp(i64::try_from(s).ok()?, 0));
        let from = made.map_or(asked, |m| asked.min(m - found.clock_ahead));
        let mut report = report("stream", &server, found, (from, begun), outcome, &cx).await;
        if received.spool_full {
            report.warnings.push(
                "the store was slower than the server and the spool was full, so that the server had to wait"
                    .into(),
            );
        }
        if received.spilled > 0 {
            report.evidence.notes.insert("spooled_bytes".into(), received.spilled.to_string());
        }
        Ok(report)
    })
}

/// A source that reads the file of a save.
async fn saved(
    server: &Server,
    mut found: Found,
    cx: &OpContext,
    instead: Option<&AdapterError>,
) -> Result<BackupSource, AdapterError> {
    if let Some(why) = instead {
        found.warnings.push(format!("captured by BGSAVE instead of as a replica: {why}"));
    }
    if let Some(warning) = room::check_disk(server, &found.info, &found.settings, cx).await? {
        found.warnings.push(warning);
    }
    let mut conn = server.connect(cx).await?;
    let done: Saved = bgsave::save(&mut conn, cx, &found.settings).await?;
    let (body, size) = bgsave::read(server, &done, cx).await?;
    let artifact = artifact(body, size, &found, cx);
    let (server, cx) = (server.clone(), cx.clone());
    Ok(BackupSource::single(artifact, async move |outcome| {
        Ok(report("bgsave", &server, found, (done.asked, done.done), outcome, &cx).await)
    }))
}

/// Settings that a restore needs, under the names by which the server knows them.
const KEPT: [&str; 5] = ["dir", "dbfilename", "appendonly", "appenddirname", "appendfilename"];

fn artifact(body: ByteStream<AdapterError>, size: Option<u64>, found: &Found, cx: &OpContext) -> Artifact {
    let mut artifact = Artifact::stream(ArtifactName::sanitized(cx.service.as_str()), "rdb", body);
    // The RDB of a full server is smaller than its memory, but of that order.
    artifact.size_hint = size.or_else(|| found.info.number("used_memory"));
    for key in KEPT {
        if let Some(value) = found.settings.text(key) {
            artifact = artifact.with_attribute(key, value);
        }
    }
    artifact
}

async fn report(
    mode: &str,
    server: &Server,
    found: Found,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
    outcome: ReadOutcome,
    cx: &OpContext,
) -> CaptureReport {
    let Found { info, settings, warnings, .. } = found;
    let mut report = CaptureReport::new(mode, Consistency::Dump, from, to);
    report.service_version = info.version();
    report.warnings = warnings;
    let aof = info.text("aof_enabled").map(|on| if on == "1" { "on" } else { "off" });
    let aof = aof.or(settings.text("appendonly").map(|on| if on == "yes" { "on" } else { "off" }));
    let role = info.text("role").map(|r| if r == "slave" { "replica" } else { "primary" });
    for (name, value) in [("role", role), ("append_only_file", aof)] {
        if let Some(value) = value {
            report.evidence.notes.insert(name.into(), value.into());
        }
    }
    if outcome == ReadOutcome::Complete {
        // Facts for people: their lack makes no backup worse.
        report.lock_ms = fork_ms(server, cx).await.unwrap_or(0);
        if let Some(docker) = server.container() {
            report.image = docker.inspect().await.ok().and_then(|i| i.image);
        }
    }
    report
}

/// How long the server stood still while it made its child process: all that it notices of a capture.
async fn fork_ms(server: &Server, cx: &OpContext) -> Option<u64> {
    let mut conn = server.connect(cx).await.ok()?;
    let info = Info::read(&mut conn, cx).await.ok()?;
    info.number("latest_fork_usec").map(|us| us.div_ceil(1000))
}
