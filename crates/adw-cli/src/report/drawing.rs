//! Drawing of an architecture: the U of a U-Net, to scale.

use std::{
    fmt::{self, Write as _},
    path::Path,
};

use adw_supernet::Architecture;
use anyhow::Context;

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
/// Width of one character of a channel count, and of a size.
const CHANNELS_CHARACTER: f64 = 7.5;
const SIZE_CHARACTER: f64 = 6.6;

const STYLE: &str = r##"<style>
 text { font: 12px sans-serif; text-anchor: middle; fill: #334155 }
 .size { font-size: 11px; text-anchor: end; fill: #64748b }
 .encoder { fill: #3b82f6 } .decoder { fill: #f59e0b }
 .step { stroke: #94a3b8; stroke-width: 1.5; fill: none; marker-end: url(#tip) }
 .skip { stroke: #cbd5e1; stroke-width: 1.5; stroke-dasharray: 4 3; fill: none; marker-end: url(#tip) }
</style>
<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">
<path d="M0 0L6 3L0 6z" fill="#94a3b8"/></marker></defs>
<rect width="100%" height="100%" fill="white"/>
"##;

/// Writes the drawing as SVG to `path`.
///
/// # Errors
/// The disk is full or read-only.
pub(crate) fn save(architecture: &Architecture, patch: [usize; 3], path: &Path) -> anyhow::Result<()> {
    let picture = svg(architecture, None, patch);
    let picture = picture.replacen('>', &format!(">\n{STYLE}"), 1);
    adw_files::write_bytes(path, picture.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Draws an architecture for a patch of `patch` voxels, D H W: a rectangle per layer, as wide as it has channels (written
/// above it), higher in finer stages; skips and poolings as arrows. Outlines show the layers of `largest`, of which it was
/// chosen. Colours are left to a style sheet.
pub(crate) fn svg(architecture: &Architecture, largest: Option<&Architecture>, patch: [usize; 3]) -> String {
    let poolings = architecture.poolings();
    let stage_of = |block: usize| architecture.stage_of_block(block);
    let show = |[d, h, w]: [usize; 3]| format!("{d}×{h}×{w}");
    let sizes: Vec<String> = architecture.stage_sizes(patch).into_iter().map(show).collect();
    let mut shapes = String::new();
    // The finest size stands left of its block's end, and must not be cut off.
    let mut x = MARGIN.max(sizes[0].chars().count() as f64 * SIZE_CHARACTER);
    let mut spans = Vec::new();
    let outlines = largest.unwrap_or(architecture);
    for block in 0..architecture.blocks.len() {
        let end = layers(&mut shapes, architecture, outlines, block, x);
        spans.push([x, end]);
        x = end + BLOCK_GAP;
    }
    let total_width = x - BLOCK_GAP + MARGIN;

    for block in 1..spans.len() {
        let middle = |stage| top(stage) + height(stage) * 0.5;
        let (from, to) = (middle(stage_of(block - 1)), middle(stage_of(block)));
        arrow(&mut shapes, "step", [spans[block - 1][1], spans[block][0]], [from, to]);
    }
    for stage in 0..poolings {
        // Well above the arrow that comes up from the stage below.
        let y = top(stage) + height(stage) * 0.15;
        let ends = [spans[stage][1], spans[2 * poolings - stage][0]];
        arrow(&mut shapes, "skip", ends, [y, y]);
    }
    for (stage, size) in sizes.iter().enumerate() {
        let (x, y) = (spans[stage][1], top(stage) + height(stage) + 14.0);
        let text = format_args!(r#"<text class="size" x="{x:.1}" y="{y:.1}">{size}</text>"#);
        line(&mut shapes, text);
    }
    let total_height = top(poolings) + height(poolings) + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"network\" viewBox=\"0 0 {total_width:.0} {total_height:.0}\" \
         width=\"{total_width:.0}\" height=\"{total_height:.0}\">\n{shapes}</svg>\n"
    )
}

fn height(stage: usize) -> f64 {
    HEIGHT * SHRINK.powi(stage as i32)
}

fn top(stage: usize) -> f64 {
    MARGIN + 20.0 + (0..stage).map(|s| height(s) + STAGE_GAP).sum::<f64>()
}

/// Draws the layers of a block from `x` on, in those of `outlines`, and returns the end of the last.
fn layers(out: &mut String, architecture: &Architecture, outlines: &Architecture, block: usize, mut x: f64) -> f64 {
    let (widths, outlined) = (&architecture.blocks[block], &outlines.blocks[block]);
    let widest = outlines.blocks.iter().flatten().copied().max().unwrap_or(1) as f64;
    let class = if block <= architecture.poolings() { "encoder" } else { "decoder" };
    let stage = architecture.stage_of_block(block);
    let (y, h) = (top(stage), height(stage));
    for layer in 0..widths.len().max(outlined.len()) {
        let (channels, limit) = (widths.get(layer).copied(), outlined.get(layer).copied());
        let pixels = |channels: usize| NARROWEST + (WIDEST - NARROWEST) * (channels as f64 / widest);
        // The number above a narrow layer may be wider than the layer.
        let text = channels.map_or(0.0, |channels| channels.to_string().len() as f64 * CHANNELS_CHARACTER);
        let room = pixels(channels.max(limit).unwrap_or(0)).max(text);
        let middle = x + room / 2.0;
        let mut rect = |class: &str, w: f64| {
            let left = middle - w / 2.0;
            let size = format_args!(r#"x="{left:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}""#);
            line(out, format_args!(r#"<rect class="{class}" {size} rx="2"/>"#));
        };
        if let Some(limit) = limit.filter(|_| limit != channels) {
            rect("outline", pixels(limit));
        }
        if let Some(channels) = channels {
            rect(class, pixels(channels));
            let above = y - 5.0;
            line(out, format_args!(r#"<text class="channels" x="{middle:.1}" y="{above:.1}">{channels}</text>"#));
        }
        x += room + GAP;
    }
    x - GAP
}

/// Draws an arrow from the end of one block to the beginning of another.
fn arrow(out: &mut String, class: &str, [from, to]: [f64; 2], [y1, y2]: [f64; 2]) {
    let (x1, x2) = (from + 3.0, to - 4.0);
    line(out, format_args!(r#"<path class="{class}" d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}"/>"#));
}

fn line(out: &mut String, text: fmt::Arguments<'_>) {
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
        let picture = svg(&architecture, None, [8, 16, 20]);
        for channels in [8, 12, 24, 40, 16, 20, 10] {
            assert_eq!(picture.matches(&format!(">{channels}</text>")).count(), 1, "{channels}");
        }
        assert_eq!(picture.matches("class=\"skip\"").count(), 2);
        assert_eq!(picture.matches("class=\"step\"").count(), 4);
        for size in ["8×16×20", "8×8×10", "4×4×5"] {
            assert!(picture.contains(size), "{size}");
        }
        assert!(!picture.contains("outline"));
        let largest = Architecture { blocks: vec![vec![48, 48]; 5], ..architecture.clone() };
        let picture = svg(&architecture, Some(&largest), [8, 16, 20]);
        assert_eq!(picture.matches("\"outline\"").count(), 10);
    }
}
