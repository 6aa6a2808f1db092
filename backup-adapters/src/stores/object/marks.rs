//! Storage classes and tags of artifacts: what rules of a bucket and bills go by.

use std::collections::BTreeMap;

use backup_core::{ConfigError, Interval, Role, WriteOptions};
use object_store::{Attribute, Attributes, TagSet};

use super::cloud::Cloud;

/// What artifacts are marked with.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    class: Option<String>,
    class_of: BTreeMap<Interval, String>,
    tags: TagSet,
}

/// What one object is marked with.
#[derive(Debug, Clone, Default)]
pub(super) struct Marked {
    pub(super) attributes: Attributes,
    pub(super) tags: TagSet,
}

impl Marks {
    /// From the options of a store: `STANDARD_IA, monthly=GLACIER_IR` and `Project=x, Kind=backup`.
    pub(super) fn take(options: &mut BTreeMap<String, String>, cloud: Cloud) -> Result<Self, ConfigError> {
        let wrong = |key: &str, hint: &str| {
            ConfigError::new(format!("the option `{key}` of the store is wrong")).hint(hint)
        };
        let mut marks = Self::default();
        for part in parts(options.remove("storage_class").as_deref()) {
            let (interval, class) =
                part.split_once('=').map_or((None, part), |(i, c)| (Some(i.trim()), c.trim()));
            if cloud.is_offline(class) {
                return Err(wrong("storage_class", cloud.online_classes()));
            }
            let hint = "write a class, or one for each interval: \"STANDARD_IA, monthly=GLACIER_IR\"";
            let doubled = match interval.map(str::parse::<Interval>) {
                None => marks.class.replace(class.to_owned()).is_some(),
                Some(Ok(interval)) => marks.class_of.insert(interval, class.to_owned()).is_some(),
                Some(Err(_)) => true,
            };
            if doubled || class.is_empty() {
                return Err(wrong("storage_class", hint));
            }
        }
        let tags = options.remove("tags");
        if cloud == Cloud::Google && tags.is_some() {
            return Err(wrong("tags", "Google's objects have none"));
        }
        for part in parts(tags.as_deref()) {
            match part.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
                Some((name, value)) if !name.is_empty() => marks.tags.push(name, value),
                _ => return Err(wrong("tags", "write names and values: \"Project=x, Kind=backup\"")),
            }
        }
        Ok(marks)
    }

    /// Those of an object: what is read often has none.
    pub(super) fn of(&self, options: &WriteOptions) -> Marked {
        if options.role == Role::Control {
            return Marked::default();
        }
        let of_interval = options.interval.as_ref().and_then(|interval| self.class_of.get(interval));
        let class = of_interval.or(self.class.as_ref());
        let attributes = Attributes::from_iter(class.map(|class| (Attribute::StorageClass, class.clone())));
        Marked { attributes, tags: self.tags.clone() }
    }
}

fn parts(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty())
}
