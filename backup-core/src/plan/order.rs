//! `after`: which services wait for which.

use std::collections::{BTreeMap, BTreeSet};

use super::{PlannedService, unknown};
use crate::config::explain::quoted_key;
use crate::error::ConfigError;
use crate::id::ServiceName;

/// Makes sure that every name in `after` exists, and that no service waits for itself, however indirectly.
pub(super) fn check(services: &BTreeMap<ServiceName, PlannedService>) -> Result<(), ConfigError> {
    for service in services.values() {
        if let Some(missing) = service.after.iter().find(|name| !services.contains_key(*name)) {
            return Err(unknown("service", missing.as_str(), services.keys()).at(place(&service.name)));
        }
    }
    let mut done = BTreeSet::new();
    for name in services.keys() {
        visit(name, services, &mut Vec::new(), &mut done)?;
    }
    Ok(())
}

/// Walks from `name` along `after`; `path` is how it got there.
fn visit<'a>(
    name: &'a ServiceName,
    services: &'a BTreeMap<ServiceName, PlannedService>,
    path: &mut Vec<&'a ServiceName>,
    done: &mut BTreeSet<&'a ServiceName>,
) -> Result<(), ConfigError> {
    if done.contains(name) {
        return Ok(());
    }
    if let Some(start) = path.iter().position(|seen| *seen == name) {
        let circle: Vec<String> = path.iter().skip(start).chain([&name]).map(|n| format!("`{n}`")).collect();
        return Err(ConfigError::new(format!("services wait for each other: {}", circle.join(" after ")))
            .at(place(name))
            .hint("remove one of them from `after`"));
    }
    path.push(name);
    for next in services.get(name).into_iter().flat_map(|s| &s.after) {
        visit(next, services, path, done)?;
    }
    path.pop();
    done.insert(name);
    Ok(())
}

fn place(name: &ServiceName) -> String {
    format!("services.{}.after", quoted_key(name.as_str()))
}
