//! One scan: which records can be among the best, by the bounds of their sketches. Must not know where the exact scores
//! come from.

use std::cmp::Ordering;

use super::block::{Block, SLOTS};
use crate::key_set::KeySet;
use crate::vector::planes;
use crate::vector::probe::{Bounds, Dots, Probe};

/// What a search ranks by. Higher is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The cosine of the angle between record and query.
    Cosine,
    /// Their dot product.
    Dot,
    /// `1 / (1 + d²)`, of their distance.
    L2,
}

/// A place in the order: by falling score, then by rising key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// The score.
    pub score: f64,
    /// The record.
    pub key: i64,
}

impl Place {
    /// Which of the two comes first.
    pub fn order(&self, other: &Place) -> Ordering {
        other.score.total_cmp(&self.score).then(self.key.cmp(&other.key))
    }
}

/// What is looked for.
pub struct Search {
    /// The query; None where each score is known without a look at any vector, since it has no length.
    pub probe: Option<Probe>,
    /// What is ranked by.
    pub metric: Metric,
    /// The score of a record without an embedding, or with one of no length.
    pub score_of_zero: f64,
    /// How many are wanted, 1 or more.
    pub limit: usize,
    /// Only records there.
    pub scopes: Option<KeySet>,
    /// Only these records.
    pub keys: Option<KeySet>,
    /// Only states that began then or before.
    pub change: i64,
    /// Only what comes behind this.
    pub after: Option<Place>,
}

impl Search {
    #[inline(always)]
    fn bounds(&self, probe: &Probe, block: &Block, slot: usize, codes: Dots) -> Bounds {
        let header = &block.headers[slot];
        match self.metric {
            Metric::Cosine => probe.cosine(header, codes),
            Metric::Dot => probe.dot(header, codes),
            Metric::L2 => {
                let squared = probe.l2_squared(header, codes);
                let score = |squared: f64| 1.0 / (1.0 + squared);
                Bounds { lower: score(squared.upper), estimate: score(squared.estimate), upper: score(squared.lower) }
            }
        }
    }
}

/// A record that may be among the best.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The record.
    pub key: i64,
    /// What the sketch says of its score.
    pub bounds: Bounds,
    /// Whether that is the score.
    is_known: bool,
}

/// What a scan has found so far. Never many more than can be among the best.
pub struct Candidates<'a> {
    search: &'a Search,
    found: Vec<Candidate>,
    /// At least so good is the worst of the best; nothing below it counts.
    bar: f64,
    prune_at: usize,
    picked: Vec<u16>,
    /// The dot products of both planes.
    high: Vec<i64>,
    low: Vec<i64>,
}

/// Which of a block's slots a search sees.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    /// The point that it looks from.
    pub point: i64,
    /// Records of which it has read a later state itself.
    pub hidden: Option<&'a KeySet>,
}

/// All slots, of a block that the search has read itself.
pub const OWN: Sight<'static> = Sight { point: i64::MAX - 1, hidden: None };

impl<'a> Candidates<'a> {
    /// None yet.
    pub fn new(search: &'a Search) -> Self {
        let picked = Vec::with_capacity(SLOTS);
        let prune_at = (4 * search.limit).max(256);
        let (high, low) = (Vec::with_capacity(SLOTS), Vec::new());
        Candidates { search, found: Vec::new(), bar: f64::NEG_INFINITY, prune_at, picked, high, low }
    }

    /// Look through a block.
    pub fn scan(&mut self, block: &Block, sight: Sight<'_>) {
        self.pick(block, sight);
        let Some(probe) = &self.search.probe else {
            for at in 0..self.picked.len() {
                self.add(self.known(block.keys[usize::from(self.picked[at])]));
            }
            return;
        };
        planes::dots(&block.planes[0], &self.picked, probe.factors(), &mut self.high);
        self.keep_hopeful(block, probe);
        planes::dots(&block.planes[1], &self.picked, probe.factors(), &mut self.low);
        for at in 0..self.picked.len() {
            let slot = usize::from(self.picked[at]);
            let key = block.keys[slot];
            let found = if block.headers[slot].is_zero() {
                self.known(key)
            } else {
                let codes = Dots::Fine(self.high[at], self.low[at]);
                Candidate { key, bounds: self.search.bounds(probe, block, slot, codes), is_known: false }
            };
            if found.bounds.upper >= self.bar {
                self.add(found);
            }
        }
    }

    /// Of the picked slots, keep those that may reach the bar by what the upper bits of their codes say.
    fn keep_hopeful(&mut self, block: &Block, probe: &Probe) {
        let mut kept = 0;
        for at in 0..self.picked.len() {
            let slot = usize::from(self.picked[at]);
            let codes = Dots::Coarse(self.high[at]);
            let is_hopeful =
                block.headers[slot].is_zero() || self.search.bounds(probe, block, slot, codes).upper >= self.bar;
            (self.picked[kept], self.high[kept]) = (self.picked[at], self.high[at]);
            kept += usize::from(is_hopeful);
        }
        self.picked.truncate(kept);
        self.high.truncate(kept);
    }

    /// A record whose score is that of no length.
    fn known(&self, key: i64) -> Candidate {
        let score = self.search.score_of_zero;
        Candidate { key, bounds: Bounds { lower: score, estimate: score, upper: score }, is_known: true }
    }

    fn pick(&mut self, block: &Block, sight: Sight<'_>) {
        self.picked.clear();
        let search = self.search;
        let last = search.change.min(sight.point);
        let is_wanted = |slot: usize| {
            block.born[slot] <= last
                && block.died(slot) > sight.point
                && search.scopes.as_ref().is_none_or(|scopes| scopes.has(block.scopes[slot]))
                && search.keys.as_ref().is_none_or(|keys| keys.has(block.keys[slot]))
                && sight.hidden.is_none_or(|hidden| !hidden.has(block.keys[slot]))
        };
        self.picked.extend((0..block.len()).filter(|&slot| is_wanted(slot)).map(|slot| slot as u16));
    }

    #[inline]
    fn add(&mut self, mut candidate: Candidate) {
        if let Some(after) = self.search.after {
            if candidate.bounds.lower > after.score {
                return; // on an earlier page, surely
            }
            let place = Place { score: candidate.bounds.lower, key: candidate.key };
            if candidate.is_known && after.order(&place) != Ordering::Less {
                return; // as surely
            }
            candidate.bounds.upper = candidate.bounds.upper.min(after.score);
        }
        self.found.push(candidate);
        if self.found.len() >= self.prune_at {
            self.prune();
        }
    }

    /// Drop what cannot be among the best: as many as are wanted have a lower bound above its upper one.
    fn prune(&mut self) {
        // Behind the last page are surely those that end below its last score.
        let is_sure =
            |candidate: &Candidate| self.search.after.is_none_or(|after| candidate.bounds.upper < after.score);
        let mut lowers: Vec<f64> =
            self.found.iter().filter(|found| is_sure(found)).map(|found| found.bounds.lower).collect();
        let limit = self.search.limit;
        if lowers.len() >= limit {
            let (_, worst, _) = lowers.select_nth_unstable_by(limit - 1, |a, b| b.total_cmp(a));
            self.bar = self.bar.max(*worst);
        }
        let bar = self.bar;
        self.found.retain(|found| found.bounds.upper >= bar);
        self.prune_at = (2 * self.found.len()).max(4 * limit).max(256);
    }

    /// Take over what another part of the scan has found.
    pub fn join(&mut self, other: Candidates<'a>) {
        self.bar = self.bar.max(other.bar);
        self.found.extend(other.found);
    }

    /// Settle who is among the best, asking for as few exact scores as the bounds allow; in order. `score` is asked for
    /// the best guesses first, then for whoever may still be better than the worst of those.
    pub fn settle<E>(mut self, mut score: impl FnMut(i64) -> Result<f64, E>) -> Result<Vec<i64>, E> {
        self.prune();
        let (limit, after) = (self.search.limit, self.search.after);
        let mut place = |found: &Candidate| {
            // 0 is added because -0 and 0 are one score.
            let exact = if found.is_known { found.bounds.estimate } else { score(found.key)? } + 0.0;
            let place = Place { score: exact, key: found.key };
            Ok(after.is_none_or(|after| after.order(&place) == Ordering::Less).then_some(place))
        };
        let mut found = self.found;
        if found.len() > limit {
            found.select_nth_unstable_by(limit - 1, |a, b| {
                b.bounds.estimate.total_cmp(&a.bounds.estimate).then(a.key.cmp(&b.key))
            });
        }
        let first = limit.min(found.len());
        let (guesses, others) = found.split_at_mut(first);
        let mut best: Vec<Place> = Vec::with_capacity(first + 1);
        for guess in guesses {
            best.extend(place(guess)?);
        }
        best.sort_unstable_by(Place::order); // at once: where all are wanted, inserting each would move half of them each time
        others.sort_unstable_by(|a, b| b.bounds.upper.total_cmp(&a.bounds.upper).then(a.key.cmp(&b.key)));
        for other in others {
            if let Some(worst) = best.get(limit - 1) {
                if other.bounds.upper < worst.score {
                    break;
                }
                if worst.order(&Place { score: other.bounds.upper, key: other.key }) == Ordering::Less {
                    continue;
                }
            }
            if let Some(place) = place(other)? {
                insert(&mut best, place, limit);
            }
        }
        Ok(best.into_iter().map(|place| place.key).collect())
    }
}

/// Insert in order, and drop what is one too many.
fn insert(best: &mut Vec<Place>, place: Place, limit: usize) {
    let at = best.partition_point(|other| other.order(&place) == Ordering::Less);
    if at < limit {
        best.insert(at, place);
        best.truncate(limit);
    }
}
