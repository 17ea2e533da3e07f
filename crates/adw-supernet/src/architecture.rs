//! Architecture of a discrete network, the result of a search: depth of every block, width of every layer, as a file.

use crate::error::{Error, Result};
use crate::stages::{FixedSizes, check_plan, stage_of_block, stage_sizes};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Value of `format` in an architecture file.
pub const FORMAT: &str = "adw-architecture/1";

/// Kind of a network's encoder; `plain` and `residual` in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoder {
    /// One layer after the other: the paper's U-Net, and the only kind that can be searched and trained here.
    #[default]
    Plain,
    /// Pairs of layers with a shortcut around them, that of nnU-Net's `ResidualEncoderUNet`. The first layer of all, the stem,
    /// stands alone. The second layer of a pair adds its shortcut in front of its LeakyReLU. Transposed convolutions and heads have
    /// biases. Networks of this kind are imported, to predict and to export.
    Residual,
}

impl Encoder {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

/// Shortcut around two layers of a residual encoder: average pooling over cells of the stride, then, where the numbers of
/// channels differ, a convolution with kernel 1 and its instance normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcut {
    /// Block of the encoder, 0 the finest.
    pub block: usize,
    /// First of the two layers.
    pub layer: usize,
    /// Cells of the average pooling, D, H, W; 1 without.
    pub pooling: [usize; 3],
    /// Channels that it reads.
    pub in_channels: usize,
    /// Channels of the second layer.
    pub out_channels: usize,
}

impl Shortcut {
    /// Returns true if a convolution changes the number of channels.
    pub fn has_projection(&self) -> bool {
        self.in_channels != self.out_channels
    }
}

/// Depths and widths of a discrete 3D U-Net. A search writes the file, later steps read it, and it may be edited by
/// hand.
///
/// Constructors and [`Self::load`] make networks that [`Self::check`] accepts. Where fields were set or deserialised in another way, call
/// it first: other methods may panic for what it refuses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Format of the file: [`FORMAT`].
    pub format: String,
    /// Image channels (modalities).
    pub in_channels: usize,
    /// Classes, background included.
    pub num_classes: usize,
    /// Stride of every pooling, fine to coarse; D, H, W.
    pub strides: Vec<[usize; 3]>,
    /// Kernel of every stage, fine to coarse: one more than strides.
    pub kernels: Vec<[usize; 3]>,
    /// Output channels of each layer; encoder blocks fine to coarse, then decoder blocks coarse to fine.
    pub blocks: Vec<Vec<usize>>,
    /// Kind of the encoder.
    #[serde(default, skip_serializing_if = "Encoder::is_plain")]
    pub encoder: Encoder,
    /// Origin of the architecture; free-form.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub provenance: serde_json::Map<String, serde_json::Value>,
}

impl Architecture {
    /// Makes an architecture without provenance.
    ///
    /// # Errors
    /// If these values make no network.
    pub fn new(
        in_channels: usize,
        num_classes: usize,
        strides: Vec<[usize; 3]>,
        kernels: Vec<[usize; 3]>,
        blocks: Vec<Vec<usize>>,
    ) -> Result<Self> {
        let a = Self {
            format: FORMAT.into(),
            in_channels,
            num_classes,
            strides,
            kernels,
            blocks,
            encoder: Encoder::Plain,
            provenance: serde_json::Map::new(),
        };
        a.check()?;
        Ok(a)
    }

    /// The same depths and widths with a residual encoder.
    ///
    /// # Errors
    /// If the encoder's layers are no pairs, with one layer more, the stem, in its first block.
    pub fn with_residual_encoder(self) -> Result<Self> {
        let a = Self { encoder: Encoder::Residual, ..self };
        a.check()?;
        Ok(a)
    }

    /// Makes a plain U-Net, the baseline of the paper's comparison, whose blocks and stages are of these sizes; nnU-Net's
    /// own network with [`FixedSizes::default`].
    ///
    /// # Errors
    /// If these values make no network.
    ///
    /// ```
    /// use adw_supernet::{Architecture, FixedSizes};
    ///
    /// let sizes = FixedSizes { width: 16, max_features: 100, ..FixedSizes::default() };
    /// let a = Architecture::uniform(1, 3, vec![[2; 3]; 3], vec![[3; 3]; 4], sizes)?;
    /// assert_eq!(a.blocks, [[16, 16], [32, 32], [64, 64], [100, 100], [64, 64], [32, 32], [16, 16]]);
    /// # Ok::<(), adw_supernet::Error>(())
    /// ```
    pub fn uniform(
        in_channels: usize,
        num_classes: usize,
        strides: Vec<[usize; 3]>,
        kernels: Vec<[usize; 3]>,
        sizes: FixedSizes,
    ) -> Result<Self> {
        if !(1..=64).contains(&sizes.depth) {
            return Err(Error::Architecture(format!("a depth of {} layers, expected 1 to 64", sizes.depth)));
        }
        let poolings = strides.len();
        let blocks =
            (0..=2 * poolings).map(|i| vec![sizes.stage_width(stage_of_block(poolings, i)); sizes.depth]).collect();
        Self::new(in_channels, num_classes, strides, kernels, blocks)
    }

    /// Number of poolings, P.
    pub fn poolings(&self) -> usize {
        self.strides.len()
    }

    /// Stage of a block, 0 the finest; blocks are counted encoder fine to coarse, then decoder coarse to fine.
    pub fn stage_of_block(&self, block: usize) -> usize {
        stage_of_block(self.poolings(), block)
    }

    /// Size of the maps of every stage, fine to coarse, for a patch `[D, H, W]`.
    pub fn stage_sizes(&self, patch: [usize; 3]) -> Vec<[usize; 3]> {
        stage_sizes(&self.strides, patch)
    }

    /// Output channels of a block.
    pub fn out_width(&self, block: usize) -> usize {
        self.blocks[block].last().copied().unwrap_or(0)
    }

    /// Output channels of the transposed convolution in front of decoder step `u` (coarse to fine): as many as those of
    /// the skip that the result is concatenated with. The supernet has the stage's greatest width there, gated by the skip's expected
    /// mask with [`SupernetConfig::gate_up`](crate::SupernetConfig::gate_up).
    pub fn up_width(&self, u: usize) -> usize {
        self.out_width(self.poolings() - 1 - u)
    }

    /// Shortcuts of a residual encoder, in the order of blocks and layers; none of a plain one.
    pub fn shortcuts(&self) -> Vec<Shortcut> {
        if self.encoder == Encoder::Plain {
            return vec![];
        }
        let mut shortcuts = vec![];
        let mut in_channels = self.in_channels;
        for (block, widths) in self.blocks[..=self.poolings()].iter().enumerate() {
            let stem = usize::from(block == 0);
            in_channels = if block == 0 { widths[0] } else { in_channels };
            for layer in (stem..widths.len()).step_by(2) {
                let pooling = if layer == 0 { self.strides[block - 1] } else { [1; 3] };
                let out_channels = widths[layer + 1];
                shortcuts.push(Shortcut { block, layer, pooling, in_channels, out_channels });
                in_channels = out_channels;
            }
        }
        shortcuts
    }

    /// Returns true for networks that are alike but for their provenance.
    pub fn is_same_network(&self, other: &Self) -> bool {
        let known = Self { provenance: other.provenance.clone(), ..self.clone() };
        known == *other
    }

    /// Refuses a network that can only predict.
    ///
    /// # Errors
    /// If its encoder is residual.
    pub fn check_trainable(&self) -> Result<()> {
        match self.encoder {
            Encoder::Plain => Ok(()),
            Encoder::Residual => Err(Error::Architecture(
                "a residual encoder, which predicts but cannot be trained; expected a plain one".into(),
            )),
        }
    }

    /// Refuses values that make no network.
    ///
    /// # Errors
    /// A message that names the first wrong value and the right ones.
    pub fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Architecture(message));
        if self.format != FORMAT {
            return fail(format!("format is {:?}, expected {FORMAT:?}", self.format));
        }
        check_plan(self.in_channels, self.num_classes, &self.strides, &self.kernels).map_err(Error::Architecture)?;
        let expected = 2 * self.poolings() + 1;
        if self.blocks.len() != expected {
            return fail(format!("{} blocks for {} strides, expected {expected}", self.blocks.len(), self.poolings()));
        }
        for (i, block) in self.blocks.iter().enumerate() {
            if block.is_empty() {
                return fail(format!("block {i} has no layer, expected at least one"));
            }
            let (stem, is_encoder) = (usize::from(i == 0), i <= self.poolings());
            if self.encoder == Encoder::Residual && is_encoder && (block.len() <= stem || block.len() % 2 != stem) {
                let stem = if i == 0 { "one layer and pairs" } else { "pairs" };
                return fail(format!("block {i} of a residual encoder has {} layers, expected {stem}", block.len()));
            }
            if let Some(w) = block.iter().find(|w| !(1..=65_536).contains(*w)) {
                return fail(format!("block {i} has a layer of {w} channels, expected 1 to 65536"));
            }
        }
        Ok(())
    }

    /// Reads and checks an architecture file.
    ///
    /// # Errors
    /// If the file cannot be read or is not a valid architecture.
    pub fn load(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::File { path: path.into(), message };
        let text = adw_files::read_text(path).map_err(|e| fail(e.to_string()))?;
        let a: Self = serde_json::from_str(&text).map_err(|e| fail(format!("not an architecture file: {e}")))?;
        a.check().map_err(|e| fail(e.to_string()))?;
        Ok(a)
    }

    /// Writes the file as a whole: a reader sees the old content or the new.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        adw_files::write_bytes(path, self.to_text().as_bytes())
            .map_err(|e| Error::File { path: path.into(), message: e.to_string() })
    }

    /// Text of the file: one line per field.
    pub fn to_text(&self) -> String {
        let json = |v: serde_json::Result<String>| v.expect("numbers and strings always serialise");
        let mut lines = vec![
            format!("\"format\": {}", json(serde_json::to_string(&self.format))),
            format!("\"in_channels\": {}, \"num_classes\": {}", self.in_channels, self.num_classes),
            format!("\"strides\": {}", json(serde_json::to_string(&self.strides))),
            format!("\"kernels\": {}", json(serde_json::to_string(&self.kernels))),
            format!("\"blocks\": {}", json(serde_json::to_string(&self.blocks))),
        ];
        if !self.encoder.is_plain() {
            lines.push(format!("\"encoder\": {}", json(serde_json::to_string(&self.encoder))));
        }
        if !self.provenance.is_empty() {
            lines.push(format!("\"provenance\": {}", json(serde_json::to_string(&self.provenance))));
        }
        format!("{{{}}}\n", lines.join(",\n "))
    }
}

/// One line with the channels of every layer, such as `48-40 96-80-96 192 | 192-160 96`: spaces between blocks, a bar
/// between encoder and decoder.
///
/// ```
/// assert_eq!(adw_supernet::widths_line(&[vec![8, 8], vec![12], vec![10]]), "8-8 12 | 10");
/// ```
pub fn widths_line(blocks: &[Vec<usize>]) -> String {
    let block = |widths: &Vec<usize>| widths.iter().map(ToString::to_string).collect::<Vec<_>>().join("-");
    let part = |blocks: &[Vec<usize>]| blocks.iter().map(block).collect::<Vec<_>>().join(" ");
    // P + 1 encoder blocks and P decoder blocks.
    let (encoder, decoder) = blocks.split_at(blocks.len() / 2 + usize::from(!blocks.is_empty()));
    format!("{} | {}", part(encoder), part(decoder))
}

impl std::fmt::Display for Architecture {
    /// Writes the line of [`widths_line`].
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&widths_line(&self.blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Architecture {
        let mut a = Architecture::uniform(
            1,
            3,
            vec![[1, 2, 2], [2; 3]],
            vec![[1, 3, 3], [3; 3], [3; 3]],
            FixedSizes::with_width(8),
        )
        .unwrap();
        a.blocks[1] = vec![12];
        a.provenance.insert("seed".into(), 1.into());
        a
    }

    #[test]
    fn text_and_back() {
        let a = example();
        let back: Architecture = serde_json::from_str(&a.to_text()).unwrap();
        assert_eq!(a, back);
        assert_eq!(a.to_string(), "8-8 12 32-32 | 16-16 8-8");
        assert_eq!((a.up_width(0), a.up_width(1)), (12, 8));
    }

    #[test]
    fn mistakes_are_named() {
        let mut wrong = vec![];
        for (change, word) in [
            (Box::new(|a: &mut Architecture| a.format = "x".into()) as Box<dyn Fn(&mut Architecture)>, "format"),
            (Box::new(|a: &mut Architecture| a.blocks[2].clear()), "block 2"),
            (Box::new(|a: &mut Architecture| a.blocks[3][1] = 0), "block 3"),
            (Box::new(|a: &mut Architecture| a.blocks.truncate(4)), "4 blocks"),
            (Box::new(|a: &mut Architecture| a.kernels.truncate(2)), "kernels"),
            (Box::new(|a: &mut Architecture| a.strides[0][1] = 0), "stride"),
            (Box::new(|a: &mut Architecture| a.kernels[0][1] = 2), "kernel"),
            (Box::new(|a: &mut Architecture| a.num_classes = 1), "num_classes"),
        ] {
            let mut a = example();
            change(&mut a);
            let message = a.check().unwrap_err().to_string();
            if !message.contains(word) {
                wrong.push((message, word));
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
