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
    if backup.export {
        return of_export(version, &decode, &format!("{curl} -X POST {base}/v1"), id);
    }
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

/// An export is JSON that the ordinary API takes.
fn of_export(version: &str, decode: &str, post: &str, id: &str) -> Vec<HandStep> {
    let without_references =
        r#"jq -c '.classes[] | if .multiTenancyConfig.enabled then del(.shardingConfig) else . end'"#;
    vec![
        HandStep::new(
            format!(
                "Start Weaviate {version} (or a newer one) on an empty data directory, with the modules that the \
                 collections use. Users and roles are not in this backup."
            ),
            "",
        ),
        HandStep::new("Unpack the export.", format!("{decode} | tar -xf -")),
        HandStep::new(
            "Make the collections.\nExport `WEAVIATE_API_KEY` first, if it asks for a key. A collection that refers to \
             another one comes after it.",
            format!(
                "{without_references} {id}/schema.json | while IFS= read -r c; do {post}/schema -d \"$c\"; done"
            ),
        ),
        HandStep::new(
            "Make the tenants, if there are any: `parts` in `export.json` names them.",
            format!(
                "jq -r '.parts[] | select(.tenant) | .class + \" \" + .tenant' {id}/export.json | while read -r c t; do \
                 {post}/schema/\"$c\"/tenants -d \"[{{\\\"name\\\":\\\"$t\\\"}}]\"; done"
            ),
        ),
        HandStep::new(
            "Import the objects; those of a tenant get its name. What the server says of an object that it does not take \
             stands in `result.errors`: nothing should be shown. Objects with references come after those that they \
             lead to.",
            format!(
                "find {id} -mindepth 2 -name '*.jsonl' | sort | while IFS= read -r f; do t=$(dirname \"${{f#{id}/*/}}\"); \
                 [ \"$t\" != . ] || t=; jq -cs --arg t \"$t\" \
                 '{{objects: map(if $t == \"\" then . else .tenant = $t end)}}' \"$f\" | {post}/batch/objects -d @- | \
                 jq -c '.[].result.errors | select(.)'; done"
            ),
        ),
        HandStep::new("Compare the numbers of objects with `parts` in `export.json`.", ""),
    ]
}
