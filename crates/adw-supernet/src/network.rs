//! The U-Net that supernet and discrete network share: forward pass and, written out, backward pass.
//!
//! The backward pass is explicit rather than candle's: candle's graph keeps every intermediate map until the end, adds
//! each gradient to a map of zeros, and cannot leave out the weight gradients that an architecture step has no use for.
//! Here one raw map per layer is kept, maps are normalised while the next convolution reads them, and each is freed as
//! soon as its gradients are known.
//!
//! Maps are `[B, D, H, W, C]`.

use crate::error::{Error, Result};
use crate::parameters::{Builder, Gradients, Parameter, Role};
use adw_tensor_ops::conv3d::{self, Input, Precision};
use adw_tensor_ops::loss::{DiceCe, PendingLoss, check_target, deep_supervision_weights};
use adw_tensor_ops::norm_act::{self, Gate, GatePosition, NormAct, NormCoefficients};
use adw_tensor_ops::{Conv3dGeometry, conv_transpose3d};
use candle_core::{DType, Device, Tensor};

/// Indices of a layer's parameters, and its geometry.
struct Layer {
    weight: usize,
    gamma: usize,
    beta: usize,
    geometry: Conv3dGeometry,
}

/// Convolution layers in a row.
struct Block {
    layers: Vec<Layer>,
}

/// What the architecture parameters say about one block in one pass.
pub(crate) struct Choice {
    /// Per layer: a factor per channel, `[C]`.
    pub(crate) gates: Vec<Option<Tensor>>,
    /// Weight of every depth, `[L]`; without it the block returns its last layer.
    pub(crate) depth: Option<Tensor>,
}

/// The choices of all blocks, and where gates stand.
pub(crate) struct Choices {
    pub(crate) position: GatePosition,
    pub(crate) blocks: Vec<Choice>,
}

/// Gradients by the choices: gate `[C]` per layer, weight per depth.
pub(crate) struct ChoiceGradient {
    pub(crate) gates: Vec<Option<Tensor>>,
    /// Per depth: numbers whose sum is the gradient.
    pub(crate) depth: Vec<Tensor>,
}

/// A map as its readers see it: normalised while reading, if `norm` is there.
#[derive(Clone)]
struct Feature {
    map: Tensor,
    norm: Option<NormCoefficients>,
}

impl Feature {
    fn input(&self) -> Input<'_> {
        Input { map: &self.map, norm: self.norm.as_ref() }
    }
}

/// What a block's backward pass needs of its forward pass.
struct BlockTrace {
    inputs: Vec<Feature>,
    layers: Vec<(Tensor, NormCoefficients)>,
}

/// What the backward pass needs of the forward pass.
pub(crate) struct Trace {
    blocks: Vec<BlockTrace>,
    /// Output of every block.
    outputs: Vec<Feature>,
    /// Per decoder step, coarse to fine: `[B, D, H, W, K]`.
    logits: Vec<Tensor>,
}

/// The shape of a network: channels of every layer, and how wide upsampled maps are.
pub(crate) struct Widths {
    /// Per block, per layer.
    pub(crate) blocks: Vec<Vec<usize>>,
    /// Output channels of the transposed convolution of every decoder step, coarse to fine.
    pub(crate) ups: Vec<usize>,
}

pub(crate) struct Network {
    pub(crate) parameters: Vec<Parameter>,
    blocks: Vec<Block>,
    ups: Vec<usize>,
    heads: Vec<usize>,
    strides: Vec<[usize; 3]>,
    in_channels: usize,
    norm: NormAct,
    pub(crate) loss: DiceCe,
    /// Of the layers; transposed convolutions and heads are small.
    pub(crate) precision: Precision,
}

impl Network {
    pub(crate) fn build(
        mut builder: Builder,
        in_channels: usize,
        num_classes: usize,
        strides: &[[usize; 3]],
        kernels: &[[usize; 3]],
        widths: &Widths,
        mut after_layer: impl FnMut(&mut Builder, usize, Option<usize>) -> Result<()>,
    ) -> Result<Self> {
        let poolings = strides.len();
        let out_width = |block: usize| *widths.blocks[block].last().expect("blocks have layers");
        let mut blocks = Vec::new();
        let (mut ups, mut heads) = (Vec::new(), Vec::new());
        for (i, layer_widths) in widths.blocks.iter().enumerate() {
            let stage = crate::stages::stage_of_block(poolings, i);
            let mut c_in = match i {
                0 => in_channels,
                _ if i <= poolings => out_width(i - 1),
                _ => widths.ups[i - poolings - 1] + out_width(stage),
            };
            let mut layers = Vec::new();
            for (l, &width) in layer_widths.iter().enumerate() {
                let stride = if l == 0 && (1..=poolings).contains(&i) { strides[i - 1] } else { [1; 3] };
                let k = kernels[stage];
                let name = format!("block.{i}.conv.{l}");
                layers.push(Layer {
                    weight: builder.he_normal(format!("{name}.weight"), (width, c_in, k[0], k[1], k[2]))?,
                    gamma: builder.constant(format!("{name}.gamma"), Role::Weight, width, 1.0)?,
                    beta: builder.constant(format!("{name}.beta"), Role::Weight, width, 0.0)?,
                    geometry: Conv3dGeometry::same(k, stride),
                });
                after_layer(&mut builder, i, Some(l))?;
                c_in = width;
            }
            after_layer(&mut builder, i, None)?;
            blocks.push(Block { layers });
        }
        for u in 0..poolings {
            let s = strides[poolings - 1 - u];
            let shape = (out_width(poolings + u), widths.ups[u], s[0], s[1], s[2]);
            ups.push(builder.he_normal(format!("up.{u}.weight"), shape)?);
            heads.push(
                builder.he_normal(format!("head.{u}.weight"), (num_classes, out_width(poolings + 1 + u), 1, 1, 1))?,
            );
        }
        Ok(Self {
            parameters: builder.parameters,
            blocks,
            ups,
            heads,
            strides: strides.to_vec(),
            in_channels,
            norm: NormAct::default(),
            loss: DiceCe::default(),
            precision: Precision::Full,
        })
    }

    fn value(&self, parameter: usize) -> &Tensor {
        self.parameters[parameter].var.as_tensor()
    }

    /// Where the parameters are, and so where passes run.
    fn device(&self) -> &Device {
        self.value(0).device()
    }

    /// `[B, C, D, H, W]` to `[B, D, H, W, C]`, checked, on the network's device and in its maps' element type.
    fn read_input(&self, x: &Tensor) -> Result<Tensor> {
        let &[b, c, d, h, w] = x.dims() else {
            return Err(Error::Input(format!("shape {:?}, expected [B, C, D, H, W]", x.shape())));
        };
        if b == 0 {
            return Err(Error::Input("an empty batch, expected at least one sample".into()));
        }
        if c != self.in_channels {
            return Err(Error::Input(format!("{c} channels, but the network takes {}", self.in_channels)));
        }
        for (axis, n) in [d, h, w].into_iter().enumerate() {
            let multiple: usize = self.strides.iter().map(|s| s[axis]).product();
            if n == 0 || n % multiple != 0 {
                return Err(Error::Input(format!(
                    "size {:?}, but the network's strides need a multiple of {multiple} on axis {axis} (D, H, W)",
                    [d, h, w]
                )));
            }
        }
        let x = x.permute((0, 2, 3, 4, 1))?.contiguous()?;
        if !self.device().is_cuda() {
            return Ok(x);
        }
        let dtype = match self.precision {
            Precision::Bf16 => DType::BF16,
            Precision::Full => DType::F32,
        };
        Ok(x.to_dtype(dtype)?.to_device(self.device())?)
    }

    /// Runs one block; with `trace` it remembers what the backward pass needs.
    fn forward_block(
        &self,
        index: usize,
        mut inputs: Vec<Feature>,
        choices: Option<&Choices>,
        trace: Option<&mut Vec<BlockTrace>>,
    ) -> Result<Feature> {
        let block = &self.blocks[index];
        let depth = depth_weights(choices, index);
        let mut layers: Vec<(Tensor, NormCoefficients)> = Vec::with_capacity(block.layers.len());
        for (l, layer) in block.layers.iter().enumerate() {
            let sources = layer_inputs(&inputs, &layers);
            let (y, moments) = conv3d::forward(&sources, self.value(layer.weight), layer.geometry, self.precision)?;
            let gate = choices.and_then(|c| gate_of(c, index, l));
            let norm = self.norm.coefficients(&moments, self.value(layer.gamma), self.value(layer.beta), gate)?;
            if trace.is_none() {
                inputs.clear(); // Only the first layer reads them.
                if depth.is_none() {
                    layers.clear(); // Inference of a discrete net holds one map at a time.
                }
            }
            layers.push((y, norm));
        }
        let out = match depth {
            None => {
                let (map, norm) = layers.last().expect("blocks have layers");
                Feature { map: map.clone(), norm: Some(norm.clone()) }
            }
            Some(h) => {
                let maps: Vec<_> = layers.iter().map(|(map, norm)| (map, norm)).collect();
                Feature { map: norm_act::weighted_sum(&maps, Some(h))?, norm: None }
            }
        };
        if let Some(trace) = trace {
            trace.push(BlockTrace { inputs, layers });
        }
        Ok(out)
    }

    fn head(&self, u: usize, feature: &Feature) -> Result<Tensor> {
        Ok(conv3d::forward_plain(&[feature.input()], self.value(self.heads[u]), HEAD, Precision::Full)?)
    }

    fn forward_traced(&self, x: &Tensor, choices: Option<&Choices>) -> Result<Trace> {
        let poolings = self.strides.len();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let mut outputs: Vec<Feature> = Vec::with_capacity(self.blocks.len());
        let mut logits = Vec::with_capacity(poolings);
        for i in 0..self.blocks.len() {
            let inputs = match i {
                0 => vec![Feature { map: self.read_input(x)?, norm: None }],
                _ if i <= poolings => vec![outputs[i - 1].clone()],
                _ => self.upsample(i, &outputs[i - 1], outputs[2 * poolings - i].clone())?,
            };
            outputs.push(self.forward_block(i, inputs, choices, Some(&mut blocks))?);
            if i > poolings {
                logits.push(self.head(i - poolings - 1, &outputs[i])?);
            }
        }
        Ok(Trace { blocks, outputs, logits })
    }

    /// The inputs of decoder block `i`: `[upsampled, skip]`.
    fn upsample(&self, i: usize, coarse: &Feature, skip: Feature) -> Result<Vec<Feature>> {
        let u = i - self.strides.len() - 1;
        let map = conv_transpose3d::forward(coarse.input(), self.value(self.ups[u]))?;
        Ok(vec![Feature { map, norm: None }, skip])
    }

    /// Logits fine to coarse, each `[B, K, D, H, W]`; only the finest if not `all_scales`. Keeps no map longer than the
    /// forward pass reads it.
    pub(crate) fn forward(&self, x: &Tensor, choices: Option<&Choices>, all_scales: bool) -> Result<Vec<Tensor>> {
        let poolings = self.strides.len();
        let mut current = Feature { map: self.read_input(x)?, norm: None };
        let mut skips = Vec::with_capacity(poolings);
        let mut logits = Vec::new();
        for i in 0..self.blocks.len() {
            let inputs = match i {
                _ if i <= poolings => vec![current],
                _ => self.upsample(i, &current, skips.pop().expect("one skip per decoder block"))?,
            };
            current = self.forward_block(i, inputs, choices, None)?;
            if i < poolings {
                skips.push(current.clone());
            }
            if i > poolings && (all_scales || i + 1 == self.blocks.len()) {
                logits.push(self.head(i - poolings - 1, &current)?.permute((0, 4, 1, 2, 3))?);
            }
        }
        logits.reverse();
        Ok(logits)
    }

    /// The deep-supervision loss and its gradients by the parameters of role `wanted`; for `Role::Architecture` those by
    /// the choices, one per block, instead (the entries of `Gradients` are then all `None`).
    pub(crate) fn loss_and_gradients(
        &self,
        x: &Tensor,
        target: &Tensor,
        choices: Option<&Choices>,
        wanted: Role,
    ) -> Result<(PendingLoss, Gradients, Vec<ChoiceGradient>)> {
        let (b, _, d, h, w) = x.dims5()?;
        check_target(target, [b, d, h, w])?;
        let Trace { blocks, outputs, logits } = self.forward_traced(x, choices)?;
        // Weights are listed fine to coarse, logits coarse to fine.
        let weights = deep_supervision_weights(self.strides.len());
        let scales: Vec<(&Tensor, f64)> =
            logits.iter().zip(weights.into_iter().rev()).filter(|scale| scale.1 > 0.0).collect();
        let (loss, gradients) = self.loss.losses_and_gradients(&scales, target)?;
        // The coarsest may have been left out.
        let mut grad_logits = vec![None; logits.len() - gradients.len()];
        grad_logits.extend(gradients.into_iter().map(Some));
        drop(logits);
        let mut backward = Backward {
            net: self,
            choices,
            wanted,
            gradients: vec![None; self.parameters.len()],
            choice_gradients: (0..self.blocks.len())
                .map(|_| ChoiceGradient { gates: Vec::new(), depth: Vec::new() })
                .collect(),
        };
        backward.run(blocks, outputs, grad_logits)?;
        Ok((loss, backward.gradients, backward.choice_gradients))
    }
}

const HEAD: Conv3dGeometry = Conv3dGeometry { kernel: [1; 3], stride: [1; 3], padding: [0; 3] };

fn gate_of(choices: &Choices, block: usize, layer: usize) -> Option<Gate<'_>> {
    choices.blocks[block].gates[layer].as_ref().map(|factor| Gate { factor, position: choices.position })
}

/// The weights of a block's depths, if the pass has any.
fn depth_weights(choices: Option<&Choices>, block: usize) -> Option<&Tensor> {
    choices.and_then(|c| c.blocks[block].depth.as_ref())
}

/// What the layer after `layers` reads: the last of them, or the block's inputs.
fn layer_inputs<'a>(inputs: &'a [Feature], layers: &'a [(Tensor, NormCoefficients)]) -> Vec<Input<'a>> {
    match layers.last() {
        Some((map, norm)) => vec![Input { map, norm: Some(norm) }],
        None => inputs.iter().map(Feature::input).collect(),
    }
}

pub(crate) fn vector_f64(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.to_vec1()?)
}

/// Adds a gradient to what is there.
fn accumulate(sum: &mut Option<Tensor>, g: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        None => g,
        Some(s) => (s + g)?,
    });
    Ok(())
}

struct Backward<'a> {
    net: &'a Network,
    choices: Option<&'a Choices>,
    wanted: Role,
    gradients: Gradients,
    choice_gradients: Vec<ChoiceGradient>,
}

impl Backward<'_> {
    fn run(
        &mut self,
        mut traces: Vec<BlockTrace>,
        mut outputs: Vec<Feature>,
        mut grad_logits: Vec<Option<Tensor>>,
    ) -> Result<()> {
        let poolings = self.net.strides.len();
        // Of each encoder block's output: what the decoder sends along the skip.
        let mut grad_skips: Vec<Option<Tensor>> = vec![None; poolings];
        // Of the current block's output, from the block that comes after it.
        let mut grad_next: Option<Tensor> = None;
        for i in (0..self.net.blocks.len()).rev() {
            let trace = traces.pop().expect("one trace per block");
            let out = outputs.pop().expect("one output per block");
            let mut grad_out = grad_next.take();
            if i > poolings {
                let u = i - poolings - 1;
                if let Some(g) = grad_logits.pop().expect("one head per decoder block") {
                    let (_, size, c) = dims(&out.map)?;
                    let head = self.net.heads[u];
                    if self.wanted == Role::Weight {
                        self.gradients[head] =
                            Some(conv3d::grad_weight(&[out.input()], (&g).into(), HEAD, Precision::Full)?);
                    }
                    accumulate(
                        &mut grad_out,
                        conv3d::grad_input((&g).into(), self.net.value(head), HEAD, size, 0..c, Precision::Full)?,
                    )?;
                }
            } else if let Some(g) = grad_skips.get_mut(i).and_then(Option::take) {
                accumulate(&mut grad_out, g)?;
            }
            drop(out);
            // The coarsest head is left out of the loss, but its block feeds the next one; only with a single decoder
            // step and no loss could this be missing.
            let grad_out = grad_out.expect("every block's output reaches the loss");
            let mut grads = self.block(i, trace, grad_out)?.into_iter();
            if i > poolings {
                let u = i - poolings - 1;
                let grad_up = grads.next().expect("a decoder block reads the upsampled map");
                grad_skips[2 * poolings - i] = grads.next();
                let coarse = outputs.last().expect("the block before");
                if self.wanted == Role::Weight {
                    let stride = self.net.strides[poolings - 1 - u];
                    self.gradients[self.net.ups[u]] =
                        Some(conv_transpose3d::grad_weight(coarse.input(), &grad_up, stride)?);
                }
                grad_next = Some(conv_transpose3d::grad_input(&grad_up, self.net.value(self.net.ups[u]))?);
            } else {
                grad_next = grads.next();
            }
        }
        Ok(())
    }

    /// Gradients of a block's inputs (none for the image).
    fn block(&mut self, index: usize, trace: BlockTrace, grad_out: Tensor) -> Result<Vec<Tensor>> {
        let net = self.net;
        let block = &net.blocks[index];
        let BlockTrace { inputs, mut layers } = trace;
        let depth = depth_weights(self.choices, index);
        let mut gate_gradients = vec![None; layers.len()];
        let mut depth_gradients = Vec::with_capacity(layers.len());
        let mut direct = if depth.is_none() { Some(grad_out.clone()) } else { None };
        let outer = depth.is_some().then_some(grad_out);
        let mut grad_inputs = Vec::new();
        for (l, layer) in block.layers.iter().enumerate().rev() {
            let (y, norm) = layers.pop().expect("one trace per layer");
            let weight = depth.map(|h| h.narrow(0, l, 1)).transpose()?;
            let g = norm_act::backward(
                &y,
                &norm,
                net.value(layer.gamma),
                net.value(layer.beta),
                self.choices.and_then(|c| gate_of(c, index, l)),
                outer.as_ref().zip(weight.as_ref()),
                direct.take().as_ref(),
            )?;
            drop(y);
            gate_gradients[l] = g.gate;
            depth_gradients.push(g.weight);
            let sources = layer_inputs(&inputs, &layers);
            if self.wanted == Role::Weight {
                self.gradients[layer.weight] =
                    Some(conv3d::grad_weight(&sources, (&g.y).into(), layer.geometry, net.precision)?);
                self.gradients[layer.gamma] = Some(g.gamma);
                self.gradients[layer.beta] = Some(g.beta);
            }
            if l == 0 && index == 0 {
                break; // Nobody asks for the gradient of the image.
            }
            let mut first = 0;
            for source in sources {
                let (_, size, c) = dims(source.map)?;
                let grad = conv3d::grad_input(
                    (&g.y).into(),
                    net.value(layer.weight),
                    layer.geometry,
                    size,
                    first..first + c,
                    net.precision,
                )?;
                first += c;
                if l > 0 {
                    direct = Some(grad);
                } else {
                    grad_inputs.push(grad);
                }
            }
        }
        depth_gradients.reverse();
        self.choice_gradients[index] = ChoiceGradient { gates: gate_gradients, depth: depth_gradients };
        Ok(grad_inputs)
    }
}

fn dims(map: &Tensor) -> Result<(usize, [usize; 3], usize)> {
    let (b, d, h, w, c) = map.dims5()?;
    Ok((b, [d, h, w], c))
}
