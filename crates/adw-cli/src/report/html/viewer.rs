//! Cases of a report as volumes to look through: the image in 8 bits, contours of reference and prediction, and pictures of
//! three slices for readers without script.

use std::{fmt::Write, path::PathBuf};

use anyhow::{Result, ensure};
use msd_data::{AxisMap, Dataset, Label, LabelMap, Orientation, read_labels};
use ndarray::{Array3, ArrayView2, ArrayView3, Axis, Slice};

use super::page::{escape, number, times};
use crate::report::png::{self, Picture};

/// Colours of labels, by their value; those of the style sheet.
const COLOURS: [[u8; 3]; 6] =
    [[255, 212, 59], [77, 210, 255], [255, 157, 60], [125, 255, 138], [255, 138, 216], [200, 181, 255]];

/// Pictures of the middle slices of a case with contours, by their names.
///
/// # Errors
/// A file of the case that cannot be read.
pub(super) fn overlays(dataset: &Dataset, case: &ShownCase<'_>) -> Result<Vec<Picture>> {
    let volumes = Volumes::load(dataset, case, MAX_OVERLAY_VOXELS)?;
    let middle = volumes.busiest();
    let named = volumes.views().into_iter().enumerate().map(|(axis, view)| {
        let (size, png) = volumes.overlay(axis, middle[axis]);
        Picture { name: format!("{} {view}", case.kind), size, png }
    });
    Ok(named.collect())
}

/// Most voxels of a volume whose slices become pictures.
const MAX_OVERLAY_VOXELS: usize = 2_000_000;

/// A case that is shown.
pub(super) struct ShownCase<'a> {
    pub(super) id: &'a str,
    /// `best`, `median` or `worst`.
    pub(super) kind: &'static str,
    /// Reason why it is shown, such as `worst case: Dice 0.71`.
    pub(super) caption: String,
    pub(super) prediction: PathBuf,
}

/// Volumes on one grid, `[z, y, x]` with indices that grow to superior, posterior and left where the header says so.
struct Volumes {
    image: Array3<u8>,
    reference: Array3<u8>,
    prediction: Array3<u8>,
    spacing_mm: [f64; 3],
    /// False if the file does not say where its axes point.
    is_oriented: bool,
    note: String,
}

/// Figure of a case, and the element with its volumes. `id` is unique in the page.
///
/// # Errors
/// A file of the case that cannot be read.
pub(super) fn figure(
    dataset: &Dataset,
    labels: &[Label],
    case: &ShownCase<'_>,
    id: &str,
    max_voxels: usize,
) -> Result<(String, String)> {
    let volumes = Volumes::load(dataset, case, max_voxels)?;
    let middle = volumes.busiest();
    let mut views = String::new();
    for (axis, name) in volumes.views().into_iter().enumerate() {
        let _ = writeln!(
            views,
            "<div class=\"view\" data-axis=\"{axis}\" data-name=\"{name}\"><h4>{name}</h4>{}</div>",
            volumes.picture(axis, middle[axis], &format!("{}, {name} slice {}", case.id, middle[axis] + 1))
        );
    }
    let mut legend = String::new();
    for label in labels.iter().filter(|label| label.value > 0) {
        let _ = write!(
            legend,
            "<span class=\"key\"><i class=\"swatch c{}\"></i>{} {}</span>",
            label.value % 6,
            label.value,
            escape(&label.name)
        );
    }
    let figure = format!(
        "<figure class=\"case\" data-volume=\"{id}\"><figcaption><b>{}</b> {}<br><span class=\"unit\">{}</span></figcaption>\n\
         <div class=\"views\">{views}</div><div class=\"legend\">{legend}<span class=\"key\"><i class=\"swatch full\"></i>reference: \
         full line</span><span class=\"key\"><i class=\"swatch dashed\"></i>prediction: broken line</span></div></figure>\n",
        escape(case.id),
        escape(&case.caption),
        escape(&volumes.note)
    );
    let bytes: Vec<u8> =
        [&volumes.image, &volumes.reference, &volumes.prediction].into_iter().flatten().copied().collect();
    let script = format!(
        "<script type=\"text/plain\" id=\"{id}\" data-shape=\"{}\" data-spacing=\"{}\" data-start=\"{}\" data-oriented=\"{}\">{}</script>\n",
        join(volumes.image.shape()),
        join(&volumes.spacing_mm.map(|mm| format!("{mm:.4}"))),
        join(&middle),
        u8::from(volumes.is_oriented),
        png::base64(&png::deflate(&bytes))
    );
    Ok((figure, script))
}

fn join<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Volumes {
    fn load(dataset: &Dataset, case: &ShownCase<'_>, max_voxels: usize) -> Result<Self> {
        let (image, reference) = dataset.load_case(dataset.training_case(case.id)?)?;
        let LabelMap { data: prediction, .. } = read_labels(&case.prediction)?;
        ensure!(prediction.shape() == reference.data.shape(), "{}: not on its image's grid", case.prediction.display());
        let geometry = &image.geometry;
        let axes = AxisMap::between_known(geometry.orientation(), "LPS".parse::<Orientation>().ok());
        let channel = axes.apply(image.data.index_axis(Axis(0), 0));
        let (reference, prediction) = (axes.apply(reference.data.view()), axes.apply(prediction.view()));
        let spacing = axes.triple(geometry.spacing_mm);
        let region = region(&reference, &prediction, max_voxels);
        let shape: [usize; 3] = [0, 1, 2].map(|a| region[a].len());
        let steps = steps(shape, spacing, max_voxels);
        let slices =
            [0, 1, 2].map(|a| Slice::new(region[a].start as isize, Some(region[a].end as isize), steps[a] as isize));
        let image = cut(channel, slices).to_owned();
        let mut sorted: Vec<f32> = image.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let last = sorted.len() - 1;
        let (low, high) = (sorted[last / 200], sorted[last - last / 200]);
        let scale = 255.0 / (high - low).max(f32::MIN_POSITIVE);
        let bytes = |map: ArrayView3<'_, u16>| cut(map, slices).mapv(|label| label.min(255) as u8);
        let whole = channel.shape().iter().product::<usize>();
        let mut note = format!("{} voxels of {} mm", times(&axes.triple(geometry.shape)), times(&spacing.map(number)));
        if image.len() < whole {
            let every =
                if steps == [1; 3] { String::new() } else { format!(", every {} voxel", times(&steps.map(ordinal))) };
            note += &format!("; shown are {}{every}", times(&shape));
        }
        if dataset.modalities.len() > 1 {
            note += &format!("; channel {}", dataset.modalities[0]);
        }
        Ok(Self {
            reference: bytes(reference),
            prediction: bytes(prediction),
            image: image.mapv(|v| ((v - low) * scale).clamp(0.0, 255.0) as u8),
            spacing_mm: [0, 1, 2].map(|a| spacing[a] * steps[a] as f64),
            is_oriented: geometry.orientation().is_some(),
            note,
        })
    }

    /// Names of the views perpendicular to z, y, x.
    fn views(&self) -> [&'static str; 3] {
        if self.is_oriented { ["axial", "coronal", "sagittal"] } else { ["along z", "along y", "along x"] }
    }

    /// Along each axis, the slice with the most voxels that reference and prediction disagree about; the one with most
    /// foreground if they agree.
    fn busiest(&self) -> [usize; 3] {
        let most = |axis: usize, counts: &dyn Fn(u8, u8) -> bool| {
            let count = |index: usize| {
                let (a, b) =
                    (self.reference.index_axis(Axis(axis), index), self.prediction.index_axis(Axis(axis), index));
                a.iter().zip(b).filter(|&(&a, &b)| counts(a, b)).count()
            };
            let counts: Vec<usize> = (0..self.image.shape()[axis]).map(count).collect();
            (0..counts.len()).max_by_key(|&i| (counts[i], std::cmp::Reverse(i))).filter(|&i| counts[i] > 0)
        };
        [0, 1, 2].map(|axis| {
            let found = most(axis, &|a, b| a != b).or_else(|| most(axis, &|a, _| a > 0));
            found.unwrap_or(self.image.shape()[axis] / 2)
        })
    }

    /// Picture of a slice in colours, for viewers of single pictures: height and width, PNG. Contours are as in
    /// [`Self::picture`].
    fn overlay(&self, axis: usize, index: usize) -> ([usize; 2], Vec<u8>) {
        let [grey, reference, prediction] =
            [&self.image, &self.reference, &self.prediction].map(|volume| slice(volume, axis, index));
        let (h, w) = grey.dim();
        let scale = (320 / h.max(w)).max(3);
        let mut samples = Vec::with_capacity(3 * h * w * scale * scale);
        for (y, x) in (0..h * scale).flat_map(|y| (0..w * scale).map(move |x| (y, x))) {
            let (row, column) = (y / scale, x / scale);
            // Label of the pixel if a neighbour that this part of the pixel touches has another.
            let edge = |labels: &ArrayView2<'_, u8>| {
                let toward = |at: usize, from: usize| match at % scale {
                    0 => from.wrapping_sub(1),
                    rest if rest == scale - 1 => from + 1,
                    _ => from,
                };
                let other = |r: usize, c: usize| labels.get([r, c]).copied().unwrap_or(0);
                let label = labels[[row, column]];
                let is_edge = other(toward(y, row), column) != label || other(row, toward(x, column)) != label;
                (label > 0 && is_edge).then(|| COLOURS[usize::from(label) % COLOURS.len()])
            };
            let is_dash = (x + y) / 3 % 2 == 0;
            let colour = edge(&reference).or_else(|| edge(&prediction).filter(|_| is_dash));
            samples.extend(colour.unwrap_or([grey[[row, column]]; 3]));
        }
        ([h * scale, w * scale], png::encode(w * scale, 3, &samples))
    }

    /// Picture of a slice with contours.
    fn picture(&self, axis: usize, index: usize, alternative: &str) -> String {
        let grey = slice(&self.image, axis, index);
        let (h, w) = grey.dim();
        let [dy, dx] = match axis {
            0 => [self.spacing_mm[1], self.spacing_mm[2]],
            1 => [self.spacing_mm[0], self.spacing_mm[2]],
            _ => [self.spacing_mm[0], self.spacing_mm[1]],
        };
        let samples: Vec<u8> = grey.iter().copied().collect();
        let picture = png::data_url("image/png", &png::encode(w, 1, &samples));
        let mut contours = String::new();
        for (class, volume) in [("full", &self.reference), ("dashed", &self.prediction)] {
            let labels = slice(volume, axis, index);
            let mut values: Vec<u8> = labels.iter().copied().filter(|&label| label > 0).collect();
            values.sort_unstable();
            values.dedup();
            for value in values {
                let path = contour(&labels, value, class == "dashed");
                let _ = write!(contours, "<path class=\"contour {class} c{}\" d=\"{path}\"/>", value % 6);
            }
        }
        format!(
            "<svg class=\"slice\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {w} {h}\" preserveAspectRatio=\"none\" \
             style=\"aspect-ratio:{:.4}\"><image href=\"{picture}\" width=\"{w}\" height=\"{h}\" preserveAspectRatio=\"none\"/>{contours}</svg>",
            escape(alternative),
            w as f64 * dx / (h as f64 * dy)
        )
    }
}

/// A slice of a volume as a picture shows it: superior and anterior are up.
fn slice(volume: &Array3<u8>, axis: usize, index: usize) -> ArrayView2<'_, u8> {
    let mut slice = volume.index_axis(Axis(axis), index);
    if axis > 0 {
        slice.invert_axis(Axis(0));
    }
    slice
}

/// Edges of the pixels that have `value` and a neighbour that does not, as the data of a path. `broken` edges are half as
/// long, which makes a dashed line whatever the order of the edges.
fn contour(labels: &ArrayView2<'_, u8>, value: u8, broken: bool) -> String {
    let (h, w) = labels.dim();
    let is_inside = |y: usize, x: usize| y < h && x < w && labels[[y, x]] == value;
    let (skip, length) = if broken { (0.25, 0.5) } else { (0.0, 1.0) };
    let mut path = String::new();
    for y in 0..=h {
        for x in 0..=w {
            if is_inside(y, x) != (y > 0 && is_inside(y - 1, x)) {
                let _ = write!(path, "M{} {y}h{length}", x as f64 + skip);
            }
            if is_inside(y, x) != (x > 0 && is_inside(y, x - 1)) {
                let _ = write!(path, "M{x} {}v{length}", y as f64 + skip);
            }
        }
    }
    path
}

/// Part of the volume that is shown: all of it if it is small enough, else the foreground and a quarter of its extent around.
fn region(
    reference: &ArrayView3<'_, u16>,
    prediction: &ArrayView3<'_, u16>,
    max_voxels: usize,
) -> [std::ops::Range<usize>; 3] {
    let shape: [usize; 3] = [0, 1, 2].map(|a| reference.shape()[a]);
    let whole = shape.map(|n| 0..n);
    if shape.iter().product::<usize>() <= max_voxels {
        return whole;
    }
    let (mut low, mut high) = (shape, [0; 3]);
    for map in [reference, prediction] {
        for ((z, y, x), _) in map.indexed_iter().filter(|(_, label)| **label > 0) {
            for (a, i) in [z, y, x].into_iter().enumerate() {
                (low[a], high[a]) = (low[a].min(i), high[a].max(i + 1));
            }
        }
    }
    if high == [0; 3] {
        return whole;
    }
    [0, 1, 2].map(|a| {
        let around = ((high[a] - low[a]) / 4).max(4);
        low[a].saturating_sub(around)..(high[a] + around).min(shape[a])
    })
}

/// Steps along the axes with which a volume has at most `max_voxels`; the finest axis is thinned first.
fn steps(shape: [usize; 3], spacing_mm: [f64; 3], max_voxels: usize) -> [usize; 3] {
    let mut steps = [1; 3];
    while (0..3).map(|a| shape[a].div_ceil(steps[a])).product::<usize>() > max_voxels {
        let finest = (0..3).filter(|&a| steps[a] < shape[a]);
        let mm = |a: usize| spacing_mm[a] * steps[a] as f64;
        let Some(axis) = finest.min_by(|&a, &b| mm(a).total_cmp(&mm(b))) else { break };
        steps[axis] += 1;
    }
    steps
}

/// Part of a volume.
fn cut<T>(mut volume: ArrayView3<'_, T>, slices: [Slice; 3]) -> ArrayView3<'_, T> {
    for (a, slice) in slices.into_iter().enumerate() {
        volume.slice_axis_inplace(Axis(a), slice);
    }
    volume
}

fn ordinal(step: usize) -> String {
    match step {
        1 => "1st".to_owned(),
        2 => "2nd".to_owned(),
        3 => "3rd".to_owned(),
        n => format!("{n}th"),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn contours_run_along_the_edges_of_pixels() {
        let labels = array![[0u8, 0, 0], [0, 2, 0]];
        let path = contour(&labels.view(), 2, false);
        let mut edges: Vec<&str> = path.split('M').skip(1).collect();
        edges.sort_unstable();
        assert_eq!(edges, ["1 1h1", "1 1v1", "1 2h1", "2 1v1"]);
        assert!(contour(&labels.view(), 2, true).contains("M1.25 1h0.5"));
        assert_eq!(contour(&labels.view(), 1, false), "");
    }

    #[test]
    fn large_volumes_are_cropped_to_their_foreground_and_thinned() {
        let mut map = Array3::<u16>::zeros((20, 100, 100));
        map[[10, 50, 60]] = 1;
        let empty = Array3::<u16>::zeros(map.raw_dim());
        assert_eq!(region(&map.view(), &empty.view(), 1000), [6..15, 46..55, 56..65]);
        assert_eq!(region(&map.view(), &empty.view(), 200_000), [0..20, 0..100, 0..100]);
        assert_eq!(region(&empty.view(), &empty.view(), 1000), [0..20, 0..100, 0..100]);
        assert_eq!(steps([20, 100, 100], [5.0, 1.0, 1.0], 50_000), [1, 2, 2]);
        assert_eq!(steps([1, 1, 1], [1.0; 3], 0), [1; 3]);
    }
}
