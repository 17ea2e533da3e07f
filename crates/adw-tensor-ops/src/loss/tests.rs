use super::*;
use crate::testing::{finite_difference, numbers};
use adw_testing::{assert_close, tolerance};
use candle_core::{Device, Var};

fn example(k: usize) -> (Var, Tensor) {
    let (b, d, h, w) = (2, 3, 4, 5);
    let logits = Var::from_vec(numbers(1, b * k * d * h * w), (b, k, d, h, w), &Device::Cpu).unwrap();
    let target: Vec<u8> = (0..b * d * h * w).map(|i| (i * i % 7 % k) as u8).collect();
    (logits, Tensor::from_vec(target, (b, d, h, w), &Device::Cpu).unwrap())
}

#[test]
fn equals_its_definition() {
    for (k, batch_dice) in [(2, true), (3, true), (3, false), (5, false)] {
        let (logits, target) = example(k);
        let config = DiceCe { batch_dice, ..Default::default() };
        let x = logits
            .permute((0, 2, 3, 4, 1))
            .unwrap()
            .contiguous()
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap();
        let t = target.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let groups = if batch_dice { 1 } else { 2 };
        let (mut ce, mut dice) = (0.0, 0.0);
        let per_group = t.len() / groups;
        for g in 0..groups {
            let (mut i, mut p_sum, mut t_sum) = (vec![0.0; k], vec![0.0; k], vec![0.0; k]);
            for v in g * per_group..(g + 1) * per_group {
                let x = &x[v * k..(v + 1) * k];
                let z: f64 = x.iter().map(|x| x.exp()).sum();
                ce -= (x[t[v] as usize].exp() / z).ln() / t.len() as f64;
                for c in 0..k {
                    let hit = f64::from(u8::from(t[v] as usize == c));
                    i[c] += x[c].exp() / z * hit;
                    p_sum[c] += x[c].exp() / z;
                    t_sum[c] += hit;
                }
            }
            for c in 1..k {
                dice += (2.0 * i[c] + 1e-5) / (p_sum[c] + t_sum[c] + 1e-5) / (groups * (k - 1)) as f64;
            }
        }
        let got = dice_ce(&logits, &target, config).unwrap().to_scalar::<f64>().unwrap();
        assert_close("loss", &[got], &[ce - dice], tolerance::F64_CLOSED_FORM);
        finite_difference("logits", &logits, |x| dice_ce(x, &target, config).unwrap());
    }
}

#[test]
fn deep_supervision() {
    let (fine, target) = example(3);
    let coarse = Var::from_vec(numbers(2, 2 * 3 * 2 * 2 * 3), (2, 3, 2, 2, 3), &Device::Cpu).unwrap();
    let coarsest = Var::from_vec(numbers(3, 6), (2, 3, 1, 1, 1), &Device::Cpu).unwrap();
    let config = DiceCe::default();
    let outputs = |c: &Tensor| [fine.as_tensor().clone(), c.clone(), coarsest.as_tensor().clone()];
    let total = deep_supervision_loss(&outputs(&coarse), &target, config).unwrap().to_scalar::<f64>().unwrap();
    let small = resize_target(&target, [2, 2, 3]).unwrap();
    // floor((i + 1/2) in / out): depth 3 -> 2 reads 0, 2; height 4 -> 2 reads 1, 3; width 5 -> 3 reads 0, 2, 4.
    let t = target.to_vec3_of_batch(1);
    let s = small.to_vec3_of_batch(1);
    assert_eq!(s[1][1], [t[2][3][0], t[2][3][2], t[2][3][4]]);
    assert_eq!(s[0][0], [t[0][1][0], t[0][1][2], t[0][1][4]]);
    let one = |x: &Tensor, t: &Tensor| dice_ce(x, t, config).unwrap().to_scalar::<f64>().unwrap();
    let expected = (one(&fine, &target) * 2.0 + one(&coarse, &small)) / 3.0;
    assert_close("loss", &[total], &[expected], tolerance::F64_CLOSED_FORM);
    finite_difference("coarse", &coarse, |c| deep_supervision_loss(&outputs(c), &target, config).unwrap());
}

trait BatchEntry {
    fn to_vec3_of_batch(&self, b: usize) -> Vec<Vec<Vec<u8>>>;
}
impl BatchEntry for Tensor {
    fn to_vec3_of_batch(&self, b: usize) -> Vec<Vec<Vec<u8>>> {
        self.get(b).unwrap().to_vec3().unwrap()
    }
}

#[test]
fn gradient_carries_the_weight() {
    let (logits, target) = example(3);
    let last = logits.permute((0, 2, 3, 4, 1)).unwrap().contiguous().unwrap();
    let config = DiceCe::default();
    let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let weighted = |weight| {
        let (loss, mut gradients) = config.losses_and_gradients(&[(&last, weight)], &target).unwrap();
        (loss.value().unwrap(), flat(gradients.remove(0)))
    };
    let ((one, gradient), (quarter, quarter_gradient)) = (weighted(1.0), weighted(0.25));
    assert_eq!((one, one / 4.0), (config.loss(&last, &target).unwrap(), quarter));
    let expected: Vec<f64> = gradient.iter().map(|g| g / 4.0).collect();
    assert_close("gradient", &quarter_gradient, &expected, tolerance::F64_SUM);
}

#[test]
fn wrong_labels_are_named() {
    let (logits, target) = example(3);
    let target = (target + 1.0).unwrap();
    let message = dice_ce(&logits, &target, DiceCe::default()).unwrap_err().to_string();
    assert!(message.contains("label 3"), "{message}");
}

/// A label that a byte cannot hold must not wrap around to one that is a class, nor a target of another size be resized.
#[test]
fn nothing_wraps_or_is_resized() {
    let (logits, target) = example(3);
    let config = DiceCe::default();
    let wide = (target.to_dtype(DType::I64).unwrap() + 256.0).unwrap();
    assert!(dice_ce(&logits, &wide, config).unwrap_err().to_string().contains("label 25"));
    let negative = (target.to_dtype(DType::I64).unwrap() - 1.0).unwrap();
    assert!(dice_ce(&logits, &negative, config).unwrap_err().to_string().contains("label -1"));
    let floats = target.to_dtype(DType::F32).unwrap();
    assert!(dice_ce(&logits, &floats, config).unwrap_err().to_string().contains("integers"));
    let small = target.narrow(1, 0, 2).unwrap();
    let outputs = [logits.as_tensor().clone()];
    assert!(deep_supervision_loss(&outputs, &small, config).is_err());
    let same = target.to_dtype(DType::U32).unwrap();
    let value = |t: &Tensor| dice_ce(&logits, t, config).unwrap().to_scalar::<f64>().unwrap();
    assert_eq!(value(&same), value(&target));
}
