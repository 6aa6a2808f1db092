//! The containers of a Compose project, as a [`Stack`]. What Compose files mean is Compose's to say: this asks its own
//! program, `docker compose`, or the older `docker-compose`, and the engine about containers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use backup_core::config::ComposeConfig;
use backup_core::{AdapterError, AdapterErrorKind, Part, PartState, Secret, Stack};
use bollard::models::{ContainerInspectResponse, ContainerSummary, HealthStatusEnum};
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::OnceCell;

use super::engine::{DEFAULT_ENGINE, Engine, one_line};
use super::find::{self, label};
use super::survey::{PROJECT, SERVICE};

/// The programs, the better one first.
const PROGRAMS: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];

/// How long an order may take: images may have to be pulled.
const ORDER: Duration = Duration::from_secs(1800);

/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(60);

/// How long another one's work may take that is about to be over.
const AGAIN: Duration = Duration::from_secs(1);

/// A Compose project.
#[derive(Debug)]
pub struct Compose {
    config: ComposeConfig,
    engine: Engine,
    program: OnceCell<&'static [&'static str]>,
    /// The definition as it was read, and the state of the files then.
    read: RwLock<Option<(Vec<Stamp>, Arc<Definition>)>>,
}

/// How a file was: what is the same was not changed.
type Stamp = Option<(SystemTime, u64)>;

/// What `config` prints, as far as it matters here. Values of variables are in there, secrets among them: they are not
/// read.
#[derive(Debug, Deserialize)]
struct Definition {
    name: Option<String>,
    #[serde(default)]
    services: BTreeMap<String, Defined>,
}

#[derive(Debug, Default, Deserialize)]
struct Defined {
    image: Option<String>,
    container_name: Option<String>,
}

impl Compose {
    /// The project. Makes no contact.
    #[must_use]
    pub fn new(config: ComposeConfig) -> Self {
        let engine = Engine::new(config.docker.as_deref().unwrap_or(DEFAULT_ENGINE));
        Self { config, engine, program: OnceCell::new(), read: RwLock::new(None) }
    }

    /// Whether there is a Compose here, and an engine that answers. Needs none of the project's files.
    ///
    /// # Errors
    /// `InvalidConfig` without the program; `Unavailable` and `PermissionDenied` without the engine.
    pub async fn check(&self) -> Result<(), AdapterError> {
        self.program().await?;
        find::list(&self.engine, None).await.map(drop)
    }

    async fn program(&self) -> Result<&'static [&'static str], AdapterError> {
        let found = self.program.get_or_try_init(|| async {
            for program in PROGRAMS {
                if matches!(
                    run(program, &["version".into()], None, self.engine.url(), QUESTION).await,
                    Ok((true, _, _))
                ) {
                    return Ok(program);
                }
            }
            Err(AdapterError::new(
                AdapterErrorKind::InvalidConfig,
                "neither `docker compose` nor `docker-compose` can be run: install Docker Compose",
            ))
        });
        found.await.copied()
    }

    /// The files that the definition depends on, as far as they are known.
    fn files(&self) -> Vec<PathBuf> {
        let beside = || self.config.files.first().and_then(|f| f.parent()).map(|dir| dir.join(".env"));
        let env = self.config.env_file.clone().or_else(beside);
        self.config.files.iter().cloned().chain(env).collect()
    }

    /// Runs Compose on the project.
    async fn compose(&self, args: &[&str], limit: Duration) -> Result<Vec<u8>, AdapterError> {
        let program = self.program().await?;
        if let Some(missing) = self.config.files.iter().find(|f| !f.exists()) {
            let message = format!("there is no Compose file `{}`", missing.display());
            return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, message));
        }
        let mut all: Vec<String> = Vec::new();
        for file in &self.config.files {
            all.extend(["--file".to_owned(), file.display().to_string()]);
        }
        if let Some(project) = &self.config.project {
            all.extend(["--project-name".to_owned(), project.clone()]);
        }
        if let Some(env) = &self.config.env_file {
            all.extend(["--env-file".to_owned(), env.display().to_string()]);
        }
        all.extend(args.iter().map(|a| (*a).to_owned()));
        let dir = self.config.files.first().and_then(|f| f.parent());
        let (done, output, said) = run(program, &all, dir, self.engine.url(), limit).await?;
        if done {
            return Ok(output);
        }
        let what = format!("`{} {}`", program.join(" "), args.first().copied().unwrap_or_default());
        Err(AdapterError::new(AdapterErrorKind::Other, format!("{what} failed: {}", last_words(&said))))
    }

    async fn definition(&self) -> Result<Arc<Definition>, AdapterError> {
        let stamps: Vec<Stamp> = self.files().iter().map(|f| stamp(f)).collect();
        if let Some((then, definition)) = &*self.read.read().unwrap_or_else(PoisonError::into_inner)
            && *then == stamps
        {
            return Ok(Arc::clone(definition));
        }
        let text = self.compose(&["config"], QUESTION).await?;
        let read = serde_saphyr::from_slice::<Definition>(&text);
        // The parser's own words would show the lines around it.
        let definition = Arc::new(read.map_err(|_| {
            AdapterError::new(
                AdapterErrorKind::InvalidConfig,
                "what Compose prints of its files (`config`) is not understood",
            )
        })?);
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = Some((stamps, Arc::clone(&definition)));
        Ok(definition)
    }

    /// The project's name, as Compose chooses it.
    fn project(&self, definition: &Definition) -> String {
        let folder = || {
            let dir = self.config.files.first().and_then(|f| f.parent()).and_then(Path::file_name);
            let name = dir.map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
            let fits = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(*c);
            let name: String = name.chars().filter(fits).collect();
            name.trim_start_matches(['_', '-']).to_owned()
        };
        self.config.project.clone().or_else(|| definition.name.clone()).unwrap_or_else(folder)
    }

    /// The containers of the project.
    async fn listed(&self, project: &str) -> Result<Vec<ContainerSummary>, AdapterError> {
        let mut listed = find::list(&self.engine, Some(format!("{PROJECT}={project}"))).await?;
        listed.retain(|c| !label(c, "com.docker.compose.oneoff").eq_ignore_ascii_case("true"));
        Ok(listed)
    }

    /// The container of a part, if there is one; the first, if there are several.
    async fn container(
        &self,
        listed: &[ContainerSummary],
        part: &str,
    ) -> Result<Option<ContainerInspectResponse>, AdapterError> {
        let of_part = listed.iter().find(|c| label(c, SERVICE) == part);
        let Some(id) = of_part.and_then(|c| c.id.as_deref()) else { return Ok(None) };
        match find::inspect_id(&self.engine, id).await {
            Ok(found) => Ok(Some(found)),
            // Removed since the list was made.
            Err(e) if e.kind() == AdapterErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn has_image(&self, image: &str) -> Result<bool, AdapterError> {
        let client = self.engine.client().await?;
        match self.engine.call("look for an image", client.inspect_image(image)).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == AdapterErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[async_trait]
impl Stack for Compose {
    async fn parts(&self) -> Result<Vec<Part>, AdapterError> {
        let definition = self.definition().await?;
        let project = self.project(&definition);
        let listed = self.listed(&project).await?;
        let mut parts = Vec::new();
        for (name, defined) in &definition.services {
            let container = self.container(&listed, name).await?;
            let mut part = Part::new(name);
            part.containers = names(&project, name, defined);
            if let Some(id) = container.as_ref().and_then(|c| c.id.clone()) {
                part.containers.push(id);
            }
            part.image.clone_from(&defined.image);
            if let (None, Some(image)) = (&container, &defined.image) {
                part.has_image = self.has_image(image).await?;
            }
            part.state = container.as_ref().map_or(PartState::Missing, state);
            parts.push(part);
        }
        Ok(parts)
    }

    async fn start(&self, parts: &[String]) -> Result<(), AdapterError> {
        // What runs is not to be made anew, whatever has changed in the files since.
        let mut args = vec!["up", "--detach", "--no-deps", "--no-recreate"];
        args.extend(parts.iter().map(String::as_str));
        let Err(first) = self.compose(&args, ORDER).await else { return Ok(()) };
        // A program that a killed recovery had started may have been at the same work: then what it made is there by now.
        let there = self.parts().await?;
        if !there.iter().any(|p| parts.contains(&p.name) && p.state != PartState::Missing) {
            return Err(first);
        }
        tokio::time::sleep(AGAIN).await;
        self.compose(&args, ORDER).await.map(drop)
    }

    async fn stop(&self, parts: &[String]) -> Result<(), AdapterError> {
        let mut args = vec!["stop"];
        args.extend(parts.iter().map(String::as_str));
        self.compose(&args, ORDER).await.map(drop)
    }

    async fn data_root(&self) -> Option<PathBuf> {
        self.engine.root().await.ok().flatten()
    }

    async fn last_lines(&self, part: &str) -> Vec<String> {
        let lines = async {
            let definition = self.definition().await?;
            let listed = self.listed(&self.project(&definition)).await?;
            let container = self.container(&listed, part).await?;
            match container.and_then(|c| c.id) {
                Some(id) => Ok::<_, AdapterError>(self.engine.last_lines(&id).await),
                None => Ok(Vec::new()),
            }
        };
        tokio::time::timeout(QUESTION, lines).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

fn stamp(file: &Path) -> Stamp {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// How the container of a service may be named: as the file says, else as the two versions of Compose do; and its labels.
fn names(project: &str, service: &str, defined: &Defined) -> Vec<String> {
    let mut names = match &defined.container_name {
        Some(name) => vec![name.clone()],
        None => vec![format!("{project}-{service}-1"), format!("{project}_{service}_1")],
    };
    names.push(format!("{SERVICE}={service}"));
    names
}

fn state(container: &ContainerInspectResponse) -> PartState {
    let Some(state) = &container.state else { return PartState::Stopped(None) };
    if state.restarting == Some(true) || state.running != Some(true) {
        // One that was made and never started has no end.
        let ended = state.finished_at.as_deref().is_some_and(|at| !at.starts_with("0001-"));
        return PartState::Stopped(state.exit_code.filter(|_| ended));
    }
    match state.health.as_ref().and_then(|h| h.status) {
        Some(HealthStatusEnum::STARTING) => PartState::Starting,
        Some(HealthStatusEnum::UNHEALTHY) => PartState::Unhealthy,
        _ if state.paused == Some(true) => PartState::Unhealthy,
        _ => PartState::Running,
    }
}

/// Runs a program: whether it succeeded, what it printed, and what it said.
async fn run(
    program: &[&str],
    args: &[String],
    dir: Option<&Path>,
    engine: &str,
    limit: Duration,
) -> Result<(bool, Vec<u8>, Secret), AdapterError> {
    let name = program.join(" ");
    let (first, rest) = program.split_first().unwrap_or((&"", &[]));
    let mut command = Command::new(first);
    // The same engine that is asked about containers, whatever the environment says.
    command.args(rest).args(args).env("DOCKER_HOST", engine).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(dir) = dir.filter(|d| !d.as_os_str().is_empty()) {
        command.current_dir(dir);
    }
    match tokio::time::timeout(limit, command.output()).await {
        Ok(Ok(done)) => {
            let said = Secret::new(String::from_utf8_lossy(&done.stderr).into_owned());
            Ok((done.status.success(), done.stdout, said))
        }
        Ok(Err(e)) => Err(AdapterError::io(format!("running `{name}`"), e)),
        Err(_) => Err(AdapterError::new(
            AdapterErrorKind::Timeout,
            format!("`{name}` did not end within {} s", limit.as_secs()),
        )),
    }
}

/// What went wrong stands in the last lines; before them is how far it got, and warnings about variables.
fn last_words(said: &Secret) -> String {
    let lines: Vec<&str> = said.expose().lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let last = lines.len().saturating_sub(2);
    one_line(&lines.get(last..).unwrap_or_default().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{ContainerState, Health};

    #[test]
    fn what_compose_prints_is_read() {
        let v2 = "name: app\nservices:\n  db:\n    environment:\n      P: \"s3cret: x\"\n    image: redis:7\n    container_name: the-db\n  web:\n    build:\n      context: /x\n";
        let read: Definition = serde_saphyr::from_str(v2).unwrap();
        assert_eq!(read.name.as_deref(), Some("app"));
        assert_eq!(read.services["db"].container_name.as_deref(), Some("the-db"));
        assert!(read.services["web"].image.is_none() && !format!("{read:?}").contains("s3cret"));
        let v1 = "services:\n  db:\n    image: redis:7\nversion: '2.4'\nvolumes: {}\n";
        let read: Definition = serde_saphyr::from_str(v1).unwrap();
        assert_eq!((read.name.is_none(), read.services.len()), (true, 1));
    }

    #[test]
    fn a_project_has_the_name_that_compose_gives_it() {
        let mut config = ComposeConfig::default();
        config.files = vec!["/srv/_My App.2/compose.yaml".into()];
        let unnamed = Definition { name: None, services: BTreeMap::new() };
        let compose = Compose::new(config.clone());
        assert_eq!(compose.project(&unnamed), "myapp2");
        let named = Definition { name: Some("said".into()), services: BTreeMap::new() };
        assert_eq!(compose.project(&named), "said");
        config.project = Some("wanted".into());
        assert_eq!(Compose::new(config).project(&named), "wanted");
        let own = names("p", "db", &Defined::default());
        assert_eq!(own, ["p-db-1", "p_db_1", "com.docker.compose.service=db"]);
    }

    #[test]
    fn how_a_container_is() {
        let of = |state: ContainerState| {
            super::state(&ContainerInspectResponse { state: Some(state), ..Default::default() })
        };
        let health = |status| Some(Health { status: Some(status), ..Default::default() });
        let running = || ContainerState { running: Some(true), ..Default::default() };
        assert_eq!(of(running()), PartState::Running);
        let starting = ContainerState { health: health(HealthStatusEnum::STARTING), ..running() };
        assert_eq!(of(starting), PartState::Starting);
        let looping = ContainerState {
            restarting: Some(true),
            exit_code: Some(3),
            finished_at: Some("2026-01-01T00:00:00Z".into()),
            ..running()
        };
        assert_eq!(of(looping), PartState::Stopped(Some(3)));
        let made = ContainerState {
            exit_code: Some(0),
            finished_at: Some("0001-01-01T00:00:00Z".into()),
            ..Default::default()
        };
        assert_eq!(of(made), PartState::Stopped(None));
    }

    #[test]
    fn the_last_words_are_what_went_wrong() {
        let said = Secret::new(
            "WARN a is not set\n Container x  Creating\n Container x  Error\nError: no such image: y\n",
        );
        assert_eq!(last_words(&said), "Container x Error; Error: no such image: y");
        assert_eq!(last_words(&Secret::new("")), "");
    }
}
