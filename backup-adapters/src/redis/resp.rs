//! The protocol of Redis (RESP2), as far as a client of a few commands needs it.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest line, and the longest reply text: far more than any that is asked for.
const MAX_LINE: usize = 64 << 10;
const MAX_BULK: usize = 64 << 20;
const MAX_ITEMS: usize = 1 << 20;
const MAX_DEPTH: u8 = 8;

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// `+OK`
    Status(String),
    /// `-ERR …`
    Error(String),
    /// `:1`
    Int(i64),
    /// `$…`; `None` for null.
    Bulk(Option<Bytes>),
    /// `*…`; a null array is empty.
    Array(Vec<Self>),
}

impl Reply {
    /// The reply as text: a status, a bulk string or a number.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Status(text) => Some(text.clone()),
            Self::Bulk(Some(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Self::Int(n) => Some(n.to_string()),
            _ => None,
        }
    }

    /// The reply as a list; anything else is an empty one.
    pub(super) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }
}

/// The bytes of a command.
pub(super) fn encode(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an answer of Redis: {what}"))
}

/// Reads more into `buffer`.
pub(super) async fn fill<R: AsyncRead + Unpin>(from: &mut R, buffer: &mut BytesMut) -> io::Result<()> {
    if from.read_buf(buffer).await? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
    }
    Ok(())
}

/// The next line, without its end.
pub(super) async fn line<R: AsyncRead + Unpin>(from: &mut R, buffer: &mut BytesMut) -> io::Result<Bytes> {
    let mut searched = 0;
    loop {
        if let Some(at) = buffer.iter().skip(searched).position(|b| *b == b'\n') {
            let mut line = buffer.split_to(searched + at).freeze();
            buffer.advance(1);
            if line.last() == Some(&b'\r') {
                line.truncate(line.len() - 1);
            }
            return Ok(line);
        }
        searched = buffer.len();
        if searched > MAX_LINE {
            return Err(invalid("an endless line"));
        }
        fill(from, buffer).await?;
    }
}

/// The next reply.
pub(super) async fn reply<R: AsyncRead + Unpin + Send>(
    from: &mut R,
    buffer: &mut BytesMut,
) -> io::Result<Reply> {
    // Open arrays, innermost last: what is missing of each, and what is there.
    let mut open: Vec<(usize, Vec<Reply>)> = Vec::new();
    loop {
        let line = line(from, buffer).await?;
        let text = || String::from_utf8_lossy(line.get(1..).unwrap_or_default()).into_owned();
        let number = || text().parse::<i64>().map_err(|_| invalid("a length that is no number"));
        let mut done = match line.first() {
            Some(b'+') => Reply::Status(text()),
            Some(b'-') => Reply::Error(text()),
            Some(b':') => Reply::Int(number()?),
            Some(b'$') => match usize::try_from(number()?) {
                Err(_) => Reply::Bulk(None),
                Ok(len) if len > MAX_BULK => return Err(invalid("a huge text")),
                Ok(len) => {
                    while buffer.len() < len + 2 {
                        fill(from, buffer).await?;
                    }
                    let bulk = buffer.split_to(len).freeze();
                    buffer.advance(2);
                    Reply::Bulk(Some(bulk))
                }
            },
            Some(b'*') => match usize::try_from(number()?).unwrap_or(0) {
                0 => Reply::Array(Vec::new()),
                len if len > MAX_ITEMS || open.len() >= MAX_DEPTH.into() => {
                    return Err(invalid("a huge list"));
                }
                len => {
                    open.push((len, Vec::new()));
                    continue;
                }
            },
            _ => return Err(invalid("an unknown type")),
        };
        loop {
            let Some((missing, items)) = open.last_mut() else { return Ok(done) };
            items.push(done);
            *missing -= 1;
            if *missing > 0 {
                break;
            }
            done = Reply::Array(open.pop().map(|(_, items)| items).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parse(bytes: &[u8]) -> io::Result<Reply> {
        reply(&mut &*bytes, &mut BytesMut::new()).await
    }

    #[tokio::test]
    async fn replies_of_every_type_are_read() {
        assert_eq!(parse(b"+OK\r\n").await.unwrap(), Reply::Status("OK".into()));
        assert_eq!(parse(b"-ERR no\r\n").await.unwrap(), Reply::Error("ERR no".into()));
        assert_eq!(parse(b"$-1\r\n").await.unwrap(), Reply::Bulk(None));
        let nested = parse(b"*3\r\n:1\r\n*2\r\n$2\r\na\n\r\n*0\r\n+x\r\n").await.unwrap();
        let inner = Reply::Array(vec![Reply::Bulk(Some(Bytes::from("a\n"))), Reply::Array(vec![])]);
        assert_eq!(nested, Reply::Array(vec![Reply::Int(1), inner, Reply::Status("x".into())]));
    }

    #[tokio::test]
    async fn what_is_no_reply_or_is_cut_is_an_error() {
        for wrong in ["", "+OK", "$5\r\nab", "*2\r\n:1\r\n", "HTTP/1.1 400\r\n", "$99999999999\r\n", ":x\r\n"]
        {
            parse(wrong.as_bytes()).await.unwrap_err();
        }
    }

    #[test]
    fn commands_are_binary_safe() {
        assert_eq!(encode(&[b"A", b"x\r\ny"]), b"*2\r\n$1\r\nA\r\n$4\r\nx\r\ny\r\n");
    }
}
