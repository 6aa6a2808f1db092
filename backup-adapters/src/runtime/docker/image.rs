//! The image of a test restore: the one that the backup was made of, where the engine still has it. A newer server need not read
//! what that one wrote, and an older one does not.

use backup_core::runtime::ServiceRuntime as _;
use backup_core::{AdapterError, AdapterErrorKind, Image, OpContext};
use bollard::models::{ContainerConfig, ImageConfig};

use super::DockerRuntime;
use super::engine::Engine;

impl DockerRuntime {
    /// The image that a test restore takes in place of the container's own: that of the backup, if it is another one and the
    /// engine has it. If it has not, that is told.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn image_then(&self, cx: &OpContext) -> Result<Option<String>, AdapterError> {
        let Some(then) = &cx.image_then else { return Ok(None) };
        let now = match cx.within(self.inspect()).await? {
            Ok(found) => found.image,
            Err(e) if e.kind() == AdapterErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let Some(now) = now.filter(|now| !is_same(then, now)) else { return Ok(None) };
        for name in names(then) {
            match cx.within(id_of(&self.engine, &name)).await? {
                Ok(id) => return Ok(Some(id)),
                Err(e) if e.kind() == AdapterErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        cx.warn(format!(
            "the backup was made of `{}`, which is not on this host: the test restore takes `{}`",
            shown(then, &now),
            shown(&now, then)
        ));
        Ok(None)
    }
}

/// The image's id, which nobody can give to another one.
async fn id_of(engine: &Engine, name: &str) -> Result<String, AdapterError> {
    let found = engine.call("look for an image", engine.client().await?.inspect_image(name)).await?;
    Ok(found.id.unwrap_or_else(|| name.to_owned()))
}

/// What an image brings to its containers by itself.
pub(super) async fn brings(engine: &Engine, id: &str) -> Result<ImageConfig, AdapterError> {
    let found = engine.call("look at an image", engine.client().await?.inspect_image(id)).await?;
    Ok(found.config.unwrap_or_default())
}

/// What a container was given besides what its image brings: another image brings its own.
pub(super) fn given(container: ContainerConfig, image: &ImageConfig) -> ContainerConfig {
    let brought = image.env.as_deref().unwrap_or_default();
    ContainerConfig {
        env: container.env.map(|env| env.into_iter().filter(|line| !brought.contains(line)).collect()),
        entrypoint: container.entrypoint.filter(|e| Some(e) != image.entrypoint.as_ref()),
        cmd: container.cmd.filter(|c| Some(c) != image.cmd.as_ref()),
        user: container.user.filter(|u| Some(u) != image.user.as_ref()),
        working_dir: container.working_dir.filter(|d| Some(d) != image.working_dir.as_ref()),
        ..container
    }
}

fn is_same(then: &Image, now: &Image) -> bool {
    match (&then.digest, &now.digest) {
        (Some(then), Some(now)) => then == now,
        _ => then.name == now.name,
    }
}

/// By what the engine may know it. A name alone may be another image's by now.
fn names(image: &Image) -> Vec<String> {
    let Some(digest) = &image.digest else { return vec![image.name.clone()] };
    let name = image.name.split('@').next().unwrap_or_default();
    let repository = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    };
    vec![format!("{repository}@{digest}"), digest.clone()]
}

/// With a part of its digest, where the name alone is that of the other one, too.
fn shown(image: &Image, other: &Image) -> String {
    match &image.digest {
        Some(digest) if image.name == other.name => {
            let short: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
            format!("{} ({short})", image.name)
        }
        _ => image.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, digest: Option<&str>) -> Image {
        Image { name: name.to_owned(), digest: digest.map(str::to_owned) }
    }

    #[test]
    fn an_image_is_known_by_its_digest_and_not_by_its_tag() {
        let then = image("registry:5000/db:15", Some("sha256:a"));
        assert!(is_same(&then, &image("db:latest", Some("sha256:a"))));
        assert!(!is_same(&then, &image("registry:5000/db:15", Some("sha256:b"))));
        assert!(is_same(&then, &image("registry:5000/db:15", None)));
        assert_eq!(names(&then), ["registry:5000/db@sha256:a", "sha256:a"]);
        assert_eq!(names(&image("registry:5000/db", Some("d")))[0], "registry:5000/db@d");
        assert_eq!(names(&image("db:15", None)), ["db:15"]);
        let long = image("db:15", Some("sha256:0123456789abcdef"));
        assert_eq!(shown(&long, &image("db:15", None)), "db:15 (0123456789ab)");
        assert_eq!(shown(&long, &image("db:16", None)), "db:15");
    }

    #[test]
    fn what_an_image_brings_is_not_given_to_another() {
        let strings = |all: &[&str]| Some(all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let container = ContainerConfig {
            env: strings(&["PG_MAJOR=16", "POSTGRES_DB=app"]),
            entrypoint: strings(&["docker-entrypoint.sh"]),
            cmd: strings(&["postgres", "-c", "a=b"]),
            user: Some("postgres".to_owned()),
            ..Default::default()
        };
        let image = ImageConfig {
            env: strings(&["PG_MAJOR=16", "PATH=/16"]),
            entrypoint: strings(&["docker-entrypoint.sh"]),
            cmd: strings(&["postgres"]),
            user: Some(String::new()),
            ..Default::default()
        };
        let given = given(container, &image);
        assert_eq!((given.env, given.entrypoint), (strings(&["POSTGRES_DB=app"]), None));
        assert_eq!(
            (given.cmd, given.user.as_deref()),
            (strings(&["postgres", "-c", "a=b"]), Some("postgres"))
        );
    }
}
