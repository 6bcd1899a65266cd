//! Columns of text, as wide as they need to be.

use crate::screen::printable;
use std::fmt;

pub struct Table {
    indent: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(heads: [&str; N]) -> Self {
        Table { indent: 0, rows: vec![heads.map(str::to_owned).to_vec()] }
    }

    /// Name and value, one pair a line, without heads.
    pub fn pairs() -> Self {
        Table { indent: 0, rows: Vec::new() }
    }

    pub fn indented(mut self, columns: usize) -> Self {
        self.indent = columns;
        self
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        let one_line = |cell: String| printable(&cell).replace(['\n', '\t'], " ");
        self.rows.push(cells.map(one_line).to_vec());
    }

    pub fn pair(&mut self, name: &str, value: impl fmt::Display) {
        self.row([name.to_owned(), value.to_string()]);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            let padded = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            let line = padded.collect::<Vec<_>>().join("  ");
            writeln!(f, "{:indent$}{}", "", line.trim_end(), indent = self.indent)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_a_cell_stays_on_its_line() {
        let mut table = Table::new(["NAME", "NOTE"]).indented(2);
        table.row(["radicale".into(), "crashed:\nwhy".into()]);
        table.row(["x".into(), String::new()]);
        assert_eq!(table.to_string(), "  NAME      NOTE\n  radicale  crashed: why\n  x\n");
    }
}
