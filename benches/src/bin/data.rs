//! Makes a tree of realistic data for benchmarks.

use std::io::{self, Write as _};
use std::path::PathBuf;

use backup_benches::data::generate;
use clap::Parser;

/// Make a tree of realistic data: record stores, zeros, a sparse file, blobs, logs and many small files.
#[derive(Debug, Parser)]
#[command(name = "backup-bench-data")]
struct Args {
    /// Where; must not exist or be empty.
    dir: PathBuf,
    /// About how many bytes; `k`, `m` and `g` are powers of 1024.
    #[arg(long, default_value = "4g", value_parser = parse_size)]
    size: u64,
    /// Another seed makes other data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((i, 'k' | 'K')) => (text.get(..i), 10),
        Some((i, 'm' | 'M')) => (text.get(..i), 20),
        Some((i, 'g' | 'G')) => (text.get(..i), 30),
        _ => (Some(text), 0),
    };
    let number = digits.and_then(|d| d.parse::<u64>().ok());
    number.and_then(|n| n.checked_mul(1 << shift)).ok_or_else(|| "use a number such as 64m or 4g".to_owned())
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let made = generate(&args.dir, args.size, args.seed)?;
    writeln!(io::stdout(), "{}: {} files, {} bytes", args.dir.display(), made.files, made.bytes)
}
