//! Directions of a volume's axes in the scanner, and maps between arrays stored along different ones.

use std::fmt;
use std::str::FromStr;

use ndarray::{ArrayBase, Axis, Data, Dimension};
use serde::{Deserialize, Serialize};

/// Direction in which the index along each axis of a file grows, as three letters in the order of the file's axes (x, y, z of
/// an array `[z, y, x]` from last to first): `R`ight or `L`eft, `A`nterior or `P`osterior, `S`uperior or `I`nferior. In
/// `RAS`, the first index grows towards the patient's right.
///
/// ```
/// use msd_data::Orientation;
/// let orientation: Orientation = "LPS".parse()?;
/// assert_eq!(orientation.to_string(), "LPS");
/// assert!("LRS".parse::<Orientation>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Orientation {
    /// Scanner axis of each file axis: 0 for left to right, 1 for posterior to anterior, 2 for inferior to superior.
    scanner_axes: [usize; 3],
    /// True where the index grows towards right, anterior or superior.
    positive: [bool; 3],
}

/// Letters of each scanner axis: negative, positive direction.
const LETTERS: [[char; 2]; 3] = [['L', 'R'], ['P', 'A'], ['I', 'S']];

impl Orientation {
    /// Finds the orientation nearest to a matrix from voxel indices to millimetres, whose columns are the steps along the
    /// file's axes: a rotation without shear is fitted, then each axis takes the scanner axis that it follows most, the
    /// strongest first, as in nibabel's `io_orientation`. None for a matrix that is singular or holds no numbers.
    pub(crate) fn nearest(matrix: [[f64; 3]; 3]) -> Option<Self> {
        let rotation = nearest_rotation(normalized_columns(matrix)?)?;
        // Rounded, so that ties (of a rotation by 45 degrees, say) do not fall by the last bit. They fall by the columns'
        // values, not by their order, so that they fall alike however the volume is stored.
        let rounded = rotation.map(|row| row.map(|v| (v * 1e4).round() as i64));
        let column = |j: usize| [0, 1, 2].map(|i| rounded[i][j]);
        let strength = |j: usize| column(j).map(i64::abs).into_iter().max();
        let upward = |j: usize| {
            let sign = column(j).into_iter().find(|&v| v != 0).map_or(1, i64::signum);
            column(j).map(|v| v * sign)
        };
        let mut order = [0, 1, 2];
        order.sort_by_key(|&j| std::cmp::Reverse((strength(j), upward(j))));
        let mut orientation = Self { scanner_axes: [0; 3], positive: [false; 3] };
        let mut free = vec![0, 1, 2];
        for j in order {
            // The first of equals.
            let best = free.iter().copied().rev().max_by_key(|&i| rounded[i][j].abs())?;
            free.retain(|&i| i != best);
            orientation.scanner_axes[j] = best;
            orientation.positive[j] = rotation[best][j] > 0.0;
        }
        Some(orientation)
    }
}

impl Orientation {
    /// Axis of the scanner that each axis of the file follows: 0 for left-right, 1 for anterior-posterior, 2 for
    /// superior-inferior.
    pub(crate) fn scanner_axes(self) -> [usize; 3] {
        self.scanner_axes
    }

    /// Finds the most frequent orientation; of equals, the one that comes first. None if there is none.
    pub(crate) fn most_frequent(orientations: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        let mut counts: Vec<(Self, usize)> = Vec::new();
        for orientation in orientations.into_iter().flatten() {
            match counts.iter_mut().find(|(known, _)| *known == orientation) {
                Some((_, count)) => *count += 1,
                None => counts.push((orientation, 1)),
            }
        }
        // The last of equal maxima, from behind.
        counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(orientation, _)| orientation)
    }
}

impl fmt::Display for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |i: usize| LETTERS[self.scanner_axes[i]][usize::from(self.positive[i])];
        write!(f, "{}{}{}", letter(0), letter(1), letter(2))
    }
}

impl FromStr for Orientation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("orientation {text:?}; expected three letters, of R or L, A or P, S or I, such as RAS");
        let letters: [char; 3] = text.chars().collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
        let mut orientation = Self { scanner_axes: [0; 3], positive: [false; 3] };
        for (i, letter) in letters.into_iter().enumerate() {
            let axis = LETTERS.iter().position(|pair| pair.contains(&letter)).ok_or_else(wrong)?;
            if orientation.scanner_axes[..i].contains(&axis) {
                return Err(wrong());
            }
            orientation.scanner_axes[i] = axis;
            orientation.positive[i] = LETTERS[axis][1] == letter;
        }
        Ok(orientation)
    }
}

impl TryFrom<String> for Orientation {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Orientation> for String {
    fn from(orientation: Orientation) -> Self {
        orientation.to_string()
    }
}

/// Divides each column by its length; none if a length is 0 or no number.
fn normalized_columns(matrix: [[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let lengths = [0, 1, 2].map(|j| matrix.iter().map(|row| row[j] * row[j]).sum::<f64>().sqrt());
    let usable = lengths.iter().all(|length| length.is_finite() && *length > 0.0);
    usable.then(|| matrix.map(|row| [0, 1, 2].map(|j| row[j] / lengths[j])))
}

/// Computes the orthogonal factor of the polar decomposition by Newton's iteration R = (R + R^-T) / 2 (Higham, SIAM Journal on
/// Scientific and Statistical Computing 1986); none for a matrix that is nearly singular.
fn nearest_rotation(mut r: [[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    for _ in 0..50 {
        let cofactor = |i: usize, j: usize| {
            let (i1, i2, j1, j2) = ((i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3);
            r[i1][j1] * r[i2][j2] - r[i1][j2] * r[i2][j1]
        };
        let determinant: f64 = (0..3).map(|j| r[0][j] * cofactor(0, j)).sum();
        if determinant.abs() < 1e-6 {
            return None;
        }
        let next = [0, 1, 2].map(|i| [0, 1, 2].map(|j| f64::midpoint(r[i][j], cofactor(i, j) / determinant)));
        let change = (0..9).map(|k| (next[k / 3][k % 3] - r[k / 3][k % 3]).abs()).fold(0.0, f64::max);
        r = next;
        if change < 1e-14 {
            break;
        }
    }
    Some(r)
}

/// Order and direction of an array's spatial axes in terms of another array of the same voxels: axis `a` is axis `from[a]` of
/// the other array, in the opposite direction if `reversed[a]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AxisMap {
    /// Axis of the other array.
    pub from: [usize; 3],
    /// True for axes that run against the other array's.
    pub reversed: [bool; 3],
}

impl AxisMap {
    /// Map between arrays of the same axes.
    pub const IDENTITY: Self = Self { from: [0, 1, 2], reversed: [false; 3] };

    /// Map of arrays `[z, y, x]` in orientation `to` in terms of those in orientation `from`.
    pub(crate) fn between(from: Orientation, to: Orientation) -> Self {
        let mut map = Self::IDENTITY;
        for (i, axis) in to.scanner_axes.into_iter().enumerate() {
            let j = (0..3).find(|&j| from.scanner_axes[j] == axis).expect("each scanner axis occurs once");
            // File axes x, y, z are the array axes 2, 1, 0.
            map.from[2 - i] = 2 - j;
            map.reversed[2 - i] = from.positive[j] != to.positive[i];
        }
        map
    }

    /// Map of arrays in orientation `to` in terms of those in orientation `from`; the identity if either is unknown.
    pub fn between_known(from: Option<Orientation>, to: Option<Orientation>) -> Self {
        from.zip(to).map_or(Self::IDENTITY, |(from, to)| Self::between(from, to))
    }

    /// Map of an array whose axis `i` is axis `order[i]` of this one.
    pub(crate) fn reordered(self, order: [usize; 3]) -> Self {
        Self { from: order.map(|a| self.from[a]), reversed: order.map(|a| self.reversed[a]) }
    }

    /// Map in the opposite direction.
    pub(crate) fn inverse(self) -> Self {
        let mut inverse = Self::IDENTITY;
        for (a, from) in self.from.into_iter().enumerate() {
            inverse.from[from] = a;
            inverse.reversed[from] = self.reversed[a];
        }
        inverse
    }

    /// Values per axis of the other array, in the order of this array's axes.
    pub fn triple<T: Copy>(self, values: [T; 3]) -> [T; 3] {
        self.from.map(|a| values[a])
    }

    /// Applies the map to the other array's last three axes, without moving voxels.
    pub fn apply<S, D>(self, array: ArrayBase<S, D>) -> ArrayBase<S, D>
    where
        S: Data,
        D: Dimension,
    {
        let before = array.ndim() - 3;
        let mut order = array.raw_dim();
        for (i, slot) in order.as_array_view_mut().iter_mut().enumerate() {
            *slot = if i < before { i } else { before + self.from[i - before] };
        }
        let mut array = array.permuted_axes(order);
        for a in (0..3).filter(|&a| self.reversed[a]) {
            array.invert_axis(Axis(before + a));
        }
        array
    }
}

#[cfg(test)]
mod tests;
