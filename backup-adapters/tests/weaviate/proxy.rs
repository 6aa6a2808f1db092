//! A server between the adapter and Weaviate that answers some requests itself, or cuts them off.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What happens to a request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Pass,
    /// This status, with this body.
    Answer(u16, String),
    /// The connection closes in the middle of the answer.
    Cut,
    /// The server gets the request, and its answer is lost.
    Lose,
    /// Text in the answer is replaced.
    Replace(String, String),
}

type Rule = Box<dyn FnMut(&str) -> Fault + Send>;

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// First lines of what came.
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    /// Ends with this.
    _task: JoinSet<()>,
}

impl Proxy {
    /// `rule` decides by the first line of a request, e.g. `GET /v1/meta HTTP/1.1`.
    pub(crate) async fn start(server: &str, rule: impl FnMut(&str) -> Fault + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let server = server.trim_start_matches("http://").to_owned();
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(rule)));
        let list = Arc::clone(&seen);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (server, rule, list) = (server.clone(), Arc::clone(&rule), Arc::clone(&list));
                // One request a connection: broken ones are part of the game.
                connections.spawn(async move { serve(stream, &server, &rule, &list).await });
            }
        });
        Self { address, seen, _task: task }
    }
}

async fn serve(
    mut stream: TcpStream,
    server: &str,
    rule: &Mutex<Rule>,
    seen: &Mutex<Vec<String>>,
) -> Option<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 8192]);
    let head = loop {
        if let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut buffer).await.ok()? {
            0 => return None,
            n => request.extend_from_slice(&buffer[..n]),
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let length =
        text.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    while request.len() < head + length.unwrap_or(0) {
        let n = stream.read(&mut buffer).await.ok()?;
        request.extend_from_slice(&buffer[..n]);
    }
    let first = text.lines().next().unwrap_or_default().to_owned();
    seen.lock().unwrap().push(first.clone());
    let fault = (rule.lock().unwrap())(&first);
    if let Fault::Answer(status, body) = fault {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.ok()?;
        return stream.shutdown().await.ok();
    }
    // The server shall close, too, so that its answer has an end.
    let asked = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let mut there = TcpStream::connect(server).await.ok()?;
    there.write_all(asked.as_bytes()).await.ok()?;
    there.write_all(&request[head..]).await.ok()?;
    let mut answer = Vec::new();
    there.read_to_end(&mut answer).await.ok()?;
    match fault {
        Fault::Cut => answer.truncate(answer.len() - answer.len() / 3),
        Fault::Lose => answer.clear(),
        Fault::Replace(from, to) => {
            let text = String::from_utf8_lossy(&answer).replace(&from, &to);
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            let kept: Vec<&str> =
                head.lines().filter(|l| !l.to_lowercase().starts_with("content-length")).collect();
            answer =
                format!("{}\r\nContent-Length: {}\r\n\r\n{body}", kept.join("\r\n"), body.len()).into_bytes();
        }
        _ => {}
    }
    stream.write_all(&answer).await.ok()?;
    stream.shutdown().await.ok()
}
