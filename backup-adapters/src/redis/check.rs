//! The check of an RDB's plain bytes as they pass, and the counts that they prove.

use backup_core::{AdapterError, ContentCheck, Evidence};

use super::rdb::{Keys, Summary, Walker};

/// Walks the file and checks its checksum, while a backup is written and again when it is verified.
#[derive(Debug, Default)]
pub(super) struct RdbCheck {
    walker: Walker,
}

impl ContentCheck for RdbCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.walker.update(bytes)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        Ok(evidence(&self.walker.finish()?))
    }
}

/// The counts of a file.
///
/// Keys with a TTL may be gone by the time that somebody counts again, so that a total is a range; keys without one must
/// be there. `keys_without_ttl` is what `INFO keyspace` gives as `keys` less `expires`: among them may be hashes of which
/// all fields expire, and then the key is gone, too.
pub(super) fn evidence(summary: &Summary) -> Evidence {
    let mut evidence = Evidence::default();
    let notes = &mut evidence.notes;
    let magic = if summary.valkey { "VALKEY" } else { "REDIS" };
    notes.insert("rdb_version".into(), format!("{magic} {}", summary.version));
    notes.insert("rdb_checksum".into(), if summary.checksum { "right" } else { "none" }.into());
    for (field, note) in [("redis-ver", "written_by"), ("valkey-ver", "written_by"), ("aof-base", "aof_base")]
    {
        if let Some(value) = summary.aux.get(field) {
            notes.insert(note.into(), value.clone());
        }
    }
    if !summary.modules.is_empty() {
        let modules: Vec<&str> = summary.modules.iter().map(String::as_str).collect();
        notes.insert("modules".into(), modules.join(", "));
    }
    if let Some(unknown) = &summary.unknown {
        notes.insert(
            "not_counted".into(),
            format!("{unknown}: what follows is covered by the checksum alone"),
        );
        return evidence;
    }
    let mut all = Keys::default();
    for (number, keys) in &summary.databases {
        all.all += keys.all;
        all.with_ttl += keys.with_ttl;
        all.expired += keys.expired;
        all.fields_expire += keys.fields_expire;
        counts(&mut evidence, &format!("db{number}."), keys);
    }
    counts(&mut evidence, "", &all);
    evidence.counts.insert("functions".into(), summary.functions);
    if all.expired > 0 {
        evidence.notes.insert("keys_expired_already".into(), all.expired.to_string());
    }
    evidence
}

fn counts(evidence: &mut Evidence, prefix: &str, keys: &Keys) {
    let lasting = keys.all - keys.with_ttl;
    let mut range = |name: &str, most: u64| {
        let name = format!("{prefix}{name}");
        let least = lasting - keys.fields_expire;
        if least < most {
            evidence.counts_after.insert(name.clone(), least);
        }
        evidence.counts.insert(name, most);
    };
    range("keys", keys.all);
    range("keys_without_ttl", lasting);
}
