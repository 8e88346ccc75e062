//! Dot products of 2-bit codes, four a byte, with 8-bit ones: the one loop that a scan of sketches spends its time in, most of
//! it waiting for memory. Must not know what the codes mean.

/// Rows of codes are padded to a multiple of this many bytes: an AVX2 register.
pub const ROW_ALIGN: usize = 32;

/// Bytes of a row that are summed in `i32`: 4 * 3 * 128 for each stay below 2^31.
const PART: usize = 1 << 18;

/// The codes that rows are multiplied with: the first ones meet the lowest two bits of a row's bytes, the last ones the
/// highest two. All four are as long as a row.
pub type Factors = [Vec<i8>; 4];

/// The dot product of each picked row with the factors, exactly; `rows` are as long as the factors each.
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
    let width = factors[0].len();
    &rows[usize::from(index) * width..][..width]
}

fn dots_plain(rows: &[u8], picked: &[u16], factors: &Factors, dots: &mut Vec<i64>) {
    dots.extend(picked.iter().map(|&index| {
        let parts = row(rows, index, factors).chunks(PART).enumerate().map(|(at, codes)| {
            let factors = factors.each_ref().map(|factors| &factors[at * PART..][..codes.len()]);
            i64::from(part_plain(codes, factors))
        });
        parts.sum::<i64>()
    }));
}

fn part_plain(row: &[u8], [a, b, c, d]: [&[i8]; 4]) -> i32 {
    let code = |codes: u8, shift: u32| i32::from(codes >> shift & 3);
    let products = row.iter().zip(a).zip(b).zip(c).zip(d).map(|((((&codes, &a), &b), &c), &d)| {
        code(codes, 0) * i32::from(a)
            + code(codes, 2) * i32::from(b)
            + code(codes, 4) * i32::from(c)
            + code(codes, 6) * i32::from(d)
    });
    products.sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dots_avx2(rows: &[u8], picked: &[u16], factors: &Factors, dots: &mut Vec<i64>) {
    let [a, b, c, d] = factors;
    let registers = [a.as_chunks().0, b.as_chunks().0, c.as_chunks().0, d.as_chunks().0];
    for (at, &index) in picked.iter().enumerate() {
        if let Some(&later) = picked.get(at + AHEAD) {
            let row = row(rows, later, factors);
            let mut byte = 0;
            while byte < row.len() {
                prefetch(&row[byte]);
                byte += 64; // a line of the cache
            }
        }
        let row = row(rows, index, factors).as_chunks().0;
        dots.push(row_avx2(row, registers));
    }
}

/// How many rows ahead the memory is asked for the next: by itself the CPU asks for no more than the page it is in.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8;

#[cfg(target_arch = "x86_64")]
fn prefetch(byte: &u8) {
    // SAFETY: a prefetch reads nothing, and the address is that of a byte of ours.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(byte).cast());
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn row_avx2(row: &[[u8; ROW_ALIGN]], [a, b, c, d]: [&[[i8; ROW_ALIGN]]; 4]) -> i64 {
    use std::arch::x86_64::*;

    // Eight registers of bytes: sums of 32 products of two, 32 * 2 * 3 * 127, stay below 2^15.
    const STEP: usize = 8;
    let (mask, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
    let mut whole = 0;
    let length = row.len();
    let (a, b, c, d) = (&a[..length], &b[..length], &c[..length], &d[..length]); // one look at the bounds for all
    for start in (0..row.len()).step_by(PART / ROW_ALIGN) {
        let mut sums = _mm256_setzero_si256();
        let end = row.len().min(start + PART / ROW_ALIGN);
        for start in (start..end).step_by(STEP) {
            let mut short = _mm256_setzero_si256();
            for at in start..end.min(start + STEP) {
                let row = load(&row[at]);
                let low = _mm256_add_epi16(
                    _mm256_maddubs_epi16(_mm256_and_si256(row, mask), load(&a[at])),
                    _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(row, 2), mask), load(&b[at])),
                );
                let high = _mm256_add_epi16(
                    _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(row, 4), mask), load(&c[at])),
                    _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(row, 6), mask), load(&d[at])),
                );
                short = _mm256_add_epi16(short, _mm256_add_epi16(low, high));
            }
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(short, ones));
        }
        let halves = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        let quarters = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0b01_00_11_10));
        let all = _mm_add_epi32(quarters, _mm_shuffle_epi32(quarters, 0b10_11_00_01));
        whole += i64::from(_mm_cvtsi128_si32(all));
    }
    whole
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
        for width in [0, 32, 64, 96, 384, 768, PART + 64] {
            for (codes, factor) in [(0xff, 127_i8), (0xff, -127), (0b00_01_10_11, 127), (0b11_10_01_00, -127)] {
                let factors = [factor, factor / 2, factor / 3, factor].map(|factor| vec![factor; width]);
                let rows = vec![codes; 3 * width];
                let code = |shift: u32| i64::from(codes >> shift & 3);
                let each: i64 =
                    (0..4).map(|at| code(2 * at as u32) * factors[at].first().map_or(0, |&x| i64::from(x))).sum();
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
        let factors = [7, 13, 29, 31].map(|by| (0..width).map(|i| (i * by % 255 - 127) as i8).collect::<Vec<_>>());
        let rows: Vec<u8> = (0..4 * width).map(|i| (i * 37 % 251) as u8).collect();
        let (mut fast, mut plain) = (Vec::new(), Vec::new());
        dots(&rows, &[3, 0, 1], &factors, &mut fast);
        dots_plain(&rows, &[3, 0, 1], &factors, &mut plain);
        assert_eq!(fast, plain);
        assert_eq!(fast.len(), 3);
    }
}
