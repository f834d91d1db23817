//! How things are shown: for people, or for programs.

use std::fmt::Write as _;

use serde_json::Value;

use crate::Failed;

/// kubectl's formats.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// `kind/name`, a line each.
    Name,
}

/// A table under construction.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    names: Vec<String>,
    wide: usize,
}

impl Table {
    /// Columns; the last `wide` of them are shown only where there is room.
    pub fn new(columns: &[&str], wide: usize) -> Self {
        Self {
            rows: vec![columns.iter().map(|c| (*c).to_owned()).collect()],
            names: vec![],
            wide,
        }
    }

    /// One row; `name`: what `-o name` says of it.
    pub fn row(&mut self, name: impl Into<String>, cells: impl IntoIterator<Item = String>) {
        self.names.push(name.into());
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether there is nothing but the head.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn text(&self, wide: bool) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let shown = if wide {
            columns
        } else {
            columns - self.wide.min(columns)
        };
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().take(shown).enumerate();
            let line: Vec<_> = cells
                .map(|(at, cell)| format!("{cell:<width$}", width = width(at)))
                .collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", line.join("   ").trim_end());
        }
        text
    }
}

/// Shows a table, or what it was made of.
///
/// # Errors
/// What cannot be written as that.
pub fn show(format: Format, table: &Table, data: &Value) -> Result<(), Failed> {
    let text = match format {
        Format::Table if table.is_empty() => {
            eprintln!("nothing found");
            String::new()
        }
        Format::Table => table.text(false),
        Format::Wide => table.text(true),
        Format::Json | Format::Yaml => document(format, data)?,
        Format::Name => table.names.iter().fold(String::new(), |mut text, name| {
            let _ = writeln!(text, "{name}");
            text
        }),
    };
    say(&text)
}

/// What programs read: JSON where that is asked for, else YAML.
///
/// # Errors
/// What cannot be written as that.
pub fn document(format: Format, data: &Value) -> Result<String, Failed> {
    match format {
        Format::Json => Ok(format!("{data:#}\n")),
        _ => serde_saphyr::to_string(data).map_err(|e| Failed::at("YAML", e)),
    }
}

/// Writes to stdout; a reader that went away is no error.
///
/// # Errors
/// Another.
pub fn say(text: &str) -> Result<(), Failed> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failed::at("stdout", error)),
        _ => Ok(()),
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = n as f64;
    let mut unit = None;
    for next in UNITS {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = Some(next);
    }
    unit.map_or_else(|| format!("{n} B"), |unit| format!("{amount:.1} {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other_and_the_wide_ones_only_where_asked_for() {
        let mut table = Table::new(&["NAME", "SIZE", "WHERE"], 1);
        table.row("x/a", ["a", "1.0 MiB", "zone"].map(str::to_owned));
        assert_eq!(table.text(false), "NAME   SIZE\na      1.0 MiB\n");
        assert_eq!(
            table.text(true),
            "NAME   SIZE      WHERE\na      1.0 MiB   zone\n"
        );
    }

    #[test]
    fn bytes_are_short() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (64 << 20, "64.0 MiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }
}
