//! How to restore without this program.

use backup_core::{ArtifactMeta, HandContext, HandStep, shell_quote};

use super::Settings;
use super::base::BASE;
use super::capture::{GLOBALS, PROPERTIES};
use super::format::DumpFormat;
use super::restore::{attribute, database_of, format_of, of_content};
use super::sql::{conninfo, ident};

/// The commands that load one dump from a file, each on a line.
pub(super) fn load(artifact: &ArtifactMeta, name: &str, file: &str) -> String {
    let (target, file) = (format!("{name}_restored"), shell_quote(file));
    let create = create(&target);
    let load = match format_of(artifact) {
        DumpFormat::Plain => {
            format!("psql -X -v ON_ERROR_STOP=1 -d {} -f {file}", shell_quote(&conninfo(&target)))
        }
        DumpFormat::Custom => {
            format!("pg_restore --exit-on-error -d {} {file}", shell_quote(&conninfo(&target)))
        }
        DumpFormat::Directory => format!(
            "dir=$(mktemp -d) && tar -C \"$dir\" -xf {file}\npg_restore --exit-on-error -j 4 -d {} \"$dir/dump\"; rm -r \"$dir\"",
            shell_quote(&conninfo(&target))
        ),
    };
    format!("{create}\n{load}\n")
}

fn create(target: &str) -> String {
    let sql = format!("CREATE DATABASE {} TEMPLATE template0", ident(target));
    format!("psql -X -d postgres -c {}", shell_quote(&sql))
}

/// Unpacks a data directory within `$1` and exchanges what is there for it: works where `$1` is a mount, too.
const EXCHANGE: &str = "set -e; cd \"$1\"; mkdir -m 0700 restored; tar -C restored -xpf -; \
    chown -R \"$(stat -c %u:%g .)\" restored; mkdir -m 0700 before_restore; \
    for f in * .[!.]*; do case $f in restored|before_restore) continue;; esac; [ ! -e \"$f\" ] || mv \"$f\" before_restore/; done; \
    for f in restored/* restored/.[!.]*; do [ ! -e \"$f\" ] || mv \"$f\" .; done; rmdir restored";

/// The whole server from a base backup.
fn base_steps(settings: &Settings, backup: &HandContext<'_>, artifact: &ArtifactMeta) -> Vec<HandStep> {
    let data = attribute(artifact, "data_directory").unwrap_or("/var/lib/postgresql/data");
    let version = attribute(artifact, "server_version").unwrap_or("the same version");
    let exchange = format!("sh -c {} sh {}", shell_quote(EXCHANGE), shell_quote(data));
    let decode = backup.decode(artifact);
    let (stop, exchange, start) = match (settings.docker(), &settings.unit) {
        (Some(docker), _) => {
            let (program, container) = (docker.program(), shell_quote(docker.container()));
            let image = format!("\"$({program} inspect -f '{{{{.Config.Image}}}}' {container})\"");
            let (_, rest) = exchange.split_once(' ').unwrap_or_default();
            (
                format!("{program} stop -t 120 {container}"),
                format!(
                    "{decode} | {program} run --rm -i -u 0 --volumes-from {container} --entrypoint sh {image} {rest}"
                ),
                format!("{program} start {container}"),
            )
        }
        (None, Some(unit)) => {
            let unit = shell_quote(unit);
            (
                format!("systemctl stop {unit}"),
                format!("{decode} | {exchange}"),
                format!("systemctl start {unit}"),
            )
        }
        (None, None) => (String::new(), format!("{decode} | {exchange}"), String::new()),
    };
    vec![
        HandStep::new("Stop the server. It must be a PostgreSQL of this major version.", stop),
        HandStep::new(
            format!(
                "Put the files of server {version} into its data directory. What is there goes to `before_restore` in it: move \
                 that elsewhere afterwards."
            ),
            exchange,
        ),
        HandStep::new("Start the server: it recovers from the WAL that is with the files.", start),
    ]
}

pub(super) fn steps(settings: &Settings, backup: &HandContext<'_>) -> Vec<HandStep> {
    if let Some(artifact) = of_content(backup.metadata, BASE) {
        return base_steps(settings, backup, artifact);
    }
    let yugabyte = settings.flavor == super::Flavor::Yugabyte;
    let psql = if yugabyte { "ysqlsh" } else { "psql" };
    let user = settings.user.clone().unwrap_or_else(|| settings.flavor.user().to_owned());
    let inside = match settings.docker() {
        Some(docker) => format!("{} exec -i {} ", docker.program(), shell_quote(docker.container())),
        None => String::new(),
    };
    let mut environment = vec![format!("-U {}", shell_quote(&user)), format!("-p {}", settings.port())];
    if let Some(socket) = &settings.socket {
        environment.push(format!("-h {}", shell_quote(&socket.display().to_string())));
    } else if let Some(host) = &settings.host {
        environment.push(format!("-h {}", shell_quote(host)));
    }
    let connection = environment.join(" ");
    let run = format!("{inside}{psql} -X {connection}");
    let mut steps = Vec::new();
    let decode = |a: &ArtifactMeta| backup.decode(a);
    if let Some(globals) = of_content(backup.metadata, GLOBALS) {
        steps.push(HandStep::new(
            "On a new server: create roles and table spaces. (On a server that has them this would also reset the \
             passwords of its roles: run only the lines of those that are missing.)",
            format!("{} | {run} -d postgres", decode(globals)),
        ));
    }
    if let Some(properties) = of_content(backup.metadata, PROPERTIES) {
        steps.push(HandStep::new(
            "Look at how the databases were made: encoding, locale, owner, settings, rights. The commands below make \
             them with the server's defaults; use these lines instead where they differ.",
            decode(properties),
        ));
    }
    for artifact in &backup.metadata.artifacts {
        let Some(name) = database_of(artifact) else { continue };
        let (target, kept) = (format!("{name}_restored"), format!("{name}_old"));
        let create = shell_quote(&format!("CREATE DATABASE {} TEMPLATE template0", ident(&target)));
        let reader = match format_of(artifact) {
            DumpFormat::Plain => format!("{run} -q -v ON_ERROR_STOP=1"),
            DumpFormat::Custom => format!("{inside}pg_restore {connection} --exit-on-error"),
            DumpFormat::Directory => format!(
                "{inside}sh -c {} sh {connection}",
                shell_quote(
                    "set -e; dir=$(mktemp -d); trap 'rm -rf \"$dir\"' EXIT; tar -C \"$dir\" -xf -; \
                     pg_restore --exit-on-error -j 4 \"$@\" \"$dir/dump\""
                )
            ),
        };
        steps.push(HandStep::new(
            format!("Load database {name} beside the live one."),
            format!(
                "{run} -d template1 -c {create}\n{} | {reader} -d {}\n{run} -d {} -c ANALYZE",
                decode(artifact),
                shell_quote(&conninfo(&target)),
                shell_quote(&conninfo(&target)),
            ),
        ));
        let rename = |from: &str, to: &str| {
            shell_quote(&format!("ALTER DATABASE {} RENAME TO {}", ident(from), ident(to)))
        };
        steps.push(HandStep::new(
            format!(
                "Stop what uses {name}, then exchange the two. (Skip the first line if there is no {name}.)"
            ),
            format!(
                "{run} -d template1 -c {}\n{run} -d template1 -c {}",
                rename(&name, &kept),
                rename(&target, &name)
            ),
        ));
    }
    steps
}
