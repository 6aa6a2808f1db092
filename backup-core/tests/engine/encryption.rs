//! Encrypted backups: what the store learns, who can open them, and what a host can do that cannot.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backup_core::encryption::generate;
use backup_core::engine::{RecoveryAction, RecoveryRequest};
use backup_core::testkit::fake_adapter::text_of;
use backup_core::{BackupError, Evidence, Secret, SecretRef, SecretResolver};
use futures::TryStreamExt as _;

use super::*;

/// Files that hold keys; without one, it is not there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files(Arc<Mutex<BTreeMap<PathBuf, String>>>);

impl SecretResolver for Files {
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError> {
        let SecretRef::File(path) = reference else { return Err(ConfigError::new("only files")) };
        let found = self.0.lock().unwrap().get(path).cloned();
        found.map(Secret::new).ok_or_else(|| ConfigError::new(format!("no file `{}`", path.display())))
    }
}

impl Files {
    pub(crate) fn put(&self, path: &str, text: &str) {
        self.0.lock().unwrap().insert(path.into(), text.to_owned());
    }

    fn remove(&self, path: &str) {
        self.0.lock().unwrap().remove(&PathBuf::from(path)).unwrap();
    }
}

impl World {
    pub(crate) fn with_secrets(self, files: &Files) -> Self {
        let catalog = self.engine.catalog().clone();
        let engine = Engine::builder(self.engine.plan().clone(), catalog, self.engine.state().clone())
            .clock(Arc::new(self.clock.clone()))
            .events(Arc::new(self.events.clone()))
            .lock_patience(Duration::ZERO)
            .secrets(Arc::new(files.clone()))
            .encryption_backlog(1)
            .build();
        Self { engine, ..self }
    }

    /// Everything in the store as one text.
    async fn all_bytes(&self) -> Vec<u8> {
        let store = self.store.inner();
        let mut all = Vec::new();
        for key in store.list_keys(None).try_collect::<Vec<_>>().await.unwrap() {
            all.extend_from_slice(key.to_string().as_bytes());
            let chunks: Vec<Bytes> = store.read(&key).await.unwrap().try_collect().await.unwrap();
            chunks.iter().for_each(|chunk| all.extend_from_slice(chunk));
        }
        all
    }
}

pub(crate) fn keys() -> (String, String) {
    let (secret, public) = generate(chrono::DateTime::UNIX_EPOCH).unwrap();
    (secret.expose().to_owned(), public)
}

pub(crate) fn config(public: &str) -> String {
    format!(
        "encryption = {{ recipients = '{public}', identity = {{ file = '/key' }} }}
         intervals.hourly = {{ services = ['a'], keep = 5 }}
         store.url = 'memory://'
         services.a = {{ kind = 'fake' }}"
    )
}

pub(crate) async fn world(fake: &FakeAdapter) -> (World, Files, String) {
    let (secret, public) = keys();
    let files = Files::default();
    let w = World::with_config(&config(&public), &[("a", fake.clone())]).await.with_secrets(&files);
    (w, files, secret)
}

const SECRET: &str = "correct horse battery staple";

fn with_secret() -> FakeAdapter {
    let counts = Evidence::default().with_count("rows.patients", 4_711_081_542);
    FakeAdapter::new().artifact("one", [SECRET]).artifact("two", [vec![7_u8; 3_000_000]]).evidence(counts)
}

fn has(all: &[u8], what: &str) -> bool {
    all.windows(what.len()).any(|w| w == what.as_bytes())
}

#[tokio::test]
async fn a_host_without_the_key_backs_up_and_whoever_has_it_restores() {
    let fake = with_secret().only_if_changed();
    let (w, files, secret) = world(&fake).await;
    assert_eq!(outcome(&w.back_up().await), (Outcome::Ok, String::new()));
    let before = text_of(&fake.live());

    // Neither the data nor what would prove a guess of it.
    let metadata = w.engine.catalog().metadata(&w.entries().await[0].id).await.unwrap();
    assert_eq!((&metadata.evidence, &metadata.capture.fingerprint), (&Evidence::default(), &None));
    assert!(metadata.artifacts.iter().all(|a| a.plain_blake3.is_empty()));
    assert!(metadata.stored_files().all(|f| f.path.ends_with(".age")));
    let stored: u64 = metadata.stored_files().map(|f| f.stored_bytes).sum();
    assert_eq!(metadata.size_bytes, stored);
    let whole = w.engine.metadata(&metadata.id()).await.unwrap();
    let all = w.all_bytes().await;
    let hash = blake3::hash(SECRET.as_bytes()).to_hex();
    assert_eq!(whole.artifacts[0].plain_blake3, hash.as_str());
    assert_eq!(whole.evidence.counts["rows.patients"], 4_711_081_542);
    let fingerprint = whole.capture.fingerprint.clone().unwrap();
    for canary in [SECRET, hash.as_str(), "patients", "4711081542", fingerprint.as_str(), "AGE-SECRET-KEY-"] {
        assert!(!has(&all, canary), "{canary}");
    }

    // Unchanged is unchanged, though this host cannot read what it wrote.
    let again = w.back_up().await;
    assert_eq!(again.steps[0].outcome, Outcome::Unchanged, "{:?}", outcome(&again));

    // The stored level needs no key; the others say which one is missing, and find no damage.
    assert_eq!(outcome(&w.verify(VerifyLevel::Stored).await), (Outcome::Ok, String::new()));
    for level in [VerifyLevel::Content, VerifyLevel::Restore] {
        let (outcome, error) = outcome(&w.verify(level).await);
        assert_eq!(outcome, Outcome::Failed, "{level}");
        let public = &metadata.encryption.as_ref().unwrap().recipients[0];
        let expected = format!("{} is encrypted for {public}: no file `/key`", metadata.id());
        assert_eq!(error, expected);
    }
    let refused = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap_err();
    assert!(matches!(refused, BackupError::NoKey { .. }), "{refused}");
    files.put("/key", &keys().0);
    let (_, error) = outcome(&w.verify(VerifyLevel::Content).await);
    assert!(error.ends_with("the key at hand does not open it"), "{error}");
    assert_eq!(w.states().await, ["good"]);

    files.put("/key", &secret);
    for level in VerifyLevel::ALL {
        assert_eq!(outcome(&w.verify(level).await), (Outcome::Ok, String::new()), "{level}");
    }
    fake.script(|s| s.set_artifact("one", ["lost"]));
    let preview = w.engine.plan_restore(&RestoreRequest::new(a())).await.unwrap();
    assert_eq!(outcome(&w.engine.restore(&preview).await.unwrap()), (Outcome::Ok, String::new()));
    assert_eq!(text_of(&fake.live()), before);
    assert!(!has(&w.all_bytes().await, SECRET));
}

/// The guard compares counts, which only the host's own key shows it; without that, it compares sizes.
#[tokio::test]
async fn an_emptied_service_is_suspect_also_without_the_key() {
    for (lost_state, doubt) in
        [(false, "rows.patients: 0, usually 4711081542"), (true, "plain bytes: 10, usually")]
    {
        let fake = with_secret();
        let (w, _, _) = world(&fake).await;
        assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
        fake.script(|s| {
            s.evidence = Some(Evidence::default().with_count("rows.patients", 0));
            s.set_artifact("two", [vec![7_u8; 2]]);
            s.set_artifact("one", ["12345678"]);
        });
        if lost_state {
            std::fs::remove_file(w.engine.state().root().join("host.key")).unwrap();
        }
        let report = w.back_up().await;
        assert_eq!(report.outcome(), Outcome::Suspect);
        assert!(outcome(&report).1.contains(doubt), "{lost_state}: {}", outcome(&report).1);
        let id = w.entries().await[0].id.clone();
        let public = w.engine.catalog().metadata(&id).await.unwrap().suspect_because;
        assert_eq!(public.len(), 1);
        assert!(!public[0].contains("patients") && w.states().await == ["suspect", "good"], "{public:?}");
        // The host's key is made anew, for its owner alone.
        let mode = std::os::unix::fs::MetadataExt::mode(
            &std::fs::metadata(w.engine.state().root().join("host.key")).unwrap(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_flipped_bit_is_damage_at_every_level_and_nothing_of_it_goes_live() {
    for private in [false, true] {
        let fake = with_secret();
        let (w, files, secret) = world(&fake).await;
        files.put("/key", &secret);
        w.back_up().await;
        let id = w.entries().await[0].id.clone();
        let metadata = w.engine.catalog().metadata(&id).await.unwrap();
        let file = metadata.stored_files().find(|f| (f.path == "private.json.age") == private).unwrap();
        w.damage(&id.file(&file.path).unwrap(), |bytes| *bytes.last_mut().unwrap() ^= 1).await;
        fake.script(|s| s.set_artifact("one", ["live"]));
        let live = text_of(&fake.live());
        match w.engine.plan_restore(&RestoreRequest::new(a())).await {
            Ok(preview) => assert_eq!(w.engine.restore(&preview).await.unwrap().outcome(), Outcome::Failed),
            Err(e) => assert!(private && e.to_string().contains("private.json.age"), "{e}"),
        }
        assert_eq!(text_of(&fake.live()), live);
        for level in VerifyLevel::ALL {
            let (outcome, error) = outcome(&w.verify(level).await);
            assert_eq!(outcome, Outcome::Damaged, "{private} {level}: {error}");
        }
        // A rotten old one keeps no new one from being made.
        assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    }
}

#[tokio::test]
async fn whoever_knows_the_passphrase_opens_it() {
    let fake = with_secret();
    let text = "encryption.passphrase = { file = '/phrase' }
        store.url = 'memory://'
        intervals.hourly.services = ['a']
        services.a = { kind = 'fake' }";
    let files = Files::default();
    let w = World::with_config(text, &[("a", fake.clone())]).await.with_secrets(&files);
    let missing = outcome(&w.back_up().await);
    assert_eq!(missing.0, Outcome::Failed);
    assert!(missing.1.contains("`/phrase`") && w.states().await.is_empty(), "{}", missing.1);
    files.put("/phrase", "open sesame");
    assert_eq!(outcome(&w.back_up().await), (Outcome::Ok, String::new()));
    assert_eq!(outcome(&w.verify(VerifyLevel::Content).await), (Outcome::Ok, String::new()));
    files.put("/phrase", "open barley");
    let (_, error) = outcome(&w.verify(VerifyLevel::Content).await);
    assert!(error.ends_with("is encrypted for passphrase: the key at hand does not open it"), "{error}");
}

/// New keys: what was not changed is stored anew for them, and the old ones still open what they opened.
#[tokio::test]
async fn keys_are_changed_without_losing_the_older_backups() {
    let ((old, old_public), (new, new_public)) = (keys(), keys());
    let fake = with_secret().only_if_changed();
    let files = Files::default();
    let w = World::with_config(&config(&old_public), &[("a", fake.clone())]).await.with_secrets(&files);
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    let rotated = World::with_config(&config(&new_public), &[("a", fake.clone())]).await;
    let engine =
        Engine::builder(rotated.engine.plan().clone(), w.engine.catalog().clone(), w.engine.state().clone())
            .clock(Arc::new(w.clock.clone()))
            .secrets(Arc::new(files.clone()))
            .encryption_backlog(1)
            .build();
    let w = World { engine, ..w };
    let second = w.back_up().await;
    // Unchanged, but nobody with the new key could read it.
    assert_eq!(outcome(&second), (Outcome::Ok, String::new()));
    files.put("/key", &new);
    let entries = w.entries().await;
    assert!(w.engine.check_key(&entries[0].id).await.is_ok());
    assert!(matches!(w.engine.check_key(&entries[1].id).await, Err(BackupError::NoKey { .. })));
    files.put("/key", &format!("{old}{new}"));
    assert_eq!(outcome(&w.verify(VerifyLevel::Content).await), (Outcome::Ok, String::new()));
}

#[tokio::test]
async fn a_recovery_names_the_missing_key_before_it_begins_and_leaves_healthy_services_alone() {
    let fake = with_secret();
    let (w, files, secret) = world(&fake).await;
    w.back_up().await;
    let plan = w.engine.plan_recovery(&RecoveryRequest::default()).await.unwrap();
    assert!(matches!(plan.services[0].action, RecoveryAction::Skip { .. }), "{:?}", plan.services[0].action);
    fake.script(|s| {
        s.evidence = Some(Evidence::default());
        s.set_artifact("one", [""]);
        s.set_artifact("two", [""]);
    });
    let plan = w.engine.plan_recovery(&RecoveryRequest::default()).await.unwrap();
    match &plan.services[0].action {
        RecoveryAction::Blocked { why, .. } => assert!(why.ends_with("no file `/key`"), "{why}"),
        other => panic!("{other:?}"),
    }
    files.put("/key", &secret);
    let plan = w.engine.plan_recovery(&RecoveryRequest::default()).await.unwrap();
    assert!(
        matches!(plan.services[0].action, RecoveryAction::Restore { .. }),
        "{:?}",
        plan.services[0].action
    );
    let report = w.engine.recover(&plan, Default::default()).await.unwrap();
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    assert!(text_of(&fake.live()).contains(SECRET));
    // It is read when it is needed, not when the program starts.
    files.remove("/key");
    assert!(w.engine.check_key(&w.entries().await[0].id).await.is_err());
}

#[test]
fn what_the_configuration_says_is_checked_before_anything_is_done() {
    let registry = AdapterRegistry::new().with::<Shared>();
    let resolve = |encryption: &str, encrypt: &str| {
        let text = format!("{encryption}\nstore.url = 'memory://'\n[services.a]\nkind = 'fake'\n{encrypt}");
        let adapters = [("a".to_owned(), adapter())].into();
        ADAPTERS.sync_scope(adapters, || {
            Config::parse(&text, "t.toml")?.resolve(&registry, std::path::Path::new("/etc/x"))
        })
    };
    let public = keys().1;
    let with = format!("encryption.recipients = ['{public}']");
    let encrypted = |encryption: &str, encrypt: &str| {
        resolve(encryption, encrypt).unwrap().services[&a()].encrypt.is_some()
    };
    assert!(!encrypted("", ""));
    assert!(
        encrypted(&with, "") && encrypted(&with, "encrypt = true") && !encrypted(&with, "encrypt = false")
    );
    assert!(encrypted("", &format!("encrypt = '{public}'")));
    assert!(encrypted("", &format!("encrypt = ['{public}']")));
    let plan = resolve("encryption.identity = [{ file = 'k' }, { env = 'K' }]", "").unwrap();
    let expected = [SecretRef::File("/etc/x/k".into()), SecretRef::Env("K".into())];
    assert_eq!(plan.keys.identities, expected);
    for (encryption, encrypt, says) in [
        ("", "encrypt = true", "services.a.encrypt: nobody is named"),
        ("", "encrypt = []", "services.a.encrypt: no recipient"),
        ("encryption.recipients = 'age1x'", "", "encryption.recipients"),
        ("encryption = { recipients = 'age1x', passphrase = { env = 'P' } }", "", "excludes recipients"),
        ("encryption.recipient = 'age1x'", "", "`recipient`"),
        ("encryption.identity = 'AGE-SECRET-KEY-1QQ'", "", "encryption.identity"),
        ("", "encrypt = 3", "services.a.encrypt"),
    ] {
        let e = resolve(encryption, encrypt).unwrap_err().to_string();
        assert!(e.contains(says) && !e.contains("AGE-SECRET"), "{encryption} {encrypt}: {e}");
    }
}

/// Whatever call of the store fails: what is listed as good opens and verifies, and the next run succeeds.
#[tokio::test]
async fn a_failing_store_leaves_nothing_half_encrypted() {
    for n in 1.. {
        let fake = with_secret();
        let (w, files, secret) = world(&fake).await;
        files.put("/key", &secret);
        assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
        w.store.set_fault(Some(Fault::once(n)));
        w.back_up().await;
        let injected = w.store.injected();
        w.store.set_fault(None);
        assert!(w.verify(VerifyLevel::Content).await.is_ok(), "call {n}");
        assert_eq!(outcome(&w.back_up().await), (Outcome::Ok, String::new()), "call {n}");
        assert!(!has(&w.all_bytes().await, SECRET), "call {n}");
        if injected == 0 {
            assert!(n > 20, "only {n} calls");
            break;
        }
    }
}
