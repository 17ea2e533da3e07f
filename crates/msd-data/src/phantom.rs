//! Synthetic datasets: anatomy-like volumes with known labels, to try things on and to test with.
//!
//! Structures are curved ellipsoids, bent further by a smooth random deformation. They come in pairs, alternately *adjacent* (one
//! organ cut in two, like the anterior and posterior hippocampus) and *nested* (a core in a shell, like a tumour in
//! an organ). The two halves of an adjacent pair are equally bright, and blobs of the same brightness are strewn
//! about without label, so labels follow from place and shape, not from intensity alone. The images have partial
//! volume blur, a bias field and noise.

use std::f32::consts::TAU;
use std::fs;
use std::path::Path;

use ndarray::{Array3, Array4, Axis};
use rand::{Rng, RngExt};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::augment::{add_noise, blur};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::json_file;
use crate::nifti::{write_image, write_labels};
use crate::random::{Purpose, rng};

/// Kind of a synthetic dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhantomFamily {
    /// Organs in pairs, much like the hippocampus task.
    #[default]
    Anatomy,
    /// Small balls told apart by a pattern that changes from voxel to voxel: a network needs its capacity at full resolution.
    Texture,
}

/// Size and content of a synthetic dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PhantomOptions {
    /// Kind of the volumes. Textures have two labels and one channel.
    pub family: PhantomFamily,
    /// Number of labelled cases.
    pub num_cases: usize,
    /// Number of test cases; their labels go to `labelsTs`, which is not part of the MSD layout, to score predictions with.
    pub num_test: usize,
    /// Typical shape, voxels along z, y, x; cases vary by a tenth.
    pub shape: [usize; 3],
    /// Voxel size along z, y, x, millimetres.
    pub spacing_mm: [f64; 3],
    /// Number of labels besides the background.
    pub num_labels: usize,
    /// Number of image channels.
    pub num_modalities: usize,
    /// Seed of all random numbers; equal seeds give equal files.
    pub seed: u64,
}

impl Default for PhantomOptions {
    /// A dataset of 20 cases much like the hippocampus task: two adjacent labels at 1 mm.
    fn default() -> Self {
        Self {
            family: PhantomFamily::Anatomy,
            num_cases: 20,
            num_test: 4,
            shape: [40, 48, 40],
            spacing_mm: [1.0; 3],
            num_labels: 2,
            num_modalities: 1,
            seed: 1,
        }
    }
}

/// Writes a dataset in MSD layout to `dir`, which is created if need be; `dataset.json` comes last.
///
/// ```
/// let dir = tempfile::tempdir().unwrap();
/// let options = msd_data::PhantomOptions { num_cases: 5, num_test: 0, shape: [12, 14, 12], ..Default::default() };
/// msd_data::write_phantom(dir.path(), &options)?;
/// assert_eq!(msd_data::Dataset::open(dir.path())?.training.len(), 5);
/// # Ok::<(), msd_data::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] for options that describe no volume; [`Error::Io`].
pub fn write_dataset(dir: &Path, options: &PhantomOptions) -> Result<()> {
    check(options)?;
    for folder in ["imagesTr", "labelsTr", "imagesTs", "labelsTs"] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    }
    let anatomy = Anatomy::new(options);
    let total = options.num_cases + options.num_test;
    let written: Vec<Result<()>> = (0..total)
        .into_par_iter()
        .map(|i| {
            let (image, labels, geometry) = match options.family {
                PhantomFamily::Anatomy => anatomy.case(options, i),
                PhantomFamily::Texture => texture_case(options, i),
            };
            let set = if i < options.num_cases { "Tr" } else { "Ts" };
            write_image(dir.join(format!("images{set}/{}", file_name(i))), &image.view(), &geometry)?;
            write_labels(dir.join(format!("labels{set}/{}", file_name(i))), &labels.view(), &geometry)
        })
        .collect();
    written.into_iter().collect::<Result<()>>()?;
    let numbered = |names: Vec<String>| -> serde_json::Map<_, _> {
        names.into_iter().enumerate().map(|(i, name)| (i.to_string(), name.into())).collect()
    };
    let modalities = match options.num_modalities {
        1 => vec!["MRI".to_owned()],
        n => (1..=n).map(|i| format!("MR{i}")).collect(),
    };
    let labels = std::iter::once("background".to_owned()).chain((1..=options.num_labels).map(|i| format!("organ {i}")));
    let image = |set: &str, i| format!("./images{set}/{}", file_name(i));
    let training = (0..options.num_cases)
        .map(|i| serde_json::json!({"image": image("Tr", i), "label": format!("./labelsTr/{}", file_name(i))}));
    let json = serde_json::json!({
        "name": "Phantom",
        "description": "Synthetic volumes; no patient data",
        "licence": "CC0",
        "tensorImageSize": if options.num_modalities == 1 { "3D" } else { "4D" },
        "modality": numbered(modalities),
        "labels": numbered(labels.collect()),
        "numTraining": options.num_cases,
        "numTest": options.num_test,
        "training": training.collect::<Vec<_>>(),
        "test": (options.num_cases..total).map(|i| image("Ts", i)).collect::<Vec<_>>(),
    });
    json_file::save(&dir.join("dataset.json"), &json)
}

/// Image and labels of a case of textures.
fn texture_case(options: &PhantomOptions, index: usize) -> (Array4<f32>, Array3<u16>, Geometry) {
    let rng = &mut rng(options.seed, Purpose::Phantom, 0, 0, index as u32);
    let shape = options.shape;
    let (image, labels) = planted::texture(shape, rng);
    (image.insert_axis(Axis(0)), labels, Geometry::new(shape, options.spacing_mm))
}

fn file_name(case: usize) -> String {
    format!("phantom_{case:03}.nii.gz")
}

fn check(options: &PhantomOptions) -> Result<()> {
    let wrong = |what: String| Err(Error::Invalid(format!("phantom: {what}")));
    if options.shape.iter().any(|n| !(4..=1024).contains(n)) {
        return wrong(format!("shape {:?}; each edge from 4 to 1024 voxels", options.shape));
    }
    if options.spacing_mm.iter().any(|mm| !mm.is_finite() || *mm <= 0.0) {
        return wrong(format!("spacing_mm {:?}; each must be a positive number", options.spacing_mm));
    }
    if !(1..=100).contains(&options.num_labels) || !(1..=16).contains(&options.num_modalities) {
        let (labels, modalities) = (options.num_labels, options.num_modalities);
        return wrong(format!("{labels} labels and {modalities} modalities; possible are 1 to 100 and 1 to 16"));
    }
    if options.family != PhantomFamily::Anatomy {
        if options.num_labels != 2 || options.num_modalities != 1 {
            return wrong("the family of textures has 2 labels and 1 modality".to_owned());
        }
        if options.shape.iter().any(|&n| n < 16) {
            return wrong(format!("shape {:?}; each edge of the family of textures needs 16 voxels", options.shape));
        }
    }
    Ok(())
}

mod planted;

/// A point or extent in the unit cube -1..1, z, y, x.
type Point = [f32; 3];

/// Properties that all cases share.
struct Anatomy {
    organs: Vec<Organ>,
    /// Brightness of tissue and then of each label, per modality.
    brightness: Vec<Vec<f32>>,
}

/// An ellipsoid, curved if it has parts, and the labels of its voxels.
#[derive(Clone, Copy)]
struct Organ {
    centre: Point,
    radii: Point,
    first_label: u16,
    parts: Parts,
}

#[derive(Clone, Copy)]
enum Parts {
    Whole,
    /// Cut across its longest axis, z.
    Adjacent,
    /// A core of 0.55 of the radii.
    Nested,
}

impl Anatomy {
    fn new(options: &PhantomOptions) -> Self {
        let rng = &mut rng(options.seed, Purpose::Phantom, 0, 0, u32::MAX);
        let num_organs = options.num_labels.div_ceil(2);
        // On a spiral over a sphere, so that any number of organs finds room; one alone sits in the middle.
        let spread = if num_organs == 1 { 0.0 } else { 0.55 };
        let size = 1.0 / (num_organs as f32).cbrt();
        let organs = (0..num_organs).map(|i| {
            let z = 1.0 - (2.0 * i as f32 + 1.0) / num_organs as f32;
            let (angle, ring) = (2.4 * i as f32, (1.0 - z * z).sqrt());
            Organ {
                centre: [z, ring * angle.cos(), ring * angle.sin()].map(|v| v * spread),
                radii: [0.7, 0.42, 0.34].map(|r| r * size),
                first_label: 2 * i as u16 + 1,
                parts: match (2 * i + 2 <= options.num_labels, i % 2) {
                    (false, _) => Parts::Whole,
                    (true, 0) => Parts::Adjacent,
                    (true, _) => Parts::Nested,
                },
            }
        });
        let organs: Vec<Organ> = organs.collect();
        let brightness = (0..options.num_modalities).map(|_| {
            let mut levels = vec![100.0];
            for organ in &organs {
                let contrast = rng.random_range(25.0..45.0) * if rng.random_bool(0.5) { 1.0 } else { -1.0 };
                levels.push(100.0 + contrast);
                // Halves differ by less than the noise; a core stands out.
                let step = if matches!(organ.parts, Parts::Nested) { -0.8 * contrast } else { 0.05 * contrast };
                levels.push(100.0 + contrast + step);
            }
            levels
        });
        let brightness = brightness.collect();
        Self { organs, brightness }
    }

    fn case(&self, options: &PhantomOptions, index: usize) -> (Array4<f32>, Array3<u16>, Geometry) {
        let rng = &mut rng(options.seed, Purpose::Phantom, 0, 0, index as u32);
        let shape = options.shape.map(|n| ((n as f32 * rng.random_range(0.9..1.1)).round() as usize).max(4));
        let deformation = Waves::new(0.09, 3.5, rng);
        let organs: Vec<Organ> = self.organs.iter().map(|organ| organ.vary(rng)).collect();
        let blobs: Vec<Organ> = (0..=2 * organs.len()).map(|_| Organ::blob(&organs, rng)).collect();
        let mut labels = Array3::zeros(shape);
        // The label whose brightness a voxel has; differs from its label in blobs.
        let mut tissue = Array3::<u16>::zeros(shape);
        for ((z, y, x), label) in labels.indexed_iter_mut() {
            let p = [0, 1, 2].map(|a| (2.0 * [z, y, x][a] as f32 + 1.0) / shape[a] as f32 - 1.0);
            let bend = deformation.at(p);
            let p = [0, 1, 2].map(|a| p[a] + bend[a]);
            *label = organs.iter().find_map(|organ| organ.label(p)).unwrap_or(0);
            let blob = || blobs.iter().find_map(|blob| blob.label(p)).unwrap_or(0);
            tissue[[z, y, x]] = if *label > 0 { *label } else { blob() };
        }
        let bias = Waves::new(0.12, 1.0, rng);
        let mut image = Array4::zeros((options.num_modalities, shape[0], shape[1], shape[2]));
        for (mut channel, levels) in image.axis_iter_mut(Axis(0)).zip(&self.brightness) {
            let gain = rng.random_range(0.85f32..1.15);
            channel.assign(&tissue.mapv(|t| levels[usize::from(t)]));
            let values = channel.as_slice_mut().expect("a channel of a new array is contiguous");
            blur(values, shape, [0.7; 3]);
            for (i, v) in values.iter_mut().enumerate() {
                let zyx = [i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2]];
                let p = [0, 1, 2].map(|a| (2.0 * zyx[a] as f32 + 1.0) / shape[a] as f32 - 1.0);
                *v *= gain * (1.0 + bias.at(p)[0]);
            }
            add_noise(values, 5.0, rng);
        }
        (image, labels, Geometry::new(shape, options.spacing_mm))
    }
}

impl Organ {
    /// Moves and resizes the organ by some percent, as between individuals.
    fn vary(&self, rng: &mut impl Rng) -> Self {
        let centre = self.centre.map(|c| c + rng.random_range(-0.07..0.07));
        let radii = self.radii.map(|r| r * rng.random_range(0.85..1.15));
        Self { centre, radii, ..*self }
    }

    /// Draws a small ball as bright as one of `organs`.
    fn blob(organs: &[Self], rng: &mut impl Rng) -> Self {
        let like = organs[rng.random_range(0..organs.len())];
        let radius = like.radii[2] * rng.random_range(0.4..0.8);
        let centre = [0; 3].map(|_| rng.random_range(-0.95..0.95));
        Self { centre, radii: [radius; 3], first_label: like.first_label, parts: Parts::Whole }
    }

    fn label(&self, p: Point) -> Option<u16> {
        let mut q = [0, 1, 2].map(|a| (p[a] - self.centre[a]) / self.radii[a]);
        if !matches!(self.parts, Parts::Whole) {
            q[1] += 0.6 * (q[0] * q[0] - 0.4); // curved like a bean
        }
        let r = q.iter().map(|v| v * v).sum::<f32>();
        let second = match self.parts {
            Parts::Whole => false,
            Parts::Adjacent => q[0] > 0.1,
            Parts::Nested => r < 0.55 * 0.55,
        };
        (r < 1.0).then_some(self.first_label + u16::from(second))
    }
}

/// Smooth random vector field: a sum of a few long sine waves.
struct Waves(Vec<(Point, f32, Point)>);

impl Waves {
    /// Draws waves of at most `amplitude` and `frequency` half-periods across the volume.
    fn new(amplitude: f32, frequency: f32, rng: &mut impl Rng) -> Self {
        let wave = |_| {
            let direction = [0; 3].map(|_| rng.random_range(-frequency..frequency) * TAU / 4.0);
            let phase = rng.random_range(0.0..TAU);
            (direction, phase, [0; 3].map(|_| rng.random_range(-amplitude..amplitude)))
        };
        Self((0..5).map(wave).collect())
    }

    fn at(&self, p: Point) -> Point {
        self.0.iter().fold([0.0; 3], |sum, (direction, phase, amplitude)| {
            let angle: f32 = direction.iter().zip(p).map(|(d, p)| d * p).sum::<f32>() + phase;
            let s = angle.sin();
            [0, 1, 2].map(|a| sum[a] + amplitude[a] * s)
        })
    }
}

#[cfg(test)]
mod tests;
