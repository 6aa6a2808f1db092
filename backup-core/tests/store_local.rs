//! What a store in a directory meets beyond the contract: missing, full and read-only media, planted links, leftovers.

#![expect(clippy::unwrap_used, reason = "assertions of tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use backup_core::{LocalStore, Store, StoreError, StoreKey, WriteOptions, chain};
use bytes::Bytes;
use futures::TryStreamExt as _;
use tempfile::TempDir;

fn key(s: &str) -> StoreKey {
    StoreKey::new(s).unwrap()
}

fn setup() -> (TempDir, LocalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::new(dir.path());
    (dir, store)
}

async fn keys(store: &LocalStore) -> Vec<String> {
    let mut keys: Vec<String> = store.list_keys(None).map_ok(|k| k.to_string()).try_collect().await.unwrap();
    keys.sort();
    keys
}

async fn body(store: &LocalStore, k: &str) -> Vec<u8> {
    store.read(&key(k)).await.unwrap().try_collect::<Vec<Bytes>>().await.unwrap().concat()
}

/// The errors of every call of the store on a broken root.
async fn all_errors(store: &LocalStore) -> Vec<StoreError> {
    let k = key("a/x");
    vec![
        store.create(&k, Bytes::new()).await.unwrap_err(),
        store.writer(&k, WriteOptions::default()).await.unwrap_err(),
        store.head(&k).await.unwrap_err(),
        store.read(&k).await.err().unwrap(),
        store.read_range(&k, 0..1).await.unwrap_err(),
        store.list(None).try_next().await.unwrap_err(),
        store.list(Some(&k)).try_next().await.unwrap_err(),
        store.list_keys(None).try_next().await.unwrap_err(),
        store.list_dirs(None).await.unwrap_err(),
        store.rename(&k, &key("a/y")).await.unwrap_err(),
        store.delete(&k).await.unwrap_err(),
        store.delete_prefix(&k).await.unwrap_err(),
        store.space().await.unwrap_err(),
    ]
}

#[tokio::test]
async fn a_missing_root_is_not_a_store_and_is_never_made() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("mnt/disk");
    let store = LocalStore::new(&root);
    for e in all_errors(&store).await {
        assert!(matches!(e, StoreError::NotAStore { .. }), "{e:?}");
        assert!(e.to_string().contains("mnt/disk") && e.to_string().contains("mount"), "{e}");
    }
    assert!(!dir.path().join("mnt").exists());

    for _ in 0..2 {
        store.create_root().await.unwrap();
    }
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
    store.create(&key("a/x"), Bytes::new()).await.unwrap();
    assert!(store.space().await.unwrap().unwrap().total > 0);
}

#[tokio::test]
async fn a_root_that_is_a_file_is_not_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("file");
    fs::write(&root, "").unwrap();
    for e in all_errors(&LocalStore::new(&root)).await {
        assert!(matches!(e, StoreError::NotAStore { .. }), "{e:?}");
    }
}

#[tokio::test]
async fn the_url_is_shown() {
    assert_eq!(LocalStore::new("/mnt/my disk/backups").to_string(), "file:///mnt/my%20disk/backups");
}

#[tokio::test]
async fn only_the_owner_may_read() {
    let (dir, store) = setup();
    store.create(&key("a/b/created"), Bytes::new()).await.unwrap();
    let writer = store.writer(&key("a/b/written"), WriteOptions::default()).await.unwrap();
    writer.finish().await.unwrap();
    for (path, mode) in [("a", 0o700), ("a/b", 0o700), ("a/b/created", 0o600), ("a/b/written", 0o600)] {
        let found = fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{path}: {found:o}");
    }
}

#[tokio::test]
async fn planted_links_are_not_followed() {
    let (dir, store) = setup();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s3cret").unwrap();
    fs::create_dir(outside.path().join("sub")).unwrap();
    store.create(&key("a/x"), Bytes::from_static(b"mine")).await.unwrap();
    symlink(outside.path(), dir.path().join("dir-link")).unwrap();
    symlink(outside.path(), dir.path().join("a/dir-link")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("a/file-link")).unwrap();
    symlink(outside.path().join("new"), dir.path().join("a/dangling")).unwrap();

    assert_eq!(keys(&store).await, ["a/x"]);
    assert_eq!(store.list_dirs(None).await.unwrap(), ["a"]);
    for k in ["dir-link/secret", "a/dir-link/secret", "a/file-link"] {
        let e = store.read(&key(k)).await.err().unwrap();
        assert!(chain(&e).contains("symbolic link"), "{}", chain(&e));
        assert!(store.head(&key(k)).await.is_err() && store.read_range(&key(k), 0..1).await.is_err());
        assert!(store.rename(&key(k), &key("a/stolen")).await.is_err());
    }
    for k in ["dir-link/new", "a/dir-link/sub/new", "a/dangling", "a/dangling/new"] {
        assert!(store.create(&key(k), Bytes::from_static(b"x")).await.is_err(), "{k}");
    }
    assert!(store.delete(&key("dir-link/secret")).await.is_err());
    assert!(store.delete_prefix(&key("dir-link")).await.is_err());
    // Below a prefix that goes, links go too, and what they point at stays.
    store.delete_prefix(&key("a")).await.unwrap();
    assert!(!dir.path().join("a").exists());
    let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"s3cret");
}

#[tokio::test]
async fn what_a_crash_left_is_invisible_and_swept() {
    let (dir, store) = setup();
    store.create(&key("a/b/x"), Bytes::from_static(b"x")).await.unwrap();
    for leftover in ["a/.tmp-1", "a/b/.tmp-2", ".tmp-3", "c/.tmp-4"] {
        let path = dir.path().join(leftover);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    assert_eq!(keys(&store).await, ["a/b/x"]);
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(store.list_dirs(None).await.unwrap(), ["a"], "a leftover is no object");
    assert!(store.head(&key("a/.tmp-1")).await.unwrap_err().is_not_found());
    // Nobody can make an object that no listing would show.
    assert!(store.create(&key("a/.tmp-5/x"), Bytes::new()).await.is_err());

    store.delete_prefix(&key("a")).await.unwrap();
    store.delete_prefix(&key("c")).await.unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".tmp-3"]);
}

#[tokio::test]
async fn a_given_up_write_leaves_no_file() {
    let (dir, store) = setup();
    for abort in [true, false] {
        let mut writer = store.writer(&key("a/x"), WriteOptions::default()).await.unwrap();
        writer.write(Bytes::from(vec![1; 1 << 20])).await.unwrap();
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        if abort {
            writer.abort().await.unwrap();
        } else {
            drop(writer);
        }
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_write_whose_parts_were_swept_fails() {
    let (_dir, store) = setup();
    let mut writer = store.writer(&key("a/x"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from_static(b"late")).await.unwrap();
    store.delete_prefix(&key("a")).await.unwrap();
    let e = writer.finish().await.unwrap_err();
    assert!(chain(&e).contains("removed meanwhile"), "{}", chain(&e));
    assert_eq!(keys(&store).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_file_that_ends_early_is_an_error_not_an_end() {
    let (dir, store) = setup();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/x"), vec![7; 8 << 20]).unwrap();
    let reading = store.read(&key("a/x")).await.unwrap();
    fs::File::options().write(true).open(dir.path().join("a/x")).unwrap().set_len((3 << 20) + 5).unwrap();
    let e = reading.try_collect::<Vec<Bytes>>().await.unwrap_err();
    assert!(chain(&e).contains("early"), "{}", chain(&e));
}

#[tokio::test]
async fn the_version_changes_with_the_object() {
    let (_dir, store) = setup();
    let mut versions = Vec::new();
    for body in ["one", "two"] {
        store.create(&key("a/x"), Bytes::from(body)).await.unwrap();
        versions.push(store.head(&key("a/x")).await.unwrap().version.unwrap());
        // Keeps the inode, so that the next object gets another.
        store.rename(&key("a/x"), &key(&format!("kept/{body}"))).await.unwrap();
    }
    assert_ne!(versions[0], versions[1]);
}

#[tokio::test]
async fn a_body_beyond_the_first_write_back_comes_back() {
    let (_dir, store) = setup();
    let mut writer = store.writer(&key("a/x"), WriteOptions::data(None)).await.unwrap();
    let mut hasher = blake3::Hasher::new();
    for i in 0..140_u8 {
        let chunk = Bytes::from(vec![i; (1 << 20) + usize::from(i)]);
        hasher.update(&chunk);
        writer.write(chunk).await.unwrap();
    }
    let info = writer.finish().await.unwrap();
    assert_eq!(info.bytes, (140 << 20) + (0..140).sum::<u64>());
    let mut read = blake3::Hasher::new();
    let mut chunks = store.read(&key("a/x")).await.unwrap();
    while let Some(chunk) = chunks.try_next().await.unwrap() {
        read.update(&chunk);
    }
    assert_eq!(read.finalize(), hasher.finalize());
}

/// Every deletion tidies the emptied directories up that every creation is about to use.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn creating_and_tidying_up_do_not_meet() {
    let (_dir, store) = setup();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4 {
        let store = store.clone();
        tasks.spawn(async move {
            for i in 0..60 {
                let (x, y) = (key(&format!("a/b/c/{task}-{i}")), key(&format!("a/d/{task}-{i}")));
                store.create(&x, Bytes::from_static(b"x")).await.unwrap();
                store.rename(&x, &y).await.unwrap();
                store.delete(&y).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(keys(&store).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_directory_that_cannot_be_listed_is_an_error_beside_the_rest() {
    if rustix::process::geteuid().is_root() && !inside() {
        // Rights stop root only without its capabilities.
        let through = ["setpriv", "--bounding-set=-all"];
        return again("a_directory_that_cannot_be_listed_is_an_error_beside_the_rest", &through);
    }
    let (dir, store) = setup();
    for k in ["a/x", "b/x", "c/x"] {
        store.create(&key(k), Bytes::new()).await.unwrap();
    }
    fs::set_permissions(dir.path().join("b"), fs::Permissions::from_mode(0o000)).unwrap();
    let all: Vec<_> = futures::StreamExt::collect(store.list_keys(None)).await;
    fs::set_permissions(dir.path().join("b"), fs::Permissions::from_mode(0o700)).unwrap();
    let errors: Vec<_> = all.iter().filter_map(|r| r.as_ref().err()).collect();
    assert_eq!((all.len(), errors.len()), (3, 1));
    assert!(matches!(errors[0], StoreError::PermissionDenied { key, .. } if key == "b"), "{errors:?}");
}

const INSIDE: &str = "STORE_TEST_INSIDE";

fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs a test of this file again, through another program.
fn again(test: &str, through: &[&str]) {
    let run = Command::new(through[0])
        .args(&through[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("util-linux is installed");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && out.contains("1 passed"), "{}: {out}\n{err}", run.status);
}

/// The same in a mount name space of its own, whose mounts end with it, however it ends; as the root of a user name
/// space if we are not root.
fn again_with_mounts(test: &str) {
    let root = rustix::process::geteuid().is_root();
    again(test, if root { &["unshare", "--mount"] } else { &["unshare", "--map-root-user", "--mount"] });
}

fn mount(args: &[&str], on: &Path) {
    let run = Command::new("mount").args(args).arg(on).output().unwrap();
    assert!(run.status.success(), "mount {args:?}: {}", String::from_utf8_lossy(&run.stderr));
}

#[tokio::test]
async fn a_full_disk_keeps_what_it_has_and_can_be_pruned() {
    if !inside() {
        return again_with_mounts("a_full_disk_keeps_what_it_has_and_can_be_pruned");
    }
    let (dir, store) = setup();
    mount(&["-t", "tmpfs", "-o", "size=4m", "none"], dir.path());
    store.create(&key("s/i/1/metadata.json"), Bytes::from_static(b"good")).await.unwrap();
    store.create(&key("s/i/1/x"), Bytes::from(vec![1; 1 << 20])).await.unwrap();

    // A large write, told while writing or at the end.
    let mut writer = store.writer(&key("s/i/2/x"), WriteOptions::data(Some(8 << 20))).await.unwrap();
    let mut failed = None;
    for _ in 0..8 {
        if let Err(e) = writer.write(Bytes::from(vec![2; 1 << 20])).await {
            failed = Some(e);
            break;
        }
    }
    let e = failed.expect("the disk is full");
    assert!(matches!(e, StoreError::NoSpace { .. }), "{e:?}");
    // The writer that failed says so to the end, and gives its space back.
    assert!(writer.write(Bytes::from_static(b"more")).await.is_err());
    assert!(writer.finish().await.is_err());

    // To the last byte. The blocks are freed on another thread, soon.
    let free = async || usize::try_from(store.space().await.unwrap().unwrap().free).unwrap();
    let given_back = async {
        while free().await <= 2 << 20 {
            tokio::task::yield_now().await;
        }
    };
    let given_back = tokio::time::timeout(std::time::Duration::from_secs(30), given_back).await;
    assert!(given_back.is_ok(), "the failed write still occupies space");
    let free = free().await;
    fs::write(dir.path().join("filler"), vec![3; free]).unwrap();
    let e = store.create(&key("s/i/1/seen"), Bytes::from(vec![4; 5000])).await.unwrap_err();
    assert!(matches!(e, StoreError::NoSpace { .. }), "{e:?}");
    assert!(!e.to_string().contains('\n') && e.to_string().contains("s/i/1/seen"), "{e}");

    fs::read_dir(dir.path().join("s/i/1")).unwrap().for_each(|entry| {
        let name = entry.unwrap().file_name();
        assert!(!name.to_string_lossy().starts_with(".tmp-"), "{name:?} is left");
    });
    assert_eq!(keys(&store).await, ["filler", "s/i/1/metadata.json", "s/i/1/x"]);
    assert_eq!(body(&store, "s/i/1/metadata.json").await, b"good");

    // Still full: the way of a deletion.
    store.rename(&key("s/i/1/metadata.json"), &key("s/i/1/tombstone.json")).await.unwrap();
    store.delete(&key("s/i/1/x")).await.unwrap();
    store.delete_prefix(&key("s/i/1")).await.unwrap();
    assert_eq!(keys(&store).await, ["filler"]);
    store.create(&key("s/i/3/x"), Bytes::from(vec![5; 5000])).await.unwrap();
}

#[tokio::test]
async fn a_read_only_root_reads_and_refuses_the_rest() {
    if !inside() {
        return again_with_mounts("a_read_only_root_reads_and_refuses_the_rest");
    }
    let (dir, store) = setup();
    mount(&["-t", "tmpfs", "-o", "size=1m", "none"], dir.path());
    store.create(&key("a/x"), Bytes::from_static(b"x")).await.unwrap();
    mount(&["-o", "remount,ro"], dir.path());
    assert_eq!(body(&store, "a/x").await, b"x");
    assert_eq!(keys(&store).await, ["a/x"]);
    for e in [
        store.create(&key("a/y"), Bytes::new()).await.unwrap_err(),
        store.create(&key("b/y"), Bytes::new()).await.unwrap_err(),
        store.writer(&key("a/y"), WriteOptions::default()).await.unwrap_err(),
        store.rename(&key("a/x"), &key("a/y")).await.unwrap_err(),
        store.delete(&key("a/x")).await.unwrap_err(),
        store.delete_prefix(&key("a")).await.unwrap_err(),
    ] {
        assert!(matches!(e, StoreError::PermissionDenied { .. }), "{e:?}");
        assert!(chain(&e).contains("Read-only"), "{}", chain(&e));
    }
}
