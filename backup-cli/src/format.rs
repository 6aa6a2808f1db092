//! Numbers for people.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// `999 B`, `1.4 GB`, `14 GB`: decimal units, as `df -H` and disk labels have them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // In tenths of the unit, so that 999,999 becomes "1.0 MB" and not "1000 kB".
    let mut tenths = bytes.saturating_add(50) / 100;
    let mut unit = 0;
    while tenths >= 9995 && unit + 1 < UNITS.len() {
        tenths = (tenths + 500) / 1000;
        unit += 1;
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    if tenths < 100 {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        format!("{} {unit}", (tenths + 5) / 10)
    }
}

/// `430 ms`, `1.4 s`, `12 s`, `3 min 12 s`, `2 h 5 min`, `3 d 4 h`.
pub(crate) fn duration(d: Duration) -> String {
    let secs = d.as_secs();
    let two = |big: u64, b: &str, small: u64, s: &str| match small {
        0 => format!("{big} {b}"),
        _ => format!("{big} {b} {small} {s}"),
    };
    match secs {
        0 => format!("{} ms", d.subsec_millis()),
        1..10 => format!("{}.{} s", secs, d.subsec_millis() / 100),
        10..60 => format!("{secs} s"),
        60..3600 => two(secs / 60, "min", secs % 60, "s"),
        3600..86_400 => two(secs / 3600, "h", secs % 3600 / 60, "min"),
        _ => two(secs / 86_400, "d", secs % 86_400 / 3600, "h"),
    }
}

/// [`duration`] of milliseconds.
pub(crate) fn millis(ms: u64) -> String {
    duration(Duration::from_millis(ms))
}

/// `12 s`, `23 min`, `5 h`, `3 d`: one unit, rounded down, at least two of it where a smaller unit says more.
pub(crate) fn age(d: Duration) -> String {
    let secs = d.as_secs();
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// The age of something at `now`; zero for what lies in the future.
pub(crate) fn since(at: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - at).to_std().unwrap_or_default()
}

/// `2026-03-09 04:38:20 UTC`.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `04:38 UTC` if that was today, else `2026-03-09 04:38 UTC`.
pub(crate) fn clock_time(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let format = if at.date_naive() == now.date_naive() { "%H:%M UTC" } else { "%Y-%m-%d %H:%M UTC" };
    at.format(format).to_string()
}

/// `+12 %`, `-3 %`, `same`; from ten times on, `40x`.
pub(crate) fn trend(change: f64) -> String {
    let percent = change * 100.0;
    match percent {
        p if p.abs() < 0.5 => "same".to_owned(),
        p if p >= 900.0 => format!("{:.0}x", change + 1.0),
        p => format!("{p:+.0} %"),
    }
}

/// `3.1x`: how much smaller it became, if it did.
pub(crate) fn ratio(plain: u64, stored: u64) -> Option<String> {
    #[expect(clippy::cast_precision_loss, reason = "a ratio needs no last digit")]
    (plain > stored && stored > 0).then(|| format!("{:.1}x", plain as f64 / stored as f64))
}

/// `1 service`, `3 services`.
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_and_never_show_four_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1449, "1.4 kB"),
            (9_960, "10 kB"),
            (99_949, "100 kB"),
            (999_949, "1.0 MB"),
            (1_400_000_000, "1.4 GB"),
            (14_000_000_000, "14 GB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
        assert!(size(u64::MAX).ends_with(" PB"));
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (ms, text) in [
            (0, "0 ms"),
            (430, "430 ms"),
            (1_430, "1.4 s"),
            (12_900, "12 s"),
            (192_000, "3 min 12 s"),
            (180_000, "3 min"),
            (7_500_000, "2 h 5 min"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(millis(ms), text);
        }
    }

    #[test]
    fn ages_have_one_unit() {
        for (secs, text) in
            [(0, "0 s"), (119, "119 s"), (1380, "23 min"), (7199, "119 min"), (7200, "2 h"), (259_200, "3 d")]
        {
            assert_eq!(age(Duration::from_secs(secs)), text);
        }
    }

    #[test]
    fn a_change_is_told_with_its_sign() {
        assert_eq!(
            (trend(0.123), trend(-0.5), trend(0.001)),
            ("+12 %".into(), "-50 %".into(), "same".into())
        );
    }
}
