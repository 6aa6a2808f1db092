//! What a server holds: collections, tenants with their activity, objects of each, dimensions of their vectors.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext};
use serde_json::{Value, json};

use super::api::Api;

/// Collections or tenants that one query counts.
const BATCH: usize = 50;

/// More tenants than this are counted together for each collection: metadata is for people, too.
pub(super) const NAMED_TENANTS: usize = 2000;

/// The collections, and the tenants of those that have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Schema {
    pub(super) classes: BTreeMap<String, Option<BTreeMap<String, String>>>,
}

/// Whether a tenant's objects can be asked for.
fn is_active(status: &str) -> bool {
    matches!(status, "HOT" | "ACTIVE")
}

/// Whether its objects lie on this server's disk and are not loaded.
fn is_inactive(status: &str) -> bool {
    matches!(status, "COLD" | "INACTIVE")
}

impl Schema {
    pub(super) async fn read(api: &Api, cx: &OpContext) -> Result<Self, AdapterError> {
        let answer = api.get(cx, "/v1/schema").await?;
        let mut classes = BTreeMap::new();
        for class in answer["classes"].as_array().into_iter().flatten() {
            let name = class["class"].as_str().unwrap_or_default().to_owned();
            if !is_name(&name) {
                return Err(AdapterError::corrupt(format!("{} names a collection `{name}`", api.name())));
            }
            let tenants = match class["multiTenancyConfig"]["enabled"].as_bool() {
                Some(true) => tenants(api, cx, &name).await?,
                _ => Some(None),
            };
            // A collection that is gone since is none.
            if let Some(tenants) = tenants {
                classes.insert(name, tenants);
            }
        }
        Ok(Self { classes })
    }

    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.classes.keys().map(String::as_str).collect()
    }

    fn tenants(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.classes.iter().flat_map(|(class, tenants)| {
            tenants
                .iter()
                .flatten()
                .map(move |(name, status)| (class.as_str(), name.as_str(), status.as_str()))
        })
    }

    /// Tenants that a backup leaves out though their data is here, by collection.
    pub(super) fn inactive(&self) -> BTreeMap<String, Vec<String>> {
        self.with_status(is_inactive)
    }

    /// Tenants whose data is neither here nor loaded: offloaded, or on the way.
    pub(super) fn away(&self) -> BTreeMap<String, Vec<String>> {
        self.with_status(|s| !is_active(s) && !is_inactive(s))
    }

    /// Tenants that must be in a backup.
    pub(super) fn active(&self) -> BTreeMap<String, Vec<String>> {
        self.with_status(is_active)
    }

    fn with_status(&self, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, Vec<String>> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (class, tenant, _) in self.tenants().filter(|(_, _, status)| wanted(status)) {
            found.entry(class.to_owned()).or_default().push(tenant.to_owned());
        }
        found
    }

    /// How many tenants [`count`](Self::count) leaves out.
    pub(super) fn uncounted_tenants(&self) -> u64 {
        self.tenants().filter(|(_, _, status)| !is_active(status)).count() as u64
    }

    /// Counts the objects of every collection and every active tenant, and how many of them can be searched by vector.
    ///
    /// # Errors
    /// `Changed` for a collection that went away meanwhile, by name.
    pub(super) async fn count(&self, api: &Api, cx: &OpContext) -> Result<Evidence, AdapterError> {
        let mut parts: Vec<(&str, Option<&str>)> = Vec::new();
        for (class, tenants) in &self.classes {
            match tenants {
                None => parts.push((class, None)),
                Some(tenants) => {
                    parts.extend(
                        tenants
                            .iter()
                            .filter(|(_, s)| is_active(s))
                            .map(|(t, _)| (class.as_str(), Some(t.as_str()))),
                    );
                }
            }
        }
        let mut counts: BTreeMap<String, u64> =
            self.names().into_iter().map(|class| (format!("objects.{class}"), 0)).collect();
        let tenants = self.tenants().count();
        for batch in parts.chunks(BATCH) {
            let found = count(api, cx, batch).await?;
            for ((class, tenant), n) in batch.iter().zip(found) {
                *counts.entry(format!("objects.{class}")).or_default() += n;
                if let Some(tenant) = tenant.filter(|_| tenants <= NAMED_TENANTS) {
                    counts.insert(format!("objects.{class}.{tenant}"), n);
                }
            }
        }
        counts.insert("searchable".to_owned(), searchable(api, cx, &parts).await?);
        counts.insert("collections".to_owned(), self.classes.len() as u64);
        if tenants > 0 {
            counts.insert("tenants".to_owned(), tenants as u64);
        }
        Ok(Evidence { counts, ..Evidence::default() })
    }

    /// Dimensions of the vectors of one object of each collection, for people.
    pub(super) async fn dimensions(&self, api: &Api, cx: &OpContext) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for (class, tenants) in &self.classes {
            let tenant = match tenants {
                None => String::new(),
                Some(tenants) => match tenants.iter().find(|(_, s)| is_active(s)) {
                    Some((tenant, _)) => format!("&tenant={tenant}"),
                    None => continue,
                },
            };
            let path = format!("/v1/objects?class={class}&limit=1&include=vector{tenant}");
            // A fact for people: its lack makes no backup worse.
            let Ok(answer) = api.get(cx, &path).await else { continue };
            let object = &answer["objects"][0];
            let mut sizes: Vec<String> = Vec::new();
            if let Some(vector) = object["vector"].as_array() {
                sizes.push(vector.len().to_string());
            }
            for (name, vector) in object["vectors"].as_object().into_iter().flatten() {
                sizes.push(match vector.as_array() {
                    Some(rows) if rows.first().is_some_and(Value::is_array) => {
                        format!("{name} {}x{}", rows.len(), rows[0].as_array().map_or(0, Vec::len))
                    }
                    Some(vector) => format!("{name} {}", vector.len()),
                    None => continue,
                });
            }
            if !sizes.is_empty() {
                found.insert(format!("dimensions.{class}"), sizes.join(", "));
            }
        }
        found
    }
}

/// Of the server's own form: what goes into queries and paths unquoted.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

pub(super) fn is_tenant(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Of how many collections and tenants the vector index is tried.
const TRIED: usize = 200;

/// How many of `parts` find a nearest neighbour for the vector of an object of theirs: those whose index is there.
async fn searchable(api: &Api, cx: &OpContext, parts: &[(&str, Option<&str>)]) -> Result<u64, AdapterError> {
    let mut found = 0;
    for (class, tenant) in parts.iter().take(TRIED) {
        let of = tenant.map(|t| format!("&tenant={t}")).unwrap_or_default();
        let path = format!("/v1/objects?class={class}&limit=1&include=vector{of}");
        // Gone meanwhile, or of a kind that cannot be asked so: then it is not found after a restore either.
        let Ok(answer) = api.get(cx, &path).await else {
            cx.check_alive()?;
            continue;
        };
        let object = &answer["objects"][0];
        let named = object["vectors"].as_object().and_then(|v| v.iter().next());
        let (vector, target) = match (object["vector"].as_array(), named) {
            (Some(_), _) => (object["vector"].to_string(), String::new()),
            (None, Some((name, vector))) if is_name(name) => {
                (vector.to_string(), format!(",targetVectors:[\"{name}\"]"))
            }
            _ => continue,
        };
        let tenant = tenant.map(|t| format!(",tenant:\"{t}\"")).unwrap_or_default();
        let query = format!(
            "{{Get{{{class}(limit:1,nearVector:{{vector:{vector}{target}}}{tenant}){{_additional{{id}}}}}}}}"
        );
        let Ok(answer) = api.ask(cx, "/v1/graphql", &json!({ "query": query })).await else {
            cx.check_alive()?;
            continue;
        };
        found += u64::from(answer["data"]["Get"][*class].as_array().is_some_and(|a| !a.is_empty()));
    }
    Ok(found)
}

type Tenants = Option<BTreeMap<String, String>>;

/// `None` if the collection is gone.
async fn tenants(api: &Api, cx: &OpContext, class: &str) -> Result<Option<Tenants>, AdapterError> {
    let answer = match api.get(cx, &format!("/v1/schema/{class}/tenants")).await {
        Err(e) if e.kind() == AdapterErrorKind::NotFound => return Ok(None),
        answer => answer?,
    };
    let mut all = BTreeMap::new();
    for tenant in answer.as_array().into_iter().flatten() {
        let name = tenant["name"].as_str().unwrap_or_default();
        if !is_tenant(name) {
            return Err(AdapterError::corrupt(format!("{} names a tenant `{name}`", api.name())));
        }
        all.insert(name.to_owned(), tenant["activityStatus"].as_str().unwrap_or("HOT").to_owned());
    }
    Ok(Some(Some(all)))
}

/// The objects of each of `parts`.
///
/// # Errors
/// `Changed` for one that is gone.
pub(super) async fn count(
    api: &Api,
    cx: &OpContext,
    parts: &[(&str, Option<&str>)],
) -> Result<Vec<u64>, AdapterError> {
    let mut query = "{Aggregate{".to_owned();
    for (n, (class, tenant)) in parts.iter().enumerate() {
        let tenant = tenant.map(|t| format!("(tenant:\"{t}\")")).unwrap_or_default();
        query.push_str(&format!("c{n}:{class}{tenant}{{meta{{count}}}} "));
    }
    query.push_str("}}");
    let answer = api.ask(cx, "/v1/graphql", &json!({ "query": query })).await?;
    parts
        .iter()
        .enumerate()
        .map(|(n, (class, tenant))| {
            answer["data"]["Aggregate"][format!("c{n}")][0]["meta"]["count"].as_u64().ok_or_else(|| {
                let of = tenant.map(|t| format!(" of tenant `{t}`")).unwrap_or_default();
                let said =
                    answer["errors"][0]["message"].as_str().map(super::api::one_line).unwrap_or_default();
                let what = format!("{} does not count `{class}`{of}: {said}", api.name());
                AdapterError::new(AdapterErrorKind::Changed, what)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_told_apart_by_what_can_be_done_about_them() {
        let tenants = [("a", "HOT"), ("b", "COLD"), ("c", "INACTIVE"), ("d", "FROZEN"), ("e", "OFFLOADING")];
        let tenants = tenants.into_iter().map(|(n, s)| (n.to_owned(), s.to_owned())).collect();
        let schema =
            Schema { classes: BTreeMap::from([("C".to_owned(), Some(tenants)), ("D".to_owned(), None)]) };
        assert_eq!(schema.active()["C"], ["a"]);
        assert_eq!(schema.inactive()["C"], ["b", "c"]);
        assert_eq!(schema.away()["C"], ["d", "e"]);
    }

    #[test]
    fn hostile_names_are_none() {
        assert!(is_name("Doc_1") && !is_name("a){x") && !is_name(""));
        assert!(is_tenant("a-b_1") && !is_tenant("a\"") && !is_tenant("a/b"));
    }
}
