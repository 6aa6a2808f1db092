//! Replaces what a running server holds by an RDB file, without its files and without a restart: the server becomes a
//! replica of a port of ours for as long as it takes to load the file, and a primary again.
//!
//! ```text
//! writers wait (fence) → what is there is kept aside → REPLICAOF us → full resynchronisation → keys counted
//!                      → REPLICAOF NO ONE → durable on the server's disk → writers go on
//! ```
//!
//! A replica keeps its data until it has the new data in its hands, and tells of which history its data is
//! (`master_replid`). We name that history, so after a crash anywhere the server itself tells what it holds: see
//! [`recover`].

mod fence;
mod keep;
mod persist;
mod recover;
mod settings;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use backup_core::runtime::{Interruption, InterruptionKind};
use backup_core::{AdapterError, AdapterErrorKind, Event, Evidence, OpContext, StepToken, chain};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::fence::Fence;
use self::recover::Holds;
use self::settings::Settings;
use super::check;
use super::compat;
use super::conn::{Conn, Place, Server};
use super::facts::Info;
use super::kept;
use super::live::refuse;
use super::rdb::Summary;
use super::restore::or_by_file;
use super::serve::{Admission, Primary, Replica};

pub(super) use self::recover::{bring_back, history};
pub(super) use self::settings::random;

/// How long the server may take until it connects to us; it tries once a second.
const JOIN_TIME: Duration = Duration::from_secs(30);

/// How often we look whether the server got on.
const LOOK: Duration = Duration::from_millis(50);

/// What a replacement may take if the operation has no budget: this, and the time for the bytes at a slow disk's rate.
const USUAL_TIME: Duration = Duration::from_secs(600);
const SLOW_RATE: u64 = 10 << 20;

/// One replacement. Everything that a later process needs to find out how far it got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// What the server shall hold.
    pub(super) file: PathBuf,
    /// Where that which it holds now is kept.
    pub(super) kept: PathBuf,
    /// Written once it holds the file, durably. See [`Done`].
    pub(super) done: PathBuf,
    /// Names the history that begins with the file: 40 hex digits.
    pub(super) id: String,
}

/// A replacement that is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// What the server held before writers went on.
    pub(super) evidence: Evidence,
}

/// What is announced before anything is done to the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pending {
    job: Job,
    /// Our port.
    port: SocketAddr,
    /// The server's process: another one has forgotten all of this.
    server_run: String,
    /// Settings as they were.
    settings: Vec<(String, String)>,
}

impl Job {
    /// What a first attempt kept, if there is a second.
    fn earlier(&self) -> PathBuf {
        self.beside("earlier")
    }

    /// What a server held that was started anew in the middle.
    fn found(&self) -> PathBuf {
        self.beside("found")
    }

    fn beside(&self, what: &str) -> PathBuf {
        let mut name = self.kept.clone().into_os_string();
        name.push(".");
        name.push(what);
        name.into()
    }

    /// Every file of it.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let whole = [self.file.clone(), self.kept.clone(), self.earlier(), self.found(), self.done.clone()];
        whole.iter().map(|p| kept::part(p)).chain(whole.clone()).collect()
    }
}

/// Tells people what happens now.
pub(super) fn phase(cx: &OpContext, phase: &str) {
    cx.events.emit(Event::Phase { service: cx.service.clone(), phase: phase.to_owned() });
}

/// The same operation where it must not be broken off any more.
pub(super) fn calm(cx: &OpContext, limit: Duration) -> OpContext {
    let mut cx = cx.clone();
    cx.cancel = CancellationToken::new();
    cx.deadline = Instant::now().checked_add(limit);
    cx
}

/// Where the server finds a port of ours.
#[derive(Debug, Clone)]
struct Reach {
    ip: IpAddr,
    /// Where it connects from, if others could reach the port, too.
    sources: Option<Vec<IpAddr>>,
    /// Nobody between it and us can listen.
    private: bool,
}

impl Reach {
    async fn of(cx: &OpContext, server: &Server) -> Result<Self, AdapterError> {
        match &server.place {
            Place::Socket(_) => Ok(Self { ip: Ipv4Addr::LOCALHOST.into(), sources: None, private: true }),
            Place::Container(docker, _) => {
                let ip = cx.within(Box::pin(docker.host_address())).await??;
                let sources = cx.within(Box::pin(docker.addresses())).await??;
                let sources = (!ip.is_loopback()).then_some(sources);
                Ok(Self { ip, sources, private: true })
            }
            Place::Tcp(host, port) => {
                let look = async {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    Ok::<_, std::io::Error>((stream.local_addr()?.ip(), stream.peer_addr()?.ip()))
                };
                let (ours, theirs) = cx.within(look).await?.map_err(|e| {
                    let what = format!("cannot connect to Redis at {server}");
                    AdapterError::new(AdapterErrorKind::Unavailable, what).with_source(e)
                })?;
                let local = ours.is_loopback();
                let sources = (!local).then(|| vec![theirs.to_canonical()]);
                Ok(Self { ip: ours, sources, private: local || ours == theirs })
            }
        }
    }
}

/// Makes the server hold `job.file`; what it holds is kept as `job.kept`. Called again after a crash or an error, it
/// completes what is missing.
///
/// # Errors
/// The server is a writable primary with its old data then; if not even that could be reached, the error says so, and
/// the journal and the watchdog remember it.
pub(super) async fn replace(cx: &OpContext, server: &Server, job: &Job) -> Result<Done, AdapterError> {
    if let Some(done) = kept::read_record(job.done.clone()).await? {
        return Ok(done);
    }
    let mut conn = server.connect(cx).await?;
    let live = Info::read(&mut conn, cx).await?;
    let file = kept::check(job.file.clone()).await?;
    if live.holds(&job.id) && !live.is_replica() {
        // A run that died got so far.
        return complete(&calm(cx, USUAL_TIME), &mut conn, job, check::evidence(&file)).await;
    }
    refuse(cx, &mut conn, &live).await?;
    compat::refuse_unloadable(cx, &mut conn, &live, &file).await?;
    let reach = Reach::of(cx, server).await?;
    let settings = Settings::read(cx, &mut conn, server, &reach).await?;
    let admission = Admission { sources: reach.sources.clone(), password: settings.password.clone() };
    let primary = Primary::bind(reach.ip, admission).await?;
    let pending = Pending {
        job: job.clone(),
        port: primary.address(),
        server_run: live.get("run_id").to_owned(),
        settings: settings.before.clone(),
    };
    let bytes = kept::sizes(vec![job.file.clone()]).await?.first().map_or(0, |(_, bytes)| *bytes);
    let limit = cx.remaining().unwrap_or(USUAL_TIME + Duration::from_secs(bytes / SLOW_RATE));
    let recovery = recover::limit(bytes);
    let alarm = Instant::now() + limit + recovery + Duration::from_secs(10);
    let token = StepToken::new(&pending)?;
    let announced =
        Interruption::announce(cx.interruption(), "replace the data of", server.to_string(), token, alarm)
            .await?;
    let attempt = Attempt { cx, server, job, live: &live, file: &file };
    let error = match attempt.run(&mut conn, &settings, &primary, limit).await {
        Ok(done) => {
            announced.undone().await?;
            return Ok(done);
        }
        Err(e) => e,
    };
    drop((conn, primary));
    let later = calm(cx, recovery);
    // Only a connection that broke says nothing against the new data.
    let wanted = match error.kind() {
        AdapterErrorKind::Unavailable | AdapterErrorKind::Timeout => Holds::New,
        _ => Holds::Old,
    };
    match recover::recover(&later, server, &pending, wanted).await {
        Ok(Holds::New) => {
            cx.warn(format!("the restore was completed after an error: {}", chain(&error)));
            announced.undone().await?;
            let done = kept::read_record(job.done.clone()).await?;
            done.ok_or(error)
        }
        Ok(Holds::Old) => {
            announced.undone().await?;
            Err(error)
        }
        Err(second) => {
            let what = format!(
                "{}; `{}` could not be brought back yet ({}): `backup resume` tries again, its old data is `{}`",
                chain(&error),
                cx.service,
                chain(&second),
                job.kept.display()
            );
            Err(AdapterError::new(error.kind(), what))
        }
    }
}

/// The server is a primary with the new data: the rest of the work.
async fn complete(
    cx: &OpContext,
    conn: &mut Conn,
    job: &Job,
    evidence: Evidence,
) -> Result<Done, AdapterError> {
    phase(cx, "saving on the server's disk");
    persist::persist(cx, conn).await?;
    let done = Done { evidence };
    kept::write_record(job.done.clone(), &done).await?;
    Ok(done)
}

struct Attempt<'a> {
    cx: &'a OpContext,
    server: &'a Server,
    job: &'a Job,
    live: &'a Info,
    file: &'a Summary,
}

impl Attempt<'_> {
    async fn run(
        &self,
        conn: &mut Conn,
        settings: &Settings,
        primary: &Primary,
        limit: Duration,
    ) -> Result<Done, AdapterError> {
        phase(self.cx, "holding back writers");
        let (fence, keeper) = Fence::raise(self.cx, self.server, self.live).await?;
        let work = async {
            let before = Info::read(conn, self.cx).await?;
            // Again: what begins to follow it now gets a snapshot of its own, made with the writers held back.
            refuse(self.cx, conn, &before).await?;
            phase(self.cx, "keeping aside what is there");
            let old = keep::capture(self.cx, self.server, self.job).await?;
            compat::refuse_foreign(self.live, &old, self.file)?;
            settings.apply(self.cx, conn).await?;
            self.cx.check_alive()?;
            let calm = calm(self.cx, limit);
            phase(self.cx, "making the server follow us");
            let mut replica = join(&calm, self.server, conn, primary).await?;
            self.refuse_writes(&calm, conn, &fence, &before).await?;
            let found = install(&calm, conn, &mut replica, self.job, self.file).await?;
            promote(&calm, conn, replica).await?;
            settings::put_back(&calm, conn, &settings.before).await?;
            complete(&calm, conn, self.job, found).await
        };
        let on_guard = calm(self.cx, limit);
        let done = tokio::select! {
            done = work => done?,
            never = keeper.keep(&on_guard) => match never {},
        };
        phase(self.cx, "letting writers go on");
        fence::lower(&calm(self.cx, USUAL_TIME), conn).await?;
        Ok(done)
    }

    /// Nothing was written since the copy was made: nothing that was acknowledged is missing in it.
    async fn refuse_writes(
        &self,
        cx: &OpContext,
        conn: &mut Conn,
        fence: &Fence,
        before: &Info,
    ) -> Result<(), AdapterError> {
        let now = Info::read(conn, cx).await?;
        let saves =
            |live: &Info| (live.get("rdb_saves").to_owned(), live.get("rdb_last_save_time").to_owned());
        let changes = |live: &Info| live.number("rdb_changes_since_last_save").unwrap_or(0);
        let written = match saves(&now) == saves(before) {
            true => changes(&now) != changes(before),
            false => changes(&now) > changes(before),
        };
        if !now.is_replica() || !fence.held() || (written && fence.stops_expiry()) {
            let what = format!("`{}` was written to although its writers were held back", cx.service);
            return Err(AdapterError::new(AdapterErrorKind::Changed, what));
        }
        Ok(())
    }
}

/// Makes the server follow our port, and waits until it asks for the data.
async fn join(
    cx: &OpContext,
    server: &Server,
    conn: &mut Conn,
    primary: &Primary,
) -> Result<Replica, AdapterError> {
    let at = primary.address();
    conn.call(cx, &["REPLICAOF", &at.ip().to_string(), &at.port().to_string()]).await?;
    match cx.within(timeout(JOIN_TIME, primary.admit())).await? {
        Ok(admitted) => admitted,
        Err(_) => {
            let what = format!(
                "`{}` did not connect to {at} within {} s: a restore over the wire needs a way from the server to this host \
                 (its log tells more){}",
                cx.service,
                JOIN_TIME.as_secs(),
                or_by_file(server)
            );
            Err(AdapterError::new(AdapterErrorKind::Unavailable, what))
        }
    }
}

/// Hands over the file and waits until the server has loaded it.
async fn install(
    cx: &OpContext,
    conn: &mut Conn,
    replica: &mut Replica,
    job: &Job,
    file: &Summary,
) -> Result<Evidence, AdapterError> {
    phase(cx, "sending the data");
    cx.within(replica.send(&job.id, &job.file)).await??;
    phase(cx, "waiting for the server to load it");
    let loaded = async {
        tokio::select! {
            loaded = loaded(cx, conn, &job.id) => Some(loaded),
            () = replica.closed() => None,
        }
    };
    let live = match loaded.await {
        Some(live) => live?,
        // It may have loaded it all the same.
        None => settled(cx, conn).await?,
    };
    if !live.holds(&job.id) {
        let what = format!("`{}` broke off loading the data: its log tells why", cx.service);
        return Err(AdapterError::new(AdapterErrorKind::Unavailable, what));
    }
    let differences = check::evidence(file).contradictions(&live.evidence());
    if !differences.is_empty() {
        let what =
            format!("`{}` loaded other data than the file holds: {}", cx.service, differences.join("; "));
        return Err(AdapterError::corrupt(what));
    }
    Ok(live.evidence())
}

async fn loaded(cx: &OpContext, conn: &mut Conn, id: &str) -> Result<Info, AdapterError> {
    loop {
        let live = Info::read(conn, cx).await?;
        if live.holds(id) {
            return Ok(live);
        }
        cx.within(sleep(LOOK)).await?;
    }
}

/// Waits until the server does not load any more.
async fn settled(cx: &OpContext, conn: &mut Conn) -> Result<Info, AdapterError> {
    loop {
        let live = Info::read(conn, cx).await?;
        if !live.is("loading") && !live.is("async_loading") {
            return Ok(live);
        }
        cx.within(sleep(LOOK)).await?;
    }
}

/// Makes it a primary again.
async fn promote(cx: &OpContext, conn: &mut Conn, replica: Replica) -> Result<(), AdapterError> {
    phase(cx, "making the server a primary again");
    let promoted = to_primary(cx, conn).await;
    // Not before: a replica that lost its primary would look for it.
    drop(replica);
    promoted
}

async fn to_primary(cx: &OpContext, conn: &mut Conn) -> Result<(), AdapterError> {
    conn.call(cx, &["REPLICAOF", "NO", "ONE"]).await?;
    let live = Info::read(conn, cx).await?;
    if live.is_replica() {
        let what = format!("`{}` is still a replica of {}", cx.service, live.get("master_host"));
        return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
    }
    Ok(())
}

/// Refuses to forget a replacement that is announced and not ended: what was live may be in its files alone.
pub(super) async fn refuse_half_done(cx: &OpContext, job: &Job) -> Result<(), AdapterError> {
    for entry in cx.journal.entries().await? {
        let InterruptionKind::Other { token, .. } = &entry.kind else { continue };
        if entry.service == cx.service && token.get::<Pending>().is_ok_and(|p| p.job.id == job.id) {
            let what = format!("the restore of `{}` is half done: `backup resume` ends it", cx.service);
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
    }
    Ok(())
}

/// Holds back writers, makes the server save its file, and runs `then` while they still wait.
pub(super) async fn saved_and_fenced<T>(
    cx: &OpContext,
    server: &Server,
    conn: &mut Conn,
    live: &Info,
    then: impl Future<Output = Result<T, AdapterError>>,
) -> Result<T, AdapterError> {
    let before = Settings::quorum(cx, conn).await?;
    let (_fence, keeper) = Fence::raise(cx, server, live).await?;
    let work = async {
        persist::save(cx, conn).await?;
        then.await
    };
    let done = tokio::select! {
        done = work => done,
        never = keeper.keep(cx) => match never {},
    };
    if done.is_err() {
        // It still runs: its writers go on. The first error tells more.
        let calm = calm(cx, JOIN_TIME);
        let _second = settings::put_back(&calm, conn, &before).await;
        let _second = fence::lower(&calm, conn).await;
    }
    done
}
