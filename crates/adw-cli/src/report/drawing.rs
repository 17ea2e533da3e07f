//! A picture of an architecture: the U of a U-Net, drawn to scale.

use std::fmt::Write as _;

use adw_supernet::Architecture;

/// Pixels of the widest layer, of a layer's least width, and of the gaps between things.
const WIDEST: f64 = 84.0;
const NARROWEST: f64 = 4.0;
const GAP: f64 = 6.0;
const BLOCK_GAP: f64 = 44.0;
/// Height of the finest stage's layers; each stage is 0.72 times as high as the one above it.
const HEIGHT: f64 = 96.0;
const SHRINK: f64 = 0.72;
const STAGE_GAP: f64 = 34.0;
const MARGIN: f64 = 28.0;

/// An SVG picture: a rectangle per layer, as wide as it has channels (which stand above it) and as high as its stage is
/// fine; skips and poolings as arrows. `patch`: input voxels, D H W.
pub(crate) fn svg(architecture: &Architecture, patch: [usize; 3]) -> String {
    let poolings = architecture.poolings();
    let widest = architecture.blocks.iter().flatten().copied().max().unwrap_or(1) as f64;
    let width = |channels: usize| NARROWEST + (WIDEST - NARROWEST) * (channels as f64 / widest);
    let height = |stage: usize| HEIGHT * SHRINK.powi(stage as i32);
    let top = |stage: usize| {
        MARGIN + 20.0 + (0..stage).map(|s| height(s) + STAGE_GAP).sum::<f64>()
    };
    let stage_of = |block: usize| if block <= poolings { block } else { 2 * poolings - block };

    let mut shapes = String::new();
    let mut spans = Vec::new();
    let mut x = MARGIN;
    for (i, block) in architecture.blocks.iter().enumerate() {
        let stage = stage_of(i);
        let start = x;
        for &channels in block {
            let (w, h, y) = (width(channels), height(stage), top(stage));
            let class = if i <= poolings { "encoder" } else { "decoder" };
            line(&mut shapes, format_args!(
                r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" rx="2"/>"#
            ));
            line(&mut shapes, format_args!(
                r#"<text class="channels" x="{:.1}" y="{:.1}">{channels}</text>"#, x + w / 2.0, y - 5.0
            ));
            x += w + GAP;
        }
        x -= GAP;
        spans.push((start, x));
        x += BLOCK_GAP;
    }
    let total_width = x - BLOCK_GAP + MARGIN;

    for i in 1..spans.len() {
        let (from, to) = (stage_of(i - 1), stage_of(i));
        // Poolings leave at the foot of a block, upsamplings at its middle.
        let (x1, x2) = (spans[i - 1].1 + 3.0, spans[i].0 - 4.0);
        let (y1, y2) = (top(from) + height(from) * 0.5, top(to) + height(to) * 0.5);
        line(&mut shapes, format_args!(r#"<path class="step" d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}"/>"#));
    }
    for stage in 0..poolings {
        let (x1, x2) = (spans[stage].1 + 3.0, spans[2 * poolings - stage].0 - 4.0);
        let y = top(stage) + 10.0;
        line(&mut shapes, format_args!(r#"<path class="skip" d="M{x1:.1} {y:.1}L{x2:.1} {y:.1}"/>"#));
    }
    let mut size = patch;
    for stage in 0..=poolings {
        if stage > 0 {
            for (n, s) in size.iter_mut().zip(architecture.strides[stage - 1]) {
                *n = n.div_ceil(s);
            }
        }
        let y = top(stage) + height(stage) + 14.0;
        let x = (spans[stage].0 + spans[stage].1) / 2.0;
        let [d, h, w] = size;
        line(&mut shapes, format_args!(r#"<text class="size" x="{x:.1}" y="{y:.1}">{d}×{h}×{w}</text>"#));
    }
    let total_height = top(poolings) + height(poolings) + MARGIN;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width:.0} {total_height:.0}" width="{total_width:.0}" height="{total_height:.0}">
<style>
 text {{ font: 12px sans-serif; text-anchor: middle; fill: #334155 }}
 .size {{ font-size: 11px; fill: #64748b }}
 .encoder {{ fill: #3b82f6 }} .decoder {{ fill: #f59e0b }}
 .step {{ stroke: #94a3b8; stroke-width: 1.5; fill: none; marker-end: url(#tip) }}
 .skip {{ stroke: #cbd5e1; stroke-width: 1.5; stroke-dasharray: 4 3; fill: none; marker-end: url(#tip) }}
</style>
<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L6 3L0 6z" fill="#94a3b8"/></marker></defs>
<rect width="100%" height="100%" fill="white"/>
{shapes}</svg>
"#
    )
}

fn line(out: &mut String, text: std::fmt::Arguments) {
    writeln!(out, "{text}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_is_drawn() {
        let architecture = Architecture::new(
            1,
            3,
            vec![[1, 2, 2], [2; 3]],
            vec![[3; 3]; 3],
            vec![vec![8, 12], vec![24], vec![40], vec![16, 20], vec![10]],
        )
        .unwrap();
        let picture = svg(&architecture, [8, 16, 20]);
        for channels in [8, 12, 24, 40, 16, 20, 10] {
            assert_eq!(picture.matches(&format!(">{channels}</text>")).count(), 1, "{channels}");
        }
        assert_eq!(picture.matches("class=\"skip\"").count(), 2);
        assert_eq!(picture.matches("class=\"step\"").count(), 4);
        for size in ["8×16×20", "8×8×10", "4×4×5"] {
            assert!(picture.contains(size), "{size}");
        }
    }
}
