//! Plain-text tables.

use std::fmt::Write;

use super::plain::plain;

/// Rows of cells under a header.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    align_numbers: bool,
}

impl Table {
    /// Table with names in the first column, left-aligned, and numbers in the others, right-aligned.
    pub(crate) fn of_numbers<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: cells(header), rows: Vec::new(), align_numbers: true }
    }

    /// Table with all columns left-aligned.
    pub(crate) fn of_text<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { align_numbers: false, ..Self::of_numbers(header) }
    }

    /// Adds a row; missing cells are blank.
    pub(crate) fn row<S: Into<String>>(&mut self, row: impl IntoIterator<Item = S>) {
        self.rows.push(cells(row));
    }

    /// Formats the table, each line ending in a newline.
    pub(crate) fn render(&self) -> String {
        let all = || std::iter::once(&self.header).chain(&self.rows);
        let columns = all().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for (index, row) in all().enumerate() {
            let mut line = String::new();
            for (column, &width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                let gap = if column == 0 { "" } else { "  " };
                let _ = if column > 0 && self.align_numbers {
                    write!(line, "{gap}{cell:>width$}")
                } else {
                    write!(line, "{gap}{cell:<width$}")
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
            if index == 0 {
                let _ = writeln!(text, "{}", "-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1)));
            }
        }
        text
    }
}

fn cells<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Vec<String> {
    texts.into_iter().map(|text| plain(&text.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::of_numbers(["label", "Dice"]);
        table.row(["anterior", "0.87"]);
        table.row(["ä", "1"]);
        assert_eq!(table.render(), "label     Dice\n--------------\nanterior  0.87\nä            1\n");
        table.align_numbers = false;
        assert_eq!(table.render(), "label     Dice\n--------------\nanterior  0.87\nä         1\n");
    }
}
