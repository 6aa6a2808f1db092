//! [`StoreRegistry`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use url::Url;

use crate::config::StoreConfig;
use crate::config::explain::closest;
use crate::error::ConfigError;
use crate::store::Store;

type Opened = Result<Arc<dyn Store>, ConfigError>;
type Factory = Arc<dyn Fn(Url, BTreeMap<String, String>) -> BoxFuture<'static, Opened> + Send + Sync>;

/// The kinds of stores that a program knows, by the scheme of their URLs. A path is a URL of the scheme `file`.
#[derive(Clone, Default)]
pub struct StoreRegistry {
    factories: BTreeMap<&'static str, Factory>,
    disabled: Vec<(&'static str, &'static str)>,
}

impl fmt::Debug for StoreRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreRegistry").field("schemes", &self.schemes().collect::<Vec<_>>()).finish()
    }
}

impl StoreRegistry {
    /// Knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a scheme. The factory gets the URL (for `file`, [`Url::to_file_path`] gives the root) and the options, refuses
    /// options that it does not know, and does as little I/O as it can: whether a store is there shows when it is used.
    ///
    /// # Panics
    /// If the scheme is registered already: a mistake in the program, found at its start.
    #[must_use]
    pub fn with_scheme<F, Fut>(mut self, scheme: &'static str, factory: F) -> Self
    where
        F: Fn(Url, BTreeMap<String, String>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Opened> + Send + 'static,
    {
        let factory: Factory = Arc::new(move |url, options| Box::pin(factory(url, options)));
        let earlier = self.factories.insert(scheme, factory);
        assert!(earlier.is_none(), "the store scheme `{scheme}` is registered twice");
        self
    }

    /// Says that a scheme exists, and which Cargo feature would add it.
    #[must_use]
    pub fn with_disabled(mut self, scheme: &'static str, feature: &'static str) -> Self {
        self.disabled.push((scheme, feature));
        self
    }

    /// Adds every scheme that `other` knows.
    ///
    /// # Panics
    /// If both know a scheme.
    #[must_use]
    pub fn merged(mut self, other: Self) -> Self {
        for (scheme, factory) in other.factories {
            let earlier = self.factories.insert(scheme, factory);
            assert!(earlier.is_none(), "the store scheme `{scheme}` is registered twice");
        }
        self.disabled.extend(other.disabled);
        self
    }

    /// The schemes, sorted.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> {
        self.factories.keys().copied()
    }

    /// Makes the store; its secrets are [resolved](StoreConfig::resolved). Relative paths were made absolute by [`Config::resolve`](crate::config::Config::resolve).
    ///
    /// # Errors
    /// [`ConfigError`] for an unknown scheme, a malformed URL, or what the store itself objects to.
    pub async fn open(&self, store: &StoreConfig) -> Opened {
        let url = parse(&store.url)?;
        if let Some(key) = store.secrets.keys().next() {
            return Err(ConfigError::new("the secret was not looked up").at(format!("store.options.{key}")));
        }
        let factory = self.factories.get(url.scheme()).ok_or_else(|| self.unknown_scheme(url.scheme()))?;
        factory(url, store.options.clone()).await.map_err(|e| e.at("store"))
    }

    fn unknown_scheme(&self, scheme: &str) -> ConfigError {
        if let Some((_, feature)) = self.disabled.iter().find(|(s, _)| *s == scheme) {
            return ConfigError::new(format!("stores at `{scheme}://` are not in this program"))
                .at("store.url")
                .hint(format!("build it with the Cargo feature `{feature}`"));
        }
        let schemes: Vec<String> = self.schemes().map(|s| format!("{s}://")).collect();
        let available = format!("available: {}", schemes.join(", "));
        let hint = match closest(scheme, self.schemes()) {
            Some(close) => format!("did you mean `{close}://`? {available}"),
            None => available,
        };
        ConfigError::new(format!("unknown kind of store `{scheme}://`")).at("store.url").hint(hint)
    }
}

impl StoreConfig {
    /// The root on this host's disk, if that is where the store is.
    #[must_use]
    pub fn local_path(&self) -> Option<PathBuf> {
        parse(&self.url).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
    }

    /// Makes a relative path absolute; checks the form of a URL.
    pub(crate) fn relative_to(self, base: &Path) -> Result<Self, ConfigError> {
        let secrets = self.secrets.into_iter().map(|(key, secret)| (key, secret.relative_to(base))).collect();
        let this = Self { secrets, ..self };
        if is_url(&this.url) {
            parse(&this.url)?;
            return Ok(this);
        }
        // Collecting the components drops a leading `./`.
        let path: PathBuf = base.join(&this.url).components().collect();
        let url = path.into_os_string().into_string().map_err(|path| {
            ConfigError::new(format!("the path `{}` is not UTF-8", path.display())).at("store.url")
        })?;
        Ok(Self { url, ..this })
    }
}

/// The URL as it may be shown: what stands before an `@` may be a password.
pub(crate) fn without_password(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, place)) => format!("…@{}", place.escape_debug()),
        None => url.escape_debug().to_string(),
    }
}

/// Whether it begins like a URL: `letters:`.
fn is_url(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.len() > 1
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    })
}

fn parse(text: &str) -> Result<Url, ConfigError> {
    let fail = |message: String| Err(ConfigError::new(message).at("store.url"));
    if !is_url(text) {
        return Url::from_file_path(text)
            .or_else(|()| fail(format!("the path `{}` is not absolute", text.escape_debug())));
    }
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(e) => return fail(format!("`{}` is not a URL: {e}", without_password(text))),
    };
    if url.password().is_some() {
        // Not shown: it is a secret.
        return fail(format!(
            "the URL of the `{}` store holds a password: use a secret reference",
            url.scheme()
        ));
    }
    let after_scheme = text.split_once(':').map_or("", |(_, rest)| rest);
    if url.scheme() == "file" {
        // The URL standard makes `file:a` and `file://a/b` something other than what the user meant, and cuts the path
        // at `?` and `#`: each would be another directory, silently.
        let local = matches!(url.host_str(), None | Some("localhost"));
        if !after_scheme.starts_with('/') || !local {
            return Err(ConfigError::new(format!("`{}` is not a local path", text.escape_debug()))
                .at("store.url")
                .hint("write file:///absolute/path (three slashes), or just the path"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(ConfigError::new("a file URL cannot hold `?` or `#`")
                .at("store.url")
                .hint("write the path itself, without file://"));
        }
    } else if !after_scheme.starts_with("//") {
        return Err(ConfigError::new(format!("`{}` is not a URL", without_password(text)))
            .at("store.url")
            .hint(format!("write {}://…, or ./… for a path", url.scheme())));
    }
    Ok(url)
}
