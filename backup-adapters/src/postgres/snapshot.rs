//! A session that holds a snapshot open: what is counted in it is what a dump of the same snapshot holds.

use std::collections::BTreeMap;

use backup_core::runtime::Execution;
use backup_core::{AdapterError, AdapterErrorKind};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::poll_fn;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::facts::{Inside, count_sql, inside_sql, tables_sql};
use super::fault::Failure;
use super::link::{Link, ended, parse};

/// Rows by schema and table.
pub(super) type Rows = BTreeMap<(String, String), u64>;

/// The longest line that a session may answer, in bytes.
const MAX_LINE: usize = 256 << 20;

/// A session that waits for what to do.
pub(super) struct Session {
    link: Link,
    commands: mpsc::Sender<Bytes>,
    execution: Execution,
    pending: Vec<u8>,
    tables: Vec<(String, String)>,
}

impl Session {
    /// Opens a session on `database`, takes a snapshot and lends it out: the session, the snapshot's name, and what is in
    /// the database as it shows it.
    pub(super) async fn open(link: &Link, database: &str) -> Result<(Self, String, Inside), Failure> {
        let mut command = link.psql(database);
        command.argv.extend(["-f".to_owned(), "-".to_owned()]);
        let (commands, mut receiver) = mpsc::channel(4);
        let input = poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok).boxed();
        let execution = link.start(command.with_stdin(input)).await.map_err(|e| Failure::new(e, ""))?;
        let (link, pending, tables) = (link.clone(), Vec::new(), Vec::new());
        let mut session = Self { link, commands, execution, pending, tables };
        let jsonb = |sql: &str| format!("SELECT ({sql})::jsonb;\n");
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\nSET LOCAL statement_timeout = 0;\n\
             SET LOCAL idle_in_transaction_session_timeout = 0;\nSELECT pg_export_snapshot();\n";
        session.tell(format!("{begin}{}{}", jsonb(&inside_sql()), jsonb(&tables_sql()))).await;
        let (session, snapshot) = session.line().await?;
        if snapshot.is_empty() {
            let error = AdapterError::new(AdapterErrorKind::Other, "the server exports no snapshot");
            return Err(Failure::new(error, ""));
        }
        let (session, inside) = session.value::<Inside>().await?;
        let (mut session, tables) = session.value().await?;
        session.tables = tables;
        Ok((session, snapshot, inside))
    }

    /// A session that does not listen any more says why when it is read.
    async fn tell(&mut self, commands: String) {
        let _gone = self.commands.send(commands.into()).await;
    }

    async fn value<T: DeserializeOwned>(self) -> Result<(Self, T), Failure> {
        let (session, line) = self.line().await?;
        let value = parse(&line).map_err(|e| Failure::new(e, ""))?;
        Ok((session, value))
    }

    /// The next line that it answers.
    async fn line(mut self) -> Result<(Self, String), Failure> {
        let failed = |what: &str| Failure::new(AdapterError::new(AdapterErrorKind::Other, what), "");
        let mut searched = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', self.pending.get(searched..).unwrap_or_default()) {
                let line: Vec<u8> = self.pending.drain(..=searched + end).collect();
                let line = String::from_utf8(line).map_err(|_| failed("the server's answer is not UTF-8"))?;
                return Ok((self, line.trim_end_matches('\n').to_owned()));
            }
            searched = self.pending.len();
            match self.link.cx.within(self.execution.stdout.next()).await {
                Ok(Some(Ok(chunk))) if searched + chunk.len() <= MAX_LINE => {
                    self.pending.extend_from_slice(&chunk);
                }
                Ok(Some(Ok(_))) => return Err(failed("the server's answer is too long")),
                Ok(Some(Err(e))) => return Err(ended(e, self.execution).await),
                Ok(None) => return Err(failed("the session ended early")),
                Err(e) => return Err(Failure::new(e, "")),
            }
        }
    }

    /// Counts the rows of every table, one after the other on this one connection.
    pub(super) async fn count(mut self) -> Result<Rows, Failure> {
        let tables = std::mem::take(&mut self.tables);
        let mut rows = Rows::new();
        for (schema, table) in tables {
            self.tell(count_sql(&schema, &table)).await;
            let count: (String, String, u64);
            (self, count) = self.value().await?;
            rows.insert((count.0, count.1), count.2);
        }
        Ok(rows)
    }
}
