use std::collections::BTreeMap;
use std::io::Read as _;

use backup_core::{ServiceName, SystemClock};
use object_store::PutPayload;
use object_store::memory::InMemory;

use super::*;

fn cx() -> OpContext {
    let (run, at) = ("20260101_000000-00000000".parse().unwrap(), "20260101_000000".parse().unwrap());
    OpContext::new(ServiceName::new("vectors").unwrap(), run, at, "/nowhere", Arc::new(SystemClock))
}

/// A bucket with these files below `root`, and with those of neighbours.
async fn bucket(root: &str, files: &[(&str, usize)]) -> (Arc<InMemory>, Bucket) {
    let memory = Arc::new(InMemory::new());
    let put = async |path: String, content: Vec<u8>| {
        memory.put(&Path::parse(path).unwrap(), PutPayload::from(content)).await.unwrap();
    };
    for (path, length) in files {
        put(format!("{root}/{path}"), content(*length)).await;
    }
    for neighbour in ["other", "x/b1/n/C/chunk-1", &format!("{root}/b10/f")] {
        put(neighbour.to_owned(), b"neighbour".to_vec()).await;
    }
    let store: Arc<dyn ObjectStore> = Arc::clone(&memory) as _;
    let keys = vec![Secret::new("canary-id"), Secret::new("canary-secret")];
    (memory, Bucket::new(store, Path::parse(root).unwrap(), "bucket `b`".to_owned(), keys))
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn an_archive_is_that_of_a_folder() {
    let large = 2 * RANGE as usize + 7;
    let files = [
        ("b1/backup_config.json", 11),
        ("b1/n/C-x/chunk-1", 512),
        ("b1/n/C/chunk-1", large),
        ("b1/n/C/none", 0),
        ("b1/n/backup.json", 3),
    ];
    for root in ["", "some/where"] {
        let (memory, bucket) = bucket(root, &files).await;
        assert_eq!(bucket.size("b1").await, Some(files.iter().map(|(_, n)| *n as u64).sum()));
        let pieces: Vec<Bytes> = bucket.archive(&cx(), "b1").await.unwrap().try_collect().await.unwrap();
        assert!(pieces.iter().all(|p| !p.is_empty() && p.len() as u64 <= RANGE));
        let archive = pieces.concat();
        let (mut folders, mut found) = (Vec::new(), BTreeMap::new());
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            if entry.header().entry_type().is_dir() {
                folders.push(path);
                continue;
            }
            let parent = path.rsplit_once('/').unwrap().0;
            assert!(folders.iter().any(|f| f.trim_end_matches('/') == parent), "{path} is before its folder");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            found.insert(path, bytes);
        }
        assert_eq!(folders, ["b1/", "b1/n/", "b1/n/C/", "b1/n/C-x/"]);
        assert_eq!(found.len(), files.len());
        for (path, length) in files {
            assert!(found[path] == content(length), "{path}");
        }
        assert_eq!(bucket.read(&cx(), "b1/n/backup.json").await.unwrap(), content(3));

        let mut names = bucket.names(&cx()).await.unwrap();
        names.retain(|n| n.starts_with('b'));
        assert_eq!(names, ["b1", "b10"]);
        bucket.try_out(&cx(), "b2").await.unwrap();
        bucket.remove("b1").await.unwrap();
        bucket.remove("b1").await.unwrap();
        assert_eq!(bucket.names(&cx()).await.unwrap().iter().filter(|n| *n == "b1").count(), 0);
        let left: Vec<_> = memory.list(None).try_collect().await.unwrap();
        assert_eq!(left.len(), 3, "{left:?}");
        assert_eq!(bucket.archive(&cx(), "b1").await.err().unwrap().kind(), AdapterErrorKind::Corrupt);
        let e = bucket.read(&cx(), "b1/n/backup.json").await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::NotFound);
    }
}

#[tokio::test]
async fn an_object_that_changes_meanwhile_is_an_error() {
    let (memory, bucket) = bucket("r", &[("b1/f", RANGE as usize + 10)]).await;
    let archive = bucket.archive(&cx(), "b1").await.unwrap();
    memory.put(&Path::parse("r/b1/f").unwrap(), PutPayload::from(content(20))).await.unwrap();
    let e = archive.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(matches!(e.kind(), AdapterErrorKind::Changed | AdapterErrorKind::Unavailable), "{e}");
}

#[tokio::test]
async fn failures_are_one_line_that_says_what_to_do_without_the_keys() {
    let (_, bucket) = bucket("r", &[]).await;
    let generic = |text: &str| Error::Generic { store: "S3", source: text.into() };
    let xml = |code: &str| {
        generic(&format!(
            "403 Forbidden: <?xml?>\n<Error><Code>{code}</Code><AWSAccessKeyId>canary-id</AWSAccessKeyId>"
        ))
    };
    let denied = || Error::PermissionDenied { path: "p".into(), source: "canary-id".into() };
    for (error, kind, says) in [
        (xml("NoSuchBucket"), AdapterErrorKind::NotFound, "does not exist"),
        (
            xml("InvalidAccessKeyId"),
            AdapterErrorKind::PermissionDenied,
            "(InvalidAccessKeyId): set `s3.access_key`",
        ),
        (xml("AccessDenied"), AdapterErrorKind::PermissionDenied, "with these keys (AccessDenied)"),
        (denied(), AdapterErrorKind::PermissionDenied, "with these keys: set"),
        (xml("PermanentRedirect"), AdapterErrorKind::InvalidConfig, "`s3.region`"),
        (xml("SlowDown"), AdapterErrorKind::Unavailable, "(SlowDown)"),
        (generic("connection\nrefused canary-secret"), AdapterErrorKind::Unavailable, "connection refused"),
    ] {
        let e = bucket.failed("be read", error);
        let text = backup_core::chain(&e);
        assert!(e.kind() == kind && text.contains(says), "{text}");
        assert!(!text.contains("canary") && !text.contains('\n'), "{text}");
    }
    let without = Bucket { keys: Vec::new(), ..bucket.clone() };
    assert!(without.failed("be read", generic("no role")).to_string().contains("there are no keys"));
    assert!(without.failed("be read", denied()).to_string().contains("the role of this machine"));
    assert!(!format!("{bucket:?}").contains("canary"));
}
