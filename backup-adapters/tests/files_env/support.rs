//! What the tests of `files` and `env` share: an engine in miniature, and a picture of a tree.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::*;
use bytes::Bytes;
use futures::StreamExt;

/// One service, its place and its adapter.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) base: tempfile::TempDir,
    pub(crate) adapter: Arc<dyn ServiceAdapter>,
    pub(crate) excluded: Vec<PathBuf>,
}

pub(crate) fn context(at: &str) -> OpContext {
    let clock = Arc::new(SystemClock);
    let run = RunId::generate(clock.now());
    OpContext::new(ServiceName::new("app").unwrap(), run, at.parse().unwrap(), "/nonexistent", clock)
}

/// What a capture gave.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) bytes: Vec<u8>,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) report: CaptureReport,
}

pub(crate) fn build<C: AdapterConfig>(base: &Path, settings: &str) -> Arc<dyn ServiceAdapter> {
    let config: C = toml::from_str(settings).unwrap();
    config.build(&BuildContext::new(ServiceName::new("app").unwrap(), base)).unwrap()
}

impl Bench {
    pub(crate) fn new<C: AdapterConfig>(settings: &str) -> Self {
        let base = tempfile::tempdir().unwrap();
        let adapter = build::<C>(base.path(), settings);
        Self { base, adapter, excluded: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.base.path()).unwrap().join(name)
    }

    pub(crate) fn context(&self, at: &str) -> OpContext {
        let mut cx = context(at);
        cx.excluded = self.excluded.clone();
        cx
    }

    pub(crate) async fn capture(&self) -> Result<Captured, AdapterError> {
        capture(&*self.adapter, &self.context("20260101_000000")).await
    }

    /// Plans, stages and switches.
    pub(crate) async fn restore(
        &self,
        from: &Captured,
        to: RestoreTarget,
        at: &str,
    ) -> Result<StepToken, AdapterError> {
        let cx = self.context(at);
        let source = source(from.bytes.clone(), &from.metadata);
        let plan = self.adapter.plan_restore(&cx, &from.metadata, &to).await?;
        let staged = self.adapter.stage(&cx, &plan, &source).await?;
        self.adapter.switch(&cx, &plan, &staged).await
    }
}

/// Reads everything, checks it as the engine does, releases.
pub(crate) async fn capture(adapter: &dyn ServiceAdapter, cx: &OpContext) -> Result<Captured, AdapterError> {
    let mut parts = adapter.open(cx).await?.into_parts();
    let artifact = parts.artifacts.next().await.unwrap()?;
    let ArtifactBody::Stream(mut body) = artifact.body else { panic!("not a stream") };
    let mut bytes = Vec::new();
    let mut failed = None;
    while let Some(chunk) = body.next().await {
        match chunk {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(e) => failed = Some(e),
        }
    }
    assert!(parts.artifacts.next().await.is_none());
    if let Some(e) = failed {
        (parts.release)(ReadOutcome::Failed).await.unwrap();
        return Err(e);
    }
    let report = (parts.release)(ReadOutcome::Complete).await?;
    let metadata = metadata(adapter.kind(), artifact.name, artifact.attributes, &bytes, &report);
    let found = check(adapter, &metadata, &bytes)?;
    assert_eq!(report.evidence.contradictions(&found), [""; 0]);
    Ok(Captured { bytes, metadata: Arc::new(metadata), report })
}

pub(crate) fn check(
    adapter: &dyn ServiceAdapter,
    metadata: &Metadata,
    bytes: &[u8],
) -> Result<Evidence, AdapterError> {
    let mut check = adapter.content_check(&CheckPurpose::Capture, &metadata.artifacts[0]).unwrap();
    // Odd pieces: nothing may depend on where chunks end.
    for piece in bytes.chunks(7919) {
        check.update(piece)?;
    }
    check.finish()
}

pub(crate) fn metadata(
    kind: &str,
    name: ArtifactName,
    attributes: BTreeMap<String, serde_json::Value>,
    bytes: &[u8],
    report: &CaptureReport,
) -> Metadata {
    let artifact = ArtifactMeta {
        name,
        attributes,
        plain_bytes: bytes.len() as u64,
        plain_blake3: String::new(),
        encodings: vec![],
        files: vec![StoredFile { path: "app.tar".into(), stored_bytes: 0, stored_sha256: String::new() }],
        external: None,
    };
    Metadata {
        service: ServiceName::new("app").unwrap(),
        interval: Interval::new("manual").unwrap(),
        timestamp: "20260101_000000".parse().unwrap(),
        size_bytes: 0,
        status: Status::Success,
        host: "test".into(),
        backed_up_at: report.consistent_to,
        format_version: 1,
        features: vec![],
        requires: vec![],
        store_id: "test".into(),
        run_id: "20260101_000000-abcdef01".parse().unwrap(),
        tool: "test".into(),
        adapter: kind.into(),
        service_version: None,
        image: None,
        consistency: report.consistency,
        consistent_from: report.consistent_from,
        consistent_to: report.consistent_to,
        capture: Capture::default(),
        artifacts: vec![artifact],
        evidence: report.evidence.clone(),
        encryption: None,
        suspect_because: vec![],
        unknown: BTreeMap::new(),
    }
}

struct Body(Bytes);

#[async_trait]
impl ArtifactOpener for Body {
    async fn open(&self, _: &ArtifactMeta) -> Result<ByteStream<AdapterError>, AdapterError> {
        let pieces: Vec<_> = self.0.chunks(100_003).map(|c| Ok(self.0.slice_ref(c))).collect();
        Ok(futures::stream::iter(pieces).boxed())
    }
}

pub(crate) fn source(bytes: Vec<u8>, metadata: &Arc<Metadata>) -> RestoreSource {
    RestoreSource::new(Arc::clone(metadata), Arc::new(Body(bytes.into())))
}

/// Everything about an entry that a restore must bring back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    device: u64,
    content: blake3::Hash,
    link: PathBuf,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same inode.
    same_as: PathBuf,
    /// Whether most of it is holes.
    sparse: bool,
}

/// A tree, by path relative to `root`.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, Picture> {
    let mut out = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = todo.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let meta = fs::symlink_metadata(&path).unwrap();
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let t = meta.file_type();
        let kind = match () {
            () if t.is_file() => 'f',
            () if t.is_dir() => 'd',
            () if t.is_symlink() => 'l',
            () if t.is_fifo() => 'p',
            () if t.is_char_device() => 'c',
            () if t.is_block_device() => 'b',
            () => 's',
        };
        let names = xattr::list(&path).unwrap();
        let xattrs =
            names.map(|n| (n.as_bytes().to_vec(), xattr::get(&path, &n).unwrap().unwrap())).collect();
        let same_as = match kind {
            'd' => relative.clone(),
            _ => first.entry((meta.dev(), meta.ino())).or_insert_with(|| relative.clone()).clone(),
        };
        let entry = Picture {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if kind == 'f' { meta.len() } else { 0 },
            device: meta.rdev(),
            content: blake3::hash(&if kind == 'f' { contents(&path, meta.len()) } else { vec![] }),
            link: if kind == 'l' { fs::read_link(&path).unwrap() } else { PathBuf::new() },
            xattrs,
            same_as,
            sparse: kind == 'f' && meta.blocks() * 512 < meta.len() / 2,
        };
        out.insert(relative, entry);
    }
    out
}

/// The contents; of a huge file, which the tests make of holes, the end.
fn contents(path: &Path, length: u64) -> Vec<u8> {
    let mut file = fs::File::open(path).unwrap();
    file.seek(SeekFrom::Start(if length > 1 << 30 { length - 65536 } else { 0 })).unwrap();
    let mut out = Vec::new();
    file.read_to_end(&mut out).unwrap();
    out
}

/// Fails with the first difference.
pub(crate) fn assert_same(expected: &BTreeMap<PathBuf, Picture>, found: &BTreeMap<PathBuf, Picture>) {
    for (path, picture) in expected {
        assert_eq!(Some(picture), found.get(path), "{}", path.display());
    }
    let more: Vec<_> = found.keys().filter(|p| !expected.contains_key(*p)).collect();
    assert!(more.is_empty(), "unexpected: {more:?}");
}

/// Runs a program that must succeed; returns what it printed.
pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let done = command.stderr(Stdio::piped()).output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// Extracts with GNU tar; returns its complaints.
pub(crate) fn gnu_untar(bytes: &[u8], into: &Path) -> String {
    let mut child = Command::new("tar")
        .args(["-x", "--numeric-owner", "-p", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(into)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    said
}
