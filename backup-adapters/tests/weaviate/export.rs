//! A server without the module `backup-filesystem`: exported, and restored from that.

use std::sync::Arc;
use std::time::Duration;

use backup_core::testkit::adapter_suite::{Captured, capture};
use backup_core::{
    AdapterError, AdapterErrorKind, Consistency, HandContext, RestoreTarget, ScratchHandle, ServiceAdapter,
    chain,
};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::faults::through;
use crate::killed::killed_in;
use crate::proxy::{Fault, Proxy};
use crate::support::{CANARY, Server, bench, docker, later, staged};

async fn start() -> Server {
    let server = Server::with(&["-e", "ENABLE_MODULES="]).await;
    server.seed().await;
    server
}

/// Named vectors, references in a circle and to nowhere, several shards, an alias, values of every kind.
async fn seed_more(server: &Server) {
    let text = json!({ "name": "text", "dataType": ["text"] });
    let named = json!({
        "class": "Named", "properties": [
            text, { "name": "inner", "dataType": ["object"], "nestedProperties": [{ "name": "x", "dataType": ["int"] }] },
            { "name": "blob", "dataType": ["blob"] }, { "name": "when", "dataType": ["date"] },
            { "name": "place", "dataType": ["geoCoordinates"] }, { "name": "self", "dataType": ["Named"] },
        ],
        "vectorConfig": {
            "a": { "vectorizer": { "none": {} }, "vectorIndexType": "hnsw" },
            "b": { "vectorizer": { "none": {} }, "vectorIndexType": "flat" },
            "rows": { "vectorizer": { "none": {} }, "vectorIndexType": "hnsw",
                      "vectorIndexConfig": { "multivector": { "enabled": true } } },
        },
    });
    server.call("POST", "/v1/schema", Some(named)).await;
    let shards = json!({ "class": "Shards", "vectorizer": "none", "shardingConfig": { "desiredCount": 3 },
                         "properties": [text, { "name": "to", "dataType": ["Named"] }] });
    server.call("POST", "/v1/schema", Some(shards)).await;
    let back = json!({ "name": "back", "dataType": ["Shards", "Named"] });
    server.call("POST", "/v1/schema/Named/properties", Some(back)).await;
    let id = |n: u32| format!("{:08x}-0000-4000-8000-{n:012}", n.wrapping_mul(2_654_435_761));
    let objects: Vec<Value> = (0..60)
        .flat_map(|n| {
            let x = f64::from(n);
            [
                json!({ "class": "Shards", "id": id(n), "vector": [0.1, 1e-7, x], "properties": { "text": "a\n\"\u{2028}ü" } }),
                json!({ "class": "Named", "id": id(n),
                        "vectors": { "a": [0.25, x], "b": [x, 1.5, 2.0], "rows": [[0.5, x], [x, 0.25]] },
                        "properties": { "text": format!("{n}"), "inner": { "x": n }, "blob": "aGFsbG8=",
                                        "when": "2020-01-01T00:00:00Z",
                                        "place": { "latitude": 1.5, "longitude": 2.0 } } }),
            ]
        })
        .chain([
            json!({ "class": "Shards", "id": "00000000-0000-0000-0000-000000000000", "vector": [0.1, 0.2, 0.3] }),
            // One without a vector.
            json!({ "class": "Shards", "id": "ffffffff-ffff-4fff-bfff-ffffffffffff", "properties": {} }),
        ])
        .collect();
    let answer = server.call("POST", "/v1/batch/objects", Some(json!({ "objects": objects }))).await;
    assert!(answer.as_array().unwrap().iter().all(|o| o["result"]["errors"].is_null()), "{answer}");
    let beacon = |class: &str, n: u32| format!("weaviate://localhost/{class}/{}", id(n));
    let references: Vec<Value> = (0..60)
        .flat_map(|n| {
            let next = (n + 1) % 60;
            [
                json!({ "from": format!("{}/to", beacon("Shards", n)), "to": beacon("Named", next) }),
                json!({ "from": format!("{}/self", beacon("Named", n)), "to": beacon("Named", next) }),
                json!({ "from": format!("{}/back", beacon("Named", n)), "to": beacon("Shards", n) }),
                json!({ "from": format!("{}/back", beacon("Named", n)), "to": beacon("Shards", next) }),
            ]
        })
        .collect();
    let answer = server.call("POST", "/v1/batch/references", Some(json!(references))).await;
    assert!(answer.as_array().unwrap().iter().all(|o| o["result"]["errors"].is_null()), "{answer}");
    server.call("POST", "/v1/aliases", Some(json!({ "alias": "Other", "class": "Shards" }))).await;
}

/// What an export keeps: without users and roles, and without the times at which objects were made.
async fn content(server: &Server) -> String {
    let digest = server.digest().await;
    let mut lines: Vec<String> = Vec::new();
    for line in digest.lines().filter(|l| !l.starts_with("roles ")) {
        let mut line = line.to_owned();
        if let Ok(mut object) = serde_json::from_str::<Value>(&line)
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("creationTimeUnix");
            fields.remove("lastUpdateTimeUnix");
            line = object.to_string();
        } else if let Some((class, properties)) = line.split_once(' ')
            && let Ok(Value::Array(mut properties)) = serde_json::from_str(properties)
        {
            // References are made last.
            properties.sort_by_key(|p| p["name"].to_string());
            line = format!("{class} {}", Value::Array(properties));
        }
        lines.push(line);
    }
    lines.push(server.call("GET", "/v1/aliases", None).await.to_string());
    lines.join("\n")
}

async fn assert_content(server: &Server, wanted: &str, what: &str) {
    let found = content(server).await;
    let first = wanted.lines().zip(found.lines()).find(|(a, b)| a != b);
    assert!(found == wanted, "{what}: first difference {first:?}");
}

async fn exported(adapter: &dyn ServiceAdapter) -> Captured {
    capture(adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)))
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn an_export_brings_back_objects_vectors_tenants_and_references() {
    let server = start().await;
    seed_more(&server).await;
    let adapter = server.adapter("");
    adapter.check(&bench().cx()).await.unwrap();
    let wanted = content(&server).await;
    let backup = exported(&*adapter).await;
    let report = &backup.report;
    assert_eq!((report.consistency, report.mode.as_str()), (Consistency::OnlineUnverified, "export"));
    assert!(report.warnings.iter().any(|w| w.contains("backup-filesystem") && w.contains("Users and roles")));
    for (name, count) in [
        ("objects.Doc", 300),
        ("objects.Ten.asleep", 50),
        ("objects.Named", 60),
        ("objects.Shards", 62),
        ("searchable", 5),
    ] {
        assert_eq!(report.evidence.counts.get(name), Some(&count), "{name}: {:?}", report.evidence);
    }
    assert_ne!(server.tenant("Ten", "asleep").await, "HOT");
    assert!(!format!("{backup:?}").contains(CANARY));
    assert_content(&server, &wanted, "the export changed something").await;
    server.call("DELETE", "/v1/schema/Doc", None).await;
    server.make_class("Later", false).await;
    let old = content(&server).await;
    let bench = bench();
    let cx = bench.cx();
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert!(
        plan.steps.iter().any(|s| s.contains("users and roles are not in an export")),
        "{:?}",
        plan.steps
    );
    assert_content(&server, &old, "staging changed something").await;
    let switched = adapter.switch(&cx, &plan, &token).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_content(&server, &wanted, "restored").await;
    server.restart().await;
    assert_content(&server, &wanted, "restarted").await;
    let later = later(&cx);
    let undone = adapter.undo(&later, &switched).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_content(&server, &old, "undone").await;
    adapter.discard(&later, &undone).await.unwrap();
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn an_export_is_tried_out_in_scratch_and_tells_what_cannot_be_imported() {
    let server = start().await;
    seed_more(&server).await;
    // References that lead nowhere: the server keeps them, and takes none.
    let gone = server.call("GET", "/v1/objects?class=Named&limit=1", None).await;
    let gone = gone["objects"][0]["id"].as_str().unwrap().to_owned();
    server.call("DELETE", &format!("/v1/objects/Named/{gone}"), None).await;
    let adapter = server.adapter("capture = 'export'\ninactive_tenants = 'leave-out'");
    let backup = exported(&*adapter).await;
    assert_eq!(backup.report.evidence.counts["objects.Ten"], 40);
    let bench = bench();
    let cx = bench.cx();
    let dir = tempfile::tempdir().unwrap();
    let target =
        RestoreTarget::Scratch(ScratchHandle { dir: dir.path().to_owned(), run_id: cx.run_id.clone() });
    backup.restore(&*adapter, &cx, &target).await.unwrap();
    let found = adapter.probe(&cx, &target).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.evidence.contradictions(&found), Vec::<String>::new());
    assert_eq!((found.counts["objects.Named"], found.counts["tenants"]), (59, 2));
    // An object that the server does not take.
    let folder = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let page = folder.join("Doc/000001.jsonl");
    let text = std::fs::read_to_string(&page).unwrap();
    std::fs::write(&page, text.replacen("\"vector\":[", "\"vector\":[1.5,", 1)).unwrap();
    let e = adapter.probe(&cx, &target).await.unwrap_err();
    assert!(chain(&e).contains("collection `Doc` of the export cannot be imported"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn the_steps_by_hand_bring_an_export_back() {
    let server = start().await;
    let adapter = server.adapter("");
    let wanted = content(&server).await;
    let backup = exported(&*adapter).await;
    let dir = tempfile::tempdir().unwrap();
    let artifact = &backup.metadata.artifacts[0];
    std::fs::write(dir.path().join(&artifact.files[0].path), backup.body(&artifact.name).concat()).unwrap();
    let empty = Server::with(&["-e", "ENABLE_MODULES="]).await;
    let base = empty.base().await;
    for step in adapter.by_hand(&HandContext { metadata: &backup.metadata }) {
        let command = format!("set -o pipefail; {}", step.command.replace("http://localhost:8080", &base));
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", &command]).current_dir(dir.path()).env("WEAVIATE_API_KEY", CANARY);
        let ran = tokio::task::spawn_blocking(move || bash.output().unwrap()).await.unwrap();
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{command}: {text}");
        assert!(!String::from_utf8_lossy(&ran.stdout).contains("message"), "{command}: {text}");
    }
    empty.set_tenant("Ten", "asleep", "INACTIVE").await;
    assert_content(&empty, &wanted, "by hand").await;
}

async fn with(
    server: &Server,
    rule: impl FnMut(&str) -> Fault + Send + 'static,
    seconds: u64,
) -> Result<Captured, AdapterError> {
    let proxy = Proxy::start(&server.base().await, rule).await;
    let mut cx = bench().cx();
    cx.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(seconds));
    let adapter: Arc<dyn ServiceAdapter> = through(server, &proxy);
    capture(&*adapter, &cx).await
}

/// The n-th page of collection `Doc`, and with `all` each one after it.
fn page(mut n: u32, all: bool, fault: Fault) -> impl FnMut(&str) -> Fault {
    move |first| {
        // Other requests ask for one object, without a cursor.
        if !(first.starts_with("GET /v1/objects?class=Doc&") && first.contains("&after=")) {
            return Fault::Pass;
        }
        n = n.saturating_sub(1);
        if n == 0 {
            n = if all { 1 } else { u32::MAX };
            return fault.clone();
        }
        Fault::Pass
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_page_that_is_cut_or_short_is_never_an_end() {
    let server = start().await;
    for fault in [Fault::Cut, Fault::Lose, Fault::Answer(500, "{}".into())] {
        let label = format!("{fault:?}");
        let blip = with(&server, page(2, false, fault.clone()), 60).await;
        let blip = blip.unwrap_or_else(|e| panic!("{label}: {}", chain(&e)));
        assert_eq!(blip.report.evidence.counts["objects.Doc"], 300, "{label}");
        let e = with(&server, page(2, true, fault), 6).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Timeout, "{label}: {}", chain(&e));
        assert_ne!(server.tenant("Ten", "asleep").await, "HOT", "{label}");
    }
    for (fault, says) in [
        (Fault::Answer(200, r#"{"objects":[]}"#.into()), "were read"),
        (Fault::Answer(200, r#"{"objects":[{"class":"Doc""#.into()), "no page of objects"),
        (Fault::Answer(200, "{}".into()), "no page of objects"),
        (Fault::Replace("00000000-0000-4000-8000".into(), "00000000-0000-4000-7000".into()), "order"),
        (Fault::Answer(403, "{}".into()), "does not allow"),
    ] {
        let e = with(&server, page(2, true, fault), 60).await.unwrap_err();
        assert!(chain(&e).contains(says), "{says}: {}", chain(&e));
    }
}

// The rule of the proxy waits, on a thread of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs Docker"]
async fn what_is_deleted_or_made_during_an_export_is_told() {
    let server = start().await;
    let base = server.base().await;
    // One goes while it is read, the other before.
    let (sender, mut orders) = tokio::sync::mpsc::unbounded_channel();
    let mut pages = 0;
    let proxy = Proxy::start(&base, move |first: &str| {
        let cursor = first.contains("&after=");
        if cursor && first.starts_with("GET /v1/objects?class=Doc&") {
            pages += 1;
            if pages == 2 {
                let (done, wait) = std::sync::mpsc::channel();
                sender.send(done).unwrap();
                wait.recv().unwrap();
            }
        }
        Fault::Pass
    })
    .await;
    let adapter = through(&server, &proxy);
    let cx = bench().cx();
    let accident = async {
        let done = orders.recv().await.unwrap();
        server.call("DELETE", "/v1/schema/Doc", None).await;
        server.call("DELETE", "/v1/schema/Ten/tenants", Some(json!(["awake"]))).await;
        server.make_class("Fresh", false).await;
        done.send(()).unwrap();
    };
    let (captured, ()) = tokio::join!(capture(&*adapter, &cx), accident);
    let captured = captured.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let warned = |what: &str| captured.report.warnings.iter().any(|w| w.contains(what));
    for what in
        ["`Doc` was deleted meanwhile", "tenant `awake` of collection `Ten` was deleted", "`Fresh` was made"]
    {
        assert!(warned(what), "{what}: {:?}", captured.report.warnings);
    }
    let counts = &captured.report.evidence.counts;
    assert!(!counts.contains_key("objects.Doc") && counts["objects.Ten"] == 50, "{counts:?}");
    // What is left of it can be restored.
    let bench = bench();
    let cx = bench.cx();
    let adapter = server.adapter("");
    let (plan, token) = staged(&*adapter, &cx, &captured).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    adapter.switch(&cx, &plan, &token).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(server.tenant("Ten", "asleep").await, "COLD");
    let schema = server.call("GET", "/v1/schema", None).await;
    assert_eq!(schema["classes"].as_array().unwrap().len(), 1, "{schema}");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn an_export_that_dies_leaves_nothing_interrupted() {
    let server = start().await;
    let adapter = server.adapter("");
    let before = server.digest().await;
    let cx = bench().cx();
    let mut parts = adapter.open(&cx).await.unwrap().into_parts();
    let artifact = parts.artifacts.next().await.unwrap().unwrap_or_else(|e| panic!("{}", chain(&e)));
    let backup_core::ArtifactBody::Stream(mut body) = artifact.body else { panic!() };
    body.next().await.unwrap().unwrap();
    assert_ne!(server.digest().await, before, "no tenant was activated");
    std::mem::forget(parts.release);
    drop((body, parts.artifacts));
    for entry in cx.journal.entries().await.unwrap() {
        adapter.bring_back(&cx, &entry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    }
    server.assert_holds(&before, "brought back").await;
    assert!(adapter.reclaim(&cx, std::slice::from_ref(&cx.run_id)).await.unwrap().is_empty());
    let backup = exported(&*adapter).await;
    let phase = "the server gets the objects";
    let bench = bench();
    let cx = bench.cx();
    let dead = killed_in(phase, &cx, async |cx| staged(&*adapter, &cx, &backup).await.map(drop));
    assert!(dead.await, "it was not killed in `{phase}`");
    server.assert_holds(&before, phase).await;
    adapter.reclaim(&later(&cx), std::slice::from_ref(&cx.run_id)).await.unwrap();
    let twins = docker(&["ps", "-aq", "--filter", &format!("label=backup.run-id={}", cx.run_id)]).await;
    assert_eq!(twins, "");
}
