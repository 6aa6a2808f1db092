//! The instance metadata service of EC2, version 2.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>: `spot/instance-action`
//! is there (200, JSON) once the instance will be interrupted, and 404 before; `events/recommendations/rebalance` likewise
//! when it is at a higher risk.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::imds::client::Client;
use aws_config::imds::client::error::ImdsError;
use backup_core::{AdapterError, AdapterErrorKind};
use chrono::{DateTime, Utc};
use serde::Deserialize;

const INSTANCE_ACTION: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";

const CONNECT: Duration = Duration::from_secs(1);
const READ: Duration = Duration::from_secs(2);
/// One question, with a new token before it.
const QUESTION: Duration = Duration::from_secs(4);

/// What happens to the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoticeKind {
    /// It ends, and with it what is on its own disks.
    Terminate,
    /// It stops, and may be started again.
    Stop,
    /// It hibernates, which begins at once: there are no two minutes.
    Hibernate,
}

impl fmt::Display for NoticeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
        })
    }
}

/// The notice that the instance is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// What happens.
    pub kind: NoticeKind,
    /// When, about; `None` if the notice does not say so in a way that can be read.
    pub time: Option<DateTime<Utc>>,
}

/// What the service says at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signals {
    /// The instance is interrupted.
    pub notice: Option<Notice>,
    /// The instance is at a higher risk of that, since this moment.
    pub rebalance: Option<DateTime<Utc>>,
}

/// A client of the service. Keeps its token, and renews it.
#[derive(Debug)]
pub struct Imds {
    client: Mutex<Client>,
    endpoint: Option<String>,
}

#[derive(Deserialize)]
struct Action {
    action: String,
    // The end is the end, whatever is said of its time.
    #[serde(default)]
    time: serde_json::Value,
}

#[derive(Deserialize)]
struct Recommendation {
    #[serde(rename = "noticeTime")]
    notice_time: DateTime<Utc>,
}

impl Imds {
    /// The service at `endpoint`, or where EC2 has it. Makes no contact.
    ///
    /// # Errors
    /// `InvalidConfig` for what is no URL.
    pub fn new(endpoint: Option<&str>) -> Result<Self, AdapterError> {
        Ok(Self { client: Mutex::new(client(endpoint)?), endpoint: endpoint.map(str::to_owned) })
    }

    /// Asks what happens to the instance.
    ///
    /// # Errors
    /// `Unavailable` if the service does not answer: **not** that there is no notice. `Corrupt` for an answer that cannot
    /// be understood.
    pub async fn look(&self) -> Result<Signals, AdapterError> {
        let notice = match self.get(INSTANCE_ACTION).await? {
            None => None,
            Some(text) => Some(notice(&text)?),
        };
        // The notice does not wait for what is less.
        let rebalance = match notice {
            Some(_) => None,
            None => self.get(REBALANCE).await?.map(|text| recommended(&text)).transpose()?,
        };
        Ok(Signals { notice, rebalance })
    }

    /// `None` if there is no such thing.
    async fn get(&self, path: &str) -> Result<Option<String>, AdapterError> {
        let place = self.endpoint.as_deref().unwrap_or("169.254.169.254");
        let known = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut answer = known.get(path).await;
        if matches!(&answer, Err(ImdsError::ErrorResponse(e)) if e.response().status().as_u16() == 401) {
            // The client keeps a token until it has expired by this host's clock, which may be wrong, and the service may
            // have begun anew: only another client asks for another token.
            let renewed = client(self.endpoint.as_deref())?;
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = renewed.clone();
            answer = renewed.get(path).await;
        }
        match answer {
            Ok(text) => Ok(Some(text.as_ref().to_owned())),
            Err(ImdsError::ErrorResponse(e)) if e.response().status().as_u16() == 404 => Ok(None),
            Err(ImdsError::ErrorResponse(e)) => {
                let status = e.response().status().as_u16();
                let what = format!("the instance metadata service at {place} answers {status} for {path}");
                Err(AdapterError::new(AdapterErrorKind::Unavailable, what))
            }
            Err(ImdsError::FailedToLoadToken(e)) => {
                let what = format!(
                    "the instance metadata service at {place} gives no token: is this an EC2 instance? In a container it needs a hop limit of 2 (`aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2`)"
                );
                Err(AdapterError::new(AdapterErrorKind::Unavailable, what)
                    .with_source(ImdsError::FailedToLoadToken(e)))
            }
            Err(e) => {
                let what = format!("the instance metadata service at {place} does not answer");
                Err(AdapterError::new(AdapterErrorKind::Unavailable, what).with_source(e))
            }
        }
    }
}

fn client(endpoint: Option<&str>) -> Result<Client, AdapterError> {
    let mut client = Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(READ)
        .operation_timeout(QUESTION)
        // The next look is the next attempt.
        .max_attempts(1);
    if let Some(endpoint) = endpoint {
        client = client.endpoint(endpoint).map_err(|e| {
            let what = format!("spot.metadata: `{endpoint}` is no URL such as http://169.254.169.254");
            AdapterError::new(AdapterErrorKind::InvalidConfig, what).with_source(e)
        })?;
    }
    Ok(client.build())
}

fn notice(text: &str) -> Result<Notice, AdapterError> {
    let odd =
        |why: String| AdapterError::corrupt(format!("the notice of the instance metadata service: {why}"));
    let action: Action = serde_json::from_str(text).map_err(|e| odd(e.to_string()))?;
    let kind = match action.action.as_str() {
        "stop" => NoticeKind::Stop,
        "hibernate" => NoticeKind::Hibernate,
        // Whatever else may come to mean the end: it does.
        _ => NoticeKind::Terminate,
    };
    let time = action.time.as_str().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
    Ok(Notice { kind, time: time.map(|time| time.to_utc()) })
}

fn recommended(text: &str) -> Result<DateTime<Utc>, AdapterError> {
    let read = serde_json::from_str::<Recommendation>(text);
    read.map(|r| r.notice_time)
        .map_err(|e| AdapterError::corrupt(format!("the rebalance recommendation: {e}")))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinSet;

    use super::*;

    #[test]
    fn notices_are_read_as_ec2_writes_them() {
        let read = notice(r#"{"action": "terminate", "time": "2017-09-18T08:22:00Z"}"#).unwrap();
        assert_eq!(
            (read.kind, read.time.unwrap().to_rfc3339().as_str()),
            (NoticeKind::Terminate, "2017-09-18T08:22:00+00:00")
        );
        assert_eq!(
            notice(r#"{"action":"hibernate","time":"2017-09-18T08:22:00Z"}"#).unwrap().kind,
            NoticeKind::Hibernate
        );
        for odd in ["", r#", "time": null"#, r#", "time": "soon""#, r#", "time": 17"#] {
            let read = notice(&format!(r#"{{"action": "terminate"{odd}}}"#)).unwrap();
            assert_eq!(read, Notice { kind: NoticeKind::Terminate, time: None }, "{odd}");
        }
        for none in ["<html>", "", "{}", "[]"] {
            assert!(notice(none).is_err(), "{none}");
        }
        assert!(recommended(r#"{"noticeTime":"2020-11-05T08:22:00Z"}"#).is_ok());
    }

    /// A service that does `what` with each connection; its URL.
    fn serving<F>(what: impl Fn(TcpStream) -> F + Send + 'static) -> (Imds, JoinSet<()>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let imds = Imds::new(Some(&format!("http://{}", listener.local_addr().unwrap()))).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (listener, mut connections) = (TcpListener::from_std(listener).unwrap(), JoinSet::new());
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(what(stream));
            }
        });
        (imds, tasks)
    }

    /// Reads requests, and gives tokens, until something else is asked for.
    async fn give_tokens(stream: &mut TcpStream) {
        let mut head = Vec::new();
        loop {
            if stream.read_buf(&mut head).await.is_ok_and(|n| n == 0) {
                std::future::pending::<()>().await;
            }
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            if !head.starts_with(b"PUT ") {
                return;
            }
            head.clear();
            let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 21600";
            let text = format!("HTTP/1.1 200 OK\r\n{ttl}\r\ncontent-length: 5\r\n\r\ntoken");
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    }

    /// How long a look took, by the clock that the timers go by, and what it said.
    async fn looked(imds: &Imds) -> (Duration, String) {
        let began = tokio::time::Instant::now();
        let e = imds.look().await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Unavailable, "{e}");
        (began.elapsed(), e.to_string())
    }

    #[track_caller]
    fn about(took: Duration, seconds: u64) {
        let wanted = Duration::from_secs(seconds);
        assert!(took >= wanted && took < wanted + Duration::from_millis(100), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_says_nothing_is_given_up_after_two_seconds() {
        let (imds, _service) = serving(|stream| async move {
            let _open = stream;
            std::future::pending::<()>().await;
        });
        let (took, said) = looked(&imds).await;
        about(took, 2);
        // What is wrong in nearly every container.
        assert!(said.contains("gives no token") && said.contains("hop limit of 2"), "{said}");

        // It gives a token, and then no answer.
        let (imds, _service) = serving(|mut stream| async move {
            give_tokens(&mut stream).await;
            std::future::pending::<()>().await;
        });
        let (took, said) = looked(&imds).await;
        about(took, 2);
        assert!(said.contains("does not answer") && !said.contains("hop limit"), "{said}");
    }

    /// Each byte in good time, and all of them together never.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_ends_is_given_up_after_four_seconds() {
        let (imds, _service) = serving(|mut stream| async move {
            give_tokens(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
            while stream.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        about(looked(&imds).await.0, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_takes_no_connection_is_given_up_after_one_second() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(1).unwrap();
        let address = full.local_addr().unwrap();
        // Nobody takes those that wait; with one more than there is room for, the next one gets no answer.
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300));
        let waiting: Vec<_> = std::iter::repeat_with(connect).take(8).map_while(Result::ok).collect();
        assert!(waiting.len() < 8, "the system takes as many as come");
        let imds = Imds::new(Some(&format!("http://{address}"))).unwrap();
        about(looked(&imds).await.0, 1);
    }
}
