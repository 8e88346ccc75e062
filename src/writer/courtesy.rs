//! When to leave the file's write lock alone for a moment, because another process may be waiting for it. Pure: it is told
//! the time.
//!
//! A lock that is free for microseconds between two groups is never free for those who try each millisecond:
//!
//! ```text
//! this process                                  another process
//! BEGIN, COMMIT, BEGIN, COMMIT, ...             busy, sleeps a millisecond, busy, sleeps, ...
//! has had the lock for its share: waits
//!                                               BEGIN
//! busy: it was needed, and is remembered
//! ```
//!
//! Nobody tells that he waits. That somebody else writes shows when the lock is busy, or when the file has changed.

use std::time::{Duration, Instant};

use crate::connection::BUSY_RETRY;
use crate::grouping::MOST_WORK;

/// How long the lock is left: whoever tries each `BUSY_RETRY` has tried once by then, with half as much again for waking up.
pub const MOMENT: Duration = Duration::from_micros(BUSY_RETRY.as_micros() as u64 * 3 / 2);
/// How long the lock may be held, with gaps too short for others, before it is left: as long as one group may work on a quick disk.
const SHARE: Duration = MOST_WORK;
/// How long it is remembered that another process writes. Where it does not, what is left in vain is time lost.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Who has the file's write lock, and for how long this process has had it.
#[derive(Debug, Default)]
pub struct Courtesy {
    other_seen: Option<Instant>,
    data_version: i64,
    taken: Option<Instant>,
    freed: Option<Instant>,
    held: Duration,
}

impl Courtesy {
    /// Another process had the lock: it has had its moment.
    pub fn meet(&mut self, now: Instant) {
        self.other_seen = Some(now);
        self.held = Duration::ZERO;
    }

    /// This process has the lock from now on. The clock is asked only where another process is known.
    pub fn take(&mut self, now: impl FnOnce() -> Instant) {
        self.taken = self.other_seen.map(|_| now());
    }

    /// This process had the lock until now, if it had it.
    pub fn free(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(taken) = self.taken.take() {
            let now = now();
            self.held += now - taken;
            self.freed = Some(now);
        }
    }

    /// Whether to leave the lock for a moment before it is taken again.
    pub fn owes_a_moment(&mut self, now: Instant) -> bool {
        self.other_seen.take_if(|seen| now - *seen >= REMEMBERED);
        let is_known = self.other_seen.is_some();
        let was_free = self.freed.is_none_or(|freed| now - freed >= MOMENT);
        let is_others_turn = self.held >= SHARE;
        if !is_known || was_free || is_others_turn {
            self.held = Duration::ZERO;
        }
        is_known && is_others_turn && !was_free
    }

    /// What SQLite's `data_version` is after the lock was left: another number than before if another process has written,
    /// so quickly that the lock was free again.
    pub fn note_version(&mut self, data_version: i64, now: Instant) {
        if std::mem::replace(&mut self.data_version, data_version) != data_version {
            self.other_seen = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Duration = Duration::from_millis(1);

    /// Hold the lock group after group, with gaps too short for anybody; how many groups until a moment is owed.
    fn groups_until_a_moment(courtesy: &mut Courtesy, now: &mut Instant, most: usize) -> Option<usize> {
        (0..most).find(|_| {
            if courtesy.owes_a_moment(*now) {
                return true;
            }
            courtesy.take(|| *now);
            *now += GROUP;
            courtesy.free(|| *now);
            *now += Duration::from_micros(20);
            false
        })
    }

    #[test]
    fn the_lock_is_left_after_its_share_where_another_process_was_seen() {
        let (mut courtesy, mut now) = (Courtesy::default(), Instant::now());
        assert_eq!(groups_until_a_moment(&mut courtesy, &mut now, 100), None);
        courtesy.meet(now);
        assert_eq!(groups_until_a_moment(&mut courtesy, &mut now, 100), Some(5));
        assert_eq!(groups_until_a_moment(&mut courtesy, &mut now, 100), Some(5));
    }

    #[test]
    fn another_process_that_has_not_written_for_long_is_forgotten() {
        let (mut courtesy, mut now) = (Courtesy::default(), Instant::now());
        courtesy.meet(now);
        courtesy.note_version(1, now);
        now += REMEMBERED;
        assert_eq!(groups_until_a_moment(&mut courtesy, &mut now, 100), None);
        courtesy.note_version(1, now);
        assert_eq!(groups_until_a_moment(&mut courtesy, &mut now, 100), None);
        courtesy.note_version(2, now);
        assert!(groups_until_a_moment(&mut courtesy, &mut now, 100).is_some());
    }

    #[test]
    fn a_lock_that_was_free_for_a_moment_owes_none() {
        let (mut courtesy, mut now) = (Courtesy::default(), Instant::now());
        courtesy.meet(now);
        for _ in 0..100 {
            assert_eq!(groups_until_a_moment(&mut courtesy, &mut now, 4), None);
            now += MOMENT;
        }
    }
}
