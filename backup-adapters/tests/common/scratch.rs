//! Looks at the containers of test restores while they run.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use backup_core::RunId;
use serde_json::Value;

fn docker(args: &[&str]) -> Option<String> {
    let done = Command::new("docker").args(args).output().unwrap();
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// Notes every container of a run, and whether its networks lead anywhere.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<BTreeMap<String, Value>>>,
}

impl Watch {
    pub(crate) fn of(run: &RunId) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, label) = (Arc::clone(&stop), format!("label=backup.run-id={run}"));
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeMap::new();
            while !ended.load(Ordering::Relaxed) {
                let ids = docker(&["ps", "-q", "--no-trunc", "--filter", &label]).unwrap_or_default();
                for id in ids.lines() {
                    if let Some(container) = look(id) {
                        seen.insert(id.to_owned(), container);
                    }
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            seen
        });
        Self { stop, thread: Some(thread) }
    }

    /// What was seen, each as the engine describes it.
    pub(crate) fn end(mut self) -> Vec<Value> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap().into_values().collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A container as the engine describes it, with `Internal`: whether each of its networks is.
fn look(id: &str) -> Option<Value> {
    let all: Value = serde_json::from_str(&docker(&["inspect", id])?).ok()?;
    let mut container = all[0].clone();
    let mut internal = Vec::new();
    for (name, _) in container["NetworkSettings"]["Networks"].as_object()? {
        internal
            .push(name == "none" || docker(&["network", "inspect", "-f", "{{.Internal}}", name])? == "true");
    }
    container["Internal"] = internal.into();
    Some(container)
}

/// It takes little of the host, reaches nothing, is reached by nobody, and knows none of these texts.
pub(crate) fn assert_restrained(container: &Value, secrets: &[&str]) {
    let host = &container["HostConfig"];
    assert_eq!(host["OomScoreAdj"], 1000, "{container}");
    assert_eq!(host["CpuShares"], 128, "{container}");
    assert!(host["Memory"].as_i64().unwrap() > 0, "{container}");
    let internal = container["Internal"].as_array().unwrap();
    assert!(!internal.is_empty() && internal.iter().all(|i| i == true), "{container}");
    let published = container["NetworkSettings"]["Ports"].as_object().unwrap();
    assert!(published.values().all(Value::is_null), "{container}");
    let text = container.to_string();
    for secret in secrets {
        assert!(!text.contains(secret), "it knows {secret}");
    }
}

/// Nothing carries the run's id any more, and the volumes that its containers had are gone with them.
pub(crate) fn assert_gone(run: &RunId, containers: &[Value]) {
    assert_eq!(left_of(run), "");
    let volumes = volumes_of(containers);
    assert!(volumes.iter().all(|v| !is_volume(v)), "{volumes:?}");
}

/// What carries a run's id: containers, networks, volumes.
pub(crate) fn left_of(run: &RunId) -> String {
    let label = format!("label=backup.run-id={run}");
    let all = [
        docker(&["ps", "-aq", "--filter", &label]),
        docker(&["network", "ls", "-q", "--filter", &label]),
        docker(&["volume", "ls", "-q", "--filter", &label]),
    ];
    all.map(Option::unwrap).join(" ").trim().to_owned()
}

/// The volumes that containers have.
pub(crate) fn volumes_of(containers: &[Value]) -> Vec<String> {
    let mounts = containers.iter().flat_map(|c| c["Mounts"].as_array().unwrap());
    mounts.filter(|m| m["Type"] == "volume").map(|m| m["Name"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn is_volume(name: &str) -> bool {
    docker(&["volume", "inspect", name]).is_some()
}
