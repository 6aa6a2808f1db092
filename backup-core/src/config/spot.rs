//! `[spot]`: what is done with the two minutes between the notice that a host is taken away and its end; `[notify]`: who
//! is told.
//!
//! ```toml
//! [spot]
//! repositories = ["/srv/app"]         # an emergency commit of each is pushed
//! stop = ["model-server"]             # containers that are stopped in the end
//!
//! [notify.ntfy]
//! topic = { dotenv = "/srv/app/.env", key = "NTFY_TOPIC" }
//!
//! [[spot.steps]]                      # only for another order than the usual one
//! do = "back-up"
//! services = ["redis"]
//! budget = "20s"
//! ```

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::explain::read_table;
use super::values::Span;
use crate::error::ConfigError;
use crate::id::ServiceName;
use crate::secret::SecretRef;

/// How often the notice is asked for: what AWS recommends.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>
pub const SPOT_POLL: Duration = Duration::from_secs(5);

/// `[spot]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpotConfig {
    /// How often the notice is asked for.
    pub poll: Duration,
    /// Where the instance metadata service is, if not where EC2 has it.
    pub metadata: Option<String>,
    /// Git work trees; their state is committed to a branch of its own and pushed.
    pub repositories: Vec<PathBuf>,
    /// Where those branches are pushed to.
    pub remote: String,
    /// Containers to stop.
    pub stop: Vec<String>,
    /// systemd units to stop.
    pub stop_units: Vec<String>,
    /// What is done, the most valuable first. Empty: what [`SpotAction`] has, in the usual order.
    pub steps: Vec<SpotStep>,
}

impl Default for SpotConfig {
    fn default() -> Self {
        Self {
            poll: SPOT_POLL,
            metadata: None,
            repositories: Vec::new(),
            remote: "origin".to_owned(),
            stop: Vec::new(),
            stop_units: Vec::new(),
            steps: Vec::new(),
        }
    }
}

/// One of `[[spot.steps]]`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct SpotStep {
    /// What it is called.
    pub name: String,
    /// What it does.
    pub action: SpotAction,
    /// How long it may take; it never takes longer than the host lives.
    #[serde(skip)]
    pub budget: Option<Duration>,
    /// The steps, among those before it, that must have ended before it begins, well or not.
    pub after: Vec<String>,
}

impl SpotStep {
    pub(crate) fn new(name: &str, action: SpotAction, seconds: u64, after: &[&str]) -> Self {
        let after = after.iter().map(|&a| a.to_owned()).collect();
        Self { name: name.to_owned(), action, budget: Some(Duration::from_secs(seconds)), after }
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "do", content = "services", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SpotAction {
    /// Tells people that the host goes.
    Alert,
    /// Backs these services up, in the interval `spot`.
    BackUp(Vec<ServiceName>),
    /// Commits and pushes the repositories.
    Git,
    /// Copies what is good of these services to where `copies` says. None: of those that were backed up before.
    Copy(Vec<ServiceName>),
    /// Stops what `stop` and `stop_units` name.
    Stop,
    /// Tells people what came of it.
    Notice,
}

/// `[notify]`: channels to people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotifyConfig {
    /// `[notify.ntfy]`.
    pub ntfy: Option<NtfyConfig>,
}

/// A topic of an ntfy server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NtfyConfig {
    /// The server; `https://ntfy.sh` if it is not set.
    pub url: Option<String>,
    /// The topic. Whoever knows it can read along: a secret.
    pub topic: SecretRef,
    /// An access token.
    pub token: Option<SecretRef>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpot {
    poll: Option<Span>,
    metadata: Option<String>,
    #[serde(default)]
    repositories: Vec<PathBuf>,
    remote: Option<String>,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    stop_units: Vec<String>,
    #[serde(default)]
    steps: Vec<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    #[serde(rename = "do")]
    action: Action,
    name: Option<String>,
    services: Option<Vec<ServiceName>>,
    budget: Option<Span>,
    #[serde(default)]
    after: Vec<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    Alert,
    BackUp,
    Git,
    Copy,
    Stop,
    Notice,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNotify {
    ntfy: Option<RawNtfy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNtfy {
    url: Option<String>,
    topic: SecretRef,
    token: Option<SecretRef>,
}

/// Reads `[spot]`.
pub(super) fn read(table: toml::Table) -> Result<SpotConfig, ConfigError> {
    let raw: RawSpot = read_table(table, "spot", &[])?;
    let usual = SpotConfig::default();
    let mut steps: Vec<SpotStep> = Vec::new();
    for (n, table) in raw.steps.into_iter().enumerate() {
        let place = format!("spot.steps[{n}]");
        let step = step(table, &place)?;
        if steps.iter().any(|s| s.name == step.name) {
            return Err(ConfigError::new(format!("there are two steps `{}`", step.name))
                .at(place)
                .hint("give one of them a `name`"));
        }
        if let Some(unknown) = step.after.iter().find(|a| steps.iter().all(|s| s.name != **a)) {
            return Err(ConfigError::new(format!("no step before it is called `{unknown}`"))
                .at(format!("{place}.after"))
                .hint("steps are called as their `name`, else as what they do; they are written in order"));
        }
        steps.push(step);
    }
    if let Some(remote) = raw.remote.as_deref()
        && (remote.is_empty() || remote.starts_with('-'))
    {
        return Err(ConfigError::new("this is no name of a Git remote").at("spot.remote"));
    }
    Ok(SpotConfig {
        poll: raw.poll.map_or(usual.poll, |Span(poll)| poll),
        metadata: raw.metadata,
        repositories: raw.repositories,
        remote: raw.remote.unwrap_or(usual.remote),
        stop: raw.stop,
        stop_units: raw.stop_units,
        steps,
    })
}

fn step(table: toml::Table, place: &str) -> Result<SpotStep, ConfigError> {
    let raw: RawStep = read_table(table, place, &[])?;
    let (services, given) = (raw.services.clone().unwrap_or_default(), raw.services.is_some());
    let (action, usual) = match raw.action {
        Action::Alert => (SpotAction::Alert, "alert"),
        Action::Git => (SpotAction::Git, "git"),
        Action::Stop => (SpotAction::Stop, "stop"),
        Action::Notice => (SpotAction::Notice, "notice"),
        Action::Copy => (SpotAction::Copy(services), "copy"),
        Action::BackUp if services.is_empty() => {
            return Err(ConfigError::new("the key `services` is missing")
                .at(place)
                .hint("say what to back up, e.g. `services = [\"redis\"]`"));
        }
        Action::BackUp => (SpotAction::BackUp(services), "back-up"),
    };
    if given && !matches!(action, SpotAction::BackUp(_) | SpotAction::Copy(_)) {
        return Err(ConfigError::new(format!("`{usual}` is not about services"))
            .at(format!("{place}.services"))
            .hint("remove the key"));
    }
    let budget = raw.budget.map(|Span(budget)| budget);
    Ok(SpotStep { name: raw.name.unwrap_or_else(|| usual.to_owned()), action, budget, after: raw.after })
}

/// Reads `[notify]`.
pub(super) fn notify(table: toml::Table) -> Result<NotifyConfig, ConfigError> {
    let raw: RawNotify = read_table(table, "notify", &[])?;
    let ntfy = raw.ntfy.map(|n| NtfyConfig { url: n.url, topic: n.topic, token: n.token });
    Ok(NotifyConfig { ntfy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SpotConfig, ConfigError> {
        read(toml::from_str(text).unwrap())
    }

    #[test]
    fn steps_have_names_and_wait_only_for_what_stands_before_them() {
        let spot = parse(
            "[[steps]]\ndo = 'back-up'\nservices = ['redis']\nbudget = '20s'\n[[steps]]\ndo = 'copy'\nafter = ['back-up']",
        )
        .unwrap();
        assert_eq!(spot.steps[0].name, "back-up");
        assert_eq!(spot.steps[0].budget, Some(Duration::from_secs(20)));
        assert_eq!(spot.steps[1].after, ["back-up"]);
        let refused = |text: &str| format!("{:?}", parse(text).unwrap_err());
        assert!(refused("[[steps]]\ndo = 'copy'\nafter = ['back-up']").contains("no step before"));
        assert!(refused("[[steps]]\ndo = 'git'\n[[steps]]\ndo = 'git'").contains("two steps `git`"));
        assert!(refused("[[steps]]\ndo = 'back-up'").contains("`services` is missing"));
        assert!(refused("[[steps]]\ndo = 'alert'\nservices = ['x']").contains("not about services"));
        assert!(refused("remote = '--upload-pack=x'").contains("no name of a Git remote"));
        assert!(refused("repository = 'x'").contains("repositories"), "what was meant");
    }
}
