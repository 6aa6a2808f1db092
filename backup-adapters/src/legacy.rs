//! Names of the files that the scripts before this program wrote.

use backup_core::Timestamp;

/// An attribute of artifacts: the file was written by those scripts.
#[cfg(any(feature = "postgres", feature = "neo4j"))]
pub(crate) const LEGACY: &str = "legacy";

/// Whether `name` is `before`, a moment and `after`, e.g. `redis_20260309_043820.rdb`.
pub(crate) fn is_stamped(name: &str, before: &str, after: &str) -> bool {
    let moment = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    moment.is_some_and(|moment| moment.parse::<Timestamp>().is_ok())
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::is_stamped;

    #[test]
    fn only_a_moment_fits() {
        assert!(is_stamped("redis_20260309_043820.rdb", "redis_", ".rdb"));
        for name in [
            "redis_.rdb",
            "redis_20260309.rdb",
            "redis_20260309_043820.rdb.zst",
            "x_20260309_043820.rdb",
            "redis_../x.rdb",
        ] {
            assert!(!is_stamped(name, "redis_", ".rdb"), "{name}");
        }
    }
}
