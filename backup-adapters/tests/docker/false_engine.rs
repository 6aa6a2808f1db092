//! A false engine, for what a real one cannot be made to do: streams cut or damaged at a chosen place, wrong answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_adapters::runtime::DockerRuntime;
use backup_core::AdapterErrorKind;
use backup_core::runtime::ExecCommand;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::failure;

/// One thing that a program's stream does.
#[derive(Debug, Clone)]
enum Does {
    /// A frame of the engine's: on standard output (1) or standard error (2). `NONCE` stands for the wrapper's.
    Frame(u8, &'static str),
    /// Bytes without a frame.
    Raw(&'static [u8]),
    /// Waits for the client to let the wrapper go.
    AwaitRelease,
    /// The container stops.
    Stop,
    /// Breaks the connection.
    Cut,
}

#[derive(Debug)]
struct Engine {
    script: Vec<Does>,
    exec_state: &'static str,
    stopped: AtomicBool,
    requests: Mutex<Vec<String>>,
}

struct Running {
    runtime: DockerRuntime,
    engine: Arc<Engine>,
    _tasks: JoinSet<()>,
}

async fn engine(script: &[Does], exec_state: &'static str) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let engine = Arc::new(Engine {
        script: script.to_vec(),
        exec_state,
        stopped: AtomicBool::new(false),
        requests: Mutex::default(),
    });
    let serving = Arc::clone(&engine);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let engine = Arc::clone(&serving);
            connections.spawn(async move { engine.serve(connection).await });
        }
    });
    Running { runtime: DockerRuntime::new("svc").with_engine(url), engine, _tasks: tasks }
}

impl Engine {
    async fn serve(&self, mut connection: TcpStream) -> Option<()> {
        let (head, body) = request(&mut connection).await?;
        self.requests.lock().unwrap().push(format!("{head}{body}"));
        let target = head.split(' ').nth(1)?.to_owned();
        let answer = if target.ends_with("/version") {
            r#"{"ApiVersion":"1.41","Version":"20.10.24"}"#
        } else if target.ends_with("/containers/svc/json")
            || target.contains("/containers/0123") && target.ends_with("/json")
        {
            if self.stopped.load(Ordering::SeqCst) { STOPPED } else { RUNS }
        } else if target.ends_with("/exec") {
            r#"{"Id":"e1"}"#
        } else if target.ends_with("/exec/e1/json") {
            self.exec_state
        } else if target.ends_with("/exec/e1/start") && head.contains("Upgrade") {
            return self.play(connection).await;
        } else {
            ""
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        connection.write_all(format!("{head}{answer}").as_bytes()).await.ok()
    }

    async fn play(&self, mut connection: TcpStream) -> Option<()> {
        let nonce = {
            let requests = self.requests.lock().unwrap();
            let created = requests.iter().find(|r| r.contains("/exec HTTP")).unwrap();
            let words: serde_json::Value = serde_json::from_str(created.split_once("\r\n\r\n")?.1).unwrap();
            words["Cmd"][4].as_str()?.to_owned()
        };
        let head = "HTTP/1.1 101 UPGRADED\r\ncontent-type: application/vnd.docker.raw-stream\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n";
        connection.write_all(head.as_bytes()).await.ok()?;
        for does in &self.script {
            match does {
                Does::Frame(stream, text) => {
                    let text = text.replace("NONCE", &nonce);
                    let mut frame = vec![*stream, 0, 0, 0];
                    frame.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                    frame.extend_from_slice(text.as_bytes());
                    connection.write_all(&frame).await.ok()?;
                }
                Does::Raw(bytes) => connection.write_all(bytes).await.ok()?,
                Does::AwaitRelease => {
                    let mut said = Vec::new();
                    connection.read_to_end(&mut said).await.ok()?;
                    assert_eq!(said, b"Q\n");
                }
                Does::Stop => self.stopped.store(true, Ordering::SeqCst),
                Does::Cut => return None,
            }
        }
        // An open connection: it is for the client to end it.
        tokio::time::sleep(Duration::from_secs(60)).await;
        None
    }
}

async fn request(connection: &mut TcpStream) -> Option<(String, String)> {
    let mut all = Vec::new();
    loop {
        connection.read_buf(&mut all).await.ok().filter(|n| *n > 0)?;
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|l| {
            let (name, value) = l.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
        });
        if body.len() >= length.unwrap_or(0) {
            return Some((format!("{head}\r\n\r\n"), body.to_owned()));
        }
    }
}

const RUNS: &str = r#"{"Id":"0123456789abcdef","Name":"/svc","Config":{"Image":"img"},
    "State":{"Running":true,"Paused":false,"Restarting":false,"StartedAt":"2026-01-01T00:00:00Z"}}"#;
const STOPPED: &str = r#"{"Id":"0123456789abcdef","Name":"/svc","Config":{"Image":"img"},
    "State":{"Running":false,"Paused":false,"Restarting":false,"StartedAt":"2026-01-01T00:00:00Z","ExitCode":137}}"#;
const PID: Does = Does::Frame(1, "##PID NONCE 7\n");
const OUT: Does = Does::Frame(1, "half of it");
const END: [Does; 2] = [Does::Frame(1, "##END NONCE 0\n"), Does::Frame(2, "\n##END NONCE 0\n")];
const ENDED: &str = r#"{"Running":false,"ExitCode":0}"#;
/// What the engine says of a program whose client has gone, while it still runs.
const UNKNOWN: &str = r#"{"Running":false,"ExitCode":126}"#;

fn program() -> ExecCommand {
    ExecCommand::new(["dump"])
}

#[tokio::test]
async fn a_good_stream_is_good() {
    let script = [vec![PID, OUT], END.to_vec(), vec![Does::AwaitRelease, Does::Cut]].concat();
    let e = engine(&script, ENDED).await;
    let (all, outcome) = crate::support::run(&e.runtime, program()).await.unwrap();
    assert_eq!((all.as_slice(), outcome.status.code), (&b"half of it"[..], Some(0)));
    for request in e.engine.requests.lock().unwrap().iter() {
        assert!(!request.to_lowercase().contains("accept-encoding"), "{request}");
        assert!(
            request.contains(" /v1.41/") || request.contains("/version "),
            "the engine's own version: {request}"
        );
    }
}

#[tokio::test]
async fn a_cut_stream_is_an_error_wherever_it_is_cut() {
    let whole = [vec![PID, OUT], END.to_vec()].concat();
    for state in [ENDED, UNKNOWN] {
        for cut in 0..whole.len() {
            let script = [&whole[..cut], &[Does::Cut]].concat();
            let e = engine(&script, state).await;
            let error = failure(&e.runtime, program()).await;
            if cut > 0 {
                assert_eq!(error.kind(), AdapterErrorKind::Unavailable, "{cut}: {error}");
                assert!(error.to_string().contains("not known"), "{cut}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn damaged_frames_are_corruption() {
    let long = b"\x01\0\0\0\0\0\0\x20only a part".as_slice();
    for raw in [&b"\x07garbage"[..], b"plain text\n", b"\x00\0\0\0\0\0\0\x01x", long] {
        let e = engine(&[PID, OUT, Does::Raw(raw), Does::Cut], ENDED).await;
        let error = failure(&e.runtime, program()).await;
        assert_eq!(error.kind(), AdapterErrorKind::Corrupt, "{raw:?}: {error}");
    }
}

#[tokio::test]
async fn an_end_that_contradicts_itself_is_none() {
    // Data behind the end.
    let script = [vec![PID, OUT], END.to_vec(), vec![Does::Frame(1, "more")]].concat();
    let error = failure(&engine(&script, ENDED).await.runtime, program()).await;
    assert_eq!(error.kind(), AdapterErrorKind::Corrupt, "{error}");
    // The engine knows of another.
    for state in [UNKNOWN, r#"{"Running":false,"ExitCode":1}"#] {
        let script = [vec![PID, OUT], END.to_vec(), vec![Does::AwaitRelease, Does::Cut]].concat();
        let error = failure(&engine(&script, state).await.runtime, program()).await;
        assert_eq!(error.kind(), AdapterErrorKind::Corrupt, "{error}");
    }
    // Somebody else's end.
    let script = [PID, Does::Frame(1, "##END 00 0\n"), Does::Frame(2, "\n##END 00 0\n"), Does::Cut];
    assert_eq!(
        failure(&engine(&script, ENDED).await.runtime, program()).await.kind(),
        AdapterErrorKind::Unavailable
    );
}

#[tokio::test]
async fn what_the_engine_says_instead_of_starting_is_told() {
    for text in ["exec failed: no space left\r\n", "##PID 00 7\n"] {
        let script = [Does::Frame(1, text), Does::Cut];
        let error = failure(&engine(&script, UNKNOWN).await.runtime, program()).await;
        assert!(error.to_string().contains(text.trim()), "{error}");
    }
    // What a program that did start printed is shown to nobody.
    for state in [ENDED, r#"{"Running":true}"#] {
        let script = [Does::Frame(1, "canary\n"), Does::Cut];
        let error = failure(&engine(&script, state).await.runtime, program()).await;
        assert_eq!(error.kind(), AdapterErrorKind::Corrupt, "{error}");
        assert!(!format!("{error:?}").contains("canary"), "{error}");
    }
    // Of a container that it still calls running.
    let script = [Does::Frame(1, "cannot exec in a stopped state: unknown\r\n"), Does::Stop, Does::Cut];
    let error = failure(&engine(&script, UNKNOWN).await.runtime, program()).await;
    assert_eq!(error.kind(), AdapterErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("stopped with exit code 137"), "{error}");
}

#[tokio::test]
async fn an_image_without_a_shell_is_named() {
    let text =
        b"OCI runtime exec failed: exec failed: \"sh\": executable file not found in $PATH: unknown\r\n";
    for script in [vec![Does::Raw(text), Does::Cut], vec![Does::Cut]] {
        let error =
            failure(&engine(&script, r#"{"Running":false,"ExitCode":127}"#).await.runtime, program()).await;
        assert_eq!(error.kind(), AdapterErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("`img` has no `sh`"), "{error}");
    }
}

#[tokio::test]
async fn a_container_that_stopped_is_not_one_without_a_shell() {
    let text = b"OCI runtime exec failed: open /proc/77/ns/ipc: no such file or directory: unknown\r\n";
    for script in [vec![Does::Stop, Does::Raw(text), Does::Cut], vec![Does::Stop, Does::Cut]] {
        let error =
            failure(&engine(&script, r#"{"Running":false,"ExitCode":126}"#).await.runtime, program()).await;
        assert_eq!(error.kind(), AdapterErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("stopped with exit code 137"), "{error}");
    }
}
