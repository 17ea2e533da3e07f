use super::*;

/// Spacing, median shape, cases, labels -> patch, batch, poolings per axis, elements.
type Row = ([f64; 3], [f64; 3], usize, usize, [usize; 3], usize, [u32; 3], f64);

const PUBLISHED: [Row; 7] = [
    ([1.0, 1.0, 1.0], [36.0, 50.0, 35.0], 260, 3, [40, 56, 40], 9, [3, 3, 3], 19_174_400.0),
    ([1.37, 1.25, 1.25], [115.0, 320.0, 232.0], 20, 2, [80, 192, 160], 2, [4, 5, 5], 528_211_200.0),
    ([3.6, 0.62, 0.62], [20.0, 320.0, 319.0], 32, 3, [20, 320, 256], 2, [2, 6, 6], 483_315_200.0),
    ([1.0, 1.0, 1.0], [138.0, 169.0, 138.0], 484, 4, [128, 128, 128], 2, [5, 5, 5], 454_893_568.0),
    ([1.0, 0.7676, 0.7676], [482.0, 512.0, 512.0], 131, 3, [128, 128, 128], 2, [5, 5, 5], 452_796_416.0),
    ([2.5, 0.8, 0.8], [96.0, 512.0, 512.0], 281, 3, [40, 224, 224], 2, [3, 5, 5], 539_611_520.0),
    ([5.0, 1.5625, 1.5625], [18.0, 237.0, 208.0], 200, 4, [20, 256, 224], 4, [2, 5, 5], 310_481_920.0),
];

#[test]
fn published_plans_come_out_equal() {
    for (spacing, median, cases, labels, patch, batch, poolings, elements) in PUBLISHED {
        let network = NetworkPlan::of(spacing, median, cases, labels, &PlanOptions::default());
        assert_eq!(network.topology.patch(), patch, "patch for {spacing:?} {median:?}");
        assert_eq!(network.batch_size, batch, "batch for {patch:?}");
        let found = [0, 1, 2].map(|a| network.topology.strides.iter().map(|s| s[a] as u32 / 2).sum::<u32>());
        assert_eq!(found, poolings, "poolings for {patch:?}");
        assert_eq!(network.topology.elements(labels), elements, "elements for {patch:?}");
        assert_eq!(network.topology.kernels.len(), network.topology.strides.len() + 1);
    }
}

#[test]
fn anisotropic_kernels_and_strides_are_those_of_prostate() {
    let network = NetworkPlan::of([3.6, 0.62, 0.62], [20.0, 320.0, 319.0], 32, 3, &PlanOptions::default());
    let (flat, cube) = ([1, 2, 2], [2, 2, 2]);
    assert_eq!(network.topology.strides, [flat, flat, cube, cube, flat, flat]);
    let thin = [1, 3, 3];
    assert_eq!(network.topology.kernels[..3], [thin, thin, [3, 3, 3]]);
}

#[test]
fn low_resolution_exists_for_large_cases_only() {
    let exists = |row: &Row| NetworkPlan::of(row.0, row.1, row.2, row.3, &PlanOptions::default()).low_resolution_exists;
    assert_eq!(PUBLISHED.map(|row| exists(&row))[..2], [false, false], "hippocampus, heart");
    assert!(exists(&PUBLISHED[4]) && exists(&PUBLISHED[5]), "liver, pancreas");
}

#[test]
fn more_memory_never_shrinks_the_patch_and_none_still_gives_one() {
    let voxels = |gb| {
        let options = PlanOptions { gpu_memory_gb: gb, ..PlanOptions::default() };
        NetworkPlan::of([1.0, 0.8, 0.8], [300.0, 400.0, 400.0], 100, 3, &options).topology.patch.iter().product::<f64>()
    };
    let sizes = [0.001, 0.5, 2.0, 8.0, 40.0].map(voxels);
    assert!(sizes.is_sorted() && sizes[0] > 0.0, "{sizes:?}");
}

#[test]
fn a_coarse_axis_goes_first() {
    let fingerprint = Fingerprint {
        orientation: None,
        spacings: vec![[0.7, 0.8, 5.0]; 5],
        shapes_after_crop: vec![[200, 180, 30]; 5],
        intensity: vec![],
        median_relative_size_after_cropping: 1.0,
        cases: vec![],
    };
    let dataset = Dataset {
        paths: crate::Paths::Listed,
        positions: crate::Positions::Checked,
        root: "x".into(),
        name: "Coarse".into(),
        modalities: vec!["CT".into()],
        labels: vec![Label { value: 0, name: "background".into() }, Label { value: 1, name: "a".into() }],
        training: vec![],
        test: vec![],
    };
    let tiny = Fingerprint { shapes_after_crop: vec![[3; 3]; 5], spacings: vec![[1.0; 3]; 5], ..fingerprint.clone() };
    let message = super::plan(&tiny, &dataset, &PlanOptions::default()).unwrap_err().to_string();
    assert!(message.contains("too small: [3.0, 3.0, 3.0] voxels"), "{message}");
    let absurd = PlanOptions { spacing_mm: Some([1e-9, 1.0, 1.0]), ..PlanOptions::default() };
    let message = super::plan(&fingerprint, &dataset, &absurd).unwrap_err().to_string();
    assert!(message.contains("give a spacing near that of the cases"), "{message}");
    let plan = plan(&fingerprint, &dataset, &PlanOptions::default()).unwrap();
    assert_eq!((plan.transpose_forward, plan.transpose_backward), ([2, 0, 1], [1, 2, 0]));
    assert_eq!((plan.spacing_mm, plan.median_shape), ([5.0, 0.7, 0.8], [30.0, 200.0, 180.0]));
}

#[test]
fn a_plan_from_a_file_is_checked() {
    let sound = || -> Plan {
        let dataset = Dataset {
            paths: crate::Paths::Listed,
            positions: crate::Positions::Checked,
            root: "x".into(),
            name: "Sound".into(),
            modalities: vec!["CT".into()],
            labels: vec![Label { value: 0, name: "background".into() }, Label { value: 1, name: "a".into() }],
            training: vec![],
            test: vec![],
        };
        let statistics = IntensityStatistics {
            mean: 0.0,
            median: 0.0,
            std: 1.0,
            min: 0.0,
            max: 1.0,
            percentile_00_5: 0.0,
            percentile_99_5: 1.0,
        };
        let fingerprint = Fingerprint {
            orientation: None,
            spacings: vec![[1.0; 3]; 5],
            shapes_after_crop: vec![[32; 3]; 5],
            intensity: vec![statistics],
            median_relative_size_after_cropping: 1.0,
            cases: vec![],
        };
        plan(&fingerprint, &dataset, &PlanOptions::default()).unwrap()
    };
    sound().check().unwrap();
    let refused = |change: fn(&mut Plan), key: &str| {
        let mut changed = sound();
        change(&mut changed);
        let problem = changed.check().unwrap_err();
        assert!(problem.starts_with(key) && problem.contains("expected"), "{problem}");
    };
    refused(|plan| plan.modalities.clear(), "modalities is empty");
    refused(|plan| plan.labels[1].value = 2, "labels");
    refused(|plan| plan.normalization.clear(), "normalization is of 0 channels; expected 1");
    refused(|plan| plan.intensity.clear(), "intensity");
    refused(|plan| plan.intensity[0].percentile_00_5 = plan.intensity[0].percentile_99_5 + 1.0, "intensity");
    refused(|plan| plan.intensity[0].std = f64::NAN, "intensity");
    refused(|plan| plan.spacing_mm[1] = f64::NAN, "spacing_mm");
    refused(|plan| plan.spacing_mm[1] = 1e-300, "spacing_mm");
    refused(|plan| plan.patch_size[2] = 0, "patch_size");
    refused(|plan| plan.strides.clear(), "strides");
    refused(|plan| plan.kernels[0] = [0, 1, 1], "strides or kernels");
    refused(|plan| plan.transpose_forward = [0, 0, 1], "transpose_forward");
    refused(|plan| plan.transpose_backward = [0, 1, 7], "transpose_forward");
}
