//! Which container is meant.

use std::collections::HashMap;

use backup_core::{AdapterError, AdapterErrorKind};
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions};

use super::engine::Engine;
use super::survey::{PROJECT, SERVICE};

/// The shortest part of an id that is taken for one. A container called `db` must never turn out to be the one whose id
/// begins with `db`.
const SHORT_ID: usize = 12;

pub(super) async fn inspect(engine: &Engine, wanted: &str) -> Result<ContainerInspectResponse, AdapterError> {
    if let Some((key, value)) = wanted.split_once('=') {
        let id = by_label(engine, key, value).await?;
        return inspect_id(engine, &id).await;
    }
    let wanted = wanted.trim_start_matches('/');
    // Anything else would change the path of the request.
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if wanted.is_empty() || !wanted.chars().all(plain) || wanted.starts_with('.') {
        return Err(missing(engine, wanted).await);
    }
    match inspect_id(engine, wanted).await {
        Ok(found) if is_meant(&found, wanted) => Ok(found),
        Ok(_) => Err(missing(engine, wanted).await),
        Err(e) if e.kind() == AdapterErrorKind::NotFound => Err(missing(engine, wanted).await),
        Err(e) => Err(e),
    }
}

pub(super) async fn inspect_id(engine: &Engine, id: &str) -> Result<ContainerInspectResponse, AdapterError> {
    let client = engine.client().await?;
    let request = client.inspect_container(id, None::<InspectContainerOptions>);
    engine.call(&format!("inspect container `{id}`"), request).await
}

/// The digest by which the container's image can be pulled again; for one that was never in a registry, its id.
pub(super) async fn digest(engine: &Engine, container: &ContainerInspectResponse) -> Option<String> {
    let id = container.image.clone()?;
    let image = engine.call("inspect an image", engine.client().await.ok()?.inspect_image(&id)).await.ok();
    let named = container.config.as_ref().and_then(|c| c.image.as_deref()).unwrap_or_default();
    let digests = image.and_then(|i| i.repo_digests).unwrap_or_default();
    let of_name =
        |d: &&String| d.split_once('@').is_some_and(|(repository, _)| named.starts_with(repository));
    let best = digests.iter().find(of_name).or_else(|| digests.first());
    Some(best.and_then(|d| d.split_once('@')).map_or(id, |(_, digest)| digest.to_owned()))
}

pub(super) async fn list(
    engine: &Engine,
    labels: Option<String>,
) -> Result<Vec<ContainerSummary>, AdapterError> {
    let filters = labels.map(|label| HashMap::from([("label".to_owned(), vec![label])]));
    let options = ListContainersOptions { all: true, filters, ..Default::default() };
    let client = engine.client().await?;
    engine.call("list containers", client.list_containers(Some(options))).await
}

fn is_meant(found: &ContainerInspectResponse, wanted: &str) -> bool {
    let name = found.name.as_deref().unwrap_or_default();
    let id = found.id.as_deref().unwrap_or_default();
    name.trim_start_matches('/') == wanted || (wanted.len() >= SHORT_ID && id.starts_with(wanted))
}

async fn by_label(engine: &Engine, key: &str, value: &str) -> Result<String, AdapterError> {
    let mut found = list(engine, Some(format!("{key}={value}"))).await?;
    // `docker compose run` leaves containers with the labels of the service.
    let one_off = |c: &ContainerSummary| label(c, "com.docker.compose.oneoff").eq_ignore_ascii_case("true");
    if found.iter().any(|c| !one_off(c)) {
        found.retain(|c| !one_off(c));
    }
    match found.as_slice() {
        [one] => Ok(one.id.clone().unwrap_or_default()),
        [] => {
            let near: Vec<String> = list(engine, Some(key.to_owned()))
                .await?
                .iter()
                .map(|c| format!("`{key}={}`", label(c, key)))
                .collect();
            let hint = if near.is_empty() {
                format!("no container has a label `{key}`")
            } else {
                format!("there are {}", some_of(near))
            };
            let message = format!("no container has the label `{key}={value}`; {hint}");
            Err(AdapterError::new(AdapterErrorKind::NotFound, message))
        }
        many => {
            let names = some_of(many.iter().map(|c| format!("`{}`", name(c))).collect());
            let message =
                format!("the label `{key}={value}` is on {} containers: {names}; write a name", many.len());
            Err(AdapterError::new(AdapterErrorKind::NotFound, message))
        }
    }
}

/// The error for a name that no container has, with those that may be meant.
async fn missing(engine: &Engine, wanted: &str) -> AdapterError {
    let all = match list(engine, None).await {
        Ok(all) => all,
        Err(e) => return e,
    };
    let those = |is: fn(&ContainerSummary, &str) -> bool| -> Vec<String> {
        all.iter().filter(|c| is(c, wanted)).map(|c| format!("`{}`", name(c))).collect()
    };
    let near = Some(those(holds)).filter(|n| !n.is_empty()).unwrap_or_else(|| those(resembles));
    let hint = if !near.is_empty() {
        format!("did you mean {}?", some_of(near).replace(", ", " or "))
    } else if all.is_empty() {
        "there are no containers".to_owned()
    } else {
        format!("there are {}", some_of(all.iter().map(|c| format!("`{}`", name(c))).collect()))
    };
    AdapterError::new(AdapterErrorKind::NotFound, format!("there is no container `{wanted}`; {hint}"))
}

fn holds(container: &ContainerSummary, wanted: &str) -> bool {
    let (name, wanted) = (name(container).to_lowercase(), wanted.to_lowercase());
    (!wanted.is_empty() && name.contains(&wanted))
        || wanted.contains(&name)
        || label(container, SERVICE) == wanted
        || label(container, PROJECT) == wanted
}

fn resembles(container: &ContainerSummary, wanted: &str) -> bool {
    strsim::jaro_winkler(name(container), wanted) > 0.88
}

fn some_of(mut names: Vec<String>) -> String {
    names.sort_unstable();
    names.dedup();
    let left = names.len().saturating_sub(8);
    names.truncate(8);
    let more = if left > 0 { format!(" and {left} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

pub(super) fn name(container: &ContainerSummary) -> &str {
    let names = container.names.as_deref().unwrap_or_default();
    // Names with a second slash are links of other containers.
    let own = names.iter().find(|n| n.rfind('/') == Some(0)).or_else(|| names.first());
    own.map(|n| n.trim_start_matches('/')).or(container.id.as_deref()).unwrap_or_default()
}

pub(super) fn label<'a>(container: &'a ContainerSummary, key: &str) -> &'a str {
    container.labels.as_ref().and_then(|l| l.get(key)).map_or("", String::as_str)
}
