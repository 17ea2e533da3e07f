//! Text of other people's files made fit to be shown: names and values come from datasets, and a terminal obeys what it reads.

use std::{fmt::Write, path::Path};

/// Longest text that is shown, in characters.
const MAX_CHARS: usize = 2000;

/// Characters kept at the end of a longer text, where messages have their remedy.
const END_CHARS: usize = 300;

/// Escapes control characters and invisible formatting characters, and leaves out the middle of a text of more than 2000
/// characters.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len().min(8 * MAX_CHARS));
    let num_chars = text.chars().count();
    let cut = if num_chars > MAX_CHARS { MAX_CHARS - END_CHARS..num_chars - END_CHARS } else { 0..0 };
    for (i, c) in text.chars().enumerate() {
        if i == cut.start && !cut.is_empty() {
            let _ = write!(plain, " ... ({} characters) ... ", cut.len());
        }
        if cut.contains(&i) {
            continue;
        }
        if is_obeyed(c) {
            plain.extend(c.escape_unicode());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Argument or path as a POSIX shell reads it, in quotation marks where it needs them.
pub(crate) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_=+./,:@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Path for a POSIX shell.
pub(crate) fn quoted(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

/// Returns true for characters that a terminal does not print but obeys: controls, marks of direction, invisible ones.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_escaped_and_letters_of_any_script_are_not() {
        let name = "Tumör 肿瘤 u\u{308}";
        assert_eq!(plain(name), name);
        assert_eq!(plain("a\u{1b}[2Jb\u{7}\u{202e}c\0"), "a\\u{1b}[2Jb\\u{7}\\u{202e}c\\u{0}");
        assert_eq!(plain("a\nb"), "a\\u{a}b");
    }

    #[test]
    fn long_texts_keep_their_beginning_and_their_end() {
        let text = format!("file: {} is wrong: rename it", "ä".repeat(1_000_000));
        let shown = plain(&text);
        assert!(shown.chars().count() < MAX_CHARS + 100, "{}", shown.len());
        assert!(shown.starts_with("file: ää") && shown.ends_with("ä is wrong: rename it"), "{shown}");
        assert!(shown.contains(" ... (998026 characters) ... "), "{shown}");
    }
}
