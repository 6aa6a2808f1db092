//! A server of its own on a data directory that was unpacked: that it recovers and lets clients in is what no checksum shows.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;

use backup_core::{AdapterError, Evidence, OpContext};

use super::take::counts;
use crate::on_disk::{blocking, failed};
use crate::postgres::{Settings, apart};

/// Where the server sees its data, and who may connect.
const DATA: &str = "/backup/data";
const HBA: &str = "/backup/pg_hba.conf";

/// Nobody knows which passwords the data asks for, and only programs in its container reach it.
const ANYBODY: &str = "local all all trust\nhost all all 127.0.0.1/32 trust\n";

/// What in the restored configuration is the live server's: its memory, its archive, its keys, its log.
const OURS: [&str; 8] = [
    "shared_buffers=128MB",
    "huge_pages=off",
    "archive_mode=off",
    "ssl=off",
    "logging_collector=off",
    "log_destination=stderr",
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=/var/run/postgresql",
];

/// Starts a server on `data`, counts what is there, and ends it. The data is another afterwards: it has recovered. Nothing, if
/// there is no container whose image could be taken.
///
/// Writers went on while the files were copied, so that the counts prove nothing but that all can be read: they are no evidence.
///
/// # Errors
/// If it does not start; those of the engine.
pub(in crate::postgres) async fn try_out(
    settings: &Settings,
    cx: &OpContext,
    data: PathBuf,
) -> Result<Evidence, AdapterError> {
    let shares = settings.docker().is_some_and(|d| d.shares_files());
    if !shares || !apart::possible(settings, cx).await? {
        return Ok(Evidence::default());
    }
    let (looked, hba) = (data.clone(), cx.spool.join(format!("hba-{}", uuid::Uuid::new_v4().simple())));
    let written = hba.clone();
    let owner = blocking(move || {
        std::fs::write(&written, ANYBODY).map_err(failed("write", &written))?;
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&written, open).map_err(failed("share", &written))?;
        // What the server made itself tells whose it is; the folder was made by us.
        let version = looked.join("PG_VERSION");
        let meta = std::fs::metadata(&version).map_err(failed("look at", &version))?;
        let owner = (meta.uid(), meta.gid());
        let folder = std::fs::metadata(&looked).map_err(failed("look at", &looked))?;
        if (folder.uid(), folder.gid()) != owner {
            chown(&looked, Some(owner.0), Some(owner.1)).map_err(failed("give to the server", &looked))?;
        }
        Ok(owner)
    });
    let (uid, gid) = owner.await?;
    if uid == 0 {
        cx.warn("the restored data belongs to root, as whom no server starts: it was not tried out");
        return Ok(Evidence::default());
    }
    let on = apart::On {
        mounts: vec![(data, DATA.to_owned()), (hba, HBA.to_owned())],
        user: format!("{uid}:{gid}"),
        data: DATA,
        settings: OURS.iter().map(|s| (*s).to_owned()).chain([format!("hba_file={HBA}")]).collect(),
    };
    let twin = apart::start(settings, cx, Some(on)).await?;
    let counted = async {
        let link = apart::ready(settings, cx, &twin).await?;
        counts(settings, &link).await
    };
    let counted = counted.await;
    // Not within the budget: it must go.
    let closed = twin.close().await;
    let counted = counted?;
    closed?;
    let databases = counted.counts.get("databases_seen").copied().unwrap_or(0);
    let mut evidence = Evidence::default();
    evidence
        .notes
        .insert("server".into(), format!("one of the same image recovered it: {databases} databases"));
    Ok(evidence)
}
