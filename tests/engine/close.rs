//! Complete close: it refuses new work, answers all that was accepted, and leaves no file open; it is safe twice.

use std::sync::Barrier;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use walpool::caller::Call;
use walpool::connection::Want;
use walpool::engine::Engine;
use walpool::error::Kind;
use walpool::value::Params;

use crate::support::*;

/// ```text
/// holder         eight writers      closer
/// lease
///                queued
///                                   close: waits for all of them
/// submit -> Closed
/// rollback       run, answered
///                                   returns
/// ```
#[test]
fn close_answers_every_waiting_job() {
    let db = Database::with_items(|_| ());
    let other = db.again(); // so that the file can be looked into afterwards
    let lease = db.lease(&Call::internal()).unwrap();
    other.close(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|id| {
                scope.spawn({
                    let db = &db;
                    move || submit(db, insert(id))
                })
            })
            .collect();
        until_waiting(&db, 8);
        let closer = scope.spawn(|| db.close(&Call::internal()));
        until("close has begun", || db.is_closed());
        assert_eq!(failure(submit(&db, insert(100))).kind, Kind::Closed);
        assert_eq!(failure(fetch(&db, &Call::internal(), "SELECT 1")).kind, Kind::Closed);
        assert_eq!(db.lease(&Call::internal()).err().unwrap().kind, Kind::Closed);
        lease.rollback().unwrap();
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
        closer.join().unwrap().unwrap();
    });
    assert_eq!(items(&db.again()).len(), 8);
}

#[cfg(target_os = "linux")]
#[test]
fn close_leaves_no_descriptor_open_and_no_wal_behind() {
    let db = Database::with_items(|_| ());
    thread::scope(|scope| {
        for id in 0..8 {
            let db = &db;
            scope.spawn(move || {
                submit(db, insert(id)).unwrap();
                items(db);
            });
        }
    });
    assert!(!descriptors(&db.path).is_empty());
    db.close(&Call::internal()).unwrap();
    assert_eq!(descriptors(&db.path), Vec::<std::path::PathBuf>::new());
    let left: Vec<_> = db.folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["test.db"]);
}

#[test]
fn close_is_safe_twice_and_from_several_threads() {
    let db = Database::with_items(|_| ());
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                db.close(&Call::internal()).unwrap();
            });
        }
    });
    db.close(&Call::internal()).unwrap();
    assert!(db.is_closed());
}

#[test]
fn file_stays_open_until_the_last_handle_closes() {
    let db = Database::with_items(|_| ());
    let other = db.again();
    db.close(&Call::internal()).unwrap();
    submit(&other, insert(1)).unwrap();
    assert_eq!(items(&other), [1]);
    drop(other);
    #[cfg(target_os = "linux")]
    assert!(descriptors(&db.path).is_empty());
}

#[test]
fn close_takes_back_what_is_still_held_after_its_time() {
    let db = Database::with_items(|config| config.transaction_timeout = Duration::from_millis(200));
    let lease = db.lease(&Call::internal()).unwrap();
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    let stream = db.stream(&Call::internal(), "SELECT 1 UNION SELECT 2", &Params::NONE).unwrap();
    lease.execute(&Call::internal(), "INSERT INTO item (id) VALUES (1)", &Params::NONE).unwrap();
    db.close(&Call::internal()).unwrap();
    #[cfg(target_os = "linux")]
    assert!(descriptors(&db.path).is_empty());
    assert_eq!(failure(lease.commit(&Call::internal())).kind, Kind::TransactionTimeout);
    let gone = snapshot.fetch(&Call::internal(), "SELECT 1", &Params::NONE, Want::ALL);
    assert_eq!(failure(gone).kind, Kind::TransactionTimeout);
    assert_eq!(failure(stream.next_rows(&Call::internal(), Want::ALL)).kind, Kind::TransactionTimeout);
    assert_eq!(items(&db.again()), []);
}

/// ```text
/// holder           reader                     closer
/// snapshot
///                  no reader is free: waits
///                                             close
///                  Closed
/// ends it                                     returns
/// ```
#[test]
fn close_ends_the_wait_for_a_reader() {
    let db = Database::with(|config| config.readers = 1);
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    let (caller, waits) = Telling::waits();
    let call = call_of(caller);
    thread::scope(|scope| {
        let reader = scope.spawn(|| fetch(&db, &call, "SELECT 1"));
        waits.recv().unwrap();
        let closer = scope.spawn(|| db.close(&Call::internal()));
        assert_eq!(failure(reader.join().unwrap()).kind, Kind::Closed);
        snapshot.end();
        closer.join().unwrap().unwrap();
    });
}

/// ```text
/// holder      queued       held back by bytes       closer
/// lease
///             in the queue
///                          waits for room
///                                                   close
///                          Closed
/// rollback    answered                              returns
/// ```
#[test]
fn close_refuses_those_who_are_held_back() {
    let db = Database::with_items(|config| config.max_waiting_bytes = 1_024);
    let lease = db.lease(&Call::internal()).unwrap();
    let (caller, waits) = Telling::waits();
    let call = call_of(caller);
    thread::scope(|scope| {
        let queued = scope.spawn(|| submit(&db, insert_bytes(1, 900)));
        until_waiting(&db, 1);
        let held_back = scope.spawn(|| db.submit(&call, insert_bytes(2, 900)));
        waits.recv().unwrap();
        let closer = scope.spawn(|| db.close(&Call::internal()));
        assert_eq!(failure(held_back.join().unwrap()).kind, Kind::Closed);
        lease.rollback().unwrap();
        queued.join().unwrap().unwrap();
        closer.join().unwrap().unwrap();
    });
    assert_eq!(items(&db.again()), [1]);
}

/// ```text
/// eight threads                      closer
/// submit, fetch, lease, snapshot
///                                    close, at any instant
/// an answer, or Closed               returns
///                                    reopens: exactly what was acknowledged
/// ```
#[test]
fn close_that_races_with_everything_loses_nothing_that_was_acknowledged() {
    for round in 0..15 {
        let db = Database::with_items(|config| config.readers = 2);
        let start = Barrier::new(9);
        let acknowledged = AtomicI64::new(0);
        thread::scope(|scope| {
            for worker in 0..8 {
                let (db, start, acknowledged) = (&db, &start, &acknowledged);
                scope.spawn(move || {
                    start.wait();
                    let error = std::iter::repeat(()).find_map(|()| work(db, worker, acknowledged).err()).unwrap();
                    assert_eq!(error.kind, Kind::Closed, "{error}");
                });
            }
            start.wait();
            until("some work is done", || acknowledged.load(Ordering::Relaxed) > round * 5);
            db.close(&Call::internal()).unwrap();
        });
        #[cfg(target_os = "linux")]
        assert!(descriptors(&db.path).is_empty());
        assert_eq!(int(&db.again(), "SELECT count(*) FROM item"), acknowledged.load(Ordering::Relaxed));
    }
}

fn work(db: &Engine, worker: i64, acknowledged: &AtomicI64) -> walpool::error::Result<()> {
    let call = Call::internal();
    match worker % 4 {
        0 => drop(fetch(db, &call, "SELECT count(*) FROM item")?),
        1 => drop(db.snapshot(&call)?),
        2 => {
            let lease = db.lease(&call)?;
            lease.execute(&call, "INSERT INTO item (data) VALUES (1)", &Params::NONE)?;
            lease.commit(&call)?;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        _ => {
            db.submit(&call, job("INSERT INTO item (data) VALUES (1)"))?;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// ```text
/// several threads, again and again: open the same file, write, close
/// ```
#[test]
fn open_and_close_may_race_on_one_file() {
    let db = Database::with_items(|_| ());
    thread::scope(|scope| {
        for worker in 0..4 {
            let db = &db;
            scope.spawn(move || {
                for n in 0..25 {
                    let engine = db.again();
                    submit(&engine, insert(worker * 1_000 + n)).unwrap();
                    engine.close(&Call::internal()).unwrap();
                }
            });
        }
        db.close(&Call::internal()).unwrap();
    });
    assert_eq!(items(&db.again()).len(), 100);
}
