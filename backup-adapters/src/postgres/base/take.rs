//! Taking a base backup.

use std::sync::{Arc, Mutex, PoisonError};

use backup_core::runtime::Execution;
use backup_core::{
    AdapterError, Artifact, ArtifactName, BackupSource, ByteStream, CaptureReport, Consistency, Evidence,
    OpContext, ReadOutcome,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::check::{Base, Facts, evidence};
use super::{BASE, Server};
use crate::postgres::evidence::key;
use crate::postgres::facts::{ServerFacts, inside_sql};
use crate::postgres::fault::Failure;
use crate::postgres::link::{Link, ended};
use crate::postgres::{Counts, Settings, probe};
use crate::tree::BLOCK;

/// Whether one could be taken.
pub(in crate::postgres) async fn check(settings: &Settings, link: &Link) -> Result<(), AdapterError> {
    Server::ask(link).await?.refuse(settings)
}

/// Counts of the whole server, for people and for the guard against collapses. They are no part of what a restore is
/// judged by (so their names are others than those of dumps): writers go on while files are copied, and which of these
/// numbers holds for the moment of the end nobody can tell. The manifest proves the files.
pub(in crate::postgres) async fn counts(settings: &Settings, link: &Link) -> Result<Evidence, AdapterError> {
    let facts = ServerFacts::ask(link).await?;
    let own = |d: &&crate::postgres::facts::Database| !d.template && d.allows_connections && d.may_connect;
    let databases: Vec<&str> = facts.databases.iter().filter(own).map(|d| d.name.as_str()).collect();
    let mut all = Evidence::default().with_count("databases_seen", databases.len() as u64);
    for name in databases {
        if settings.counts == Counts::Exact {
            for (key, count) in probe::count(link, name, name).await?.counts {
                let (what, of) = key.split_once('.').unwrap_or((&key, ""));
                all.counts.insert(format!("{what}_seen.{of}"), count);
            }
            continue;
        }
        let failed = |f: Failure| f.explain(&format!("cannot count what is in database `{name}`"));
        let inside: crate::postgres::facts::Inside = link.json(name, &inside_sql()).await.map_err(failed)?;
        all.counts.insert(key("tables_seen", [name]), inside.table_count);
        if settings.counts == Counts::Estimated {
            // Either may be old; a table that was emptied loses both.
            let sql = "SELECT coalesce(sum(greatest(c.reltuples, s.n_live_tup, 0))::bigint, 0) FROM pg_class c JOIN \
                 pg_stat_user_tables s ON s.relid = c.oid";
            let rows = link.query(name, sql).await.map_err(failed)?;
            all.counts.insert(key("estimated_rows", [name]), rows.trim().parse().unwrap_or(0));
        }
    }
    Ok(all)
}

#[derive(Default)]
struct Outcome {
    facts: Option<Facts>,
    after: Option<Evidence>,
    exit: Option<i64>,
    warnings: Vec<String>,
}

pub(in crate::postgres) async fn open(
    settings: &Arc<Settings>,
    cx: &OpContext,
) -> Result<BackupSource, AdapterError> {
    let link = Link::open(settings, cx).await?;
    let server = Server::ask(&link).await?;
    server.refuse(settings)?;
    let facts = ServerFacts::ask(&link).await?;
    let image = match settings.container {
        Some(_) => cx.within(link.runtime.inspect()).await?.ok().and_then(|i| i.image),
        None => None,
    };
    let before = counts(settings, &link).await?;
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let (clock, from) = (Arc::clone(&cx.clock), cx.clock.now());
    let name = ArtifactName::sanitized(BASE);
    let body = body(link, Arc::clone(settings), Arc::clone(&outcome));
    let size = facts.databases.iter().filter_map(|d| d.size).sum();
    let mut artifact = Artifact::stream(name, "tar", body)
        .with_size_hint(size)
        .with_attribute("content", BASE)
        .with_attribute("server_version", facts.version.as_str())
        .with_attribute("server_version_num", server.version);
    if let Some(directory) = server.data_directory {
        artifact = artifact.with_attribute("data_directory", directory);
    }
    Ok(BackupSource::single(artifact, async move |read| {
        let Outcome { facts: held, after, exit, warnings } =
            std::mem::take(&mut *outcome.lock().unwrap_or_else(PoisonError::into_inner));
        // With its WAL it is the state at the end, as after a power cut: the server recovers it when it starts.
        let mut report = CaptureReport::new("basebackup", Consistency::CrashConsistent, from, clock.now());
        if let (ReadOutcome::Complete, Some(held), Some(after)) = (read, held, after) {
            report.evidence = before;
            report.evidence.counts_after = after
                .counts
                .into_iter()
                .filter(|(name, n)| report.evidence.counts.get(name).is_some_and(|before| before != n))
                .collect();
            report.evidence.merge(evidence(&held));
            report.evidence.notes.insert("server_version".into(), facts.version.clone());
        }
        report.exit_codes.extend(exit.map(|code| ("pg_basebackup".to_owned(), code)));
        report.warnings = warnings;
        report.service_version = Some(facts.version);
        report.image = image;
        Ok(report)
    }))
}

const WHAT: &str = "the base backup broke off";

async fn start(link: &Link) -> Result<Execution, AdapterError> {
    // `fetch` needs no slot, so that none can stay behind: a server that removed the WAL meanwhile says so.
    let options = [
        "--no-password",
        "--pgdata=-",
        "--format=tar",
        "--wal-method=fetch",
        "--checkpoint=fast",
        "--manifest-checksums=CRC32C",
    ];
    let mut argv = vec![link.programs.basebackup.clone()];
    argv.extend(options.map(str::to_owned));
    argv.push(format!("--label=backup {}", link.cx.run_id));
    link.start(link.command(argv)).await
}

/// `pg_basebackup` of version 13 puts the manifest into the archive without the zeros that fill its last block, so that the
/// archive's end is short of them.
fn aligned(archive: ByteStream<AdapterError>) -> ByteStream<AdapterError> {
    stream::try_unfold(Some((archive, 0_usize)), |state| async {
        let Some((mut archive, over)) = state else { return Ok(None) };
        match archive.next().await {
            Some(chunk) => {
                let chunk = chunk?;
                let over = (over + chunk.len()) % BLOCK;
                Ok(Some((chunk, Some((archive, over)))))
            }
            None if over == 0 => Ok(None),
            None => Ok(Some((bytes::Bytes::from(vec![0; BLOCK - over]), None))),
        }
    })
    .boxed()
}

/// Its end is proven: exit status, every file by the manifest, and the WAL.
fn body(link: Link, settings: Arc<Settings>, outcome: Arc<Mutex<Outcome>>) -> ByteStream<AdapterError> {
    let begun = async move {
        let mut execution = start(&link).await?;
        execution.stdout = aligned(execution.stdout);
        let state = Some((link, settings, outcome, execution, Base::new(())));
        let pieces = stream::try_unfold(state, |state| async {
            let Some((link, settings, outcome, mut execution, mut base)) = state else { return Ok(None) };
            match link.cx.within(execution.stdout.next()).await? {
                Some(Ok(chunk)) => {
                    base.update(&chunk)?;
                    Ok(Some((chunk, Some((link, settings, outcome, execution, base)))))
                }
                Some(Err(e)) => Err(ended(e, execution).await.explain(WHAT)),
                None => {
                    let (facts, ()) = base.finish()?;
                    let Execution { stdout, outcome: told } = execution;
                    drop(stdout);
                    let told = link.cx.within(told).await??;
                    let after = counts(&settings, &link).await?;
                    let telling = |l: &&str| l.contains("warning:") || l.contains("WARNING:");
                    let warnings = told.stderr_tail.lines().filter(telling).take(5);
                    let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                    outcome.warnings = warnings.map(|l| l.trim().to_owned()).collect();
                    outcome.exit = told.status.code;
                    (outcome.facts, outcome.after) = (Some(facts), Some(after));
                    Ok(None)
                }
            }
        });
        Ok::<_, AdapterError>(pieces)
    };
    stream::once(begun).try_flatten().boxed()
}
