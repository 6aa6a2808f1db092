//! Compares the store at `s3://` with MinIO's own client, `mc`: one large file up and down again, turn by turn.
//!
//! The file and what comes back should lie in memory (`/dev/shm`), and the server on this host: then what is measured is
//! the work of client and server, which share the processors. One untimed turn of everything comes first.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use backup_adapters::stores::ObjectStore;
use backup_core::{Store as _, StoreKey, WriteOptions, chain};
use bytes::Bytes;
use clap::Parser;
use futures::TryStreamExt as _;

/// Compare the store at `s3://` with `mc`.
#[derive(Debug, Parser)]
#[command(name = "backup-bench-object")]
struct Args {
    /// Where the server is, e.g. 172.17.0.2:9000.
    #[arg(long)]
    server: String,
    /// A bucket that exists.
    #[arg(long, default_value = "bench")]
    bucket: String,
    /// The keys.
    #[arg(long)]
    id: String,
    #[arg(long)]
    secret: String,
    /// The client to compare with; none: only ours is measured.
    #[arg(long)]
    mc: Option<PathBuf>,
    /// Where to work.
    #[arg(long, default_value = "/dev/shm/backup-bench-object")]
    work: PathBuf,
    /// How large the file is.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// How many timed turns.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.work)?;
    let measured = tokio::runtime::Runtime::new()?.block_on(measure(&args));
    fs::remove_dir_all(&args.work)?;
    measured
}

async fn measure(args: &Args) -> io::Result<()> {
    let file = args.work.join("file");
    make(&file, args.mib)?;
    let options: BTreeMap<String, String> = [
        ("endpoint", format!("http://{}", args.server)),
        ("allow_http", "true".to_owned()),
        ("access_key_id", args.id.clone()),
        ("secret_access_key", args.secret.clone()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let store =
        ObjectStore::from_url(&format!("s3://{}/ours", args.bucket), &options).map_err(io::Error::other)?;
    let mc = |words: &[&str]| {
        let Some(mc) = &args.mc else { return Ok(f64::NAN) };
        let host = format!("http://{}:{}@{}", args.id, args.secret, args.server);
        let begin = Instant::now();
        let ran = Command::new(mc).args(words).env("MC_HOST_bench", host).output()?;
        let seconds = begin.elapsed().as_secs_f64();
        if ran.status.success() {
            return Ok(seconds);
        }
        Err(io::Error::other(String::from_utf8_lossy(&ran.stderr).into_owned()))
    };
    let mut times: [Vec<f64>; 4] = Default::default();
    for turn in 0..=args.runs {
        let key = StoreKey::new(format!("turn-{turn}")).map_err(io::Error::other)?;
        let theirs = format!("bench/{}/theirs-{turn}", args.bucket);
        let back = args.work.join("back");
        let paths = (file.to_string_lossy(), back.to_string_lossy());
        let one = [
            up(&store, &key, &file).await?,
            mc(&["cp", "--quiet", "--config-dir", "/dev/shm/backup-bench-mc", &paths.0, &theirs])?,
            down(&store, &key, &back).await?,
            mc(&["cp", "--quiet", "--config-dir", "/dev/shm/backup-bench-mc", &theirs, &paths.1])?,
        ];
        store.delete(&key).await.map_err(|e| io::Error::other(chain(&e)))?;
        mc(&["rm", "--quiet", &theirs])?;
        if turn > 0 {
            times.iter_mut().zip(one).for_each(|(all, one)| all.push(one));
        }
    }
    let mut out = io::stdout().lock();
    writeln!(out, "| {} MiB | ours MiB/s | mc MiB/s | ratio |\n|---|---|---|---|", args.mib)?;
    let rate = |times: &[f64]| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        args.mib as f64 / times[times.len() / 2]
    };
    for (what, ours, theirs) in [("up", &times[0], &times[1]), ("down", &times[2], &times[3])] {
        let (ours, theirs) = (rate(ours), rate(theirs));
        writeln!(out, "| {what} | {ours:.0} | {theirs:.0} | {:.2} |", ours / theirs)?;
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    writeln!(out, "peak memory of ours: {peak}; medians of {} turns", args.runs)
}

/// Bytes that nothing can shorten.
fn make(path: &Path, mib: u64) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    let mut random = fastrand::Rng::with_seed(7);
    let mut block = vec![0; 1 << 20];
    for _ in 0..mib {
        random.fill(&mut block);
        file.write_all(&block)?;
    }
    Ok(())
}

async fn up(store: &ObjectStore, key: &StoreKey, path: &Path) -> io::Result<f64> {
    let begin = Instant::now();
    let mut file = fs::File::open(path)?;
    let fail = |e| io::Error::other(chain(&e));
    let mut writer =
        store.writer(key, WriteOptions::data(Some(file.metadata()?.len()))).await.map_err(fail)?;
    loop {
        let mut block = vec![0; 1 << 20];
        let read = file.read(&mut block)?;
        block.truncate(read);
        if read == 0 {
            break;
        }
        writer.write(Bytes::from(block)).await.map_err(fail)?;
    }
    writer.finish().await.map_err(fail)?;
    Ok(begin.elapsed().as_secs_f64())
}

async fn down(store: &ObjectStore, key: &StoreKey, path: &Path) -> io::Result<f64> {
    let begin = Instant::now();
    let mut file = fs::File::create(path)?;
    let fail = |e| io::Error::other(chain(&e));
    let mut stream = store.read(key).await.map_err(fail)?;
    while let Some(chunk) = stream.try_next().await.map_err(fail)? {
        file.write_all(&chunk)?;
    }
    drop(file);
    Ok(begin.elapsed().as_secs_f64())
}
