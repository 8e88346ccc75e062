//! When a group is full. Pure policy: must not know clocks, threads or SQLite.

use std::time::Duration;

/// Work that one COMMIT may carry: past it the group closes, so that those who came first do not wait for those who came
/// last. A disk's fsync takes 0.2 to 5 ms, so a longer group would no longer be amortising it.
pub const MOST_WORK: Duration = Duration::from_millis(5);

/// What one COMMIT may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Jobs.
    pub jobs: usize,
    /// Bytes of parameters.
    pub bytes: u64,
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
            || (self.jobs < bounds.jobs && self.bytes.saturating_add(bytes) <= bounds.bytes && self.work < MOST_WORK)
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

    const BOUNDS: Bounds = Bounds { jobs: 3, bytes: 100 };

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
}
