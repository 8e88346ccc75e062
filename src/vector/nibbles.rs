//! Dot products of 4-bit codes, two a byte, with 8-bit ones: the one loop that a scan of sketches spends its time in.
//! Must not know what the codes mean.

/// Rows of codes are padded to a multiple of this many bytes: an AVX2 register.
pub const ROW_ALIGN: usize = 32;

/// Bytes of a row that are summed in `i32`: 2 * 15 * 128 for each stay below 2^31.
const PART: usize = 1 << 18;

/// The codes that rows are multiplied with: `low` meets the low halves of a row's bytes, `high` the high ones.
#[derive(Debug)]
pub struct Factors {
    /// For the low halves; a multiple of `ROW_ALIGN` long.
    pub low: Vec<i8>,
    /// For the high halves; as long.
    pub high: Vec<i8>,
}

/// The dot product of each picked row with the factors, exactly; `rows` are `factors.low.len()` bytes each.
pub fn dots(rows: &[u8], picked: &[u16], factors: &Factors, dots: &mut Vec<i64>) {
    dots.clear();
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: `dots_avx2` asks nothing but this feature of the CPU.
        #[allow(unsafe_code)]
        return unsafe { dots_avx2(rows, picked, factors, dots) };
    }
    dots_plain(rows, picked, factors, dots);
}

fn row<'a>(rows: &'a [u8], index: u16, factors: &Factors) -> &'a [u8] {
    let width = factors.low.len();
    &rows[usize::from(index) * width..][..width]
}

fn dots_plain(rows: &[u8], picked: &[u16], factors: &Factors, dots: &mut Vec<i64>) {
    dots.extend(picked.iter().map(|&index| {
        let parts = row(rows, index, factors).chunks(PART).zip(factors.low.chunks(PART)).zip(factors.high.chunks(PART));
        parts.map(|((row, low), high)| i64::from(part_plain(row, low, high))).sum::<i64>()
    }));
}

fn part_plain(row: &[u8], low: &[i8], high: &[i8]) -> i32 {
    let products = row.iter().zip(low).zip(high).map(|((&codes, &low), &high)| {
        i32::from(codes & 15) * i32::from(low) + i32::from(codes >> 4) * i32::from(high)
    });
    products.sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dots_avx2(rows: &[u8], picked: &[u16], factors: &Factors, dots: &mut Vec<i64>) {
    dots.extend(picked.iter().map(|&index| {
        let parts = row(rows, index, factors).chunks(PART).zip(factors.low.chunks(PART)).zip(factors.high.chunks(PART));
        parts.map(|((row, low), high)| i64::from(part_avx2(row, low, high))).sum::<i64>()
    }));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn part_avx2(row: &[u8], low: &[i8], high: &[i8]) -> i32 {
    use std::arch::x86_64::*;

    // Four registers of bytes: sums of eight products of two, 8 * 2 * 15 * 127, stay below 2^15.
    const STEP: usize = 4 * ROW_ALIGN;
    let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut sums = _mm256_setzero_si256();
    for ((row, low), high) in row.chunks(STEP).zip(low.chunks(STEP)).zip(high.chunks(STEP)) {
        let mut short = _mm256_setzero_si256();
        let registers = row.as_chunks().0.iter().zip(low.as_chunks().0).zip(high.as_chunks().0);
        for ((row, low), high) in registers {
            let row = load(row);
            let (lows, highs) = (_mm256_and_si256(row, mask), _mm256_and_si256(_mm256_srli_epi16(row, 4), mask));
            let products = (_mm256_maddubs_epi16(lows, load(low)), _mm256_maddubs_epi16(highs, load(high)));
            short = _mm256_add_epi16(short, _mm256_add_epi16(products.0, products.1));
        }
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(short, ones));
    }
    let halves = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    let quarters = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0b01_00_11_10));
    _mm_cvtsi128_si32(_mm_add_epi32(quarters, _mm_shuffle_epi32(quarters, 0b10_11_00_01)))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn load<T>(bytes: &[T; ROW_ALIGN]) -> std::arch::x86_64::__m256i {
    const { assert!(size_of::<T>() == 1) }
    // SAFETY: the array has the 32 bytes that are read, and this load asks for no alignment.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::x86_64::_mm256_loadu_si256(bytes.as_ptr().cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_multiplied_exactly_by_every_instruction_set() {
        for width in [0, 32, 64, 96, 768, PART + 64] {
            for (codes, factor) in [(0xff, 127_i8), (0xff, -127), (0x0f, 127), (0xf0, -127), (0x5a, 3)] {
                let factors = Factors { low: vec![factor; width], high: vec![factor / 2; width] };
                let rows = vec![codes; 3 * width];
                let each = i64::from(codes & 15) * i64::from(factor) + i64::from(codes >> 4) * i64::from(factor / 2);
                let (mut fast, mut plain) = (Vec::new(), Vec::new());
                dots(&rows, &[0, 2], &factors, &mut fast);
                dots_plain(&rows, &[0, 2], &factors, &mut plain);
                assert_eq!((fast, plain), (vec![each * width as i64; 2], vec![each * width as i64; 2]));
            }
        }
    }

    #[test]
    fn each_row_meets_its_own_factors() {
        let width = 160;
        let factors = Factors {
            low: (0..width).map(|i| (i * 7 % 255 - 127) as i8).collect(),
            high: (0..width).map(|i| (i * 13 % 255 - 127) as i8).collect(),
        };
        let rows: Vec<u8> = (0..4 * width).map(|i| (i * 37 % 251) as u8).collect();
        let (mut fast, mut plain) = (Vec::new(), Vec::new());
        dots(&rows, &[3, 0, 1], &factors, &mut fast);
        dots_plain(&rows, &[3, 0, 1], &factors, &mut plain);
        assert_eq!(fast, plain);
        assert_eq!(fast.len(), 3);
    }
}
