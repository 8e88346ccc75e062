//! When to checkpoint, in which mode, what came of it. Must not know the queue.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::connection::{CheckpointMode, Checkpointed, Connection};
use crate::error::Result;
use crate::stats::Stats;

/// Frames between two checkpoints, 16 MiB of the usual pages: one segment of the WAL's index, so that readers search one
/// hash table. SQLite's own 1 000 writes hot pages four times as often, and took a fifth of a busy writer's time
/// (benches/README.md, "checkpoints"). <https://www.sqlite.org/walformat.html>
const FRAMES: u32 = 4_000;

/// A checkpoint that a reader held up is tried again after this, doubling up to `LONGEST_RETRY`.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// A frame's header. <https://www.sqlite.org/fileformat2.html#walformat>
const FRAME_HEADER: u64 = 24;
const PAGE: u64 = 4096; // the usual page: the limit is one of order, not of bytes

/// Decides, and remembers what came of it.
pub struct Checkpointer {
    wal: PathBuf,
    limit_frames: u32,
    due_at: AtomicU32,
    retry_ms: AtomicU64,
    stats: Arc<Stats>,
}

/// What is left to do after a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// When to try again, if it did not finish.
    pub retry: Option<Duration>,
    /// Bytes of the WAL, if it is past its limit and could not be made smaller.
    pub bytes_past_limit: Option<u64>,
}

impl Checkpointer {
    /// For a database's WAL of `wal_limit` bytes.
    pub fn new(database: &Path, wal_limit: u64, stats: Arc<Stats>) -> Self {
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        let limit_frames = u32::try_from(wal_limit / (PAGE + FRAME_HEADER)).unwrap_or(u32::MAX);
        Checkpointer {
            wal: wal.into(),
            limit_frames,
            due_at: AtomicU32::new(FRAMES),
            retry_ms: AtomicU64::new(0),
            stats,
        }
    }

    /// Whether a WAL of so many frames wants a checkpoint.
    pub fn is_due(&self, wal_frames: u32) -> bool {
        wal_frames >= self.due_at.load(Ordering::Relaxed)
    }

    /// Bring the WAL to the disk while the writer goes on. A checkpoint begins with this, and with `synchronous=normal` it
    /// is the longest part of it: done before, it keeps nobody waiting. Locks are not touched: SQLite has none on the WAL.
    pub fn sync_wal(&self) {
        if let Ok(wal) = File::open(&self.wal) {
            // The checkpoint syncs it again, and tells if that fails.
            let _ = wal.sync_data();
        }
    }

    /// Checkpoint, in the mode that fits: passive, and past the limit truncate, which never waits here.
    pub fn run(&self, conn: &Connection) -> Result<Next> {
        let started = Instant::now();
        let mut done = conn.checkpoint(CheckpointMode::Passive)?;
        let frames = done.wal_frames;
        if done.is_complete() && frames >= self.limit_frames {
            done = conn.checkpoint(CheckpointMode::Truncate)?;
        }
        self.stats.checkpoint.record_duration(started.elapsed());
        Ok(self.settle(done, frames))
    }

    fn settle(&self, done: Checkpointed, frames: u32) -> Next {
        if done.is_complete() {
            self.stats.checkpoints.one();
            // The next writer starts the WAL anew if no reader is in it; else it goes on growing from here.
            self.due_at.store(FRAMES, Ordering::Relaxed);
            self.retry_ms.store(0, Ordering::Relaxed);
            return Next { retry: None, bytes_past_limit: None };
        }
        self.stats.checkpoints_incomplete.one();
        self.due_at.store(frames.saturating_add(FRAMES), Ordering::Relaxed);
        let retry = Duration::from_millis(self.retry_ms.load(Ordering::Relaxed) * 2).clamp(FIRST_RETRY, LONGEST_RETRY);
        self.retry_ms.store(retry.as_millis() as u64, Ordering::Relaxed);
        let is_past = frames >= self.limit_frames;
        Next { retry: Some(retry), bytes_past_limit: is_past.then(|| u64::from(frames) * (PAGE + FRAME_HEADER)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpointer() -> Checkpointer {
        Checkpointer::new(Path::new("x.db"), 10_000 * (PAGE + FRAME_HEADER), Arc::default())
    }

    fn done(wal_frames: u32, moved_frames: u32) -> Checkpointed {
        Checkpointed { was_busy: false, wal_frames, moved_frames }
    }

    #[test]
    fn an_incomplete_checkpoint_is_tried_again_ever_later() {
        let checkpointer = checkpointer();
        assert!(checkpointer.is_due(FRAMES) && !checkpointer.is_due(FRAMES - 1));
        let retries: Vec<_> =
            (0..8).map(|_| checkpointer.settle(done(2_000, 5), 2_000).retry.map(|retry| retry.as_millis())).collect();
        assert_eq!(retries, [20, 40, 80, 160, 320, 640, 1_000, 1_000].map(Some));
        assert!(!checkpointer.is_due(5_999) && checkpointer.is_due(6_000));
        assert_eq!(checkpointer.settle(done(2_000, 2_000), 2_000).retry, None);
        assert!(checkpointer.is_due(FRAMES));
    }

    #[test]
    fn a_wal_past_its_limit_is_told_with_its_size() {
        let checkpointer = checkpointer();
        assert_eq!(checkpointer.settle(done(9_999, 0), 9_999).bytes_past_limit, None);
        assert_eq!(checkpointer.settle(done(10_000, 0), 10_000).bytes_past_limit, Some(10_000 * (PAGE + FRAME_HEADER)));
    }
}
