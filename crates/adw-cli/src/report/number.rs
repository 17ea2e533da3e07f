//! Numbers for people.

/// Three significant digits, without trailing zeros; large numbers with k, M, G.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let magnitude = value.abs();
    let (scaled, unit) = match magnitude {
        m if m >= 1e12 => (value / 1e12, " T"),
        m if m >= 1e9 => (value / 1e9, " G"),
        m if m >= 1e6 => (value / 1e6, " M"),
        m if m >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = if scaled == 0.0 { 0 } else { (2 - scaled.abs().log10().floor() as i32).clamp(0, 6) as usize };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_for_people() {
        let shown = [0.0, 0.876_54, 3.599_999_9, 160.0, 9600.0, 48_123.0, 3.6e9, -0.000_123, f64::NAN].map(number);
        assert_eq!(shown, ["0", "0.877", "3.6", "160", "9600", "48.1 k", "3.6 G", "-0.000123", "–"]);
    }
}
