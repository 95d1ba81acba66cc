//! Command line: one file per verb, arguments in, table out, no logic.
//!
//! Data goes to stdout, everything else to stderr. Exit code 0: done, 1: failed, 2: wrong usage, 130 or 143:
//! a training run that SIGINT or SIGTERM stopped.

#![forbid(unsafe_code)]

mod ask;
mod bench;
mod compare;
mod data;
mod device;
mod doctor;
mod eval;
mod inspect;
mod inspect_adapter;
mod interrupt;
mod memory;
mod merge;
mod model;
mod profile;
mod trace;
mod train;
mod trunk;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
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
    Doctor(Box<doctor::Doctor>),
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
    /// Time operations and whole steps.
    Bench(bench::Bench),
}

/// Runs the command line and prints errors the same way for every verb.
pub fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("UNFLIP_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .without_time()
        .init();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let result = match arguments.verb {
        Verb::Doctor(verb) => verb.run(),
        Verb::Inspect(verb) => verb.run(),
        Verb::Ask(verb) => verb.run(),
        Verb::Eval(verb) => verb.run(),
        Verb::Compare(verb) => verb.run(),
        Verb::Train(verb) => verb.run(),
        Verb::Merge(verb) => verb.run(),
        Verb::Trace(verb) => verb.run(),
        Verb::Bench(verb) => verb.run(),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    if let crate::Error::Io { path, source, .. } = &error
        && path == STDOUT
        && source.kind() == std::io::ErrorKind::BrokenPipe
    {
        // The reader (`| head`) has what it wanted.
        return ExitCode::SUCCESS;
    }
    let mut told = error.to_string();
    eprintln!("error: {told}");
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        let reason = source.to_string();
        // Most messages end with their cause.
        if !told.contains(&reason) {
            eprintln!("  caused by: {reason}");
            told.push_str(&reason);
        }
        cause = source.source();
    }
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(error.exit_code())
}

/// Prints what the argument parser has to say, with a hint as every error has it. Asked-for help is no error.
fn refuse(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let shown = error.print();
        let failed = error.use_stderr() || shown.is_err_and(|error| error.kind() != std::io::ErrorKind::BrokenPipe);
        return if failed { ExitCode::from(2) } else { ExitCode::SUCCESS };
    }
    let text = error.to_string();
    let text = text.trim_end().trim_end_matches("For more information, try '--help'.").trim_end();
    let verb = std::env::args().nth(1).filter(|verb| Arguments::command().find_subcommand(verb).is_some());
    let help = verb.map_or_else(|| "unflip --help".to_owned(), |verb| format!("unflip {verb} --help"));
    eprintln!("{text}\nhint: `{help}` says what it takes");
    ExitCode::from(2)
}

const STDOUT: &str = "standard output";

/// Writes data to standard output.
fn out(text: &str) -> crate::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| crate::Error::io("write", STDOUT, source))
}

/// Reads a count for a flag.
fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "expected a whole number, at least 1".to_owned())
}

/// Prints a value as indented JSON on stdout.
fn print_json(value: &impl serde::Serialize) -> crate::Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| crate::Error::Usage { message: format!("cannot print JSON: {error}"), hint: None })?;
    out(&format!("{text}\n"))
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
            hint: Some("`unflip train --help` says what every setting does".into()),
        }
    })
}
