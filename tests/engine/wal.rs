//! The WAL stays small; a reader that pins it is named, and gone, it shrinks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use walpool::caller::Call;
use walpool::connection::{CheckpointMode, Want};
use walpool::log::Level;
use walpool::value::{Params, Value};

use crate::support::*;

const MIB: u64 = 1 << 20;

/// ```text
/// four writers                        four readers                      keeper
/// COMMIT, COMMIT, ...                 SELECT, SELECT, ... (short)       checkpoints in between
/// ```
#[test]
fn wal_stays_small_under_hot_writers_and_short_readers() {
    let db = Database::with_items(|config| config.wal_limit = 2 * MIB);
    let (is_over, largest) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    int(&db, "SELECT count(*) FROM item");
                    largest.fetch_max(db.wal_bytes(), Ordering::Relaxed);
                }
            });
        }
        let write = |writer: i64| {
            let db = &db;
            scope.spawn(move || {
                for n in 0..500 {
                    let sql = "INSERT INTO item VALUES (?1, ?2) ON CONFLICT DO UPDATE SET data = ?2";
                    let data = Value::Blob(vec![n as u8; 20_000].into());
                    submit(db, job_with(sql, vec![Value::Integer(writer * 10 + n % 10), data])).unwrap();
                }
            })
        };
        let writers: Vec<_> = (0..4).map(write).collect();
        for writer in writers {
            writer.join().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let (largest, written) = (largest.into_inner(), 4 * 500 * 20_000);
    assert!(largest < written / 2, "{written} bytes were written, and the WAL grew to {largest}");
    assert!(figure(&db, "checkpoints") > 0);
}

/// ```text
/// reader                  writer                      keeper
/// snapshot, SELECT
///                         COMMIT, past wal_limit
///                                                     checkpoint: incomplete; warns, names the reader
/// ends it
///                                                     tries again: complete, the WAL is cut
/// ```
#[test]
fn reader_that_pins_the_wal_is_named_and_the_wal_shrinks_after_it() {
    let db = Database::with_items(|config| config.wal_limit = MIB);
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    snapshot.fetch(&Call::internal(), "SELECT count(*) AS pinned FROM item", &Params::NONE, Want::ALL).unwrap();
    for id in 0..10 {
        submit(&db, insert_bytes(id, MIB as usize)).unwrap();
    }
    let mut told = Vec::new();
    until("the reader is named", || {
        told.extend(db.take_messages());
        told.iter().any(|message| {
            message.level == Level::Warning
                && message.text.contains("wal_limit")
                && message.text.contains("SELECT count(*) AS pinned FROM item")
        })
    });
    assert!(db.wal_bytes() > 10 * MIB);
    assert!(figure(&db, "checkpoints_incomplete") > 0);
    snapshot.end();
    until("the WAL shrinks", || db.wal_bytes() <= MIB);
    assert_eq!(items(&db).len(), 10);
}

#[test]
fn checkpoint_moves_the_wal_into_the_file() {
    let db = Database::with_items(|_| ());
    for id in 0..20 {
        submit(&db, insert_bytes(id, 10_000)).unwrap();
    }
    assert!(db.wal_bytes() > 0);
    let done = db.checkpoint(&Call::internal(), CheckpointMode::Truncate).unwrap();
    assert!(done.is_complete(), "{done:?}");
    assert_eq!(db.wal_bytes(), 0);
    assert_eq!(items(&db).len(), 20);
}

#[test]
fn frames_are_counted_for_the_file_they_are_in() {
    let (large, small) = (Database::with_items(|_| ()), Database::with_items(|_| ()));
    submit(&large, insert_bytes(1, 3_000_000)).unwrap();
    submit(&small, job("DELETE FROM item WHERE id = 7")).unwrap(); // on the same thread, and it writes no frame
    assert!(figure(&large, "wal_frames") > 700);
    assert!(figure(&small, "wal_frames") < 10, "{}", figure(&small, "wal_frames"));
}
