//! Whether there is memory for the child process of a snapshot, and disk for its file.
//!
//! The child shares its pages with the server until either writes to them: how much more memory it takes depends on
//! what is written meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::runtime::{ExecCommand, ServiceRuntime};
use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use futures::TryStreamExt;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::conn::Server;
use super::facts::{Info, Settings};

/// What tells about memory; the last four are the control group's, in both of its versions, as a container sees it.
const FILES: [&str; 6] = [
    "/proc/meminfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
];
const LOOK_TIME: Duration = Duration::from_secs(10);

/// What is known of the server's surroundings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Memory {
    /// What new pages can come from, in bytes.
    available: Option<u64>,
    /// What may still be promised, if promises are limited (`overcommit_memory` = 2).
    to_promise: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Enough,
    Doubtful(String),
    Impossible(String),
}

/// Warns when memory is short for a snapshot.
///
/// # Errors
/// `Conflict` if the fork cannot succeed, unless [`OpContext::force`].
pub(super) async fn check_memory(
    server: &Server,
    info: &Info,
    cx: &OpContext,
) -> Result<Option<String>, AdapterError> {
    let Some(files) = look(server, cx).await else { return Ok(None) };
    match judge(info.number("used_memory_rss"), info.number("rdb_last_cow_size"), &memory(&files)) {
        Verdict::Enough => Ok(None),
        Verdict::Impossible(why) if !cx.force => Err(AdapterError::new(
            AdapterErrorKind::Conflict,
            format!("Redis at {server} cannot make a snapshot: {why}"),
        )),
        Verdict::Doubtful(why) | Verdict::Impossible(why) => Ok(Some(why)),
    }
}

/// The lines of those of [`FILES`] that are there, by file.
async fn look(server: &Server, cx: &OpContext) -> Option<BTreeMap<String, String>> {
    if server.is_local() {
        // The limits of its control group are not looked for: a plain process has its host's memory.
        let read = spawn_blocking(|| {
            let read = |p: &&str| Some(((*p).to_owned(), std::fs::read_to_string(p).ok()?));
            FILES.iter().take(2).filter_map(read).collect()
        });
        return read.await.ok();
    }
    let mut command = ExecCommand::new(["grep", "-sH", ""].into_iter().chain(FILES));
    // Some of the files are never there.
    command.accept = vec![0, 1, 2];
    let text = printed(server, command, cx).await?;
    let mut files = BTreeMap::<String, String>::new();
    for (file, line) in text.lines().filter_map(|l| l.split_once(':')) {
        let content = files.entry(file.to_owned()).or_default();
        content.push_str(line);
        content.push('\n');
    }
    Some(files)
}

/// What a program prints in the server's container; `None` if there is none, or it fails.
async fn printed(server: &Server, command: ExecCommand, cx: &OpContext) -> Option<String> {
    let docker = server.container()?;
    let deadline = Instant::now() + LOOK_TIME;
    let command = command.with_deadline(Some(deadline.min(cx.deadline.unwrap_or(deadline))));
    let ran = cx.within(async {
        let chunks: Vec<_> = docker.exec(command).await?.stdout.try_collect().await?;
        Ok::<_, AdapterError>(chunks.concat())
    });
    String::from_utf8(ran.await.ok()?.ok()?).ok()
}

fn memory(files: &BTreeMap<String, String>) -> Memory {
    let number = |file: &str| files.get(file)?.trim().parse::<u64>().ok();
    let info = |key: &str| {
        let line =
            files.get("/proc/meminfo")?.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let host = info("MemAvailable").map(|free| free.saturating_add(info("SwapFree").unwrap_or(0)));
    let group = |limit: &str, used: &str| Some(number(limit)?.saturating_sub(number(used)?));
    let left = [
        host,
        group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        group("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ];
    let strict = number("/proc/sys/vm/overcommit_memory") == Some(2);
    let to_promise = || Some(info("CommitLimit")?.saturating_sub(info("Committed_AS")?));
    Memory {
        available: left.into_iter().flatten().min(),
        to_promise: if strict { to_promise() } else { None },
    }
}

/// `used`: what the server takes; `copied`: what its last snapshot took beyond that.
fn judge(used: Option<u64>, copied: Option<u64>, memory: &Memory) -> Verdict {
    let Some(used) = used else { return Verdict::Enough };
    let mib = |bytes: u64| bytes >> 20;
    if let Some(left) = memory.to_promise
        && left < used
    {
        return Verdict::Impossible(format!(
            "it uses {} MiB, vm.overcommit_memory is 2, and only {} MiB may still be promised; set it to 1, as Redis \
             advises",
            mib(used),
            mib(left)
        ));
    }
    // Twice what it took last time; without experience, a quarter of everything.
    let likely = copied.filter(|c| *c > 0).map_or(used / 4, |c| c.saturating_mul(2));
    match memory.available {
        Some(available) if available < likely => Verdict::Doubtful(format!(
            "only {} MiB of memory are free, while a snapshot may take {} MiB and in the worst case {} MiB",
            mib(available),
            mib(likely),
            mib(used)
        )),
        _ => Verdict::Enough,
    }
}

/// Warns when the disk may be too small for the file of a save.
///
/// # Errors
/// `NoSpace` if there is less room than the last file took: a save that fails makes the server refuse writes.
pub(super) async fn check_disk(
    server: &Server,
    info: &Info,
    settings: &Settings,
    cx: &OpContext,
) -> Result<Option<String>, AdapterError> {
    let (Some(dir), Some(runtime)) = (settings.text("dir"), server.runtime()) else { return Ok(None) };
    let name = settings.text("dbfilename").unwrap_or_default();
    let looked = match cx.within(runtime.volume_path(Path::new(dir))).await? {
        Ok(Some(here)) => disk(here, name.to_owned()).await,
        _ => disk_inside(server, dir, name, cx).await,
    };
    let Some((dir, free, last)) = looked else { return Ok(None) };
    let mib = |bytes: u64| bytes >> 20;
    if free < last && !cx.force {
        let message = format!(
            "`{dir}` has {} MiB left, and the last file of Redis took {} MiB: a save that fails may make Redis refuse \
             writes",
            mib(free),
            mib(last)
        );
        return Err(AdapterError::new(AdapterErrorKind::NoSpace, message));
    }
    let used = info.number("used_memory").unwrap_or(0);
    Ok((free < used)
        .then(|| format!("`{dir}` has {} MiB left, and Redis holds {} MiB", mib(free), mib(used))))
}

/// A folder, the room that is left there, and the size of file `name` in it.
async fn disk(dir: PathBuf, name: String) -> Option<(String, u64, u64)> {
    let looked = spawn_blocking(move || {
        let disk = rustix::fs::statvfs(&dir).ok()?;
        let last = std::fs::metadata(dir.join(name)).map_or(0, |m| m.len());
        Some((dir.display().to_string(), disk.f_bavail.saturating_mul(disk.f_frsize), last))
    });
    looked.await.ok()?
}

/// The same where no path of this host leads to it.
async fn disk_inside(server: &Server, dir: &str, name: &str, cx: &OpContext) -> Option<(String, u64, u64)> {
    let script = "df -Pk -- \"$1\" && { stat -c %s -- \"$1/$2\" || echo 0; }";
    let command = ExecCommand::new(["sh", "-c", script, "sh", dir, name]);
    let (free, last) = room_of(&printed(server, command, cx).await?)?;
    Some((format!("{dir} (in the container)"), free, last))
}

/// From what `df -Pk` prints, and a size in a line of its own.
fn room_of(printed: &str) -> Option<(u64, u64)> {
    let mut lines = printed.lines().skip(1);
    // The device may hold blanks, and so may the folder at the end; the share that is used has a sign of its own.
    let words: Vec<&str> = lines.next()?.split_whitespace().collect();
    let share = words.iter().position(|w| w.strip_suffix('%').is_some_and(|n| n.parse::<u8>().is_ok()))?;
    let free: u64 = words.get(share.checked_sub(1)?)?.parse().ok()?;
    Some((free.saturating_mul(1024), lines.next()?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_is_what_the_tightest_limit_leaves() {
        let mut files = BTreeMap::from([(
            "/proc/meminfo".to_owned(),
            "MemTotal:  9 kB\nMemAvailable:   2048 kB\nSwapFree: 1024 kB\nCommitLimit: 100 kB\nCommitted_AS: 40 kB\n"
                .to_owned(),
        )]);
        let of = memory(&files);
        assert_eq!(of, Memory { available: Some(3 << 20), to_promise: None });
        files.insert(FILES[1].into(), "2\n".into());
        files.insert(FILES[2].into(), "max\n".into());
        files.insert(FILES[3].into(), "5\n".into());
        files.insert(FILES[4].into(), "3000\n".into());
        files.insert(FILES[5].into(), "1000\n".into());
        assert_eq!(memory(&files), Memory { available: Some(2000), to_promise: Some(60 << 10) });
        assert_eq!(memory(&BTreeMap::new()), Memory::default());
    }

    #[test]
    fn room_is_read_from_what_df_prints() {
        let head = "Filesystem     1024-blocks  Used Available Capacity Mounted on";
        assert_eq!(
            room_of(&format!("{head}\ntmpfs 5120 3000 2120 59% /odd dir\n3000123\n")),
            Some((2120 << 10, 3_000_123))
        );
        assert_eq!(room_of(&format!("{head}\n//nas/a b 9 9 0 100% /data\n0\n")), Some((0, 0)));
        for odd in ["", head, "a\nb\nc", &format!("{head}\ntmpfs 5120 3000 2120 59% /data\n")] {
            assert_eq!(room_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_snapshot_is_refused_only_if_it_cannot_work() {
        let with = |available, to_promise| Memory { available: Some(available), to_promise };
        assert_eq!(judge(Some(4 * GIB), None, &with(2 * GIB, None)), Verdict::Enough);
        assert!(matches!(judge(Some(4 * GIB), None, &with(GIB / 2, None)), Verdict::Doubtful(_)));
        assert_eq!(judge(Some(4 * GIB), Some(GIB / 8), &with(GIB / 2, None)), Verdict::Enough);
        assert!(matches!(judge(Some(4 * GIB), None, &with(9 * GIB, Some(GIB))), Verdict::Impossible(_)));
        assert_eq!(judge(None, None, &with(0, Some(0))), Verdict::Enough);
    }
}
