//! Which secrets of a configuration are not to be had on this host: better told before a recovery than in the midst of it.

use std::path::Path;

use backup_core::SecretRef;
use backup_core::config::Config;

use super::Secrets;

/// One line for each secret of an enabled service that cannot be resolved.
pub(crate) fn of(config: &Config, base: &Path) -> Vec<String> {
    let enabled = config.services.iter().filter(|(_, service)| service.enabled);
    let missing = enabled.flat_map(|(name, service)| {
        let all = SecretRef::among(&service.settings, base).into_iter();
        all.filter_map(move |(key, secret)| Some(format!("{name}: {key}: {}", secret.missing(&Secrets)?)))
    });
    missing.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_without_calling_programs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "x").unwrap();
        std::fs::write(dir.path().join(".env"), "A=1\n").unwrap();
        let text = "\
            store.url = 's'\n\
            [services.a]\nkind = 'k'\npassword = { file = 'key' }\nother = { file = 'gone' }\n\
            [services.b]\nkind = 'k'\npassword = { dotenv = '.env', key = 'B' }\nlater = { dotenv = 'no.env', key = 'B' }\n\
            [services.c]\nkind = 'k'\npassword = { command = ['touch', 'called'] }\nuser = 'u'\n\
            [services.d]\nkind = 'k'\nenabled = false\npassword = { file = 'gone' }\n";
        let config = Config::parse(text, "backup.toml").unwrap();
        let missing = of(&config, dir.path());
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].starts_with("a: other: ") && missing[0].contains("gone"), "{missing:?}");
        assert!(missing[1].starts_with("b: password: ") && missing[1].contains('B'), "{missing:?}");
        assert!(!dir.path().join("called").exists());
    }
}
