//! A server for a moment, over a restored file: it proves that the file loads, and can be asked. Without a port, without
//! writing anything: in a container of the service's image if the service is in one, else a program of this host.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use backup_core::{AdapterError, OpContext};
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

/// How long it may take to answer at all.
const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// Where the container sees the file, and where its socket is.
const DATA: &str = "/backup/data";
const RUN: &str = "/backup/run";

/// `sh -c THIS sh ARGUMENTS`: whichever of the two the image has.
const EITHER: &str = "exec \"$(command -v redis-server || command -v valkey-server)\" \"$@\"";

/// `sh -c THIS sh PROGRAM ARGUMENTS`: it goes when our end of the pipe does, also if we are killed.
const WHILE_WE_LIVE: &str = "exec 3<&0; \"$@\" 3<&- </dev/null & server=$!
{ cat <&3 >/dev/null; kill -9 $server; } 2>/dev/null & exec 3<&-; wait $server";

/// Such a server.
pub(super) struct Trial {
    how: How,
    /// Its socket lies here: a socket's path must be short.
    run: TempDir,
    loaded_by: String,
}

enum How {
    Host(Box<Child>, Option<ChildStdin>),
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
            let how = How::Beside(Box::new(beside(docker, cx, dir, run.path(), file).await?));
            return Ok(Some(Self { how, run, loaded_by: "a container of the service's image".to_owned() }));
        }
        let Some(program) = program(file).await else { return Ok(None) };
        let log = run.path().join("log").display().to_string();
        let place = (dir.display().to_string(), run.path().display().to_string());
        let mut command = Command::new("sh");
        command.args(["-c", WHILE_WE_LIVE, "sh", program]).args(arguments(&place.0, &place.1, &log, file));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed("start", Path::new(program)))?;
        let alive = child.stdin.take();
        Ok(Some(Self { how: How::Host(Box::new(child), alive), run, loaded_by: program.to_owned() }))
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
    /// `Corrupt` if it ends instead.
    pub(super) async fn loaded(&mut self, cx: &OpContext) -> Result<Info, AdapterError> {
        let server = self.server();
        let until = Instant::now() + START;
        let mut conn: Option<Conn> = None;
        loop {
            if let Some(why) = self.ended().await? {
                return Err(AdapterError::corrupt(format!(
                    "a scratch server could not load the file ({why})"
                )));
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
    async fn ended(&mut self) -> Result<Option<String>, AdapterError> {
        match &mut self.how {
            How::Host(child, _) => Ok(child.try_wait().ok().flatten().map(|status| status.to_string())),
            How::Beside(helper) => match helper.ended().await? {
                Some(_) => Ok(Some(helper.log().await)),
                None => Ok(None),
            },
        }
    }

    /// Ends it: it has nothing to save.
    pub(super) async fn end(self) -> Result<(), AdapterError> {
        match self.how {
            How::Host(mut child, alive) => {
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
) -> Result<Helper, AdapterError> {
    let us = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut program = ["sh", "-c", EITHER, "sh"].map(str::to_owned).to_vec();
    // What it logs is read from its output.
    program.extend(arguments(DATA, RUN, "", file));
    let spec = HelperSpec {
        binds: vec![(dir.to_owned(), DATA.into()), (run.to_owned(), RUN.into())],
        user: format!("{}:{}", us.0, us.1),
        purpose: Purpose::Scratch,
        program,
        ..HelperSpec::default()
    };
    cx.within(docker.helper(&cx.run_id, spec)).await?
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
