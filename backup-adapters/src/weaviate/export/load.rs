//! From an export on disk into a server that holds nothing yet: collections, tenants, objects, and references last, because
//! the server takes none to an object that is not there yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Definitions, MANIFEST, Manifest, Part, SCHEMA};
use crate::on_disk::blocking;
use crate::weaviate::api::{Api, one_line};

/// Tenants and references in one request.
const BATCH: usize = 500;

/// Imports the export in `folder`. The collections that it holds.
///
/// # Errors
/// `Corrupt` for what the server does not take; those of the requests.
pub(in crate::weaviate) async fn load(
    api: &Api,
    cx: &OpContext,
    folder: &Path,
) -> Result<Vec<String>, AdapterError> {
    let manifest = Manifest::parse(&read(folder.join(MANIFEST)).await?)?;
    let definitions: Definitions =
        serde_json::from_slice(&read(folder.join(SCHEMA)).await?).map_err(|e| {
            AdapterError::corrupt(format!("`{SCHEMA}` of the export cannot be read")).with_source(e)
        })?;
    let classes: Vec<Class> = definitions
        .classes
        .into_iter()
        .filter(|c| manifest.collections.iter().any(|name| c["class"] == name.as_str()))
        .map(Class::of)
        .collect();
    let api = Import { api, cx };
    for class in &classes {
        api.make("/v1/schema", &class.definition).await?;
    }
    for class in &classes {
        for property in &class.references {
            api.make(&format!("/v1/schema/{}/properties", class.name), property).await?;
        }
    }
    for class in &classes {
        api.tenants(&manifest, &class.name).await?;
    }
    for part in &manifest.parts {
        let names = classes.iter().find(|c| c.name == part.class).map(Class::names).unwrap_or_default();
        for page in Manifest::pages(folder, part) {
            api.objects(part, &read(page).await?, &names).await?;
        }
    }
    let mut lost = 0;
    for part in &manifest.parts {
        let names = classes.iter().find(|c| c.name == part.class).map(Class::names).unwrap_or_default();
        if names.is_empty() {
            continue;
        }
        for page in Manifest::pages(folder, part) {
            lost += api.references(part, &read(page).await?, &names).await?;
        }
    }
    if lost > 0 {
        cx.warn(format!(
            "{lost} references lead to objects that are not in the export, and the server takes no such references"
        ));
    }
    for alias in &definitions.aliases {
        if manifest.collections.iter().any(|name| alias["class"] == name.as_str()) {
            api.make("/v1/aliases", alias).await?;
        }
    }
    Ok(manifest.collections)
}

async fn read(path: PathBuf) -> Result<Vec<u8>, AdapterError> {
    blocking(move || {
        std::fs::read(&path).map_err(|e| AdapterError::io(format!("cannot read `{}`", path.display()), e))
    })
    .await
}

/// A collection as it is made: without references, which may lead to collections that are not there yet.
struct Class {
    name: String,
    definition: Value,
    references: Vec<Value>,
}

fn is_reference(property: &Value) -> bool {
    // Collections have a capital first, other types of data have not.
    property["dataType"][0].as_str().is_some_and(|t| t.starts_with(|c: char| c.is_ascii_uppercase()))
}

impl Class {
    fn of(mut definition: Value) -> Self {
        let name = definition["class"].as_str().unwrap_or_default().to_owned();
        let mut references = Vec::new();
        if let Some(properties) = definition["properties"].as_array_mut() {
            references = properties.extract_if(.., |p| is_reference(p)).collect();
        }
        if definition["multiTenancyConfig"]["enabled"] == true
            && let Some(fields) = definition.as_object_mut()
        {
            // The server tells it, and does not take it.
            fields.remove("shardingConfig");
        }
        Self { name, definition, references }
    }

    fn names(&self) -> BTreeSet<&str> {
        self.references.iter().filter_map(|p| p["name"].as_str()).collect()
    }
}

struct Import<'a> {
    api: &'a Api,
    cx: &'a OpContext,
}

impl Import<'_> {
    async fn make(&self, path: &str, what: &Value) -> Result<(), AdapterError> {
        let name = what["class"].as_str().or(what["name"].as_str()).unwrap_or_default().to_owned();
        match self.api.ask(self.cx, path, what).await {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.kind(), AdapterErrorKind::Other | AdapterErrorKind::NotFound) => {
                Err(AdapterError::corrupt(format!("`{name}` of the export cannot be made again"))
                    .with_source(e))
            }
            Err(e) => Err(e),
        }
    }

    async fn tenants(&self, manifest: &Manifest, class: &str) -> Result<(), AdapterError> {
        let active = manifest
            .parts
            .iter()
            .filter(|p| p.class == class)
            .filter_map(|p| Some(json!({ "name": p.tenant.as_ref()?, "activityStatus": "HOT" })));
        let asleep = manifest.asleep.get(class).into_iter().flatten();
        let all: Vec<Value> =
            active.chain(asleep.map(|name| json!({ "name": name, "activityStatus": "COLD" }))).collect();
        for batch in all.chunks(BATCH) {
            self.make(&format!("/v1/schema/{class}/tenants"), &json!(batch)).await?;
        }
        Ok(())
    }

    /// A page of objects, less their properties `without`.
    async fn objects(&self, part: &Part, page: &[u8], without: &BTreeSet<&str>) -> Result<(), AdapterError> {
        // As they stand in the file, if nothing in them must change.
        let answer = if part.tenant.is_none() && without.is_empty() {
            let objects: Vec<&RawValue> = lines(page).map(parse).collect::<Result<_, _>>()?;
            let body = json_of(&objects)?;
            self.api.send(self.cx, "/v1/batch/objects", body).await?
        } else {
            let mut objects: Vec<Value> = lines(page).map(parse).collect::<Result<_, _>>()?;
            for object in &mut objects {
                if let Some(tenant) = &part.tenant {
                    object["tenant"] = tenant.as_str().into();
                }
                if let Some(properties) = object["properties"].as_object_mut() {
                    properties.retain(|name, _| !without.contains(name.as_str()));
                }
            }
            let body = json_of(&objects)?;
            self.api.send(self.cx, "/v1/batch/objects", body).await?
        };
        match failures(&answer).next() {
            None => Ok(()),
            Some(said) => Err(AdapterError::corrupt(format!(
                "an object of {} of the export cannot be imported: {}",
                part.shown(),
                one_line(said)
            ))),
        }
    }

    /// The references of a page of objects. How many lead nowhere.
    async fn references(
        &self,
        part: &Part,
        page: &[u8],
        names: &BTreeSet<&str>,
    ) -> Result<u64, AdapterError> {
        let mut all = Vec::new();
        for object in lines(page) {
            let object: Value = parse(object)?;
            for name in names {
                for to in object["properties"][*name].as_array().into_iter().flatten() {
                    let id = object["id"].as_str().unwrap_or_default();
                    let mut one = json!({
                        "from": format!("weaviate://localhost/{}/{id}/{name}", part.class), "to": to["beacon"],
                    });
                    if let Some(tenant) = &part.tenant {
                        one["tenant"] = tenant.as_str().into();
                    }
                    all.push(one);
                }
            }
        }
        let mut lost = 0;
        for batch in all.chunks(BATCH) {
            let answer = self.api.ask(self.cx, "/v1/batch/references", &json!(batch)).await?;
            for said in failures(&answer) {
                if !(said.starts_with("target:") && said.contains("not found")) {
                    let what = format!("a reference of {} cannot be made: {}", part.shown(), one_line(said));
                    return Err(AdapterError::corrupt(what));
                }
                lost += 1;
            }
        }
        Ok(lost)
    }
}

fn lines(page: &[u8]) -> impl Iterator<Item = &[u8]> {
    page.split(|b| *b == b'\n').filter(|line| !line.is_empty())
}

fn parse<'a, T: serde::Deserialize<'a>>(line: &'a [u8]) -> Result<T, AdapterError> {
    serde_json::from_slice(line)
        .map_err(|e| AdapterError::corrupt("a line of the export is no object").with_source(e))
}

/// The body of a request that imports `objects`.
fn json_of(objects: &impl serde::Serialize) -> Result<String, AdapterError> {
    serde_json::to_string(objects)
        .map(|objects| format!("{{\"objects\":{objects}}}"))
        .map_err(|e| AdapterError::new(AdapterErrorKind::Other, "cannot write a request").with_source(e))
}

/// What the server says of those of a batch that it did not take.
fn failures(answer: &Value) -> impl Iterator<Item = &str> {
    answer.as_array().into_iter().flatten().filter_map(|one| {
        let result = &one["result"];
        let said = result["errors"]["error"][0]["message"].as_str();
        said.or((result["status"] == "FAILED").then_some("without a reason"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_data() {
        let class = Class::of(json!({
            "class": "A", "multiTenancyConfig": { "enabled": true }, "shardingConfig": { "key": "" },
            "properties": [
                { "name": "text", "dataType": ["text[]"] }, { "name": "to", "dataType": ["B", "C"] },
                { "name": "inner", "dataType": ["object"] },
            ],
        }));
        assert_eq!(class.names(), BTreeSet::from(["to"]));
        assert_eq!(class.definition["properties"].as_array().unwrap().len(), 2);
        assert!(class.definition.get("shardingConfig").is_none());
    }

    #[test]
    fn failures_of_a_batch_are_seen() {
        let answer = json!([
            { "result": { "status": "SUCCESS" } },
            { "result": { "status": "FAILED", "errors": { "error": [{ "message": "no" }] } } },
            { "result": { "status": "FAILED" } },
        ]);
        assert_eq!(failures(&answer).collect::<Vec<_>>(), ["no", "without a reason"]);
    }
}
