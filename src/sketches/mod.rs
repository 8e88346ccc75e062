//! Sketches in memory: one index a space, all of one engine. Owns who may bring one up to date, and how much memory they take.
//! Must not know SQL, nor pools.
//!
//! The lock is held for a few instructions. To load an index or to bring it up to date is a role, not a lock (`Seat`): who
//! has it works on what nobody else sees, and puts it in place at the end. Whoever finds it taken looks from the last point
//! and reads the rest for himself; only while there is nothing to look from yet, he may wait for it.

mod block;
mod scan;
mod space;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

pub use self::block::{Block, Row, SLOTS, bytes_of_record};
pub use self::scan::{Candidates, Metric, OWN, Place, Search, Sight};
use self::space::Book;
pub use self::space::{Delta, Edition, Version};
use crate::stats::Stats;
use crate::sync::{Condvar, Mutex};

/// What an index is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// The set of tables that has the space: the first word of their names.
    pub tables: String,
    /// The number that the space has there.
    pub space: i64,
}

/// The indexes of one engine.
pub struct Sketches {
    spaces: Mutex<HashMap<Name, Entry>>,
    /// A seat was given back.
    settled: Condvar,
    /// The most bytes that all of them may take.
    most: u64,
    /// Threads that scan just now.
    scanning: AtomicUsize,
    stats: Arc<Stats>,
}

#[derive(Default)]
struct Entry {
    version: Option<Arc<Version>>,
    /// With the version, but while somebody has the seat.
    book: Option<Book>,
    is_taken: bool,
    bytes: u64,
    /// When it was searched last.
    searched: Option<Instant>,
}

impl Sketches {
    /// None yet; `most` is how many bytes they may take.
    pub fn new(most: u64, stats: Arc<Stats>) -> Self {
        Sketches { spaces: Mutex::default(), settled: Condvar::new(), most, scanning: AtomicUsize::new(0), stats }
    }

    /// Whether an index of so many bytes may be kept.
    pub fn has_room(&self, bytes: u64) -> bool {
        bytes <= self.most
    }

    /// The index of a space as it is now.
    pub fn version(&self, space: &Name) -> Option<Arc<Version>> {
        let mut spaces = self.spaces.lock();
        let entry = spaces.get_mut(space)?;
        entry.searched = Some(Instant::now());
        entry.version.clone()
    }

    /// The role of the one who brings a space's index on from `version`; None if somebody has it, or that is not the state any
    /// more.
    pub fn seat(self: &Arc<Self>, space: &Name, version: Option<&Arc<Version>>) -> Option<Seat> {
        let mut spaces = self.spaces.lock();
        let entry = spaces.entry(space.clone()).or_default();
        let is_same = match (&entry.version, version) {
            (Some(now), Some(then)) => Arc::ptr_eq(now, then),
            (None, None) => true,
            _ => false,
        };
        if entry.is_taken || !is_same {
            return None;
        }
        entry.is_taken = true;
        let book = entry.book.take();
        Some(Seat { sketches: Arc::clone(self), space: space.clone(), book, version: entry.version.clone() })
    }

    /// Sleep until nobody has the seat of this space, until `deadline` at most. True if it is free.
    pub fn wait(&self, space: &Name, deadline: Instant) -> bool {
        let mut spaces = self.spaces.lock();
        loop {
            if !spaces.get(space).is_some_and(|entry| entry.is_taken) {
                return true;
            }
            let is_over;
            (spaces, is_over) = self.settled.wait_until(spaces, deadline);
            if is_over {
                return false;
            }
        }
    }

    /// Forget all, at the end.
    pub fn clear(&self) {
        let forgotten = std::mem::take(&mut *self.spaces.lock());
        self.stats.sketch_bytes.set(0);
        drop(forgotten); // not under the lock
    }

    /// How many threads may help with a scan that begins now; they count until the answer is dropped.
    pub fn helpers(&self, most: usize) -> Helpers<'_> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let before = self.scanning.fetch_add(1, Ordering::Relaxed) + 1;
        let count = cpus.saturating_sub(before).min(most);
        self.scanning.fetch_add(count, Ordering::Relaxed);
        Helpers { sketches: self, count }
    }

    fn put(&self, space: &Name, version: Option<Arc<Version>>, book: Option<Book>) {
        let mut dropped = Vec::new(); // freed when the lock is let go
        let mut spaces = self.spaces.lock();
        if let Some(entry) = spaces.get_mut(space) {
            entry.is_taken = false;
            entry.bytes = version.as_ref().map_or(0, |version| version.bytes());
            dropped.push((std::mem::replace(&mut entry.version, version), std::mem::replace(&mut entry.book, book)));
        }
        let mut total: u64 = spaces.values().map(|entry| entry.bytes).sum();
        while total > self.most {
            // The least recently searched one; this one last, and then too. A seat that is taken puts its own version later.
            let others = spaces.iter_mut().filter(|(_, entry)| entry.bytes > 0 && !entry.is_taken);
            let Some((_, entry)) = others.min_by_key(|(name, entry)| (*name == space, entry.searched)) else { break };
            total -= std::mem::take(&mut entry.bytes);
            dropped.push((entry.version.take(), entry.book.take()));
        }
        self.stats.sketch_bytes.set(total);
        drop(spaces);
        self.settled.notify_all();
    }
}

/// Threads that may help.
pub struct Helpers<'a> {
    sketches: &'a Sketches,
    /// How many.
    pub count: usize,
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        self.sketches.scanning.fetch_sub(self.count + 1, Ordering::Relaxed);
    }
}

/// The role of the one who brings a space's index up to date. Dropped, the index is as it was.
pub struct Seat {
    sketches: Arc<Sketches>,
    space: Name,
    version: Option<Arc<Version>>,
    book: Option<Book>,
}

impl Seat {
    /// Put an index in place that was made of all rows.
    pub fn fill(mut self, edition: Edition, newest: i64, blocks: Vec<Block>) -> Arc<Version> {
        let (version, book) = Version::load(edition, newest, blocks);
        let version = Arc::new(version);
        (self.version, self.book) = (Some(Arc::clone(&version)), Some(book));
        version
    }

    /// Bring the index on; with `delta` come all rows since its newest point. None if there is nothing to bring on.
    pub fn advance(mut self, delta: Delta, newest: i64) -> Option<Arc<Version>> {
        let version = Arc::new(self.version.as_ref()?.advance(self.book.as_mut()?, delta, newest));
        self.version = Some(Arc::clone(&version));
        Some(version)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.sketches.put(&self.space, self.version.take(), self.book.take());
    }
}
