//! Small files that change at a known moment of each try; headers that no test file is large enough for.

use std::fs;
use std::sync::{Arc, Mutex};

use super::*;
use crate::tree::check::Tally;
use crate::tree::parse::{Parser, Sink};
use crate::tree::roots::{Root, RootKind};
use crate::tree::rules::{Excluded, RuleSpec};
use crate::tree::walk::walk;

/// Called with the path and the number of the try.
pub(super) type Meanwhile = Box<dyn FnMut(&Path, u32)>;

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Out for Kept {
    fn chunk(&mut self, chunk: Bytes) -> Result<(), AdapterError> {
        self.0.lock().unwrap().extend_from_slice(&chunk);
        Ok(())
    }
}

/// Name and contents.
type Named = (String, Vec<u8>);

/// An archive's members.
#[derive(Default)]
struct Members(Vec<Named>);

impl Sink for Members {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        self.0.push((String::from_utf8_lossy(member.base()).into_owned(), Vec::new()));
        Ok(())
    }
    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), AdapterError> {
        self.0.last_mut().unwrap().1.extend_from_slice(bytes);
        Ok(())
    }
    fn end(&mut self) -> Result<(), AdapterError> {
        Ok(())
    }
}

/// Archives `a`, `f` and `z`; `change` happens while `f` is read.
fn archive(
    on_change: OnChange,
    mut change: impl FnMut(&Path, u32) + 'static,
) -> Result<(Vec<Named>, Summary), AdapterError> {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    for name in ["a", "f", "z"] {
        fs::write(path.join(name), "12345").unwrap();
    }
    let kept = Kept::default();
    let mut writer = Writer::new(kept.clone(), on_change);
    writer.meanwhile = Some(Box::new(move |path, number| {
        if path.ends_with("f") {
            change(path, number);
        }
    }));
    let root = Root { member: String::new(), path, kind: RootKind::Dir };
    walk(&root, &RuleSpec::default(), &Excluded::default(), &mut writer)?;
    let summary = writer.finish()?;
    let (mut members, mut tally) = (Members::default(), Tally::default());
    for sink in [&mut members as &mut dyn DynSink, &mut tally] {
        let mut parser = Parser::new();
        sink.run(&mut parser, &kept.0.lock().unwrap())?;
        parser.finish()?;
    }
    assert_eq!(tally.counts, summary.counts);
    members.0.remove(0);
    Ok((members.0, summary))
}

trait DynSink {
    fn run(&mut self, parser: &mut Parser, bytes: &[u8]) -> Result<(), AdapterError>;
}

impl<S: Sink> DynSink for S {
    fn run(&mut self, parser: &mut Parser, bytes: &[u8]) -> Result<(), AdapterError> {
        parser.feed(bytes, self)
    }
}

fn named(name: &str, content: &str) -> Named {
    (name.to_owned(), content.into())
}

#[test]
fn a_small_file_that_changed_is_taken_back_and_read_again() {
    let change = |path: &Path, number: u32| match number {
        1 => fs::write(path, "123456789").unwrap(),
        2 => fs::write(path, "1").unwrap(),
        _ => {}
    };
    let (members, summary) = archive(OnChange::Fail, change).unwrap();
    assert_eq!(members, [named("a", "12345"), named("f", "1"), named("z", "12345")]);
    assert_eq!(summary.warnings, [""; 0]);
    assert_eq!((summary.counts.files, summary.counts.bytes), (3, 11));
}

#[test]
fn a_replaced_file_is_read_by_its_new_self() {
    let change = |path: &Path, number: u32| {
        if number == 1 {
            fs::write(path.with_extension("new"), "other").unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }
    };
    let (members, _) = archive(OnChange::Fail, change).unwrap();
    assert_eq!(members[1], named("f", "other"));
}

#[test]
fn one_that_never_rests_fails_or_is_recorded() {
    for (length, what, content) in [(3, "it shrank", "123\0\0\0"), (9, "it grew", "123456")] {
        let change = move |path: &Path, _: u32| {
            // Each try begins with six bytes.
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(length).unwrap();
        };
        let reset = move |path: &Path, number: u32| {
            if number < 3 {
                fs::write(path, "123456").unwrap();
            } else {
                change(path, number);
            }
        };
        let e = archive(OnChange::Fail, reset).unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Changed);
        assert!(e.to_string().ends_with(&format!("f` changed while it was read: {what}")), "{e}");
        let (members, summary) = archive(OnChange::Record, reset).unwrap();
        assert_eq!(members, [named("a", "12345"), named("f", content), named("z", "12345")]);
        assert_eq!(summary.changed.len(), 1);
        assert!(summary.warnings[0].ends_with(what), "{:?}", summary.warnings);
    }
}

#[test]
fn one_that_vanishes_fails_or_is_recorded() {
    let change = |path: &Path, _: u32| drop(fs::remove_file(path));
    let e = archive(OnChange::Fail, change).unwrap_err();
    assert!(e.to_string().ends_with("f` changed while it was read: it vanished"), "{e}");
    let (members, summary) = archive(OnChange::Record, change).unwrap();
    assert_eq!(members, [named("a", "12345"), named("z", "12345")]);
    assert_eq!(summary.counts.files, 2);
    assert_eq!(summary.warnings.len(), 1);
}

#[test]
fn one_that_cannot_be_read_fails_even_if_changes_are_recorded() {
    // Nobody can open a file with a name that is too long: the same way out as a missing right, also for root.
    let mut writer = Writer::new(Kept::default(), OnChange::Record);
    let dir = tempfile::tempdir().unwrap();
    let fd = handle(dir.path()).unwrap();
    let name = "n".repeat(300);
    let e = writer.file(&dir.path().join(&name), fd.as_fd(), OsStr::new(&name)).unwrap_err();
    assert!(e.to_string().starts_with("cannot open `"), "{e}");
}

#[test]
fn sizes_beyond_what_octal_digits_hold_survive() {
    struct Size(u64, u64);
    impl Sink for Size {
        fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
            (self.0, self.1) = (member.size, member.uid);
            Ok(())
        }
        fn data(&mut self, _: u64, _: &[u8]) -> Result<(), AdapterError> {
            Ok(())
        }
        fn end(&mut self) -> Result<(), AdapterError> {
            Ok(())
        }
    }
    for size in [0o77_777_777_777, 0o77_777_777_777 + 1, 20 << 40] {
        let mut member = Member::new(b"big".to_vec(), Kind::File);
        (member.size, member.uid) = (size, 4_294_967_294);
        let (mut out, mut found) = (Vec::new(), Size(0, 0));
        encode(&member, &mut out).unwrap();
        Parser::new().feed(&out, &mut found).unwrap();
        assert_eq!((found.0, found.1), (size, 4_294_967_294));
    }
}
