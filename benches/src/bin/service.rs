//! Compares the backup of one configured service with a command of the service's own, run by run.
//!
//! ```text
//! backup-bench-service --backup target/release/backup --config backup.toml --service pg --target 1.15 \
//!     --peer 'pg_dump -Fp app | zstd -q -1 -T0 > /tmp/peer.zst'
//! ```
//! The store collects `runs + 1` backups; the service should not be written to meanwhile.

use std::io::{self, Write as _};
use std::path::{PathBuf, absolute};

use backup_benches::measure::{Comparison, TABLE_HEAD, run, shell};
use clap::Parser;

/// Compare a service's backup with a command of its own.
#[derive(Debug, Parser)]
#[command(name = "backup-bench-service")]
struct Args {
    /// The program to measure.
    #[arg(long)]
    backup: PathBuf,
    /// Its configuration, with an interval `manual`.
    #[arg(long)]
    config: PathBuf,
    /// The service to back up.
    #[arg(long)]
    service: String,
    /// The peer: a shell pipeline of which every part must succeed.
    #[arg(long)]
    peer: String,
    /// The ratio to reach.
    #[arg(long, default_value_t = 1.0)]
    target: f64,
    /// How many timed pairs.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let scratch = dir.path().join("time");
    let backup = absolute(&args.backup)?;
    let config = args.config.display().to_string();
    let words = ["--config", &config, "run", "manual", "--service", &args.service, "--yes"];
    let ours = |_| run(backup.as_os_str(), &words, &scratch);
    let theirs = |_| shell(&args.peer, &scratch);
    ours(0)?;
    theirs(0)?;
    let what = format!("back up {}", args.service);
    let pairs = Comparison::interleave(what, &args.peer, args.target, args.runs, ours, theirs)?;
    write!(io::stdout(), "{TABLE_HEAD}{pairs}")
}
