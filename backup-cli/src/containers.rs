//! The containers of the Docker engine, for what is discovered.

use std::path::PathBuf;
use std::sync::Arc;

use backup_core::plan::BackupPlan;
use backup_core::{DiscoverContext, LeftOut, SeenContainer, Stack};

use crate::scaffold::{Found, Project, Survey};

/// Shows them to the adapters. What keeps us from looking is something left out, never an error: files do not need it.
#[cfg(feature = "docker")]
pub(crate) async fn look(look: &mut DiscoverContext) -> Option<LeftOut> {
    use backup_adapters::runtime::docker;
    let seen = match engine() {
        Some(url) => docker::survey_of(&url).await,
        None => docker::survey().await,
    };
    match seen {
        Ok(containers) => {
            look.containers = containers;
            None
        }
        Err(e) => Some(LeftOut { what: "containers".to_owned(), why: backup_core::chain(&e) }),
    }
}

/// What `recover` makes containers from, if the configuration says so.
#[cfg(feature = "docker")]
pub(crate) fn stack(plan: &BackupPlan) -> Option<Arc<dyn Stack>> {
    let compose = plan.compose.clone()?;
    Some(Arc::new(backup_adapters::runtime::docker::Compose::new(compose)))
}

/// Whether what makes containers is there, if the configuration needs it.
#[cfg(feature = "full")]
pub(crate) async fn answers(plan: &BackupPlan) -> Result<(), String> {
    let Some(compose) = plan.compose.clone() else { return Ok(()) };
    let checked = backup_adapters::runtime::docker::Compose::new(compose).check().await;
    checked.map_err(|e| format!("no containers can be made here: {}", backup_core::chain(&e)))
}

#[cfg(not(feature = "docker"))]
pub(crate) fn stack(_: &BackupPlan) -> Option<Arc<dyn Stack>> {
    None
}

/// The engine that `$DOCKER_HOST` names, if it is not the usual one.
#[cfg(feature = "docker")]
fn engine() -> Option<String> {
    crate::environment::var("DOCKER_HOST")
        .filter(|url| url != backup_adapters::runtime::docker::DEFAULT_ENGINE)
}

#[cfg(not(feature = "docker"))]
pub(crate) async fn look(_: &mut DiscoverContext) -> Option<LeftOut> {
    let there = std::path::Path::new("/var/run/docker.sock").exists();
    there.then(|| LeftOut {
        what: "containers".to_owned(),
        why: "not looked at: this program was built without the feature `docker`".to_owned(),
    })
}

/// Completes what was found in containers: which engine they are on, and which of them nothing was found in.
pub(crate) fn complete(survey: &mut Survey, containers: &[SeenContainer]) {
    for container in containers {
        let claimed = survey.found.iter().any(|f| names(&f.service.settings, container));
        if !claimed && !survey.left_out.iter().any(|l| mentions(&l.what, &container.name)) {
            survey.left_out.push(LeftOut {
                what: format!("container {} ({})", container.name, container.image),
                why: "no adapter for it in this version".to_owned(),
            });
        }
    }
    survey.compose = project(&survey.found, containers);
    #[cfg(feature = "docker")]
    if let Some(url) = engine() {
        for found in survey.found.iter_mut().filter(|f| f.service.settings.contains_key("container")) {
            found.service.settings.insert("docker".to_owned(), url.clone().into());
        }
    }
}

/// The Compose project that the services run in, if it is one and tells its files. Of several, nobody knows which is meant.
fn project(found: &[Found], containers: &[SeenContainer]) -> Option<Project> {
    let label = |c: &SeenContainer, key: &str| c.labels.get(&format!("com.docker.compose.{key}")).cloned();
    let of_container = |c: &SeenContainer| {
        let dir = PathBuf::from(label(c, "project.working_dir").unwrap_or_default());
        let files = label(c, "project.config_files")?;
        // The older Compose notes them as they were named.
        let files = files.split(',').filter(|f| !f.is_empty()).map(|f| dir.join(f).display().to_string());
        Some(Project { name: label(c, "project")?, files: files.collect() })
    };
    let used = containers.iter().filter(|c| found.iter().any(|f| names(&f.service.settings, c)));
    let mut projects: Vec<Project> = used.filter_map(of_container).filter(|p| !p.files.is_empty()).collect();
    projects.dedup();
    match projects.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    }
}

fn names(settings: &toml::Table, container: &SeenContainer) -> bool {
    let Some(wanted) = settings.get("container").and_then(toml::Value::as_str) else { return false };
    match wanted.strip_prefix("label=").unwrap_or(wanted).split_once('=') {
        Some((key, value)) => container.labels.get(key).is_some_and(|v| v == value),
        None => wanted == container.name,
    }
}

fn mentions(what: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    what.split(|c| !part_of_name(c)).any(|word| word == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup_core::Discovered;
    use backup_core::runtime::RunState;
    use std::collections::BTreeMap;

    fn seen(name: &str) -> SeenContainer {
        SeenContainer {
            name: name.to_owned(),
            image: "some:1".to_owned(),
            state: RunState::Running,
            labels: BTreeMap::from([("com.docker.compose.service".to_owned(), format!("{name}-service"))]),
            env: BTreeMap::new(),
            command: Vec::new(),
            ports: Vec::new(),
            mounts: Vec::new(),
        }
    }

    #[test]
    fn every_container_is_accounted_for_once() {
        let found = |settings: &str| Found {
            kind: "k",
            service: Discovered {
                service: "s".parse().unwrap(),
                summary: String::new(),
                settings: settings.parse().unwrap(),
                covers: Vec::new(),
            },
        };
        let mut survey = Survey {
            found: vec![
                found("container = 'by-name'"),
                found("container = 'label=com.docker.compose.service=by-label-service'"),
                found("paths = ['lonely']"),
            ],
            left_out: vec![LeftOut { what: "container `told` (some:1)".into(), why: "it is stopped".into() }],
            compose: None,
        };
        complete(&mut survey, &["by-name", "by-label", "lonely", "told", "tol"].map(seen));
        let rest: Vec<&str> = survey.left_out.iter().skip(1).map(|l| l.what.as_str()).collect();
        assert_eq!(rest, ["container lonely (some:1)", "container tol (some:1)"]);
    }

    #[test]
    fn the_project_is_that_of_the_services_alone() {
        let service = |container: &str| Found {
            kind: "k",
            service: Discovered {
                service: "s".parse().unwrap(),
                summary: String::new(),
                settings: format!("container = '{container}'").parse().unwrap(),
                covers: Vec::new(),
            },
        };
        let of = |name: &str, project: &str, files: &str| {
            let mut seen = seen(name);
            let labels = [("", project), (".config_files", files), (".working_dir", "/srv/app")];
            let labels = labels.map(|(k, v)| (format!("com.docker.compose.project{k}"), v.to_owned()));
            seen.labels.extend(labels);
            seen
        };
        let all = [
            of("db", "app", "a.yaml,/etc/b.yaml"),
            of("web", "app", "a.yaml,/etc/b.yaml"),
            of("x", "other", "x.yaml"),
        ];
        let project = super::project(&[service("db")], &all).unwrap();
        assert_eq!(
            (project.name.as_str(), project.files),
            ("app", vec!["/srv/app/a.yaml".into(), "/etc/b.yaml".into()])
        );
        assert_eq!(super::project(&[service("db"), service("x")], &all), None);
        assert_eq!(super::project(&[service("none")], &all), None);
    }
}
