//! Compares backups straight to S3, and copies there, with the fastest other clients: one large file, turn by turn.
//!
//! The work directory should lie in memory (`/dev/shm`), and the server with its data on this host and in memory: then what is
//! measured is the work of client and server, which share the processors. One untimed turn of everything comes first.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use backup_adapters::stores::ObjectStore;
use backup_benches::measure::{Comparison, Cost, TABLE_HEAD, run_with};
use backup_core::{Store as _, StoreKey, chain};
use clap::Parser;

/// At least 0.9 times as fast as the best.
const TARGET: f64 = 1.0 / 0.9;

/// Encryption may cost this much of the same in clear.
const ENCRYPTED: f64 = 1.15;

/// Compare `backup run` and `backup copy` to S3 with other clients.
#[derive(Debug, Parser)]
#[command(name = "backup-bench-object")]
struct Args {
    /// The program to measure.
    #[arg(long)]
    backup: PathBuf,
    /// Where the server is, e.g. 172.17.0.2:9000.
    #[arg(long)]
    server: String,
    /// A bucket that exists, for nothing else.
    #[arg(long, default_value = "bench")]
    bucket: String,
    /// The keys.
    #[arg(long)]
    id: String,
    #[arg(long)]
    secret: String,
    /// `s5cmd`, to compare with.
    #[arg(long)]
    s5cmd: Option<PathBuf>,
    /// MinIO's client, to compare with.
    #[arg(long)]
    mc: Option<PathBuf>,
    /// Amazon's own `aws`, to compare with.
    #[arg(long)]
    aws: Option<PathBuf>,
    /// A public key of age: the same encrypted for it is compared with the same in clear.
    #[arg(long)]
    recipient: Option<String>,
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

const CONFIG: &str = "
state_dir = 'state'
store.url = 'near'
[intervals.once]
services = ['data']
[services.data]
kind = 'files'
paths = ['data']
[stores.copies]
url = 's3://BUCKET/copies'
options = { allow_http = true }
";

/// What is compared: a name, the program, and its arguments.
type Way<'a> = (&'static str, &'a Path, Vec<String>);

fn main() -> io::Result<()> {
    let args = Args::parse();
    fs::create_dir_all(args.work.join("data"))?;
    let measured = measure(&args);
    fs::remove_dir_all(&args.work)?;
    measured
}

fn measure(args: &Args) -> io::Result<()> {
    let file = args.work.join("data/file");
    make(&file, args.mib)?;
    let config = CONFIG.replace("BUCKET", &args.bucket);
    fs::write(args.work.join("backup.toml"), &config)?;
    // The same straight to the bucket.
    let direct =
        config.replace("url = 'near'", "url = 's3://BUCKET/direct'\nstore.options.allow_http = true");
    let direct = direct.replace("BUCKET", &args.bucket);
    fs::write(args.work.join("direct.toml"), &direct)?;
    let (file, endpoint) = (file.to_string_lossy(), format!("http://{}", args.server));
    let theirs = |name: &str| format!("s3://{}/theirs/{name}", args.bucket);
    let mut peers: Vec<Way<'_>> = Vec::new();
    if let Some(s5cmd) = &args.s5cmd {
        let cp = words_of(&["--endpoint-url", &endpoint, "cp", &file, &theirs("s5cmd")]);
        peers.push(("s5cmd cp", s5cmd, cp));
    }
    if let Some(mc) = &args.mc {
        let to = format!("bench/{}/theirs/mc", args.bucket);
        let cp = words_of(&["--config-dir", "/dev/shm/backup-bench-mc", "cp", "--quiet", &file, &to]);
        peers.push(("mc cp", mc, cp));
    }
    if let Some(aws) = &args.aws {
        let cp = ["--endpoint-url", &endpoint, "s3", "cp", "--only-show-errors", &file, &theirs("aws")];
        peers.push(("aws s3 cp", aws, words_of(&cp)));
    }
    let to_s3 = |what, config| -> Way<'_> {
        (what, &args.backup, words_of(&["run", "once", "--config", config, "-q"]))
    };
    let ours = [
        to_s3("back up", "direct.toml"),
        ("copy", &args.backup, words_of(&["copy", "--to", "copies", "-q"])),
    ];
    let mut pairs: Vec<(&Way<'_>, &Way<'_>, f64)> = Vec::new();
    pairs.extend(ours.iter().flat_map(|ours| peers.iter().map(move |peer| (ours, peer, TARGET))));
    let (encrypted, clear) = (to_s3("encrypted", "encrypted.toml"), to_s3("in clear", "direct.toml"));
    if let Some(recipient) = &args.recipient {
        let config = format!("encryption.recipients = '{recipient}'\n{direct}");
        fs::write(args.work.join("encrypted.toml"), config)?;
        pairs.push((&encrypted, &clear, ENCRYPTED));
    }
    one(args, &args.backup, &words_of(&["init", "-q"]))?;
    one(args, &args.backup, &words_of(&["run", "once", "-q"]))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{} MiB that nothing can shorten\n\n{TABLE_HEAD}", args.mib)?;
    for ((what, program, words), (peer, theirs, their_words), target) in pairs {
        // The first turn counts for nothing.
        for timed in [false, true] {
            let turns = if timed { args.runs } else { 1 };
            let fresh = |program: &Path, words: &[String]| {
                empty(args)?;
                one(args, &args.backup, &words_of(&["init", "-q"]))?;
                one(args, &args.backup, &words_of(&["init", "--config", "direct.toml", "-q"]))?;
                one(args, program, words)
            };
            let compared = Comparison::interleave(
                *what,
                *peer,
                target,
                turns,
                |_| fresh(program, words),
                |_| fresh(theirs, their_words),
            )?;
            if timed {
                write!(out, "{compared}")?;
            }
        }
    }
    Ok(())
}

fn words_of(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn one(args: &Args, program: &Path, words: &[String]) -> io::Result<Cost> {
    let (endpoint, host) =
        (format!("http://{}", args.server), format!("http://{}:{}@{}", args.id, args.secret, args.server));
    run_with(program.as_os_str(), words, &args.work.join("time"), |command| {
        command.current_dir(&args.work);
        command.env("AWS_ACCESS_KEY_ID", &args.id).env("AWS_SECRET_ACCESS_KEY", &args.secret);
        command.env("AWS_ENDPOINT_URL_S3", endpoint).env("AWS_REGION", "us-east-1");
        command.env("MC_HOST_bench", host);
    })
}

/// Removes what the turn before left in the bucket.
fn empty(args: &Args) -> io::Result<()> {
    let options: BTreeMap<String, String> = [
        ("endpoint", format!("http://{}", args.server)),
        ("allow_http", "true".to_owned()),
        ("access_key_id", args.id.clone()),
        ("secret_access_key", args.secret.clone()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let store =
        ObjectStore::from_url(&format!("s3://{}", args.bucket), &options).map_err(io::Error::other)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        for prefix in ["copies", "direct", "theirs"] {
            let prefix = StoreKey::new(prefix).map_err(io::Error::other)?;
            store.delete_prefix(&prefix).await.map_err(|e| io::Error::other(chain(&e)))?;
        }
        Ok(())
    })
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
