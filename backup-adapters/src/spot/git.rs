//! The emergency commit: what a work tree holds at this moment, on a branch of its own, pushed.
//!
//! Neither the work tree, nor its index, nor the branch that is checked out is touched: the commit is made by git's own
//! plumbing (<https://git-scm.com/book/en/v2/Git-Internals-Git-Objects>) over a copy of the index. No hook runs, nothing
//! is asked.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backup_core::engine::{FlushAction, FlushContext};
use backup_core::runtime::{ExecCommand, ServiceRuntime as _};
use backup_core::{AdapterError, AdapterErrorKind, chain};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use crate::runtime::HostRuntime;

mod names;

use names::{Names, branch, is_secret, scrubbed};

/// Larger files that Git does not know yet are left out: they take the time that the rest needs, and common servers refuse
/// a push with files over 100 MB as a whole.
/// <https://docs.github.com/en/repositories/working-with-files/managing-large-files/about-large-files-on-github>
const LARGEST: u64 = 50 << 20;

/// What is asked of git everywhere: no hooks, no helpers in the background, and no questions. The folder counts as safe
/// whoever owns it: git runs as that user.
const SETTINGS: [&str; 12] = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
    "-c",
    "maintenance.auto=false",
    "-c",
    "commit.gpgSign=false",
    "-c",
    "push.gpgSign=false",
];

#[derive(Debug)]
pub(super) struct Git {
    pub(super) repositories: Vec<PathBuf>,
    pub(super) remote: String,
    pub(super) excluded: Vec<PathBuf>,
}

#[async_trait]
impl FlushAction for Git {
    async fn perform(&self, cx: &FlushContext) -> Result<String, AdapterError> {
        if self.repositories.is_empty() {
            return Err(AdapterError::unsupported("no repositories are named: `repositories` in [spot]"));
        }
        let saving = self.repositories.iter().map(|tree| async move {
            let named =
                tree.file_name().map_or_else(|| tree.to_string_lossy(), |name| name.to_string_lossy());
            let saved = Repository::open(tree, cx.until).await;
            let saved = match saved {
                Ok(repository) => repository.save(self, cx).await,
                Err(e) => Err(e),
            };
            saved.map(|said| format!("{named}: {said}")).map_err(|e| format!("{named}: {}", chain(&e)))
        });
        let saved = futures::future::join_all(saving).await;
        let failed = saved.iter().any(Result::is_err);
        let said: Vec<String> = saved.into_iter().map(|s| s.unwrap_or_else(|e| e)).collect();
        let said = said.join("; ");
        if failed { Err(AdapterError::new(AdapterErrorKind::Other, said)) } else { Ok(said) }
    }
}

/// A work tree, and how git is run in it.
#[derive(Debug)]
struct Repository {
    tree: PathBuf,
    git_dir: PathBuf,
    user: Option<Owner>,
    /// How servers are reached: by the user's own command if there is one, with a key for this one perhaps. `None` before
    /// that is known.
    ssh: Option<String>,
    until: Instant,
}

/// Whom the work tree belongs to: what root would leave in it, that user could not change any more; and the keys for the
/// push are that user's.
#[derive(Debug, Clone)]
struct Owner {
    id: u32,
    home: String,
}

/// A copy of the index, which goes with this.
#[derive(Debug)]
struct Index(PathBuf);

impl Drop for Index {
    fn drop(&mut self) {
        for left in [self.0.clone(), self.0.with_extension("lock")] {
            if let Err(error) = std::fs::remove_file(&left)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(%error, file = %left.display(), "A copy of an index stays.");
            }
        }
    }
}

impl Repository {
    async fn open(tree: &Path, until: Instant) -> Result<Self, AdapterError> {
        let about =
            tree.metadata().map_err(|e| AdapterError::io(format!("cannot read `{}`", tree.display()), e))?;
        let me = rustix::process::geteuid();
        let user = match about.uid() {
            id if me.is_root() && id != 0 => Some(Owner { id, home: home_of(id, until).await? }),
            _ => None,
        };
        let (tree, git_dir) = (tree.to_owned(), PathBuf::new());
        let mut repository = Self { tree, git_dir, user, ssh: None, until };
        let said =
            repository.git(&["rev-parse", "--show-toplevel", "--absolute-git-dir"], None, None).await?;
        let mut lines = said.text()?.lines();
        match (lines.next(), lines.next()) {
            (Some(tree), Some(dir)) => (repository.tree, repository.git_dir) = (tree.into(), dir.into()),
            _ => return Err(other("git does not say where the repository is")),
        }
        let configured = ["config", "--get", "core.sshCommand"];
        let own = repository.git_accepting(&configured, None, None, &[0, 1]).await?;
        repository.ssh = names::unasking(own.text()?.trim());
        Ok(repository)
    }

    /// Commits what there is, and pushes it.
    async fn save(&self, wanted: &Git, cx: &FlushContext) -> Result<String, AdapterError> {
        let index = self.copy_of_index(cx).await?;
        let (changed, left_out) = self.changed(&index, &wanted.excluded).await?;
        let count = changed.len();
        self.update(&index, &["--add", "--remove"], changed).await?;
        // One that was added once is in the history, but not in this commit.
        let known = self.git(&["ls-files", "-z", "--cached"], Some(&index), None).await?;
        self.update(&index, &["--force-remove"], known.names().filter(|n| is_secret(n)).collect()).await?;
        let tree = self.git(&["write-tree"], Some(&index), None).await?.word()?;

        let head = self.object("HEAD^{commit}").await?;
        let same = match &head {
            Some(_) => self.object("HEAD^{tree}").await?.as_ref() == Some(&tree),
            None => false,
        };
        let large = match left_out {
            0 => String::new(),
            n => format!(", without {n} that cannot be read or are larger than {} MiB", LARGEST >> 20),
        };
        let what = match count {
            1 => format!("1 changed file{large}"),
            n => format!("{n} changed files{large}"),
        };
        let commit = match &head {
            Some(head) if same && self.is_pushed(head, &wanted.remote).await? => {
                return Ok(format!("all of it is in {} already{large}", wanted.remote));
            }
            Some(head) if same => head.clone(),
            _ => self.commit(&tree, head.as_deref(), cx).await?,
        };
        let name = branch(&cx.host, cx.at);
        let to = format!("{commit}:refs/heads/{name}");
        if cx.rehearsal {
            self.git(&["push", "--quiet", "--no-verify", "--dry-run", "--", &wanted.remote, &to], None, None)
                .await?;
            return Ok(format!("would push {what} to {} as {name}", wanted.remote));
        }
        // Create-only. It stays if the push fails: the disk may survive.
        let reference = format!("refs/heads/{name}");
        self.git(&["update-ref", &reference, &commit, ""], None, None).await?;
        let pushed =
            self.git(&["push", "--quiet", "--no-verify", "--", &wanted.remote, &to], None, None).await;
        pushed.map_err(|e| {
            let help = names::what_to_do(&chain(&e)).map(|help| format!(" ({help})")).unwrap_or_default();
            other(format!("{what} on the branch {name}, which was not pushed{help}")).with_source(e)
        })?;
        Ok(format!("pushed {what} to {} as {name}", wanted.remote))
    }

    /// With what git knows of the files' times: only what changed is read again.
    async fn copy_of_index(&self, cx: &FlushContext) -> Result<Index, AdapterError> {
        let copy = Index(self.git_dir.join(format!("backup-spot-{}-{}", cx.at, std::process::id())));
        let original = self.git_dir.join("index");
        if original.exists() {
            // With its time: what is not older than its index, git compares by content.
            // <https://git-scm.com/docs/racy-git>
            let argv =
                ["cp", "--preserve=timestamps", "--", &original.to_string_lossy(), &copy.0.to_string_lossy()];
            self.run(argv.map(str::to_owned).to_vec(), None, &[0]).await?;
        }
        Ok(copy)
    }

    /// What differs from the index or is not in it, less what Git ignores, secrets, backups, and what is too large; and how
    /// many of the latter.
    async fn changed(
        &self,
        index: &Index,
        excluded: &[PathBuf],
    ) -> Result<(Vec<Vec<u8>>, usize), AdapterError> {
        let list = ["ls-files", "-z", "--modified", "--deleted", "--others", "--exclude-standard"];
        let listed = self.git(&list, Some(index), None).await?;
        let (tree, excluded, owner) =
            (self.tree.clone(), excluded.to_vec(), self.user.as_ref().map(|u| u.id));
        let sorting = tokio::task::spawn_blocking(move || {
            let (mut kept, mut left_out) = (Vec::new(), 0);
            // A file that is gone is told twice.
            let names: std::collections::BTreeSet<Vec<u8>> = listed.names().collect();
            for name in names {
                // A folder at the end of a name is a repository of its own.
                if is_secret(&name) || name.ends_with(b"/") {
                    continue;
                }
                let path = tree.join(names::path(&name));
                if excluded.iter().any(|out| path.starts_with(out)) {
                    continue;
                }
                match path.symlink_metadata() {
                    Ok(about) if about.is_file() && !(about.len() <= LARGEST && readable(&about, owner)) => {
                        left_out += 1;
                    }
                    Ok(about) if !about.is_file() && !about.is_symlink() && !about.is_dir() => {}
                    _ => kept.push(name),
                }
            }
            (kept, left_out)
        });
        sorting.await.map_err(|e| other(format!("the program failed inside: {e}")))
    }

    async fn update(&self, index: &Index, how: &[&str], names: Vec<Vec<u8>>) -> Result<(), AdapterError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut input = Vec::new();
        for name in names {
            input.extend_from_slice(&name);
            input.push(0);
        }
        let argv: Vec<&str> = [&["update-index"], how, &["-z", "--stdin"]].concat();
        self.git(&argv, Some(index), Some(input.into())).await.map(drop)
    }

    async fn commit(
        &self,
        tree: &str,
        head: Option<&str>,
        cx: &FlushContext,
    ) -> Result<String, AdapterError> {
        let message = format!("Emergency commit: {} goes away", cx.host);
        let mut argv = vec!["commit-tree", tree, "-m", &message];
        argv.extend(head.iter().flat_map(|head| ["-p", *head]));
        self.git(&argv, None, None).await?.word()
    }

    /// What a name stands for, if for anything.
    async fn object(&self, name: &str) -> Result<Option<String>, AdapterError> {
        let argv = ["rev-parse", "--verify", "--quiet", "--end-of-options", name];
        let said = self.git_accepting(&argv, None, None, &[0, 1]).await?;
        Ok(said.word().ok())
    }

    async fn is_pushed(&self, commit: &str, remote: &str) -> Result<bool, AdapterError> {
        let under = format!("refs/remotes/{remote}/");
        let said = self.git(&["for-each-ref", "--count=1", "--contains", commit, &under], None, None).await?;
        Ok(!said.0.is_empty())
    }

    async fn git(
        &self,
        argv: &[&str],
        index: Option<&Index>,
        input: Option<Bytes>,
    ) -> Result<Names, AdapterError> {
        self.git_accepting(argv, index, input, &[0]).await
    }

    async fn git_accepting(
        &self,
        argv: &[&str],
        index: Option<&Index>,
        input: Option<Bytes>,
        accept: &[i64],
    ) -> Result<Names, AdapterError> {
        // Variables that are no secrets, and that errors may show: not by the program's own environment.
        let mut all = vec!["env".to_owned()];
        if let Some(owner) = &self.user {
            all.extend(["-u".to_owned(), "XDG_CONFIG_HOME".to_owned(), format!("HOME={}", owner.home)]);
        }
        all.extend(
            ["GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=true", "SSH_ASKPASS_REQUIRE=never"].map(str::to_owned),
        );
        all.extend(self.ssh.iter().map(|ssh| format!("GIT_SSH_COMMAND={ssh}")));
        for who in ["AUTHOR", "COMMITTER"] {
            all.push(format!("GIT_{who}_NAME=backup"));
            all.push(format!("GIT_{who}_EMAIL=backup@localhost"));
        }
        if let Some(index) = index {
            all.push(format!("GIT_INDEX_FILE={}", index.0.display()));
        }
        all.extend(["git".to_owned(), "-C".to_owned(), self.tree.to_string_lossy().into_owned()]);
        all.extend(["-c".to_owned(), format!("safe.directory={}", self.tree.display())]);
        all.extend(SETTINGS.map(str::to_owned));
        all.extend(argv.iter().map(|&a| a.to_owned()));
        let verb = argv.first().copied().unwrap_or_default();
        self.run(all, input, accept).await.map_err(|e| {
            let said = scrubbed(&chain(&e)).replace("`env`", &format!("`git {verb}`"));
            AdapterError::new(e.kind(), said)
        })
    }

    async fn run(
        &self,
        argv: Vec<String>,
        input: Option<Bytes>,
        accept: &[i64],
    ) -> Result<Names, AdapterError> {
        let mut command = ExecCommand::new(argv).with_deadline(Some(self.until));
        command.accept = accept.to_vec();
        command.user = self.user.as_ref().map(|owner| owner.id.to_string());
        if let Some(input) = input {
            command = command.with_stdin(futures::stream::iter([Ok(input)]).boxed());
        }
        let running = HostRuntime::new().exec(command).await?;
        let said: Vec<Bytes> = running.stdout.try_collect().await?;
        Ok(Names(said.concat()))
    }
}

/// Whether git, run as the tree's owner, can probably read a file: one that it cannot would fail all of it.
fn readable(about: &std::fs::Metadata, owner: Option<u32>) -> bool {
    owner.is_none_or(|owner| about.uid() == owner || about.mode() & 0o004 != 0)
}

async fn home_of(id: u32, until: Instant) -> Result<String, AdapterError> {
    let command = ExecCommand::new(["getent", "passwd", &id.to_string()]).with_deadline(Some(until));
    let running = HostRuntime::new().exec(command).await?;
    let said: Vec<Bytes> = running.stdout.try_collect().await.map_err(|e: AdapterError| {
        other(format!("it belongs to user {id}, whom this host does not know")).with_source(e)
    })?;
    let line = String::from_utf8_lossy(&said.concat()).into_owned();
    let home = line.trim_end().split(':').nth(5).filter(|home| !home.is_empty());
    home.map(str::to_owned).ok_or_else(|| other(format!("user {id}, whom it belongs to, has no home")))
}

fn other(what: impl Into<String>) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Other, what)
}
