//! Loss of a network on a batch, and its gradients: of the whole batch at once, or sample by sample on one or several ranks.

use adw_supernet::{Gradients, GumbelSample, Loss, Role, Supernet, Unet};
use candle_core::Tensor;

use crate::ranks::{GradientSum, Ranks, all_gather, gather_samples, own_samples};
use crate::{Batch, Result};

/// Loss of a supernet on a batch, and its gradients with respect to the parameters of `role`; sample by sample if there
/// are `ranks`.
pub(crate) fn supernet_loss_and_gradients(
    net: &Supernet,
    loss: &dyn Loss,
    batch: &Batch,
    sample: &GumbelSample,
    role: Role,
    ranks: Option<&dyn Ranks>,
) -> Result<(f64, Gradients)> {
    let passes =
        Passes { forward: |x: &Tensor| net.forward_with_trace(x, sample), backward: |t, g| net.backward(t, g, role) };
    passes.run(loss, batch, ranks)
}

/// Loss of a discrete network on a batch, and its gradients with respect to the network's parameters; sample by sample
/// if there are `ranks`.
pub(crate) fn network_loss_and_gradients(
    net: &Unet,
    loss: &dyn Loss,
    batch: &Batch,
    ranks: Option<&dyn Ranks>,
) -> Result<(f64, Gradients)> {
    Passes { forward: |x: &Tensor| net.forward_with_trace(x), backward: |t, g| net.backward(t, g) }
        .run(loss, batch, ranks)
}

/// Forward pass, which returns logits and a trace, and backward pass from the trace.
struct Passes<F, B> {
    forward: F,
    backward: B,
}

impl<F, B, T> Passes<F, B>
where
    F: Fn(&Tensor) -> adw_supernet::Result<(Vec<Tensor>, T)>,
    B: Fn(T, Vec<Option<Tensor>>) -> adw_supernet::Result<Gradients>,
{
    fn run(&self, loss: &dyn Loss, batch: &Batch, ranks: Option<&dyn Ranks>) -> Result<(f64, Gradients)> {
        match ranks {
            None => self.of_batch(loss, batch),
            Some(ranks) if loss.is_mean_of_samples() => self.of_samples(loss, batch, ranks),
            Some(ranks) => self.of_joint_loss(loss, batch, ranks),
        }
    }

    fn of_batch(&self, loss: &dyn Loss, batch: &Batch) -> Result<(f64, Gradients)> {
        let (logits, trace) = (self.forward)(&batch.x)?;
        let (loss, grad_logits) = loss.value_and_gradients(&logits, &batch.target)?;
        drop(logits); // The backward pass needs their memory.
        let gradients = (self.backward)(trace, grad_logits)?;
        Ok((loss.value()?, gradients))
    }

    /// Passes of a loss that is a mean over samples: one sample after the other, so that the trace of one is kept at a time.
    fn of_samples(&self, loss: &dyn Loss, batch: &Batch, ranks: &dyn Ranks) -> Result<(f64, Gradients)> {
        let batch_size = batch.x.dim(0)?;
        let (mut losses, mut sum) = (vec![], GradientSum::new(ranks));
        for i in own_samples(ranks, batch_size)? {
            let sample = Batch { x: batch.x.narrow(0, i, 1)?, target: batch.target.narrow(0, i, 1)? };
            let (loss, gradients) = self.of_batch(loss, &sample)?;
            losses.extend(loss.to_le_bytes());
            sum.add(&gradients)?;
        }
        let losses = all_gather(ranks, losses)?.concat();
        let (losses, _) = losses.as_chunks();
        let weight = 1.0 / batch_size as f64;
        Ok((losses.iter().map(|loss| f64::from_le_bytes(*loss)).sum::<f64>() * weight, sum.finish(weight)?))
    }

    /// The loss needs the logits of all samples: every rank gets them and computes it.
    fn of_joint_loss(&self, loss: &dyn Loss, batch: &Batch, ranks: &dyn Ranks) -> Result<(f64, Gradients)> {
        let own = own_samples(ranks, batch.x.dim(0)?)?;
        let passes = own.clone().map(|i| Ok((self.forward)(&batch.x.narrow(0, i, 1)?)?));
        let (logits, traces): (Vec<Vec<Tensor>>, Vec<T>) = passes.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let scale = |s: usize| logits.iter().map(|scales| &scales[s]).collect::<Vec<_>>();
        let scales = 0..logits[0].len();
        let all = scales.map(|s| gather_samples(ranks, &scale(s))).collect::<Result<Vec<_>>>()?;
        drop(logits);
        let (loss, grad_logits) = loss.value_and_gradients(&all, &batch.target)?;
        drop(all);
        let mut sum = GradientSum::new(ranks);
        for (i, trace) in own.zip(traces) {
            let of_sample = |g: &Option<Tensor>| g.as_ref().map(|g| g.narrow(0, i, 1)).transpose();
            let grad_logits = grad_logits.iter().map(of_sample).collect::<candle_core::Result<_>>()?;
            sum.add(&(self.backward)(trace, grad_logits)?)?;
        }
        Ok((loss.value()?, sum.finish(1.0)?))
    }
}
