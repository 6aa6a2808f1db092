//! Tables without borders: aligned, numbers to the right, as wide as the terminal.

use anstyle::Style;
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, presets,
};

use crate::ui::{DIM, GREEN, RED, YELLOW};

/// A column's heading and alignment.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    /// A word or a name: never broken, so that it can be copied.
    Left(&'static str),
    /// A number.
    Right(&'static str),
    /// Words: broken where the terminal is narrow.
    Text(&'static str),
}

/// A table with `columns`.
pub(crate) fn new(columns: &[Column]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    // Colours are taken out again where they are not wanted, like all others.
    table.enforce_styling();
    table.style_text_only();
    table.set_header(columns.iter().map(|c| match c {
        Column::Left(name) | Column::Right(name) | Column::Text(name) => {
            Cell::new(name).add_attribute(Attribute::Bold)
        }
    }));
    for (n, column) in columns.iter().enumerate() {
        if let Some(c) = table.column_mut(n) {
            // Two spaces between columns, none before the first.
            c.set_padding((0, 2));
            if let Column::Right(_) = column {
                c.set_cell_alignment(CellAlignment::Right);
            }
            if !matches!(column, Column::Text(_)) {
                c.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
    }
    table
}

/// A cell in one of the colours of the house.
pub(crate) fn cell(text: impl ToString, style: Style) -> Cell {
    let text = text.to_string();
    let cell = Cell::new(&text);
    match style {
        // Escape codes around nothing would keep the line's end from being trimmed.
        _ if text.is_empty() => cell,
        GREEN => cell.fg(Color::Green),
        YELLOW => cell.fg(Color::Yellow),
        RED => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        DIM => cell.add_attribute(Attribute::Dim),
        _ => cell,
    }
}

/// The table as text, without spaces at the ends of its lines.
pub(crate) fn text(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
