//! What a mistake in `backup.toml` says: the file, the dotted path, what is wrong, and what was probably meant.

use std::path::Path;

use backup_core::ConfigError;
use backup_core::config::Config;

mod config_stub;

const STORE: &str = "[store]\nurl = '/backups'\n";
const SERVICE: &str = "[services.data]\nkind = 'files'\npaths = ['/srv']\n";

fn read(text: &str) -> Result<(), ConfigError> {
    let config = Config::parse(text, "backup.toml")?;
    config.resolve(&config_stub::registry(), Path::new("/etc/backup")).map(|_| ())
}

/// Message and help of what must be refused.
fn refusal(text: &str) -> (String, String) {
    let error = read(text).expect_err(text);
    assert!(!error.to_string().contains('\n'), "{error}");
    (error.to_string(), error.help().unwrap_or_default().to_owned())
}

#[track_caller]
fn refused(text: &str, message: &str, help: &str) {
    assert_eq!(refusal(text), (message.to_owned(), help.to_owned()));
}

/// With a store before and `rest` after it.
fn with_store(rest: &str) -> String {
    format!("{STORE}{rest}")
}

/// With a store and a service.
fn with_service(rest: &str) -> String {
    format!("{STORE}{SERVICE}{rest}")
}

#[test]
fn the_examples_are_fine() {
    read(&with_store("")).unwrap();
    read(&with_service(
        "[intervals.15min]\nservices = ['data']\nkeep = 3\ntimeout = '240s'\nschedule = '*:0/15'\n",
    ))
    .unwrap();
}

#[test]
fn a_compose_project_has_files_and_a_name_that_compose_takes() {
    let with = |rest: &str| with_service(&format!("[compose]\n{rest}"));
    for good in
        ["file = 'compose.yaml'", "file = ['a.yaml', '/b.yaml']\nproject = 'truth-si_2'\nenv_file = '.env'"]
    {
        read(&with(good)).unwrap();
    }
    let plan =
        Config::parse(&with("file = ['a.yaml', '/b.yaml']\nenv_file = 'x/.env'"), "backup.toml").unwrap();
    let plan = plan.resolve(&config_stub::registry(), Path::new("/etc/backup")).unwrap();
    let compose = plan.compose.unwrap();
    assert_eq!(compose.files, [Path::new("/etc/backup/a.yaml"), Path::new("/b.yaml")]);
    assert_eq!(compose.env_file.as_deref(), Some(Path::new("/etc/backup/x/.env")));
    refused(
        &with("file = []"),
        "backup.toml: compose.file: no file is named",
        "write the path of the Compose file, or a list of paths in Compose's order",
    );
    for wrong in ["My App", "-x", ""] {
        let (message, _) = refusal(&with(&format!("file = 'a.yaml'\nproject = '{wrong}'")));
        assert_eq!(message, format!("backup.toml: compose.project: `{wrong}` is no name of a project"));
    }
    let (message, _) = refusal(&with("file = 7"));
    assert!(message.contains("a path, or a list of paths"), "{message}");
    let (message, _) = refusal(&with("files = ['a.yaml']"));
    assert!(message.contains("files"), "{message}");
}

#[test]
fn unknown_keys_name_the_closest_one() {
    refused(
        &with_store("[sevices.redis]\nkind = 'redis'"),
        "backup.toml: unknown key `sevices`",
        "did you mean `services`? the keys are store, stores, copies, state_dir, host, rto, intervals, services, limits, compression, guard, compose, encryption, spot, notify, backup_configuration",
    );
    refused(
        &with_service("[intervals.15min]\nservices = ['data']\nkeeep = 3"),
        "backup.toml: intervals.15min: unknown key `keeep`",
        "did you mean `keep`? the keys are services, keep, delete_older_than, max_total_bytes, timeout, schedule, copies",
    );
    refused(
        &with_service("[intervals.d]\nservices = ['data']\nkeep = { latest = 1, annual = 2 }"),
        "backup.toml: intervals.d.keep: unknown key `annual`",
        "the keys are latest, hourly, daily, weekly, monthly, yearly",
    );
    refused(
        "[store]\nurll = 'x'",
        "backup.toml: store: unknown key `urll`",
        "did you mean `url`? the keys are url, options",
    );
}

#[test]
fn unknown_keys_of_a_service_name_the_adapters_and_cores_keys() {
    let keys = "the keys are paths, exclude, on_change, password, kind, enabled, after, timeout, max_age, rto, smoke, encrypt, limits, \
                hooks, labels";
    refused(
        &with_service("exlude = ['*.tmp']"),
        "backup.toml: services.data: unknown key `exlude`",
        &format!("did you mean `exclude`? {keys}"),
    );
    refused(
        &with_service("max_aeg = '2h'"),
        "backup.toml: services.data: unknown key `max_aeg`",
        &format!("did you mean `max_age`? {keys}"),
    );
    refused(
        &with_service("on_change = 'recrod'"),
        "backup.toml: services.data.on_change: unknown value `recrod`",
        "did you mean `record`? use one of fail, record",
    );
}

#[test]
fn unknown_kinds_say_which_exist_and_which_could_be_built_in() {
    refused(
        &with_store("[services.x]\nkind = 'flies'"),
        "backup.toml: services.x.kind: unknown adapter kind `flies`",
        "did you mean `files`? available: env, files",
    );
    refused(
        &with_store("[services.x]\nkind = 'rediss'"),
        "backup.toml: services.x.kind: unknown adapter kind `rediss`",
        "did you mean `redis`? available: env, files",
    );
    refused(
        &with_store("[services.x]\nkind = 'redis'"),
        "backup.toml: services.x.kind: the adapter kind `redis` is not in this program",
        "build it with the Cargo feature `redis`",
    );
    refused(
        &with_store("[services.x]\npaths = []"),
        "backup.toml: services.x: the key `kind` is missing",
        "say which adapter it uses, e.g. `kind = \"files\"`; `backup adapters` lists them",
    );
}

#[test]
fn wrong_types_say_where_and_what_is_expected() {
    for (text, message) in [
        (
            with_service("[limits]\nthreads = 'many'"),
            "limits.threads: invalid type: a text, expected a whole number",
        ),
        (
            with_service("exclude = ['a', 3]"),
            "services.data.exclude[1]: invalid type: integer `3`, expected a string",
        ),
        (
            with_service("enabled = 'no'"),
            "services.data.enabled: invalid type: a text, expected true or false",
        ),
        (
            with_service("timeout = 240"),
            "services.data.timeout: invalid type: integer `240`, expected a duration with a unit, such as \"90s\", \
             \"2h 30min\" or \"7 days\"",
        ),
        (with_service("rto = '0s'"), "services.data.rto: the duration must not be zero"),
        (
            with_service("[intervals.d]\nservices = ['data']\nmax_total_bytes = '5 XB'"),
            "intervals.d.max_total_bytes: invalid value: string \"5 XB\", expected a size such as \"500GB\", \
             \"512MiB\" or a number of bytes",
        ),
        (
            with_service("[intervals.d]\nservices = ['data']\nkeep = 'all'"),
            "intervals.d.keep: invalid type: a text, expected a number, or a ladder such as { latest = 4, \
             hourly = 24, daily = 7 }",
        ),
        (with_store("[services.x]\nkind = 'env'"), "services.x: the key `paths` is missing"),
        (
            with_store("[services.x]\nkind = 'files'\npaths = []"),
            "services.x: paths: there is nothing to back up",
        ),
        ("store = '/backups'".to_owned(), "store: invalid type: a text, expected a table"),
    ] {
        assert_eq!(refusal(&text).0, format!("backup.toml: {message}"));
    }
}

#[test]
fn names_follow_their_rule() {
    let rule = "use 1 to 64 letters, digits, `_`, `-` or `.`, starting with a letter or digit";
    for (text, place, what) in [
        ("[services.'my data']\nkind = 'env'", "services", "service name `my data`"),
        ("[services.'../x']\nkind = 'env'", "services", "service name `../x`"),
        ("[intervals.'']\nservices = ['data']", "intervals", "interval ``"),
        ("[intervals.d]\nservices = ['a/b']", "intervals.d.services[0]", "service name `a/b`"),
    ] {
        assert_eq!(
            refusal(&with_store(text)).0,
            format!("backup.toml: {place}: {what} is not valid: {rule}")
        );
    }
}

#[test]
fn a_name_twice_is_told_in_the_users_words() {
    refused(
        &with_service("[services.data]\nkind = 'env'"),
        "backup.toml: line 6, column 11: there are two services named `data`",
        "each service needs a name of its own; several may be of the same kind",
    );
    refused(&with_service("paths = []"), "backup.toml: line 6, column 1: the key `paths` is there twice", "");
    refused(
        &with_service("exclude = { a = 1, a = 2 }"),
        "backup.toml: line 6, column 20: the key `a` is there twice",
        "",
    );
    refused(
        &with_service("[services.data.labels]\n[services.'data'.labels]"),
        "backup.toml: line 7, column 18: the section `[services.'data'.labels]` is there twice",
        "",
    );
    refused("[store]\n[store]", "backup.toml: line 2, column 2: the section `[store]` is there twice", "");
    refused(
        &with_service("[intervals.d]\nservices = ['data', 'data']"),
        "backup.toml: intervals.d.services: `data` is named twice",
        "",
    );
}

#[test]
fn services_that_are_not_there_are_named() {
    refused(
        &with_service("[intervals.d]\nservices = ['dta']"),
        "backup.toml: intervals.d.services: unknown service `dta`",
        "did you mean `data`? configured: data",
    );
    refused(
        &with_store("[intervals.d]\nservices = ['x']"),
        "backup.toml: intervals.d.services: unknown service `x`",
        "no service is configured",
    );
    refused(
        &with_service("after = ['web']"),
        "backup.toml: services.data.after: unknown service `web`",
        "configured: data",
    );
    refused(
        &with_service("[intervals.d]\nservices = []"),
        "backup.toml: intervals.d.services: the list of services is empty",
        "name at least one, or remove the interval",
    );
}

#[test]
fn services_that_wait_for_each_other_are_refused() {
    let service =
        |name: &str, after: &str| format!("[services.{name}]\nkind='env'\npaths=[]\nafter=[{after}]\n");
    let three = service("a", "'c'") + &service("b", "'a'") + &service("c", "'b'") + &service("d", "'a'");
    refused(
        &with_store(&three),
        "backup.toml: services.a.after: services wait for each other: `a` after `c` after `b` after `a`",
        "remove one of them from `after`",
    );
    refused(
        &with_store(&service("a", "'a'")),
        "backup.toml: services.a.after: services wait for each other: `a` after `a`",
        "remove one of them from `after`",
    );
    let diamond = service("a", "'b', 'c'") + &service("b", "'d'") + &service("c", "'d'") + &service("d", "");
    read(&with_store(&diamond)).unwrap();
}

#[test]
fn what_keeps_nothing_is_refused() {
    for (rule, message) in [
        ("keep = 0", "keep: keeping the last 0 keeps nothing"),
        ("keep = {}", "keep: the ladder keeps nothing"),
        ("keep = { daily = 0 }", "keep: the ladder keeps nothing"),
        ("delete_older_than = '0s'", "delete_older_than: the duration must not be zero"),
        ("max_total_bytes = 0", "max_total_bytes: a total of zero bytes keeps nothing"),
    ] {
        let text = with_service(&format!("[intervals.d]\nservices = ['data']\n{rule}"));
        assert_eq!(refusal(&text).0, format!("backup.toml: intervals.d.{message}"));
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_rather_than_ignored() {
    for (text, message) in [
        (
            "encrypt = { to = ['age1x'] }",
            "services.data.encrypt: true, false, a public key, or a list of them",
        ),
        ("hooks = { before = ['x'] }", "services.data.hooks: running hooks is not available in this version"),
        (
            "limits = { threads = 1 }",
            "services.data.limits: limiting a single service is not available in this version",
        ),
        (
            "[limits]\nio_priority = 'idle'",
            "limits.io_priority: setting the I/O priority is not available in this version",
        ),
        ("[limits]\nthreads = 0", "limits.threads: must be at least 1"),
        ("[compression]\nlevel = 22", "compression.level: 22 is not a level: use 1 (fast) to 19 (small)"),
        ("[guard]\nratio = 0.0", "guard.ratio: 0 is not a share: use more than 0, at most 1"),
        ("[guard]\nratio = nan", "guard.ratio: NaN is not a share: use more than 0, at most 1"),
        (
            "[intervals.d]\nservices = ['data']\nschedule = \"daily\\nExecStart=x\"",
            "intervals.d.schedule: must be one line of text, and not empty",
        ),
    ] {
        assert_eq!(refusal(&with_service(text)).0, format!("backup.toml: {message}"));
    }
}

#[test]
fn smoke_queries_are_text_for_services_that_can_be_asked() {
    refused(
        &with_service("smoke = ['SELECT 1']"),
        "backup.toml: services.data.smoke: a service of kind `files` cannot be asked anything, as it is configured",
        "remove the key",
    );
    for wrong in ["''", "' \n'", "\"a\\u0007b\""] {
        refused(
            &with_service(&format!("smoke = ['SELECT 1', {}]", wrong.replace('\n', "\t"))),
            "backup.toml: services.data.smoke[1]: must be a question as text, and not empty",
            "write one query, e.g. `SELECT count(*) FROM orders`",
        );
    }
    let (message, _) = refusal(&with_service("smoke = 'SELECT 1'"));
    assert_eq!(message, "backup.toml: services.data.smoke: invalid type: a text, expected a list");
    read(&with_service("smoke = []")).unwrap();
}

#[test]
fn the_store_must_be_said_and_be_a_place() {
    refused(
        SERVICE,
        "backup.toml: the section `[store]` is missing",
        "say where backups go, e.g. `[store]` and below it `url = \"file:///mnt/backups\"`",
    );
    refused("[store]", "backup.toml: store: the key `url` is missing", "");
    refused("[store]\nurl = ''", "backup.toml: store.url: the URL is empty", "");
    let three_slashes = "write file:///absolute/path (three slashes), or just the path";
    for url in ["file://mnt/backups", "file:backups", "file://./backups"] {
        let text = format!("[store]\nurl = '{url}'");
        refused(&text, &format!("backup.toml: store.url: `{url}` is not a local path"), three_slashes);
    }
    refused(
        "[store]\nurl = 'file:///mnt/a#b'",
        "backup.toml: store.url: a file URL cannot hold `?` or `#`",
        "write the path itself, without file://",
    );
    refused(
        "[store]\nurl = 's3:bucket'",
        "backup.toml: store.url: `s3:bucket` is not a URL",
        "write s3://…, or ./… for a path",
    );
}

#[test]
fn broken_toml_says_the_line() {
    let (message, _) = refusal("[store]\nurl = \n");
    assert!(message.starts_with("backup.toml: line 2, column 7: "), "{message}");
    let (message, _) = refusal("[store\n");
    assert!(message.starts_with("backup.toml: line 1, column "), "{message}");
}

#[test]
fn secrets_do_not_show() {
    for text in [
        "[store]\nurl = 's3://key:hunter2@bucket'".to_owned(),
        "[store]\nurl = 's3://key:hunter2@'".to_owned(),
        "[store]\nurl = 's3:key:hunter2@bucket'".to_owned(),
        with_service("password = 'hunter2'"),
        with_service("password = { env = 'A', file = ['hunter2'] }"),
        with_service("password = 'hunter2\n"),
    ] {
        let (message, help) = refusal(&text);
        assert!(!message.contains("hunter2") && !help.contains("hunter2"), "{message} / {help}");
    }
    assert_eq!(
        refusal(&with_service("password = 'hunter2'")).0,
        "backup.toml: services.data.password: invalid type: a text, expected a table"
    );
    assert_eq!(
        refusal(&with_service("password = { evn = 'A' }")),
        (
            "backup.toml: services.data.password: unknown key `evn`".to_owned(),
            "did you mean `env`? the keys are env, file, command, dotenv, key".to_owned()
        )
    );
}

/// The nearest start of a character at or before `i`.
fn boundary(text: &str, i: usize) -> usize {
    (0..=i.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

proptest::proptest! {
    /// Whatever is typed: an answer, on one line, that names the file.
    #[test]
    fn no_text_makes_it_panic(at in 0_usize..250, drop in 0_usize..12, insert in "[\\[\\]\"'=.{}a-z\n\\\\é-]{0,6}") {
        let rest = "password = { env = 'ö' }\n[intervals.d]\nservices = ['data']\nkeep = { daily = 7 }";
        let mut text = with_service(rest);
        text.replace_range(boundary(&text, at)..boundary(&text, at + drop), &insert);
        if let Err(error) = read(&text) {
            let message = error.to_string();
            proptest::prop_assert!(message.starts_with("backup.toml: ") && !message.contains('\n'), "{}", message);
        }
    }
}
