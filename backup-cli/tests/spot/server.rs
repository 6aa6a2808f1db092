//! An instance metadata service that speaks version 2 of its protocol, and an ntfy server beside it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub(crate) struct Says {
    /// The answer to `spot/instance-action`, if there is one.
    pub(crate) notice: Option<String>,
    pub(crate) rebalance: Option<String>,
    /// The token that counts; any other is answered with 401.
    token: u32,
    /// Its id, its region, and the keys that its role has.
    pub(crate) instance: Option<[String; 3]>,
    /// It takes connections and says nothing.
    pub(crate) silent: bool,
    /// `METHOD path`, in order, with what was said to it.
    pub(crate) asked: Vec<String>,
    /// What was posted, and the header `Authorization`.
    pub(crate) posted: Vec<(serde_json::Value, String)>,
}

/// It ends with the process: nothing of it is left anywhere.
pub(crate) struct Server {
    pub(crate) url: String,
    says: Arc<Mutex<Says>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let says = Arc::new(Mutex::new(Says::default()));
        let shared = Arc::clone(&says);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream.unwrap(), &shared));
            }
        });
        Self { url, says }
    }

    pub(crate) fn says<T>(&self, change: impl FnOnce(&mut Says) -> T) -> T {
        change(&mut self.says.lock().unwrap())
    }

    /// No token that was given so far counts any more.
    pub(crate) fn expire(&self) {
        self.says(|s| s.token += 1);
    }

    pub(crate) fn asked(&self, what: &str) -> usize {
        self.says(|s| s.asked.iter().filter(|a| a.as_str() == what).count())
    }
}

fn serve(stream: TcpStream, says: &Mutex<Says>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = Vec::new();
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
            head.push(line.trim_end().to_owned());
            line.clear();
        }
        let Some(first) = head.first() else { return };
        let header = |name: &str| {
            let found =
                head.iter().find_map(|h| h.split_once(':').filter(|(k, _)| k.eq_ignore_ascii_case(name)));
            found.map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
        };
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body).unwrap();
        let words: Vec<&str> = first.split(' ').collect();
        let what = format!("{} {}", words[0], words[1]);
        let mut says = says.lock().unwrap();
        if says.silent {
            drop(says);
            // Until the client gives up.
            let _ended = reader.read_line(&mut line);
            return;
        }
        let token = format!("token-{}", says.token);
        let right = header("x-aws-ec2-metadata-token") == token;
        let (status, answer) = match (words[0], words[1].strip_prefix("/latest").unwrap_or_default()) {
            ("PUT", "/api/token") if !header("x-aws-ec2-metadata-token-ttl-seconds").is_empty() => {
                (200, token)
            }
            ("GET", _) if !right => (401, String::new()),
            ("GET", "/meta-data/spot/instance-action") => found(says.notice.as_ref()),
            ("GET", "/meta-data/events/recommendations/rebalance") => found(says.rebalance.as_ref()),
            ("GET", path) if let Some([id, region, keys]) = &says.instance => match path {
                "/meta-data/instance-id" => (200, id.clone()),
                "/meta-data/placement/region" => (200, region.clone()),
                "/meta-data/iam/security-credentials/" => (200, "backup-role".to_owned()),
                "/meta-data/iam/security-credentials/backup-role" => (200, keys.clone()),
                _ => (404, String::new()),
            },
            ("POST", _) => {
                says.posted.push((serde_json::from_slice(&body).unwrap(), header("authorization")));
                (200, "{}".to_owned())
            }
            _ => (404, String::new()),
        };
        says.asked.push(format!("{what} {status}"));
        let ttl = if words[0] == "PUT" { "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n" } else { "" };
        let length = answer.len();
        let text = format!("HTTP/1.1 {status} So\r\n{ttl}content-length: {length}\r\n\r\n{answer}");
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

fn found(text: Option<&String>) -> (u16, String) {
    text.map_or((404, String::new()), |text| (200, text.clone()))
}
