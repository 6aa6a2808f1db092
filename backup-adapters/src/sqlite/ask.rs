//! One question to a database: the first value of its answer.

use std::path::Path;

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::connect::{Patience, Source};
use super::inspect::{interruptible, was_interrupted};

/// How many bytes of a blob are shown.
const SHOWN: usize = 40;

/// Asks `question` of the database at `path`, as a reader that may wait for others but changes nothing.
pub(super) fn ask(path: &Path, cx: &OpContext, question: &str) -> Result<Option<String>, AdapterError> {
    let source = Source::open(path, cx)?;
    let stop = || cx.check_alive().is_err();
    let read = || interruptible(&source, &stop, || first_value(&source, question));
    let answer = Patience::new(cx, path).retry(read)?;
    let answer = match answer {
        Err(e) if was_interrupted(&e) => {
            return Err(cx.check_alive().err().unwrap_or_else(AdapterError::cancelled));
        }
        Err(e) => {
            // Never of the kind that the file is damaged or that the question cannot be asked: it is the question that fails.
            let said = e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            return Err(AdapterError::new(AdapterErrorKind::Other, format!("SQLite says: {said}")));
        }
        Ok(Answer::Writes) => {
            return Err(AdapterError::new(
                AdapterErrorKind::InvalidConfig,
                "the statement is no query: it would change the database",
            ));
        }
        Ok(Answer::Value(value)) => value,
    };
    source.confirm()?;
    Ok(answer)
}

enum Answer {
    Value(Option<String>),
    Writes,
}

fn first_value(conn: &Connection, question: &str) -> rusqlite::Result<Answer> {
    // The connection may be one that could write, where a crashed writer's journal had to be played back.
    conn.pragma_update(None, "query_only", true)?;
    let mut statement = conn.prepare(question)?;
    if !statement.readonly() {
        return Ok(Answer::Writes);
    }
    let mut rows = statement.query([])?;
    let value = match rows.next()? {
        Some(row) => text(row.get_ref(0)?),
        None => None,
    };
    Ok(Answer::Value(value))
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(n) => Some(n.to_string()),
        ValueRef::Real(x) => Some(x.to_string()),
        ValueRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Blob([]) => Some(String::new()),
        ValueRef::Blob(bytes) => {
            let hex: String = bytes.iter().take(SHOWN).map(|b| format!("{b:02x}")).collect();
            Some(format!("x{hex}"))
        }
    }
}
