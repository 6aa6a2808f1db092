//! `backup keys`: the keys that encrypted backups are made for, and opened with.

use std::path::{Path, PathBuf};

use backup_core::catalog::{Entry, Filter};
use backup_core::encryption::generate;
use backup_core::plan::EncryptFor;
use backup_core::{BackupError, chain};
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::json;

use crate::context::{Context, Done, Session};
use crate::error::CliError;
use crate::exit_code;
use crate::format;
use crate::render::table::{self, Column};
use crate::ui::{GREEN, RED, YELLOW};
use crate::write;

mod rotate;

/// Make, check and change the keys of encrypted backups
///
/// Backups are encrypted for public keys. Who makes them needs no more than those; who restores them needs a secret
/// key, which should also be kept where it does not burn with this host.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup keys new /root/backup.key     make a key
  backup keys check                    does today's key open the newest backups?
  backup keys rotate                   a new key from now on; the old one still opens the older backups")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key: write the secret part to FILE, print the public part
    New {
        /// Where the secret key goes; must not exist
        file: PathBuf,
    },
    /// Prove that the keys at hand open the newest good backup of each service
    Check,
    Rotate(rotate::Rotate),
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        match &self.what {
            What::New { file } => new(cx, file),
            What::Check => check(cx).await,
            What::Rotate(rotate) => rotate.run(cx).await,
        }
    }
}

fn new(cx: &Context, file: &Path) -> Result<Done, CliError> {
    let (text, public) = generate(cx.clock.now())?;
    let path = cx.dir.join(file);
    write::create_private(&path, text.expose()).map_err(|e| {
        let error = CliError::failed(format!("cannot write the key `{}`", file.display())).because(&e);
        match e.kind() {
            std::io::ErrorKind::AlreadyExists => error.hint("a key is never overwritten: name another file"),
            _ => error,
        }
    })?;
    if cx.ui.is_json() {
        cx.ui.json(&json!({"event": "key", "public": public, "file": path}));
    } else {
        cx.ui.product(&public);
    }
    cx.ui.note(&format!(
        "the secret key is in {}: keep a copy where it does not burn with this host,",
        path.display()
    ));
    cx.ui.note("because nobody can read the backups without it. Then, in the configuration:");
    cx.ui.note("");
    cx.ui.note("  [encryption]");
    cx.ui.note(&format!("  recipients = [\"{public}\"]"));
    cx.ui.note(&format!(
        "  identity = {{ file = \"{}\" }}   # only where backups are restored",
        path.display()
    ));
    Ok(Done::ok().with("public", &public).with("file", &path))
}

/// What `keys check` found of one service.
struct Checked<'a> {
    service: &'a str,
    newest: Option<&'a Entry>,
    recipients: Vec<String>,
    /// `None`: in clear, so that there is nothing to open.
    opened: Option<Result<(), BackupError>>,
    /// The newest one is not for those that the configuration names now.
    outdated: bool,
}

async fn check(cx: &Context) -> Result<Done, CliError> {
    let session = cx.session().await?;
    let listing = session.engine.catalog().list(&Filter::default()).await?;
    for error in &listing.errors {
        cx.ui.warn(error);
    }
    let mut all = Vec::new();
    for name in session.plan().services.keys() {
        let newest = listing.of(name).find(|e| e.is_good());
        all.push(one(&session, name.as_str(), newest).await?);
    }
    let failed = all.iter().filter(|c| matches!(c.opened, Some(Err(_)))).count();
    let opened = all.iter().filter(|c| matches!(c.opened, Some(Ok(())))).count();
    if cx.ui.is_json() {
        all.iter().for_each(|c| cx.ui.json(&c.json()));
    } else {
        cx.ui.product(&text(cx, &all));
    }
    for checked in all.iter().filter(|c| c.outdated) {
        cx.ui.warn(&format!(
            "the newest backup of `{}` is not yet for the keys that the configuration names: the next run makes one",
            checked.service
        ));
    }
    // One key that is missing is told once, not for each service.
    let mut told = Vec::new();
    for error in all.iter_mut().filter_map(|c| c.opened.take()?.err()) {
        let missing = match &error {
            BackupError::NoKey { recipients, missing, .. } => format!("{recipients:?} {missing:?}"),
            other => chain(other),
        };
        if !told.contains(&missing) {
            told.push(missing);
            cx.ui.error(&CliError::from(error));
        }
    }
    let code = match (opened, failed) {
        (0, 0) => exit_code::NOTHING,
        (_, 0) => exit_code::OK,
        (0, _) => exit_code::FAILED,
        _ => exit_code::PARTIAL,
    };
    if code == exit_code::NOTHING {
        cx.ui.note("no service has an encrypted backup");
    }
    Ok(Done::code(code).with("opened", opened).with("failed", failed))
}

async fn one<'a>(
    session: &Session,
    service: &'a str,
    newest: Option<&'a Entry>,
) -> Result<Checked<'a>, CliError> {
    let now = match session.plan().service(service)?.encrypt.as_ref() {
        None => Vec::new(),
        Some(EncryptFor::Recipients(recipients)) => recipients.shown().to_vec(),
        Some(EncryptFor::Passphrase(_)) => vec![backup_core::encryption::PASSPHRASE.to_owned()],
    };
    let mut checked = Checked { service, newest, recipients: Vec::new(), opened: None, outdated: false };
    let Some(entry) = newest else { return Ok(checked) };
    let metadata = session.engine.catalog().metadata(&entry.id).await?;
    checked.recipients = metadata.encryption.map(|e| e.recipients).unwrap_or_default();
    checked.outdated = checked.recipients != now;
    if !checked.recipients.is_empty() {
        checked.opened = Some(match session.engine.check_key(&entry.id).await {
            Ok(_) => Ok(()),
            Err(e @ (BackupError::NoKey { .. } | BackupError::Damaged { .. })) => Err(e),
            Err(e) => return Err(e.into()),
        });
    }
    Ok(checked)
}

impl Checked<'_> {
    fn json(&self) -> serde_json::Value {
        let opens = self.opened.as_ref().map(Result::is_ok);
        let error = self.opened.as_ref().and_then(|o| o.as_ref().err()).map(|e| chain(e));
        json!({
            "event": "key-check", "service": self.service, "backup": self.newest.map(|e| &e.id),
            "recipients": self.recipients, "opens": opens, "outdated": self.outdated, "error": error,
        })
    }
}

fn text(cx: &Context, all: &[Checked<'_>]) -> String {
    use Column::{Left, Right, Text};
    let mut table =
        table::new(&[Left("SERVICE"), Left("NEWEST GOOD"), Right("AGE"), Left("KEY"), Text("FOR")]);
    for c in all {
        let age = |e: &Entry| format::age(format::since(e.id.timestamp.time(), cx.clock.now()));
        let key = match (&c.opened, c.newest) {
            (_, None) => Cell::new(""),
            (None, Some(_)) => table::cell("in clear", YELLOW),
            (Some(Ok(())), _) => table::cell("opens it", GREEN),
            (Some(Err(BackupError::NoKey { .. })), _) => table::cell("missing", RED),
            (Some(Err(_)), _) => table::cell("damaged", RED),
        };
        let newest = |e: &Entry| format!("{}/{}", e.id.interval, e.id.timestamp);
        table.add_row([
            Cell::new(c.service),
            Cell::new(c.newest.map_or_else(|| "none".to_owned(), newest)),
            Cell::new(c.newest.map(age).unwrap_or_default()),
            key,
            Cell::new(c.recipients.join(", ")),
        ]);
    }
    table::text(&table)
}
