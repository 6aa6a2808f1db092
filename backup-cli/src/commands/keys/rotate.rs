//! `backup keys rotate`.

use std::fs;
use std::path::PathBuf;

use backup_core::SecretRef;
use backup_core::config::Config;
use backup_core::encryption::{Identities, Recipients, generate};
use backup_core::{Secret, SecretResolver as _};
use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::secrets::Secrets;
use crate::write;

/// Encrypt for a new key from now on
///
/// Makes a key, adds it to the identity file of the configuration, and writes its public part into the configuration in
/// the place of the old one. The old secret key stays: the older backups need it. With --to, only the configuration
/// changes: for hosts that have no secret key.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup keys rotate                          a new key beside the old one
  backup keys rotate --to age1…               for a key that was made elsewhere (`backup keys new`)
  backup keys rotate --from age1… --to age1…  if there are several")]
pub(crate) struct Rotate {
    /// The public key that is replaced, if the configuration names several
    #[arg(long, value_name = "KEY")]
    from: Option<String>,

    /// The public key that takes its place; without it, a key is made
    #[arg(long, value_name = "KEY")]
    to: Option<String>,
}

impl Rotate {
    pub(super) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let file = cx
            .config_file()?
            .ok_or_else(|| CliError::usage("there is no configuration").hint("`backup init` writes one"))?;
        let session = cx.session().await?;
        let config = &session.written.config;
        let old = self.old(config)?;
        let text = fs::read_to_string(&file).map_err(|e| {
            CliError::failed(format!("cannot read the configuration `{}`", file.display())).because(&e)
        })?;
        if !text.contains(&old) {
            return Err(CliError::usage(format!("`{old}` does not stand in `{}` as it is", file.display())));
        }
        let identity = match &self.to {
            Some(to) => {
                Recipients::parse(&[to]).map_err(|e| CliError::from(e.at("--to")))?;
                None
            }
            None => Some(self.identity_file(&session.plan().keys.identities, &old)?),
        };
        let made = match &self.to {
            Some(to) => (None, to.trim().to_owned()),
            None => {
                let (secret, public) = generate(cx.clock.now())?;
                (Some(secret), public)
            }
        };
        let (secret, new) = made;
        let question = format!("Encrypt for {new} from now on, instead of {old}?");
        if !cx.confirm(&question).await? {
            return Ok(Done::ok().with("confirmed", false));
        }
        // The secret key first: nothing may be encrypted for a key that nobody has.
        if let (Some(path), Some(secret)) = (&identity, &secret) {
            let failed = |e: std::io::Error| {
                CliError::failed(format!("cannot add the new key to `{}`", path.display())).because(&e)
            };
            let before = fs::read_to_string(path).map_err(failed)?;
            let line_break = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
            write::rewrite(path, &format!("{before}{line_break}{}", secret.expose())).map_err(failed)?;
        }
        write::rewrite(&file, &text.replace(&old, &new)).map_err(|e| {
            CliError::failed(format!("cannot write the configuration `{}`", file.display())).because(&e)
        })?;
        if cx.ui.is_json() {
            cx.ui.json(
                &json!({"event": "rotated", "from": old, "to": new, "config": file, "identity": identity}),
            );
        } else {
            cx.ui.product(&new);
        }
        if let Some(path) = &identity {
            cx.ui.note(&format!(
                "{} has both secret keys now: renew the copy of it that you keep elsewhere",
                path.display()
            ));
        }
        cx.ui.note(
            "the next runs encrypt for the new key; keep the old one as long as there are backups for it",
        );
        Ok(Done::ok().with("from", &old).with("to", &new))
    }

    /// The public key that is to be replaced.
    fn old(&self, config: &Config) -> Result<String, CliError> {
        if let Some(from) = &self.from {
            return Ok(from.trim().to_owned());
        }
        match config.encryption.recipients.as_slice() {
            [one] => Ok(one.trim().to_owned()),
            [] => Err(CliError::usage("the configuration names no recipient in `[encryption]`")
                .hint("name the key that is to be replaced: --from KEY")),
            many => Err(CliError::usage(format!("the configuration names {} recipients", many.len()))
                .hint("name the key that is to be replaced: --from KEY")),
        }
    }

    /// The file that has the secret part of `old`, as the configuration names it.
    fn identity_file(&self, identities: &[SecretRef], old: &str) -> Result<PathBuf, CliError> {
        let elsewhere =
            "make a key where the secret ones are (`backup keys new`), and name its public part: --to KEY";
        for reference in identities {
            let SecretRef::File(path) = reference else { continue };
            let mut found = Identities::default();
            let text: Secret = Secrets.resolve(reference)?;
            found.add(&text, &format!("the file `{}`", path.display()))?;
            if found.public_keys().iter().any(|public| public == old) {
                return Ok(path.clone());
            }
        }
        Err(CliError::failed(format!("no identity file of the configuration has the secret key of `{old}`"))
            .hint(elsewhere))
    }
}
