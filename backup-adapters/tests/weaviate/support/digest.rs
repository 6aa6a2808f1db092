//! What a server holds, as text.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Server;

impl Server {
    /// All objects of a class with their vectors.
    async fn objects(&self, class: &str, tenant: &str) -> Vec<String> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/objects?class={class}&limit=500&include=vector{tenant}{after}");
            let page = self.call("GET", &path, None).await;
            let page = page["objects"].as_array().unwrap().clone();
            let Some(last) = page.last() else { return all };
            after = format!("&after={}", last["id"].as_str().unwrap());
            all.extend(page.iter().map(Value::to_string));
        }
    }

    /// Everything that it holds: collections, tenants with their state, objects, vectors, neighbours, users, roles.
    pub(crate) async fn digest(&self) -> String {
        let mut out = String::new();
        let schema = self.call("GET", "/v1/schema", None).await;
        let mut classes: Vec<&Value> = schema["classes"].as_array().unwrap().iter().collect();
        classes.sort_by_key(|c| c["class"].as_str().unwrap().to_owned());
        for class in classes {
            let name = class["class"].as_str().unwrap();
            out.push_str(&format!("{name} {}\n", class["properties"]));
            let mut parts = vec![(String::new(), "HOT".to_owned())];
            if class["multiTenancyConfig"]["enabled"] == true {
                let tenants = self.call("GET", &format!("/v1/schema/{name}/tenants"), None).await;
                parts = tenants
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|t| {
                        (
                            t["name"].as_str().unwrap().to_owned(),
                            t["activityStatus"].as_str().unwrap().to_owned(),
                        )
                    })
                    .collect();
                parts.sort();
            }
            for (tenant, status) in parts {
                out.push_str(&format!(" tenant {tenant} {status}\n"));
                if status != "HOT" && status != "ACTIVE" {
                    continue;
                }
                let argument = if tenant.is_empty() { tenant.clone() } else { format!("&tenant={tenant}") };
                let mut objects = self.objects(name, &argument).await;
                objects.sort();
                out.push_str(&objects.join("\n"));
                out.push_str(&self.neighbours(name, &tenant, &objects).await);
            }
        }
        let mut roles: Vec<String> = self
            .call("GET", "/v1/authz/roles", None)
            .await
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["name"].to_string())
            .collect();
        roles.sort();
        let mut users: Vec<String> = self
            .call("GET", "/v1/users/db", None)
            .await
            .as_array()
            .unwrap()
            .iter()
            .map(|u| format!("{} {}", u["userId"], u["roles"]))
            .collect();
        users.sort();
        format!("{out}\nroles {roles:?} users {users:?}")
    }

    /// Waits until it holds `wanted`: just after a start, it may not find the nearest yet.
    pub(crate) async fn assert_holds(&self, wanted: &str, what: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.digest().await;
            if found == wanted {
                return;
            }
            if Instant::now() > until {
                let (a, b) = (wanted.lines(), found.lines());
                let first = a.zip(b).find(|(a, b)| a != b);
                panic!(
                    "{what}: {} lines wanted, {} found; first: {first:?}",
                    wanted.lines().count(),
                    found.lines().count()
                );
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn neighbours(&self, class: &str, tenant: &str, objects: &[String]) -> String {
        let Some(first) = objects.first() else { return String::new() };
        let first: Value = serde_json::from_str(first).unwrap();
        // Of a collection with named vectors, the first one.
        let (vector, target) = match first["vectors"].as_object().and_then(|all| all.iter().next()) {
            Some((name, vector)) => (vector, format!(",targetVectors:[\"{name}\"]")),
            None => (&first["vector"], String::new()),
        };
        let tenant = if tenant.is_empty() { String::new() } else { format!(",tenant:\"{tenant}\"") };
        let query = format!(
            "{{Get{{{class}(limit:5,nearVector:{{vector:{vector}{target}}}{tenant}){{_additional{{id}}}}}}}}"
        );
        let found = self.call("POST", "/v1/graphql", Some(json!({ "query": query }))).await;
        format!("\n near {}\n", found["data"]["Get"][class])
    }
}
