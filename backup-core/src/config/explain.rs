//! Turns what serde says into what helps: the dotted path, the closest key, the keys that exist.

use std::ops::Range;

use serde::de::DeserializeOwned;

use crate::error::ConfigError;

/// Reads `table`, which stands at `place` (a dotted path, empty at the top). `more_keys` exist beside those of `T` and
/// are named, too, where a key is unknown.
pub(crate) fn read_table<T: DeserializeOwned>(
    table: toml::Table,
    place: &str,
    more_keys: &[&str],
) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|e| explain(&e, place, more_keys))
}

fn explain(
    error: &serde_path_to_error::Error<toml::de::Error>,
    place: &str,
    more_keys: &[&str],
) -> ConfigError {
    use serde_path_to_error::Segment;

    let text = error.inner().message();
    let mut segments: Vec<String> = Vec::new();
    for segment in error.path() {
        match segment {
            Segment::Map { key } => segments.push(quoted_key(key)),
            Segment::Enum { variant } => segments.push(quoted_key(variant)),
            Segment::Seq { index } => match segments.last_mut() {
                Some(last) => last.push_str(&format!("[{index}]")),
                None => segments.push(format!("[{index}]")),
            },
            Segment::Unknown => {}
        }
    }
    let what = What::parse(text);
    if let What::UnknownKey { key, .. } = &what
        && segments.last().is_some_and(|last| *last == quoted_key(key))
    {
        segments.pop();
    }
    let at_top = segments.is_empty();
    if !place.is_empty() {
        segments.insert(0, place.to_owned());
    }
    let error = match what {
        What::UnknownKey { key, mut known } => {
            if at_top {
                known.extend(more_keys);
            }
            unknown("key", key, &known, "the keys are")
        }
        What::UnknownValue { value, known } => unknown("value", value, &known, "use one of"),
        What::MissingKey(key) => ConfigError::new(format!("the key `{key}` is missing")),
        What::Other => ConfigError::new(in_toml_words(&one_line(text))),
    };
    if segments.is_empty() { error } else { error.at(segments.join(".")) }
}

/// ``unknown <what> `given` ``, with the closest of `known` or all of them.
pub(crate) fn unknown(what: &str, given: &str, known: &[&str], list: &str) -> ConfigError {
    let error = ConfigError::new(format!("unknown {what} `{}`", given.escape_debug()));
    match hint(given, known, list) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// `did you mean `x`? <list> a, b, c`.
pub(crate) fn hint(given: &str, known: &[&str], list: &str) -> Option<String> {
    if known.is_empty() {
        return None;
    }
    let all = format!("{list} {}", known.join(", "));
    Some(match closest(given, known.iter().copied()) {
        Some(close) => format!("did you mean `{close}`? {all}"),
        None => all,
    })
}

/// The candidate that was probably meant.
pub(crate) fn closest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = given.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (similarity(&lower, &c.to_lowercase()), c))
        .filter(|(similarity, _)| *similarity >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

fn similarity(a: &str, b: &str) -> f64 {
    // Jaro-Winkler alone is blind for swapped letters in short words: `evn` is 0.6 from `env`.
    let one_slip = a.len() > 2 && strsim::osa_distance(a, b) == 1;
    strsim::jaro_winkler(a, b).max(if one_slip { 0.8 } else { 0.0 })
}

/// What serde's messages say; their wording is serde's, seen in `serde_core::de::Error`.
enum What<'a> {
    UnknownKey { key: &'a str, known: Vec<&'a str> },
    UnknownValue { value: &'a str, known: Vec<&'a str> },
    MissingKey(&'a str),
    Other,
}

impl<'a> What<'a> {
    fn parse(text: &'a str) -> Self {
        let quoted = |prefix: &str| {
            let rest = text.strip_prefix(prefix)?;
            let (name, rest) =
                rest.split_once("`, expected ").or_else(|| rest.split_once("`, there are no "))?;
            Some((name, rest.split('`').skip(1).step_by(2).collect()))
        };
        if let Some((key, known)) = quoted("unknown field `") {
            Self::UnknownKey { key, known }
        } else if let Some((value, known)) = quoted("unknown variant `") {
            Self::UnknownValue { value, known }
        } else if let Some(key) = text.strip_prefix("missing field `").and_then(|r| r.strip_suffix('`')) {
            Self::MissingKey(key)
        } else {
            Self::Other
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Says what is expected as the user knows it, not as Rust does. A text of the wrong type is not shown: it may be a
/// password where a reference to one belongs.
fn in_toml_words(text: &str) -> String {
    let Some((found, expected)) = text.rsplit_once(", expected ") else { return text.to_owned() };
    let found = if found.starts_with("invalid type: string ") { "invalid type: a text" } else { found };
    let word = match expected {
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "path string" => "a path",
        "f32" | "f64" => "a number",
        "i8" | "i16" | "i32" | "i64" | "isize" | "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        _ if expected.starts_with("struct ") => "a table",
        _ => expected,
    };
    format!("{found}, expected {word}")
}

/// A key as it stands in a dotted path: quoted if it must be.
pub(crate) fn quoted_key(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { format!("{key:?}") }
}

/// Parses the file itself: one line that says where in the text it is wrong.
pub(crate) fn parse_toml(text: &str) -> Result<toml::Table, ConfigError> {
    text.parse::<toml::Table>().map_err(|e| {
        let start = e.span().map(|span| span.start);
        let place = start.and_then(|start| text.get(..start)).map(|before| {
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
            format!("line {line}, column {column}")
        });
        let twice = e.span().filter(|_| e.message() == "duplicate key").and_then(|span| twice(text, span));
        let error = twice.unwrap_or_else(|| ConfigError::new(one_line(e.message())));
        match place {
            Some(place) => error.at(place),
            None => error,
        }
    })
}

/// Names what is there twice; `second` is where the second key stands.
fn twice(text: &str, second: Range<usize>) -> Option<ConfigError> {
    let key = text.get(second.clone())?;
    let line_start = text.get(..second.start)?.rfind('\n').map_or(0, |i| i + 1);
    let line = text.get(line_start..)?.lines().next()?.trim();
    let header = line.starts_with('[').then(|| header_path(line)).flatten().unwrap_or_default();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    Some(match header.as_slice() {
        ["services", name] => ConfigError::new(format!("there are two services named `{name}`"))
            .hint("each service needs a name of its own; several may be of the same kind"),
        ["intervals", name] => ConfigError::new(format!("there are two intervals named `{name}`")),
        [] => ConfigError::new(format!("the key `{}` is there twice", one_line(key))),
        _ => ConfigError::new(format!("the section `{line}` is there twice")),
    })
}

/// `[a."b c"]` as `a`, `b c`.
fn header_path(line: &str) -> Option<Vec<String>> {
    let mut table = line.parse::<toml::Table>().ok()?;
    let mut path = Vec::new();
    while let Some((key, value)) = table.into_iter().next() {
        path.push(key);
        match value {
            toml::Value::Table(inner) => table = inner,
            _ => return None,
        }
    }
    Some(path)
}
