//! A client of Bolt, the protocol that every Neo4j speaks: versions 4.1 to 5.4, one query at a time.
//!
//! <https://neo4j.com/docs/bolt/current/bolt/message/>

use std::fmt;
use std::io;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, OpContext, Secret};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::packstream::Value;

/// How long the server may think about a query. Counts come from its own statistics.
const ANSWER: Duration = Duration::from_secs(60);

/// The longest answer to one query that we take.
const MAX_MESSAGE: usize = 16 << 20;

const MAGIC: [u8; 4] = [0x60, 0x60, 0xB0, 0x17];
/// 5.0 to 5.4, then 4.1 to 4.4: how many minor versions below, minor, major.
const VERSIONS: [u8; 16] = [0, 4, 4, 5, 0, 3, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0];

/// What a connection runs over.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that is logged in.
pub(super) struct Bolt {
    stream: Box<dyn Duplex>,
    /// What it leads to, for errors.
    server: String,
}

impl fmt::Debug for Bolt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bolt").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The answer to a query.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    fields: Vec<String>,
    rows: Vec<Vec<Value>>,
}

impl Rows {
    /// The texts of some columns of each row; what is no text is empty.
    pub(super) fn texts<const N: usize>(&self, fields: [&str; N]) -> Vec<[String; N]> {
        let at = fields.map(|field| self.fields.iter().position(|f| f == field));
        let of = |row: &Vec<Value>| {
            at.map(|at| at.and_then(|at| row.get(at)?.as_text()).unwrap_or_default().to_owned())
        };
        self.rows.iter().map(of).collect()
    }

    /// The one number that the answer consists of.
    pub(super) fn count(&self) -> Option<u64> {
        self.rows.first()?.first()?.as_count()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }
}

/// How to log in.
#[derive(Debug, Clone)]
pub(super) struct Login {
    pub(super) user: String,
    /// `None` for a server without logins.
    pub(super) password: Option<Secret>,
}

impl Login {
    fn pairs(&self) -> Vec<(String, Value)> {
        match &self.password {
            None => vec![("scheme".to_owned(), Value::text("none"))],
            Some(password) => vec![
                ("scheme".to_owned(), Value::text("basic")),
                ("principal".to_owned(), Value::text(self.user.as_str())),
                ("credentials".to_owned(), Value::text(password.expose())),
            ],
        }
    }
}

enum Answer {
    Success(Value),
    Record(Vec<Value>),
    Failure { code: String, message: String },
}

impl Bolt {
    /// Agrees on a version and logs in.
    ///
    /// # Errors
    /// `Unavailable` if what answers is no Neo4j; `PermissionDenied` if it does not let us in.
    pub(super) async fn open(
        cx: &OpContext,
        mut stream: Box<dyn Duplex>,
        server: String,
        login: &Login,
    ) -> Result<Self, AdapterError> {
        let greet = async {
            stream.write_all(&MAGIC).await?;
            stream.write_all(&VERSIONS).await?;
            stream.flush().await?;
            let mut agreed = [0; 4];
            stream.read_exact(&mut agreed).await?;
            Ok::<_, io::Error>(agreed)
        };
        let agreed = match cx.within(timeout(ANSWER, greet)).await? {
            Ok(Ok(agreed)) => agreed,
            Ok(Err(e)) => return Err(unavailable(&server, "does not answer").with_source(e)),
            Err(_) => return Err(unavailable(&server, "does not answer in time")),
        };
        let [0, 0, minor, major @ (4 | 5)] = agreed else {
            return Err(unavailable(&server, "does not speak Bolt 4 or 5"));
        };
        let mut bolt = Self { stream, server };
        let mut hello =
            vec![("user_agent".to_owned(), Value::text(concat!("backup/", env!("CARGO_PKG_VERSION"))))];
        let separate = (major, minor) >= (5, 1);
        if (major, minor) >= (5, 3) {
            let product = ("product".to_owned(), Value::text(concat!("backup/", env!("CARGO_PKG_VERSION"))));
            hello.push(("bolt_agent".to_owned(), Value::Map(vec![product])));
        }
        if !separate {
            hello.extend(login.pairs());
        }
        bolt.done(cx, 0x01, vec![Value::Map(hello)]).await?;
        if separate {
            bolt.done(cx, 0x6A, vec![Value::Map(login.pairs())]).await?;
        }
        Ok(bolt)
    }

    /// Runs one query in a database.
    ///
    /// # Errors
    /// `Unavailable`, `PermissionDenied`; `Unsupported` for what this server does not know; `Other`.
    pub(super) async fn query(
        &mut self,
        cx: &OpContext,
        database: &str,
        query: &str,
    ) -> Result<Rows, AdapterError> {
        self.query_with(cx, database, query, Vec::new()).await
    }

    /// The same, with parameters.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub(super) async fn query_with(
        &mut self,
        cx: &OpContext,
        database: &str,
        query: &str,
        parameters: Vec<(String, Value)>,
    ) -> Result<Rows, AdapterError> {
        let extra = vec![("db".to_owned(), Value::text(database))];
        let run = vec![Value::text(query), Value::Map(parameters), Value::Map(extra)];
        let told = self.done(cx, 0x10, run).await?;
        let fields = match told.get("fields") {
            Some(Value::List(names)) => {
                names.iter().map(|n| n.as_text().unwrap_or_default().to_owned()).collect()
            }
            _ => Vec::new(),
        };
        let mut rows = Rows { fields, rows: Vec::new() };
        let all = Value::Map(vec![("n".to_owned(), Value::Int(-1))]);
        self.send(cx, 0x3F, vec![all]).await?;
        loop {
            match self.receive(cx).await? {
                Answer::Record(row) => rows.rows.push(row),
                Answer::Success(_) => return Ok(rows),
                Answer::Failure { code, message } => return Err(self.failed(cx, &code, &message).await),
            }
        }
    }

    /// The first value of the first row that a query gives, which must not write. Without a database in that which is the
    /// server's default.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub(super) async fn first_value(
        &mut self,
        cx: &OpContext,
        database: Option<&str>,
        query: &str,
    ) -> Result<Option<String>, AdapterError> {
        let limit = cx.remaining().and_then(|left| i64::try_from(left.as_millis()).ok());
        let mut extra = vec![("mode".to_owned(), Value::text("r"))];
        extra.extend(limit.map(|ms| ("tx_timeout".to_owned(), Value::Int(ms.max(1)))));
        extra.extend(database.map(|name| ("db".to_owned(), Value::text(name))));
        self.done(cx, 0x10, vec![Value::text(query), Value::Map(Vec::new()), Value::Map(extra)]).await?;
        let mut first = None;
        // PULL of one row; then, should there be more, DISCARD of all of them.
        for (tag, rows) in [(0x3F, 1), (0x2F, -1)] {
            self.send(cx, tag, vec![Value::Map(vec![("n".to_owned(), Value::Int(rows))])]).await?;
            let told = loop {
                match self.receive(cx).await? {
                    Answer::Record(row) => first = row.first().and_then(Value::shown),
                    Answer::Success(told) => break told,
                    Answer::Failure { code, message } => return Err(self.failed(cx, &code, &message).await),
                }
            };
            if told.get("has_more") != Some(&Value::Bool(true)) {
                break;
            }
        }
        Ok(first)
    }

    /// Ends the connection.
    pub(super) async fn close(mut self, cx: &OpContext) {
        // It goes anyway.
        let _gone = self.send(cx, 0x02, Vec::new()).await;
        let _gone = timeout(Duration::from_secs(5), self.stream.shutdown()).await;
    }

    /// Sends a message that is answered by one.
    async fn done(&mut self, cx: &OpContext, tag: u8, fields: Vec<Value>) -> Result<Value, AdapterError> {
        self.send(cx, tag, fields).await?;
        match self.receive(cx).await? {
            Answer::Success(told) => Ok(told),
            Answer::Record(_) => Err(unavailable(&self.server, "answers out of order")),
            Answer::Failure { code, message } => Err(self.failed(cx, &code, &message).await),
        }
    }

    /// The error for a failure, after which the connection is usable again.
    async fn failed(&mut self, cx: &OpContext, code: &str, message: &str) -> AdapterError {
        use AdapterErrorKind as Kind;
        let kind = match code {
            _ if code.contains(".Security.") => Kind::PermissionDenied,
            "Neo.ClientError.Statement.SyntaxError" | "Neo.ClientError.Procedure.ProcedureNotFound" => {
                Kind::Unsupported
            }
            _ if code.contains(".General.DatabaseUnavailable") => Kind::Unavailable,
            _ => Kind::Other,
        };
        let line: Vec<&str> = message.split_whitespace().collect();
        let error = AdapterError::new(kind, format!("{} says: {} ({code})", self.server, line.join(" ")));
        // A connection that cannot be reset says so with the next query.
        let _next = Box::pin(async {
            self.send(cx, 0x0F, Vec::new()).await?;
            self.receive(cx).await
        })
        .await;
        error
    }

    async fn send(&mut self, cx: &OpContext, tag: u8, fields: Vec<Value>) -> Result<(), AdapterError> {
        let (mut message, mut out) = (Vec::new(), Vec::new());
        Value::Struct(tag, fields).write(&mut message);
        for chunk in message.chunks(usize::from(u16::MAX)) {
            out.extend(u16::try_from(chunk.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend(chunk);
        }
        out.extend([0, 0]);
        let sent = async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        };
        match cx.within(timeout(ANSWER, sent)).await? {
            Ok(sent) => {
                sent.map_err(|e| unavailable(&self.server, "does not listen any more").with_source(e))
            }
            Err(_) => Err(unavailable(&self.server, "does not listen")),
        }
    }

    async fn receive(&mut self, cx: &OpContext) -> Result<Answer, AdapterError> {
        let message = match cx.within(timeout(ANSWER, read_message(&mut self.stream))).await? {
            Ok(Ok(message)) => message,
            Ok(Err(e)) => {
                return Err(unavailable(&self.server, "broke the connection off").with_source(e));
            }
            Err(_) => return Err(unavailable(&self.server, "does not answer in time")),
        };
        let Value::Struct(tag, fields) = Value::read(&message)? else {
            return Err(unavailable(&self.server, "does not speak Bolt"));
        };
        let first = fields.into_iter().next();
        match (tag, first) {
            (0x70, told) => Ok(Answer::Success(told.unwrap_or(Value::Null))),
            (0x71, Some(Value::List(row))) => Ok(Answer::Record(row)),
            (0x7F, Some(why)) => {
                let text = |key| why.get(key).and_then(Value::as_text).unwrap_or_default().to_owned();
                Ok(Answer::Failure { code: text("code"), message: text("message") })
            }
            _ => Err(unavailable(&self.server, "answers out of order")),
        }
    }
}

async fn read_message(stream: &mut Box<dyn Duplex>) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let len = usize::from(stream.read_u16().await?);
        match len {
            // An empty chunk before a message keeps the connection alive.
            0 if message.is_empty() => {}
            0 => return Ok(message),
            _ if message.len() + len > MAX_MESSAGE => return Err(io::ErrorKind::InvalidData.into()),
            _ => {
                let start = message.len();
                message.resize(start + len, 0);
                stream.read_exact(message.get_mut(start..).unwrap_or_default()).await?;
            }
        }
    }
}

fn unavailable(server: &str, what: &str) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Unavailable, format!("{server} {what}"))
}
