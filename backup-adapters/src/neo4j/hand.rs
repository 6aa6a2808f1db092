//! How to restore with nothing but the server's own image.

use backup_core::{HandContext, HandStep, shell_quote};

use super::server::{SYSTEM, Server};
use crate::legacy::LEGACY;

/// The steps, with the names of this backup's container.
pub(super) fn steps(server: &Server, backup: &HandContext<'_>) -> Vec<HandStep> {
    let (docker, container) = (server.docker.program(), shell_quote(server.docker.container()));
    let run = format!(
        "{docker} run --rm -i --user 7474:7474 --volumes-from {container} --entrypoint sh \
         \"$({docker} inspect -f '{{{{.Config.Image}}}}' {container})\" -c"
    );
    let mut steps = vec![HandStep::new(
        "Stop Neo4j, with time to end by itself. The paths below are those of the public image (`/data`); where \
         `server.directories.data` or `server.directories.transaction.logs.root` say otherwise, use those.",
        format!("{docker} stop -t 300 {container}"),
    )];
    let dumps = backup.metadata.artifacts.iter().any(|a| a.attributes.contains_key("database"));
    let aside = "cd /data && for d in databases transactions; do if [ -e $d ]; then mv $d $d.old; fi; done";
    steps.push(HandStep::new(
        "Move aside what the data directory holds.",
        format!("{run} {}", shell_quote(aside)),
    ));
    for artifact in &backup.metadata.artifacts {
        let decode = backup.decode(artifact);
        if dumps {
            let database = artifact.attributes.get("database").and_then(|d| d.as_str()).unwrap_or(SYSTEM);
            let load = format!(
                "neo4j-admin database load {} --from-stdin --overwrite-destination=true",
                shell_quote(database)
            );
            steps.push(HandStep::new(
                format!("Load database `{database}`. (Neo4j 4.4: `neo4j-admin load --from=- --database=… --force`.)"),
                format!("{decode} | {run} {}", shell_quote(&load)),
            ));
        } else if artifact.attributes.contains_key(LEGACY) {
            let unpack = "cd /data && tar -xf - --strip-components=1";
            steps.push(HandStep::new(
                "Unpack the files. They were copied while the server wrote them: Neo4j may not open them.",
                format!("{decode} | {run} {}", shell_quote(unpack)),
            ));
        } else {
            let unpack = "cd /data && tar -xf - && mv data/databases . && if [ -d data/dbms ]; then cp -R data/dbms .; fi \
                          && rm -rf data";
            steps.push(HandStep::new(
                "Unpack the files: `data` is the data directory without the transaction logs, `transactions` are these. Both \
                 belong together: never start one without the other.",
                format!("{decode} | {run} {}", shell_quote(unpack)),
            ));
        }
    }
    steps.push(HandStep::new(
        "Start Neo4j, and look whether all databases are online. It may have to recover first. The passwords are those of \
         the backup's time: NEO4J_AUTH does not change them.",
        format!("{docker} start {container} && {docker} exec -it {container} cypher-shell -d system 'SHOW DATABASES'"),
    ));
    steps
}
