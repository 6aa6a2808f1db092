//! The frame around a verb: output, log, runtime and signals, and how it all ends.

use std::sync::Arc;

use serde_json::{Map, json};

use crate::args::Root;
use crate::context::{Context, Done};
use crate::error::CliError;
use crate::ui::{Ui, Wishes};
use crate::{Cli, exit_code};

/// Runs one verb; returns the exit code.
pub(crate) fn run(cli: Cli, root: Root) -> u8 {
    let Root { global, verb } = root;
    // The streams ask this wherever they are opened.
    match global.color {
        clap::ColorChoice::Always => anstream::ColorChoice::Always,
        clap::ColorChoice::Never => anstream::ColorChoice::Never,
        clap::ColorChoice::Auto => anstream::ColorChoice::Auto,
    }
    .write_global();
    let ui =
        Arc::new(Ui::new(Wishes { json: global.json, quiet: global.quiet, verbose: global.verbose > 0 }));
    log_to_stderr(global.verbose);
    let ended = Context::new(cli, global, Arc::clone(&ui)).and_then(|cx| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| CliError::failed("cannot start the runtime").because(&e))?;
        let ended = runtime.block_on(async {
            tokio::select! {
                // A signal that ends the program wins over a verb that ends at the same moment.
                biased;
                watched = cx.interrupt.watch(&ui) => match watched {
                    Ok(()) => Err(CliError::interrupted()),
                    Err(e) => Err(CliError::failed("cannot listen to signals").because(&e)),
                },
                ended = cx.perform(verb) => ended,
            }
        });
        // A question that nobody answered, or work that was told twice to stop, must not hold the program back.
        runtime.shutdown_background();
        ended
    });
    let code = conclude(&ui, ended);
    match ui.finish() {
        Ok(()) => code,
        Err(e) => {
            ui.error(&e);
            if code == exit_code::OK { e.code } else { code }
        }
    }
}

/// Tells how it ended. The last JSON line is always the summary, whatever happened.
fn conclude(ui: &Ui, ended: Result<Done, CliError>) -> u8 {
    let (code, summary) = match ended {
        Ok(done) => (done.code, done.summary),
        Err(e) => {
            ui.error(&e);
            let fields = [("error".to_owned(), json!(e.message)), ("hints".to_owned(), json!(e.hints))];
            (e.code, Map::from_iter(fields))
        }
    };
    let mut line =
        Map::from_iter([("event".to_owned(), json!("summary")), ("exit_code".to_owned(), json!(code))]);
    line.extend(summary);
    ui.json(&line);
    code
}

fn log_to_stderr(verbose: u8) {
    let filter = match verbose {
        0 => return,
        1 => "info,backup_core=debug,backup_adapters=debug,backup_cli=debug",
        _ => "debug,backup_core=trace,backup_adapters=trace,backup_cli=trace",
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time();
    if subscriber.try_init().is_err() {
        tracing::debug!("The program that embeds this one keeps its own log.");
    }
}
