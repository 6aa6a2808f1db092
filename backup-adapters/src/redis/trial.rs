//! A server for a moment, over a restored file: it proves that the file loads, and can be asked. Without a port, without
//! writing anything: in a container of the service's image if the service is in one, else a program of this host.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use tempfile::TempDir;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep};

use super::conn::{self, Conn, Server};
use super::elsewhere::NAME;
use super::facts::Info;
use super::rdb::Summary;
use super::resp;
use crate::on_disk::failed;
use crate::runtime::DockerRuntime;
use crate::runtime::docker::{Helper, HelperSpec, Purpose};
use crate::runtime::memory::{self, Grant, Need};

/// How long it may take to answer at all.
const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// Where the container sees the file, and where its socket is.
const DATA: &str = "/backup/data";
const RUN: &str = "/backup/run";

/// `sh -c THIS sh ARGUMENTS`: whichever of the two the image has.
const EITHER: &str = "exec \"$(command -v redis-server || command -v valkey-server)\" \"$@\"";

/// `sh -c THIS sh KIBIBYTES PROGRAM ARGUMENTS`: it goes when our end of the pipe does, also if we are killed. Whatever is live
/// goes first: it has an eighth of the usual share of a processor, and the last place at the disks; it is the first that the
/// kernel ends where memory runs out, and may take so many kibibytes.
const WHILE_WE_LIVE: &str = "{ echo 1000 >/proc/$$/oom_score_adj; renice -n 10 -p $$; ionice -c 2 -n 7 -p $$; ulimit -v $1; } >/dev/null 2>&1
shift; exec 3<&0; \"$@\" 3<&- </dev/null & server=$!
{ cat <&3 >/dev/null; kill -9 $server; } 2>/dev/null & exec 3<&-; wait $server";

/// Such a server.
pub(super) struct Trial {
    how: How,
    /// Its socket lies here: a socket's path must be short.
    run: TempDir,
    loaded_by: String,
}

/// How it ended.
struct Ended {
    how: String,
    /// It had no memory any more, or was killed, which is the kernel's way to say so.
    starved: bool,
}

/// What the shell tells of a program that SIGKILL ended.
const KILLED: i32 = 137;

enum How {
    Host(Box<Child>, Option<ChildStdin>, Grant),
    Beside(Box<Helper>),
}

impl Trial {
    /// Starts one over the file in `dir`; `None` if there is no program that could load it.
    pub(super) async fn start(
        service: &Server,
        cx: &OpContext,
        dir: &Path,
        file: &Summary,
    ) -> Result<Option<Self>, AdapterError> {
        let run = tempfile::Builder::new().prefix("backup-redis-").tempdir();
        let run = run.map_err(failed("create a folder for", dir))?;
        if let Some(docker) = service.container().filter(|docker| docker.shares_files()) {
            let image = docker.image_then(cx).await?;
            let loaded_by = match image {
                Some(_) => "a container of the image that the backup was made of",
                None => "a container of the service's image",
            };
            let how = How::Beside(Box::new(beside(docker, cx, dir, run.path(), file, image).await?));
            return Ok(Some(Self { how, run, loaded_by: loaded_by.to_owned() }));
        }
        let Some(program) = program(file).await else { return Ok(None) };
        let log = run.path().join("log").display().to_string();
        let place = (dir.display().to_string(), run.path().display().to_string());
        let taken = memory::take(cx.service.as_str(), need(file), memory::available);
        let grant = cx.within(taken).await??;
        let most = grant.most.map_or("unlimited".to_owned(), |bytes| (bytes >> 10).to_string());
        let mut command = Command::new("sh");
        command.args(["-c", WHILE_WE_LIVE, "sh", &most, program]);
        command.args(arguments(&place.0, &place.1, &log, file));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed("start", Path::new(program)))?;
        let alive = child.stdin.take();
        Ok(Some(Self { how: How::Host(Box::new(child), alive, grant), run, loaded_by: program.to_owned() }))
    }

    /// What has loaded the file, for people.
    pub(super) fn loaded_by(&self) -> &str {
        &self.loaded_by
    }

    /// How it is reached.
    pub(super) fn server(&self) -> Server {
        let place = conn::Place::Socket(self.run.path().join("s"));
        Server { place, unit: None, username: None, password: None, tls: None }
    }

    /// What it holds, once it has loaded the file.
    ///
    /// # Errors
    /// `Corrupt` if it ends instead; `NoSpace` if that is for want of memory.
    pub(super) async fn loaded(&mut self, cx: &OpContext) -> Result<Info, AdapterError> {
        let server = self.server();
        let until = Instant::now() + START;
        let mut conn: Option<Conn> = None;
        loop {
            if let Some(Ended { how, starved }) = self.ended().await? {
                let what = format!("a scratch server could not load the file ({how})");
                return Err(match starved {
                    // Which says nothing about the file.
                    true => AdapterError::new(
                        AdapterErrorKind::NoSpace,
                        format!(
                            "{what}: it ran out of memory, or was killed; free some, or run it elsewhere"
                        ),
                    ),
                    false => AdapterError::corrupt(what),
                });
            }
            match &mut conn {
                None => match server.connect(cx).await {
                    Ok(fresh) => conn = Some(fresh),
                    Err(e) if Instant::now() > until => return Err(e),
                    Err(_) => {}
                },
                Some(conn) => match conn.ask(cx, &["INFO"]).await {
                    Ok(resp::Reply::Error(_)) | Err(_) => {}
                    Ok(reply) => {
                        let live = Info::parse(&reply.text().unwrap_or_default());
                        if !live.is("loading") {
                            return Ok(live);
                        }
                    }
                },
            }
            cx.within(sleep(LOOK)).await?;
        }
    }

    /// How it ended, if it has.
    async fn ended(&mut self) -> Result<Option<Ended>, AdapterError> {
        let (killed, status, log) = match &mut self.how {
            How::Host(child, ..) => {
                let Some(status) = child.try_wait().ok().flatten() else { return Ok(None) };
                let log = tokio::fs::read_to_string(self.run.path().join("log")).await.unwrap_or_default();
                (status.code() == Some(KILLED), status.to_string(), log)
            }
            How::Beside(helper) => {
                let Some(status) = helper.ended().await? else { return Ok(None) };
                let log = helper.log().await;
                (status.killed, log.clone(), log)
            }
        };
        Ok(Some(Ended { how: status, starved: killed || log.contains("Out Of Memory") }))
    }

    /// Ends it: it has nothing to save.
    pub(super) async fn end(self) -> Result<(), AdapterError> {
        match self.how {
            How::Host(mut child, alive, _grant) => {
                drop(alive);
                // How it ended is of no interest any more.
                let _ended = child.wait().await;
                Ok(())
            }
            How::Beside(helper) => helper.close().await,
        }
    }
}

async fn beside(
    docker: &DockerRuntime,
    cx: &OpContext,
    dir: &Path,
    run: &Path,
    file: &Summary,
    image: Option<String>,
) -> Result<Helper, AdapterError> {
    let us = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut program = ["sh", "-c", EITHER, "sh"].map(str::to_owned).to_vec();
    // What it logs is read from its output.
    program.extend(arguments(DATA, RUN, "", file));
    let spec = HelperSpec {
        image,
        binds: vec![(dir.to_owned(), DATA.into()), (run.to_owned(), RUN.into())],
        user: format!("{}:{}", us.0, us.1),
        purpose: Purpose::Scratch,
        program,
        ..HelperSpec::default()
    };
    cx.within(docker.helper(&cx.run_id, spec)).await?
}

/// The memory that the server of the file took.
fn need(file: &Summary) -> Option<Need> {
    let bytes = file.aux.get("used-mem")?.parse().ok()?;
    Some(Need { bytes, why: "its server took that", limits: false })
}

fn arguments(dir: &str, run: &str, log: &str, file: &Summary) -> Vec<String> {
    let databases = file.databases.keys().next_back().map_or(16, |last| last + 1).max(16).to_string();
    let socket = format!("{run}/s");
    let all = [
        ["--dir", dir],
        ["--dbfilename", NAME],
        ["--port", "0"],
        ["--unixsocket", &socket],
        ["--unixsocketperm", "700"],
        ["--save", ""],
        ["--appendonly", "no"],
        ["--daemonize", "no"],
        ["--databases", &databases],
        ["--logfile", log],
    ];
    all.concat().into_iter().map(str::to_owned).collect()
}

/// A server of this host that is as new as the file.
async fn program(file: &Summary) -> Option<&'static str> {
    for program in ["redis-server", "valkey-server"] {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
        let Ok(said) = command.output().await else { continue };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = said.split_once("v=").and_then(|(_, v)| v.split(' ').next()).unwrap_or_default();
        let server = if program == "valkey-server" { "valkey" } else { "redis" };
        if super::compat::loads(server, version, file) {
            return Some(program);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_of_this_host_takes_what_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        let tell =
            format!("{{ cat /proc/self/oom_score_adj; ulimit -v; nice; ionice; }} >'{}'", told.display());
        let mut command = Command::new("sh");
        command.args(["-c", WHILE_WE_LIVE, "sh", "7000000", "sh", "-c", &tell]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let _alive = child.stdin.take();
        assert!(child.wait().await.unwrap().success());
        let told = std::fs::read_to_string(told).unwrap();
        assert_eq!(told.lines().collect::<Vec<_>>(), ["1000", "7000000", "10", "best-effort: prio 7"]);
    }

    #[tokio::test]
    async fn one_that_is_killed_is_told_from_one_that_ends() {
        for (program, killed) in [("kill -9 $$", true), ("exit 1", false)] {
            let mut command = Command::new("sh");
            command.args(["-c", WHILE_WE_LIVE, "sh", "unlimited", "sh", "-c", program]);
            let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
            let _alive = child.stdin.take();
            assert_eq!(child.wait().await.unwrap().code() == Some(KILLED), killed, "{program}");
        }
    }
}
