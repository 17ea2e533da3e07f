//! Parts of an HTML page: escaped text, numbers for people, tables, sections.

use std::fmt::Write;

pub(super) use crate::report::number::number;
use crate::report::plain::plain;
pub(super) use crate::report::plain::quoted;

/// Text that shows as it is in HTML, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    plain(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `number`, or a dash for none.
pub(super) fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), number)
}

/// Seconds as `12 s`, `3.4 min` or `5.6 h`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{} s", number(s)),
        s if s < 6000.0 => format!("{} min", number(s / 60.0)),
        s => format!("{} h", number(s / 3600.0)),
    }
}

/// `2×3×4`.
pub(super) fn times<T: ToString>(triple: &[T; 3]) -> String {
    triple.iter().map(ToString::to_string).collect::<Vec<_>>().join("×")
}

/// `1 case`, `2 cases`.
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Table with a header. Cells are HTML; those of the first column are headers of their rows.
pub(super) fn table(caption: &str, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table><caption>{0}</caption><thead><tr>",
        escape(caption)
    );
    for cell in header {
        let _ = write!(text, "<th scope=\"col\">{}</th>", escape(cell));
    }
    text.push_str("</tr></thead><tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let _ =
                if i == 0 { write!(text, "<th scope=\"row\">{cell}</th>") } else { write!(text, "<td>{cell}</td>") };
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n");
    text
}

/// Names with their values, both HTML.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let rows: String = rows.iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{value}</dd>\n")).collect();
    format!("<dl class=\"facts\">{rows}</dl>\n")
}

/// Section of a page.
pub(super) struct Section {
    pub(super) id: String,
    pub(super) title: String,
    /// HTML.
    pub(super) body: String,
}

/// Tip of the arrows of network drawings.
const TIP: &str = "<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\"><defs><marker id=\"tip\" \
    viewBox=\"0 0 6 6\" refX=\"5\" refY=\"3\" markerWidth=\"6\" markerHeight=\"6\" orient=\"auto\"><path d=\"M0 0L6 3L0 6z\" \
    fill=\"#8794a3\"/></marker></defs></svg>\n";

/// Whole page of these sections. `scripts` are HTML elements at its end.
pub(super) fn page(title: &str, sections: &[Section], scripts: &str) -> String {
    let (mut links, mut body) = (String::new(), String::new());
    for Section { id, title, body: content } in sections {
        let title = escape(title);
        let _ = write!(links, "<a href=\"#{id}\">{title}</a> ");
        let _ = write!(
            body,
            "<section id=\"{id}\" aria-labelledby=\"{id}-title\"><h2 id=\"{id}-title\">{title}</h2>\n{content}</section>\n"
        );
    }
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" href=\"data:,\">\n\
         <title>{title}</title>\n<style>\n{}</style></head>\n<body>\n{TIP}<header><h1>{title}</h1>\n<nav aria-label=\"Sections\">{links}</nav></header>\n\
         <main>\n{body}</main>\n{scripts}</body></html>\n",
        include_str!("style.css")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!([9.94, 99.0, 618.0, 7200.0].map(duration), ["9.94 s", "99 s", "10.3 min", "2 h"]);
    }

    #[test]
    fn names_of_files_cannot_break_the_page() {
        assert_eq!(escape("<b a=\"1\">&\u{202e}"), "&lt;b a=&quot;1&quot;&gt;&amp;\\u{202e}");
    }
}
