use std::fs;

use ndarray::{Array3, arr3};

use super::*;
use crate::geometry::Geometry;
use crate::nifti::write_labels;

fn cube(shape: [usize; 3], from: [usize; 3], to: [usize; 3]) -> Array3<u16> {
    Array3::from_shape_fn(shape, |(z, y, x)| {
        u16::from((0..3).all(|a| ([z, y, x][a] >= from[a]) && ([z, y, x][a] < to[a])))
    })
}

#[test]
fn overlap_and_its_special_cases() {
    let (a, b, none) = (arr3(&[[[1u16, 1, 0, 0]]]), arr3(&[[[0u16, 1, 1, 0]]]), Array3::zeros((1, 1, 4)));
    let o = overlap(&a.view(), &b.view(), 1).unwrap();
    assert_eq!((o.true_positives, o.false_positives, o.false_negatives, o.true_negatives), (1, 1, 1, 1));
    assert_eq!((o.dice(), o.iou()), (0.5, 1.0 / 3.0));
    assert!(dice(&none.view(), &none.view(), 1).unwrap().is_nan());
    assert_eq!(dice(&a.view(), &none.view(), 1).unwrap(), 0.0);
    assert_eq!(dice(&none.view(), &a.view(), 1).unwrap(), 0.0);
    let other = Array3::zeros((1, 4, 1));
    assert!(matches!(overlap(&a.view(), &other.view(), 1), Err(Error::Shape { .. })));
}

#[test]
fn surface_distances_are_in_millimetres() {
    // A cube and the same cube moved by 2 voxels along z, 3 mm each.
    let a = cube([14, 8, 8], [2, 2, 2], [6, 6, 6]);
    let b = cube([14, 8, 8], [4, 2, 2], [8, 6, 6]);
    let d = surface_distances(&a.view(), &b.view(), 1, [3.0, 1.0, 1.0]).unwrap();
    assert_eq!(d.prediction_to_reference_mm.len(), 4 * 16 - 2 * 4, "a 4-cube has an inner 2-cube");
    // Of 56 surface voxels 16 lie 6 mm away, 12 at 3 mm at most (beside), the rest at most 1 mm.
    assert_eq!(d.hd95_mm(), 6.0);
    let same = surface_distances(&a.view(), &a.view(), 1, [3.0, 1.0, 1.0]).unwrap();
    assert_eq!((same.hd95_mm(), same.nsd(0.0)), (0.0, 1.0));
    let at = |tolerance| d.nsd(tolerance);
    assert_eq!(at(6.0), 1.0);
    assert!(at(0.0) < at(1.0) && at(1.0) < at(5.9) && at(5.9) < 1.0, "{} {} {}", at(0.0), at(1.0), at(5.9));
    let none = Array3::zeros((14, 8, 8));
    assert_eq!(hd95_mm(&a.view(), &none.view(), 1, [1.0; 3]).unwrap(), f64::INFINITY);
    assert_eq!(nsd(&none.view(), &a.view(), 1, [1.0; 3], 1.0).unwrap(), 0.0);
    assert!(hd95_mm(&none.view(), &none.view(), 1, [1.0; 3]).unwrap().is_nan());
    assert!(nsd(&none.view(), &none.view(), 1, [1.0; 3], 1.0).unwrap().is_nan());
}

/// Two ragged ellipsoids; the numbers are SciPy's (`binary_erosion`, `distance_transform_edt`, `percentile`).
#[test]
fn ragged_shapes_agree_with_scipy() {
    let ellipsoid = |centre: [f64; 3], radii: [f64; 3], hole: usize| {
        Array3::from_shape_fn((14, 18, 16), |(z, y, x)| {
            let at = [z as f64, y as f64, x as f64];
            let r: f64 = (0..3).map(|a| ((at[a] - centre[a]) / radii[a]).powi(2)).sum();
            u16::from(r < 1.0 && (z * 31 + y * 17 + x * 7) % 13 != hole)
        })
    };
    let a = ellipsoid([6.0, 8.0, 7.0], [4.5, 6.0, 5.0], 0);
    let b = ellipsoid([7.0, 9.0, 7.0], [5.0, 5.5, 6.0], 5);
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    close(dice(&a.view(), &b.view(), 1).unwrap(), 0.699_386_503_067_484_6);
    let d = surface_distances(&a.view(), &b.view(), 1, [2.5, 1.0, 0.8]).unwrap();
    assert_eq!((d.prediction_to_reference_mm.len(), d.reference_to_prediction_mm.len()), (362, 443));
    close(d.hd95_mm(), 2.5);
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    close(mean(&d.prediction_to_reference_mm), 0.666_462_578_403_260_5);
    close(mean(&d.reference_to_prediction_mm), 0.834_676_666_604_561_4);
    for (tolerance, expected) in
        [(0.9, 0.790_062_111_801_242_2), (1.1, 0.838_509_316_770_186_4), (2.1, 0.922_981_366_459_627_4)]
    {
        close(d.nsd(tolerance), expected);
    }
}

#[test]
fn two_points_by_hand() {
    let mut a = Array3::zeros((1, 1, 40));
    let mut b = a.clone();
    (a[[0, 0, 0]], b[[0, 0, 30]]) = (1, 1);
    b[[0, 0, 1]] = 1;
    // From a: 1 voxel. From b: 30 and 1; the 95th percentile between ranks is 1 + 0.95 29.
    let d = surface_distances(&a.view(), &b.view(), 1, [1.0, 1.0, 0.5]).unwrap();
    assert!((d.hd95_mm() - 0.5 * (1.0 + 0.95 * 29.0)).abs() < 1e-12);
    assert_eq!(d.nsd(0.5), 2.0 / 3.0);
}

#[test]
fn masks_at_the_border_have_a_surface_there() {
    let whole = Array3::from_elem((4, 4, 4), 1u16);
    let d = surface_distances(&whole.view(), &whole.view(), 1, [1.0; 3]).unwrap();
    assert_eq!(d.prediction_to_reference_mm.len(), 64 - 8);
}

/// Writes label maps of 4 x 4 x 4 voxels: (folder, name, values of the first voxels).
fn write(dir: &std::path::Path, folder: &str, name: &str, values: &[u16]) {
    fs::create_dir_all(dir.join(folder)).unwrap();
    let mut labels = Array3::zeros((4, 4, 4));
    for (voxel, value) in labels.iter_mut().zip(values) {
        *voxel = *value;
    }
    let geometry = Geometry::new([4, 4, 4], [1.0; 3]);
    write_labels(dir.join(folder).join(name), &labels.view(), &geometry).unwrap();
}

#[test]
fn folders_are_evaluated_as_nnunet_does() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "p", "a.nii.gz", &[1, 1, 0, 2]);
    write(dir.path(), "r", "a.nii.gz", &[1, 1, 1, 0]);
    write(dir.path(), "p", "b.nii", &[1, 0]);
    write(dir.path(), "r", "b.nii.gz", &[1, 0]);
    write(dir.path(), "r", "c.nii.gz", &[1, 0]);
    fs::write(dir.path().join("p/metrics.json"), "{}").unwrap();
    fs::write(dir.path().join("p/._a.nii.gz"), "junk").unwrap();
    let (p, r) = (dir.path().join("p"), dir.path().join("r"));
    let report = evaluate_folder(&p, &r, &EvaluationOptions::default()).unwrap();
    assert_eq!(report.references_without_prediction, ["c"]);
    assert_eq!(report.metric_per_case.len(), 2);
    let first = &report.metric_per_case[0].metrics;
    assert_eq!((first[&1].dice, first[&1].n_pred, first[&1].n_ref), (0.8, 2, 3));
    assert_eq!((first[&2].dice, first[&2].hd95_mm), (0.0, f64::INFINITY));
    assert!(report.metric_per_case[1].metrics[&2].dice.is_nan(), "neither has label 2");
    assert!((report.mean[&1].dice - 0.9).abs() < 1e-12);
    assert_eq!((report.mean[&2].dice, report.mean[&2].hd95_infinite), (0.0, 1));
    assert!((report.foreground_mean.dice - 0.45).abs() < 1e-12);

    let file = dir.path().join("metrics.json");
    report.save(&file).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    for key in ["foreground_mean", "metric_per_case", "\"Dice\"", "\"HD95\"", "\"NSD\"", "n_ref", "null"] {
        assert!(text.contains(key), "{key}");
    }
    let back: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(back.mean[&1], report.mean[&1]);
    assert!(back.metric_per_case[0].metrics[&2].hd95_mm.is_nan());
}

#[test]
fn folds_are_pooled_into_the_report_of_all_cases() {
    let dir = tempfile::tempdir().unwrap();
    let pair = |name: &str, prediction: &[u16], reference: &[u16]| {
        write(dir.path(), "p", name, prediction);
        write(dir.path(), "r", name, reference);
        (dir.path().join("p").join(name), dir.path().join("r").join(name))
    };
    let pairs = [
        pair("a.nii.gz", &[1, 1, 0, 2], &[1, 1, 1, 0]),
        pair("b.nii.gz", &[1, 0], &[1, 0]),
        pair("c.nii.gz", &[2, 0, 1], &[2, 2, 1]),
    ];
    let options = EvaluationOptions { labels: Some(vec![1, 2]), ..EvaluationOptions::default() };
    let all = evaluate_pairs(&pairs, &options).unwrap();
    let folds = [&pairs[..2], &pairs[2..]].map(|fold| evaluate_pairs(fold, &options).unwrap());
    let text = |report: &Report| serde_json::to_string(report).unwrap();
    assert_eq!(text(&Report::pooled(&folds).unwrap()), text(&all));
    // Files do not tell infinite distances from absent ones, but count them.
    let file = dir.path().join("metrics.json");
    folds[0].save(&file).unwrap();
    let from_file = [Report::load(&file).unwrap(), folds[1].clone()];
    assert_eq!(text(&Report::pooled(&from_file).unwrap()), text(&all));
    assert_eq!(all.mean[&2].hd95_infinite, 1);
    let other = evaluate_pairs(&pairs[..1], &EvaluationOptions { labels: Some(vec![1]), ..options }).unwrap();
    assert!(Report::pooled(&[folds[0].clone(), other]).is_err() && Report::pooled(&[]).is_err());
    let missing = ["c", "d"].map(str::to_owned).to_vec();
    let first = Report { references_without_prediction: missing, ..folds[0].clone() };
    let pooled = Report::pooled(&[first, folds[1].clone()]).unwrap();
    assert_eq!(pooled.references_without_prediction, ["d"], "the other fold has c");
    let message = Report::pooled(&[all, folds[1].clone()]).unwrap_err().to_string();
    assert!(message.contains("two of them hold ") && message.contains("r/c.nii.gz"), "{message}");
}

/// Background too, and in maps of more labels than are measured.
#[test]
fn requested_labels_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.nii.gz");
    let map = Array3::from_shape_fn((1, 1, 1100), |(_, _, x)| x as u16);
    write_labels(&file, &map.view(), &Geometry::new([1, 1, 1100], [1.0; 3])).unwrap();
    let pairs = [(file.clone(), file)];
    let options = EvaluationOptions { labels: Some(vec![0, 1, 2000]), ..EvaluationOptions::default() };
    let found = evaluate_pairs(&pairs, &options).unwrap().metric_per_case.remove(0).metrics;
    assert_eq!([0, 1, 2000].map(|label| found[&label].true_positives), [1, 1, 0]);
    assert!(evaluate_pairs(&pairs, &EvaluationOptions::default()).unwrap_err().to_string().contains("at most 1000"));
}

#[test]
fn odd_folders_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (p, r) = (dir.path().join("p"), dir.path().join("r"));
    write(dir.path(), "r", "a.nii.gz", &[1]);
    let options = EvaluationOptions { require_all: true, ..EvaluationOptions::default() };
    let fails = |says: &str| {
        let message = evaluate_folder(&p, &r, &options).unwrap_err().to_string();
        assert!(message.contains(says) && !message.contains('\n'), "{message}");
    };
    fails("No such file");
    fs::create_dir_all(&p).unwrap();
    fails("no .nii or .nii.gz file to evaluate");
    for i in 0..7 {
        write(dir.path(), "p", &format!("x{i}.nii.gz"), &[1]);
    }
    fails("for x0, x1, x2, x3, x4 and 2 more");
    fs::remove_dir_all(&p).unwrap();
    write(dir.path(), "p", "b.nii.gz", &[1]);
    write(dir.path(), "r", "b.nii.gz", &[1]);
    fails("no prediction for a");
    let large = Geometry::new([4, 4, 5], [1.0; 3]);
    write_labels(p.join("a.nii.gz"), &Array3::ones((4, 4, 5)).view(), &large).unwrap();
    fails("a.nii.gz: shape [4, 4, 5] (z, y, x) differs from that of ");
    fs::write(p.join("a.nii.gz"), "not a volume").unwrap();
    fails("truncated");
}

#[test]
fn distances_of_voxels_stored_in_single_precision_meet_their_tolerance() {
    let mut maps = [Array3::<u16>::zeros((3, 3, 6)), Array3::zeros((3, 3, 6))];
    maps[0][[1, 1, 2]] = 1;
    maps[1][[1, 1, 3]] = 1;
    let spacing_mm = [f64::from(0.8f32); 3];
    assert_eq!(nsd(&maps[0].view(), &maps[1].view(), 1, spacing_mm, 0.8).unwrap(), 1.0);
    assert_eq!(nsd(&maps[0].view(), &maps[1].view(), 1, spacing_mm, 0.79).unwrap(), 0.0);
}

#[test]
fn a_prediction_stored_along_other_axes_is_brought_to_its_reference() {
    let dir = tempfile::tempdir().unwrap();
    let (p, r) = (dir.path().join("p"), dir.path().join("r"));
    write(dir.path(), "r", "a.nii.gz", &[1, 1, 1, 2]);
    fs::create_dir_all(&p).unwrap();
    let mut flipped = crate::nifti::read_labels(r.join("a.nii.gz")).unwrap().data;
    flipped.invert_axis(ndarray::Axis(2));
    let affine = |x| [[-1.0, 0.0, 0.0, x], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    let geometry = Geometry::from_affine([4, 4, 4], affine(3.0));
    write_labels(p.join("a.nii.gz"), &flipped.view(), &geometry).unwrap();
    let report = evaluate_folder(&p, &r, &EvaluationOptions::default()).unwrap();
    assert_eq!(report.foreground_mean.dice, 1.0);

    write_labels(p.join("a.nii.gz"), &flipped.view(), &Geometry::from_affine([4, 4, 4], affine(43.0))).unwrap();
    let options = EvaluationOptions { positions: crate::Positions::Ignored, ..EvaluationOptions::default() };
    let message = evaluate_folder(&p, &r, &EvaluationOptions::default()).unwrap_err().to_string();
    assert!(
        message.contains("p/a.nii.gz: lies up to 40.0 mm away from") && message.contains("r/a.nii.gz"),
        "{message}"
    );
    assert!(evaluate_folder(&p, &r, &options).unwrap().foreground_mean.dice < 1.0);

    write(dir.path(), "p", "a.nii", &[1]);
    let message = evaluate_folder(&p, &r, &EvaluationOptions::default()).unwrap_err().to_string();
    assert!(message.contains("p/a.nii.gz: is of the same case as ") && message.contains("p/a.nii;"), "{message}");
}
