//! From a server to an archive: page by page, so that no more than one page is in memory.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{AdapterError, AdapterErrorKind, ByteStream, CHUNK_BYTES, Evidence, OpContext};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Definitions, FORMAT, MANIFEST, MAX_PAGE, Manifest, Part, SCHEMA, page_name};
use crate::weaviate::api::Api;
use crate::weaviate::census::{self, Schema};
use crate::weaviate::files::{end_of_archive, member_of};

/// How large a page should be, in bytes, and how many objects it may have.
const PAGE: usize = 2 << 20;
const FIRST: usize = 25;
const MOST: usize = 1000;

/// More missing objects than one in so many are no work of writers.
const FEW: u64 = 100;

/// What a capture tells once it is at its end.
#[derive(Debug, Default)]
pub(in crate::weaviate) struct Told {
    /// `None` until then.
    manifest: Option<Manifest>,
    pub(in crate::weaviate) warnings: Vec<String>,
}

impl Told {
    /// What is in the export.
    pub(in crate::weaviate) fn evidence(&self) -> Option<Evidence> {
        self.manifest.as_ref().map(Manifest::evidence)
    }

    /// The collections in it.
    pub(in crate::weaviate) fn collections(&self) -> BTreeSet<String> {
        self.manifest.iter().flat_map(|m| m.collections.iter().cloned()).collect()
    }
}

/// The archive of what `schema` names, under the folder `id`.
pub(in crate::weaviate) fn stream(
    api: Api,
    cx: OpContext,
    id: String,
    schema: &Schema,
    told: Arc<Mutex<Told>>,
) -> ByteStream<AdapterError> {
    let part =
        |class: &str, tenant: Option<String>| Part { class: class.to_owned(), tenant, objects: 0, pages: 0 };
    let mut parts: Vec<Part> = schema
        .classes
        .iter()
        .filter(|(_, tenants)| tenants.is_none())
        .map(|(class, _)| part(class, None))
        .collect();
    for (class, tenants) in schema.active() {
        parts.extend(tenants.into_iter().map(|tenant| part(&class, Some(tenant))));
    }
    let pages = Pages {
        api,
        cx,
        id,
        told,
        collections: schema.classes.keys().cloned().collect(),
        asleep: schema.inactive(),
        parts,
        at: 0,
        cursor: Cursor::default(),
        step: Step::Begin,
        limit: FIRST,
    };
    let members = stream::try_unfold(pages, |mut pages| async move {
        Ok(pages.next().await?.map(|member| (member, pages)))
    });
    let slices = members.map_ok(|mut member: Bytes| {
        let mut slices = Vec::new();
        while member.len() > CHUNK_BYTES {
            slices.push(Ok(member.split_to(CHUNK_BYTES)));
        }
        slices.push(Ok(member));
        stream::iter(slices)
    });
    slices.try_flatten().boxed()
}

enum Step {
    Begin,
    Objects,
    End,
    Done,
}

/// Where the reading of a part is.
#[derive(Default)]
struct Cursor {
    /// The id of the last object; empty before the first.
    after: String,
    /// The objects that were counted before.
    before: Option<u64>,
}

struct Pages {
    api: Api,
    cx: OpContext,
    id: String,
    told: Arc<Mutex<Told>>,
    /// Those that are still there.
    collections: BTreeSet<String>,
    asleep: BTreeMap<String, Vec<String>>,
    parts: Vec<Part>,
    at: usize,
    cursor: Cursor,
    step: Step,
    limit: usize,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    objects: Vec<&'a RawValue>,
}

/// What is looked at of an object.
#[derive(Deserialize)]
pub(super) struct Head<'a> {
    #[serde(borrow)]
    pub(super) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) class: Cow<'a, str>,
}

/// What became of a request.
enum Read {
    Objects {
        lines: Vec<u8>,
        many: usize,
        last: String,
    },
    End,
    /// The collection or the tenant is not there any more.
    Gone,
}

impl Pages {
    async fn next(&mut self) -> Result<Option<Bytes>, AdapterError> {
        loop {
            self.cx.check_alive()?;
            match self.step {
                Step::Begin => {
                    self.step = Step::Objects;
                    let text = self.definitions().await?;
                    return Ok(Some(member_of(&format!("{}/{SCHEMA}", self.id), &text)?.into()));
                }
                Step::Objects => match self.parts.get(self.at).cloned() {
                    None => self.step = Step::End,
                    Some(part) => {
                        if let Some(member) = self.page(&part).await? {
                            return Ok(Some(member));
                        }
                    }
                },
                Step::End => {
                    self.step = Step::Done;
                    return Ok(Some(self.end()?));
                }
                Step::Done => return Ok(None),
            }
        }
    }

    async fn definitions(&self) -> Result<Vec<u8>, AdapterError> {
        let schema = self.api.get(&self.cx, "/v1/schema").await?;
        let classes = schema["classes"].as_array().into_iter().flatten();
        let ours =
            |class: &&Value| class["class"].as_str().is_some_and(|name| self.collections.contains(name));
        let aliases = match self.api.get(&self.cx, "/v1/aliases").await {
            Ok(aliases) => aliases["aliases"].as_array().cloned().unwrap_or_default(),
            // Newer than the rest of the API.
            Err(e) if matches!(e.kind(), AdapterErrorKind::NotFound | AdapterErrorKind::Other) => Vec::new(),
            Err(e) => return Err(e),
        };
        let definitions = Definitions { classes: classes.filter(ours).cloned().collect(), aliases };
        text(&definitions)
    }

    /// The next page of the current part; `None` once it has no more.
    async fn page(&mut self, part: &Part) -> Result<Option<Bytes>, AdapterError> {
        if self.cursor.before.is_none() {
            let Some(before) = self.count(part).await? else {
                self.forget(part).await?;
                return Ok(None);
            };
            self.cursor.before = Some(before);
        }
        match self.read(part).await? {
            Read::Objects { lines, many, last } => {
                let entry = self.parts.get_mut(self.at).ok_or_else(AdapterError::cancelled)?;
                entry.objects += many as u64;
                entry.pages += 1;
                let path = format!("{}/{}/{}", self.id, part.folder(), page_name(entry.pages));
                self.limit = (PAGE * many / lines.len().max(1)).clamp(1, MOST);
                self.cursor.after = last;
                Ok(Some(member_of(&path, &lines)?.into()))
            }
            Read::End => {
                match self.count(part).await? {
                    None => self.forget(part).await?,
                    Some(after) => {
                        self.judge(part, self.cursor.before.unwrap_or(after), after)?;
                        self.at += 1;
                        self.cursor = Cursor::default();
                    }
                }
                Ok(None)
            }
            Read::Gone => {
                self.forget(part).await?;
                Ok(None)
            }
        }
    }

    async fn read(&mut self, part: &Part) -> Result<Read, AdapterError> {
        let tenant = part.tenant.as_ref().map(|t| format!("&tenant={t}")).unwrap_or_default();
        let (class, after) = (&part.class, self.cursor.after.clone());
        let body = loop {
            let limit = self.limit;
            let path =
                format!("/v1/objects?class={class}&limit={limit}&include=vector{tenant}&after={after}");
            match self.api.bytes(&self.cx, &path, MAX_PAGE).await {
                Ok(body) => break body,
                // Objects of very different sizes.
                Err(e) if e.kind() == AdapterErrorKind::Corrupt && limit > 1 => {
                    self.limit = (limit / 8).max(1);
                }
                Err(e) => return if self.is_there(part).await? { Err(e) } else { Ok(Read::Gone) },
            }
        };
        let of = part.shown();
        let odd = |what: &str| AdapterError::corrupt(format!("{} {what} {of}", self.api.name()));
        let page: Page<'_> = serde_json::from_slice(&body)
            .map_err(|e| odd("answers with no page of objects of").with_source(e))?;
        let (mut lines, mut last) = (Vec::with_capacity(body.len()), after);
        for object in &page.objects {
            let head: Head<'_> = serde_json::from_str(object.get())
                .map_err(|e| odd("tells an object without id of").with_source(e))?;
            if head.class != part.class.as_str() || head.id.as_ref() <= last.as_str() {
                return Err(odd("does not tell the objects in their order of"));
            }
            last = head.id.into_owned();
            if object.get().contains('\n') {
                let value: Value = serde_json::from_str(object.get()).unwrap_or_default();
                lines.extend_from_slice(value.to_string().as_bytes());
            } else {
                lines.extend_from_slice(object.get().as_bytes());
            }
            lines.push(b'\n');
        }
        Ok(match page.objects.len() {
            0 => Read::End,
            many => Read::Objects { lines, many, last },
        })
    }

    /// The objects of a part; `None` if it is gone.
    async fn count(&self, part: &Part) -> Result<Option<u64>, AdapterError> {
        match census::count(&self.api, &self.cx, &[(&part.class, part.tenant.as_deref())]).await {
            Ok(counts) => Ok(counts.first().copied()),
            Err(e) if e.kind() == AdapterErrorKind::Changed && !self.is_there(part).await? => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn is_there(&self, part: &Part) -> Result<bool, AdapterError> {
        self.cx.check_alive()?;
        let schema = Schema::read(&self.api, &self.cx).await?;
        Ok(schema.classes.get(&part.class).is_some_and(|tenants| match (tenants, &part.tenant) {
            (Some(tenants), Some(tenant)) => tenants.contains_key(tenant),
            (None, None) => true,
            _ => false,
        }))
    }

    /// Leaves out what was deleted meanwhile: a part of it would be nothing of use. Pages that are in the archive already
    /// belong to nothing then.
    async fn forget(&mut self, part: &Part) -> Result<(), AdapterError> {
        self.cursor = Cursor::default();
        let schema = Schema::read(&self.api, &self.cx).await?;
        if schema.classes.contains_key(&part.class) && part.tenant.is_some() {
            self.warn(format!("{} was deleted meanwhile and is not in this backup", part.shown()));
            self.parts.remove(self.at);
            return Ok(());
        }
        self.warn(format!("collection `{}` was deleted meanwhile and is not in this backup", part.class));
        self.collections.remove(&part.class);
        self.asleep.remove(&part.class);
        let before = self.parts.iter().take(self.at).filter(|p| p.class != part.class).count();
        self.parts.retain(|p| p.class != part.class);
        self.at = before;
        Ok(())
    }

    /// Whether so many objects can be all.
    fn judge(&self, part: &Part, before: u64, after: u64) -> Result<(), AdapterError> {
        let read = self.parts.get(self.at).map_or(0, |p| p.objects);
        let low = before.min(after);
        if read >= low {
            return Ok(());
        }
        let what = format!(
            "{}: {} has {before} objects before and {after} after they were read, and {read} were read",
            self.api.name(),
            part.shown()
        );
        if (low - read).saturating_mul(FEW) > low {
            return Err(AdapterError::new(AdapterErrorKind::Changed, what));
        }
        self.warn(what);
        Ok(())
    }

    fn warn(&self, what: String) {
        self.cx.warn(what.as_str());
        self.told.lock().unwrap_or_else(PoisonError::into_inner).warnings.push(what);
    }

    fn end(&mut self) -> Result<Bytes, AdapterError> {
        let manifest = Manifest {
            format: FORMAT,
            id: self.id.clone(),
            collections: self.collections.iter().cloned().collect(),
            parts: std::mem::take(&mut self.parts),
            asleep: std::mem::take(&mut self.asleep),
        };
        let mut out = member_of(&format!("{}/{MANIFEST}", self.id), &text(&manifest)?)?;
        end_of_archive(&mut out);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).manifest = Some(manifest);
        Ok(out.into())
    }
}

fn text(value: &impl serde::Serialize) -> Result<Vec<u8>, AdapterError> {
    let mut text = serde_json::to_vec(&json!(value)).map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "cannot describe the export").with_source(e)
    })?;
    text.push(b'\n');
    Ok(text)
}
