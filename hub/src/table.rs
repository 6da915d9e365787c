//! Tables and lists of names, for people.

use std::fmt::Display;

/// Rows under a head, two blanks between columns, no blanks at a line's end.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head = head.map(str::to_owned);
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Names for an error text: `gate, yard`, or `none yet`; at most [`MAX_NAMED`] of them.
pub(crate) fn names<T: Display>(names: impl IntoIterator<Item = T>) -> String {
    let mut all: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    let more = all.len().saturating_sub(MAX_NAMED);
    all.truncate(MAX_NAMED);
    match (all.is_empty(), more) {
        (true, _) => "none yet".to_owned(),
        (false, 0) => all.join(", "),
        (false, more) => format!("{} and {more} more", all.join(", ")),
    }
}

/// Names in one error text; a screenful, the rest is a `list` away.
const MAX_NAMED: usize = 20;

/// A name that the catalog doesn't know, with those it does. Whoever typed it is at fault.
#[derive(Debug, thiserror::Error)]
#[error("no {kind} named {name}; known: {known}")]
pub(crate) struct UnknownName {
    kind: &'static str,
    name: String,
    known: String,
}

impl UnknownName {
    pub(crate) fn new<T: Display>(
        kind: &'static str,
        name: &T,
        known: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            kind,
            name: name.to_string(),
            known: names(known),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["gate".into(), "live".into()],
            ["côte-1".into(), String::new()],
        ];
        assert_eq!(
            table(["NAME", "STATE"], &rows),
            "NAME    STATE\ngate    live\ncôte-1\n"
        );
        assert_eq!(table(["NAME"], &[]), "NAME\n");
    }

    #[test]
    fn names_end_somewhere() {
        assert_eq!(names(Vec::<String>::new()), "none yet");
        assert_eq!(names(["a", "b"]), "a, b");
        assert!(names((0..25).map(|i| i.to_string())).ends_with("18, 19 and 5 more"));
    }
}
