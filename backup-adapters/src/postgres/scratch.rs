//! Dumps in the directory format: many files, which exist for a while where the server's programs run.
//!
//! They lie in a folder of the run below `scratch`. The script that makes them removes them when it ends, however that
//! comes; what a container that died leaves is found by its name before the next capture, at its end, and by `reclaim`.

use std::time::Duration;

use backup_core::runtime::ExecCommand;
use backup_core::{AdapterError, AdapterErrorKind};

use super::Settings;
use super::facts::Database;
use super::link::Link;

const DEFAULT: &str = "/var/tmp";
/// How long tidying up may take.
const TIDY: Duration = Duration::from_secs(60);

/// `sh -c THIS sh FOLDER NAME PROGRAM…`: the start of both scripts. What is set to be ignored is so for `rm`, too.
const BEGIN: &str = "set -e; umask 077; folder=$1 own=$1/$2; shift 2
tidy() { trap '' HUP INT TERM; rm -rf -- \"$own\"; rmdir -- \"$folder\" 2>/dev/null || :; }
trap tidy EXIT; trap 'exit 143' HUP INT TERM
mkdir -p -- \"$folder\"; mkdir -- \"$own\"\n";
/// Dumps, and hands the directory over.
const DUMP: &str = "\"$@\" --file=\"$own/dump\"; tar -C \"$own\" -cf - dump";
/// Takes a directory, and loads it.
const LOAD: &str = "tar -C \"$own\" -xf -; \"$@\" \"$own/dump\"";
/// `sh -c THIS sh PREFIX`: removes and names what begins so.
const SWEEP: &str =
    "for f in \"$1\"*; do [ -d \"$f\" ] || continue; rm -rf -- \"$f\" && printf '%s\\n' \"$f\"; done";

fn root(settings: &Settings) -> String {
    settings.scratch.as_ref().map_or_else(|| DEFAULT.to_owned(), |p| p.display().to_string())
}

/// What the folders of this service on this host begin with. Its lock keeps two operations from having one at a time.
fn prefix(settings: &Settings, link: &Link) -> String {
    let place = format!("{}/{}", link.cx.journal.place().host, link.cx.service);
    let hash = blake3::hash(place.as_bytes()).to_hex();
    format!("{}/backup-{}-", root(settings), hash.get(..12).unwrap_or_default())
}

fn script(settings: &Settings, link: &Link, body: &str, name: &str, argv: Vec<String>) -> ExecCommand {
    // Any name of a database in one of a file.
    let name = blake3::hash(name.as_bytes()).to_hex();
    let folder = format!("{}{}", prefix(settings, link), link.cx.run_id);
    let own = [format!("{BEGIN}{body}"), "sh".to_owned(), folder, name.as_str().to_owned()];
    let all = ["sh", "-c"].map(str::to_owned).into_iter().chain(own).chain(argv);
    link.command(all)
}

/// Runs the dump `argv` of the database `name`, which prints the directory as a tar archive.
pub(super) fn dump(settings: &Settings, link: &Link, name: &str, argv: Vec<String>) -> ExecCommand {
    script(settings, link, DUMP, name, argv)
}

/// Runs `argv` over a directory that comes as a tar archive by standard input.
pub(super) fn load(settings: &Settings, link: &Link, name: &str, argv: Vec<String>) -> ExecCommand {
    script(settings, link, LOAD, name, argv)
}

/// Removes what operations of this service left; what it was.
pub(super) async fn sweep(settings: &Settings, link: &Link) -> Result<Vec<String>, AdapterError> {
    let link = link.calm(TIDY);
    let mut command = link.command(["sh", "-c", SWEEP, "sh", &prefix(settings, &link)]);
    command.deadline = link.cx.deadline;
    let swept = link.run(command).await;
    let swept = swept.map_err(|f| f.explain("cannot remove the files of dumps that ended"))?;
    Ok(swept.lines().map(|folder| format!("folder `{folder}` of a dump that ended")).collect())
}

/// Refuses a dump that could fill the disk: the server may have its data on it. Values that are short in tables may be
/// long as text.
pub(super) async fn refuse_full(
    settings: &Settings,
    link: &Link,
    database: &Database,
) -> Result<(), AdapterError> {
    let (root, Some(size)) = (root(settings), database.size) else { return Ok(()) };
    let needed = size.saturating_mul(2);
    match free(link, &root).await {
        Some(free) if free < needed && !link.cx.force => {
            let what = format!(
                "a dump of database `{}` as a directory may need {needed} bytes below `{root}`, where {free} are free: use \
                 `format = \"custom\"`, which needs none, or set `scratch` to another folder",
                database.name
            );
            Err(AdapterError::new(AdapterErrorKind::NoSpace, what))
        }
        _ => Ok(()),
    }
}

/// Refuses to unpack what the disk cannot take.
pub(super) async fn refuse_load(settings: &Settings, link: &Link, bytes: u64) -> Result<(), AdapterError> {
    let root = root(settings);
    match free(link, &root).await {
        Some(free) if free < bytes && !link.cx.force => {
            let what = format!(
                "the dump takes {bytes} bytes below `{root}` while it is loaded, where {free} are free: set `scratch` to \
                 another folder"
            );
            Err(AdapterError::new(AdapterErrorKind::NoSpace, what))
        }
        _ => Ok(()),
    }
}

/// Free bytes at a path where the programs run, if that can be told.
pub(super) async fn free(link: &Link, path: &str) -> Option<u64> {
    let asked = link.run(link.command(["df", "-Pk", path])).await.ok()?;
    let kib = asked.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok()?;
    Some(kib.saturating_mul(1024))
}
