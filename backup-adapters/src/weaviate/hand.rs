//! How to restore a backup with nothing but Weaviate and curl.

use backup_core::{HandContext, HandStep, shell_quote};

use super::restore::Backup;
use super::server::Server;

/// The steps, with the names of this backup.
pub(super) fn steps(server: &Server, context: &HandContext<'_>) -> Vec<HandStep> {
    let (Ok(backup), Some(artifact)) = (Backup::of(context.metadata), context.metadata.artifacts.first())
    else {
        return Vec::new();
    };
    let attribute = |key: &str| artifact.attributes.get(key).and_then(|v| v.as_str()).unwrap_or_default();
    let (id, node) = (&backup.id, shell_quote(&backup.node));
    let version = attribute("version");
    let decode = context.decode(artifact);
    let base = match (&server.url, &server.container) {
        (Some(url), _) => url.as_str().trim_end_matches('/').to_owned(),
        _ => format!("http://localhost:{}", server.port),
    };
    // `printf` is the shell's own: the key is in no process list.
    let curl = "curl -fsS -K <(printf 'header = \"Authorization: Bearer %s\"\\n' \"$WEAVIATE_API_KEY\") \
                -H 'Content-Type: application/json'";
    let unpack = match &server.container {
        Some(docker) => {
            let container = shell_quote(docker.container());
            format!(
                "{decode} | docker cp - {container}:\"$(docker exec {container} printenv BACKUP_FILESYSTEM_PATH)\""
            )
        }
        None => format!("{decode} | tar -xf - -C \"$BACKUP_FILESYSTEM_PATH\""),
    };
    let body = r#"{"config":{"usersOptions":"all","rolesOptions":"all"}}"#;
    let mut steps = vec![
        HandStep::new(
            format!(
                "Start Weaviate {version} (or a newer patch of it) on an empty data directory.\n\
                 Set `ENABLE_MODULES=backup-filesystem` with the modules that the collections use, \
                 `BACKUP_FILESYSTEM_PATH`, and `CLUSTER_HOSTNAME={node}`: the name of the node is in the backup. Keep \
                 the old data directory under another name. A collection that exists already cannot be restored."
            ),
            "",
        ),
        HandStep::new("Put the backup into its backup folder.", unpack),
    ];
    if backup.node.is_empty() {
        steps.truncate(1);
        return steps;
    }
    steps.extend([
        HandStep::new(
            "Let it restore.\nExport `WEAVIATE_API_KEY` first, if it asks for a key.",
            format!("{curl} -X POST {base}/v1/backups/filesystem/{id}/restore -d '{body}'"),
        ),
        HandStep::new(
            "Ask until it says `SUCCESS`. With `FAILED`, some collections may be there: begin again with an empty data directory.",
            format!("{curl} {base}/v1/backups/filesystem/{id}/restore"),
        ),
        HandStep::new(
            "Compare the numbers of objects with `evidence` in metadata.json, e.g.:",
            format!("{curl} {base}/v1/nodes?output=verbose"),
        ),
    ]);
    for (class, tenants) in &backup.inactive {
        steps.push(HandStep::new(
            format!(
                "Optional: {} tenants of `{class}` were inactive. They are active now, which costs memory only: \
                 `inactive_tenants` in metadata.json names them.",
                tenants.len()
            ),
            "",
        ));
    }
    steps
}
