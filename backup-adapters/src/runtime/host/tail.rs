//! The last words of a program.

use std::collections::VecDeque;

use backup_core::Secret;

/// How much of standard error is kept, in bytes.
const TAIL_BYTES: usize = 64 << 10;

/// How much of it an error message shows, in characters.
const SHOWN_CHARS: usize = 500;

/// Shorter secrets are not looked for: they would blot out ordinary text, and say nothing there.
const SECRET_BYTES: usize = 4;

/// The end of a text of any length.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..surplus);
    }

    /// The text, in which none of `secrets` appears: a program may print what it was given.
    pub(super) fn text(&self, secrets: &[Secret]) -> String {
        let text = String::from_utf8_lossy(&Vec::from(self.0.clone())).into_owned();
        let long = secrets.iter().map(Secret::expose).filter(|s| s.len() >= SECRET_BYTES);
        long.fold(text, |text, secret| text.replace(secret, "…"))
    }
}

/// The last lines of `text` that say something, as one line.
pub(super) fn last_lines(text: &str) -> String {
    let mut lines = Vec::new();
    let mut room = SHOWN_CHARS;
    for line in text.lines().rev().map(str::trim).filter(|l| !l.is_empty()) {
        let shown: String = line.chars().take(room).collect();
        room = room.saturating_sub(shown.chars().count());
        lines.push(shown);
        if room == 0 {
            break;
        }
    }
    lines.reverse();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_bounded_and_keeps_the_end() {
        let mut tail = Tail::default();
        for n in 0..20_000 {
            tail.push(format!("line {n}\n").as_bytes());
        }
        let text = tail.text(&[]);
        assert_eq!(text.len(), TAIL_BYTES);
        assert!(text.ends_with("line 19999\n"));
        assert!(last_lines(&text).ends_with("line 19998; line 19999"));
        assert!(last_lines(&text).len() < 2 * SHOWN_CHARS);
    }

    #[test]
    fn secrets_are_blotted_out() {
        let mut tail = Tail::default();
        tail.push(b"password=hunter2 is wrong, an a stays");
        let text = tail.text(&[Secret::new("hunter2"), Secret::new("a")]);
        assert_eq!(text, "password=… is wrong, an a stays");
    }
}
