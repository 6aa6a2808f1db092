//! A port that plays the primary of one server for as long as it takes to hand over one RDB file.
//!
//! The protocol is that of replication (<https://redis.io/docs/latest/operate/oss_and_stack/management/replication/>): the
//! server connects, says `PING`, `AUTH`, `REPLCONF …` and `PSYNC`, and gets `+FULLRESYNC <id> 0`, a length and the file.
//!
//! What is handed over is a whole database. So the port is bound to the narrowest address, and whoever connects gets
//! nothing before it sent the password that only the server knows: its `masterauth`, set by us for this one time.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, Secret};
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::resp;

/// How long one that connected may take until it asks for the data.
const HANDSHAKE_TIME: Duration = Duration::from_secs(20);

/// How long the server may take in no bytes. It may write them to a slow disk.
const STALL_TIME: Duration = Duration::from_secs(120);

/// Strangers that may be connected at a time; more have to wait.
const MAX_PEERS: usize = 16;

/// Limits of what a stranger may send.
const MAX_ARGS: usize = 16;
const MAX_ARG: usize = 4096;

const READ_BYTES: usize = 1 << 20;

/// Who may have the data.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    /// The addresses that the server connects from; `None` for a port that only this host can reach.
    pub(super) sources: Option<Vec<IpAddr>>,
    /// What it has to send as password.
    pub(super) password: Secret,
}

/// The port.
#[derive(Debug)]
pub(super) struct Primary {
    listener: TcpListener,
    address: SocketAddr,
    admission: Admission,
}

fn failed(what: impl Into<String>, error: io::Error) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Unavailable, what).with_source(error)
}

impl Primary {
    /// Binds a free port of `ip`.
    pub(super) async fn bind(ip: IpAddr, admission: Admission) -> Result<Self, AdapterError> {
        let bind = async {
            let listener = TcpListener::bind((ip, 0)).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) =
            bind.await.map_err(|e| failed(format!("cannot open a port at {ip} for the server"), e))?;
        Ok(Self { listener, address, admission })
    }

    /// Where the server finds it.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the server asks for the data. Strangers are turned away meanwhile, and cannot keep it out.
    pub(super) async fn admit(&self) -> Result<Replica, AdapterError> {
        let mut peers = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if peers.len() < MAX_PEERS => {
                    let (stream, from) = accepted.map_err(|e| failed("the port for the server failed", e))?;
                    if self.admission.sources.as_ref().is_none_or(|s| s.contains(&from.ip().to_canonical())) {
                        peers.push(timeout(HANDSHAKE_TIME, self.handshake(stream)));
                    }
                }
                Some(met) = peers.next() => {
                    // One that broke off, was too slow or had no password: the server itself tries again.
                    if let Ok(Ok(replica)) = met {
                        return Ok(replica);
                    }
                }
            }
        }
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<Replica> {
        stream.set_nodelay(true)?;
        let mut replica = Replica { stream, buffer: BytesMut::new() };
        let mut known = false;
        loop {
            let args = replica.command().await?;
            let word = |n: usize| args.get(n).map(|a: &Bytes| a.to_ascii_uppercase()).unwrap_or_default();
            let answer: &[u8] = match word(0).as_slice() {
                b"PING" => b"+PONG\r\n",
                b"AUTH" => {
                    let sent = args.last().filter(|_| args.len() > 1).map(Bytes::as_ref).unwrap_or_default();
                    known = same(sent, self.admission.password.expose().as_bytes());
                    if known { b"+OK\r\n" } else { b"-WRONGPASS\r\n" }
                }
                _ if !known => b"-NOAUTH\r\n",
                b"REPLCONF" => b"+OK\r\n",
                b"PSYNC" => return Ok(replica),
                _ => b"-ERR unknown command\r\n",
            };
            replica.stream.write_all(answer).await?;
            if answer.starts_with(b"-WRONGPASS") || answer.starts_with(b"-NOAUTH") {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
        }
    }
}

/// Compares in a time that does not tell where the first difference is.
fn same(sent: &[u8], expected: &[u8]) -> bool {
    let differences = sent.iter().zip(expected).fold(0, |sum, (a, b)| sum | (a ^ b));
    sent.len() == expected.len() && differences == 0
}

/// The server, as it asks for the data.
#[derive(Debug)]
pub(super) struct Replica {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Replica {
    /// The next command; empty lines are signs of life.
    async fn command(&mut self) -> io::Result<Vec<Bytes>> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let count = loop {
            let line = resp::line(&mut self.stream, &mut self.buffer).await?;
            if !line.is_empty() {
                break length(&line, b'*', MAX_ARGS).ok_or_else(|| invalid("no command"))?;
            }
        };
        let mut args = Vec::with_capacity(count);
        for _ in 0..count {
            let line = resp::line(&mut self.stream, &mut self.buffer).await?;
            let len = length(&line, b'$', MAX_ARG).ok_or_else(|| invalid("no argument"))?;
            while self.buffer.len() < len + 2 {
                resp::fill(&mut self.stream, &mut self.buffer).await?;
            }
            args.push(self.buffer.split_to(len).freeze());
            self.buffer.advance(2);
        }
        Ok(args)
    }

    /// Hands over `file`, which then is the beginning of the history that `id` (40 hex digits) names.
    pub(super) async fn send(&mut self, id: &str, path: &Path) -> Result<(), AdapterError> {
        let unreadable = {
            let what = format!("cannot read `{}`", path.display());
            move |e| AdapterError::io(what.clone(), e)
        };
        let (mut file, len) = open(path).await.map_err(&unreadable)?;
        self.write(format!("+FULLRESYNC {id} 0\r\n${len}\r\n").as_bytes()).await?;
        let (mut left, mut chunk) = (len, vec![0; READ_BYTES]);
        while left > 0 {
            let read;
            (read, file, chunk) = read_chunk(file, chunk, left).await.map_err(&unreadable)?;
            self.write(chunk.get(..read).unwrap_or_default()).await?;
            left -= read as u64;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        match timeout(STALL_TIME, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(failed("the server broke off while it was given the data", e)),
            Err(_) => {
                let what = format!("the server took in no data for {} s", STALL_TIME.as_secs());
                Err(AdapterError::new(AdapterErrorKind::Timeout, what))
            }
        }
    }

    /// Keeps the connection until the server closes it.
    pub(super) async fn closed(&mut self) {
        let mut ignored = [0; 1024];
        // An error is an end, too.
        while matches!(self.stream.read(&mut ignored).await, Ok(n) if n > 0) {}
    }
}

fn length(line: &[u8], mark: u8, max: usize) -> Option<usize> {
    let digits = line.strip_prefix(&[mark])?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|n| *n <= max)
}

async fn open(path: &Path) -> io::Result<(File, u64)> {
    let path = PathBuf::from(path);
    let opened = spawn_blocking(move || {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok((file, len))
    });
    opened.await.map_err(io::Error::other)?
}

/// Reads at least one byte, at most `left`.
async fn read_chunk(file: File, chunk: Vec<u8>, left: u64) -> io::Result<(usize, File, Vec<u8>)> {
    let read = spawn_blocking(move || {
        let (mut file, mut chunk) = (file, chunk);
        let room = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = file.read(chunk.get_mut(..room).unwrap_or_default())?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        Ok((read, file, chunk))
    });
    read.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ID: &str = "0123456789012345678901234567890123456789";

    async fn primary(sources: Option<Vec<IpAddr>>) -> Primary {
        let admission = Admission { sources, password: Secret::new("only-the-server") };
        Primary::bind(Ipv4Addr::LOCALHOST.into(), admission).await.unwrap()
    }

    async fn talk(at: SocketAddr, commands: &[&[&str]]) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(at).await.unwrap();
        for command in commands {
            let args: Vec<&[u8]> = command.iter().map(|a| a.as_bytes()).collect();
            // A port that turned us away answers nothing more.
            let _closed = stream.write_all(&resp::encode(&args)).await;
        }
        let mut answer = vec![0; 4096];
        let mut len = 0;
        while let Ok(Ok(n)) = timeout(Duration::from_millis(300), stream.read(&mut answer[len..])).await {
            if n == 0 {
                break;
            }
            len += n;
        }
        (stream, String::from_utf8_lossy(&answer[..len]).into_owned())
    }

    #[tokio::test]
    async fn strangers_get_nothing_and_do_not_keep_the_server_out() {
        let primary = primary(None).await;
        let at = primary.address();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"the data").unwrap();
        let serve = async {
            let mut replica = primary.admit().await.unwrap();
            replica.send(ID, file.path()).await.unwrap();
        };
        let meet = async {
            let _idle = TcpStream::connect(at).await.unwrap();
            for stranger in [
                &[&["PSYNC", "?", "-1"][..]][..],
                &[&["AUTH", "guess"], &["PSYNC", "?", "-1"]],
                &[&["AUTH"], &["PSYNC", "?", "-1"]],
                &[&["AUTH", "only-the-server", ""], &["PSYNC", "?", "-1"]],
                &[&["SYNC"]],
                &[&["REPLCONF", "listening-port", "6379"]],
            ] {
                let (_, said) = talk(at, stranger).await;
                assert!(!said.contains("FULLRESYNC") && !said.contains("the data"), "{said}");
            }
            let server: &[&[&str]] = &[
                &["PING"],
                &["AUTH", "user", "only-the-server"],
                &["REPLCONF", "capa", "eof"],
                &["PSYNC", "?", "-1"],
            ];
            talk(at, server).await.1
        };
        let ((), said) = tokio::join!(serve, meet);
        assert_eq!(said, format!("+PONG\r\n+OK\r\n+OK\r\n+FULLRESYNC {ID} 0\r\n$8\r\nthe data"));
    }

    #[tokio::test]
    async fn another_address_is_not_even_listened_to() {
        let primary = primary(Some(vec![Ipv4Addr::new(192, 0, 2, 1).into()])).await;
        let at = primary.address();
        let admit = timeout(Duration::from_secs(2), primary.admit());
        let (admitted, (_, said)) =
            tokio::join!(admit, talk(at, &[&["PING"], &["AUTH", "only-the-server"], &["PSYNC", "?", "-1"]]));
        assert!(admitted.is_err(), "it was admitted");
        assert_eq!(said, "");
    }
}
