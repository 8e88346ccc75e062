//! A fixed random rotation of `f32` vectors: signs, and fast Walsh-Hadamard transforms. Owns the seed. Must not know what it
//! is for.
//!
//! A transform takes a power of two, and dims are what they are: the largest power of two that fits is transformed at the
//! front, and once more at the back, with new random signs each time. Between two rounds the halves are riffled like cards,
//! so that front and back mix where they hardly overlap, as for 2047 dims. Everything is orthogonal, and dims stay dims.

const ROUNDS: u64 = 3;
const SEED: u64 = 0x77_61_6c_70_6f_6f_6c; // any number: sketches in files were made with this one

/// Rotate in place. Equal on every machine to the last bit: only sums and products in one fixed order.
pub fn rotate(values: &mut [f32]) {
    let mut riffled = vec![0.0; values.len()];
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: `rotate_avx2` asks nothing but this feature of the CPU.
        #[allow(unsafe_code)]
        return unsafe { rotate_avx2(values, &mut riffled) };
    }
    rotate_plain(values, &mut riffled);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn rotate_avx2(values: &mut [f32], riffled: &mut [f32]) {
    rotate_plain(values, riffled);
}

// Inlined into each caller, and there compiled with the caller's instructions.
#[inline(always)]
fn rotate_plain(values: &mut [f32], riffled: &mut [f32]) {
    let dims = values.len();
    if dims == 0 {
        return;
    }
    let power = 1 << dims.ilog2();
    for round in 0..ROUNDS {
        if round > 0 {
            riffle(values, riffled);
        }
        transform(&mut values[..power], 2 * round);
        if power < dims {
            transform(&mut values[dims - power..], 2 * round + 1);
        }
    }
}

/// The two halves, one value of each in turn.
#[inline(always)]
fn riffle(values: &mut [f32], riffled: &mut [f32]) {
    let (front, back) = values.split_at(values.len().div_ceil(2));
    let (pairs, last) = riffled.as_chunks_mut::<2>();
    for ((pair, &x), &y) in pairs.iter_mut().zip(front).zip(back) {
        *pair = [x, y];
    }
    if let ([last], Some(&x)) = (last, front.last()) {
        *last = x;
    }
    values.copy_from_slice(riffled);
}

/// Random signs, then the transform, at the length that it had.
#[inline(always)]
fn transform(values: &mut [f32], stream: u64) {
    let scale = 1.0 / (values.len() as f32).sqrt();
    for (part, values) in values.chunks_mut(32).enumerate() {
        let signs = random(stream << 32 | part as u64);
        for (index, value) in values.iter_mut().enumerate() {
            let sign = (signs << (31 - index as u32)) & 0x8000_0000;
            *value = f32::from_bits((*value * scale).to_bits() ^ sign);
        }
    }
    let mut half = values.len() / 2;
    while half >= EIGHT {
        for pair in values.chunks_exact_mut(2 * half) {
            let (front, back) = pair.split_at_mut(half);
            for (x, y) in front.iter_mut().zip(back) {
                (*x, *y) = (*x + *y, *x - *y);
            }
        }
        half /= 2;
    }
    let (eights, few) = values.as_chunks_mut::<EIGHT>();
    for eight in eights {
        *eight = transform_within::<2, EIGHT>(*eight);
        *eight = transform_within::<1, EIGHT>(*eight);
        *eight = transform_within::<0, EIGHT>(*eight);
    }
    // Fewer than eight are all there is.
    for level in (0..few.len().max(1).ilog2()).rev() {
        for index in (0..few.len()).filter(|index| index >> level & 1 == 0) {
            let (x, y) = (few[index], few[index + (1 << level)]);
            (few[index], few[index + (1 << level)]) = (x + y, x - y);
        }
    }
}

/// The values of a register: the levels within it need no memory.
const EIGHT: usize = 8;

/// One level: values whose index differs in this bit become their sum and their difference.
#[inline(always)]
fn transform_within<const BIT: usize, const N: usize>(values: [f32; N]) -> [f32; N] {
    let mut next = [0.0; N];
    for (index, next) in next.iter_mut().enumerate() {
        let other = values[index ^ (1 << BIT)];
        *next = if index >> BIT & 1 == 0 { values[index] + other } else { other - values[index] };
    }
    next
}

/// 32 random bits (splitmix64, Steele and others 2014).
fn random(index: u64) -> u32 {
    let mut z = (SEED ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 32) as u32 ^ z as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    }

    fn rotated_unit(dims: usize, index: usize) -> Vec<f32> {
        let mut values = vec![0.0; dims];
        values[index] = 1.0;
        rotate(&mut values);
        values
    }

    #[test]
    fn rotation_keeps_lengths_and_angles_for_every_number_of_dims() {
        for dims in (1..=20).chain([33, 100, 127]) {
            let axes: Vec<Vec<f32>> = (0..dims).map(|index| rotated_unit(dims, index)).collect();
            for (i, a) in axes.iter().enumerate() {
                for (j, b) in axes.iter().enumerate() {
                    let expected = f64::from(u8::from(i == j));
                    assert!((dot(a, b) - expected).abs() < 1e-5, "{dims} dims, axes {i} and {j}");
                }
            }
        }
    }

    #[test]
    fn an_axis_is_spread_over_all_dims() {
        for dims in [100, 384, 768, 1023, 1025, 1536, 2047, 3072] {
            for index in [0, dims / 2, dims - 1] {
                let axis = rotated_unit(dims, index);
                assert!((dot(&axis, &axis) - 1.0).abs() < 1e-5);
                for quarter in axis.chunks_exact(dims / 4) {
                    let share = dot(quarter, quarter) * dims as f64 / quarter.len() as f64;
                    assert!((0.2..3.0).contains(&share), "{dims} dims, axis {index}: {share}");
                }
                let greatest = axis.iter().map(|value| value.abs()).fold(0.0, f32::max);
                assert!(f64::from(greatest) < 7.0 / (dims as f64).sqrt(), "{dims} dims, axis {index}: {greatest}");
            }
        }
    }

    #[test]
    fn every_instruction_set_rotates_alike() {
        for dims in [1, 7, 64, 1000, 1536] {
            let mut fast: Vec<f32> = (0..dims).map(|i| ((i * 31 % 17) as f32 - 8.0) / 3.0).collect();
            let mut plain = fast.clone();
            rotate(&mut fast);
            rotate_plain(&mut plain, &mut vec![0.0; dims]);
            assert_eq!(fast, plain);
        }
    }
}
