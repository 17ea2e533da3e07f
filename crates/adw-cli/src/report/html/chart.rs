//! Charts as inline SVG: lines over epochs, distributions over cases, heat maps of probabilities.

use std::fmt::Write;

use super::page::{escape, number};
use crate::report::png;

/// Most points of a line; longer ones are thinned.
const MAX_POINTS: usize = 500;

/// A line of a chart.
pub(super) struct Series {
    pub(super) name: String,
    /// Abscissa and ordinate of each point, the abscissas ascending.
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    /// Line through those of `values` that exist, over their index + 1.
    pub(super) fn over_epochs(name: impl Into<String>, values: impl IntoIterator<Item = Option<f64>>) -> Self {
        let points = values.into_iter().enumerate().filter_map(|(i, v)| Some(((i + 1) as f64, v?)));
        Self { name: name.into(), points: points.filter(|(_, v)| v.is_finite()).collect() }
    }

    fn thinned(&self) -> Vec<(f64, f64)> {
        let n = self.points.len();
        if n <= MAX_POINTS {
            return self.points.clone();
        }
        (0..MAX_POINTS).map(|i| self.points[i * (n - 1) / (MAX_POINTS - 1)]).collect()
    }
}

/// Lines over epochs.
pub(super) struct LineChart<'a> {
    pub(super) title: &'a str,
    /// Quantity and unit of the ordinate.
    pub(super) y: &'a str,
    pub(super) series: Vec<Series>,
    /// Constant values to compare the lines with.
    pub(super) levels: Vec<(String, f64)>,
    /// Last epoch of the warm-up; 0 for none.
    pub(super) warmup: usize,
}

/// Width and height of a chart.
pub(super) const SIZE: [f64; 2] = [560.0, 250.0];
/// Room around the plot: left, top, right, bottom.
const ROOM: [f64; 4] = [52.0, 12.0, 14.0, 36.0];

impl LineChart<'_> {
    /// Draws the chart, or nothing if no line has a point.
    pub(super) fn render(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        if points().next().is_none() {
            return String::new();
        }
        let ys = points().map(|(_, y)| *y).chain(self.levels.iter().map(|(_, y)| *y));
        let scale = Scale::new(ys, 5, [SIZE[1] - ROOM[3], ROOM[1]]);
        let [_, last] = bounds(points().map(|(x, _)| *x));
        let last = last.max(2.0);
        let x = |v: f64| ROOM[0] + (v - 1.0) / (last - 1.0) * (SIZE[0] - ROOM[0] - ROOM[2]);
        let y = |v: f64| scale.at(v);
        let (left, right, bottom) = (x(1.0), x(last), SIZE[1] - ROOM[3]);
        let mut svg = String::new();
        if self.warmup > 0 {
            let width = x((self.warmup as f64 + 0.5).min(last)) - left;
            let _ = write!(
                svg,
                r#"<rect class="warmup" x="{left:.1}" y="{:.1}" width="{width:.1}" height="{:.1}"/><text class="tick" x="{:.1}" y="{:.1}">warm-up</text>"#,
                ROOM[1],
                bottom - ROOM[1],
                left + 4.0,
                bottom - 5.0
            );
        }
        scale.draw_rows(&mut svg, [left, right]);
        for tick in ticks_of_epochs(last) {
            let _ = write!(
                svg,
                r#"<text class="tick middle" x="{:.1}" y="{:.1}">{tick}</text>"#,
                x(tick as f64),
                bottom + 15.0
            );
        }
        let _ = write!(
            svg,
            r#"<text class="tick middle" x="{:.1}" y="{:.1}">epoch</text>"#,
            f64::midpoint(left, right),
            bottom + 30.0
        );
        let mut legend = String::new();
        for (i, (name, value)) in self.levels.iter().enumerate() {
            let _ = write!(svg, r#"<path class="line level{i}" d="M{left:.1} {0:.1}H{right:.1}"/>"#, y(*value));
            key(&mut legend, &format!("level{i}"), &format!("{name} {}", number(*value)));
        }
        for (i, series) in self.series.iter().enumerate().filter(|(_, series)| !series.points.is_empty()) {
            let points: Vec<String> =
                series.thinned().iter().map(|&(vx, vy)| format!("{:.1} {:.1}", x(vx), y(vy))).collect();
            // A line of one point has a length, so that its round ends show.
            let _ = write!(svg, r#"<path class="line s{}" d="M{}h.01"/>"#, i % 6, points.join("L"));
            key(&mut legend, &format!("s{}", i % 6), &series.name);
        }
        let summary = self.series.iter().filter_map(|series| {
            let (first, last) = (series.points.first()?, series.points.last()?);
            Some(format!(
                "{}: {} at epoch {}, {} at epoch {}",
                series.name,
                number(first.1),
                first.0,
                number(last.1),
                last.0
            ))
        });
        figure(self.title, self.y, SIZE, &svg, &legend, &summary.collect::<Vec<_>>().join("; "))
    }
}

/// Adds an entry to a legend.
fn key(legend: &mut String, class: &str, name: &str) {
    let _ = write!(
        legend,
        r#"<span class="key"><svg viewBox="0 0 26 8" width="26" height="8" aria-hidden="true"><path class="line {class}" d="M1 4H25"/></svg>{}</span>"#,
        escape(name)
    );
}

/// Figure of a drawing, with its alternative for those who do not see it.
pub(super) fn figure(title: &str, y: &str, [w, h]: [f64; 2], svg: &str, legend: &str, alternative: &str) -> String {
    format!(
        "<figure class=\"chart\"><figcaption><b>{}</b> <span class=\"unit\">{}</span></figcaption>\
         <svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {w} {h}\">{svg}</svg><div class=\"legend\">{legend}</div></figure>\n",
        escape(title),
        escape(y),
        escape(&format!("{title}. {alternative}"))
    )
}

/// Values of many cases in rows: a dot per case, a box from the first to the third quartile, a line at the median.
pub(super) fn distribution(title: &str, unit: &str, rows: &[(String, Vec<f64>)]) -> String {
    const ROW: f64 = 46.0;
    const LEFT: f64 = 120.0;
    let finite = |values: &[f64]| values.iter().copied().filter(|v| v.is_finite()).collect::<Vec<_>>();
    let all: Vec<f64> = rows.iter().flat_map(|(_, values)| finite(values)).collect();
    if all.is_empty() {
        return String::new();
    }
    let height = ROW * rows.len() as f64 + 24.0;
    let scale = Scale::new(all, 6, [LEFT, SIZE[0] - 16.0]);
    let x = |v: f64| scale.at(v);
    let (mut svg, mut summary) = (String::new(), Vec::new());
    scale.draw_columns(&mut svg, height - 20.0, height - 6.0, |_| "grid");
    for (i, (name, values)) in rows.iter().enumerate() {
        let middle = ROW * (i as f64 + 0.5);
        let mut sorted = finite(values);
        sorted.sort_by(f64::total_cmp);
        let short: String = name.chars().take(18).collect();
        let _ = write!(
            svg,
            r#"<text class="name end" x="{:.1}" y="{:.1}">{}</text>"#,
            LEFT - 10.0,
            middle + 4.0,
            escape(&short)
        );
        let Some(last) = sorted.len().checked_sub(1) else { continue };
        let [q1, median, q3] = [1, 2, 3].map(|q| sorted[last * q / 4]);
        let _ = write!(
            svg,
            r#"<rect class="box" x="{:.1}" y="{:.1}" width="{:.1}" height="26"/>"#,
            x(q1),
            middle - 13.0,
            (x(q3) - x(q1)).max(1.0)
        );
        let shown = sorted.len().min(MAX_POINTS);
        for k in 0..shown {
            let value = sorted[if shown == 1 { 0 } else { k * last / (shown - 1) }];
            // Spread so that equal values do not hide each other: the golden ratio's multiples fill an interval evenly.
            let jitter = ((k as f64 * 0.618_034).fract() - 0.5) * 20.0;
            let _ = write!(svg, r#"<circle class="dot" cx="{:.1}" cy="{:.1}" r="2.6"/>"#, x(value), middle + jitter);
        }
        let _ = write!(svg, r#"<path class="median" d="M{:.1} {:.1}v30"/>"#, x(median), middle - 15.0);
        summary.push(format!(
            "{name}: median {}, quartiles {} and {}, from {} to {}, {} cases",
            number(median),
            number(q1),
            number(q3),
            number(sorted[0]),
            number(sorted[last]),
            sorted.len()
        ));
    }
    figure(title, unit, [SIZE[0], height], &svg, "", &summary.join("; "))
}

/// Probabilities of a choice's options over epochs: darker is more probable. `chosen` is the option at the end.
pub(super) fn heat_map(
    title: &str,
    note: &str,
    options: &[String],
    chosen: usize,
    columns: &[&[f64]],
    warmup: usize,
) -> String {
    const ROW: f64 = 15.0;
    const LEFT: f64 = 34.0;
    const WIDTH: f64 = 260.0;
    let shown = columns.len().min(MAX_POINTS);
    let column = |i: usize| columns[if shown == 1 { 0 } else { i * (columns.len() - 1) / (shown - 1) }];
    let mut pixels = Vec::with_capacity(shown * options.len() * 4);
    for option in 0..options.len() {
        for i in 0..shown {
            let p = column(i).get(option).copied().unwrap_or(0.0);
            // One colour on whatever the page's ground is: readable in light and dark, and in grey.
            pixels.extend([37, 116, 220, (p.clamp(0.0, 1.0) * 255.0).round() as u8]);
        }
    }
    let height = ROW * options.len() as f64;
    let picture = png::data_url("image/png", &png::encode(shown, 4, &pixels));
    let mut svg = format!(
        r#"<image href="{picture}" x="{LEFT}" y="0" width="{WIDTH}" height="{height}" preserveAspectRatio="none" style="image-rendering:pixelated"/><rect class="frame" x="{LEFT}" y="0" width="{WIDTH}" height="{height}"/>"#
    );
    if warmup > 0 && warmup < columns.len() {
        let at = LEFT + WIDTH * warmup as f64 / columns.len() as f64;
        let _ = write!(svg, r#"<path class="mark" d="M{at:.1} 0V{height}"/>"#);
    }
    let last = columns.last().copied().unwrap_or(&[]);
    for (i, option) in options.iter().enumerate() {
        let y = ROW * i as f64 + 11.5;
        let class = if i == chosen { "tick chosen" } else { "tick" };
        let p = last.get(i).copied().unwrap_or(0.0);
        let _ = write!(
            svg,
            r#"<text class="{class} end" x="{:.1}" y="{y:.1}">{option}</text><text class="{class}" x="{:.1}" y="{y:.1}">{p:.2}{}</text>"#,
            LEFT - 5.0,
            LEFT + WIDTH + 5.0,
            if i == chosen { " ◂" } else { "" }
        );
    }
    let alternative = format!(
        "{title}: {} is chosen with probability {:.2}. {note}",
        options[chosen],
        last.get(chosen).unwrap_or(&0.0)
    );
    format!(
        "<figure class=\"heat\"><figcaption><b>{}</b> <span class=\"unit\">{}</span></figcaption>\
         <svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {} {height}\">{svg}</svg></figure>\n",
        escape(title),
        escape(note),
        escape(&alternative),
        LEFT + WIDTH + 48.0
    )
}

/// Places of values between two ends of an axis, with round numbers at their ends.
pub(super) struct Scale {
    pub(super) ticks: Vec<f64>,
    ends: [f64; 2],
}

impl Scale {
    /// Scale that holds all of `values`, of which there is at least one, with about `count` ticks.
    pub(super) fn new(values: impl IntoIterator<Item = f64>, count: usize, ends: [f64; 2]) -> Self {
        let [low, high] = bounds(values.into_iter());
        Self { ticks: ticks(low, high, count), ends }
    }

    /// Place of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        let (low, high) = (self.ticks[0], *self.ticks.last().expect("there are ticks"));
        self.ends[0] + (value - low) / (high - low).max(1e-300) * (self.ends[1] - self.ends[0])
    }

    /// Draws a line at each tick of a vertical axis from `left` to `right`, with its number in front.
    pub(super) fn draw_rows(&self, svg: &mut String, [left, right]: [f64; 2]) {
        for tick in &self.ticks {
            let at = self.at(*tick);
            let _ = write!(
                svg,
                r#"<path class="grid" d="M{left:.1} {at:.1}H{right:.1}"/><text class="tick end" x="{:.1}" y="{:.1}">{}</text>"#,
                left - 6.0,
                at + 4.0,
                number(*tick)
            );
        }
    }

    /// Draws a line of a class at each tick of a horizontal axis down to `bottom`, with its number at `below`.
    pub(super) fn draw_columns(&self, svg: &mut String, bottom: f64, below: f64, class: impl Fn(f64) -> &'static str) {
        for tick in &self.ticks {
            let _ = write!(
                svg,
                r#"<path class="{4}" d="M{0:.1} 4V{1:.1}"/><text class="tick middle" x="{0:.1}" y="{2:.1}">{3}</text>"#,
                self.at(*tick),
                bottom,
                below,
                number(*tick),
                class(*tick)
            );
        }
    }
}

/// Least and greatest of some numbers.
fn bounds(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let [low, high] = values.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)]);
    if low == high { [low - 0.5 * low.abs().max(0.1), high + 0.5 * high.abs().max(0.1)] } else { [low, high] }
}

/// Round numbers, about `count`, that cover `low` to `high`.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = power * [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|m| m * power >= raw).unwrap_or(10.0);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Whole epochs from 1 to `last` at round distances.
fn ticks_of_epochs(last: f64) -> Vec<usize> {
    let step = ticks(0.0, last, 6)[1].ceil().max(1.0) as usize;
    std::iter::once(1).chain((1..).map(|i| i * step).skip_while(|&t| t < 2).take_while(|&t| t as f64 <= last)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover() {
        let shown = |low, high, count| ticks(low, high, count).into_iter().map(number).collect::<Vec<_>>();
        assert_eq!(shown(0.0, 1.0, 5), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(shown(0.83, 0.91, 4), ["0.825", "0.85", "0.875", "0.9", "0.925"]);
        assert_eq!(shown(3e9, 9e9, 3), ["2 G", "4 G", "6 G", "8 G", "10 G"]);
        assert_eq!(ticks_of_epochs(40.0), [1, 10, 20, 30, 40]);
        assert_eq!(ticks_of_epochs(3.0), [1, 2, 3]);
    }

    #[test]
    fn long_lines_are_thinned_and_short_ones_drawn() {
        let long = Series::over_epochs("loss", (0..10_000).map(|i| Some(f64::from(i))));
        assert_eq!((long.thinned().len(), long.thinned()[MAX_POINTS - 1]), (MAX_POINTS, (10_000.0, 9999.0)));
        let chart = |values: Vec<Option<f64>>| LineChart {
            title: "Loss",
            y: "",
            series: vec![Series::over_epochs("loss", values)],
            levels: vec![],
            warmup: 0,
        };
        assert_eq!(chart(vec![None, Some(f64::NAN)]).render(), "");
        assert!(chart(vec![Some(1.0)]).render().contains("1 at epoch 1"));
    }
}
