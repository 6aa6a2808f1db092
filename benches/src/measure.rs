//! Running two programs in turn, and comparing what they needed.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one run of a program needed.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Wall time.
    pub wall: Duration,
    /// Processor time, user and system, of the program and its children.
    pub cpu: Duration,
    /// Peak resident memory of the largest of its processes, in KiB.
    pub peak_kib: u64,
}

/// Runs `program` to its end under GNU time (`/usr/bin/time`, Debian package `time`). `scratch` is overwritten.
///
/// # Errors
/// When it cannot be started or fails; the text ends with what it wrote to standard error.
pub fn run<S: AsRef<OsStr>>(program: &OsStr, args: &[S], scratch: &Path) -> io::Result<Cost> {
    run_with(program, args, scratch, |_| {})
}

/// The same in a directory or environment that `prepare` sets.
///
/// # Errors
/// As [`run`].
pub fn run_with<S: AsRef<OsStr>>(
    program: &OsStr,
    args: &[S],
    scratch: &Path,
    prepare: impl FnOnce(&mut Command),
) -> io::Result<Cost> {
    let mut command = Command::new("/usr/bin/time");
    prepare(&mut command);
    command.args(["-f", "%U %S %M", "-o"]).arg(scratch).arg(program).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let started = Instant::now();
    let output =
        command.output().map_err(|e| io::Error::new(e.kind(), format!("cannot run /usr/bin/time: {e}")))?;
    let wall = started.elapsed();
    if !output.status.success() {
        let args: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        let text = String::from_utf8_lossy(&output.stderr);
        let program = program.display();
        return Err(io::Error::other(format!("`{program} {}`: {}: {text}", args.join(" "), output.status)));
    }
    let report = fs::read_to_string(scratch)?;
    parse(&report, wall).ok_or_else(|| io::Error::other(format!("/usr/bin/time wrote `{report}`")))
}

/// Runs a shell pipeline, of which every part must succeed.
///
/// # Errors
/// As [`run`].
pub fn shell(script: &str, scratch: &Path) -> io::Result<Cost> {
    run(OsStr::new("bash"), &["-o", "pipefail", "-c", script], scratch)
}

fn parse(report: &str, wall: Duration) -> Option<Cost> {
    let mut words = report.lines().last()?.split_ascii_whitespace();
    let mut next = || words.next()?.parse::<f64>().ok();
    let (user, system, peak) = (next()?, next()?, next()?);
    Some(Cost { wall, cpu: Duration::try_from_secs_f64(user + system).ok()?, peak_kib: peak as u64 })
}

/// Paired runs of ours and of a peer.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What was done.
    pub what: String,
    /// What the peer ran.
    pub peer: String,
    /// The ratio to reach: ours to the peer's wall time.
    pub target: f64,
    /// The runs, in order.
    pub pairs: Vec<(Cost, Cost)>,
}

impl Comparison {
    /// Runs both in turn, `runs` times, and who is first changes each time: on a shared machine only neighbours in
    /// time can be compared. Both get the number of the run.
    ///
    /// # Errors
    /// That of the first run that fails.
    pub fn interleave(
        what: impl Into<String>,
        peer: impl Into<String>,
        target: f64,
        runs: usize,
        mut ours: impl FnMut(usize) -> io::Result<Cost>,
        mut theirs: impl FnMut(usize) -> io::Result<Cost>,
    ) -> io::Result<Self> {
        let mut pairs = Vec::with_capacity(runs);
        for i in 0..runs {
            pairs.push(if i % 2 == 0 {
                let a = ours(i)?;
                (a, theirs(i)?)
            } else {
                let b = theirs(i)?;
                (ours(i)?, b)
            });
        }
        Ok(Self { what: what.into(), peer: peer.into(), target, pairs })
    }

    /// The median of the ratios of the pairs: ours to theirs, below 1 is faster.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        median(self.pairs.iter().map(|(a, b)| a.wall.as_secs_f64() / b.wall.as_secs_f64()))
    }
}

impl fmt::Display for Comparison {
    /// Two rows of [`TABLE_HEAD`]'s table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, who: &str, costs: &[Cost], ratio: &str| {
            let walls = || costs.iter().map(|c| c.wall.as_secs_f64());
            let min = walls().fold(f64::INFINITY, f64::min);
            let cpu = median(costs.iter().map(|c| c.cpu.as_secs_f64()));
            let peak = costs.iter().map(|c| c.peak_kib).max().unwrap_or_default() / 1024;
            let middle = median(walls());
            writeln!(f, "| {} | {who} | {min:.2} | {middle:.2} | {cpu:.2} | {peak} | {ratio} |", self.what)
        };
        let (ours, theirs): (Vec<_>, Vec<_>) = self.pairs.iter().copied().unzip();
        row(f, "backup", &ours, &format!("{:.2} (≤ {:.2})", self.ratio(), self.target))?;
        row(f, &format!("`{}`", self.peer.replace('|', "\\|")), &theirs, "1")
    }
}

/// The head of the table that comparisons are rows of.
pub const TABLE_HEAD: &str = "| what | by | min s | median s | CPU s | peak MiB | ratio (target) |\n\
                              |---|---|---:|---:|---:|---:|---:|\n";

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(ms: u64) -> Cost {
        Cost { wall: Duration::from_millis(ms), cpu: Duration::from_millis(2 * ms), peak_kib: 2048 }
    }

    #[test]
    fn the_ratio_is_that_of_neighbours_and_both_lead_in_turn() {
        let order = std::cell::RefCell::new(Vec::new());
        // The machine gets ten times slower: neither the minimum nor the median would tell the same.
        let c = Comparison::interleave(
            "backup",
            "a | b",
            0.85,
            3,
            |i| {
                order.borrow_mut().push('a');
                Ok(cost([50, 500, 5_000][i]))
            },
            |i| {
                order.borrow_mut().push('b');
                Ok(cost([100, 1_000, 10_000][i]))
            },
        );
        let c = c.unwrap();
        assert_eq!(order.into_inner(), ['a', 'b', 'b', 'a', 'a', 'b']);
        assert!((c.ratio() - 0.5).abs() < 1e-9);
        assert_eq!(
            c.to_string(),
            "| backup | backup | 0.05 | 0.50 | 1.00 | 2 | 0.50 (≤ 0.85) |\n\
             | backup | `a \\| b` | 0.10 | 1.00 | 2.00 | 2 | 1 |\n"
        );
    }

    #[test]
    fn a_failing_part_of_a_pipeline_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().join("time");
        assert!(shell("true | cat", &scratch).unwrap().peak_kib > 0);
        let error = shell("echo broken >&2; false | cat", &scratch).unwrap_err().to_string();
        assert!(error.contains("broken"), "{error}");
    }
}
