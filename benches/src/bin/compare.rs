//! Compares `backup` with `tar` and `zstd` on the same data, run by run.
//!
//! Three rules for such a machine, learnt from figures that were wrong by a factor of five: one untimed run of
//! everything before the first timed one; no dropping of caches; every restore goes to a new directory, and they are
//! deleted only at the end, because file systems are slow at making many files where as many were just deleted.
//! So the work directory needs room for `runs + 1` times twice the data and twice the compressed data.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf, absolute};

use backup_benches::measure::{Comparison, Cost, TABLE_HEAD, run, shell};
use backup_core::shell_quote;
use clap::Parser;

/// Compare `backup` with `tar` and `zstd`.
#[derive(Debug, Parser)]
#[command(name = "backup-bench-compare")]
struct Args {
    /// The program to measure.
    #[arg(long)]
    backup: PathBuf,
    /// What to back up; see `backup-bench-data`.
    #[arg(long)]
    data: PathBuf,
    /// Where to work; must not exist or be empty. Should be on the disk of the data.
    #[arg(long)]
    work: PathBuf,
    /// How many timed pairs.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The zstd level and threads of the peer.
    #[arg(long, default_value = "-1 -T0", allow_hyphen_values = true)]
    zstd: String,
    /// Arguments of a backup.
    #[arg(long, default_value = "run manual --yes")]
    run_args: String,
    /// Arguments of a restore; `{to}` is the new directory.
    #[arg(long, default_value = "restore data --to {to} --yes")]
    restore_args: String,
    /// Arguments of a verification.
    #[arg(long, default_value = "verify data --level content")]
    verify_args: String,
    /// Also compare encrypted backups and restores with those in clear.
    #[arg(long)]
    encrypted: bool,
    /// Leave the work directory as it is at the end.
    #[arg(long)]
    keep: bool,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.work)?;
    let work = fs::canonicalize(&args.work)?;
    if fs::read_dir(&work)?.next().is_some() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("`{}` is not empty", work.display()),
        ));
    }
    let bench = Bench { data: fs::canonicalize(&args.data)?, backup: absolute(&args.backup)?, work, args };
    let result = bench.all();
    if !bench.args.keep {
        fs::remove_dir_all(&bench.work)?;
    }
    let mut out = io::stdout();
    out.write_all(TABLE_HEAD.as_bytes())?;
    for comparison in result? {
        write!(out, "{comparison}")?;
    }
    Ok(())
}

struct Bench {
    args: Args,
    backup: PathBuf,
    data: PathBuf,
    work: PathBuf,
}

impl Bench {
    fn all(&self) -> io::Result<Vec<Comparison>> {
        let Args { runs, zstd, .. } = &self.args;
        // One store collects the timed backups; the other holds exactly one, for restores and verifications.
        let (many, one) = (self.store("many")?, self.store("one")?);
        let archive = self.path("peer.tar.zst");
        self.ours(&one, &self.args.run_args, "")?;
        self.tar(&archive)?;
        let backups = Comparison::interleave(
            "back up",
            format!("tar c | zstd {zstd}"),
            0.85,
            *runs,
            |_| self.ours(&many, &self.args.run_args, ""),
            |i| {
                let next = self.path(&format!("peer-{i}.tar.zst"));
                let cost = self.tar(&next)?;
                fs::rename(next, &archive)?;
                Ok(cost)
            },
        )?;

        fs::create_dir(self.work.join("restored"))?;
        let ours = |i: usize| {
            let to = self.path(&format!("restored/ours-{i}"));
            self.ours(&one, &self.args.restore_args, &to)
        };
        let theirs = |i: usize| {
            let to = self.path(&format!("restored/theirs-{i}"));
            fs::create_dir(&to)?;
            let (archive, to) = (shell_quote(&archive), shell_quote(&to));
            self.shell(&format!("zstd -dcq {archive} | tar -x -C {to}"))
        };
        ours(*runs)?;
        theirs(*runs)?;
        let restores = Comparison::interleave("restore", "zstd -dc | tar x", 0.7, *runs, ours, theirs)?;

        let ours = |_| self.ours(&one, &self.args.verify_args, "");
        let theirs = |_| self.shell(&format!("zstd -tq {}", shell_quote(&archive)));
        ours(0)?;
        theirs(0)?;
        let verifications =
            Comparison::interleave("verify the content", "zstd -t", 1.0, *runs, ours, theirs)?;
        let mut all = vec![backups, restores, verifications];
        if self.args.encrypted {
            all.extend(self.encrypted(&many, &one)?);
        }
        Ok(all)
    }

    /// The same for a key against the same in clear.
    fn encrypted(&self, many: &Path, one: &Path) -> io::Result<[Comparison; 2]> {
        let (run_args, runs) = (&self.args.run_args, self.args.runs);
        let key = self.path("key");
        run(self.backup.as_os_str(), &["keys", "new", &key].map(String::from), &self.work.join("time"))?;
        let text = fs::read_to_string(&key)?;
        let public = text.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap_or_default();
        let head = format!(
            "encryption = {{ recipients = [{}], identity = {{ file = {} }} }}\n",
            quoted(public),
            quoted(&key)
        );
        let sealed = self.store_with("sealed", &head)?;
        self.ours(&sealed, run_args, "")?;
        let backups = Comparison::interleave(
            "back up, encrypted",
            "the same in clear".to_owned(),
            1.15,
            runs,
            |_| self.ours(&sealed, run_args, ""),
            |_| self.ours(many, run_args, ""),
        )?;
        let restore = |config: &Path, name: String| {
            let to = self.path(&format!("restored/{name}"));
            self.ours(config, &self.args.restore_args, &to)
        };
        restore(&sealed, "sealed".to_owned())?;
        let restores = Comparison::interleave(
            "restore, encrypted",
            "the same in clear",
            1.15,
            runs,
            |i| restore(&sealed, format!("sealed-{i}")),
            |i| restore(one, format!("clear-{i}")),
        )?;
        Ok([backups, restores])
    }

    /// Makes a store and returns its configuration file.
    fn store(&self, name: &str) -> io::Result<PathBuf> {
        self.store_with(name, "")
    }

    fn store_with(&self, name: &str, head: &str) -> io::Result<PathBuf> {
        let dir = self.work.join(name);
        fs::create_dir(&dir)?;
        let config = dir.join("backup.toml");
        let text = format!(
            "{head}state_dir = {state}\n\n[store]\nurl = {url}\n\n[services.data]\nkind = \"files\"\npaths = [{data}]\n\n\
             [intervals.manual]\nservices = [\"data\"]\nkeep = 100\n",
            state = quoted(&dir.join("state").display().to_string()),
            url = quoted(&format!("file://{}", dir.join("store").display())),
            data = quoted(&self.data.display().to_string()),
        );
        fs::write(&config, text)?;
        self.ours(&config, "init", "")?;
        Ok(config)
    }

    fn ours(&self, config: &Path, args: &str, to: &str) -> io::Result<Cost> {
        let words = args.split_ascii_whitespace().map(|word| word.replace("{to}", to));
        let args: Vec<String> =
            ["--config".to_owned(), config.display().to_string()].into_iter().chain(words).collect();
        run(self.backup.as_os_str(), &args, &self.work.join("time"))
    }

    fn tar(&self, archive: &str) -> io::Result<Cost> {
        let data = shell_quote(&self.data.display().to_string());
        self.shell(&format!("tar -c -C {data} . | zstd -q {} > {}", self.args.zstd, shell_quote(archive)))
    }

    fn shell(&self, script: &str) -> io::Result<Cost> {
        shell(script, &self.work.join("time"))
    }

    fn path(&self, name: &str) -> String {
        self.work.join(AsRef::<OsStr>::as_ref(name)).display().to_string()
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
