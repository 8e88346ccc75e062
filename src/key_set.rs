//! A set of integers in a compact blob, and in a form that answers fast whether it has one. Owns both forms. Must not know
//! what the integers are.
//!
//! The blob: one byte of version, then the differences between the integers in rising order, as varints (LEB128).

use crate::error::{Error, Kind, Result};

const VERSION: u8 = 1;
/// Bits of a bitmap for each integer, at most; beyond it a sorted list takes less room.
const DENSITY: u64 = 512;
/// Bits that a bitmap may have however few integers there are.
const SMALL: u64 = 1 << 16;

/// Integers on their way into a blob.
#[derive(Default)]
pub struct Collector(Vec<i64>);

impl Collector {
    /// Take one more, in any order; twice is once.
    ///
    /// # Errors
    /// `Kind::Programming` for a negative one.
    pub fn add(&mut self, number: i64) -> Result<()> {
        if number < 0 {
            return Err(Error::new(Kind::Programming, "a set holds integers from 0 on, and was given a negative one"));
        }
        self.0.push(number);
        Ok(())
    }

    /// The blob.
    pub fn into_blob(mut self) -> Vec<u8> {
        self.0.sort_unstable(); // of what comes in order, a look
        let mut blob = Vec::with_capacity(1 + 2 * self.0.len());
        blob.push(VERSION);
        let mut before = None;
        for number in self.0 {
            // Never 0 but for a first 0, so that a repetition is left out.
            let mut step = number.cast_unsigned() - before.unwrap_or(0);
            if before == Some(number.cast_unsigned()) {
                continue;
            }
            before = Some(number.cast_unsigned());
            while step >= 0x80 {
                blob.push(step as u8 | 0x80);
                step >>= 7;
            }
            blob.push(step as u8);
        }
        blob
    }
}

/// A set that is asked for each record of a scan.
#[derive(Debug)]
pub enum KeySet {
    /// A bit for each integer from `base` on.
    Dense {
        /// The least integer.
        base: i64,
        /// Its bit is the lowest of the first word.
        bits: Vec<u64>,
    },
    /// In rising order.
    Sparse(Vec<i64>),
}

impl KeySet {
    /// The set that `blob` holds.
    ///
    /// # Errors
    /// `Kind::Data` if it holds none.
    pub fn from_blob(blob: &[u8]) -> Result<Self> {
        let no_set = || Error::new(Kind::Data, format!("a blob of {} bytes is not a set of vec_key_set", blob.len()));
        let (&version, steps) = blob.split_first().ok_or_else(no_set)?;
        if version != VERSION {
            return Err(no_set());
        }
        let mut numbers = Vec::with_capacity(steps.len());
        let (mut number, mut step, mut shift) = (0_u64, 0_u64, 0);
        for &byte in steps {
            step |= u64::from(byte & 0x7f).checked_shl(shift).ok_or_else(no_set)?;
            shift += 7;
            if byte < 0x80 {
                number = number.checked_add(step).ok_or_else(no_set)?;
                numbers.push(i64::try_from(number).map_err(|_| no_set())?);
                (step, shift) = (0, 0);
            }
        }
        if shift > 0 { Err(no_set()) } else { Ok(Self::from_sorted(numbers)) }
    }

    /// The set of these integers, which rise.
    pub fn from_sorted(numbers: Vec<i64>) -> Self {
        let (Some(&base), Some(&last)) = (numbers.first(), numbers.last()) else { return KeySet::Sparse(numbers) };
        let span = last.wrapping_sub(base).cast_unsigned();
        if span >= SMALL.max(DENSITY * numbers.len() as u64) {
            return KeySet::Sparse(numbers);
        }
        let mut bits = vec![0; span as usize / 64 + 1];
        for number in numbers {
            let bit = (number - base) as usize;
            bits[bit / 64] |= 1 << (bit % 64);
        }
        KeySet::Dense { base, bits }
    }

    /// Whether `number` is in it.
    #[inline(always)]
    pub fn has(&self, number: i64) -> bool {
        match self {
            KeySet::Dense { base, bits } => {
                let bit = number.wrapping_sub(*base).cast_unsigned();
                bits.get((bit / 64) as usize).is_some_and(|word| word >> (bit % 64) & 1 == 1)
            }
            KeySet::Sparse(numbers) => numbers.binary_search(&number).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(numbers: &[i64]) -> Vec<u8> {
        let mut collector = Collector::default();
        numbers.iter().for_each(|&number| collector.add(number).unwrap());
        collector.into_blob()
    }

    #[test]
    fn a_set_has_what_went_in_and_nothing_else() {
        let far = i64::MAX;
        for numbers in [
            vec![],
            vec![0],
            vec![far],
            vec![0, far],
            vec![5, 3, 3, 5, 0, 64, 63, 65, 5],
            (0..5000).map(|n| n * n % 7001).collect(),
            (0..300).map(|n| n * 1_000_003).collect(),
            (0..1000).map(|n| 1_000_000_000_000 + 3 * n).collect(),
        ] {
            let set = KeySet::from_blob(&blob(&numbers)).unwrap();
            for &number in &numbers {
                assert!(set.has(number));
                for other in [number.wrapping_sub(1), number.wrapping_add(1), number / 2, -number, i64::MIN] {
                    assert_eq!(set.has(other), numbers.contains(&other), "{other}");
                }
            }
        }
    }

    #[test]
    fn dense_keys_take_about_a_byte_each_in_any_order() {
        let rising: Vec<i64> = (1..50_000).collect();
        let falling: Vec<i64> = rising.iter().rev().copied().collect();
        assert_eq!(blob(&rising), blob(&falling));
        assert_eq!(blob(&rising).len(), 50_000);
    }

    #[test]
    fn a_negative_number_and_a_blob_of_something_else_are_refused() {
        assert_eq!(Collector::default().add(-1).unwrap_err().kind, Kind::Programming);
        let overflow = [&[VERSION][..], &[0xff; 9], &[0x7f]].concat();
        let too_far = [&[VERSION][..], &[0xff; 8], &[0x7f, 1]].concat();
        for bad in [
            &[][..],
            &[2, 1],
            &[VERSION, 0x80],
            &[VERSION, 1, 0xff],
            &overflow,
            &[&too_far[..], &too_far[1..]].concat(),
        ] {
            assert_eq!(KeySet::from_blob(bad).unwrap_err().kind, Kind::Data, "{bad:?}");
        }
    }
}
