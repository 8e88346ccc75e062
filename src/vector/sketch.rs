//! Sketches of 4 bits a value, and the bounds on scores that follow from them. Owns their form. Must not know SQL.
//!
//! A vector `v` is taken from the centroid `c`, rotated and put on a grid of 16 steps a value (RaBitQ: Gao and Long,
//! <https://arxiv.org/abs/2409.09913>). With `u` the direction of `v - c` and `x` its codes, `x` is `u` but for an angle
//! of which the sketch knows the tangent. So for a query `q`
//!
//! ```text
//! <u, q> = <x, q> / <x, u>  up to  tangent * <e, q>,  with e the direction of what x has and u has not
//! ```
//!
//! and `e` points anywhere: rotations take it to all directions alike, so that `<e, q>` is beyond `DEVIATIONS` times
//! `|q| / sqrt(dims - 1)` with a probability below 2 exp(-DEVIATIONS² / 2), 3e-8 for each record. That holds for vectors that
//! were not made with the seed in mind. The upper two bits of each code are codes as well, coarser ones with a tangent of
//! their own. They lie apart, in a plane before that of the lower bits: a scan looks at the second for few. For few dims the same number is above `|q|`: there the bound is Cauchy's and Schwarz's,
//! and certain. The query's own codes, of 8 bits, are accounted for alike, and rounding on top.

use super::planes::{Factors, ROW_ALIGN};
use super::rotation::rotate;
use super::{Vector, check_dims};
use crate::error::{Error, Kind, Result};

/// How many standard deviations a bound allows for.
const DEVIATIONS: f64 = 6.0;
/// What it allows for rounding, in parts of `|q - c| |v - c|`. A rotation rounds 33 times at most, each by 2^-24 of the length;
/// two of them and a dozen roundings in the header stay below 2^-17.
const ROUNDING: f64 = 1.0 / (1 << 16) as f64;
/// The same for what is kept in `f32` beside the codes.
const ROUNDING_F32: f64 = 1.0 / (1 << 20) as f64;

const LANES: usize = 16;
const FIELDS: usize = 5;
const MIDDLE: f64 = 7.5; // code k stands for k - 7.5
const COARSE_MIDDLE: f64 = 1.5; // its upper two bits alone for k - 1.5

/// The bytes of a header in a blob: five `f32`, and the upper halves of two more.
const HEADER: usize = FIELDS * 4 + 4;

/// What a sketch says beside its codes. Its blob, little-endian: these, the last two cut to their upper halves; then a plane of
/// the upper two bits of each code, and one of the lower two. A byte of a plane has a code of each quarter of the rotated
/// values, that of the first quarter in its lowest bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Header {
    /// `|v|`.
    norm: f32,
    /// `|v - c|`.
    distance: f32,
    /// `|v - c| / <x, u>`.
    factor: f32,
    /// `|v - c|` times the tangent of the angle between `x` and `u`; infinite where `f32` cannot hold the others.
    error: f32,
    /// `<v - c, c> / |c|`.
    along: f32,
    /// As `factor`, for the upper bits alone, but for rounding.
    coarse_factor: f32,
    /// As `error`, with what that rounding costs.
    coarse_error: f32,
}

impl Header {
    /// Whether the vector has no length, so that each score of it is known.
    pub fn is_zero(&self) -> bool {
        self.norm == 0.0
    }
}

/// The bytes of a plane.
fn width(dims: usize) -> usize {
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
struct Centred {
    norm: f64,
    distance: f64,
    along: f64,
    centroid_norm: f64,
    /// Of length 1, or 0 where the vector is the centroid.
    direction: Vec<f32>,
}

impl Centred {
    /// None if the vector is not finite.
    fn new(vector: Vector<'_>, centroid: Option<Vector<'_>>) -> Result<Option<Centred>> {
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
}

impl Centred {
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

/// How far `<e, q>` may go, in parts of `|q|`.
fn spread(dims: usize) -> f64 {
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

/// What a scan has found out about a sketch: the dot products of its planes with the query's codes.
#[derive(Clone, Copy, Debug)]
pub enum Dots {
    /// Of the plane of upper bits alone.
    Coarse(i64),
    /// Of both, upper bits first.
    Fine(i64, i64),
}

/// A query made ready to be compared with many sketches.
#[derive(Debug)]
pub struct Probe {
    factors: Factors,
    /// The sum of the query's codes.
    sum: f64,
    /// The query's direction from the centroid is this times its codes, and `residual` of its length beside it.
    step: f64,
    residual: f64,
    /// How far `<e, q>` may go, in parts of `|q|`.
    spread: f64,
    norm: f64,
    distance: f64,
    centroid_norm: f64,
    /// `<q, c>`.
    centroid_dot: f64,
}

/// What is known of a number: where it lies surely, and where probably.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// At most the number.
    pub lower: f64,
    /// The best guess.
    pub estimate: f64,
    /// At least the number.
    pub upper: f64,
}

impl Probe {
    /// Make `query` ready; None if it holds a NaN or an infinity.
    ///
    /// # Errors
    /// `Kind::Data` if the dims differ.
    pub fn new(query: Vector<'_>, centroid: Option<Vector<'_>>) -> Result<Option<Probe>> {
        let Some(mut centred) = Centred::new(query, centroid)? else { return Ok(None) };
        rotate(&mut centred.direction);
        let values = &centred.direction;
        let greatest = values.iter().fold(0.0_f32, |greatest, value| greatest.max(value.abs()));
        let inverse = if greatest > 0.0 { 127.0 / greatest } else { 0.0 };
        let codes: Vec<i8> = values.iter().map(|value| (value * inverse).round() as i8).collect();
        let pairs = || values.iter().zip(&codes).map(|(&value, &code)| (f64::from(value), f64::from(code)));
        let (own, met) =
            pairs().fold((0.0, 0.0), |(own, met), (value, code)| (own + value * value, met + value * code));
        // With this step, what the codes leave over stands upright on the query.
        let step = if met > 0.0 { own / met } else { 0.0 };
        let rest: f64 = pairs().map(|(value, code)| value - step * code).map(|rest| rest * rest).sum();
        let dims = values.len();
        let mut quarters = codes.chunks(width(dims).max(1));
        let factors = std::array::from_fn(|_| {
            let mut quarter = quarters.next().unwrap_or_default().to_vec();
            quarter.resize(padded_width(dims), 0);
            quarter
        });
        Ok(Some(Probe {
            factors,
            sum: codes.iter().map(|&code| f64::from(code)).sum(),
            step,
            residual: rest.sqrt(),
            spread: spread(dims),
            norm: centred.norm,
            distance: centred.distance,
            centroid_norm: centred.centroid_norm,
            // Not from `along`: what is small beside the centroid is lost there.
            centroid_dot: centroid.map_or(Ok(0.0), |centroid| super::dot(query, centroid))?,
        }))
    }

    /// What rows of codes are multiplied with.
    pub fn factors(&self) -> &Factors {
        &self.factors
    }

    /// `<q - c, v - c>`, and how far off it may be.
    #[inline(always)]
    fn centred_dot(&self, header: &Header, codes: Dots) -> (f64, f64) {
        let (factor, error, met) = match codes {
            Dots::Coarse(high) => (header.coarse_factor, header.coarse_error, high as f64 - COARSE_MIDDLE * self.sum),
            Dots::Fine(high, low) => (header.factor, header.error, (4 * high + low) as f64 - MIDDLE * self.sum),
        };
        let estimate = self.distance * f64::from(factor) * self.step * met;
        let (distance, error) = (f64::from(header.distance), f64::from(error));
        let off = self.spread * (error + self.residual * (distance + error)) + ROUNDING * (distance + error);
        (estimate, self.distance * off)
    }

    /// The dot product of the two vectors.
    #[inline(always)]
    pub fn dot(&self, header: &Header, codes: Dots) -> Bounds {
        if header.error == f32::INFINITY {
            return Bounds { lower: f64::NEG_INFINITY, estimate: 0.0, upper: f64::INFINITY };
        }
        let (centred, off) = self.centred_dot(header, codes);
        let estimate = centred + self.centroid_dot + self.centroid_norm * f64::from(header.along);
        let centroid_sizes = (f64::from(header.distance) + self.norm * 1e-6) * self.centroid_norm;
        let off = off + ROUNDING_F32 * centroid_sizes;
        Bounds { lower: estimate - off, estimate, upper: estimate + off }
    }

    /// The cosine of the angle between the two; of vectors with a length.
    #[inline(always)]
    pub fn cosine(&self, header: &Header, codes: Dots) -> Bounds {
        let dot = self.dot(header, codes);
        let scale = 1.0 / (self.norm * f64::from(header.norm));
        Bounds {
            lower: (dot.lower * scale - ROUNDING_F32).max(-1.0),
            estimate: dot.estimate * scale,
            upper: (dot.upper * scale + ROUNDING_F32).min(1.0),
        }
    }

    /// The square of their distance.
    #[inline(always)]
    pub fn l2_squared(&self, header: &Header, codes: Dots) -> Bounds {
        if header.error == f32::INFINITY {
            return Bounds { lower: 0.0, estimate: 0.0, upper: f64::INFINITY };
        }
        let (dot, off) = self.centred_dot(header, codes);
        let squares = self.distance * self.distance + f64::from(header.distance) * f64::from(header.distance);
        let (estimate, off) = (squares - 2.0 * dot, 2.0 * off + ROUNDING_F32 * squares);
        Bounds { lower: (estimate - off).max(0.0), estimate: estimate.max(0.0), upper: (estimate + off).max(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::planes::dots;
    use super::super::tests::{Blobs, blob, cosine, vector};
    use super::super::{dot, l2_squared};
    use super::*;

    fn gaussian(blobs: &mut Blobs) -> f32 {
        (0..12).map(|_| blobs.value()).sum::<f32>() / 2.0
    }

    /// Vectors of every kind that a bound could fail on.
    fn hostile(dims: usize, each: usize) -> Vec<Vec<u8>> {
        let mut blobs = Blobs(31 + dims as u64);
        let mut made: Vec<Vec<f32>> = Vec::new();
        let centre: Vec<f32> = (0..dims).map(|_| gaussian(&mut blobs)).collect();
        for n in 0..each {
            let plain: Vec<f32> = (0..dims).map(|_| gaussian(&mut blobs)).collect();
            let at = |i: usize| n * 7919 % dims == i;
            made.push(plain.clone());
            made.push(centre.iter().zip(&plain).map(|(c, x)| c + 0.3 * x).collect()); // a cluster
            made.push(centre.iter().zip(&plain).map(|(c, x)| c + 1e-4 * x).collect()); // a dense one
            made.push((0..dims).map(|i| if at(i) { 1.0 } else { 0.0 }).collect()); // one axis
            made.push((0..dims).map(|i| if i % 29 == n % 29 { plain[i] } else { 0.0 }).collect()); // sparse
            made.push((0..dims).map(|i| if (i >> (n % 11)) & 1 == 0 { 1.0 } else { -1.0 }).collect()); // a Walsh function
            made.push(centre.iter().map(|x| x * (n as f32 - 2.0)).collect()); // parallel, opposite, zero
            let size = [f32::MAX / 8.0, 1e30, 1e-30, f32::MIN_POSITIVE, 1e-44][n % 5];
            made.push(plain.iter().map(|x| x * size).collect());
            made.push(vec![[3e38, 1.0, 1e-38][n % 3]; dims]); // constant
        }
        made.iter().map(|values| blob(values)).collect()
    }

    /// The header and the dot products of the codes, as a scan has them.
    fn compare(sketch: &[u8], probe: &Probe, dims: usize) -> (Header, [Dots; 2]) {
        let (header, planes) = parse(sketch, dims).unwrap();
        let [high, low] = planes.map(|plane| {
            let mut row = plane.to_vec();
            row.resize(padded_width(dims), 0);
            let mut found = Vec::new();
            dots(&row, &[0], probe.factors(), &mut found);
            found[0]
        });
        (header, [Dots::Coarse(high), Dots::Fine(high, low)])
    }

    fn holds(bounds: Bounds, exact: f64) -> bool {
        bounds.lower <= exact && exact <= bounds.upper
    }

    fn check_bounds(dims: usize, each: usize) -> f64 {
        let vectors = hostile(dims, each);
        let mut furthest = 0.0_f64;
        for centroid in [None, Some(&vectors[1]), Some(&vectors[7])] {
            let centroid = centroid.map(|blob| vector(blob));
            let sketches: Vec<Vec<u8>> =
                vectors.iter().map(|blob| encode(vector(blob), centroid).unwrap().unwrap()).collect();
            for query in &vectors {
                let query = vector(query);
                let probe = Probe::new(query, centroid).unwrap().unwrap();
                for (other, sketch) in vectors.iter().zip(&sketches) {
                    let other = vector(other);
                    let (header, codes) = compare(sketch, &probe, dims);
                    let (exact, far) = (dot(other, query).unwrap(), l2_squared(other, query).unwrap());
                    for codes in codes {
                        let bounds = probe.dot(&header, codes);
                        assert!(holds(bounds, exact), "{dims} dims: {exact:e} {bounds:?}");
                        assert!(holds(probe.l2_squared(&header, codes), far), "{dims} dims");
                        if probe.norm > 0.0 && !header.is_zero() {
                            assert!(holds(probe.cosine(&header, codes), cosine(other, query).unwrap()), "{dims} dims");
                        }
                        if header.error.is_finite() && header.error > 1e-4 * header.distance && probe.distance > 0.0 {
                            furthest = furthest.max((exact - bounds.estimate).abs() / (bounds.upper - bounds.estimate));
                        }
                    }
                }
            }
        }
        furthest * DEVIATIONS
    }

    #[test]
    fn no_score_lies_beyond_the_bounds_of_its_sketch() {
        for dims in (1..=20).chain([33, 38, 50, 64, 100]) {
            check_bounds(dims, 4);
        }
        for dims in [384, 1536] {
            check_bounds(dims, 1);
        }
    }

    /// 10 million pairs; `cargo test --release --lib -- --ignored millions`.
    #[test]
    #[ignore = "takes minutes"]
    fn no_score_of_millions_lies_beyond_the_bounds_of_its_sketch() {
        for dims in [38, 45, 64, 100, 129, 255, 384, 768, 1023, 1025, 1536, 2047, 3072] {
            println!("{dims} dims: {:.2} deviations", check_bounds(dims, 60));
        }
    }

    #[test]
    fn bounds_are_close_and_a_sketch_has_half_a_byte_for_a_value() {
        let mut blobs = Blobs(29);
        let (a, b) = (blobs.blob(1536), blobs.blob(1536));
        let sketch = encode(vector(&a), None).unwrap().unwrap();
        assert_eq!(sketch.len(), 768 + 24);
        let probe = Probe::new(vector(&b), None).unwrap().unwrap();
        let (header, codes) = compare(&sketch, &probe, 1536);
        let exact = cosine(vector(&a), vector(&b)).unwrap();
        for (codes, most) in codes.into_iter().zip([0.18, 0.05]) {
            let bounds = probe.cosine(&header, codes);
            assert!(bounds.upper - bounds.lower < most, "{bounds:?}");
            assert!((exact - bounds.estimate).abs() < most / 3.0);
        }
    }

    #[test]
    fn vector_that_is_not_finite_has_no_sketch_and_probes_nothing() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let blob = blob(&[1.0, bad]);
            assert_eq!(encode(vector(&blob), None).unwrap(), None);
            assert!(Probe::new(vector(&blob), None).unwrap().is_none());
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
