//! `{host}` in the URL of a store: several hosts share a bucket, and each has a prefix of its own.

use super::StoreConfig;
use crate::error::ConfigError;

/// What stands for the name of the host.
const HOST: &str = "{host}";
/// As long as a name in the DNS may be.
const LONGEST: usize = 253;

/// What this host is called by its system.
pub(crate) fn system_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The stores of all hosts in one place: `<base>/<host>/<rest>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoresOfHosts {
    /// What holds a folder, or a prefix, for each host. No store itself.
    pub base: StoreConfig,
    /// What follows the host's name; often empty.
    rest: String,
}

impl StoresOfHosts {
    /// The same with other options, e.g. with the secrets [looked up](StoreConfig::resolved).
    #[must_use]
    pub fn opened_with(self, base: StoreConfig) -> Self {
        Self { base, ..self }
    }

    /// The store of one host.
    ///
    /// # Errors
    /// [`ConfigError`] for a name that is none of a host.
    pub fn of(&self, host: &str) -> Result<StoreConfig, ConfigError> {
        let base = self.base.url.trim_end_matches('/');
        Ok(StoreConfig { url: format!("{base}/{}{}", safe(host)?, self.rest), ..self.base.clone() })
    }
}

impl StoreConfig {
    /// The same for this host: `{host}` in the URL becomes its name.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not one whole part of the path, or if the name could lead elsewhere as one.
    pub fn for_host(&self, host: &str) -> Result<Self, ConfigError> {
        let Some((before, after)) = self.url.split_once(HOST) else {
            if self.url.contains("://") && self.url.contains(['{', '}']) {
                let what = format!("the URL `{}` has braces", self.shown());
                return Err(ConfigError::new(what)
                    .at("store.url")
                    .hint("`{host}` is all that they can hold"));
            }
            return Ok(self.clone());
        };
        let in_path = match before.split_once("://") {
            // Not in the name of the bucket.
            Some((_, place)) => place.contains('/'),
            None => true,
        };
        let whole =
            (before.is_empty() || before.ends_with('/')) && (after.is_empty() || after.starts_with('/'));
        if !in_path || !whole || after.contains(HOST) {
            let what = format!("`{HOST}` is not one whole part of the path in `{}`", self.shown());
            let hint = format!("write s3://bucket/{HOST}, or /mnt/backups/{HOST}");
            return Err(ConfigError::new(what).at("store.url").hint(hint));
        }
        Self { url: format!("{before}{}{after}", safe(host)?), ..self.clone() }.for_host(host)
    }

    /// Where the stores of all hosts are, if this is one of several in one place: where `{host}` stands, or else what the
    /// last part of the path says.
    pub(crate) fn of_hosts(&self) -> Option<StoresOfHosts> {
        let url = self.url.trim_end_matches('/');
        let (base, rest) = match url.split_once(&format!("/{HOST}")) {
            Some((base, rest)) => (base, rest),
            None => (url.rsplit_once('/')?.0, ""),
        };
        let place = base.split_once("://").map_or(base, |(_, place)| place);
        // The bucket itself, or the root of the disk, is no host's.
        if place.is_empty() || base.ends_with(":/") {
            return None;
        }
        let base = Self { url: base.to_owned(), ..self.clone() };
        Some(StoresOfHosts { base, rest: rest.to_owned() })
    }

    fn shown(&self) -> String {
        crate::registry::without_password(&self.url)
    }
}

/// The name of a host that may be a part of a path: letters, digits, dots, hyphens and underscores, and first no dot.
fn safe(host: &str) -> Result<&str, ConfigError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.len() <= LONGEST
        && host.starts_with(|c: char| c.is_ascii_alphanumeric())
        && host.chars().all(plain)
    {
        return Ok(host);
    }
    Err(ConfigError::new(format!(
        "the host is called `{}`, which cannot be a part of a path",
        host.escape_debug()
    ))
    .at("store.url")
    .hint("set `host` in the configuration to a name of letters, digits, dots and hyphens"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(url: &str, host: &str) -> Result<String, String> {
        StoreConfig::new(url).for_host(host).map(|s| s.url).map_err(|e| e.to_string())
    }

    #[test]
    fn each_host_has_its_prefix_and_none_leads_elsewhere() {
        assert_eq!(on("s3://b/{host}", "web-1.example.com").unwrap(), "s3://b/web-1.example.com");
        assert_eq!(on("s3://b/a/{host}/c/", "x").unwrap(), "s3://b/a/x/c/");
        assert_eq!(on("{host}", "x").unwrap(), "x");
        assert_eq!(on("/mnt/{other}", "x").unwrap(), "/mnt/{other}", "a path may have braces");
        for host in [
            "",
            ".",
            "..",
            "a/b",
            "../other",
            ".hidden",
            "-x",
            "a b",
            "ü",
            "a\nb",
            "{host}",
            &"x".repeat(254),
        ] {
            let e = on("s3://b/{host}", host).unwrap_err();
            assert!(e.contains("cannot be a part of a path") && !e.contains('\n'), "{host:?}: {e}");
        }
        for url in
            ["s3://{host}/x", "s3://b-{host}/x", "s3://b/x-{host}", "s3://b/{host}-x", "s3://b/{host}/{host}"]
        {
            let e = on(url, "x").unwrap_err();
            assert!(e.contains("whole part"), "{url}: {e}");
        }
        let e = on("s3://b/{hots}", "x").unwrap_err();
        assert!(e.contains("has braces"), "{e}");
        let e = on("s3://b/{host}/{hots}", "x").unwrap_err();
        assert!(e.contains("has braces"), "{e}");
    }

    #[test]
    fn the_place_of_all_hosts_is_found() {
        let of = |url: &str| {
            let found = StoreConfig::new(url).of_hosts()?;
            Some((found.base.url.clone(), found.of("web-2").unwrap().url))
        };
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(of("s3://b/{host}"), pair("s3://b", "s3://b/web-2"));
        assert_eq!(of("s3://b/all/{host}/daily/"), pair("s3://b/all", "s3://b/all/web-2/daily"));
        assert_eq!(of("s3://b/all/web-1"), pair("s3://b/all", "s3://b/all/web-2"));
        assert_eq!(of("/mnt/all/web-1"), pair("/mnt/all", "/mnt/all/web-2"));
        for alone in ["s3://b", "s3://b/", "/mnt", "memory://"] {
            assert_eq!(of(alone), None, "{alone}");
        }
        assert!(StoreConfig::new("s3://b/{host}").of_hosts().unwrap().of("../x").is_err());
    }
}
