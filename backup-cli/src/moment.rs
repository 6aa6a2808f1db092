//! Names of backups and moments, as people type them.

use std::str::FromStr;

use backup_core::{BackupId, Interval, ServiceName, Timestamp};
use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta};

/// `--at`: a moment, or one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// The newest one that is not newer than this.
    Moment(Timestamp),
    /// This one.
    Exactly(BackupId),
}

/// Help for `--at`, word for word the same at each verb.
pub(crate) const AT_HELP: &str = "Take the newest good one of that moment or before (20260309_043820, \"2026-03-09 04:38\", 2026-03-09, RFC 3339; UTC), \
     or exactly SERVICE/INTERVAL/TIMESTAMP";

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return text.parse().map(Self::Exactly).map_err(|e: backup_core::InvalidId| e.to_string());
        }
        let naive = |format| NaiveDateTime::parse_from_str(text, format).ok().map(|t| t.and_utc());
        let parsed = text
            .parse::<Timestamp>()
            .ok()
            .or_else(|| DateTime::parse_from_rfc3339(text).ok().map(|t| Timestamp::new(t.to_utc())))
            .or_else(|| {
                let whole = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"].into_iter().find_map(naive);
                // A minute and a day mean all of it.
                let minute = || {
                    let start = ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"].into_iter().find_map(naive)?;
                    Some(start + TimeDelta::seconds(59))
                };
                let day = || {
                    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
                    Some(day.and_hms_opt(23, 59, 59)?.and_utc())
                };
                whole.or_else(minute).or_else(day).map(Timestamp::new)
            });
        parsed.map(Self::Moment).ok_or_else(|| {
            "write a moment like 20260309_043820, \"2026-03-09 04:38\" or 2026-03-09 (UTC), \
             or a backup like SERVICE/INTERVAL/20260309_043820"
                .to_owned()
        })
    }
}

/// What `show` shows: the newest of a service or a series, or one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) service: ServiceName,
    pub(crate) interval: Option<Interval>,
    pub(crate) timestamp: Option<Timestamp>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let mut parts = text.split('/');
        let wrong = |e: backup_core::InvalidId| e.to_string();
        let target = Self {
            service: parts.next().unwrap_or_default().parse().map_err(wrong)?,
            interval: parts.next().map(str::parse).transpose().map_err(wrong)?,
            timestamp: parts.next().map(str::parse).transpose().map_err(wrong)?,
        };
        match parts.next() {
            None => Ok(target),
            Some(_) => Err("write SERVICE, SERVICE/INTERVAL or SERVICE/INTERVAL/TIMESTAMP".to_owned()),
        }
    }
}

impl Target {
    /// The backup, if exactly one is meant.
    pub(crate) fn id(&self) -> Option<BackupId> {
        let (service, interval) = (self.service.clone(), self.interval.clone()?);
        Some(BackupId { service, interval, timestamp: self.timestamp? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_understood_as_people_write_them() {
        for (text, means) in [
            ("20260309_043820", "20260309_043820"),
            ("2026-03-09T04:38:20Z", "20260309_043820"),
            ("2026-03-09T05:38:20+01:00", "20260309_043820"),
            ("2026-03-09 04:38:20", "20260309_043820"),
            ("2026-03-09 04:38", "20260309_043859"),
            ("2026-03-09", "20260309_235959"),
        ] {
            assert_eq!(text.parse::<At>(), Ok(At::Moment(means.parse().unwrap())), "{text}");
        }
        assert!(matches!("files/manual/20260309_043820".parse(), Ok(At::Exactly(_))));
        for bad in ["yesterday", "2026-13-01", "files/manual", ""] {
            assert!(bad.parse::<At>().is_err(), "{bad}");
        }
    }

    #[test]
    fn targets_have_one_to_three_parts() {
        assert!("files".parse::<Target>().unwrap().id().is_none());
        assert!("files/manual/".parse::<Target>().unwrap().id().is_none());
        assert!("files/manual/20260309_043820".parse::<Target>().unwrap().id().is_some());
        for bad in ["", "a/b/c", "a/b/20260309_043820/x", "../x"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
