//! Table of a network's widths and depths.

use adw_supernet::Architecture;

use super::table::Table;

/// Table with a row per block: its place in the U-Net, the size of its feature maps for a patch, the channels of its
/// convolutions.
pub(crate) fn table(architecture: &Architecture, patch: [usize; 3]) -> Table {
    let poolings = architecture.strides.len();
    let sizes = architecture.stage_sizes(patch);
    let mut table = Table::of_text(["block", "feature maps", "channels"]);
    for (index, widths) in architecture.blocks.iter().enumerate() {
        let [d, h, w] = sizes[architecture.stage_of_block(index)];
        let widths = widths.iter().map(ToString::to_string).collect::<Vec<_>>().join(" - ");
        table.row([block_name(index, poolings), format!("{d}x{h}x{w}"), widths]);
    }
    table
}

/// Name of a block of a network with `poolings` poolings, such as `decoder 1`: its part of the U-Net and its stage.
pub(crate) fn block_name(block: usize, poolings: usize) -> String {
    let part = match block.cmp(&poolings) {
        std::cmp::Ordering::Less => "encoder",
        std::cmp::Ordering::Equal => "bottleneck",
        std::cmp::Ordering::Greater => "decoder",
    };
    format!("{part} {}", block.min(2 * poolings - block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use adw_supernet::FixedSizes;

    #[test]
    fn the_table_has_a_row_per_block() {
        let mut architecture =
            Architecture::uniform(1, 3, vec![[1, 2, 2], [2; 3]], vec![[3; 3]; 3], FixedSizes::with_width(8))
                .expect("valid");
        architecture.blocks[1] = vec![12];
        let text = table(&architecture, [6, 8, 8]).render();
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows.len(), 5);
        assert_eq!(rows[1].split_whitespace().collect::<Vec<_>>(), ["encoder", "1", "6x4x4", "12"]);
        assert_eq!(rows[2].split_whitespace().collect::<Vec<_>>(), ["bottleneck", "2", "3x2x2", "32", "-", "32"]);
    }
}
