//! `backup ebs restore`.

use std::path::PathBuf;

use backup_adapters::ebs::{Host, RestoreOf, VolumesPlan};
use backup_core::ServiceName;
use serde_json::json;

use super::{failed, one, operation, prepare};
use crate::context::{Context, Done};
use crate::error::CliError;
use crate::format;
use crate::moment::At;
use crate::ui::{BOLD, paint};

/// Make volumes of snapshots, attach and mount them
///
/// The newest completed set, by its tags alone: also on a new instance that has no catalogue yet. The volumes are made in the
/// zone of the instance, like the ones that they are of. Nothing that exists is touched. Cut off, it goes on where it was when
/// it is called again.
#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// Take the newest set of that moment or before (20260309_043820, "2026-03-09 04:38", 2026-03-09, RFC 3339; UTC)
    #[arg(long, value_name = "WHEN", conflicts_with = "snapshot")]
    at: Option<At>,

    /// Take exactly this snapshot
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// Only sets of this instance
    #[arg(long, value_name = "INSTANCE", conflicts_with = "snapshot")]
    from: Option<String>,

    /// Only this service
    #[arg(short, long)]
    service: Option<ServiceName>,

    /// The instance that gets the volumes; this one by default
    #[arg(long)]
    instance: Option<String>,

    /// Only make the volumes, in this availability zone
    #[arg(long, value_name = "ZONE")]
    az: Option<String>,

    /// Attach it as this device, e.g. /dev/sdf; a free one by default
    #[arg(long)]
    device: Option<String>,

    /// Mount it here, an empty directory or none
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,

    /// Show the plan and stop
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Restore {
    pub(super) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        cx.refuse_store("snapshots are restored by their tags", "leave it out")?;
        let prepared = prepare(cx)?;
        let (name, ebs) = one(&prepared.written, self.service.as_ref())?;
        let at = match &self.at {
            None => None,
            Some(At::Moment(at)) => Some(at.time()),
            Some(At::Exactly(_)) => {
                return Err(
                    CliError::usage("--at: a moment is wanted").hint("`--snapshot` names one exactly")
                );
            }
        };
        let what = RestoreOf {
            snapshot: self.snapshot.clone(),
            at,
            from: self.from.clone(),
            instance: self.instance.clone(),
            zone: self.az.clone(),
            device: self.device.clone(),
            mount: self.mount.as_ref().map(|dir| cx.dir.join(dir)),
        };
        let (op, _spool) = operation(cx, &name, "")?;
        let host = Host::this();
        let plan = ebs.plan_restore_of(&op, &host, &what).await.map_err(|e| failed(&e))?;
        if cx.ui.is_json() {
            let mut line = json!(plan);
            if let Some(line) = line.as_object_mut() {
                line.insert("event".to_owned(), json!("plan"));
                line.insert("verb".to_owned(), json!("ebs restore"));
            }
            cx.ui.json(&line);
        } else {
            cx.ui.product(&text(cx, &plan));
        }
        if self.dry_run {
            cx.ui.note("nothing was changed (--dry-run)");
            return Ok(Done::ok().with("dry_run", true));
        }
        let volumes = format::count(plan.volumes.len(), "volume");
        if !cx.confirm(&format!("Make {volumes}?")).await? {
            return Ok(Done::ok().with("confirmed", false));
        }
        let ui = std::sync::Arc::clone(&cx.ui);
        let say = move |line: String| ui.note(&line);
        let restored = ebs
            .restore(&op, &host, &plan, &say)
            .await
            .map_err(|e| failed(&e).hint("what was made is kept: the same command goes on with it"))?;
        for one in &restored {
            let mut line = json!(one);
            if let Some(line) = line.as_object_mut() {
                line.insert("event".to_owned(), json!("restored"));
            }
            cx.ui.json(&line);
        }
        cx.ui.note(&format!("{volumes} restored; next: compare what is there, then start what uses it"));
        Ok(Done::ok().with("restored", &restored))
    }
}

fn text(cx: &Context, plan: &VolumesPlan) -> String {
    let age = format::age(format::since(plan.started_at, cx.clock.now()));
    let of = plan.from.as_deref().unwrap_or("an instance that is not known");
    let name = plan.backup.as_ref().map(|b| format!("{b}, ")).unwrap_or_default();
    let mut out = vec![paint(BOLD, &format!("{name}{} of {of}, {age} old", format::time(plan.started_at)))];
    for v in &plan.volumes {
        let was = v.source_device.as_deref().unwrap_or("a device that is not known");
        let mut traits = vec![format!("{} GiB", v.gib)];
        traits.extend(v.volume_type.clone());
        traits.extend(v.iops.map(|n| format!("{n} IOPS")));
        traits.extend(v.throughput.map(|n| format!("{n} MiB/s")));
        traits.extend(v.encrypted.then(|| "encrypted".to_owned()));
        out.push(format!("  {} ({was}, {})", v.snapshot, v.source));
        match &v.existing {
            Some(volume) => out.push(format!("    goes on with {volume}, which an earlier attempt made")),
            None => out.push(format!("    makes a volume in {}: {}", plan.zone, traits.join(", "))),
        }
        if let (Some(instance), Some(device)) = (&plan.instance, &v.device) {
            out.push(format!("    attaches it to {instance} as {device}"));
        }
        if let Some(dir) = &v.mount {
            out.push(format!("    mounts it at {}", dir.display()));
        }
    }
    out.extend(plan.notes.iter().map(|n| format!("  note: {n}")));
    out.join("\n")
}
