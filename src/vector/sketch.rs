//! Sketches of vectors, of 4 bits a value. Owns their form and how they are made. Must not know SQL, nor queries.
//!
//! A vector `v` is taken from the centroid `c`, rotated and put on a grid of 16 steps a value (RaBitQ: Gao and Long,
//! <https://arxiv.org/abs/2409.09913>). With `u` the direction of `v - c` and `x` its codes, `x` is `u` but for an angle
//! of which the sketch knows the tangent; `probe` has what follows from it. The upper two bits of each code are codes as
//! well, coarser ones with a tangent of their own. They lie apart, in a plane before that of the lower bits: a scan looks
//! at the second for few.

use super::planes::ROW_ALIGN;
use super::rotation::rotate;
use super::{Vector, check_dims};
use crate::error::{Error, Kind, Result};

/// How many standard deviations a bound allows for (`probe`).
pub(super) const DEVIATIONS: f64 = 6.0;
/// What it allows for the rounding of what is kept in `f32` beside the codes.
pub(super) const ROUNDING_F32: f64 = 1.0 / (1 << 20) as f64;

const LANES: usize = 16;
const FIELDS: usize = 5;
pub(super) const MIDDLE: f64 = 7.5; // code k stands for k - 7.5
pub(super) const COARSE_MIDDLE: f64 = 1.5; // its upper two bits alone for k - 1.5

/// The bytes of a header in a blob: five `f32`, and the upper halves of two more.
const HEADER: usize = FIELDS * 4 + 4;

/// What a sketch says beside its codes. Its blob, little-endian: these, the last two cut to their upper halves; then a plane of
/// the upper two bits of each code, and one of the lower two. A byte of a plane has a code of each quarter of the rotated
/// values, that of the first quarter in its lowest bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Header {
    /// `|v|`.
    pub(super) norm: f32,
    /// `|v - c|`.
    pub(super) distance: f32,
    /// `|v - c| / <x, u>`.
    pub(super) factor: f32,
    /// `|v - c|` times the tangent of the angle between `x` and `u`; infinite where `f32` cannot hold the others.
    pub(super) error: f32,
    /// `<v - c, c> / |c|`.
    pub(super) along: f32,
    /// As `factor`, for the upper bits alone, but for rounding.
    pub(super) coarse_factor: f32,
    /// As `error`, with what that rounding costs.
    pub(super) coarse_error: f32,
}

impl Header {
    /// Whether the vector has no length, so that each score of it is known.
    pub fn is_zero(&self) -> bool {
        self.norm == 0.0
    }
}

/// The bytes of a plane.
pub(super) fn width(dims: usize) -> usize {
    dims.div_ceil(4)
}

/// The bytes of a plane in memory, where rows are padded with zeros.
pub fn padded_width(dims: usize) -> usize {
    width(dims).next_multiple_of(ROW_ALIGN)
}

/// The parts of a sketch's blob: its header and its two planes.
///
/// # Errors
/// `Kind::Data` if it is no sketch of a vector of these dims.
pub fn parse(blob: &[u8], dims: usize) -> Result<(Header, [&[u8]; 2])> {
    let Some((header, planes)) =
        blob.split_first_chunk::<HEADER>().filter(|(_, planes)| planes.len() == 2 * width(dims))
    else {
        let text = format!("a sketch of {} bytes is not one of a vector of {dims} dims", blob.len());
        return Err(Error::new(Kind::Data, text));
    };
    let whole = |at: usize| f32::from_le_bytes(header.as_chunks().0[at]);
    let upper = |at: usize| f32::from_bits(u32::from(u16::from_le_bytes(header.as_chunks().0[at])) << 16);
    let [norm, distance, factor, error, along] = [0, 1, 2, 3, 4].map(whole);
    let [coarse_factor, coarse_error] = [2 * FIELDS, 2 * FIELDS + 1].map(upper);
    let (high, low) = planes.split_at(width(dims));
    Ok((Header { norm, distance, factor, error, along, coarse_factor, coarse_error }, [high, low]))
}

/// The sketch of `vector` as a blob; None if the vector holds a NaN or an infinity. `centroid` is one for all vectors that
/// are to be searched together.
///
/// # Errors
/// `Kind::Data` if the dims differ.
pub fn encode(vector: Vector<'_>, centroid: Option<Vector<'_>>) -> Result<Option<Vec<u8>>> {
    let Some(mut centred) = Centred::new(vector, centroid)? else { return Ok(None) };
    rotate(&mut centred.direction);
    let codes = on_best_grid(&centred.direction);
    let header = centred.header(&codes);
    let fields = [header.norm, header.distance, header.factor, header.error, header.along];
    let mut blob: Vec<u8> = Vec::with_capacity(HEADER + 2 * width(codes.len()));
    blob.extend(fields.into_iter().flat_map(f32::to_le_bytes));
    blob.extend(
        [header.coarse_factor, header.coarse_error].into_iter().flat_map(|field| upper_half(field).to_le_bytes()),
    );
    for shift in [2, 0] {
        let start = blob.len();
        blob.resize(start + width(codes.len()), 0);
        for (quarter, codes) in codes.chunks(width(codes.len()).max(1)).enumerate() {
            for (byte, code) in blob[start..].iter_mut().zip(codes) {
                *byte |= (code >> shift & 3) << (2 * quarter);
            }
        }
    }
    Ok(Some(blob))
}

/// The upper half of a float whose lower half is 0.
fn upper_half(field: f32) -> u16 {
    (field.to_bits() >> 16) as u16
}

/// The float cut to its upper half, towards 0.
fn cut(field: f32) -> f32 {
    f32::from_bits(field.to_bits() & 0xffff_0000)
}

/// A vector as seen from the centroid.
pub(super) struct Centred {
    pub norm: f64,
    pub distance: f64,
    along: f64,
    pub centroid_norm: f64,
    /// Of length 1, or 0 where the vector is the centroid.
    pub direction: Vec<f32>,
}

impl Centred {
    /// None if the vector is not finite.
    pub fn new(vector: Vector<'_>, centroid: Option<Vector<'_>>) -> Result<Option<Centred>> {
        let norm = vector.norm_squared().sqrt();
        if !norm.is_finite() {
            return Ok(None);
        }
        let (mut squared, mut dot, mut centroid_norm) = (norm * norm, 0.0, 0.0);
        let mut values: Vec<f64> = vector.values().collect();
        if let Some(centroid) = centroid {
            check_dims(vector.dims(), centroid.dims())?;
            centroid_norm = centroid.norm_squared().sqrt();
            let centroid: Vec<f64> = centroid.values().collect();
            values.iter_mut().zip(&centroid).for_each(|(value, c)| *value -= c);
            [squared, dot] = sums(&values, &centroid, |value, c| [value * value, value * c]);
        }
        let distance = squared.sqrt();
        let scale = if distance == 0.0 { 0.0 } else { 1.0 / distance };
        let along = if centroid_norm == 0.0 { 0.0 } else { dot / centroid_norm };
        let direction = values.into_iter().map(|value| (value * scale) as f32).collect();
        Ok(Some(Centred { norm, distance, along, centroid_norm, direction }))
    }

    /// What a sketch says beside these codes.
    fn header(&self, codes: &[u8]) -> Header {
        let mut header = Header { norm: self.norm as f32, along: self.along as f32, ..Header::default() };
        if self.distance > 0.0 {
            let fine = Fit::of(&self.direction, codes, |code| f64::from(code) - MIDDLE);
            header.distance = self.distance as f32;
            header.factor = (self.distance * fine.factor) as f32;
            header.error = (self.distance * fine.tangent * (1.0 + ROUNDING_F32)) as f32;
            let coarse = Fit::of(&self.direction, codes, |code| f64::from(code >> 2) - COARSE_MIDDLE);
            header.coarse_factor = cut((self.distance * coarse.factor) as f32);
            // The estimate is smaller by this part, which a bound that is `spread` times the error must cover.
            let short = 1.0 - f64::from(header.coarse_factor) / (self.distance * coarse.factor);
            let error = self.distance * (coarse.tangent + short.abs() / spread(codes.len()));
            header.coarse_error = cut((error * (1.0 + 1.0 / 64.0)) as f32); // cutting takes less than a 128th
        }
        let holds = |field: f32, of: f64| of == 0.0 || (field.abs() >= f32::MIN_POSITIVE && field.is_finite());
        let distances = [header.distance, header.factor, header.coarse_factor];
        let are_bounds = header.error.is_finite() && header.coarse_error.is_finite();
        if are_bounds && holds(header.norm, self.norm) && distances.iter().all(|&field| holds(field, self.distance)) {
            return header;
        }
        let norm = header.norm.max(f32::MIN_POSITIVE); // not 0: that means a vector without length
        Header { norm, error: f32::INFINITY, coarse_error: f32::INFINITY, ..Header::default() }
    }
}

/// How codes `x` stand to a direction `u`.
struct Fit {
    /// `|u|² / <x, u>`.
    factor: f64,
    /// At least that of the angle between them.
    tangent: f64,
}

impl Fit {
    #[inline(always)]
    fn of(values: &[f32], codes: &[u8], x: impl Fn(u8) -> f64) -> Fit {
        let [own, met, squares] = sums(values, codes, |value, code| {
            let (value, x) = (f64::from(value), x(code));
            [value * value, value * x, x * x]
        });
        // Three sums of terms that come to 1 are wrong by 1e-13 at most, and so is what is left of them.
        let rest = (own - met * met / squares).max(0.0) + 1e-12;
        Fit { factor: own / met, tangent: (rest * squares).sqrt() / met * own.sqrt() }
    }
}

/// Several sums over two rows at once, in lanes: so they are vectorised, and their rounding grows with a sixteenth of the terms.
#[inline(always)]
fn sums<X: Copy, Y: Copy, const N: usize>(xs: &[X], ys: &[Y], terms: impl Fn(X, Y) -> [f64; N]) -> [f64; N] {
    let mut lanes = [[0.0; LANES]; N];
    let (x_chunks, x_rest) = xs.as_chunks::<LANES>();
    let (y_chunks, y_rest) = ys.as_chunks::<LANES>();
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for lane in 0..LANES {
            let terms = terms(x[lane], y[lane]);
            for (lanes, term) in lanes.iter_mut().zip(terms) {
                lanes[lane] += term;
            }
        }
    }
    for (lane, (&x, &y)) in x_rest.iter().zip(y_rest).enumerate() {
        for (lanes, term) in lanes.iter_mut().zip(terms(x, y)) {
            lanes[lane] += term;
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// How far the direction of a sketch's error may meet a query, in parts of the query's length (`probe`).
pub(super) fn spread(dims: usize) -> f64 {
    (DEVIATIONS / (dims.saturating_sub(1) as f64).sqrt()).min(1.0)
}

/// Grids that are tried, as parts of the one on which the greatest value is the last step. Gaussian values want 0.7 of it
/// at 1536 dims; cutting off the greatest costs less than coarse steps for all others.
const GRIDS: [f32; 9] = [1.0, 0.9, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52, 0.46];

fn on_best_grid(values: &[f32]) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: `on_best_grid_avx2` asks nothing but this feature of the CPU.
        #[allow(unsafe_code)]
        return unsafe { on_best_grid_avx2(values) };
    }
    on_best_grid_plain(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn on_best_grid_avx2(values: &[f32]) -> Vec<u8> {
    on_best_grid_plain(values)
}

// Inlined into each caller, and there compiled with the caller's instructions.
#[inline(always)]
fn on_best_grid_plain(values: &[f32]) -> Vec<u8> {
    let greatest = values.iter().fold(0.0_f32, |greatest, value| greatest.max(value.abs()));
    let whole = if greatest > 0.0 { 7.5 / greatest } else { 0.0 };
    let (mut best, mut best_fit) = (whole, -1.0);
    for grid in GRIDS {
        let inverse = whole / grid;
        let fit = fit(values, inverse);
        if fit > best_fit {
            (best, best_fit) = (inverse, fit);
        }
    }
    values.iter().map(|&value| code(value, best) as u8).collect()
}

/// The code of a value: a whole number from 0 to 15.
#[inline(always)]
fn code(value: f32, inverse: f32) -> f32 {
    // Of this size floats are whole numbers: adding it rounds, in fewer instructions than a cast there and back.
    const WHOLE: f32 = (1 << 23) as f32;
    (value * inverse + 7.5).clamp(0.0, 15.0) + WHOLE - WHOLE
}

/// The square of the cosine between the values and their codes, times the values' length.
#[inline(always)]
fn fit(values: &[f32], inverse: f32) -> f32 {
    let (mut met, mut squares) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let x = code(chunk[lane], inverse) - 7.5;
            met[lane] += chunk[lane] * x;
            squares[lane] += x * x;
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        let x = code(value, inverse) - 7.5;
        met[lane] += value * x;
        squares[lane] += x * x;
    }
    let (met, squares) = (met.iter().sum::<f32>(), squares.iter().sum::<f32>());
    if squares > 0.0 { met * met / squares } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Blobs, blob, vector};
    use super::*;

    #[test]
    fn sketch_has_half_a_byte_for_a_value() {
        let sketch = encode(vector(&Blobs(29).blob(1536)), None).unwrap().unwrap();
        assert_eq!(sketch.len(), 768 + 24);
    }

    #[test]
    fn vector_that_is_not_finite_has_no_sketch() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(encode(vector(&blob(&[1.0, bad])), None).unwrap(), None);
        }
    }

    #[test]
    fn blob_that_is_no_sketch_of_these_dims_is_refused() {
        let sketch = encode(vector(&blob(&[1.0; 3])), None).unwrap().unwrap();
        assert_eq!((sketch.len(), padded_width(3)), (26, 32));
        assert!(parse(&sketch, 4).is_ok()); // as long
        for (blob, dims) in [(&sketch[..], 5), (&sketch[..25], 3), (&[][..], 0)] {
            assert_eq!(parse(blob, dims).unwrap_err().kind, Kind::Data);
        }
        let error = encode(vector(&blob(&[1.0; 3])), Some(vector(&blob(&[1.0; 4])))).unwrap_err();
        assert_eq!(&*error.message, "vectors of 3 and 4 dims cannot be compared");
    }
}
