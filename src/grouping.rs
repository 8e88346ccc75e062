//! When a group is full, and how careful it is. Pure policy: must not know clocks, threads or SQLite.

use std::time::Duration;

/// Work that one COMMIT may carry: past it the group closes, so that those who came first do not wait for those who came
/// last. A disk's fsync takes 0.2 to 5 ms, so a longer group would no longer be amortising it. Where the last COMMIT took
/// longer than that, the next one may carry as much work as it took: nobody waits for more than twice as long.
pub const MOST_WORK: Duration = Duration::from_millis(5);
/// The most, however slow the disk was once.
const MOST_WORK_ON_A_SLOW_DISK: Duration = Duration::from_millis(25);

/// A COMMIT that takes less waits for no disk. Then a group of event loops' jobs is half of what waits: the loop, whose thread
/// cannot queue while it is answered, queues the one half while the writer works on the other.
const CHEAP_COMMIT: Duration = Duration::from_micros(100);

/// After a job of several statements has failed, as many of its kind stand behind a savepoint: those who often fail then cost
/// their neighbours nothing. As many as the largest group of the default has, so that running one again is made good.
const CAREFUL: u32 = 512;

/// What one COMMIT may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Jobs.
    pub jobs: usize,
    /// Bytes of parameters.
    pub bytes: u64,
    /// Time spent on them.
    pub work: Duration,
}

/// What the groups so far have taught.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    careful: u32,
    commit: Duration,
}

impl Past {
    /// Whether jobs of several statements need a savepoint each.
    pub fn is_careful(self) -> bool {
        self.careful > 0
    }

    /// A job of several statements was whole.
    pub fn ran(&mut self) {
        self.careful = self.careful.saturating_sub(1);
    }

    /// One of them failed.
    pub fn failed(&mut self) {
        self.careful = CAREFUL;
    }

    /// What COMMIT took.
    pub fn committed(&mut self, took: Duration) {
        self.commit = took;
    }

    /// How many jobs the next group may have where `waiting` jobs of event loops stand in line.
    pub fn most_of_loops(self, waiting: usize) -> usize {
        if self.commit < CHEAP_COMMIT { waiting.div_ceil(2) } else { usize::MAX }
    }

    /// Time that the next group may spend on its jobs.
    pub fn most_work(self) -> Duration {
        self.commit.clamp(MOST_WORK, MOST_WORK_ON_A_SLOW_DISK)
    }
}

/// What a group carries so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Jobs.
    pub jobs: usize,
    /// Bytes of parameters.
    pub bytes: u64,
    /// Time spent on them.
    pub work: Duration,
}

impl Load {
    /// Whether a job of `bytes` may still join. The first one always may: a job larger than the bounds runs alone.
    pub fn has_room(self, bytes: u64, bounds: Bounds) -> bool {
        self.jobs == 0
            || (self.jobs < bounds.jobs && self.bytes.saturating_add(bytes) <= bounds.bytes && self.work < bounds.work)
    }

    /// One more job.
    pub fn add(&mut self, bytes: u64, work: Duration) {
        self.jobs += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.work += work;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { jobs: 3, bytes: 100, work: MOST_WORK };

    #[test]
    fn a_group_closes_by_jobs_by_bytes_and_by_time() {
        let mut load = Load::default();
        load.add(10, Duration::ZERO);
        assert!(load.has_room(90, BOUNDS) && !load.has_room(91, BOUNDS));
        load.add(10, Duration::ZERO);
        load.add(10, Duration::ZERO);
        assert!(!load.has_room(0, BOUNDS));
        let slow = Load { jobs: 1, bytes: 1, work: MOST_WORK };
        assert!(!slow.has_room(0, BOUNDS));
    }

    #[test]
    fn a_job_larger_than_the_bounds_runs_alone() {
        let mut load = Load::default();
        assert!(load.has_room(1_000, BOUNDS));
        load.add(1_000, Duration::ZERO);
        assert!(!load.has_room(0, BOUNDS));
    }

    #[test]
    fn a_group_may_work_for_as_long_as_the_last_commit_took_within_limits() {
        let mut past = Past::default();
        for (commit, work) in [(0, 5), (4, 5), (12, 12), (900, 25), (1, 5)] {
            past.committed(Duration::from_millis(commit));
            assert_eq!(past.most_work(), Duration::from_millis(work));
        }
    }

    #[test]
    fn a_group_of_loops_is_half_of_what_waits_where_commit_waits_for_no_disk() {
        let mut past = Past::default();
        for (commit, most) in [(0, 8), (99, 8), (100, usize::MAX), (30, 8)] {
            past.committed(Duration::from_micros(commit));
            assert_eq!(past.most_of_loops(16), most);
        }
        assert_eq!(past.most_of_loops(1), 1);
    }

    #[test]
    fn care_is_taken_after_a_failure_until_so_many_jobs_were_whole() {
        let mut past = Past::default();
        past.ran();
        assert!(!past.is_careful());
        past.failed();
        (1..CAREFUL).for_each(|_| past.ran());
        assert!(past.is_careful());
        past.ran();
        assert!(!past.is_careful());
    }
}
