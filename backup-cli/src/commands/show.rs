//! `backup show`.

use backup_core::catalog::{BackupState, Entry, Fact, FactKind, Filter, RESTORE_MD};
use backup_core::engine::{Engine, LegacyView};
use backup_core::{FactBody, Metadata, StoreKey};
use serde_json::json;

use super::list;
use crate::context::{Context, Done};
use crate::error::CliError;
use crate::format;
use crate::moment::Target;
use crate::render::table::{self, Column};
use crate::ui::{BOLD, paint};

/// Show everything that is known of a backup
///
/// Of a service or an interval it shows the newest good backup; the newest of all, if none is good.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup show redis                           its newest good backup
  backup show redis/daily                     the newest good daily one
  backup show redis/daily/20260309_043820     this one
  backup show redis --by-hand                 how to restore it without this program")]
pub(crate) struct Args {
    /// SERVICE, SERVICE/INTERVAL or SERVICE/INTERVAL/TIMESTAMP
    backup: Target,

    /// Print the instructions that the backup carries for a restore without this program
    #[arg(long)]
    by_hand: bool,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        let engine = &session.engine;
        let filter =
            Filter { service: Some(self.backup.service.clone()), interval: self.backup.interval.clone() };
        let listing = engine.catalog().list(&filter).await?;
        for error in &listing.errors {
            cx.ui.warn(error);
        }
        let found = match self.backup.id() {
            Some(id) => listing.entries.iter().find(|e| e.id == id).ok_or_else(|| {
                CliError::nothing(format!("there is no backup {id}"))
                    .hint(format!("`backup list {} --all` shows what there is", id.service))
            })?,
            None => {
                let newest = listing.entries.iter().find(|e| e.is_good()).or_else(|| listing.entries.first());
                let Some(newest) = newest else {
                    session.check_services([&self.backup.service])?;
                    return Err(CliError::nothing(format!(
                        "service `{}` has no backup there",
                        self.backup.service
                    ))
                    .hint(format!("`backup run manual --service {}` makes one", self.backup.service)));
                };
                newest
            }
        };
        let legacy = match found.state {
            BackupState::Legacy => Some(engine.legacy(&found.id).await?),
            _ => None,
        };
        if self.by_hand {
            let text = match &legacy {
                Some(LegacyView { problem: Some(problem), .. }) => {
                    return Err(CliError::failed(problem.clone()));
                }
                Some(view) => view.by_hand.clone(),
                None => {
                    let text = engine.catalog().read_file(&found.id, RESTORE_MD).await?;
                    String::from_utf8_lossy(&text).into_owned()
                }
            };
            if cx.ui.is_json() {
                cx.ui.json(&json!({"event": "by-hand", "id": found.id, "text": text}));
            } else {
                cx.ui.raw(&text);
            }
            return Ok(Done::ok());
        }
        let metadata = match found.summary {
            Some(_) => Some(engine.metadata(&found.id).await?),
            None => None,
        };
        let facts = facts(engine, found).await;
        if cx.ui.is_json() {
            let mut line = list::line(found, cx.clock.now());
            let facts: Vec<_> =
                facts.iter().map(|(fact, body)| json!({"fact": fact, "body": body})).collect();
            if let Some(line) = line.as_object_mut() {
                line.extend([("metadata".to_owned(), json!(metadata)), ("facts".to_owned(), json!(facts))]);
                if let Some(view) = &legacy {
                    let warnings = view.metadata.as_ref().map(|m| &m.capture.warnings);
                    line.insert(
                        "legacy".to_owned(),
                        json!({"directory": view.dir, "problem": view.problem, "warnings": warnings}),
                    );
                }
            }
            cx.ui.json(&line);
        } else {
            let mut out = text(cx, engine, found, metadata.as_ref(), &facts);
            if let Some(view) = &legacy {
                out.push_str(&old(view));
            }
            cx.ui.product(&out);
        }
        Ok(Done::ok())
    }
}

/// What became known later, with the words that go with it. A fact that cannot be read still counts by its name.
async fn facts(engine: &Engine, entry: &Entry) -> Vec<(Fact, Option<FactBody>)> {
    let mut facts = Vec::new();
    for fact in &entry.facts {
        let text = engine.catalog().read_file(&entry.id, &fact.file_name()).await;
        facts.push((*fact, text.ok().and_then(|text| serde_json::from_slice(&text).ok())));
    }
    facts
}

fn text(
    cx: &Context,
    engine: &Engine,
    entry: &Entry,
    metadata: Option<&Metadata>,
    facts: &[(Fact, Option<FactBody>)],
) -> String {
    let mut lines = vec![paint(BOLD, &entry.id.to_string())];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:14}{value}"));
    let now = cx.clock.now();
    line("state", state(entry));
    let taken = entry.id.timestamp.time();
    line("taken", format!("{} ({} ago)", format::time(taken), format::age(format::since(taken, now))));
    let place =
        StoreKey::new(entry.id.to_string()).ok().and_then(|key| engine.catalog().store().local_path(&key));
    line("where", place.map_or_else(|| engine.catalog().store().to_string(), |p| p.display().to_string()));
    match metadata {
        Some(metadata) => describe(metadata, &mut line),
        None => line("size", format::size(entry.size_bytes())),
    }
    if entry.held() {
        line("held", "kept until `backup unhold`".to_owned());
    }
    for (fact, body) in facts {
        let (note, findings) = body
            .as_ref()
            .map(|b| (b.note.as_deref().unwrap_or_default(), b.findings.join("; ")))
            .unwrap_or_default();
        let what = [event(fact.kind), note.to_owned(), findings];
        let what: Vec<&str> = what.iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
        line("since then", format!("{}  {}", format::time(fact.at.time()), what.join(": ")));
    }
    if let Some(metadata) = metadata {
        lines.push(String::new());
        lines.push(artifacts(metadata));
    }
    lines.join("\n")
}

/// What is known of a backup of the old scripts, and what can be done with it.
fn old(view: &LegacyView) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| out.push_str(&format!("\n  {name:14}{value}"));
    let dir = &view.dir;
    if let Some(host) = &dir.host {
        line("made by", format!("the old scripts on {host}"));
    }
    let recorded = [
        dir.status.as_ref().map(|status| format!("status {status}")),
        dir.size_bytes.map(format::size),
        dir.backed_up_at.map(|at| format!("as of {}", format::time(at))),
    ];
    let recorded: Vec<String> = recorded.into_iter().flatten().collect();
    let recorded = if recorded.is_empty() { "nothing".to_owned() } else { recorded.join(", ") };
    line("recorded", recorded);
    for file in &dir.files {
        line("file", format!("{} ({})", file.name.escape_debug(), format::size(file.bytes)));
    }
    match (&view.metadata, &view.problem) {
        (Some(metadata), _) => {
            line("kind", metadata.adapter.clone());
            line("consistency", metadata.consistency.to_string());
            for warning in &metadata.capture.warnings {
                line("warning", warning.clone());
            }
            let id = metadata.id();
            line("restored by", format!("backup restore {} --at {id}", metadata.service));
            line("by hand", format!("backup show {id} --by-hand"));
        }
        (None, Some(problem)) => line("problem", problem.clone()),
        (None, None) => {}
    }
    out
}

fn state(entry: &Entry) -> String {
    let word = paint(list::style(&entry.state), entry.state.word());
    match &entry.state {
        BackupState::Damaged { level, at } => {
            format!("{word} (verification at level {level}, {})", format::time(at.time()))
        }
        BackupState::Unreadable { reason, .. } => format!("{word}: {reason}"),
        _ => word,
    }
}

fn event(kind: FactKind) -> String {
    match kind {
        FactKind::Verify { level, ok: true } => format!("verified at level {level}"),
        FactKind::Verify { level, ok: false } => format!("found damaged at level {level}"),
        FactKind::Seen => "checked, unchanged".to_owned(),
        FactKind::Complete => "complete elsewhere".to_owned(),
        FactKind::Accept => "accepted".to_owned(),
        FactKind::Hold => "held".to_owned(),
        FactKind::Unhold => "no longer held".to_owned(),
        FactKind::Retain { until } => format!("locked by the store until {}", format::time(until.time())),
    }
}

fn describe(m: &Metadata, line: &mut impl FnMut(&str, String)) {
    let ratio =
        format::ratio(m.plain_bytes(), m.size_bytes).map(|r| format!(", {r} smaller")).unwrap_or_default();
    line("size", format!("{}, {} stored{ratio}", format::size(m.plain_bytes()), format::size(m.size_bytes)));
    line(
        "kind",
        match &m.service_version {
            Some(version) => format!("{} {version}", m.adapter),
            None => m.adapter.clone(),
        },
    );
    line("consistency", format!("{}, as of {}", m.consistency, format::time(m.consistent_to)));
    line("took", format::millis(m.capture.duration_ms));
    if m.capture.interruption_ms > 0 {
        line(
            "interruption",
            format!("the service was stopped or paused for {}", format::millis(m.capture.interruption_ms)),
        );
    }
    if m.capture.lock_ms > 0 {
        line("lock", format!("writers waited for {}", format::millis(m.capture.lock_ms)));
    }
    line("made by", format!("{} on {}, run {}", m.tool, m.host, m.run_id));
    if let Some(encryption) = &m.encryption {
        line("encrypted for", encryption.recipients.join(", "));
    }
    let counts: Vec<String> = m.evidence.counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
    if !counts.is_empty() {
        line("holds", counts.join(", "));
    }
    for (name, note) in &m.evidence.notes {
        line("", format!("{name}: {note}"));
    }
    for reason in &m.suspect_because {
        line("suspect", reason.clone());
    }
    for warning in &m.capture.warnings {
        line("warning", warning.clone());
    }
}

fn artifacts(metadata: &Metadata) -> String {
    use Column::{Left, Right, Text};
    let mut table =
        table::new(&[Left("ARTIFACT"), Right("PLAIN"), Right("STORED"), Left("ENCODING"), Text("FILE")]);
    for a in &metadata.artifacts {
        let stored = a.files.iter().fold(0, |sum: u64, f| sum.saturating_add(f.stored_bytes));
        let mut files: Vec<String> = a.files.iter().map(|f| f.path.clone()).collect();
        files.extend(a.external.iter().map(|e| format!("{} {}", e.kind, e.id)));
        table.add_row([
            a.name.to_string(),
            format::size(a.plain_bytes),
            format::size(stored),
            a.encodings.join(", "),
            files.join(", "),
        ]);
    }
    table::text(&table)
}
