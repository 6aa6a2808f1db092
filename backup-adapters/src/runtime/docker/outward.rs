//! Which variables of a service's environment are credentials for something outside of it.

/// Beginnings of their names: keys to clouds and their buckets (for backups, tenants that were moved out, archives of WAL), and
/// where errors and use are reported to. A test restore must neither write there nor be taken for the live server.
const PREFIXES: [&str; 14] = [
    "AWS_",
    "AZURE_",
    "BACKUP_AZURE_",
    "BACKUP_GCS_",
    "BACKUP_S3_",
    "GCP_",
    "GOOGLE_",
    "PGBACKREST_",
    "RESTIC_",
    "SENTRY_",
    "USAGE_GCS_",
    "USAGE_S3_",
    "WALE_",
    "WALG_",
];

/// Ends of their names: the keys of vectorizers and generators have one (`OPENAI_APIKEY`, `COHERE_APIKEY`,
/// `HUGGINGFACE_APIKEY`, `VOYAGEAI_APIKEY`, …), and so have those that people name themselves. Vectors are in the data: nothing
/// is computed anew.
const SUFFIXES: [&str; 6] =
    ["_ACCESS_KEY", "_ACCESS_TOKEN", "_APIKEY", "_API_KEY", "_API_TOKEN", "_SECRET_KEY"];

/// Whether the variable `name` is one.
pub(super) fn is_outward(name: &str) -> bool {
    PREFIXES.iter().any(|p| name.starts_with(p)) || SUFFIXES.iter().any(|s| name.ends_with(s))
}

#[cfg(test)]
mod tests {
    use super::is_outward;

    #[test]
    fn keys_to_the_outside_are_known() {
        for name in [
            "OPENAI_APIKEY",
            "COHERE_APIKEY",
            "HUGGINGFACE_APIKEY",
            "MY_API_KEY",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_REGION",
            "BACKUP_S3_ENDPOINT",
            "BACKUP_GCS_BUCKET",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "AZURE_STORAGE_KEY",
            "SENTRY_DSN",
            "WALG_S3_PREFIX",
        ] {
            assert!(is_outward(name), "{name}");
        }
    }

    #[test]
    fn what_a_server_needs_stays() {
        for name in [
            "ENABLE_MODULES",
            "AUTHENTICATION_APIKEY_ALLOWED_KEYS",
            "AUTHENTICATION_APIKEY_USERS",
            "BACKUP_FILESYSTEM_PATH",
            "CLUSTER_HOSTNAME",
            "TRANSFORMERS_INFERENCE_API",
            "NEO4J_ACCEPT_LICENSE_AGREEMENT",
            "POSTGRES_INITDB_ARGS",
            "PGDATA",
            "LANG",
        ] {
            assert!(!is_outward(name), "{name}");
        }
    }
}
