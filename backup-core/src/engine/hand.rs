//! What every backup carries for a restore without this program: SHA256SUMS and RESTORE.md.

use std::fmt::Write as _;

use crate::adapter::{HandContext, ServiceAdapter, shell_quote};
use crate::catalog::SHA256SUMS;
use crate::metadata::{Consistency, Metadata};
use crate::pipeline::GZIP;

/// The checksums of the stored files, as `sha256sum -c` reads them.
pub(super) fn sha256sums(metadata: &Metadata) -> String {
    let files = metadata.stored_files();
    files.map(|f| format!("{}  {}\n", f.stored_sha256, f.path)).collect()
}

/// The instructions: checksums first, then the adapter's own commands with these very file names.
pub(super) fn restore_md(metadata: &Metadata, adapter: &dyn ServiceAdapter) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        // Writing to a String cannot fail.
        let _infallible = writeln!(out, "{text}");
    };
    line(&format!("# Restoring `{}` by hand", metadata.id()));
    line("");
    let legacy = metadata.consistency == Consistency::Legacy;
    line(&format!(
        "A backup of `{}` ({}), taken on {} on host `{}`; consistency: {}.",
        metadata.service,
        metadata.adapter,
        metadata.consistent_to.format("%Y-%m-%d %H:%M:%S UTC"),
        metadata.host,
        metadata.consistency,
    ));
    if legacy {
        line(
            "It was made by scripts that recorded no checksum and no count: nothing but its own format proves it.",
        );
        line("`backup` restores it with one command:");
    } else {
        line("The program that made it restores it with one command:");
    }
    line("");
    let at = if legacy { metadata.id().to_string() } else { metadata.timestamp.to_string() };
    line(&format!("    backup restore {} --at {at}", metadata.service));
    line("");
    line("Without that program, run the following commands in this directory, with `bash`.");
    let encodings: Vec<&str> =
        metadata.artifacts.iter().flat_map(|a| &a.encodings).map(String::as_str).collect();
    if encodings.contains(&"age") {
        let recipients = metadata.encryption.as_ref().map(|e| e.recipients.as_slice()).unwrap_or_default();
        if recipients == [crate::encryption::PASSPHRASE] {
            line(
                "The files are encrypted: `age` (<https://age-encryption.org>) asks for the passphrase, once for each.",
            );
        } else {
            line(
                "The files are encrypted with `age` (<https://age-encryption.org>). Set IDENTITY to the file with the secret",
            );
            line("key of one of these first, e.g. `IDENTITY=/root/backup.key`:");
            line("");
            recipients.iter().for_each(|r| line(&format!("    {r}")));
        }
    }
    let mut step = 1;
    let mut section = |text: &str, command: &str| {
        let (title, below) = text.split_once('\n').unwrap_or((text, ""));
        line("");
        line(&format!("## {step}. {}", title.trim_end_matches('.')));
        if !below.trim().is_empty() {
            line("");
            line(below.trim());
        }
        if !command.is_empty() {
            line("");
            line("```sh");
            line(command);
            line("```");
        }
        step += 1;
    };
    if legacy {
        for artifact in metadata.artifacts.iter().filter(|a| a.encodings == [GZIP]) {
            let files: Vec<String> = artifact.files.iter().map(|f| shell_quote(&f.path)).collect();
            let test = format!("set -euo pipefail\ngzip -t {}", files.join(" "));
            section("Check that every file is whole", &test);
        }
    } else if metadata.artifacts.iter().any(|a| !a.files.is_empty()) {
        section("Check that every file is whole", &format!("set -euo pipefail\nsha256sum -c {SHA256SUMS}"));
    }
    for hand in adapter.by_hand(&HandContext { metadata }) {
        section(&hand.text, &hand.command);
    }
    out
}
