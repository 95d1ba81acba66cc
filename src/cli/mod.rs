//! Command line: one file per verb, arguments in, table out, no logic.
//!
//! Data goes to stdout, everything else to stderr. Exit code 0: done, 1: failed, 2: wrong usage.

mod ask;
mod compare;
mod data;
mod device;
mod doctor;
mod eval;
mod inspect;
mod merge;
mod model;
mod trace;
mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measure and remove answer flips of Gemma 3 and MedGemma.
#[derive(Parser)]
#[command(name = "unflip", version, about, long_about = None, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what this machine offers: CPU, instruction sets, threads, memory, CUDA.
    Doctor(doctor::Doctor),
    /// Describe a model folder or an adapter.
    Inspect(inspect::Inspect),
    /// Ask one question in several phrasings: margins side by side, flips marked.
    Ask(ask::Ask),
    /// Measure flips, margins and accuracy on prompt groups.
    Eval(eval::Eval),
    /// Compare two evaluations of the same data: paired permutation tests.
    Compare(compare::Compare),
    /// Train a LoRA adapter on prompt groups.
    Train(Box<train::Train>),
    /// Fold an adapter into its base weights and write the model folder.
    Merge(merge::Merge),
    /// Write logits, hidden states, losses and adapter gradients for parity checks.
    Trace(trace::Trace),
}

/// Runs the command line and prints errors the same way for every verb.
pub fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("UNFLIP_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_target(false)
        .without_time()
        .init();
    let arguments = Arguments::parse();
    let result = match arguments.verb {
        Verb::Doctor(verb) => verb.run(),
        Verb::Inspect(verb) => verb.run(),
        Verb::Ask(verb) => verb.run(),
        Verb::Eval(verb) => verb.run(),
        Verb::Compare(verb) => verb.run(),
        Verb::Train(verb) => verb.run(),
        Verb::Merge(verb) => verb.run(),
        Verb::Trace(verb) => verb.run(),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        eprintln!("  caused by: {source}");
        cause = source.source();
    }
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
    match error {
        crate::Error::Usage { .. } => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

/// Prints a value as indented JSON on stdout.
fn print_json(value: &impl serde::Serialize) -> crate::Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| crate::Error::Usage { message: format!("cannot print JSON: {error}"), hint: None })?;
    println!("{text}");
    Ok(())
}

/// Adds a row of a name and a text.
fn row(table: &mut crate::report::Table, name: &str, text: &str) {
    table.row(vec![crate::report::Cell::text(name), crate::report::Cell::text(text)]);
}

/// A value of a setting that a flag of the same kind takes as well.
fn choice<T: clap::ValueEnum>(key: &str, text: &str) -> crate::Result<T> {
    T::from_str(text, false).map_err(|_| {
        let names: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|variant| Some(variant.to_possible_value()?.get_name().to_owned()))
            .collect();
        crate::Error::Usage {
            message: format!("`{key}` must be one of {}, found `{text}`", names.join(", ")),
            hint: None,
        }
    })
}
