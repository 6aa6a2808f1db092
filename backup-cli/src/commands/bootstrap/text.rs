//! What `backup bootstrap` shows.

use std::collections::BTreeMap;

use backup_core::ServiceName;

use super::Has;
use super::content::{Content, Found, Here};
use crate::context::Context;
use crate::format;
use crate::render::table::{self, Column};
use crate::ui::{BOLD, GREEN, RED, YELLOW, paint};

pub(super) fn text(
    cx: &Context,
    found: &Found,
    content: &Content,
    has: &BTreeMap<ServiceName, Option<Has>>,
) -> String {
    let now = cx.clock.now();
    let mut out = vec![
        paint(BOLD, &format!("bootstrap from {}", found.entry.id)),
        format!(
            "  of host {}, as of {} ({} ago)",
            found.metadata.host,
            format::time(found.metadata.consistent_from),
            format::age(format::since(found.metadata.consistent_from, now)),
        ),
    ];
    for file in &content.files {
        let (word, style) = match file.here {
            Here::Missing => ("write", GREEN),
            Here::Same => ("there already", GREEN),
            Here::Differs => ("REPLACE, keeping what is there aside:", YELLOW),
        };
        out.push(format!("  {} {}", paint(style, word), file.path.display()));
    }
    out.push(String::new());
    let mut table = table::new(&[
        Column::Left("SERVICE"),
        Column::Left("NEWEST"),
        Column::Right("AGE"),
        Column::Left("STATE"),
    ]);
    for (name, has) in has {
        match has {
            Some(has) => table.add_row([
                comfy_table::Cell::new(name),
                comfy_table::Cell::new(&has.id),
                comfy_table::Cell::new(format::age(format::since(has.at, now))),
                comfy_table::Cell::new(&has.state),
            ]),
            None => table.add_row([
                comfy_table::Cell::new(name),
                table::cell("no good backup", RED),
                comfy_table::Cell::new(""),
                comfy_table::Cell::new(""),
            ]),
        };
    }
    out.push(table::text(&table));
    out.join("\n")
}
