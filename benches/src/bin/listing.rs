//! Times `backup list` and `backup status` over a store of many backups.
//!
//! Makes one real backup, copies its small files under as many names as asked for, and times the binary: the first
//! run reads every metadata.json, the later ones use the cache in the state directory.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Time listings of a store with many backups.
#[derive(Debug, Parser)]
#[command(name = "backup-bench-listing")]
struct Options {
    /// The program to measure.
    #[arg(long)]
    backup: PathBuf,
    /// Where to work; made if missing, should be empty.
    #[arg(long)]
    work: PathBuf,
    /// How many backups.
    #[arg(long, default_value_t = 100_000)]
    count: u32,
    /// How many warm runs.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

const CONFIG: &str = "
state_dir = 'state'
store.url = 'store'
[intervals.often]
services = ['data']
[services.data]
kind = 'files'
paths = ['data']
";

fn call(o: &Options, args: &[&str]) -> Result<f64> {
    let start = Instant::now();
    let status = Command::new(&o.backup).args(args).current_dir(&o.work).stdout(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("backup {args:?} failed").into());
    }
    Ok(start.elapsed().as_secs_f64())
}

/// One real backup, under `count` names, one second apart.
fn fill(o: &Options) -> Result<()> {
    std::fs::create_dir_all(o.work.join("data"))?;
    std::fs::write(o.work.join("data/a"), "a")?;
    std::fs::write(o.work.join("backup.toml"), CONFIG)?;
    call(o, &["init", "-q"])?;
    call(o, &["run", "often", "-q"])?;
    let series = o.work.join("store/data/often");
    let first = std::fs::read_dir(&series)?.next().ok_or("no backup was made")??;
    let name = first.file_name().into_string().map_err(|_| "not a backup's name")?;
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for entry in std::fs::read_dir(first.path())? {
        let entry = entry?;
        files.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    let end: chrono::DateTime<chrono::Utc> =
        chrono::NaiveDateTime::parse_from_str(&name, "%Y%m%d_%H%M%S")?.and_utc();
    for i in 1..o.count {
        let at = (end - chrono::TimeDelta::seconds(i.into())).format("%Y%m%d_%H%M%S").to_string();
        copy(&series.join(&at), &files, &name, &at)?;
    }
    Ok(())
}

fn copy(dir: &Path, files: &[(String, Vec<u8>)], name: &str, at: &str) -> Result<()> {
    std::fs::create_dir(dir)?;
    for (file, content) in files {
        let content = match std::str::from_utf8(content) {
            Ok(text) => text.replace(name, at).into_bytes(),
            Err(_) => content.clone(),
        };
        std::fs::write(dir.join(file.replace(name, at)), content)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut o = Options::parse();
    o.backup = std::path::absolute(&o.backup)?;
    fill(&o)?;
    let mut table = format!(
        "{} backups; seconds\n\n| command | first | warm, median | warm, min |\n|---|---|---|---|\n",
        o.count
    );
    for args in [&["list"][..], &["list", "--all", "--json"], &["status"]] {
        drop(std::fs::remove_dir_all(o.work.join("state/cache")));
        let first = call(&o, args)?;
        let mut warm = (0..o.runs).map(|_| call(&o, args)).collect::<Result<Vec<f64>>>()?;
        warm.sort_by(f64::total_cmp);
        let [median, min] = [o.runs / 2, 0].map(|i| warm.get(i).copied().unwrap_or(f64::NAN));
        table.push_str(&format!("| `backup {}` | {first:.2} | {median:.2} | {min:.2} |\n", args.join(" ")));
    }
    Ok(std::io::stdout().write_all(table.as_bytes())?)
}
