//! A password that was changed between a backup and its restore.

use crate::killed::text;
use crate::neo4j_kills::{Host, PASSWORD};

const NEW: &str = "canary-new-44c2";

fn configure(host: &Host, more: &str) {
    host.folder.configure(&format!(
        "store.url = 'store'\n[intervals.often]\nservices = ['env', 'neo4j']\nkeep = 5\n\
         [services.env]\nkind = 'env'\npaths = ['.env']\n\
         [services.neo4j]\nkind = 'neo4j'\ncontainer = '{}'\ncapture = 'clone'\n\
         password = {{ dotenv = '.env', key = 'NEO4J_PASSWORD' }}\n{more}",
        host.name
    ));
}

fn restore(host: &Host, at: &str) -> String {
    let done = host.folder.command(&["restore", "neo4j", "--at", at, "--yes"]).output().unwrap();
    let told = [done.stdout, done.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(done.status.success(), "{told}");
    assert!(!told.contains(PASSWORD) && !told.contains(NEW), "{told}");
    told
}

#[test]
#[ignore = "needs Docker and root"]
fn the_dotenv_file_of_the_backups_time_lets_in() {
    let host = Host::new("credentials");
    let dotenv = |password: &str| {
        std::fs::write(host.folder.path(".env"), format!("NEO4J_PASSWORD={password}\n")).unwrap();
    };
    dotenv(PASSWORD);
    configure(&host, "");
    host.folder.ok(&["run", "often"]);
    let listed = host.folder.ok(&["list", "--all", "--json"]);
    let listed = listed.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let mut ids = listed.filter_map(|l| l["id"].as_str().map(str::to_owned));
    let first = ids.find(|id| id.starts_with("neo4j/")).unwrap();

    let change = format!("ALTER CURRENT USER SET PASSWORD FROM '{PASSWORD}' TO '{NEW}'");
    text(&host.cypher_in("system", &change));
    dotenv(NEW);
    host.folder.ok(&["run", "often"]);

    let told = restore(&host, &first);
    assert!(told.contains("credentials differ") && told.contains("and is taken"), "{told}");
    assert_eq!(host.count(), "1000", "the password of that time");

    // It is healthy. That it refuses the password of today does not mean that it holds nothing.
    let all = |more: &[&str]| {
        let moment = first.rsplit('/').next().unwrap();
        let command = [&["recover", "--service", "neo4j", "--at", moment, "--yes"], more].concat();
        let done = host.folder.command(&command).output().unwrap();
        let told = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(!told.contains(PASSWORD) && !told.contains(NEW), "{told}");
        (done.status.code(), told)
    };
    let (code, told) = all(&[]);
    assert!(code == Some(1) && told.contains("did not tell whether it holds data"), "{code:?} {told}");
    let (code, told) = all(&["--overwrite", "neo4j"]);
    assert!(code == Some(0) && told.contains("credentials differ"), "{code:?} {told}");
    assert_eq!(host.count(), "1000", "the password of that time");

    configure(&host, "reset_password = true\n");
    let told = restore(&host, &first);
    assert!(!told.contains("differ"), "{told}");
    assert!(!host.cypher("RETURN 1").status.success(), "the password of that time is taken");
    host.folder.ok(&["run", "often"]);
}
