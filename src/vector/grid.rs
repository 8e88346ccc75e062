//! Sketches of 8 bits a value, each with a bound that holds always: a vector on a coarse grid, and how far off that is.
//! Owns their form and their bounds. Must not know SQL.

use super::{Vector, check_dims};
use crate::error::{Error, Kind, Result};

impl Vector<'_> {
    /// The step of the grid on which the values lie between `-steps` and `steps`; 0 if all of them are 0.
    fn step(self, steps: f64) -> f64 {
        let greatest = self.values().map(f64::abs).fold(0.0, f64::max);
        // 25 bits stay of the 53, so that step times code is exact for every code.
        f64::from_bits((greatest / steps).to_bits() & !0x0fff_ffff)
    }

    /// At least the length of what is left of the vector when `step` times `codes` is taken away.
    fn residual(self, step: f64, codes: impl Iterator<Item = f64>) -> f64 {
        let squared: f64 =
            self.values().zip(codes).map(|(value, code)| value - step * code).map(|rest| rest * rest).sum();
        squared.sqrt() * (1.0 + SLACK)
    }
}

/// A vector on a coarse grid, with how far from the vector the grid's point lies: a quarter of the vector's bytes.
///
/// Its blob: three little-endian `f64` (step, residual, square of the vector's length), then one `i8` a value.
/// With `c` the codes and `r` what they leave over, the vector is `step * c + r`, and `residual >= |r|`.
#[derive(Clone, Copy, Debug)]
pub struct Sketch<'a> {
    step: f64,
    residual: f64,
    squared: f64,
    codes: &'a [u8],
}

const HEADER: usize = 3;

impl<'a> Sketch<'a> {
    /// The sketch of `vector` as a blob; None if the vector holds a NaN or an infinity, which no bound holds for.
    pub fn encode(vector: Vector<'_>) -> Option<Vec<u8>> {
        let squared = vector.norm_squared();
        if !squared.is_finite() {
            return None;
        }
        let step = vector.step(f64::from(i8::MAX));
        let codes: Vec<i8> = vector.values().map(|value| nearest(value / step) as i8).collect();
        let residual = vector.residual(step, codes.iter().map(|&code| f64::from(code)));
        let header = [step, residual, squared].into_iter().flat_map(f64::to_le_bytes);
        Some(header.chain(codes.iter().map(|code| code.cast_unsigned())).collect())
    }

    /// The sketch that `blob` holds.
    ///
    /// # Errors
    /// `Kind::Data` if the blob is too short to be one.
    pub fn from_blob(blob: &'a [u8]) -> Result<Self> {
        let Some((header, codes)) = blob.split_at_checked(HEADER * size_of::<f64>()) else {
            return Err(Error::new(Kind::Data, format!("a blob of {} bytes is not a sketch", blob.len())));
        };
        let [step, residual, squared] = [0, 1, 2].map(|index| f64::from_le_bytes(header.as_chunks().0[index]));
        Ok(Sketch { step, residual, squared, codes })
    }
}

/// A vector made ready to be compared with many sketches: it lies on a grid as well, one of 16 bits a value.
#[derive(Debug)]
pub struct Probe {
    step: f64,
    residual: f64,
    squared: f64,
    codes: Vec<i16>,
}

impl Probe {
    /// Make `vector` ready.
    pub fn new(vector: Vector<'_>) -> Self {
        let step = vector.step(f64::from(i16::MAX));
        let codes: Vec<i16> = vector.values().map(|value| nearest(value / step) as i16).collect();
        let residual = vector.residual(step, codes.iter().map(|&code| f64::from(code)));
        Probe { step, residual, squared: vector.norm_squared(), codes }
    }

    /// At least what [`cosine`] answers for the two vectors; NaN if this one is not finite.
    ///
    /// # Errors
    /// `Kind::Data` if the dims differ.
    pub fn cosine_at_most(&self, sketch: Sketch<'_>) -> Result<f64> {
        let dot = self.dot_at_most(sketch)?;
        let lengths = (self.squared * sketch.squared).sqrt();
        if lengths == 0.0 {
            return Ok(0.0);
        }
        Ok((dot / lengths + SLACK).clamp(-1.0, 1.0))
    }

    /// At most what [`l2_squared`] answers for the two vectors.
    ///
    /// # Errors
    /// `Kind::Data` if the dims differ.
    pub fn l2_squared_at_least(&self, sketch: Sketch<'_>) -> Result<f64> {
        let dot = self.dot_at_most(sketch)?;
        let squares = self.squared + sketch.squared;
        Ok((squares - 2.0 * dot - SLACK * squares).max(0.0))
    }

    /// At least the dot product of the two vectors, but for rounding.
    ///
    /// With this vector `q = t d + s` and the other one `v = a c + r` (steps, codes and what they leave over):
    /// `q.v = t a (d.c) + s.(a c) + q.r`, and by Cauchy and Schwarz the last two are at most `|s| (|v| + |r|) + |q| |r|`.
    fn dot_at_most(&self, sketch: Sketch<'_>) -> Result<f64> {
        check_dims(sketch.codes.len(), self.codes.len())?;
        // Below 2^50, so the conversion is exact.
        let codes = dot_codes(&self.codes, sketch.codes) as f64;
        let left_over =
            self.residual * (sketch.squared.sqrt() + sketch.residual) + self.squared.sqrt() * sketch.residual;
        Ok(self.step * sketch.step * codes + left_over)
    }
}

/// What the bounds allow for rounding, theirs and that of the scores they bound, in parts of `|q| |v|` or `|q|² + |v|²`.
///
/// A blob in SQLite has fewer than 2^30 bytes, so a vector fewer than 2^28 values. A sum of that many rounded terms is
/// wrong by at most 2^-25 of the sum of their sizes, 2^-29 if it runs in lanes. For a residual, a square is off by three
/// roundings more and its root by half. A score takes two sums in lanes and a distance one, of at most twice
/// `|q|² + |v|²`; a bound takes as many and ten roundings of values no larger than eight times that (a residual is not
/// longer than its vector). All of it together stays below 2^-26.
/// Nothing vanishes on the way: no factor that is not 0 lies below 2^-182, so no product of three below 2^-1022.
const SLACK: f64 = 1.0 / (1 << 24) as f64;

/// Rounded half away from 0 by the cast to an integer that follows, which on any CPU takes fewer instructions.
fn nearest(value: f64) -> f64 {
    value + 0.5_f64.copysign(value)
}

/// The dot product of 16-bit codes and `i8` codes, exactly.
fn dot_codes(wide: &[i16], narrow: &[u8]) -> i64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: `dot_codes_avx2` asks nothing but this feature of the CPU.
        #[allow(unsafe_code)]
        return unsafe { dot_codes_avx2(wide, narrow) };
    }
    dot_codes_plain(wide, narrow)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dot_codes_avx2(wide: &[i16], narrow: &[u8]) -> i64 {
    dot_codes_plain(wide, narrow)
}

// Inlined into each caller, and there compiled with the caller's instructions.
#[inline(always)]
fn dot_codes_plain(wide: &[i16], narrow: &[u8]) -> i64 {
    // 512 products of 2^15 and 2^7 fill an i32, and do not overflow it: no code of a probe is -2^15.
    let sums = wide.chunks(512).zip(narrow.chunks(512)).map(|(wide, narrow)| {
        wide.iter().zip(narrow).map(|(&x, &y)| i32::from(x) * i32::from(y.cast_signed())).sum::<i32>()
    });
    sums.map(i64::from).sum()
}

#[cfg(test)]
mod tests {
    use super::super::l2_squared;
    use super::super::tests::{Blobs, blob, cosine, vector};
    use super::*;

    /// Vectors of every kind that a bound could fail on: plain, near each other, on the grid, and of every size.
    fn vectors_of_every_kind(dims: usize) -> Vec<Vec<u8>> {
        let mut blobs = Blobs(23);
        let mut plain = |size: f32| (0..dims).map(|_| blobs.value() * size).collect::<Vec<f32>>();
        let mut kinds: Vec<Vec<f32>> = Vec::new();
        for size in [1.0, 1e-3, 1e30, f32::MAX, 1e-30, f32::MIN_POSITIVE, f32::from_bits(5)] {
            let one = plain(size);
            kinds.push(one.iter().map(|value| -value).collect());
            kinds.push(one.iter().map(|value| value * (1.0 - f32::EPSILON)).collect());
            kinds.push(one.iter().map(|value| (value / size * 126.0).round() * (size / 127.0)).collect());
            // One value hides the others; half a step each, the most a code can be off.
            kinds.push((0..dims).map(|i| if i == 0 { size } else { size / 254.0 }).collect());
            kinds.push((0..dims).map(|i| if i == 0 { size } else { size / 255.0 * (i % 3) as f32 }).collect());
            kinds.push(one);
            kinds.push(vec![size; dims]);
        }
        kinds.push(vec![0.0; dims]);
        kinds.iter().map(|values| blob(values)).collect()
    }

    #[test]
    fn no_score_lies_beyond_the_bound_of_its_sketch() {
        for dims in [1, 2, 3, 16, 33, 511, 513, 1536] {
            let kinds = vectors_of_every_kind(dims);
            for query in &kinds {
                let probe = Probe::new(vector(query));
                for other in &kinds {
                    let encoded = Sketch::encode(vector(other)).unwrap();
                    let sketch = Sketch::from_blob(&encoded).unwrap();
                    let most = probe.cosine_at_most(sketch).unwrap();
                    let least = probe.l2_squared_at_least(sketch).unwrap();
                    assert!(cosine(vector(other), vector(query)).unwrap() <= most, "{dims} dims");
                    assert!(l2_squared(vector(other), vector(query)).unwrap() >= least, "{dims} dims");
                }
            }
        }
    }

    #[test]
    fn bound_of_a_sketch_is_close_to_the_score() {
        let mut blobs = Blobs(29);
        let (a, b) = (blobs.blob(1536), blobs.blob(1536));
        let encoded = Sketch::encode(vector(&a)).unwrap();
        assert_eq!(encoded.len(), 1536 + 24);
        let (probe, sketch) = (Probe::new(vector(&b)), Sketch::from_blob(&encoded).unwrap());
        let exact = cosine(vector(&a), vector(&b)).unwrap();
        assert!(probe.cosine_at_most(sketch).unwrap() - exact < 0.01);
        let exact = l2_squared(vector(&a), vector(&b)).unwrap();
        assert!(exact - probe.l2_squared_at_least(sketch).unwrap() < 0.02 * exact);
    }

    #[test]
    fn codes_are_multiplied_exactly_by_every_instruction_set() {
        for dims in [0, 1, 31, 511, 512, 513, 3072] {
            let wide = vec![i16::MAX; dims];
            let narrow = vec![i8::MIN.cast_unsigned(); dims];
            let expected = dims as i64 * i64::from(i16::MAX) * i64::from(i8::MIN);
            assert_eq!([dot_codes(&wide, &narrow), dot_codes_plain(&wide, &narrow)], [expected; 2]);
        }
    }

    #[test]
    fn vector_that_is_not_finite_has_no_sketch() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(Sketch::encode(vector(&blob(&[1.0, bad]))), None);
        }
    }

    #[test]
    fn blob_that_is_no_sketch_of_these_dims_is_refused() {
        assert_eq!(Sketch::from_blob(&[0; 23]).unwrap_err().message, "a blob of 23 bytes is not a sketch");
        let encoded = Sketch::encode(vector(&blob(&[1.0; 3]))).unwrap();
        let (probe, sketch) = (Probe::new(vector(&[0; 16])), Sketch::from_blob(&encoded).unwrap());
        for bound in [Probe::cosine_at_most, Probe::l2_squared_at_least] {
            let error = bound(&probe, sketch).unwrap_err();
            assert_eq!((error.kind, &*error.message), (Kind::Data, "vectors of 3 and 4 dims cannot be compared"));
        }
    }
}
