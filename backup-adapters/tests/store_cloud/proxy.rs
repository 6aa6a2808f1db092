//! A man in the middle: one request a connection, and a plan that says what happens to it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What happens to a request.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Pass,
    /// It goes on without this header.
    Strip(&'static str),
    /// One bit of its body is another one when it arrives.
    Alter,
    /// It goes on with these lines in the place of these headers, as far as it has them.
    Swap(&'static [(&'static str, &'static str)]),
    /// It never reaches the server, which did not get all of its body.
    CutRequest,
    /// The server does it, and nobody hears.
    LoseAnswer,
    /// Half of the answer's body comes.
    CutAnswer,
    /// Another answer: status line and body.
    Say(&'static str, String),
}

/// `GET /bucket/key?query`, in one line, and all headers.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) head: String,
}

impl Asked {
    pub(crate) fn is(&self, method: &str) -> bool {
        self.line.split(' ').next() == Some(method)
    }

    /// Of the upload by which a server is tried.
    pub(crate) fn is_trial(&self) -> bool {
        self.line.contains(".try?")
    }

    /// A part of an upload, its beginning, its end, or its abortion.
    pub(crate) fn step(&self) -> Option<&'static str> {
        if self.is_trial() {
            return None;
        }
        let upload = self.line.contains("uploadId=");
        Some(match self.line.split(' ').next()? {
            "POST" if self.line.contains("uploads") => "begin",
            "PUT" if upload => "part",
            "POST" if upload => "complete",
            "DELETE" if upload => "abort",
            _ => return None,
        })
    }
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    /// Ends with this.
    _clients: JoinSet<()>,
}

impl Proxy {
    /// In front of `server`; `plan` decides each request.
    pub(crate) async fn start(server: SocketAddr, plan: impl FnMut(&Asked) -> Fate + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, plan) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(plan)));
        let log = Arc::clone(&seen);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (log, plan) = (Arc::clone(&log), Arc::clone(&plan));
                // What a client or the server breaks off is broken off.
                clients.spawn(async move {
                    let decide = |asked: &Asked| {
                        lock(&log).push(asked.line.clone());
                        lock(&plan)(asked)
                    };
                    let _broken = serve(client, server, decide).await;
                });
            }
        });
        Self { address, seen, _clients: task }
    }

    /// How many requests came for which `of` holds.
    pub(crate) fn seen(&self, of: impl Fn(&str) -> bool) -> usize {
        lock(&self.seen).iter().filter(|line| of(line)).count()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    decide: impl FnOnce(&Asked) -> Fate,
) -> std::io::Result<()> {
    let (head, mut rest) = head(&mut client).await?;
    let line = head.lines().next().unwrap_or_default().to_owned();
    let asked = Asked { line, head };
    let fate = decide(&asked);
    let length = header(&asked.head, "content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let dropped = [if let Fate::Strip(name) = fate { (name, "") } else { ("", "") }];
    let swapped = if let Fate::Swap(headers) = fate { headers } else { &dropped };
    let mut sent = asked.line.clone();
    for header in asked.head.lines().skip(1).filter(|line| !line.is_empty()) {
        let name = header.split(':').next().unwrap_or_default();
        let swap = swapped.iter().find(|(old, _)| name.eq_ignore_ascii_case(old));
        let header = swap.map_or(header, |(_, new)| new);
        if !name.eq_ignore_ascii_case("connection") && !header.is_empty() {
            sent.push_str("\r\n");
            sent.push_str(header);
        }
    }
    // One request a connection: the answer ends when it ends.
    sent.push_str("\r\nconnection: close\r\n\r\n");
    while rest.len() < length {
        if client.read_buf(&mut rest).await? == 0 {
            return Ok(());
        }
    }
    if let Fate::Say(status, body) = &fate {
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        client.write_all(head.as_bytes()).await?;
        // To HEAD no body is sent.
        let body = if asked.is("HEAD") { "" } else { body };
        client.write_all(body.as_bytes()).await?;
        return client.shutdown().await;
    }
    let mut server = TcpStream::connect(server).await?;
    server.write_all(sent.as_bytes()).await?;
    if matches!(fate, Fate::CutRequest) {
        return server.write_all(rest.get(..rest.len() / 2).unwrap_or_default()).await;
    }
    if let (Fate::Alter, Some(last)) = (&fate, rest.last_mut()) {
        *last ^= 1;
    }
    server.write_all(&rest).await?;
    let mut answer = Vec::new();
    match fate {
        Fate::LoseAnswer => drop(server.read_to_end(&mut answer).await?),
        Fate::CutAnswer => {
            server.read_to_end(&mut answer).await?;
            let begin = answer.windows(4).position(|at| at == b"\r\n\r\n").map_or(0, |at| at + 4);
            client.write_all(answer.get(..begin.midpoint(answer.len())).unwrap_or_default()).await?;
        }
        _ => drop(tokio::io::copy(&mut server, &mut client).await?),
    }
    client.shutdown().await
}

/// The head of a request, and what came after it.
async fn head(client: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|at| at == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
