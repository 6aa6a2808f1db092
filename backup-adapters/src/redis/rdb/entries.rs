//! The entries of a file: what each opcode announces, and the counts of keys.

use backup_core::AdapterError;

use super::Step::{
    self, AuxName, AuxValue, Database, ExpiryMs, ExpirySeconds, Lens, Module, ModuleId, Opcode, Skip,
    Strings, Text,
};
use super::formats::{fields_expire, value};
use super::{CHECKSUM_BYTES, CHECKSUM_SINCE, Walker};

impl Walker {
    pub(super) fn header(&mut self, header: &[u8; 9]) -> Result<(), AdapterError> {
        let text = std::str::from_utf8(header).unwrap_or_default();
        let version = text.strip_prefix("REDIS").or_else(|| text.strip_prefix("VALKEY"));
        self.summary.valkey = text.starts_with("VALKEY");
        match version.and_then(|v| v.parse().ok()) {
            Some(version) => self.summary.version = version,
            None => {
                return Err(AdapterError::corrupt(
                    "this is no RDB: it does not begin with `REDIS` or `VALKEY`",
                ));
            }
        }
        self.steps.push(Opcode);
        Ok(())
    }

    pub(super) fn opcode(&mut self, opcode: u8) -> Result<(), AdapterError> {
        let entry: &[Step] = match opcode {
            255 => {
                let checksum = if self.summary.version >= CHECKSUM_SINCE { CHECKSUM_BYTES } else { 0 };
                self.steps.push(Skip(checksum as u64));
                return Ok(());
            }
            254 => &[Database],
            253 => &[ExpirySeconds],
            252 => &[ExpiryMs],
            251 => &[Lens(2)],
            250 => &[Text, AuxName, Text, AuxValue],
            // How often and how long ago a key was used.
            249 => &[Skip(1)],
            248 => &[Lens(1)],
            247 => &[ModuleId, Lens(2), Module],
            245 => {
                self.summary.functions += 1;
                &[Strings(1)]
            }
            // The slot that the following keys belong to, in a cluster.
            244 => &[Lens(3)],
            kind => {
                let Some(value) = value(kind, self.summary.valkey) else {
                    self.give_up(&format!("unknown type {kind}"));
                    return Ok(());
                };
                self.count_key(kind);
                self.steps.push(Opcode);
                self.push(value);
                self.steps.push(Strings(1));
                return Ok(());
            }
        };
        self.steps.push(Opcode);
        self.push(entry);
        Ok(())
    }

    fn count_key(&mut self, kind: u8) {
        self.keys.all += 1;
        match self.expires_at.take() {
            Some(at) => {
                self.keys.with_ttl += 1;
                let made_at = self.summary.made_at().map_or(0, |s| s.saturating_mul(1000));
                self.keys.expired += u64::from(at < made_at);
            }
            None => self.keys.fields_expire += u64::from(fields_expire(kind)),
        }
    }

    pub(super) fn leave_database(&mut self) {
        let keys = std::mem::take(&mut self.keys);
        if keys.all > 0 {
            let all = self.summary.databases.entry(self.database).or_default();
            all.all += keys.all;
            all.with_ttl += keys.with_ttl;
            all.expired += keys.expired;
            all.fields_expire += keys.fields_expire;
        }
    }
}
