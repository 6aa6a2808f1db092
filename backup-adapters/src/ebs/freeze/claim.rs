//! The claim of a run that freezes: a file that it has open and locked, as has each program that freezes for it. Its content
//! says which file systems were begun.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// How a claim names the `n`th file system.
pub(super) fn index(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

/// Makes a claim, held by whoever has it open.
pub(super) fn make(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.set_len(0)?;
    Ok(file)
}

/// What a claim says, `None` if it went with its run; and whether nobody holds it any more.
pub(super) fn look_at(path: &Path) -> io::Result<(Option<Vec<u8>>, bool)> {
    let free = match File::open(path) {
        Ok(file) => match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            Err(e) => return Err(e.into()),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((None, true)),
        Err(e) => return Err(e),
    };
    Ok((Some(fs::read(path)?), free))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_claim_is_free_once_nobody_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("frozen");
        assert_eq!(look_at(&path).unwrap(), (None, true));
        let mut held = make(&path).unwrap();
        held.write_all(&[index(0), index(1)]).unwrap();
        assert!(make(&path).is_err(), "one at a time");
        assert_eq!(look_at(&path).unwrap(), (Some(vec![0, 1]), false));
        // As in a program that still has it as its standard input.
        let child = held.try_clone().unwrap();
        drop(held);
        assert!(!look_at(&path).unwrap().1);
        child.set_len(1).unwrap();
        drop(child);
        assert_eq!(look_at(&path).unwrap(), (Some(vec![0]), true));
        drop(make(&path).unwrap());
        assert_eq!(look_at(&path).unwrap().0, Some(vec![]), "a new attempt has begun nothing");
    }
}
