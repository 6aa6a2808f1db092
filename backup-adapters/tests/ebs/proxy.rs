//! A man in the middle of a client and EC2: one request a connection, and a plan that says what happens to it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// What happens to a request.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Pass,
    /// EC2 does it, and nobody hears.
    LoseAnswer,
    /// EC2 refuses: code and words.
    Refuse(&'static str, &'static str),
    /// The answer says something else, at its first place or at all of them.
    Rewrite(&'static str, &'static str, usize),
    /// It comes to EC2 when the test has met it twice: to see it, and to let it go.
    Hold(Arc<Barrier>),
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    /// Ends with this.
    _clients: JoinSet<()>,
}

/// The action that a request asks for, e.g. `CreateSnapshots`.
fn action(body: &str) -> &str {
    body.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap_or_default()
}

impl Proxy {
    /// In front of `server`; `plan` gets the action and the whole body of each request.
    pub(crate) async fn start(
        server: SocketAddr,
        plan: impl FnMut(&str, &str) -> Fate + Send + 'static,
    ) -> Self {
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
                    let decide = |body: &str| {
                        lock(&log).push(body.to_owned());
                        lock(&plan)(action(body), body)
                    };
                    let _broken = serve(client, server, decide).await;
                });
            }
        });
        Self { address, seen, _clients: task }
    }

    /// The bodies of the requests of this action.
    pub(crate) fn seen(&self, wanted: &str) -> Vec<String> {
        lock(&self.seen).iter().filter(|body| action(body) == wanted).cloned().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    decide: impl FnOnce(&str) -> Fate,
) -> std::io::Result<()> {
    let (head, mut body) = read_head(&mut client).await?;
    let length = head
        .lines()
        .find_map(|l| l.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0);
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(());
        }
    }
    let fate = decide(&String::from_utf8_lossy(&body));
    if let Fate::Refuse(code, words) = fate {
        let text = format!(
            "<?xml version=\"1.0\"?><Response><Errors><Error><Code>{code}</Code><Message>{words}</Message></Error></Errors>\
             <RequestID>1</RequestID></Response>"
        );
        return answer(&mut client, "HTTP/1.1 400 Bad Request", &text).await;
    }
    if let Fate::Hold(gate) = &fate {
        gate.wait().await;
        gate.wait().await;
    }
    // One request a connection: the answer ends when it ends.
    let mut sent: String = head
        .lines()
        .filter(|l| !l.is_empty() && !l.to_ascii_lowercase().starts_with("connection:"))
        .fold(String::new(), |all, line| all + line + "\r\n");
    sent.push_str("connection: close\r\n\r\n");
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(sent.as_bytes()).await?;
    upstream.write_all(&body).await?;
    let mut got = Vec::new();
    upstream.read_to_end(&mut got).await?;
    match fate {
        Fate::LoseAnswer => Ok(()),
        Fate::Rewrite(from, to, times) => {
            let got = String::from_utf8_lossy(&got);
            let (head, text) = got.split_once("\r\n\r\n").unwrap_or_default();
            answer(&mut client, head.lines().next().unwrap_or_default(), &text.replacen(from, to, times))
                .await
        }
        _ => {
            client.write_all(&got).await?;
            client.shutdown().await
        }
    }
}

async fn answer(client: &mut TcpStream, status: &str, text: &str) -> std::io::Result<()> {
    let head = format!(
        "{status}\r\ncontent-type: text/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        text.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await
}

/// The head of a request, and what came after it.
async fn read_head(client: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
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
