//! The lines by which the wrapper in the container talks to us, among what the program prints.

use bytes::{Bytes, BytesMut};

/// How much of standard error is kept, in bytes.
const TAIL: usize = 64 << 10;
/// No line of the wrapper is longer.
const LONGEST: usize = 128;
/// Nor is one of the engine's, in bytes.
const LINE: usize = 4096;

/// Separates what the program printed on standard output from the wrapper's first line and from its last one, which ends it.
///
/// The first line is here, and not on standard error: the engine keeps the order within one stream only. A program that
/// prints at once can have filled all buffers before the first of standard error arrives; then we would wait for the word
/// of its start, and it would wait for somebody who takes its output.
#[derive(Debug)]
pub(super) struct Stdout {
    first: Vec<u8>,
    mark: Vec<u8>,
    held: BytesMut,
    leader: Option<u64>,
    code: Option<i64>,
}

/// Something was printed that cannot be the program's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stray {
    /// A line instead of the wrapper's first one: the engine says so what kept it from starting the program.
    BeforeStart(Bytes),
    AfterEnd,
}

impl Stdout {
    pub(super) fn new(nonce: &str) -> Self {
        Self {
            first: format!("##PID {nonce} ").into_bytes(),
            mark: format!("##END {nonce} ").into_bytes(),
            held: BytesMut::new(),
            leader: None,
            code: None,
        }
    }

    /// The wrapper's process id in the container, once it is about to start the program.
    pub(super) fn leader(&self) -> Option<u64> {
        self.leader
    }

    /// The exit code, once the output is complete.
    pub(super) fn code(&self) -> Option<i64> {
        self.code
    }

    /// Takes what came, and gives what is certainly the program's.
    pub(super) fn push(&mut self, mut came: Bytes) -> Result<Bytes, Stray> {
        if self.leader.is_none() {
            let end = came.iter().position(|b| *b == b'\n').map_or(came.len(), |at| at + 1);
            self.held.extend_from_slice(&came.split_to(end));
            let line = self.held.strip_suffix(b"\n");
            if line.is_none() && self.held.len() <= LINE {
                return Ok(Bytes::new());
            }
            let pid = line.and_then(|line| line.strip_prefix(self.first.as_slice()));
            self.leader = pid.and_then(|d| std::str::from_utf8(d).ok()?.parse().ok());
            let line = self.held.split().freeze();
            if self.leader.is_none() {
                return Err(Stray::BeforeStart(line));
            }
        }
        if came.is_empty() {
            return Ok(came);
        }
        if self.code.is_some() {
            return Err(Stray::AfterEnd);
        }
        let mut data = if self.held.is_empty() {
            came
        } else {
            self.held.extend_from_slice(&came);
            self.held.split().freeze()
        };
        let window = data.len().saturating_sub(LONGEST);
        for at in window..data.len() {
            let rest = data.get(at..).unwrap_or_default();
            match self.read(rest) {
                Mark::No => {}
                Mark::Perhaps => {
                    self.held.extend_from_slice(rest);
                    data.truncate(at);
                    break;
                }
                Mark::Is(code) => {
                    self.code = Some(code);
                    data.truncate(at);
                    break;
                }
            }
        }
        Ok(data)
    }

    fn read(&self, rest: &[u8]) -> Mark {
        let Some(number) = rest.strip_prefix(self.mark.as_slice()) else {
            return if self.mark.starts_with(rest) { Mark::Perhaps } else { Mark::No };
        };
        let (digits, complete) = match number.split_last() {
            Some((b'\n', digits)) => (digits, true),
            _ => (number, false),
        };
        if digits.len() > 3 || !digits.iter().all(u8::is_ascii_digit) {
            return Mark::No;
        }
        match (complete, std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok())) {
            (true, Some(code)) => Mark::Is(code),
            (true, None) => Mark::No,
            (false, _) => Mark::Perhaps,
        }
    }
}

enum Mark {
    No,
    Perhaps,
    Is(i64),
}

/// What the wrapper says on standard error.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// It cannot work here, and why in one word.
    Refused(String),
    /// The program takes no more input.
    NotFed,
    /// The program has ended, with this exit code.
    Ended(i64),
}

/// Separates the wrapper's lines on standard error from the program's, and keeps the last of those.
#[derive(Debug)]
pub(super) struct Stderr {
    nonce: String,
    line: Vec<u8>,
    /// What `line` holds continues a line that is in the tail already.
    begun: bool,
    tail: Vec<u8>,
}

impl Stderr {
    pub(super) fn new(nonce: &str) -> Self {
        Self { nonce: nonce.to_owned(), line: Vec::new(), begun: false, tail: Vec::new() }
    }

    pub(super) fn push(&mut self, came: &[u8]) -> Vec<Note> {
        let mut notes = Vec::new();
        for part in came.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                match self.note() {
                    Some(note) => {
                        if matches!(note, Note::Ended(_) | Note::NotFed) && self.tail.ends_with(b"\n") {
                            // The wrapper begins these on a line of their own.
                            self.tail.pop();
                        }
                        notes.push(note);
                    }
                    None => self.keep(),
                }
                self.line.clear();
                self.begun = false;
            } else if self.line.len() > LONGEST {
                self.keep();
                self.line.clear();
                self.begun = true;
            }
        }
        notes
    }

    fn keep(&mut self) {
        self.tail.extend_from_slice(&self.line);
        if self.tail.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }

    fn note(&self) -> Option<Note> {
        let line = std::str::from_utf8(&self.line).ok()?.trim_end_matches('\n');
        let mut words = line.split(' ');
        let (word, nonce, value) = (words.next()?, words.next()?, words.next());
        if self.begun || nonce != self.nonce {
            return None;
        }
        match (word, value) {
            ("##ERR", Some(what)) => Some(Note::Refused(what.to_owned())),
            ("##FED", None) => Some(Note::NotFed),
            ("##END", Some(code)) => Some(Note::Ended(code.parse().ok()?)),
            _ => None,
        }
    }

    /// The last 64 KiB.
    pub(super) fn tail(&self) -> String {
        let all = [self.tail.as_slice(), self.line.as_slice()].concat();
        let from = all.len().saturating_sub(TAIL);
        String::from_utf8_lossy(all.get(from..).unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn started(nonce: &str) -> Stdout {
        let mut stdout = Stdout::new(nonce);
        assert_eq!(stdout.push(format!("##PID {nonce} 12\n").into()), Ok(Bytes::new()));
        assert_eq!(stdout.leader(), Some(12));
        stdout
    }

    fn split(parts: &[&[u8]]) -> (Vec<u8>, Option<i64>) {
        let mut stdout = started("N");
        let mut all = Vec::new();
        for part in parts {
            all.extend_from_slice(&stdout.push(Bytes::copy_from_slice(part)).unwrap());
        }
        (all, stdout.code())
    }

    #[test]
    fn the_last_line_is_not_the_programs() {
        assert_eq!(split(&[b"abc##END N 0\n"]), (b"abc".to_vec(), Some(0)));
        assert_eq!(split(&[b"###", b"END N 13", b"7\n"]), (b"#".to_vec(), Some(137)));
        assert_eq!(split(&[b"##END M 0\n"]), (b"##END M 0\n".to_vec(), None));
        assert_eq!(split(&[b"##END N x\n"]), (b"##END N x\n".to_vec(), None));
        assert_eq!(split(&[b"##END N \n"]), (b"##END N \n".to_vec(), None));
        assert_eq!(split(&[b"##END N 0\nx##END N 1\n"]), (b"##END N 0\nx".to_vec(), Some(1)));
        assert_eq!(split(&[b"##E", b"ND"]).1, None);
    }

    #[test]
    fn nothing_may_follow_it() {
        let mut stdout = started("N");
        stdout.push(Bytes::from_static(b"##END N 0\n")).unwrap();
        assert_eq!(stdout.push(Bytes::from_static(b"x")), Err(Stray::AfterEnd));
    }

    #[test]
    fn the_first_line_is_not_the_programs() {
        let mut stdout = Stdout::new("N");
        assert_eq!(stdout.push(Bytes::from_static(b"##PID N 1")), Ok(Bytes::new()));
        assert_eq!(stdout.leader(), None);
        assert_eq!(stdout.push(Bytes::from_static(b"2\nabc")), Ok(Bytes::from_static(b"abc")));
        assert_eq!(stdout.leader(), Some(12));
        assert_eq!(stdout.push(Bytes::from_static(b"##PID N 13\n")), Ok(Bytes::from_static(b"##PID N 13\n")));
        for stray in ["x\n", "##PID M 12\n", "##PID N x\n", "##PID N 12 \n", &"x".repeat(LINE + 1)] {
            let mut stdout = Stdout::new("N");
            let line = Bytes::from(stray.to_owned());
            assert_eq!(stdout.push(line.clone()), Err(Stray::BeforeStart(line)), "{stray}");
        }
    }

    #[test]
    fn lines_of_the_wrapper_are_not_the_programs() {
        let mut stderr = Stderr::new("N");
        assert_eq!(stderr.push(b"##ERR N dd\nfirst\n"), [Note::Refused("dd".to_owned())]);
        assert_eq!(stderr.push(b"##END M 0\n##END N no\nno newline"), []);
        assert_eq!(stderr.push(b"\n##END N 3\n"), [Note::Ended(3)]);
        assert_eq!(stderr.tail(), "first\n##END M 0\n##END N no\nno newline");
    }

    #[test]
    fn the_tail_is_bounded_and_long_lines_are_kept() {
        let mut stderr = Stderr::new("N");
        for _ in 0..1000 {
            stderr.push(&[b'x'; 1000]);
        }
        stderr.push(b"last\n##FED N\n");
        assert_eq!(stderr.tail().len(), TAIL);
        assert!(stderr.tail().ends_with("xlast"));
        assert!(stderr.tail.len() <= 3 * TAIL);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(data in "[#END N0\n]{0,40}", cuts in proptest::collection::vec(0_usize..60, 0..6)) {
            let whole = format!("{data}##END NNN 7\n").into_bytes();
            let whole = [b"##PID NNN 12\n".as_slice(), &whole].concat();
            let mut stdout = Stdout::new("NNN");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(whole.len())).chain([0, whole.len()]).collect();
            cuts.sort_unstable();
            let mut all = Vec::new();
            for pair in cuts.windows(2) {
                all.extend_from_slice(&stdout.push(Bytes::copy_from_slice(&whole[pair[0]..pair[1]])).unwrap());
            }
            prop_assert_eq!(all, data.as_bytes());
            prop_assert_eq!(stdout.code(), Some(7));
        }
    }
}
