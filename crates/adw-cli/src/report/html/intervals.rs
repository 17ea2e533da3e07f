//! Charts that compare several networks: means with their intervals, and scores over costs.

use std::fmt::Write;

use super::{
    chart::{SIZE, Scale, figure},
    page::{escape, number},
};

/// Mean score of some networks, or of their differences, with its 95 % interval, and their cost if they have one.
pub(super) struct Point {
    pub(super) name: String,
    pub(super) mean: f64,
    pub(super) interval: [f64; 2],
    pub(super) cost: Option<f64>,
}

/// Chart as a part of a page, or as a file of its own.
pub(super) struct Chart {
    title: String,
    unit: String,
    size: [f64; 2],
    svg: String,
    alternative: String,
}

impl Chart {
    /// Chart with its title, for a page.
    pub(super) fn figure(&self) -> String {
        figure(&self.title, &self.unit, self.size, &self.svg, "", &self.alternative)
    }

    /// Content of an SVG file.
    pub(super) fn file(&self) -> String {
        let ([w, h], top) = (self.size, 26.0);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {w} {}\" width=\"{w}\">\n<style>{}</style>\n\
             <rect width=\"100%\" height=\"100%\" style=\"fill:var(--ground)\"/><text class=\"name\" x=\"12\" y=\"18\">{}</text>\
             <g transform=\"translate(0 {top})\">{}</g></svg>\n",
            escape(&self.alternative),
            h + top,
            include_str!("style.css"),
            escape(&format!("{} ({})", self.title, self.unit)),
            self.svg
        )
    }
}

fn described(points: &[Point]) -> String {
    let point = |Point { name, mean, interval: [low, high], cost }: &Point| {
        let cost = cost.map_or(String::new(), |cost| format!(", cost {}", number(cost)));
        format!("{name}: {mean:.4}, interval {low:.4} to {high:.4}{cost}")
    };
    points.iter().map(point).collect::<Vec<_>>().join("; ")
}

/// Draws means and intervals, a row for each point. `zero` draws a line at 0, for differences.
pub(super) fn intervals(title: &str, unit: &str, points: &[Point], zero: bool) -> Chart {
    const ROW: f64 = 30.0;
    const LEFT: f64 = 170.0;
    let height = ROW * points.len() as f64 + 28.0;
    let values = points.iter().flat_map(|point| [point.mean, point.interval[0], point.interval[1]]);
    let x = Scale::new(values.chain(zero.then_some(0.0)), 5, [LEFT, SIZE[0] - 24.0]);
    let mut svg = String::new();
    let class = |tick| if zero && tick == 0.0 { "mark" } else { "grid" };
    x.draw_columns(&mut svg, height - 22.0, height - 6.0, class);
    for (i, Point { name, mean, interval: [low, high], .. }) in points.iter().enumerate() {
        let middle = ROW * (i as f64 + 0.5);
        let short: String = name.chars().take(26).collect();
        let _ = write!(
            svg,
            r#"<text class="name end" x="{:.1}" y="{:.1}">{}</text><path class="line s0" d="M{:.1} {middle:.1}H{:.1}"/><circle class="dot" cx="{:.1}" cy="{middle:.1}" r="5"/>"#,
            LEFT - 10.0,
            middle + 4.0,
            escape(&short),
            x.at(*low),
            x.at(*high),
            x.at(*mean)
        );
    }
    Chart { title: title.into(), unit: unit.into(), size: [SIZE[0], height], svg, alternative: described(points) }
}

/// Draws scores over costs with the names beside the points.
pub(super) fn over_cost(title: &str, unit: &str, points: &[Point]) -> Chart {
    let bottom = SIZE[1] - 36.0;
    let scores = points.iter().flat_map(|point| [point.interval[0], point.interval[1]]);
    let y = Scale::new(scores, 5, [bottom, 12.0]);
    let x = Scale::new(points.iter().filter_map(|point| point.cost), 5, [64.0, SIZE[0] - 30.0]);
    let mut svg = String::new();
    y.draw_rows(&mut svg, [64.0, SIZE[0] - 30.0]);
    for tick in &x.ticks {
        let _ = write!(
            svg,
            r#"<text class="tick middle" x="{:.1}" y="{:.1}">{}</text>"#,
            x.at(*tick),
            bottom + 15.0,
            number(*tick)
        );
    }
    let _ = write!(
        svg,
        r#"<text class="tick middle" x="{:.1}" y="{:.1}">multiply-adds per patch</text>"#,
        SIZE[0] / 2.0,
        bottom + 31.0
    );
    // Names go to the side with more room, and down where an earlier one is.
    let mut names: Vec<[f64; 2]> = Vec::new();
    let mut from_top: Vec<&Point> = points.iter().collect();
    from_top.sort_by(|a, b| b.mean.total_cmp(&a.mean));
    for Point { name, mean, interval: [low, high], cost } in from_top {
        let Some(cost) = cost else { continue };
        let (at, middle) = (x.at(*cost), y.at(*mean));
        let (class, side) = if at > SIZE[0] / 2.0 { ("name end", at - 9.0) } else { ("name", at + 9.0) };
        let mut place = middle - 6.0;
        while names.iter().any(|[other, height]| (other - side).abs() < 120.0 && (height - place).abs() < 13.0) {
            place += 13.0;
        }
        names.push([side, place]);
        let _ = write!(
            svg,
            r#"<path class="line s0" d="M{at:.1} {:.1}V{:.1}"/><circle class="dot" cx="{at:.1}" cy="{middle:.1}" r="5"/><text class="{class}" x="{side:.1}" y="{place:.1}">{}</text>"#,
            y.at(*low),
            y.at(*high),
            escape(name)
        );
    }
    Chart { title: title.into(), unit: unit.into(), size: SIZE, svg, alternative: described(points) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_lie_between_the_ticks_and_files_stand_alone() {
        let point =
            |name: &str, mean: f64, cost| Point { name: name.into(), mean, interval: [mean - 0.01, mean + 0.02], cost };
        let points = [point("found <1>", 0.88, Some(3e9)), point("nnunet", 0.87, Some(9e9))];
        let chart = intervals("Dice", "mean", &points, false);
        let file = chart.file();
        assert!(
            file.starts_with("<svg xmlns=") && file.contains("found &lt;1&gt;") && !file.contains("<figure"),
            "{file}"
        );
        assert!(chart.figure().contains("aria-label=\"Dice. found"), "{}", chart.figure());
        let zero = intervals("Difference", "", &[point("a - b", 0.3, None)], true);
        assert!(zero.svg.contains("class=\"mark\""), "{}", zero.svg);
        assert_eq!(zero.alternative, "a - b: 0.3000, interval 0.2900 to 0.3200");
        // The dearer network is further right.
        let cost = over_cost("Cost", "", &points).svg;
        let at: Vec<f64> =
            cost.split("cx=\"").skip(1).map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect();
        assert!(at[0] < at[1] && at.iter().all(|x| (60.0..540.0).contains(x)), "{at:?}");
    }
}
