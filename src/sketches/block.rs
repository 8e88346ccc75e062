//! A block of sketches in memory: a slot for each record's state, in the order of the changes that made them. What is in a
//! block stays as it is, but for the change at which a state ended. Must not know whose states they are.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use crate::error::Result;
use crate::vector::sketch::{self, Header};

/// The most slots of a block: a scan looks up between two of them, after some 50 µs at 1536 dims.
pub const SLOTS: usize = 1024;

const ALIVE: i64 = i64::MAX;

/// A row of the table of sketches.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// When this state began.
    pub change: i64,
    /// The record.
    pub key: i64,
    /// Where it lies.
    pub scope: i64,
    /// None of a record without an embedding.
    pub sketch: Option<&'a [u8]>,
}

/// Slots, a column for each property.
#[derive(Default)]
pub struct Block {
    dims: usize,
    pub(super) keys: Vec<i64>,
    pub(super) scopes: Vec<i64>,
    pub(super) born: Vec<i64>,
    died: Vec<AtomicI64>,
    pub(super) headers: Vec<Header>,
    /// Padded rows, one for each slot.
    pub(super) codes: Vec<u8>,
    dead: AtomicUsize,
}

impl Block {
    /// An empty block with room for `slots` sketches of vectors of these dims.
    pub fn with_room(dims: usize, slots: usize) -> Self {
        Block {
            dims,
            keys: Vec::with_capacity(slots),
            scopes: Vec::with_capacity(slots),
            born: Vec::with_capacity(slots),
            died: Vec::with_capacity(slots),
            headers: Vec::with_capacity(slots),
            codes: Vec::with_capacity(slots * sketch::padded_width(dims)),
            dead: AtomicUsize::new(0),
        }
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Forget all slots, and keep the room.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.scopes.clear();
        self.born.clear();
        self.died.clear();
        self.headers.clear();
        self.codes.clear();
    }

    /// Add a slot, behind those of earlier changes.
    ///
    /// # Errors
    /// `Kind::Data` where the sketch is not one of vectors of these dims.
    pub fn push(&mut self, row: Row<'_>) -> Result<()> {
        // A record without an embedding counts as one of no length.
        let (header, codes) = match row.sketch {
            Some(blob) => sketch::parse(blob, self.dims)?,
            None => (Header::default(), &[][..]),
        };
        self.keys.push(row.key);
        self.scopes.push(row.scope);
        self.born.push(row.change);
        self.died.push(AtomicI64::new(ALIVE));
        self.headers.push(header);
        self.codes.extend_from_slice(codes);
        self.codes.resize(self.keys.len() * sketch::padded_width(self.dims), 0);
        Ok(())
    }

    /// The change of the last slot.
    pub(super) fn last_born(&self) -> i64 {
        self.born.last().copied().unwrap_or(0)
    }

    /// When the state in this slot ended; `i64::MAX` if it has not.
    #[inline(always)]
    pub(super) fn died(&self, slot: usize) -> i64 {
        self.died[slot].load(Ordering::Relaxed)
    }

    /// The state that began at `born` ends at `change`, which is later than any that a search looks from: so those that run
    /// see no difference.
    pub(super) fn end(&self, born: i64, change: i64) {
        if let Ok(slot) = self.born.binary_search(&born) {
            self.died[slot].store(change, Ordering::Relaxed);
            self.dead.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many slots hold what has ended.
    pub(super) fn dead(&self) -> usize {
        self.dead.load(Ordering::Relaxed)
    }

    /// Of the states that have ended, those that nobody needs who looks from `horizon` or later, and the last of their ends.
    pub(super) fn needless(&self, horizon: i64) -> (usize, i64) {
        let ended = self.died.iter().map(|died| died.load(Ordering::Relaxed)).filter(|&died| died <= horizon);
        ended.fold((0, 0), |(count, last), died| (count + 1, last.max(died)))
    }

    /// The slots of blocks that follow each other in one, without those that ended at `horizon` or before.
    pub(super) fn joined(parts: &[&Block], horizon: i64) -> Block {
        let dims = parts.first().map_or(0, |part| part.dims);
        let width = sketch::padded_width(dims);
        let kept = |part: &Block| part.len() - part.needless(horizon).0;
        let mut all = Block::with_room(dims, parts.iter().map(|part| kept(part)).sum());
        for part in parts {
            for slot in (0..part.len()).filter(|&slot| part.died(slot) > horizon) {
                all.keys.push(part.keys[slot]);
                all.scopes.push(part.scopes[slot]);
                all.born.push(part.born[slot]);
                let died = part.died(slot);
                *all.dead.get_mut() += usize::from(died != ALIVE);
                all.died.push(AtomicI64::new(died));
                all.headers.push(part.headers[slot]);
                all.codes.extend_from_slice(&part.codes[slot * width..][..width]);
            }
        }
        all
    }

    /// The bytes that it takes.
    pub fn bytes(&self) -> usize {
        let slot = 4 * size_of::<i64>() + size_of::<Header>();
        self.keys.capacity() * slot + self.codes.capacity()
    }

    /// Give back the room that is not used.
    pub fn fit(&mut self) {
        self.keys.shrink_to_fit();
        self.scopes.shrink_to_fit();
        self.born.shrink_to_fit();
        self.died.shrink_to_fit();
        self.headers.shrink_to_fit();
        self.codes.shrink_to_fit();
    }
}

/// The bytes that a record takes in memory, with its place in the book.
pub fn bytes_of_record(dims: usize) -> u64 {
    (sketch::padded_width(dims) + 4 * size_of::<i64>() + size_of::<Header>()) as u64 + super::space::BOOK_BYTES
}
