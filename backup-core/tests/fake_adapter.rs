//! The fake keeps the contract, and its script works.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::{InterruptionKind, RunState};
use backup_core::testkit::FakeRuntime;
use backup_core::testkit::adapter_suite::{
    AdapterFixture, Bench, capture, what_a_killed_capture_interrupted_comes_back,
};
use backup_core::testkit::fake_adapter::{
    Call, FakeAdapter, FakeConfig, Interrupts, Step, text_of, text_of_dir,
};
use backup_core::{
    AdapterConfig, AdapterErrorKind, BuildContext, Capabilities, Evidence, ReadOutcome, ServiceAdapter,
    ServiceName,
};

struct Fixture(FakeAdapter);

#[async_trait::async_trait]
impl AdapterFixture for Fixture {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        Arc::new(self.0.clone())
    }
    async fn mutate(&self) {
        self.0.script(|s| s.set_artifact("a", ["changed"]));
    }
    async fn live(&self) -> String {
        text_of(&self.0.live())
    }
    async fn restored(&self, dir: &Path) -> String {
        text_of_dir(dir)
    }
    fn question(&self) -> String {
        "a".into()
    }
    fn unreachable(&self) -> Option<Arc<dyn ServiceAdapter>> {
        Some(Arc::new(FakeAdapter::new().hanging(Step::Check).hanging(Step::Open)))
    }
}

fn fake() -> FakeAdapter {
    FakeAdapter::new().artifact("a", ["one", "two"]).artifact("b", [vec![0_u8; 100_000]])
}

backup_core::adapter_conformance_tests!(full, || async { Fixture(fake().only_if_changed()) });
backup_core::adapter_conformance_tests!(backup_only, || async {
    Fixture(fake().with_capabilities(Capabilities::backup_only()))
});
backup_core::adapter_conformance_tests!(pausing, || async { Fixture(pausing(fake())) });
backup_core::adapter_conformance_tests!(fencing, || async {
    Fixture(fake().interrupting(Interrupts::Own(FakeRuntime::new(RunState::Running))))
});

fn pausing(fake: FakeAdapter) -> FakeAdapter {
    let runtime = FakeRuntime::new(RunState::Running);
    fake.interrupting(Interrupts::Runtime(runtime, InterruptionKind::Pause))
}

#[tokio::test]
#[should_panic(expected = "bring-back fails")]
async fn the_suite_finds_an_adapter_that_brings_nothing_back() {
    let bench = Bench::new(Fixture(pausing(fake()).failing(Step::BringBack)));
    what_a_killed_capture_interrupted_comes_back(&bench).await;
}

fn bench() -> Bench {
    Bench::new(Fixture(fake()))
}

fn name(name: &str) -> backup_core::ArtifactName {
    name.parse().unwrap()
}

#[tokio::test]
async fn a_capture_is_logged_in_order() {
    let adapter = fake();
    let captured = capture(&adapter, &bench().cx()).await.unwrap();
    assert_eq!(captured.body(&name("a")), ["one", "two"]);
    let expected = [
        Call::Open,
        Call::ReadEnd(name("a")),
        Call::ReadEnd(name("b")),
        Call::Release(ReadOutcome::Complete),
        Call::Settle { committed: true },
    ];
    assert_eq!(adapter.log(), expected);
}

#[tokio::test]
async fn failures_come_where_the_script_says() {
    for chunk in 0..=2 {
        let adapter = fake().failing_at("a", chunk);
        let error = capture(&adapter, &bench().cx()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("artifact `a` fails at chunk {chunk}, as the script says"));
        let expected = [Call::Open, Call::Release(ReadOutcome::Failed), Call::Settle { committed: false }];
        assert_eq!(adapter.log(), expected);
    }
    for step in [Step::Open, Step::Release, Step::Settle] {
        let adapter = fake().failing(step);
        let error = capture(&adapter, &bench().cx()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{step} fails, as the script says"));
        adapter.script(|s| s.failing.clear());
        capture(&adapter, &bench().cx()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_ends_with_the_operation() {
    let mut cx = bench().cx();
    cx.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(60));
    let error = capture(&fake().hanging_at("b", 0), &cx).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Timeout);

    let cx = bench().cx();
    let (adapter, cancel) = (fake().hanging(Step::Open), cx.cancel.clone());
    let cancelled = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cancel.cancel();
    };
    let (captured, ()) = tokio::join!(capture(&adapter, &cx), cancelled);
    assert_eq!(captured.unwrap_err().kind(), AdapterErrorKind::Cancelled);
}

#[tokio::test]
async fn evidence_can_be_scripted() {
    let adapter = fake().evidence(Evidence::default().with_count("rows", 7));
    let captured = capture(&adapter, &bench().cx()).await.unwrap();
    assert_eq!(captured.metadata.evidence.counts["rows"], 7);
}

#[test]
fn configurations_make_fakes() {
    let cx = BuildContext::new(ServiceName::new("x").unwrap(), "/");
    let config: FakeConfig = toml::from_str("artifacts = { a = ['1', '2'] }\nfailing = ['open']").unwrap();
    assert_eq!(config.build(&cx).unwrap().kind(), "fake");
    assert!(toml::from_str::<FakeConfig>("chunkz = 1").is_err());
}

/// The suite itself must be able to fail.
mod broken {
    use backup_core::testkit::adapter_suite::*;

    use super::*;

    struct Telling(Fixture);

    #[async_trait::async_trait]
    impl AdapterFixture for Telling {
        fn adapter(&self) -> Arc<dyn ServiceAdapter> {
            self.0.adapter()
        }
        async fn mutate(&self) {
            self.0.mutate().await;
        }
        async fn live(&self) -> String {
            self.0.live().await
        }
        async fn restored(&self, _: &Path) -> String {
            "something else".into()
        }
        fn canaries(&self) -> Vec<String> {
            vec!["FakeAdapter".into()]
        }
    }

    #[test]
    #[should_panic(expected = "Debug shows a secret")]
    fn a_secret_is_seen() {
        run(async {
            secrets_do_not_show(&Bench::new(Telling(Fixture(fake())))).await;
        });
    }

    #[test]
    #[should_panic(expected = "the restored data is another")]
    fn another_content_is_seen() {
        run(async {
            a_directory_gets_the_content(&Bench::new(Telling(Fixture(fake())))).await;
        });
    }

    #[test]
    #[should_panic(expected = "the probe succeeds")]
    fn a_missing_capability_is_seen() {
        run(async {
            the_probe_agrees_with_the_evidence(&Bench::new(Fixture(fake().failing(Step::Probe)))).await;
        });
    }

    #[test]
    #[should_panic(expected = "the live data counts otherwise")]
    fn wrong_evidence_is_seen() {
        let wrong = Evidence::default().with_count("bytes", 1);
        run(async {
            the_probe_agrees_with_the_evidence(&Bench::new(Fixture(fake().evidence(wrong)))).await;
        });
    }

    #[test]
    #[should_panic(expected = "release ends soon")]
    fn a_hanging_release_is_seen() {
        // Bounded by the clause, not by the runtime.
        run(async {
            tokio::time::pause();
            a_capture_ends_without_being_read(&Bench::new(Fixture(fake().hanging(Step::Release)))).await;
        });
    }
}
