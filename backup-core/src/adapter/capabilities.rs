//! [`Capabilities`].

/// What an adapter can do. Must agree with its behaviour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Can restore over the live service.
    pub restore_live: bool,
    /// Can restore into a plain directory.
    pub restore_dir: bool,
    /// Can restore into scratch, which is what `verify --level restore` needs.
    pub restore_scratch: bool,
    /// Can count what a target holds.
    pub probe: bool,
    /// Can put kept-aside data back.
    pub undo: bool,
    /// Can be asked questions in the service's own language, at least of the live service.
    pub ask: bool,
    /// What it backs up are secrets as such, e.g. passwords: copies leave the host only encrypted, unless the user insists.
    pub secrets: bool,
    /// What it backs up stays elsewhere, and can be found there without the catalog: worth making on a host that goes away
    /// also when no backup can be written down.
    pub found_without_catalog: bool,
}

impl Capabilities {
    /// Restores everywhere, probes and undoes. Whether it can be asked is for [`with_ask`](Self::with_ask) to say.
    #[must_use]
    pub const fn full() -> Self {
        Self {
            restore_live: true,
            restore_dir: true,
            restore_scratch: true,
            probe: true,
            undo: true,
            ask: false,
            secrets: false,
            found_without_catalog: false,
        }
    }

    /// Backs up only.
    #[must_use]
    pub const fn backup_only() -> Self {
        Self {
            restore_live: false,
            restore_dir: false,
            restore_scratch: false,
            probe: false,
            undo: false,
            ask: false,
            secrets: false,
            found_without_catalog: false,
        }
    }

    /// Restores into directories and scratch, and nothing else.
    #[must_use]
    pub const fn restore_elsewhere() -> Self {
        Self { restore_dir: true, restore_scratch: true, ..Self::backup_only() }
    }

    /// The same, and can be asked questions.
    #[must_use]
    pub const fn with_ask(mut self) -> Self {
        self.ask = true;
        self
    }

    /// Says whether what it backs up are secrets as such.
    #[must_use]
    pub const fn with_secrets(mut self, secrets: bool) -> Self {
        self.secrets = secrets;
        self
    }
    /// Says that what it backs up stays elsewhere, and can be found there without the catalog.
    #[must_use]
    pub const fn with_found_without_catalog(mut self) -> Self {
        self.found_without_catalog = true;
        self
    }
}
