//! Questions: one command each, of those that only read, as one types it into `redis-cli`.
//!
//! `EXISTS config:version`, `HGET "user 1" name`; `5: LLEN queue` asks database 5. The server itself tells which commands only
//! read: scripts and whatever changes anything are refused before they are sent.

use backup_core::{AdapterError, AdapterErrorKind, OpContext, RestoreTarget};

use super::conn::{Conn, Server};
use super::elsewhere;
use super::resp::Reply;

/// Asks what a restore made.
pub(super) async fn ask(
    server: &Server,
    cx: &OpContext,
    target: &RestoreTarget,
    question: &str,
) -> Result<Option<String>, AdapterError> {
    match target {
        RestoreTarget::Live => of_server(server, cx, question).await,
        RestoreTarget::Scratch(scratch) => {
            let (_, answers) = elsewhere::load(server, cx, &scratch.dir, &[question.to_owned()]).await?;
            answers.into_iter().next().unwrap_or(Ok(None))
        }
        _ => Err(AdapterError::unsupported("no server runs in a directory")),
    }
}

/// Asks a server that runs.
pub(super) async fn of_server(
    server: &Server,
    cx: &OpContext,
    question: &str,
) -> Result<Option<String>, AdapterError> {
    let (database, command) = parts(question);
    let words = words(command).ok_or_else(|| wrong("a quote in it has no end"))?;
    let Some(name) = words.first() else { return Err(wrong("it has no command")) };
    let mut conn = server.connect(cx).await?;
    refuse_writes(&mut conn, cx, name, words.get(1)).await?;
    if let Some(database) = database {
        answered(conn.call(cx, &["SELECT", database]).await)?;
    }
    let args: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(first(&answered(conn.call(cx, &args).await)?))
}

/// The kind that says that nobody can be asked is not for a question that the server does not know.
fn answered(reply: Result<Reply, AdapterError>) -> Result<Reply, AdapterError> {
    reply.map_err(|e| match e.kind() {
        AdapterErrorKind::Unsupported => AdapterError::new(AdapterErrorKind::Other, e.to_string()),
        _ => e,
    })
}

fn wrong(what: &str) -> AdapterError {
    AdapterError::new(AdapterErrorKind::InvalidConfig, what)
}

/// Lets only those commands pass that the server marks as reading ones. Of a command with subcommands each is marked on
/// its own since 7.0.
async fn refuse_writes(
    conn: &mut Conn,
    cx: &OpContext,
    name: &str,
    second: Option<&String>,
) -> Result<(), AdapterError> {
    let told = answered(conn.call(cx, &["COMMAND", "INFO", name]).await)?;
    let whole = told.items().first().filter(|i| !i.items().is_empty());
    let Some(whole) = whole else {
        return Err(wrong(&format!("the server has no command `{}`", name.escape_debug())));
    };
    let mut reads = only_reads(whole);
    if let (false, Some(second)) = (reads, second) {
        let sub = format!("{name}|{second}");
        if let Reply::Array(told) = conn.ask(cx, &["COMMAND", "INFO", &sub]).await? {
            reads = told.first().is_some_and(only_reads);
        }
    }
    if reads {
        return Ok(());
    }
    Err(wrong(&format!("`{}` is no command that only reads, and is not sent", name.to_uppercase())))
}

/// `info`: name, arity, flags, ….
fn only_reads(info: &Reply) -> bool {
    let flags: Vec<String> =
        info.items().get(2).map(Reply::items).unwrap_or_default().iter().filter_map(Reply::text).collect();
    flags.iter().any(|f| f == "readonly") && !flags.iter().any(|f| f == "write")
}

/// The first value of an answer; of lists the first of the first.
fn first(reply: &Reply) -> Option<String> {
    match reply {
        Reply::Array(items) => items.first().and_then(first),
        other => other.text(),
    }
}

/// The database that a question names, and the command.
fn parts(question: &str) -> (Option<&str>, &str) {
    let question = question.trim();
    match question.split_once(':') {
        Some((number, command))
            if !number.is_empty()
                && number.bytes().all(|b| b.is_ascii_digit())
                && command.starts_with(char::is_whitespace) =>
        {
            (Some(number), command)
        }
        _ => (None, question),
    }
}

/// Words between white space. In quotes there may be some: in double ones `\` takes the next character as it is.
/// `None` for a quote without an end.
fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut current: Option<String> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let word = current.get_or_insert_default();
                loop {
                    match chars.next()? {
                        end if end == c => break,
                        '\\' if c == '"' => word.push(chars.next()?),
                        other => word.push(other),
                    }
                }
            }
            c if c.is_whitespace() => words.extend(current.take()),
            c => current.get_or_insert_default().push(c),
        }
    }
    words.extend(current);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_in_a_shell() {
        let split = |text| words(text).map(|w| w.join("|"));
        assert_eq!(split("GET  a:b\n").unwrap(), "GET|a:b");
        assert_eq!(split(r#"HGET "user \"1\"" 'it "is"' """#).unwrap(), r#"HGET|user "1"|it "is"|"#);
        assert_eq!(split("GET x' 'y").unwrap(), "GET|x y");
        assert_eq!(split("  ").unwrap(), "");
        assert_eq!(split("GET 'x"), None);
        assert_eq!(split("GET \"x\\"), None);
    }

    #[test]
    fn a_number_in_front_is_the_database() {
        assert_eq!(parts(" 5: LLEN queue"), (Some("5"), " LLEN queue"));
        assert_eq!(parts("EXISTS config:version"), (None, "EXISTS config:version"));
        assert_eq!(parts("5:x"), (None, "5:x"));
    }

    #[test]
    fn the_first_value_of_lists_counts() {
        let list = |items| Reply::Array(items);
        assert_eq!(first(&list(vec![list(vec![Reply::Int(3)]), Reply::Int(4)])).unwrap(), "3");
        assert_eq!(first(&list(vec![])), None);
        assert_eq!(first(&Reply::Bulk(None)), None);
        assert_eq!(first(&Reply::Status("OK".into())).unwrap(), "OK");
    }
}
