//! Any tree comes back.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use backup_adapters::files::FilesConfig;
use backup_core::*;
use proptest::prelude::*;

use crate::support::*;

#[derive(Debug, Clone)]
enum Entry {
    File(Vec<u8>),
    /// Length, and where some bytes of data are.
    Sparse(u64, Vec<u64>),
    Symlink(Vec<u8>),
    /// To the n-th file made so far.
    Hard(prop::sample::Index),
    Dir(Vec<(Vec<u8>, Self)>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|b| if b == 0 || b == b'/' { b'x' } else { b });
    let any = prop::collection::vec(byte, 1..40);
    let long = (1..=255_usize).prop_map(|n| vec![b'n'; n]);
    prop_oneof![4 => "[a-c.]{1,3}".prop_map(String::into_bytes), 3 => any, 1 => long]
        .prop_filter("reserved", |n| n.as_slice() != b"." && n.as_slice() != b"..")
}

fn entry() -> impl Strategy<Value = Entry> {
    let leaf = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..3000).prop_map(Entry::File),
        1 => (0..3_u8).prop_map(|b| Entry::File(vec![b; (1 << 20) + usize::from(b)])),
        1 => (4097..5_000_000_u64, prop::collection::vec(0..5_000_000_u64, 0..4)).prop_map(|(n, at)| Entry::Sparse(n, at)),
        1 => prop::collection::vec(1..=255_u8, 1..400).prop_map(Entry::Symlink),
        1 => any::<prop::sample::Index>().prop_map(Entry::Hard),
    ];
    leaf.prop_recursive(4, 40, 8, |inner| prop::collection::vec((name(), inner), 0..8).prop_map(Entry::Dir))
}

fn make(path: &Path, entry: &Entry, files: &mut Vec<PathBuf>) {
    if path.symlink_metadata().is_ok() {
        return;
    }
    match entry {
        Entry::File(content) => fs::write(path, content).unwrap(),
        Entry::Sparse(length, data) => {
            let file = File::create(path).unwrap();
            file.set_len(*length).unwrap();
            for at in data.iter().filter(|at| *at + 6 <= *length) {
                file.write_all_at(b"sparse", *at).unwrap();
            }
        }
        Entry::Symlink(target) => {
            symlink(OsStr::from_bytes(target), path).unwrap();
            // Several names of one symlink come back as several symlinks.
            return;
        }
        Entry::Hard(index) => {
            if !files.is_empty() {
                fs::hard_link(index.get(files), path).unwrap();
            }
            return;
        }
        Entry::Dir(entries) => {
            fs::create_dir(path).unwrap();
            for (name, entry) in entries {
                make(&path.join(OsStr::from_bytes(name)), entry, files);
            }
            return;
        }
    }
    files.push(path.to_owned());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_random_tree_comes_back(entries in prop::collection::vec((name(), entry()), 0..10)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new::<FilesConfig>("paths = ['app']");
            let top = bench.path("app");
            make(&top, &Entry::Dir(entries), &mut Vec::new());
            let before = picture(&top);
            let captured = bench.capture().await.unwrap();
            let out = bench.path("out");
            bench.restore(&captured, RestoreTarget::Dir(out.clone()), "20260102_000000").await.unwrap();
            assert_same(&before, &picture(&out.join(top.strip_prefix("/").unwrap())));
        });
    }
}
