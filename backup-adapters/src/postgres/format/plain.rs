//! Plain dumps: SQL text with `COPY` data in it.

use backup_core::AdapterError;

use super::Contents;
use super::copy::CopyRows;
use super::named;

/// Where the header must be.
const HEAD: usize = 1024;
/// Where the trailer must be. Newer versions write `\unrestrict` and a key after it.
const TAIL: usize = 1024;
/// Longer statements are no `COPY`: 1,600 columns with names of 63 bytes, quoted, fit.
const MAX_STATEMENT: usize = 1 << 20;
/// The beginnings of statements that matter.
const COPY: &[u8] = b"COPY ";
const LARGE_OBJECT: &[u8] = b"SELECT pg_catalog.lo_open(";

const HEADERS: [&[u8]; 3] =
    [b"-- PostgreSQL database dump\n", b"-- YSQL database dump\n", b"-- PostgreSQL database cluster dump\n"];
const YSQL_CLUSTER: &[u8] = b"-- YSQL database cluster dump\n";
const TRAILERS: [&[u8]; 4] = [
    b"-- PostgreSQL database dump complete\n",
    b"-- YSQL database dump complete\n",
    b"-- PostgreSQL database cluster dump complete\n",
    b"-- YSQL database cluster dump complete\n",
];

/// Whether these first bytes are of `pg_dumpall`.
pub(in crate::postgres) fn is_globals(head: &[u8]) -> bool {
    let head = head.get(..HEAD).unwrap_or(head);
    [HEADERS[2], YSQL_CLUSTER].iter().any(|h| find(head, h).is_some())
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

#[derive(Debug)]
enum State {
    /// Outside of everything that quotes.
    Text,
    LineComment,
    BlockComment,
    Single,
    Double,
    /// After a `$` that may begin a tag; the bytes of the tag so far.
    Tag(Vec<u8>),
    /// Inside `$tag$ … $tag$`: the tag with its dollars, and how much of it was just seen.
    Dollar(Vec<u8>, usize),
    /// A command of psql, e.g. `\connect`.
    Meta,
    /// Between the semicolon of a `COPY` and the end of its line.
    BeforeData(String, String),
    /// The data of a table.
    Data(String, String, CopyRows),
}

/// Follows the SQL closely enough to tell data from text that looks like it, e.g. in the body of a function.
#[derive(Debug)]
pub(in crate::postgres) struct Plain {
    name: String,
    bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    state: State,
    line_start: bool,
    previous: u8,
    statement: Vec<u8>,
    contents: Contents,
    /// Whether commands of psql are refused, and the current one.
    confined: bool,
    command: Vec<u8>,
}

/// How much of a command of psql is shown.
const SHOWN: usize = 60;

impl Plain {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            bytes: 0,
            head: Vec::new(),
            tail: Vec::new(),
            state: State::Text,
            line_start: true,
            previous: b'\n',
            statement: Vec::new(),
            contents: Contents { counted: true, ..Contents::default() },
            confined: false,
            command: Vec::new(),
        }
    }

    /// From now on it refuses commands of psql, e.g. `\connect`, which dumps made with `--create` have, and dumps of a whole
    /// cluster. What `pg_dump` writes without that option stays in the one database that it is loaded into.
    pub(super) fn confined(mut self) -> Self {
        self.confined = true;
        self
    }

    pub(super) fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        if self.head.len() < HEAD {
            let missing = (HEAD - self.head.len()).min(bytes.len());
            self.head.extend(bytes.iter().take(missing));
            if self.head.len() >= HEAD {
                self.check_head()?;
            }
        }
        self.keep_tail(bytes);
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let mut rest = bytes;
        while !rest.is_empty() {
            let used = self.step(rest).max(1);
            if self.confined {
                self.check_command(rest.get(..used).unwrap_or(rest))?;
            }
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let newest = bytes.get(bytes.len().saturating_sub(TAIL)..).unwrap_or(bytes);
        let older = (self.tail.len() + newest.len()).saturating_sub(TAIL).min(self.tail.len());
        self.tail.drain(..older);
        self.tail.extend_from_slice(newest);
    }

    /// Looks at the command of psql that `bytes` are a part of, if they are.
    fn check_command(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        let room = SHOWN.saturating_sub(self.command.len());
        match self.state {
            State::Meta => {
                self.command.extend(bytes.iter().take(room));
                return Ok(());
            }
            _ if self.command.is_empty() => return Ok(()),
            _ => self.command.extend(bytes.iter().take(room)),
        }
        let command = std::mem::take(&mut self.command);
        let harmless = [&b"\\restrict "[..], b"\\unrestrict "].iter().any(|known| command.starts_with(known));
        if harmless {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&command).trim().escape_debug().to_string();
        let what = format!(
            "has the psql command `{shown}`, which may reach out of the database that is restored: load it by hand"
        );
        Err(self.corrupt(&what))
    }

    /// Takes some of `bytes`, at least one; returns how many.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let to = |what: u8| memchr::memchr(what, bytes);
        match &mut self.state {
            State::Data(schema, table, rows) => {
                let (used, ended) = rows.update(bytes);
                if ended {
                    let key = (std::mem::take(schema), std::mem::take(table));
                    *self.contents.rows.entry(key).or_default() += rows.rows;
                    self.back_to_text();
                }
                used
            }
            State::BeforeData(schema, table) => {
                let Some(end) = to(b'\n') else { return bytes.len() };
                self.state = State::Data(std::mem::take(schema), std::mem::take(table), CopyRows::new());
                end + 1
            }
            State::LineComment | State::Meta => {
                let Some(end) = to(b'\n') else { return bytes.len() };
                self.state = State::Text;
                self.line_start = true;
                self.previous = b'\n';
                end + 1
            }
            State::BlockComment => {
                let Some(end) = to(b'/') else {
                    self.previous = bytes.last().copied().unwrap_or(0);
                    return bytes.len();
                };
                let before = end.checked_sub(1).and_then(|i| bytes.get(i)).copied().unwrap_or(self.previous);
                if before == b'*' {
                    self.state = State::Text;
                }
                self.previous = b'/';
                end + 1
            }
            State::Single => self.quoted(bytes, b'\''),
            State::Double => self.quoted(bytes, b'"'),
            State::Tag(_) => self.tag(bytes),
            State::Dollar(tag, seen) => {
                if *seen == 0 {
                    let Some(start) = to(b'$') else { return bytes.len() };
                    *seen = 1;
                    return start + 1;
                }
                let byte = bytes.first().copied().unwrap_or(0);
                // A tag holds no dollar but its first and last: a mismatch starts again at the dollar that it is.
                *seen = if tag.get(*seen) == Some(&byte) { *seen + 1 } else { usize::from(byte == b'$') };
                if *seen == tag.len() {
                    self.state = State::Text;
                    self.previous = b'$';
                }
                1
            }
            State::Text => self.text(bytes.first().copied().unwrap_or(0)),
        }
    }

    fn back_to_text(&mut self) {
        self.state = State::Text;
        self.statement.clear();
        self.line_start = true;
        self.previous = b'\n';
    }

    fn quoted(&mut self, bytes: &[u8], quote: u8) -> usize {
        let (used, ended) = memchr::memchr(quote, bytes).map_or((bytes.len(), false), |end| (end + 1, true));
        if ended {
            // A doubled quote ends one and begins another: the same.
            self.state = State::Text;
            self.previous = quote;
        }
        self.collect(bytes.get(..used).unwrap_or_default());
        used
    }

    /// Remembers the statement, as long as it may be one that matters.
    fn collect(&mut self, bytes: &[u8]) {
        let naming = if self.confined { named::NAMING.as_slice() } else { &[] };
        for matters in [COPY, LARGE_OBJECT].iter().chain(naming) {
            let common = self.statement.len().min(matters.len());
            if self.statement.get(..common) == matters.get(..common) {
                let room = MAX_STATEMENT.saturating_sub(self.statement.len());
                self.statement.extend(bytes.iter().take(room));
                return;
            }
        }
    }

    fn tag(&mut self, bytes: &[u8]) -> usize {
        let State::Tag(tag) = &mut self.state else { return 0 };
        let byte = bytes.first().copied().unwrap_or(0);
        let fits = byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80;
        if byte == b'$' {
            tag.push(b'$');
            self.state = State::Dollar(std::mem::take(tag), 0);
            return 1;
        }
        if fits || (tag.len() > 1 && byte.is_ascii_digit()) {
            tag.push(byte);
            return 1;
        }
        // Not a tag, e.g. `$1`.
        self.state = State::Text;
        self.previous = b'$';
        self.text(byte)
    }

    fn text(&mut self, byte: u8) -> usize {
        let (previous, line_start) = (self.previous, self.line_start);
        self.previous = byte;
        self.line_start = byte == b'\n';
        match byte {
            // What `pg_dump` writes has no backslash anywhere else outside of quotes.
            b'\\' if self.confined || line_start && self.statement.is_empty() => self.state = State::Meta,
            b'\'' => {
                self.state = State::Single;
                self.collect(b"'");
            }
            b'"' => {
                self.state = State::Double;
                self.collect(b"\"");
            }
            b'$' if !(previous.is_ascii_alphanumeric()
                || matches!(previous, b'_' | b'$')
                || previous >= 0x80) =>
            {
                self.state = State::Tag(vec![b'$']);
            }
            b'-' if previous == b'-' => {
                self.state = State::LineComment;
                self.statement.pop_if(|b| *b == b'-');
            }
            b'*' if previous == b'/' => self.state = State::BlockComment,
            b';' => self.end_statement(),
            // Between statements.
            b' ' | b'\n' | b'\t' | b'\r' if self.statement.is_empty() => {}
            other => {
                if self.statement.is_empty() {
                    self.statement.push(other);
                } else {
                    self.collect(&[other]);
                }
            }
        }
        1
    }

    fn end_statement(&mut self) {
        let statement = std::mem::take(&mut self.statement);
        if statement.starts_with(LARGE_OBJECT) {
            self.contents.large_objects += 1;
        } else if let Some((schema, table)) = copy_target(&statement) {
            self.state = State::BeforeData(schema, table);
        } else if self.confined && named::NAMING.iter().any(|n| statement.starts_with(n)) {
            named::roles(&statement, &mut self.contents.roles);
        }
    }

    fn corrupt(&self, what: &str) -> AdapterError {
        AdapterError::corrupt(format!("the dump `{}` {what} (at byte {})", self.name, self.bytes))
    }

    fn check_head(&self) -> Result<(), AdapterError> {
        if self.confined && is_globals(&self.head) {
            return Err(self.corrupt("is of a whole cluster: load it by hand"));
        }
        if HEADERS.iter().chain([&YSQL_CLUSTER]).any(|h| find(&self.head, h).is_some()) {
            return Ok(());
        }
        Err(AdapterError::corrupt(format!("`{}` does not begin as a dump of PostgreSQL does", self.name)))
    }

    pub(super) fn finish(mut self) -> Result<Contents, AdapterError> {
        if self.bytes == 0 {
            return Err(AdapterError::corrupt(format!("the dump `{}` is empty", self.name)));
        }
        self.check_head()?;
        if !self.command.is_empty() {
            return Err(self.corrupt("ends within a psql command"));
        }
        if let State::Data(schema, table, _) | State::BeforeData(schema, table) = &self.state {
            let what = format!("is cut: it ends within the rows of table {schema}.{table}");
            return Err(self.corrupt(&what));
        }
        if !TRAILERS.iter().any(|t| find(&self.tail, t).is_some()) {
            return Err(self.corrupt("is cut: its last lines lack `database dump complete`"));
        }
        if !matches!(self.state, State::Text) || !self.statement.is_empty() {
            // The dump is whole, but its text was not understood: better no counts than wrong ones.
            self.contents.counted = false;
            self.contents.rows.clear();
        }
        Ok(self.contents)
    }
}

/// The table of `COPY schema.table (columns) FROM stdin`.
fn copy_target(statement: &[u8]) -> Option<(String, String)> {
    let rest = statement.strip_prefix(COPY)?;
    rest.strip_suffix(b" FROM stdin")?;
    let (schema, rest) = identifier(rest)?;
    match rest.strip_prefix(b".") {
        Some(rest) => Some((schema, identifier(rest)?.0)),
        None => Some((String::new(), schema)),
    }
}

/// The identifier at the beginning of `text`, and what follows it.
fn identifier(text: &[u8]) -> Option<(String, &[u8])> {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let Some(mut rest) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|b| matches!(b, b'.' | b' ' | b'(')).unwrap_or(text.len());
        let (name, rest) = text.split_at_checked(end)?;
        return (!name.is_empty()).then(|| (lossy(name), rest));
    };
    let mut name = Vec::new();
    loop {
        let end = memchr::memchr(b'"', rest)?;
        name.extend_from_slice(rest.get(..end)?);
        rest = rest.get(end + 1..)?;
        match rest.strip_prefix(b"\"") {
            Some(more) => {
                name.push(b'"');
                rest = more;
            }
            None => return Some((lossy(&name), rest)),
        }
    }
}
