//! Git servers: smart HTTP by `git http-backend`, and SSH by dropbear, an SSH server that is not the client's.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::git::git;
use super::*;

const USER: &str = "me";
const PASSWORD: &str = "canary-password-79";
/// `me:canary-password-79`.
const BASIC: &str = "Basic bWU6Y2FuYXJ5LXBhc3N3b3JkLTc5";
const BRANCH: &str = "spot/ip-10-0-0-1/20260309_043820";

/// Serves the repositories below `root`; returns `host:port`. It ends with the process.
fn serve(root: PathBuf, password: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let root = root.clone();
            std::thread::spawn(move || answer(stream.unwrap(), &root, password));
        }
    });
    address
}

/// One request by way of CGI: <https://git-scm.com/docs/git-http-backend>.
fn answer(mut stream: TcpStream, root: &Path, password: bool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut line) = (Vec::new(), String::new());
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        head.push(line.trim_end().to_owned());
        line.clear();
    }
    let Some(first) = head.first() else { return };
    let header = |name: &str| {
        let mut headers = head.iter().filter_map(|h| h.split_once(": "));
        headers.find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned()).unwrap_or_default()
    };
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let allowed = header("authorization") == BASIC;
    if password && !allowed {
        let refused = "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(refused.as_bytes()).unwrap();
        return;
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut cgi = Command::new("git");
    cgi.arg("http-backend").env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1");
    cgi.env("REQUEST_METHOD", method).env("PATH_INFO", path).env("QUERY_STRING", query);
    cgi.env("CONTENT_TYPE", header("content-type")).env("CONTENT_LENGTH", header("content-length"));
    cgi.env("HTTP_CONTENT_ENCODING", header("content-encoding")).env("REMOTE_USER", USER);
    let mut cgi = cgi.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    cgi.stdin.take().unwrap().write_all(&body).unwrap();
    let said = cgi.wait_with_output().unwrap().stdout;
    let status = match said.strip_prefix(b"Status: ") {
        Some(rest) => String::from_utf8_lossy(rest).lines().next().unwrap().to_owned(),
        None => "200 OK".to_owned(),
    };
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    let _gone = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&said));
}

/// A host whose code is in `app`, with a remote `remote.git` that takes pushes.
fn host() -> Host {
    let host = Host::new("repositories = ['app']\n");
    host.world.write("app/main.rs", "unfinished\n");
    let (app, remote) = (host.world.path("app"), host.world.path("remote.git"));
    git(&host.world.path(""), &["init", "-q", "--bare", &remote.display().to_string()]);
    git(&remote, &["config", "http.receivepack", "true"]);
    git(&app, &["init", "-q"]);
    git(&app, &["remote", "add", "origin", "/nowhere"]);
    host
}

/// Pushes to `url`; no word that anybody sees, or that is kept, has the password.
#[track_caller]
fn push_to(host: &Host, url: &str) -> Ran {
    git(&host.world.path("app"), &["remote", "set-url", "origin", url]);
    let began = Instant::now();
    let args = ["spot", "simulate", "--in-earnest", "--yes", "--notice", "30s", "--json", "-vvv"];
    let ran = host.run(&args);
    assert!(began.elapsed() < Duration::from_secs(20), "it hung: {:?}", began.elapsed());
    assert!(!format!("{ran:?}").contains("canary-password"), "{ran:#?}");
    let told = host.server.says(|s| format!("{:?}", s.posted));
    assert!(!told.contains("canary-password"), "{told}");
    let kept = ["-rlF", "canary-password", "store", "far", "state"];
    let kept = Command::new("grep").args(kept).current_dir(host.world.path("")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&kept.stdout), "", "it is kept");
    ran
}

fn pushed(host: &Host) -> String {
    git(&host.world.path("remote.git"), &["for-each-ref", "--format=%(refname:short)", "refs/heads/spot"])
}

/// What a push failed with: one line.
#[track_caller]
fn refused(host: &Host, ran: &Ran) -> String {
    assert_eq!(ran.code, 3, "{ran:#?}");
    let error = step(ran, "git")["error"].as_str().unwrap().to_owned();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(BRANCH) && error.contains("not pushed"), "{error}");
    assert_eq!(pushed(host), "");
    let saved = git(&host.world.path("app"), &["show", &format!("{BRANCH}:main.rs")]);
    assert_eq!(saved, "unfinished\n", "it is here");
    error
}

#[test]
fn a_server_that_asks_for_nothing_is_pushed_to() {
    let host = host();
    let address = serve(host.world.path(""), false);
    let ran = push_to(&host, &format!("http://{address}/remote.git"));
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(pushed(&host).trim(), BRANCH);
}

#[test]
fn a_password_comes_from_the_url_or_a_helper_and_is_shown_nowhere() {
    for helper in [false, true] {
        let host = host();
        let address = serve(host.world.path(""), true);
        let with = format!("http://{USER}:{PASSWORD}@{address}");
        let url = match helper {
            false => with,
            true => {
                host.world.write("credentials", &format!("{with}\n"));
                let store = format!("store --file={}", host.world.path("credentials").display());
                git(&host.world.path("app"), &["config", "credential.helper", &store]);
                format!("http://{address}")
            }
        };
        let ran = push_to(&host, &format!("{url}/remote.git"));
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert_eq!(pushed(&host).trim(), BRANCH);
    }
}

#[test]
fn nobody_is_asked_for_a_password() {
    for (user, says) in [("", "credential.helper"), ("me:canary-password-wrong@", "credential.helper")] {
        let host = host();
        let address = serve(host.world.path(""), true);
        let ran = push_to(&host, &format!("http://{user}{address}/remote.git"));
        let error = refused(&host, &ran);
        assert!(error.contains("Authentication failed") && error.contains(says), "{error}");
    }
}

/// An SSH server for root, whose home it has by itself: nothing of this machine's users is touched.
struct Ssh {
    port: u16,
    /// What a client needs: `config`, `key`, `known_hosts`.
    dir: tempfile::TempDir,
}

impl Ssh {
    fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let at = |name: &str| dir.path().join(name);
        let run = |program: &str, args: &[&std::ffi::OsStr]| {
            let out = Command::new(program).args(args).output();
            let out = out.unwrap_or_else(|e| panic!("{program}: {e}: scripts/test installs it"));
            assert!(out.status.success(), "{program}: {out:?}");
            String::from_utf8(out.stdout).unwrap()
        };
        let (key, host_key) = (at("key"), at("host"));
        run(
            "ssh-keygen",
            &["-qt", "ed25519", "-N", "", "-f"]
                .map(AsRef::as_ref)
                .into_iter()
                .chain([key.as_ref()])
                .collect::<Vec<_>>(),
        );
        run("dropbearkey", &["-t".as_ref(), "ed25519".as_ref(), "-f".as_ref(), host_key.as_ref()]);
        let public = run("dropbearkey", &["-y".as_ref(), "-f".as_ref(), host_key.as_ref()]);
        let public = public.lines().find(|l| l.starts_with("ssh-ed25519")).unwrap();
        std::fs::write(at("known_hosts"), format!("[127.0.0.1]:{port} {public}\n")).unwrap();
        let ssh = at("home/.ssh");
        std::fs::create_dir_all(&ssh).unwrap();
        std::fs::copy(at("key.pub"), ssh.join("authorized_keys")).unwrap();
        for (path, mode) in [(at("home"), 0o700), (ssh.clone(), 0o700), (ssh.join("authorized_keys"), 0o600)]
        {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        std::fs::write(
            at("config"),
            format!(
                "Host *\nIdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\nGlobalKnownHostsFile /dev/null\n",
                key.display(),
                at("known_hosts").display()
            ),
        )
        .unwrap();
        let home = at("home");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let fd = OwnedFd::from(stream.unwrap());
                let mut server = Command::new("unshare");
                server.args([
                    "--mount",
                    "sh",
                    "-c",
                    "mount --bind \"$1\" /root && exec dropbear -i -s -m -r \"$2\"",
                    "sh",
                ]);
                server
                    .arg(&home)
                    .arg(&host_key)
                    .stdin(fd.try_clone().unwrap())
                    .stdout(fd)
                    .stderr(Stdio::null());
                // It ends with the connection.
                std::thread::spawn(move || server.status());
            }
        });
        Self { port, dir }
    }

    fn url(&self, host: &Host) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.port, host.world.path("remote.git").display())
    }

    fn command(&self) -> String {
        format!("ssh -F {}", self.dir.path().join("config").display())
    }
}

#[test]
#[ignore = "needs root, dropbear, and the user `nobody`"]
fn ssh_pushes_with_the_key_of_the_owner_of_the_work_tree() {
    let ssh = Ssh::start();
    for owner in ["root", "nobody"] {
        let host = host();
        let app = host.world.path("app");
        git(&app, &["config", "core.sshCommand", &ssh.command()]);
        for above in app.parent().unwrap().ancestors().take_while(|dir| *dir != std::env::temp_dir()) {
            std::fs::set_permissions(above, PermissionsExt::from_mode(0o755)).unwrap();
        }
        // A key that another user could read, or owns, is none to ssh.
        let status =
            Command::new("chown").args(["-R", owner]).args([&app, &ssh.dir.path().join("key")]).status();
        assert!(status.unwrap().success());
        git(
            &host.world.path(""),
            &["config", "--file", "app/.git/config", "remote.origin.url", &ssh.url(&host)],
        );
        let ran = flush(&host);
        assert_eq!(ran.code, 0, "{owner}: {ran:#?}");
        assert_eq!(pushed(&host).trim(), BRANCH, "{owner}");
    }
}

#[test]
#[ignore = "needs root, and dropbear"]
fn ssh_asks_nobody_whether_a_server_is_the_right_one_or_for_a_password() {
    let ssh = Ssh::start();
    // A key that the server does not know; then a server that nobody knows, by the usual command and by one's own.
    let other = ssh.dir.path().join("other");
    let made = Command::new("ssh-keygen").args(["-qt", "ed25519", "-N", "", "-f"]).arg(&other).status();
    assert!(made.unwrap().success());
    let known = ssh.dir.path().join("known_hosts");
    let other = format!("ssh -F /dev/null -o UserKnownHostsFile={} -i {}", known.display(), other.display());
    let unknown = format!("{} -o UserKnownHostsFile=/dev/null", ssh.command());
    for (command, says) in [
        (Some(other), ["Permission denied", "without a passphrase"]),
        (Some(unknown), ["Host key verification failed", "known_hosts"]),
        (None, ["Host key verification failed", "known_hosts"]),
    ] {
        let host = host();
        if let Some(command) = &command {
            git(&host.world.path("app"), &["config", "core.sshCommand", command]);
        }
        let ran = push_to(&host, &ssh.url(&host));
        let error = refused(&host, &ran);
        assert!(says.iter().all(|says| error.contains(says)), "{command:?}: {error}");
    }
}

fn flush(host: &Host) -> Ran {
    host.run(&["spot", "simulate", "--in-earnest", "--yes", "--notice", "30s", "--json"])
}
