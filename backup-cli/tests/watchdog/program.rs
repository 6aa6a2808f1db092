//! A program with an adapter of its own. Its service is a file that says `running`, `paused` or `fenced`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_cli::Cli;
use backup_core::runtime::{
    ExecCommand, Execution, ExitStatus, Inspection, Interruption, InterruptionEntry, InterruptionKind,
    Replay, RunState, ServiceRuntime,
};
use backup_core::{
    AdapterConfig, AdapterError, Artifact, ArtifactMeta, ArtifactName, BackupSource, BuildContext,
    Capabilities, CaptureReport, CheckPurpose, ConfigError, Consistency, ContentCheck, HandContext, HandStep,
    OpContext, RunId, ServiceAdapter, StepToken,
};
use tokio::time::{Instant, sleep};

pub(crate) fn cli() -> Cli {
    Cli::new().with_builtins().with_adapter::<Switch>()
}

#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    /// A folder: `state`, `data`, and while `hold` is there, a capture does not go on. With `sabotage` it makes the
    /// configuration unreadable first.
    dir: PathBuf,
    /// Not by the runtime, but by the adapter itself.
    #[serde(default)]
    fence: bool,
    /// The longest interruption, in ms.
    limit_ms: u64,
}

impl AdapterConfig for Switch {
    const KIND: &'static str = "switch";
    const SUMMARY: &'static str = "a file that says running or paused";
    const PROVEN: &'static str = "here";

    fn build(mut self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        self.dir = cx.base_dir.join(self.dir);
        Ok(Arc::new(self))
    }
}

impl Switch {
    fn set(&self, state: &str) -> Result<(), AdapterError> {
        self.log(state)?;
        // Seen whole or not at all.
        let (new, path) = (self.dir.join("state.new"), self.dir.join("state"));
        let set = fs::write(&new, state).and_then(|()| fs::rename(&new, &path));
        set.map_err(|e| AdapterError::io("cannot switch", e))
    }

    fn log(&self, line: &str) -> Result<(), AdapterError> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log"));
        let written = log.and_then(|mut log| log.write_all(format!("{line}\n").as_bytes()));
        written.map_err(|e| AdapterError::io("cannot write the log", e))
    }

    fn state(&self) -> Result<String, AdapterError> {
        fs::read_to_string(self.dir.join("state")).map_err(|e| AdapterError::io("cannot see the state", e))
    }
}

#[async_trait]
impl ServiceRuntime for Switch {
    async fn inspect(&self) -> Result<Inspection, AdapterError> {
        let state = match self.state()?.as_str() {
            "running" => RunState::Running,
            _ => RunState::Paused,
        };
        let (labels, mounts) = (BTreeMap::new(), Vec::new());
        Ok(Inspection { instance: "1".into(), state, image: None, labels, mounts })
    }

    async fn pause(&self) -> Result<(), AdapterError> {
        self.set("paused")
    }

    async fn unpause(&self) -> Result<(), AdapterError> {
        self.set("running")
    }

    async fn start(&self) -> Result<(), AdapterError> {
        Err(AdapterError::unsupported("start"))
    }

    async fn stop(&self, _: Duration) -> Result<ExitStatus, AdapterError> {
        Err(AdapterError::unsupported("stop"))
    }

    async fn exec(&self, _: ExecCommand) -> Result<Execution, AdapterError> {
        Err(AdapterError::unsupported("exec"))
    }

    async fn volume_path(&self, _: &Path) -> Result<Option<PathBuf>, AdapterError> {
        Ok(None)
    }
}

#[async_trait]
impl ServiceAdapter for Switch {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::backup_only()
    }

    async fn check(&self, _: &OpContext) -> Result<(), AdapterError> {
        self.state().map(drop)
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        self.log(&format!("open {}", self.state()?))?;
        if self.dir.join("sabotage").exists() {
            let written = fs::write(self.dir.join("../backup.toml"), "unreadable");
            written.map_err(|e| AdapterError::io("cannot spoil the configuration", e))?;
        }
        let from = cx.clock.now();
        let until = Instant::now() + Duration::from_millis(self.limit_ms);
        let (mut paused, mut fenced) = (None, None);
        if self.fence {
            let token = StepToken::new(&"unfence")?;
            fenced = Some(Interruption::announce(cx.interruption(), "fenced", "1", token, until).await?);
            self.set("fenced")?;
        } else {
            let runtime = Arc::new(self.clone());
            paused =
                Some(Interruption::begin(runtime, cx.interruption(), InterruptionKind::Pause, until).await?);
        }
        let this = self.clone();
        let body = async move {
            while this.dir.join("hold").exists() {
                sleep(Duration::from_millis(5)).await;
            }
            let data = fs::read(this.dir.join("data"));
            data.map(bytes::Bytes::from).map_err(|e| AdapterError::io("cannot read the data", e))
        };
        let artifact = Artifact::stream(ArtifactName::sanitized("data"), "txt", futures::stream::once(body));
        let (this, cx) = (self.clone(), cx.clone());
        Ok(BackupSource::single(artifact, move |_| async move {
            if let Some(fenced) = fenced {
                this.set("running")?;
                fenced.undone().await?;
            }
            if let Some(mut paused) = paused {
                paused.end().await?;
            }
            Ok(CaptureReport::new("switch", Consistency::Quiesced, from, cx.clock.now()))
        }))
    }

    fn content_check(&self, _: &CheckPurpose, _: &ArtifactMeta) -> Option<Box<dyn ContentCheck>> {
        None
    }

    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep> {
        backup.metadata.artifacts.iter().map(|a| HandStep::new("Print it.", backup.decode(a))).collect()
    }

    async fn reclaim(&self, _: &OpContext, _: &[RunId]) -> Result<Vec<String>, AdapterError> {
        Ok(Vec::new())
    }

    async fn bring_back(&self, cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
        self.log("bring back")?;
        if self.dir.join("broken").exists() {
            return Err(AdapterError::unsupported("cannot switch it on"));
        }
        match &entry.kind {
            InterruptionKind::Other { token, .. } => {
                assert_eq!(token.get::<String>()?, "unfence");
                self.set("running").map(|()| Replay::Undone)
            }
            _ => Interruption::replay(&cx.interruption(), self, entry).await,
        }
    }
}
