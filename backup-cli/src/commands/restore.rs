//! `backup restore`.

use std::path::PathBuf;

use backup_core::catalog::BackupState;
use backup_core::engine::{RestorePreview, RestoreRequest, Room, Selector};
use backup_core::{ArtifactName, Interval, Replaced, ServiceName};
use chrono::{DateTime, Utc};
use serde_json::json;

use super::list;
use crate::context::{Context, Done, Session};
use crate::error::CliError;
use crate::exit_code;
use crate::format;
use crate::moment::{AT_HELP, At};
use crate::render::report;
use crate::ui::{BOLD, YELLOW, paint};

mod wizard;

/// Restore a service, over what is there or elsewhere
///
/// Takes the newest good backup unless told otherwise, and shows what it will do. Everything is read and proven before
/// anything changes; what was there is kept aside (`backup undo` puts it back, `backup cleanup` removes it).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup restore                                  asks: which service, which backup, where to
  backup restore redis --dry-run                  what it would do; changes nothing
  backup restore redis                            over the live service, after a question
  backup restore files --to ./out                 into a new directory
  backup restore postgres --only app              one of its databases; the others stay as they are
  backup restore redis --at \"2026-03-09 04:00\"    as it was then

Exit codes: 0 restored · 1 failed, the old data is live · 2 it needs --yes, or wrong usage")]
pub(crate) struct Args {
    /// The service; who leaves it out on a terminal is asked
    service: Option<ServiceName>,

    #[arg(long, value_name = "WHEN", help = AT_HELP)]
    at: Option<At>,

    /// Only from this interval
    #[arg(short, long)]
    interval: Option<Interval>,

    /// Only this part of the backup, as `backup show` names it, e.g. one database; may be repeated
    #[arg(long, value_name = "ARTIFACT")]
    only: Vec<ArtifactName>,

    /// Restore into this directory instead; created if missing, must be empty
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Go on in spite of doubts: a target in use, a backup that is suspect or damaged
    #[arg(long)]
    force: bool,

    /// Show the plan and stop
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let session = cx.session().await?;
        let Some(request) = self.request(cx, &session).await? else {
            return Ok(Done::ok().with("confirmed", false));
        };
        let (service, elsewhere) = (request.service.clone(), request.to.is_some());
        let mut preview = session.engine.plan_restore(&request).await?;
        show(cx, &preview);
        if self.dry_run {
            cx.ui.note("nothing was changed (--dry-run)");
            return Ok(Done::ok().with("dry_run", true));
        }
        // Elsewhere nothing can be lost.
        if !elsewhere && !cx.confirm(&format!("Restore `{service}` now?")).await? {
            return Ok(Done::ok().with("confirmed", false));
        }
        preview.request.cancel = cx.interrupt.graceful();
        let report = session.engine.restore(&preview).await?;
        let done = report::conclude(cx, &report, "restored");
        let undo = session.plan().service(service.as_str())?.adapter.capabilities().undo;
        if done.code == exit_code::OK && !elsewhere && undo && !preview.plan.replaces.is_empty() {
            cx.ui.note(&format!(
                "to go back: backup undo {service}; when all is well: backup cleanup {service}"
            ));
        }
        Ok(done)
    }

    /// What was asked for on the command line, or else of a person.
    async fn request(&self, cx: &Context, session: &Session) -> Result<Option<RestoreRequest>, CliError> {
        let Some(service) = &self.service else {
            if self.at.is_some() || self.interval.is_some() || self.to.is_some() || !self.only.is_empty() {
                return Err(CliError::usage("which service?").hint("name it: `backup restore SERVICE …`"));
            }
            let Some(chosen) = wizard::ask(cx, session).await? else {
                cx.ui.note("nothing was changed");
                return Ok(None);
            };
            let mut request = RestoreRequest::new(chosen.service);
            request.selector = chosen.selector;
            request.to = chosen.to;
            request.force = self.force || chosen.doubtful;
            return Ok(Some(request));
        };
        session.check_services([service])?;
        let mut request = RestoreRequest::new(service.clone());
        request.selector = self.selector(service)?;
        request.interval.clone_from(&self.interval);
        request.only.clone_from(&self.only);
        // Collecting the components drops `./`.
        request.to = self.to.as_ref().map(|dir| cx.dir.join(dir).components().collect());
        request.force = self.force;
        Ok(Some(request))
    }

    fn selector(&self, service: &ServiceName) -> Result<Selector, CliError> {
        match &self.at {
            None => Ok(Selector::Newest),
            Some(At::Moment(at)) => Ok(Selector::At(*at)),
            Some(At::Exactly(id)) if id.service == *service => Ok(Selector::Exactly(id.clone())),
            Some(At::Exactly(id)) => {
                Err(CliError::usage(format!("{id} is a backup of `{}`, not of `{service}`", id.service)))
            }
        }
    }
}

/// Prints what a restore would do, and what would be lost.
fn show(cx: &Context, preview: &RestorePreview) {
    let RestorePreview { entry, metadata, passed_over, plan, room: free, .. } = preview;
    let now = cx.clock.now();
    let as_of = metadata.consistent_from;
    if cx.ui.is_json() {
        let mut line = list::line(entry, now);
        if let Some(line) = line.as_object_mut() {
            line.insert("event".to_owned(), json!("plan"));
            line.insert("verb".to_owned(), json!("restore"));
            line.insert("plan".to_owned(), json!(plan));
            line.insert("room".to_owned(), json!(free));
            line.insert("passed_over".to_owned(), json!(passed_over));
            line.insert("as_of".to_owned(), json!(as_of));
            line.insert("consistency".to_owned(), json!(metadata.consistency));
            if entry.state == BackupState::Legacy {
                line.insert("warnings".to_owned(), json!(metadata.capture.warnings));
            }
        }
        cx.ui.json(&line);
        return;
    }
    let mut out = vec![
        paint(BOLD, &format!("restore {}", entry.id)),
        format!(
            "  as of {} ({} ago), {}, {}",
            format::time(as_of),
            format::age(format::since(as_of, now)),
            paint(list::style(&entry.state), entry.state.word()),
            format::size(metadata.plain_bytes()),
        ),
    ];
    if entry.state == BackupState::Legacy {
        let warned = metadata.capture.warnings.iter();
        out.push(format!("  {} {}", paint(YELLOW, "no evidence:"), metadata.consistency));
        out.extend(warned.map(|line| format!("  {} {line}", paint(YELLOW, "beware:"))));
    }
    out.extend(passed_over.iter().map(|line| format!("  {} {line}", paint(YELLOW, "not taken:"))));
    out.extend(plan.steps.iter().enumerate().map(|(n, step)| format!("  {}. {step}", n + 1)));
    out.extend(replaced(&plan.replaces, as_of, now));
    out.extend(room(free));
    cx.ui.product(&out.join("\n"));
}

/// The space that is needed, and how much there is.
pub(crate) fn room(all: &[Room]) -> impl Iterator<Item = String> {
    all.iter().map(|room| {
        let (bytes, free) = (format::size(room.bytes), format::size(room.free));
        format!("  needs {bytes} at {}, {free} free", room.path.display())
    })
}

/// What is replaced, and which writes that loses.
pub(crate) fn replaced(all: &[Replaced], as_of: DateTime<Utc>, now: DateTime<Utc>) -> Vec<String> {
    let mut out = Vec::new();
    for replaced in all {
        out.push(format!("  replaces {}, which is kept as {}", replaced.what, replaced.kept_as));
        if let Some(changed) = replaced.changed_at.filter(|changed| *changed > as_of) {
            out.push(paint(
                YELLOW,
                &format!(
                    "  discards writes since {}, {}: {} was changed at {}",
                    format::clock_time(as_of, now),
                    format::age(format::since(as_of, changed)),
                    replaced.what,
                    format::clock_time(changed, now),
                ),
            ));
        }
    }
    out
}
