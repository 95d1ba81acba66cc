//! `unflip compare`.

use crate::eval::{StoredResults, compare};
use crate::report::{Cell, Table};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `compare`.
#[derive(Args)]
#[command(after_help = "Example:\n  unflip compare runs/start-eval runs/paper-eval\n\n\
    Both must be evaluations of the same questions. p-values are two-sided and paired; whole patients, images or reports change sides.")]
pub struct Compare {
    /// Folder or results.json of the first evaluation
    #[arg(value_name = "FIRST")]
    first: PathBuf,
    /// Folder or results.json of the second evaluation
    #[arg(value_name = "SECOND")]
    second: PathBuf,
    /// Random permutations
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = super::count)]
    permutations: usize,
    /// Seed of the permutations
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Compare {
    /// Runs the verb.
    ///
    /// # Errors
    /// Results that cannot be read or are not of the same questions.
    pub fn run(self) -> crate::Result<()> {
        let first = StoredResults::read(&self.first)?;
        let second = StoredResults::read(&self.second)?;
        let mut table = Table::new(&["metric", "first", "second", "difference", "p", "n"]);
        for row in compare(&first, &second, self.permutations, self.seed)? {
            table.row(vec![
                Cell::text(row.metric),
                Cell::Number(row.first, 4),
                Cell::Number(row.second, 4),
                Cell::Number(row.difference, 4),
                Cell::Number(row.p_value, 4),
                Cell::Integer(row.n as i64),
            ]);
        }
        if self.json {
            return super::print_json(&table.json());
        }
        super::out(&table.plain())
    }
}
