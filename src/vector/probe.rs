//! A query, and the bounds on its scores that follow from a sketch. Must not know SQL, nor how a scan goes.
//!
//! In the terms of `sketch`, for a query `q`
//!
//! ```text
//! <u, q> = <x, q> / <x, u>  up to  tangent * <e, q>,  with e the direction of what x has and u has not
//! ```
//!
//! and `e` points anywhere: rotations take it to all directions alike, so that `<e, q>` is beyond `DEVIATIONS` times
//! `|q| / sqrt(dims - 1)` with a probability below 2 exp(-DEVIATIONS² / 2), 3e-8 for each record. That holds for vectors that
//! were not made with the seed in mind. For few dims the same number is above `|q|`: there the bound is Cauchy's and
//! Schwarz's, and certain. The query's own codes, of 8 bits, are accounted for alike, and rounding on top.

use super::Vector;
use super::planes::Factors;
use super::rotation::rotate;
use super::sketch::{COARSE_MIDDLE, Centred, Header, MIDDLE, ROUNDING_F32, padded_width, spread, width};
use crate::error::Result;

/// What a bound allows for rounding, in parts of `|q - c| |v - c|`. A rotation rounds 33 times at most, each by 2^-24 of the
/// length; two of them and a dozen roundings in the header stay below 2^-17.
const ROUNDING: f64 = 1.0 / (1 << 16) as f64;

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
    use super::super::sketch::{DEVIATIONS, encode, parse};
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
    fn bounds_are_close() {
        let mut blobs = Blobs(29);
        let (a, b) = (blobs.blob(1536), blobs.blob(1536));
        let sketch = encode(vector(&a), None).unwrap().unwrap();
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
    fn vector_that_is_not_finite_probes_nothing() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(Probe::new(vector(&blob(&[1.0, bad])), None).unwrap().is_none());
        }
    }
}
