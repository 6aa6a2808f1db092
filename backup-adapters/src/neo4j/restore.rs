//! The steps of a restore, for each target.
//!
//! The data is built in the mounts that hold the server's own, as volumes cannot be renamed, and proven there by a second
//! server. Then the server is stopped for as long as names are exchanged. Between two renames data and logs do not belong
//! together: a record says what is exchanged, so that whoever starts the server after a crash finishes that first.

mod exchange;
mod plan;
mod probe;
mod record;
mod stage;
mod steps;

use std::path::{Path, PathBuf};

use backup_core::keep_aside::{self, Swap};
use backup_core::{AdapterError, ArtifactMeta, Evidence};
use serde::{Deserialize, Serialize};

pub(super) use self::exchange::bring_back;
pub(super) use self::plan::plan;
pub(super) use self::probe::probe;
pub(super) use self::stage::stage;
pub(super) use self::steps::{discard, leftovers, switch, undo};
use super::proof::Subject;
use crate::on_disk::{blocking, failed};
use crate::runtime::docker::Purpose;

/// Beside a data directory that was restored without a container: the image of its server.
const IMAGE: &str = ".image.json";

/// What a restore remembers between its steps.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    /// Over the server, or into a folder.
    live: bool,
    /// Where the data directory and the logs are built.
    data: PathBuf,
    logs: PathBuf,
    /// Where they go.
    place: PathBuf,
    logs_place: PathBuf,
    /// Whether the logs' place is a mount, which cannot be renamed: then what is in it is.
    logs_mounted: bool,
    uid: u32,
    gid: u32,
    /// The image, if there is no container.
    image: Option<String>,
    major: u32,
    home: Option<String>,
    /// Empty before `stage`.
    swaps: Vec<Swap>,
    /// What the restored data counts. `None` before `stage`.
    expected: Option<Evidence>,
    switched: bool,
    /// The folder for records, and those that there are.
    kept: PathBuf,
    done: PathBuf,
    records: Vec<PathBuf>,
}

fn number(artifact: &ArtifactMeta, key: &str) -> Option<u64> {
    artifact.attributes.get(key)?.as_u64()
}

fn database(artifact: &ArtifactMeta) -> Option<&str> {
    artifact.attributes.get("database")?.as_str()
}

async fn remove_all(all: Vec<PathBuf>) -> Result<(), AdapterError> {
    blocking(move || all.iter().try_for_each(|p| keep_aside::remove(p).map_err(failed("remove", p)))).await
}

impl Job {
    fn subject(&self, data: &Path, logs: Option<&Path>, purpose: Purpose) -> Subject {
        Subject {
            called: "restored",
            data: data.to_owned(),
            transactions: logs.map(Path::to_owned),
            user: format!("{}:{}", self.uid, self.gid),
            image: self.image.clone(),
            major: self.major,
            home: self.home.clone(),
            purpose,
        }
    }

    fn remains(&self) -> Vec<PathBuf> {
        let kept = self.swaps.iter().map(|s| s.kept.clone());
        [self.data.clone(), self.logs.clone(), self.done.clone()]
            .into_iter()
            .chain(kept)
            .chain(self.records.iter().cloned())
            .collect()
    }
}
