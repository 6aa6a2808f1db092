//! [`AdapterRegistry`].

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{AdapterConfig, BuildContext, DiscoverContext, Discovery};
use crate::adapter::ServiceAdapter;
use crate::config::SERVICE_KEYS;
use crate::config::explain::{closest, quoted_key, read_table};
use crate::error::{AdapterError, ConfigError};
use crate::id::ServiceName;

type Build = fn(toml::Table, &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError>;
type Discover = fn(&DiscoverContext) -> Result<Discovery, AdapterError>;

/// The kinds of adapters that a program knows.
///
/// Kinds are asked for what they discover in the order of their registration: put the ones that know best first, and
/// those that take whatever is left last.
#[derive(Debug, Clone, Default)]
pub struct AdapterRegistry {
    entries: Vec<Entry>,
    disabled: Vec<(&'static str, &'static str)>,
}

#[derive(Debug, Clone)]
struct Entry {
    info: KindInfo,
    build: Build,
    discover: Discover,
}

/// A kind of adapter, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindInfo {
    /// The word after `kind =`.
    pub kind: &'static str,
    /// See [`AdapterConfig::SUMMARY`].
    pub summary: &'static str,
    /// See [`AdapterConfig::PROVEN`].
    pub proven: &'static str,
}

/// What one kind found. An error makes the answer incomplete; it does not stop the other kinds.
#[derive(Debug)]
pub struct KindDiscovery {
    /// The kind.
    pub kind: &'static str,
    /// What it found. Names are unique over all kinds.
    pub result: Result<Discovery, AdapterError>,
}

impl AdapterRegistry {
    /// Knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind.
    ///
    /// # Panics
    /// If the kind is registered already: two adapters of one name are a mistake in the program, found at its start.
    #[must_use]
    pub fn with<C: AdapterConfig>(mut self) -> Self {
        let info = KindInfo { kind: C::KIND, summary: C::SUMMARY, proven: C::PROVEN };
        assert!(
            self.entries.iter().all(|e| e.info.kind != info.kind),
            "the adapter kind `{}` is registered twice",
            info.kind
        );
        self.entries.push(Entry { info, build: build::<C>, discover: C::discover });
        self
    }

    /// Says that a kind exists, and which Cargo feature would add it.
    #[must_use]
    pub fn with_disabled(mut self, kind: &'static str, feature: &'static str) -> Self {
        self.disabled.push((kind, feature));
        self
    }

    /// Adds every kind that `later` knows, after those that are here.
    ///
    /// # Panics
    /// If both know a kind.
    #[must_use]
    pub fn merged(mut self, later: Self) -> Self {
        for entry in later.entries {
            let kind = entry.info.kind;
            assert!(self.kinds().all(|k| k != kind), "the adapter kind `{kind}` is registered twice");
            self.entries.push(entry);
        }
        self.disabled.extend(later.disabled);
        self
    }

    /// The kinds, in the order of their registration.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.entries.iter().map(|e| e.info.kind)
    }

    /// The kinds, for people, in the order of their registration.
    pub fn describe(&self) -> impl Iterator<Item = KindInfo> {
        self.entries.iter().map(|e| e.info)
    }

    /// Kinds that exist but are not in this program, and the Cargo features that would add them.
    pub fn disabled(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let known = |kind: &str| self.entries.iter().any(|e| e.info.kind == kind);
        self.disabled.iter().copied().filter(move |(kind, _)| !known(kind))
    }

    /// Makes an adapter of `kind` from its own keys (core's keys of a service taken out).
    ///
    /// # Errors
    /// [`ConfigError`] at the place of the trouble in the service's table: an unknown kind, an unknown or missing key,
    /// a wrong type, or what the adapter itself objects to.
    pub fn build(
        &self,
        kind: &str,
        settings: toml::Table,
        cx: &BuildContext,
    ) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        match self.entries.iter().find(|e| e.info.kind == kind) {
            Some(entry) => (entry.build)(settings, cx),
            None => Err(self.unknown_kind(kind).at(format!("{}.kind", place(cx)))),
        }
    }

    fn unknown_kind(&self, kind: &str) -> ConfigError {
        if let Some((_, feature)) = self.disabled().find(|(k, _)| *k == kind) {
            return ConfigError::new(format!("the adapter kind `{kind}` is not in this program"))
                .hint(format!("build it with the Cargo feature `{feature}`"));
        }
        let available = format!("available: {}", self.kinds().collect::<Vec<_>>().join(", "));
        let all = self.kinds().chain(self.disabled().map(|(kind, _)| kind));
        let hint = match closest(kind, all) {
            Some(close) => format!("did you mean `{close}`? {available}"),
            None => available,
        };
        ConfigError::new(format!("unknown adapter kind `{}`", kind.escape_debug())).hint(hint)
    }

    /// Asks every kind what it could protect, in the order of their registration. Each is told what the earlier ones
    /// cover. Blocking.
    #[must_use]
    pub fn discover_all(&self, mut cx: DiscoverContext) -> Vec<KindDiscovery> {
        let mut names = BTreeSet::new();
        let mut all = Vec::new();
        for entry in &self.entries {
            let mut result = (entry.discover)(&cx);
            if let Ok(discovery) = &mut result {
                for found in &mut discovery.found {
                    found.service = free_name(&found.service, &names);
                    names.insert(found.service.clone());
                    cx.covered.extend(found.covers.iter().cloned());
                }
            }
            all.push(KindDiscovery { kind: entry.info.kind, result });
        }
        all
    }
}

/// `name`, or `name-2`, `name-3` … if that is taken.
fn free_name(name: &ServiceName, taken: &BTreeSet<ServiceName>) -> ServiceName {
    let numbered = (2_u32..).map_while(|n| {
        let suffix = format!("-{n}");
        // Names are ASCII and at most 64 bytes long.
        let stem: String = name.as_str().chars().take(64 - suffix.len()).collect();
        ServiceName::new(format!("{stem}{suffix}")).ok()
    });
    std::iter::once(name.clone()).chain(numbered).find(|n| !taken.contains(n)).unwrap_or_else(|| name.clone())
}

fn place(cx: &BuildContext) -> String {
    format!("services.{}", quoted_key(cx.service.as_str()))
}

fn build<C: AdapterConfig>(
    settings: toml::Table,
    cx: &BuildContext,
) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
    let config: C = read_table(settings, &place(cx), SERVICE_KEYS)?;
    let adapter = config.build(cx).map_err(|e| e.at(place(cx)))?;
    debug_assert_eq!(adapter.kind(), C::KIND, "an adapter and its configuration disagree about the kind");
    Ok(adapter)
}
