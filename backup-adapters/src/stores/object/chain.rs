//! Options that the configuration leaves out, from where the clients of AWS look for them: the environment, and the shared
//! files of profiles. What the environment is, the caller knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use backup_core::ConfigError;
use ini::{Ini, ParseOption};
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;

use super::cloud::Cloud;

type Options = BTreeMap<String, String>;

/// Keys that come together, or not at all: a session token of other keys fails everywhere.
const KEYS: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
/// Where else the client gets keys from by itself.
const ROLES: [&str; 7] = [
    "aws_web_identity_token_file",
    "aws_role_arn",
    "aws_role_session_name",
    "aws_endpoint_url_sts",
    "aws_container_credentials_relative_uri",
    "aws_container_credentials_full_uri",
    "aws_container_authorization_token_file",
];

/// What says who asks at Azure, and at Google.
const AZURE_CREDENTIALS: [&str; 9] = [
    "azure_storage_account_key",
    "azure_storage_sas_key",
    "azure_storage_token",
    "azure_storage_client_id",
    "azure_storage_client_secret",
    "azure_federated_token_file",
    "azure_use_azure_cli",
    "azure_storage_use_emulator",
    "azure_skip_signature",
];
const GOOGLE_CREDENTIALS: [&str; 5] = [
    "google_service_account",
    "google_service_account_key",
    "google_application_credentials",
    "google_bearer_token",
    "google_skip_signature",
];

/// Adds to `options` what they leave out. In this order, each as a whole: keys of the configuration, of the environment, of
/// a profile; the web identity or the container's role; the instance's role, which the client asks by itself.
///
/// # Errors
/// [`ConfigError`] for a profile that is not there, or that needs what this program cannot do.
pub(crate) fn complete(
    options: Options,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Options, ConfigError> {
    let known: BTreeSet<String> = options
        .keys()
        .filter_map(|key| key.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().ok())
        .map(|key| key.as_ref().to_owned())
        .collect();
    let has = |names: &[&str]| names.iter().any(|name| known.contains(*name));
    let variable = |name: &str| environment(&name.to_ascii_uppercase());
    let mut added = Options::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            added.insert(name.to_owned(), value);
        }
    };
    let profile = Profile::find(environment)?;
    let of_profile = |name: &str| profile.as_ref().and_then(|profile| profile.get(name));
    if !has(&["aws_region", "aws_default_region"]) {
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        add("aws_region", region.or_else(|| of_profile("region")));
    }
    if !has(&["aws_endpoint", "aws_endpoint_url_s3"]) {
        let endpoint = variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL"));
        add("aws_endpoint", endpoint.or_else(|| of_profile("endpoint_url")));
    }
    if !has(&KEYS) && !has(&ROLES) && !has(&["aws_skip_signature"]) {
        // A profile that is named goes before what merely lies about.
        let named = environment("AWS_PROFILE").is_some();
        if variable(KEYS[0]).is_some() && !named {
            KEYS.iter().for_each(|name| add(name, variable(name)));
        } else if let Some(profile) = &profile
            && profile.has_keys(named)?
        {
            KEYS.iter().for_each(|name| add(name, profile.get(name)));
        } else {
            ROLES.iter().for_each(|name| add(name, variable(name)));
            if !has(&["aws_metadata_endpoint"]) {
                let endpoint = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
                // The client puts a path behind it.
                add("aws_metadata_endpoint", endpoint.map(|e| e.trim_end_matches('/').to_owned()));
            }
        }
    }
    // What is written in the configuration is said last, and holds.
    added.extend(options);
    Ok(added)
}

/// The same for Azure: its account, and a key, a SAS or an identity. Credentials are taken together, or not at all.
pub(crate) fn complete_azure(options: Options, environment: &dyn Fn(&str) -> Option<String>) -> Options {
    let known: BTreeSet<String> = options
        .keys()
        .filter_map(|key| Cloud::Azure.spelled(key).parse::<AzureConfigKey>().ok())
        .map(|key| key.as_ref().to_owned())
        .collect();
    let has = |names: &[&str]| names.iter().any(|name| known.contains(*name));
    let mut added = Options::new();
    let mut add = |name: &str, variables: &[&str]| {
        let value = variables.iter().find_map(|name| environment(name));
        let found = value.is_some();
        added.extend(value.map(|value| (name.to_owned(), value)));
        found
    };
    if !has(&["azure_storage_account_name"]) {
        add("azure_storage_account_name", &["AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"]);
    }
    if !has(&AZURE_CREDENTIALS) {
        let _any = add("azure_storage_account_key", &["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"])
            || add("azure_storage_sas_key", &["AZURE_STORAGE_SAS_TOKEN"])
            || {
                for (name, variable) in [
                    ("azure_storage_client_secret", "AZURE_CLIENT_SECRET"),
                    ("azure_storage_tenant_id", "AZURE_TENANT_ID"),
                    ("azure_federated_token_file", "AZURE_FEDERATED_TOKEN_FILE"),
                    ("azure_storage_authority_host", "AZURE_AUTHORITY_HOST"),
                ] {
                    add(name, &[variable]);
                }
                add("azure_storage_client_id", &["AZURE_CLIENT_ID"])
            };
    }
    added.extend(options);
    added
}

/// The same for Google: the file of a service account.
pub(crate) fn complete_google(options: Options, environment: &dyn Fn(&str) -> Option<String>) -> Options {
    let names = options.keys().filter_map(|key| Cloud::Google.spelled(key).parse::<GoogleConfigKey>().ok());
    let known: BTreeSet<String> = names.map(|key| key.as_ref().to_owned()).collect();
    let mut added = Options::new();
    if !GOOGLE_CREDENTIALS.iter().any(|name| known.contains(*name))
        && let Some(file) = environment("GOOGLE_APPLICATION_CREDENTIALS")
    {
        added.insert("google_application_credentials".to_owned(), file);
    }
    added.extend(options);
    added
}

/// A section of the shared files.
#[derive(Debug)]
struct Profile {
    name: String,
    /// Those of `credentials` first.
    values: BTreeMap<String, String>,
}

impl Profile {
    fn find(environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, ConfigError> {
        let named = environment("AWS_PROFILE");
        let name = named.clone().unwrap_or_else(|| "default".to_owned());
        let home = environment("HOME").map(PathBuf::from);
        let place = |variable: &str, usual: &str| {
            environment(variable).map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(usual)))
        };
        let mut found = None;
        for (path, section) in [
            (place("AWS_CONFIG_FILE", ".aws/config"), format!("profile {name}")),
            (place("AWS_CONFIG_FILE", ".aws/config"), name.clone()),
            (place("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), name.clone()),
        ] {
            let Some(path) = path.filter(|path| path.is_file()) else { continue };
            let fail = |what: &str| ConfigError::new(format!("`{}` cannot be read: {what}", path.display()));
            let text = std::fs::read_to_string(&path).map_err(|e| fail(&e.to_string()))?;
            // Keys of AWS have slashes and the like: nothing in these files is an escape.
            let as_it_is =
                ParseOption { enabled_quote: false, enabled_escape: false, ..ParseOption::default() };
            // Its words may be those of a key.
            let file = Ini::load_from_str_opt(&text, as_it_is)
                .map_err(|e| fail(&format!("line {} is none of such a file", e.line)))?;
            if let Some(section) = file.section(Some(section)) {
                let values: &mut BTreeMap<String, String> = found.get_or_insert_default();
                values.extend(section.iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
            }
        }
        match (found, named) {
            (Some(values), _) => Ok(Some(Self { name, values })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(ConfigError::new(format!("there is no profile `{name}`"))
                .hint("AWS_PROFILE names it: ~/.aws/credentials and ~/.aws/config were looked at")),
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// Whether it has keys of its own.
    ///
    /// # Errors
    /// If it has none, was asked for by name, or says how to get some, which only the tools of AWS can do.
    fn has_keys(&self, named: bool) -> Result<bool, ConfigError> {
        if self.get(KEYS[0]).is_some() && self.get(KEYS[1]).is_some() {
            return Ok(true);
        }
        let how = ["role_arn", "sso_session", "sso_start_url", "credential_process", "login_session"];
        match how.iter().find(|how| self.values.contains_key(**how)) {
            None if !named => Ok(false),
            how => {
                let why = how.map_or_else(
                    || "no keys".to_owned(),
                    |how| format!("`{how}`, which only AWS's tools follow"),
                );
                Err(ConfigError::new(format!("the profile `{}` has {why}", self.name)).hint(
                    "put `access_key_id` and the others into [store.options] as { command = … }, or let the tools write keys",
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Options {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn completed(options: &[(&str, &str)], environment: &[(&str, &str)]) -> Options {
        let environment = map(environment);
        complete(map(options), &|name| environment.get(name).cloned()).unwrap()
    }

    #[test]
    fn the_configuration_goes_before_the_environment_and_keys_are_never_mixed() {
        let environment = [
            ("AWS_ACCESS_KEY_ID", "theirs"),
            ("AWS_SECRET_ACCESS_KEY", "theirs"),
            ("AWS_SESSION_TOKEN", "theirs"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_ENDPOINT_URL", "https://all"),
            ("AWS_ENDPOINT_URL_S3", "https://s3"),
            ("AWS_ROLE_ARN", "role"),
        ];
        let keys = [
            ("aws_access_key_id", "theirs"),
            ("aws_secret_access_key", "theirs"),
            ("aws_session_token", "theirs"),
        ];
        let mut all = map(&keys);
        all.extend(map(&[("aws_region", "eu-west-1"), ("aws_endpoint", "https://s3")]));
        assert_eq!(completed(&[], &environment), all);

        let ours =
            [("access_key_id", "ours"), ("secret_access_key", "ours"), ("region", "x"), ("endpoint", "y")];
        assert_eq!(completed(&ours, &environment), map(&ours), "above all without their token");
        assert_eq!(completed(&[], &[("AWS_ROLE_ARN", "role")]), map(&[("aws_role_arn", "role")]));
        let elsewhere = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://there/")];
        assert_eq!(completed(&[], &elsewhere), map(&[("aws_metadata_endpoint", "http://there")]));
        let here = [("metadata_endpoint", "http://here")];
        assert_eq!(completed(&here, &elsewhere), map(&here));
    }

    #[test]
    fn azure_and_google_have_variables_of_their_own() {
        let environment = map(&[
            ("AZURE_STORAGE_ACCOUNT", "a"),
            ("AZURE_STORAGE_KEY", "theirs"),
            ("AZURE_STORAGE_SAS_TOKEN", "theirs"),
            ("AZURE_CLIENT_ID", "theirs"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/file"),
        ]);
        let look = |name: &str| environment.get(name).cloned();
        let all = map(&[("azure_storage_account_name", "a"), ("azure_storage_account_key", "theirs")]);
        assert_eq!(complete_azure(Options::new(), &look), all);
        let ours = map(&[("account", "b"), ("sas", "ours")]);
        assert_eq!(complete_azure(ours.clone(), &look), ours);
        let file = map(&[("google_application_credentials", "/file")]);
        assert_eq!(complete_google(Options::new(), &look), file);
        let ours = map(&[("service_account", "/ours")]);
        assert_eq!(complete_google(ours.clone(), &look), ours);
    }

    #[test]
    fn a_profile_gives_keys_region_and_endpoint() {
        let dir = tempfile::tempdir().unwrap();
        let aws = dir.path().join(".aws");
        std::fs::create_dir(&aws).unwrap();
        let config = "[default]\nregion = eu-central-1\n[profile other]\nregion=eu-north-1\nendpoint_url = https://o\ns3 =\n  \
                      addressing_style = path\n[profile sso]\nsso_session = x\n";
        std::fs::write(aws.join("config"), config).unwrap();
        let credentials = "# ours\n[default]\naws_access_key_id=A\naws_secret_access_key=a/b+c=\\n\n\n[other]\n\
                           aws_access_key_id = O\naws_secret_access_key = \"o\naws_session_token = t\n";
        std::fs::write(aws.join("credentials"), credentials).unwrap();
        let home = dir.path().to_str().unwrap();

        let mut default = map(&[("aws_access_key_id", "A"), ("aws_secret_access_key", "a/b+c=\\n")]);
        default.extend(map(&[("aws_region", "eu-central-1")]));
        assert_eq!(completed(&[], &[("HOME", home)]), default);
        let found =
            completed(&[], &[("HOME", home), ("AWS_PROFILE", "other"), ("AWS_ACCESS_KEY_ID", "lies about")]);
        assert_eq!((found["aws_access_key_id"].as_str(), found["aws_session_token"].as_str()), ("O", "t"));
        assert_eq!(
            (found["aws_region"].as_str(), found["aws_endpoint"].as_str()),
            ("eu-north-1", "https://o")
        );

        for (profile, says) in [("nobody", "no profile `nobody`"), ("sso", "`sso_session`")] {
            let environment = map(&[("HOME", home), ("AWS_PROFILE", profile)]);
            let e = complete(Options::new(), &|name| environment.get(name).cloned()).unwrap_err();
            assert!(e.to_string().contains(says), "{e}");
        }
        std::fs::write(aws.join("credentials"), "[default\naws_secret_access_key hunter2\n").unwrap();
        let environment = map(&[("HOME", home)]);
        let e = complete(Options::new(), &|name| environment.get(name).cloned()).unwrap_err();
        assert!(e.to_string().contains("line ") && !e.to_string().contains("hunter2"), "{e}");
    }
}
