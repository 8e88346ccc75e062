//! One space's sketches: which states there were at which change. Must not know who searches, nor where rows come from.
//!
//! A search looks from a point: a change up to which the index was brought once. It sees the slots that began at the point or
//! before and ended later. Between two points nothing is known: a record that changed twice there has left one row only, in
//! the table as in here. So a snapshot that lies between them takes the point before it, and reads the rows since then itself.
//!
//! ```text
//! table       change 10 (a), 11 (b) ... 14 (a again; row 10 is gone) ... 17 (a once more; row 14 is gone)
//! index       brought to 11, then to 17: it has 10, 11 and 17, and never had 14
//! snapshot    at 14: point 11, where 10 and 11 are alive, and row 14 read from its own table in place of a's slot
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::block::{Block, SLOTS};

/// How many of the latest points keep what they see: searches that began a moment ago look from these.
const KEPT_POINTS: usize = 16;

/// What a record takes in the book.
pub(super) const BOOK_BYTES: u64 = 32;

/// What the rows of a space have in common. Sketches of another epoch cannot be compared with these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edition {
    /// The `epoch` of its row in the table of spaces.
    pub epoch: i64,
    /// The `dims` there; 0 where it is NULL.
    pub dims: usize,
}

/// The state of an index, which never changes but for the ends of slots: a new one takes its place.
#[derive(Clone)]
pub struct Version {
    edition: Edition,
    /// Rising; the last one is what the index was brought to. Searches may look from all of them.
    points: Vec<i64>,
    blocks: Vec<Arc<Block>>,
}

/// Rows since a point, as a snapshot has them.
#[derive(Default)]
pub struct Delta {
    /// Records that changed or went, and when; rising by change.
    pub touched: Vec<(i64, i64)>,
    /// The states of those that are there.
    pub blocks: Vec<Block>,
}

/// In which state each living record is: the change that it began with.
#[derive(Default)]
pub struct Book(HashMap<i64, i64, BuildHasherDefault<Multiply>>);

/// Keys are numbers that SQLite has dealt out: one multiplication spreads them well enough, in a fifth of the time.
#[derive(Default)]
pub struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }
}

impl Version {
    /// An index of what one snapshot has: all rows, at its newest change.
    pub fn load(edition: Edition, newest: i64, blocks: Vec<Block>) -> (Version, Book) {
        let records = blocks.iter().map(Block::len).sum();
        let mut book = HashMap::with_capacity_and_hasher(records, BuildHasherDefault::default());
        for block in &blocks {
            book.extend(block.keys.iter().copied().zip(block.born.iter().copied()));
        }
        let blocks = blocks.into_iter().map(Arc::new).collect();
        (Version { edition, points: vec![newest], blocks }, Book(book))
    }

    /// What its sketches have in common.
    pub fn edition(&self) -> Edition {
        self.edition
    }

    /// What it was brought to.
    pub fn newest(&self) -> i64 {
        self.points.last().copied().unwrap_or(0)
    }

    /// The last point from which a snapshot at `change` may look, if it is not before `trimmed`.
    pub fn point(&self, change: i64, trimmed: i64) -> Option<i64> {
        let before = self.points.partition_point(|&point| point <= change);
        self.points[..before].last().copied().filter(|&point| point >= trimmed)
    }

    /// The blocks to look through.
    pub fn blocks(&self) -> &[Arc<Block>] {
        &self.blocks
    }

    /// The bytes that it takes, its book among them.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes() as u64 + block.len() as u64 * BOOK_BYTES).sum()
    }

    /// The state after `delta`, which holds all rows since the newest point.
    pub fn advance(&self, book: &mut Book, delta: Delta, newest: i64) -> Version {
        for &(key, change) in &delta.touched {
            if let Some(born) = book.0.remove(&key) {
                self.end(born, change);
            }
        }
        let mut next = self.clone();
        next.points.push(newest);
        for block in delta.blocks {
            book.0.extend(block.keys.iter().copied().zip(block.born.iter().copied()));
            next.blocks.push(Arc::new(block));
            next.join_last();
        }
        next.compact();
        next
    }

    fn end(&self, born: i64, change: i64) {
        let at = self.blocks.partition_point(|block| block.last_born() < born);
        if let Some(block) = self.blocks.get(at) {
            block.end(born, change);
        }
    }

    /// Join the last blocks while they are small and of like size: each slot is copied once for each doubling.
    fn join_last(&mut self) {
        while let [.., before, last] = &self.blocks[..]
            && before.len() + last.len() <= SLOTS
            && before.len() <= 2 * last.len()
        {
            let joined = Block::joined(&[before, last], 0);
            self.blocks.truncate(self.blocks.len() - 2);
            self.blocks.push(Arc::new(joined));
        }
    }

    /// Rewrite blocks of which more than a quarter is needed from none of the latest points, and forget the points before.
    fn compact(&mut self) {
        let horizon = self.points[self.points.len().saturating_sub(KEPT_POINTS)];
        let mut floor = 0;
        let mut blocks: Vec<Arc<Block>> = Vec::with_capacity(self.blocks.len());
        let mut is_changed = false;
        for block in &self.blocks {
            let (needless, last) = if block.dead() * 4 > block.len() { block.needless(horizon) } else { (0, 0) };
            let mut block = Arc::clone(block);
            if needless * 4 > block.len() {
                floor = floor.max(last);
                is_changed = true;
                block = Arc::new(Block::joined(&[&block], horizon));
            }
            match blocks.last_mut() {
                Some(before) if is_changed && before.len() + block.len() <= SLOTS => {
                    *before = Arc::new(Block::joined(&[before, &block], 0));
                }
                _ if block.is_empty() => {}
                _ => blocks.push(block),
            }
        }
        self.blocks = blocks;
        self.points.retain(|&point| point >= floor);
        if self.points.len() > 4 * KEPT_POINTS {
            // Older snapshots take an older point, and read more rows for themselves.
            let mut is_odd = false;
            let from = self.points.len() - KEPT_POINTS;
            let latest = self.points.split_off(from);
            self.points.retain(|_| {
                is_odd = !is_odd;
                is_odd
            });
            self.points.extend(latest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Row;
    use super::*;
    use std::collections::BTreeMap;

    /// A table as SQLite would have it: one row a record, with its latest change.
    #[derive(Clone, Default)]
    struct Table {
        rows: BTreeMap<i64, (i64, i64, bool)>, // by change: key, scope, gone
        newest: i64,
        trimmed: i64,
    }

    impl Table {
        fn save(&mut self, key: i64, scope: i64, gone: bool) {
            self.rows.retain(|_, row| row.0 != key);
            self.newest += 1;
            self.rows.insert(self.newest, (key, scope, gone));
        }

        fn trim(&mut self) {
            self.rows.retain(|_, row| !row.2);
            self.trimmed = self.newest;
        }

        fn since(&self, point: i64) -> Delta {
            let mut delta = Delta::default();
            let mut block = Block::with_room(0, 4);
            for (&change, &(key, scope, gone)) in self.rows.range(point + 1..) {
                delta.touched.push((key, change));
                if !gone {
                    block.push(Row { change, key, scope, sketch: None }).unwrap();
                }
                if block.len() == 4 {
                    delta.blocks.push(std::mem::replace(&mut block, Block::with_room(0, 4)));
                }
            }
            if !block.is_empty() {
                delta.blocks.push(block);
            }
            delta
        }

        fn alive(&self) -> Vec<(i64, i64)> {
            let mut alive: Vec<_> = self.rows.values().filter(|row| !row.2).map(|row| (row.0, row.1)).collect();
            alive.sort_unstable();
            alive
        }
    }

    /// What a search sees of the index and of the rows that it reads itself.
    fn seen(version: &Version, table: &Table) -> Option<Vec<(i64, i64)>> {
        let point = version.point(table.newest, table.trimmed)?;
        let delta = table.since(point);
        let touched = |key| delta.touched.iter().any(|&(other, _)| other == key);
        let mut seen = Vec::new();
        for block in version.blocks() {
            for slot in (0..block.len()).filter(|&slot| block.born[slot] <= point && block.died(slot) > point) {
                if !touched(block.keys[slot]) {
                    seen.push((block.keys[slot], block.scopes[slot]));
                }
            }
        }
        for block in &delta.blocks {
            seen.extend(block.keys.iter().copied().zip(block.scopes.iter().copied()));
        }
        seen.sort_unstable();
        Some(seen)
    }

    fn random(state: &mut u64) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 20) as usize
    }

    #[test]
    fn every_snapshot_sees_its_own_state_whatever_was_written_since() {
        for seed in 1..=30_u64 {
            let mut state = seed * 0x9e37_79b9;
            let mut table = Table::default();
            let edition = Edition { epoch: 0, dims: 0 };
            let (mut version, mut book) = Version::load(edition, 0, Vec::new());
            let mut snapshots: Vec<(Table, Version)> = Vec::new();
            let (mut served, mut refused) = (0, 0);
            for _ in 0..600 {
                for _ in 0..random(&mut state) % 4 {
                    let key = (random(&mut state) % 40) as i64;
                    table.save(key, (random(&mut state) % 5) as i64, random(&mut state).is_multiple_of(4));
                }
                if random(&mut state).is_multiple_of(50) {
                    table.trim();
                }
                if !random(&mut state).is_multiple_of(3) {
                    if version.newest() < table.trimmed {
                        (version, book) = Version::load(edition, table.newest, table.since(0).blocks);
                    } else if version.newest() < table.newest {
                        version = version.advance(&mut book, table.since(version.newest()), table.newest);
                    }
                    assert_eq!(seen(&version, &table), Some(table.alive()));
                }
                snapshots.push((table.clone(), version.clone()));
                for back in [1, 2, 5, 20, 100] {
                    let Some((old, then)) = snapshots.len().checked_sub(back).map(|at| &snapshots[at]) else {
                        continue;
                    };
                    // A search that runs still looks through the version that it began with.
                    assert!(seen(then, old).is_none_or(|seen| seen == old.alive()), "seed {seed}");
                    match seen(&version, old) {
                        Some(seen) => assert_eq!(seen, old.alive(), "seed {seed}, {back} back"),
                        None => refused += 1,
                    }
                    served += 1;
                }
            }
            assert!(refused * 3 < served, "{refused} of {served}");
        }
    }

    #[test]
    fn what_has_ended_does_not_pile_up_and_blocks_stay_few() {
        let mut table = Table::default();
        let edition = Edition { epoch: 0, dims: 64 };
        let (mut version, mut book) = Version::load(edition, 0, Vec::new());
        for round in 0..20_000 {
            table.save(round * 7 % 200, 0, false);
            let mut block = Block::with_room(64, 1);
            block.push(Row { change: table.newest, key: round * 7 % 200, scope: 0, sketch: None }).unwrap();
            let delta = Delta { touched: vec![(round * 7 % 200, table.newest)], blocks: vec![block] };
            version = version.advance(&mut book, delta, table.newest);
        }
        let slots: usize = version.blocks().iter().map(|block| block.len()).sum();
        assert!(slots < 300 && version.blocks().len() < 12, "{slots} in {} blocks", version.blocks().len());
        assert_eq!(seen(&version, &table), Some(table.alive()));
    }
}
