//! What the user sees: the one progress bar, and the one table printer with aligned plain text for terminals, Markdown for
//! documents and JSON records for programs. A verb states columns and cells once and prints whichever was asked for.

#![forbid(unsafe_code)]

mod progress;

pub use progress::progress_bar;

use serde_json::{Map, Value};

/// One cell. Numbers keep their value, so that JSON gives what the text rounds.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text, left-aligned.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number shown with some decimals.
    Number(f64, usize),
    /// A share of one, shown as a percentage with some decimals.
    Percent(f64, usize),
    /// A share or a number with its 95 % interval: `26.0 % [20.0, 32.0]`; in JSON `x`, `x_low` and `x_high`.
    Interval {
        /// The value.
        value: f64,
        /// Its lower end.
        low: f64,
        /// Its upper end.
        high: f64,
        /// Decimals shown.
        decimals: usize,
        /// Whether they are shares of one, shown as percentages.
        percent: bool,
    },
    /// Whether something holds: shown as the word or not at all, true or false in JSON.
    Flag(bool, &'static str),
    /// Nothing: shown as `–`, null in JSON.
    Missing,
}

impl Cell {
    /// A text cell.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    fn show(&self) -> String {
        let finite = |number: &f64, text: String| if number.is_nan() { "–".to_owned() } else { text };
        match self {
            Self::Text(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Number(number, decimals) => finite(number, format!("{number:.decimals$}")),
            Self::Percent(share, decimals) => finite(share, format!("{:.decimals$} %", 100.0 * share)),
            Self::Interval { value, low, high, decimals, percent } => {
                let unit = if *percent { (100.0, " %") } else { (1.0, "") };
                let number = |x: &f64| format!("{:.decimals$}", unit.0 * x);
                let ends = if low.is_nan() { String::new() } else { format!(" [{}, {}]", number(low), number(high)) };
                finite(value, format!("{}{}{ends}", number(value), unit.1))
            }
            Self::Flag(holds, word) => if *holds { *word } else { "" }.to_owned(),
            Self::Missing => "–".to_owned(),
        }
    }

    /// Whether it is aligned to the left.
    fn is_text(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Flag(..))
    }

    /// Its entries of a record, under `name`.
    fn json(&self, name: &str) -> Vec<(String, Value)> {
        let value = match self {
            Self::Text(text) => Value::from(text.as_str()),
            Self::Integer(number) => Value::from(*number),
            Self::Number(number, _) | Self::Percent(number, _) => Value::from(*number),
            Self::Interval { value, low, high, .. } => {
                let entry = |end: &str, number: &f64| (format!("{name}{end}"), Value::from(*number));
                return vec![entry("", value), entry("_low", low), entry("_high", high)];
            }
            Self::Flag(holds, _) => Value::from(*holds),
            Self::Missing => Value::Null,
        };
        vec![(name.to_owned(), value)]
    }
}

/// Rows under named columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table. Column names are the keys in JSON.
    pub fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells at its end stay empty, surplus ones are dropped.
    pub fn row(&mut self, mut cells: Vec<Cell>) -> &mut Self {
        cells.resize(self.columns.len(), Cell::Missing);
        self.rows.push(cells);
        self
    }

    /// Whether a column holds no text, so that it is right-aligned.
    fn right_aligned(&self, column: usize) -> bool {
        let cells = || self.rows.iter().map(|row| &row[column]);
        cells().all(|cell| !cell.is_text()) && cells().any(|cell| *cell != Cell::Missing)
    }

    /// Header and rows as text, and each column's width in characters and alignment.
    fn layout(&self, escape: fn(String) -> String) -> (Vec<Vec<String>>, Vec<(usize, bool)>) {
        let mut lines: Vec<Vec<String>> = vec![self.columns.iter().cloned().map(escape).collect()];
        lines.extend(self.rows.iter().map(|row| row.iter().map(Cell::show).map(escape).collect()));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let layout = (0..self.columns.len()).map(|column| (width(column), self.right_aligned(column))).collect();
        (lines, layout)
    }

    /// Aligned text with a rule under the header, a newline after every line.
    pub fn plain(&self) -> String {
        let (lines, layout) = self.layout(|text| text);
        let rule: Vec<String> = layout.iter().map(|(width, _)| "─".repeat(*width)).collect();
        let mut text = String::new();
        for (i, line) in lines.iter().enumerate() {
            text += &format!("{}\n", align(line, &layout).join("  ").trim_end());
            if i == 0 {
                text += &format!("{}\n", rule.join("  "));
            }
        }
        text
    }

    /// A Markdown table.
    pub fn markdown(&self) -> String {
        let (lines, layout) = self.layout(|text| text.replace('|', "\\|"));
        let rule: Vec<String> = layout
            .iter()
            .map(|&(width, right)| if right { format!("{:->1$}", ":", width.max(2)) } else { "-".repeat(width.max(2)) })
            .collect();
        let mut text = String::new();
        for (i, line) in lines.iter().enumerate() {
            text += &format!("| {} |\n", align(line, &layout).join(" | "));
            if i == 0 {
                text += &format!("| {} |\n", rule.join(" | "));
            }
        }
        text
    }

    /// Comma-separated values, unrounded, with a header line.
    pub fn csv(&self) -> String {
        let quoted = |text: &str| {
            let plain = !text.contains([',', '"', '\n']);
            if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
        };
        let value = |cell: &Cell| match cell {
            Cell::Text(text) => quoted(text),
            Cell::Integer(number) => number.to_string(),
            Cell::Number(number, _) | Cell::Percent(number, _) if number.is_finite() => number.to_string(),
            _ => String::new(),
        };
        let header: Vec<String> = self.columns.iter().map(|name| quoted(name)).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(value).collect::<Vec<_>>().join(","));
        std::iter::once(header.join(",")).chain(rows).map(|line| line + "\n").collect()
    }

    /// One object a row, unrounded.
    pub fn json(&self) -> Value {
        let record = |row: &Vec<Cell>| -> Map<String, Value> {
            self.columns.iter().zip(row).flat_map(|(name, cell)| cell.json(name)).collect()
        };
        Value::Array(self.rows.iter().map(|row| Value::Object(record(row))).collect())
    }
}

fn align(line: &[String], layout: &[(usize, bool)]) -> Vec<String> {
    let pad = |(cell, &(width, right)): (&String, &(usize, bool))| {
        if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
    };
    line.iter().zip(layout).map(pad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["model", "flips", "|Δm|", "n"]);
        table.row(vec![Cell::text("start"), Cell::Percent(0.26, 1), Cell::Number(2.0149, 2), Cell::Integer(100)]);
        table.row(vec![Cell::text("paper | λ=1"), Cell::Percent(0.05, 1), Cell::Number(12.5, 2)]);
        table.row(vec![Cell::text("none"), Cell::Percent(f64::NAN, 1), Cell::Missing, Cell::Integer(0)]);
        table
    }

    #[test]
    fn plain_text_aligns_numbers_to_the_right() {
        let expected = "\
model         flips   |Δm|    n
───────────  ──────  ─────  ───
start        26.0 %   2.01  100
paper | λ=1   5.0 %  12.50    –
none              –      –    0
";
        assert_eq!(table().plain(), expected);
    }

    #[test]
    fn markdown_marks_alignment_and_escapes_bars() {
        let expected = "\
| model        |  flips | \\|Δm\\| |   n |
| ------------ | -----: | -----: | --: |
| start        | 26.0 % |   2.01 | 100 |
| paper \\| λ=1 |  5.0 % |  12.50 |   – |
| none         |      – |      – |   0 |
";
        assert_eq!(table().markdown(), expected);
    }

    #[test]
    fn csv_keeps_what_the_text_rounds_and_quotes_commas() {
        assert_eq!(table().csv().lines().nth(1), Some("start,0.26,2.0149,100"));
        assert_eq!(table().csv().lines().last(), Some("none,,,0"));
        let mut table = Table::new(&["a, b"]);
        table.row(vec![Cell::text("say \"x\"")]);
        assert_eq!(table.csv(), "\"a, b\"\n\"say \"\"x\"\"\"\n");
    }

    #[test]
    fn json_keeps_what_the_text_rounds() {
        let json = table().json();
        assert_eq!(json[0]["|Δm|"], 2.0149);
        assert_eq!(json[1]["n"], Value::Null);
        assert_eq!(json[2]["flips"], Value::Null);
        let mut table = Table::new(&["flips", "flip", "differences"]);
        let interval = |value, low, percent| Cell::Interval { value, low, high: 0.375, decimals: 1, percent };
        table.row(vec![interval(0.25, 0.125, true), Cell::Flag(true, "FLIP"), interval(0.25, f64::NAN, false)]);
        let row = &table.json()[0];
        assert_eq!(
            (&row["flips"], &row["flips_low"], &row["flips_high"]),
            (&0.25.into(), &0.125.into(), &0.375.into())
        );
        assert_eq!((&row["flip"], &row["differences_low"]), (&true.into(), &Value::Null));
        assert!(table.plain().ends_with("25.0 % [12.5, 37.5]  FLIP          0.2\n"), "{}", table.plain());
        assert_eq!(Table::new(&["a"]).json(), Value::Array(Vec::new()));
        assert_eq!(Table::new(&["a"]).plain(), "a\n─\n");
    }
}
