//! Budgets: what each kernel may count at each shape of its tests, kept in a TOML file beside the kernels.
//!
//! Counts are exact, so a budget is the count itself: a test fails when one rises, says so when one falls, and writes the file anew
//! where [`UPDATE`] is set. The file has one table for each kernel and shape, in alphabetical order: the counts, the least sectors
//! that any kernel would move, what the kernel's own schedule of tiles moves, and a reason where a count is not what it should be.
//! Only the reason is written by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::counters::Counters;

/// The environment variable that makes [`hold`] write what was counted.
pub const UPDATE: &str = "UNFLIP_UPDATE_BUDGETS";

/// Sectors beyond the schedule's that need no reason: 15 %.
const SLACK: (u64, u64) = (115, 100);

const HEAD: &str = "\
# What each kernel counts on the virtual GPU at each shape of its tests. Exact: a test fails when a count rises.
# Written by the tests with UNFLIP_UPDATE_BUDGETS=1; by hand only `reason`, which bank conflicts and sectors past 1.15 times
# `schedule_sectors` need. `minimum_sectors`: every input read once and every output written once. Counts of 0 are left out.
";

/// What a test counted.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// File name of the kernel without its ending.
    pub kernel: &'a str,
    /// The shape, as the test calls it.
    pub shape: &'a str,
    /// Of all launches that make up the operation.
    pub counters: Counters,
    /// 32-byte sectors if every input is read once and every output written once.
    pub minimum_sectors: u64,
    /// 32-byte sectors that the kernel's schedule of tiles moves, if that is known.
    pub schedule_sectors: Option<u64>,
}

/// What one kernel may count at one shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// The counts.
    pub counters: Counters,
    /// See [`Counted`].
    pub minimum_sectors: u64,
    /// See [`Counted`].
    pub schedule_sectors: Option<u64>,
    /// Why a count is not what it should be.
    pub reason: Option<String>,
}

/// The file's budgets by kernel, then shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budgets(pub BTreeMap<String, BTreeMap<String, Budget>>);

/// One count that is not the budget's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The counter's name.
    pub name: &'static str,
    /// In the file.
    pub budget: u64,
    /// By the test.
    pub counted: u64,
}

/// How counts stand to their budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Exactly.
    Exactly,
    /// Some fell, none rose: the budget can be lowered. One line each.
    Fell(String),
    /// Written to the file.
    Updated,
}

/// Why a budget does not hold, or cannot be read.
#[derive(Debug, Error)]
pub enum BudgetError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Of the budgets.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no table of budgets.
    #[error("budgets: {0}")]
    Format(String),
    /// A test that has no budget yet.
    #[error("{kernel} has no budget at shape \"{shape}\"; set {UPDATE}=1 to record what was counted")]
    Missing {
        /// Kernel.
        kernel: String,
        /// Shape.
        shape: String,
    },
    /// Counts rose, or need a reason that is not there.
    #[error(
        "{kernel} at shape \"{shape}\":\n{findings}where that is meant, record it with {UPDATE}=1 and say why in `reason`"
    )]
    Exceeded {
        /// Kernel.
        kernel: String,
        /// Shape.
        shape: String,
        /// One line each.
        findings: String,
    },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, budget, counted } = self;
        let verb = if counted > budget { "rose" } else { "fell" };
        write!(f, "{name} {verb} from {budget} to {counted}")?;
        if *budget > 0 {
            write!(f, " ({:+.1} %)", (*counted as f64 / *budget as f64 - 1.0) * 100.0)?;
        }
        Ok(())
    }
}

impl Budget {
    /// What differs from the budget, by counter.
    pub fn differences(&self, counters: &Counters) -> Vec<Difference> {
        let each = self.counters.named().zip(counters.values());
        each.filter(|((_, budget), counted)| budget != counted)
            .map(|((name, budget), counted)| Difference { name, budget, counted })
            .collect()
    }

    /// What the counts of a kernel need a reason for, one line each.
    fn wants_reason(&self) -> String {
        let mut wanted = String::new();
        let Counters { bank_conflicts, sectors_read, sectors_written, .. } = self.counters;
        if bank_conflicts > 0 {
            let _ = writeln!(wanted, "  {bank_conflicts} bank conflicts without a reason");
        }
        let sectors = sectors_read + sectors_written;
        if let Some(schedule) = self.schedule_sectors
            && sectors * SLACK.1 > schedule * SLACK.0
        {
            let ratio = sectors as f64 / schedule as f64;
            let _ =
                writeln!(wanted, "  {sectors} sectors, {ratio:.2} times the schedule's {schedule}, without a reason");
        }
        wanted
    }
}

impl Budgets {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, BudgetError> {
        let wrong = |place: String| BudgetError::Format(place);
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
        let mut budgets = Self::default();
        for (kernel, shapes) in &table {
            let shapes = shapes.as_table().ok_or_else(|| wrong(format!("{kernel} is no table of shapes")))?;
            for (shape, fields) in shapes {
                let place = format!("{kernel}.\"{shape}\"");
                let fields = fields.as_table().ok_or_else(|| wrong(format!("{place} is no table of counts")))?;
                let mut budget = Budget::default();
                for (name, value) in fields {
                    let number = || {
                        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
                        number.ok_or_else(|| wrong(format!("{place}.{name} is no count")))
                    };
                    match name.as_str() {
                        "reason" => {
                            let reason = value.as_str().ok_or_else(|| wrong(format!("{place}.reason is no text")))?;
                            budget.reason = Some(reason.to_owned());
                        }
                        "minimum_sectors" => budget.minimum_sectors = number()?,
                        "schedule_sectors" => budget.schedule_sectors = Some(number()?),
                        _ => {
                            let count = budget.counters.by_name(name);
                            *count.ok_or_else(|| wrong(format!("{place}.{name} is no counter")))? = number()?;
                        }
                    }
                }
                budgets.0.entry(kernel.clone()).or_default().insert(shape.clone(), budget);
            }
        }
        Ok(budgets)
    }

    /// The file's text: the same budgets give the same bytes.
    pub fn to_toml(&self) -> String {
        let mut text = HEAD.to_owned();
        for (kernel, shapes) in &self.0 {
            for (shape, budget) in shapes {
                let _ = writeln!(text, "\n[{}.{}]", quoted(kernel), quoted(shape));
                if let Some(reason) = &budget.reason {
                    let _ = writeln!(text, "reason = {}", quoted(reason));
                }
                let _ = writeln!(text, "minimum_sectors = {}", budget.minimum_sectors);
                if let Some(schedule) = budget.schedule_sectors {
                    let _ = writeln!(text, "schedule_sectors = {schedule}");
                }
                for (name, count) in
                    Counters::NAMES.iter().zip(budget.counters.values()).filter(|(_, count)| *count > 0)
                {
                    let _ = writeln!(text, "{name} = {count}");
                }
            }
        }
        text
    }

    /// Compares what a test counted with its budget.
    pub fn compare(&self, counted: &Counted) -> Result<Held, BudgetError> {
        let Counted { kernel, shape, .. } = *counted;
        let (kernel, shape) = (kernel.to_owned(), shape.to_owned());
        let Some(budget) = self.0.get(&kernel).and_then(|shapes| shapes.get(&shape)) else {
            return Err(BudgetError::Missing { kernel, shape });
        };
        let (mut findings, mut fell) = (String::new(), String::new());
        for difference in budget.differences(&counted.counters) {
            let lines = if difference.counted > difference.budget { &mut findings } else { &mut fell };
            let _ = write!(lines, "  {difference}");
            if difference.name.starts_with("sectors") {
                let _ = write!(lines, "; at least {} sectors must move in all", counted.minimum_sectors);
            }
            lines.push('\n');
        }
        let needs = Budget { schedule_sectors: counted.schedule_sectors, counters: counted.counters, ..budget.clone() };
        if budget.reason.is_none() {
            findings += &needs.wants_reason();
        }
        for (name, budget, counted) in [
            ("minimum_sectors", Some(budget.minimum_sectors), Some(counted.minimum_sectors)),
            ("schedule_sectors", budget.schedule_sectors, counted.schedule_sectors),
        ] {
            if budget != counted {
                let show = |number: Option<u64>| number.map_or("nothing".to_owned(), |number| number.to_string());
                let _ = writeln!(findings, "  {name} is {} in the file, {} by the test", show(budget), show(counted));
            }
        }
        match (findings.is_empty(), fell.is_empty()) {
            (false, _) => Err(BudgetError::Exceeded { kernel, shape, findings: findings + &fell }),
            (true, false) => Ok(Held::Fell(fell)),
            (true, true) => Ok(Held::Exactly),
        }
    }

    /// Takes what a test counted as its budget; a reason stays.
    pub fn record(&mut self, counted: &Counted) {
        let shapes = self.0.entry(counted.kernel.to_owned()).or_default();
        let budget = shapes.entry(counted.shape.to_owned()).or_default();
        budget.counters = counted.counters;
        budget.minimum_sectors = counted.minimum_sectors;
        budget.schedule_sectors = counted.schedule_sectors;
    }
}

/// A TOML string or key.
fn quoted(text: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !text.is_empty() && text.bytes().all(bare) {
        return text.to_owned();
    }
    toml::Value::String(text.to_owned()).to_string()
}

/// Compares what a test counted with the budget in the file at `path`; where [`UPDATE`] is set to anything but 0, writes it there
/// instead.
pub fn hold(path: &Path, counted: &Counted) -> Result<Held, BudgetError> {
    let update = std::env::var_os(UPDATE).is_some_and(|value| value != "0" && !value.is_empty());
    if update { update_file(path, counted) } else { compare_file(path, counted) }
}

fn compare_file(path: &Path, counted: &Counted) -> Result<Held, BudgetError> {
    let failed = |source| BudgetError::File { path: path.to_owned(), source };
    Budgets::parse(&std::fs::read_to_string(path).map_err(failed)?)?.compare(counted)
}

/// Records in the file, which stays locked meanwhile: tests run side by side.
fn update_file(path: &Path, counted: &Counted) -> Result<Held, BudgetError> {
    let failed = |source| BudgetError::File { path: path.to_owned(), source };
    let open = || -> io::Result<(File, String)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok((file, text))
    };
    let (mut file, text) = open().map_err(failed)?;
    let mut budgets = Budgets::parse(&text)?;
    budgets.record(counted);
    let new = budgets.to_toml();
    if new != text {
        let mut write = || -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(new.as_bytes())
        };
        write().map_err(failed)?;
    }
    Ok(Held::Updated)
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
