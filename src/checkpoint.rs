//! When to checkpoint, in which mode, what came of it. Must not know the queue.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::{Config, Synchronous};
use crate::connection::{CheckpointMode, Checkpointed, Connection};
use crate::error::Result;
use crate::stats::Stats;
use crate::sync::Mutex;

/// A WAL of fewer frames is left alone: SQLite's own number, 4 MiB of the usual pages. A WAL that grows the file costs twice
/// the fsync of one that is written over, so a lone writer should not let it grow far.
const LEAST_FRAMES: u32 = 1_000;
/// A WAL of more frames is checkpointed at once, 16 MiB: one segment of the WAL's index. A busy writer comes here first, since
/// checkpoints every thousand frames took a fifth of its time (benches/README.md, "checkpoints").
const MOST_FRAMES: u32 = 4_000;
/// Between the two, a checkpoint comes no sooner after the last one than this: a few per cent of the time.
const INTERVAL: Duration = Duration::from_millis(100);

/// A checkpoint that a reader held up is tried again after this, doubling up to `LONGEST_RETRY`.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// How long a checkpoint keeps the writers waiting for readers to leave the WAL, for each time that the limit is in it:
/// several times a short read, and no more than a slow fsync.
const PATIENCE: Duration = Duration::from_millis(10);
pub const LONGEST_PATIENCE: Duration = Duration::from_millis(100);
/// A WAL that has been past its limit for so long is held there by somebody who does not go in a moment: worth a warning.
const PERSISTS: Duration = Duration::from_millis(500);

/// A frame's header. <https://www.sqlite.org/fileformat2.html#walformat>
const FRAME_HEADER: u64 = 24;
const PAGE: u64 = 4096; // the usual page: the limit is one of order, not of bytes

/// Decides, and remembers what came of it.
pub struct Checkpointer {
    wal: PathBuf,
    syncs_first: bool,
    limit_frames: u32,
    /// Frames that the last checkpoint left behind; 0 if it was complete.
    left: AtomicU32,
    last: Mutex<Instant>,
    retry_ms: AtomicU64,
    excess: Mutex<Excess>,
    stats: Arc<Stats>,
}

/// A WAL that stays past its limit whatever is tried. What did not help, or was told, is worth repeating when it has doubled.
#[derive(Default)]
struct Excess {
    since: Option<Instant>,
    told_frames: u32,
    /// Where the writers were kept waiting for as long as they ever are, and nobody left the WAL.
    waited_frames: u32,
}

impl Excess {
    fn is_to_be_told(&mut self, frames: u32, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_news = now - since >= PERSISTS && has_doubled(frames, self.told_frames);
        if is_news {
            self.told_frames = frames;
        }
        is_news
    }
}

fn has_doubled(frames: u32, before: u32) -> bool {
    frames / 2 >= before
}

/// What is left to do after a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// When to try again, if it did not finish.
    pub retry: Option<Duration>,
    /// Bytes of the WAL, if it stays past its limit and somebody should hear of it: once, and again when it has doubled.
    pub bytes_past_limit: Option<u64>,
}

impl Checkpointer {
    /// For a database's WAL.
    pub fn new(database: &Path, config: &Config, stats: Arc<Stats>) -> Self {
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        let limit_frames = u32::try_from(config.wal_limit / (PAGE + FRAME_HEADER)).unwrap_or(u32::MAX);
        Checkpointer {
            wal: wal.into(),
            syncs_first: config.synchronous == Synchronous::Normal,
            limit_frames,
            left: AtomicU32::new(0),
            last: Mutex::new(Instant::now()),
            retry_ms: AtomicU64::new(0),
            excess: Mutex::default(),
            stats,
        }
    }

    /// Whether a WAL of so many frames wants a checkpoint.
    pub fn is_due(&self, wal_frames: u32) -> bool {
        let grown = wal_frames.saturating_sub(self.left.load(Ordering::Relaxed));
        grown >= MOST_FRAMES.min(self.limit_frames) || (grown >= LEAST_FRAMES && self.last.lock().elapsed() >= INTERVAL)
    }

    /// Bring the WAL to the disk while the writer goes on. A checkpoint begins with this, and with `synchronous=normal` it
    /// is the longest part of it: done before, it keeps nobody waiting. Locks are not touched: SQLite has none on the WAL.
    pub fn sync_wal(&self) {
        if !self.syncs_first {
            return; // each commit has done so
        }
        if let Ok(wal) = File::open(&self.wal) {
            // The checkpoint syncs it again, and tells if that fails.
            let _ = wal.sync_data();
        }
    }

    /// Checkpoint, in the mode that fits: passive, which waits for nobody; past the limit truncate, with some patience.
    /// `longest_read` is how long the longest read of this process has gone on.
    ///
    /// Truncating keeps the writers out, of every process, until no reader is in the WAL:
    ///
    /// ```text
    /// reader 1          reader 2          checkpoint (nobody writes meanwhile)
    /// in the WAL
    ///                   in the WAL        moves what neither needs
    /// ends
    /// reads again: the newest snapshot
    ///                   ends              moves all
    ///                   reads again: from the file
    /// ends                                truncates
    /// ```
    ///
    /// With writers at work the reader that ends would be back behind a new commit each time, and the WAL would grow for
    /// ever under readers of microseconds, as long as there are two.
    pub fn run(&self, conn: &Connection, longest_read: Duration) -> Result<Next> {
        let started = Instant::now();
        let mut done = conn.checkpoint(CheckpointMode::Passive)?;
        let frames = done.wal_frames;
        if frames >= self.limit_frames {
            let patience = self.patience(frames, longest_read);
            done = conn.checkpoint_patiently(CheckpointMode::Truncate, patience)?;
            if patience == LONGEST_PATIENCE && !done.was_refused() {
                self.excess.lock().waited_frames = frames;
            }
        }
        let now = Instant::now();
        self.stats.checkpoint.record_duration(now - started);
        *self.last.lock() = now;
        Ok(self.settle(done, frames, now))
    }

    /// How long the writers may be kept waiting for readers to leave the WAL: longer the further it is past its limit, and
    /// not at all where a long read would not leave in time, of this process or, as far as was seen, of another.
    fn patience(&self, frames: u32, longest_read: Duration) -> Duration {
        let is_in_vain = longest_read > LONGEST_PATIENCE || !has_doubled(frames, self.excess.lock().waited_frames);
        let patience = (PATIENCE * (frames / self.limit_frames.max(1))).min(LONGEST_PATIENCE);
        if is_in_vain { Duration::ZERO } else { patience }
    }

    fn settle(&self, done: Checkpointed, frames: u32, now: Instant) -> Next {
        if done.was_refused() {
            self.stats.checkpoints_incomplete.one();
            return Next { retry: Some(FIRST_RETRY), bytes_past_limit: None }; // the other one may well finish
        }
        let is_past = !done.is_complete() && frames >= self.limit_frames;
        let is_told = {
            let mut excess = self.excess.lock();
            if !is_past {
                *excess = Excess::default();
            }
            is_past && excess.is_to_be_told(frames, now)
        };
        if done.is_complete() {
            self.stats.checkpoints.one();
            self.left.store(0, Ordering::Relaxed); // the next writer starts the WAL anew if no reader is in it
            self.retry_ms.store(0, Ordering::Relaxed);
            return Next { retry: None, bytes_past_limit: None };
        }
        self.stats.checkpoints_incomplete.one();
        self.left.store(frames, Ordering::Relaxed);
        let retry = Duration::from_millis(self.retry_ms.load(Ordering::Relaxed) * 2).clamp(FIRST_RETRY, LONGEST_RETRY);
        self.retry_ms.store(retry.as_millis() as u64, Ordering::Relaxed);
        Next { retry: Some(retry), bytes_past_limit: is_told.then(|| u64::from(frames) * (PAGE + FRAME_HEADER)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpointer() -> Checkpointer {
        let config = Config { wal_limit: 10_000 * (PAGE + FRAME_HEADER), ..Config::default() };
        Checkpointer::new(Path::new("x.db"), &config, Arc::default())
    }

    fn done(wal_frames: u32, moved_frames: u32) -> Checkpointed {
        Checkpointed { was_busy: false, wal_frames, moved_frames }
    }

    #[test]
    fn a_wal_is_due_by_its_frames_and_between_two_bounds_by_the_clock() {
        let checkpointer = checkpointer();
        assert!(checkpointer.is_due(MOST_FRAMES) && !checkpointer.is_due(MOST_FRAMES - 1));
        *checkpointer.last.lock() -= INTERVAL;
        assert!(checkpointer.is_due(LEAST_FRAMES) && !checkpointer.is_due(LEAST_FRAMES - 1));
    }

    #[test]
    fn an_incomplete_checkpoint_is_tried_again_ever_later() {
        let (checkpointer, now) = (checkpointer(), Instant::now());
        let retries: Vec<_> = (0..8)
            .map(|_| checkpointer.settle(done(2_000, 5), 2_000, now).retry.map(|retry| retry.as_millis()))
            .collect();
        assert_eq!(retries, [20, 40, 80, 160, 320, 640, 1_000, 1_000].map(Some));
        assert!(!checkpointer.is_due(5_999) && checkpointer.is_due(6_000));
        assert_eq!(checkpointer.settle(done(2_000, 2_000), 2_000, now).retry, None);
        assert!(checkpointer.is_due(MOST_FRAMES));
    }

    #[test]
    fn a_checkpoint_beside_that_of_another_process_changes_nothing() {
        let (checkpointer, now) = (checkpointer(), Instant::now());
        let refused = Checkpointed { was_busy: true, wal_frames: 0, moved_frames: 0 };
        checkpointer.settle(done(12_000, 5), 12_000, now - PERSISTS);
        assert_eq!(checkpointer.settle(refused, 0, now).retry, Some(FIRST_RETRY));
        let next = checkpointer.settle(done(12_000, 5), 12_000, now);
        assert_eq!((next.retry, next.bytes_past_limit.is_some()), (Some(FIRST_RETRY * 2), true));
    }

    #[test]
    fn writers_wait_the_longer_the_further_the_wal_is_past_its_limit_and_never_for_a_long_read() {
        let checkpointer = checkpointer();
        let patience = |frames, read_ms| checkpointer.patience(frames, Duration::from_millis(read_ms)).as_millis();
        assert_eq!((patience(10_000, 0), patience(35_000, 5), patience(500_000, 100)), (10, 30, 100));
        assert_eq!(patience(500_000, 101), 0);
    }

    #[test]
    fn writers_do_not_wait_again_for_what_did_not_leave_until_the_wal_has_doubled() {
        let checkpointer = checkpointer();
        let patience = |frames| checkpointer.patience(frames, Duration::ZERO);
        assert_eq!(patience(100_000), LONGEST_PATIENCE);
        checkpointer.excess.lock().waited_frames = 100_000;
        assert_eq!((patience(199_999), patience(200_000)), (Duration::ZERO, LONGEST_PATIENCE));
        checkpointer.settle(done(0, 0), 200_000, Instant::now());
        assert_eq!(patience(100_000), LONGEST_PATIENCE);
    }

    #[test]
    fn a_wal_that_stays_past_its_limit_is_told_once_and_again_when_it_has_doubled() {
        let (checkpointer, start) = (checkpointer(), Instant::now());
        let told = |frames, after| checkpointer.settle(done(frames, 0), frames, start + after).bytes_past_limit;
        let bytes = |frames: u64| Some(frames * (PAGE + FRAME_HEADER));
        assert_eq!((told(9_999, PERSISTS), told(10_000, PERSISTS)), (None, None)); // past its limit from now on
        assert_eq!((told(11_000, PERSISTS * 2), told(21_999, PERSISTS * 9)), (bytes(11_000), None));
        assert_eq!((told(22_000, PERSISTS * 9), told(22_000, PERSISTS * 99)), (bytes(22_000), None));
        checkpointer.settle(done(0, 0), 22_000, start);
        assert_eq!((told(12_000, PERSISTS * 100), told(12_000, PERSISTS * 101)), (None, bytes(12_000)));
    }
}
