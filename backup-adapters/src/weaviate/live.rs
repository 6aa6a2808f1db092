//! Restores over the live server. A server of its own restores the backup into a folder in the live one's volume, and
//! counts it. Then the live server is stopped, the entries of the two data directories are exchanged, and it is started.

mod check;
mod plan;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::{Interruption, InterruptionKind};
use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext, RestoreSource, keep_aside};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::exchange;
use super::job::phase;
use super::restore::{Backup, unpack};
use super::server::Server;
use super::twin::{self, Load};
use crate::on_disk::{blocking, failed};
use crate::runtime::docker::Purpose;

use self::check::{check, ready};
pub(super) use self::plan::{folders, plan};

/// How long a server may take to end by itself: it writes what it holds in memory.
const GRACE: Duration = Duration::from_secs(120);

/// How long a switch may take where the run has no budget.
const USUAL_TIME: Duration = Duration::from_secs(1800);

/// A restore over the live server, at any step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Live {
    /// The data directory, on this host.
    data: PathBuf,
    /// Names in it that stay.
    keep: BTreeSet<String>,
    /// Where the backup is restored, in the same volume.
    staged: PathBuf,
    /// Where the old entries go.
    kept: PathBuf,
    /// The name of the live node.
    node: String,
    /// What was counted in the staged data. `None` before `stage`.
    expected: Option<Evidence>,
    live: bool,
    /// What earlier steps left.
    older: Vec<PathBuf>,
}

/// What this run counted when it restored.
pub(super) async fn done(cx: &OpContext) -> Result<Option<Evidence>, AdapterError> {
    let path = record(cx);
    blocking(move || match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
            AdapterError::corrupt(format!("`{}` is no record of a restore", path.display())).with_source(e)
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", &path)(e)),
    })
    .await
}

fn record(cx: &OpContext) -> PathBuf {
    cx.kept.join(format!("{}.done.json", cx.run_id))
}

impl Live {
    pub(super) async fn stage(
        mut self,
        server: &Server,
        cx: &OpContext,
        source: &RestoreSource,
    ) -> Result<Self, AdapterError> {
        match self.prepare(server, cx, source).await {
            Ok(found) => {
                let differences = source.metadata().evidence.contradictions(&found);
                if differences.is_empty() {
                    self.expected = Some(found);
                    return Ok(self);
                }
                self.clear().await?;
                let what =
                    format!("what the server restored is not what was backed up: {}", differences.join("; "));
                Err(AdapterError::corrupt(what))
            }
            Err(e) => {
                // The first error tells more; what stays is found by the plan.
                let _second = self.clear().await;
                Err(e)
            }
        }
    }

    async fn prepare(
        &self,
        server: &Server,
        cx: &OpContext,
        source: &RestoreSource,
    ) -> Result<Evidence, AdapterError> {
        let backup = Backup::of(source.metadata())?;
        self.clear().await?;
        let (data, backups) = twin::parts(&self.staged);
        unpack(cx, source, backups.join(&backup.id)).await?;
        let make = data.clone();
        blocking(move || std::fs::create_dir_all(&make).map_err(failed("create", &make))).await?;
        let load = Load {
            what: super::place::find(backups.clone()).await?.what(&backups),
            run_as: self.node.clone(),
            inactive: backup.inactive,
        };
        let found = twin::load(server, cx, &self.staged, &load, Purpose::Work).await?;
        // It is in the data now.
        blocking(move || {
            keep_aside::remove(&backups).map_err(failed("remove", &backups))?;
            keep_aside::sync_file_system(&data).map_err(failed("write", &data))
        })
        .await?;
        Ok(found)
    }

    async fn clear(&self) -> Result<(), AdapterError> {
        let staged = self.staged.clone();
        blocking(move || keep_aside::remove(&staged).map_err(failed("remove", &staged))).await
    }

    pub(super) async fn switch(mut self, server: &Server, cx: &OpContext) -> Result<Self, AdapterError> {
        let expected =
            self.expected.clone().ok_or_else(|| AdapterError::corrupt("the restore was never staged"))?;
        let from = self.staged.join(twin::DATA);
        let up = match (exchange::is_done(&self.kept), server.runtime()) {
            (true, Some(runtime)) => runtime.start().await,
            (true, None) => Ok(()),
            (false, _) => self.exchange(server, cx, &from, &self.kept).await,
        };
        let up = match up {
            Err(e) if !exchange::is_done(&self.kept) => return Err(e),
            up => up,
        };
        let holds = async {
            up?;
            phase(cx, "waiting for the server");
            check(server, cx, &expected).await
        };
        if let Err(e) = holds.await {
            // It shows other data, or it does not come up with it.
            if !matches!(e.kind(), AdapterErrorKind::Corrupt | AdapterErrorKind::Unavailable) {
                return Err(e);
            }
            phase(cx, "putting the old data back");
            let again = self.staged.join("refused");
            self.exchange(server, cx, &self.kept, &again).await?;
            let empty = self.kept.clone();
            blocking(move || std::fs::remove_dir(&empty).map_err(failed("remove", &empty))).await?;
            return Err(e);
        }
        let path = record(cx);
        let text = serde_json::to_vec(&expected).unwrap_or_default();
        let staged = self.staged.clone();
        blocking(move || {
            let folder = path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(folder)
                .and_then(|()| std::fs::write(&path, &text))
                .map_err(failed("write", &path))?;
            keep_aside::remove(&staged).map_err(failed("remove", &staged))
        })
        .await?;
        let done = record(cx);
        if !self.older.contains(&done) {
            self.older.push(done);
        }
        self.live = true;
        Ok(self)
    }

    /// Stops the server, exchanges, starts it.
    async fn exchange(
        &self,
        server: &Server,
        cx: &OpContext,
        from: &Path,
        aside: &Path,
    ) -> Result<(), AdapterError> {
        let runtime = server
            .runtime()
            .ok_or_else(|| AdapterError::unsupported(format!("nothing here can stop {server}")))?;
        let deadline = Instant::now() + cx.remaining().unwrap_or(USUAL_TIME);
        let grace = GRACE.min(deadline.saturating_duration_since(Instant::now()) / 2);
        phase(cx, "stopping the server");
        let mut stopped = Interruption::begin(
            Arc::clone(&runtime),
            cx.interruption(),
            InterruptionKind::Stop { grace },
            deadline,
        )
        .await?;
        let killed = stopped.exit_status().is_some_and(|s| s.killed);
        phase(cx, "replacing its data");
        let (data, keep) = (self.data.clone(), self.keep.clone());
        let (from, aside) = (from.to_owned(), aside.to_owned());
        let exchanged = blocking(move || exchange::exchange(&data, &from, &aside, &keep)).await;
        if killed {
            cx.warn("the server had to be killed: the old data, which is kept, is what a crash leaves");
        }
        phase(cx, "starting the server");
        stopped.end().await?;
        // One that did not run before is started for the restored data all the same.
        runtime.start().await?;
        exchanged
    }

    pub(super) async fn undo(mut self, server: &Server, cx: &OpContext) -> Result<Self, AdapterError> {
        if !self.live {
            return Err(AdapterError::new(AdapterErrorKind::Conflict, "this restore never went live"));
        }
        let (mut at, mut aside) =
            (cx.timestamp, keep_aside::kept_path(&self.data.join("weaviate"), cx.timestamp));
        // Once the kept entries have moved, the folder of that name is that of this undo.
        while aside == self.kept || (exchange::is_done(&aside) && !is_empty(&self.kept)) {
            at = at.next();
            aside = keep_aside::kept_path(&self.data.join("weaviate"), at);
        }
        if !exchange::is_done(&aside) {
            self.exchange(server, cx, &self.kept, &aside).await?;
        }
        ready(server, cx).await?;
        let (record, empty) = (record(cx), self.kept.clone());
        let gone = self.older.clone();
        blocking(move || {
            // What was counted is not live any more.
            for path in gone.iter().filter(|p| p.extension().is_some_and(|e| e == "json")).chain([&record]) {
                keep_aside::remove(path).map_err(failed("remove", path))?;
            }
            match std::fs::remove_dir(&empty) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &empty)(e)),
                _ => Ok(()),
            }
        })
        .await?;
        self.kept = aside;
        Ok(self)
    }

    pub(super) fn remains(&self) -> Vec<PathBuf> {
        [self.staged.clone(), self.kept.clone()].into_iter().chain(self.older.iter().cloned()).collect()
    }

    /// Refuses to remove what may be the only copy of the old data.
    pub(super) fn refuse_half_done(&self) -> Result<(), AdapterError> {
        if exchange::is_half_done(&self.kept) || (!self.live && self.kept.exists()) {
            let what = format!("the restore of `{}` is half done", self.data.display());
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
        Ok(())
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}
