//! `backup adapters`.

use serde_json::json;

use crate::context::{Context, Done};
use crate::error::CliError;
use crate::render::table::{self, Column};
use crate::ui::DIM;

/// List what this program can back up, and how far each is proven
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  backup adapters")]
pub(crate) struct Args {}

impl Args {
    #[expect(clippy::unnecessary_wraps, reason = "every verb has this signature")]
    pub(crate) fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let (adapters, stores) = (&cx.cli.adapters, &cx.cli.stores);
        let mut table = table::new(&[Column::Left("KIND"), Column::Text("PROTECTS"), Column::Text("PROVEN")]);
        for info in adapters.describe() {
            cx.ui.json(&json!({"event": "adapter", "kind": info.kind, "summary": info.summary, "proven": info.proven}));
            table.add_row([info.kind, info.summary, info.proven]);
        }
        for (kind, feature) in adapters.disabled() {
            cx.ui.json(&json!({"event": "adapter", "kind": kind, "missing_feature": feature}));
            let why = format!("not in this program (Cargo feature `{feature}`)");
            table.add_row([table::cell(kind, DIM), table::cell(why, DIM), table::cell("", DIM)]);
        }
        cx.ui.product(&table::text(&table));
        let schemes: Vec<String> = stores.schemes().map(|s| format!("{s}://")).collect();
        cx.ui.product(&format!("\nstores: {}", schemes.join(", ")));
        Ok(Done::ok().with("stores", schemes))
    }
}
