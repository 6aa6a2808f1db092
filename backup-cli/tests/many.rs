//! A bucket of a hundred thousand objects, over HTTP: what is asked of it is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::support::{FIRST, Ran, World, ran};

/// Each has five objects.
const BACKUPS: usize = 20_000;
/// As AWS has it.
const PAGE: usize = 1000;

/// A bucket `ours` in memory. It ends with the process.
#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, String>,
    /// `METHOD what`, where that is `page`, `folders` or `object`.
    asked: BTreeMap<String, usize>,
}

struct Server {
    url: String,
    bucket: Arc<Mutex<Bucket>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let bucket = Arc::<Mutex<Bucket>>::default();
        let shared = Arc::clone(&bucket);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let bucket = Arc::clone(&shared);
                // What a client breaks off is broken off.
                std::thread::spawn(move || drop(serve(&stream, &bucket)));
            }
        });
        Self { url, bucket }
    }

    fn put(&self, key: String, text: String) {
        self.bucket.lock().unwrap().objects.insert(key, text);
    }

    /// What was asked for since the last time.
    fn asked(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut self.bucket.lock().unwrap().asked)
    }

    fn ok(&self, world: &World, args: &[&str]) -> Ran {
        let ran = self.run(world, args);
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
        ran
    }

    fn run(&self, world: &World, args: &[&str]) -> Ran {
        let mut command = world.command(args);
        command.env("AWS_ENDPOINT_URL_S3", &self.url).env("AWS_REGION", "us-east-1");
        ran(command.env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b"))
    }
}

fn serve(stream: &TcpStream, bucket: &Mutex<Bucket>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? <= 2 {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let (what, status, answer) = bucket.lock().unwrap().answer(method, target, &body);
        *bucket.lock().unwrap().asked.entry(format!("{method} {what}")).or_default() += 1;
        let mut head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", answer.len());
        if what == "object" {
            write!(head, "etag: \"{}\"\r\nlast-modified: {MODIFIED}\r\n", etag(&answer)).unwrap();
        }
        let answer = if method == "HEAD" { "" } else { &answer };
        (&mut &*stream).write_all(format!("{head}\r\n{answer}").as_bytes())?;
    }
}

const MODIFIED: &str = "Mon, 09 Mar 2026 04:38:20 GMT";

fn etag(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn decoded(text: &str) -> String {
    let mut pieces = text.split('%');
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |all, piece| {
        let (code, rest) = piece.split_at(2);
        all + &char::from(u8::from_str_radix(code, 16).unwrap()).to_string() + rest
    })
}

impl Bucket {
    fn answer(&mut self, method: &str, target: &str, body: &[u8]) -> (&'static str, &'static str, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = decoded(path);
        let key = path.strip_prefix("/ours").unwrap().trim_start_matches('/').to_owned();
        let said: BTreeMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect();
        match (method, key.as_str()) {
            ("GET", "") if said.contains_key("list-type") => {
                let folders = said.contains_key("delimiter");
                (if folders { "folders" } else { "page" }, "200 OK", self.page(&said))
            }
            ("GET" | "HEAD", _) if query.is_empty() => match self.objects.get(&key) {
                Some(text) => ("object", "200 OK", text.clone()),
                None => {
                    let text = "<Error><Code>NoSuchKey</Code><Message>None.</Message></Error>";
                    ("nothing", "404 Not Found", text.to_owned())
                }
            },
            ("PUT", _) if query.is_empty() => {
                self.objects.insert(key, String::from_utf8(body.to_vec()).unwrap());
                ("written", "200 OK\r\netag: \"new\"", String::new())
            }
            _ => ("other", "501 Not Implemented", String::new()),
        }
    }

    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>
    fn page(&self, said: &BTreeMap<String, String>) -> String {
        let prefix = said.get("prefix").cloned().unwrap_or_default();
        let (mut contents, mut folders, mut truncated) = (String::new(), BTreeSet::new(), None);
        let mut from = said.get("continuation-token").cloned().unwrap_or_else(|| prefix.clone());
        let mut listed = 0;
        while let Some((key, text)) = self.objects.range(from.clone()..).next() {
            let Some(rest) = key.strip_prefix(&prefix) else { break };
            if listed == PAGE {
                truncated = Some(key.clone());
                break;
            }
            listed += 1;
            if let Some((folder, _)) = rest.split_once('/').filter(|_| said.contains_key("delimiter")) {
                folders.insert(format!("{prefix}{folder}/"));
                // The next one after all that is in it.
                from = format!("{prefix}{folder}0");
                continue;
            }
            let (size, etag) = (text.len(), etag(text));
            write!(
                contents,
                "<Contents><Key>{key}</Key><LastModified>2026-03-09T04:38:20.000Z</LastModified><ETag>&quot;{etag}&quot;</ETag>\
                 <Size>{size}</Size></Contents>"
            )
            .unwrap();
            from = format!("{key}\0");
        }
        let token = truncated.as_ref();
        let token = token.map(|key| format!("<NextContinuationToken>{key}</NextContinuationToken>"));
        let folders: Vec<String> = folders
            .iter()
            .map(|f| format!("<CommonPrefixes><Prefix>{f}</Prefix></CommonPrefixes>"))
            .collect();
        format!(
            "<ListBucketResult><Name>ours</Name><Prefix>{prefix}</Prefix><IsTruncated>{}</IsTruncated>{}{contents}{}\
             </ListBucketResult>",
            truncated.is_some(),
            token.unwrap_or_default(),
            folders.concat()
        )
    }
}

/// Backups, an hour apart, as copies of one that was really made.
struct Twins {
    /// Names within the directory, and the text.
    files: Vec<(String, String)>,
}

impl Twins {
    fn of(world: &World) -> Self {
        let dir = world.path(&format!("store/data/hourly/{FIRST}"));
        let read = |entry: std::fs::DirEntry| {
            // What a listing does not read may be anything.
            let text = std::fs::read(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), String::from_utf8(text).unwrap_or_default())
        };
        let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap())).collect();
        assert_eq!(files.len(), 5, "{files:?}");
        Self { files }
    }

    fn put(&self, server: &Server, n: usize) {
        let hours = chrono::TimeDelta::hours(i64::try_from(n).unwrap());
        let at = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap() + hours;
        let name = at.format("%Y%m%d_%H%M%S").to_string();
        for (file, text) in &self.files {
            let key = format!("host/data/hourly/{name}/{}", file.replace(FIRST, &name));
            server.put(key, text.replace(FIRST, &name));
        }
    }
}

/// How many good backups there are, by the last line.
fn good(ran: &Ran) -> usize {
    ran.lines().iter().filter(|l| l["event"] == "backup" && l["state"] == "good").count()
}

#[test]
#[ignore = "long: 100,000 objects over HTTP"]
fn a_listing_of_a_hundred_thousand_objects_asks_for_pages_once_it_knows_the_backups() {
    let (world, server) = (World::configured(), Server::start());
    world.ok(&["run", "hourly"]);
    let twins = Twins::of(&world);
    (0..BACKUPS).for_each(|n| twins.put(&server, n));
    server.put("host/store.json".to_owned(), world.read("store/store.json"));
    let config = world
        .read("backup.toml")
        .replace("url = \"store\"", "url = \"s3://ours/host\"\noptions = { allow_http = true }");
    world.write("backup.toml", &config);
    // Of another store there is another cache.
    std::fs::remove_dir_all(world.path("state")).unwrap();

    let pages = (5 * BACKUPS).div_ceil(PAGE);
    let count = |asked: &BTreeMap<String, usize>, what: &str| asked.get(what).copied().unwrap_or_default();
    assert_eq!(good(&server.ok(&world, &["list", "--json"])), BACKUPS);
    let cold = server.asked();
    let read = count(&cold, "GET object");
    assert!((BACKUPS..BACKUPS + 10).contains(&read), "each metadata.json once: {cold:?}");
    assert!(count(&cold, "GET page") <= pages + 2, "{cold:?}");

    for args in [&["list", "--json"][..], &["list", "data", "--json"]] {
        assert_eq!(good(&server.ok(&world, args)), BACKUPS);
        let warm = server.asked();
        let all: usize = warm.values().sum();
        assert!(all <= pages + 20, "{args:?}: {all} requests: {warm:?}");
    }
    // Of what is new, that alone is read.
    twins.put(&server, BACKUPS);
    assert_eq!(good(&server.ok(&world, &["list", "--json"])), BACKUPS + 1);
    let one_more = server.asked();
    assert!(count(&one_more, "GET object") < 10, "{one_more:?}");
    // What looks at the newest one of each service, which is too old here, reads no more.
    let told = server.run(&world, &["status", "data"]);
    assert!(told.code == 1 && told.out.contains("data"), "{told:#?}");
    let status = server.asked();
    assert!(status.values().sum::<usize>() <= 2 * (pages + 20), "{status:?}");
}
