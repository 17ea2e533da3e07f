//! Changes of single values of a TOML table by dotted key; unknown keys are refused.

use anyhow::Result;
use toml::{Table, Value};

use crate::failure::bad_input;

/// Applies `key=value` to `table`, which holds every valid key. The value is TOML; text needs no quotes.
///
/// # Errors
/// No `=`, an unknown key (the nearest valid one is named), a value of another type than the one it replaces.
pub(crate) fn set(table: &mut Table, assignment: &str) -> Result<()> {
    let Some((key, text)) = assignment.split_once('=') else {
        bad_input!("--set {assignment}: expected KEY=VALUE");
    };
    let (key, text) = (key.trim(), text.trim());
    let Some(old) = find(table, key) else {
        bad_input!("unknown configuration key {key:?}: did you mean {:?}?", nearest(table, key));
    };
    let new = parse(text);
    *old = match (&*old, new) {
        (old, new) if is_placeholder(old) => new,
        (Value::Float(_), Value::Integer(number)) => Value::Float(number as f64),
        (Value::Table(section), new) if !new.is_table() && !is_placeholder(&new) => {
            let keys: Vec<_> = section.keys().map(|name| format!("{key}.{name}")).collect();
            bad_input!("--set {assignment}: {key} is a section; its keys are {}", keys.join(", "));
        }
        (old, new) if !same_type(old, &new) => {
            bad_input!("--set {assignment}: expected {}, such as {old}", type_name(old));
        }
        (_, new) => new,
    };
    Ok(())
}

/// Overlays `top` on `base`, section by section; keys that `base` does not have are refused. A tagged choice (a section with
/// a `kind`) is replaced as a whole when the kind changes, because its other keys belong to the kind.
///
/// # Errors
/// An unknown key; the message starts with `origin`.
pub(crate) fn overlay(base: &mut Table, top: Table, origin: &str) -> Result<()> {
    let all = base.clone();
    overlay_below(base, top, "", &all, origin)
}

fn overlay_below(base: &mut Table, top: Table, prefix: &str, all: &Table, origin: &str) -> Result<()> {
    for (name, value) in top {
        let key = format!("{prefix}{name}");
        let Some(old) = base.get_mut(&name) else {
            bad_input!("{origin}: unknown configuration key {key:?}: did you mean {:?}?", nearest(all, &key));
        };
        match (old, value) {
            (Value::Table(old), Value::Table(new))
                if new.get("kind").is_none_or(|kind| old.get("kind") == Some(kind)) =>
            {
                overlay_below(old, new, &format!("{key}."), all, origin)?;
            }
            (old @ Value::Float(_), Value::Integer(number)) => *old = Value::Float(number as f64),
            (old, new) if !same_type(old, &new) => {
                bad_input!("{origin}: {key} = {new}: expected {}, such as {old}", type_name(old));
            }
            (old, new) => *old = new,
        }
    }
    Ok(())
}

/// Lists the dotted keys and values of all leaves in the order of the table.
pub(crate) fn leaves(table: &Table) -> Vec<(String, Value)> {
    let mut leaves = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(section) => {
                leaves.extend(self::leaves(section).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => leaves.push((name.clone(), value.clone())),
        }
    }
    leaves
}

fn find<'a>(table: &'a mut Table, key: &str) -> Option<&'a mut Value> {
    match key.split_once('.') {
        None => table.get_mut(key),
        Some((section, rest)) => find(table.get_mut(section)?.as_table_mut()?, rest),
    }
}

/// Reads `text` as a TOML value, else as a string.
fn parse(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        // A line break would begin further keys.
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Returns true if one value may replace the other. Words for an absent value go with every type; a value that replaces one
/// is checked when the table is converted into settings.
fn same_type(a: &Value, b: &Value) -> bool {
    is_placeholder(a) || is_placeholder(b) || std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// Returns true for the words of absent values: `"plan"` (the plan's value) and `"none"`.
pub(crate) fn is_placeholder(value: &Value) -> bool {
    matches!(value.as_str(), Some("plan" | "none"))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
        Value::Datetime(_) => "a date",
    }
}

/// The valid key with the fewest edits from `key`; a missing section counts as one edit.
fn nearest(table: &Table, key: &str) -> String {
    let distance = |candidate: &str| {
        let last = candidate.rsplit('.').next().unwrap_or(candidate);
        edits(candidate, key).min(edits(last, key) + 1)
    };
    leaves(table).into_iter().map(|(key, _)| key).min_by_key(|candidate| distance(candidate)).unwrap_or_default()
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        toml::from_str(
            "seed = 1\n[search]\nepochs = 40\ntau = 5.0\nmask = \"post_norm\"\n[search.decay]\nkind = \"poly\"\nexponent = 0.9\n\
             [data]\npatch_size = [40, 56, 40]",
        )
        .unwrap()
    }

    fn error(assignment: &str) -> String {
        set(&mut table(), assignment).unwrap_err().to_string()
    }

    #[test]
    fn values_are_set_by_dotted_key_and_keep_their_type() {
        let mut table = table();
        for assignment in ["search.epochs=80", "search.tau = 4", "search.mask=pre_norm", "data.patch_size=[8, 8, 8]"] {
            set(&mut table, assignment).unwrap();
        }
        set(&mut table, "search.decay={kind = \"constant\"}").unwrap();
        let expected: Table = toml::from_str(
            "seed = 1\n[search]\nepochs = 80\ntau = 4.0\nmask = \"pre_norm\"\n[search.decay]\nkind = \"constant\"\n\
             [data]\npatch_size = [8, 8, 8]",
        )
        .unwrap();
        assert_eq!(table, expected);
    }

    #[test]
    fn unknown_keys_name_the_nearest_and_wrong_types_an_example() {
        assert!(error("search.epoch=3").contains("did you mean \"search.epochs\""));
        assert!(error("patchsize=3").contains("did you mean \"data.patch_size\""));
        assert!(error("search.epochs=many").contains("expected an integer, such as 40"));
        assert!(error("search.decay=3").contains("search.decay.kind, search.decay.exponent"));
        assert!(error("search.epochs").contains("expected KEY=VALUE"));
    }

    #[test]
    fn a_file_overlays_section_by_section() {
        let mut base = table();
        let top = toml::from_str("[search]\nepochs = 9\n[search.decay]\nkind = \"cosine\"\nlast = 0.1").unwrap();
        overlay(&mut base, top, "my.toml").unwrap();
        assert_eq!(base["search"]["epochs"].as_integer(), Some(9));
        assert_eq!(base["search"]["tau"].as_float(), Some(5.0));
        assert_eq!(base["search"]["decay"].as_table().unwrap().len(), 2);
        let message = overlay(&mut base, toml::from_str("sead = 2").unwrap(), "my.toml").unwrap_err().to_string();
        assert_eq!(message, "my.toml: unknown configuration key \"sead\": did you mean \"seed\"?");
    }

    #[test]
    fn edits_counts_insertions_deletions_and_substitutions() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }
}
