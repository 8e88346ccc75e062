//! Another process holds the write lock. A connection of this process that walpool knows nothing of stands for it: SQLite
//! keeps the two apart just as well.

use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use walpool::caller::Call;
use walpool::connection::Want;
use walpool::error::{Kind, Outcome};
use walpool::value::Params;

use crate::support::*;

/// Until the caller has met the lock: it is told of the wait again and again then. Once may have been before it tried.
fn await_busy(waits: &Receiver<()>) {
    waits.iter().take(2).for_each(drop);
}

#[test]
fn job_waits_for_the_lock_of_another_process() {
    let db = Database::with_items(|_| ());
    let foreign = db.foreign();
    foreign.execute_batch("BEGIN IMMEDIATE; INSERT INTO item (id) VALUES (1)").unwrap();
    let (caller, waits) = Telling::waits();
    let call = call_of(caller);
    thread::scope(|scope| {
        let writer = scope.spawn(|| db.submit(&call, insert(2)));
        await_busy(&waits);
        assert_eq!(items(&db), [], "reads do not wait");
        foreign.execute_batch("COMMIT").unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!((items(&db), figure(&db, "busy_waits")), (vec![1, 2], 1));
}

#[test]
fn transaction_waits_for_the_lock_of_another_process() {
    let db = Database::with_items(|_| ());
    let foreign = db.foreign();
    foreign.execute_batch("BEGIN IMMEDIATE; INSERT INTO item (id) VALUES (1)").unwrap();
    let (caller, waits) = Telling::waits();
    let call = call_of(caller);
    thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let lease = db.lease(&call)?;
            lease.execute(&call, "INSERT INTO item (id) VALUES (2)", &Params::NONE)?;
            lease.commit(&call)
        });
        await_busy(&waits);
        foreign.execute_batch("COMMIT").unwrap();
        holder.join().unwrap().unwrap();
    });
    assert_eq!(items(&db), [1, 2]);
}

#[test]
fn job_is_not_applied_when_another_process_keeps_the_lock_for_busy_timeout() {
    let db = Database::with_items(|config| config.busy_timeout = Duration::from_millis(50));
    let foreign = db.foreign();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = failure(submit(&db, insert(1)));
    assert_eq!((error.kind, error.outcome), (Kind::Busy, Outcome::NotApplied));
    assert!(error.kind.is_retryable() && error.message.contains("busy_timeout"), "{error}");
    let refused = db.lease(&Call::internal()).err().unwrap();
    assert_eq!((refused.kind, refused.outcome), (Kind::Busy, Outcome::NotApplied));
    foreign.execute_batch("COMMIT").unwrap();
    submit(&db, insert(2)).unwrap();
    assert_eq!(items(&db), [2]);
}

/// ```text
/// another process     four jobs, at once
/// BEGIN IMMEDIATE
///                     the first leads: busy, busy, ... until its busy_timeout is over
///                     the second has waited as long: its busy_timeout is over too
/// ```
#[test]
fn each_job_waits_for_another_process_by_its_own_clock() {
    const BUSY_TIMEOUT: Duration = Duration::from_millis(600);
    let db = Database::with_items(|config| config.busy_timeout = BUSY_TIMEOUT);
    let foreign = db.foreign();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::scope(|scope| {
        let submit = |id| {
            let db = &db;
            scope.spawn(move || {
                let call = Call::internal();
                (failure(db.submit(&call, insert(id))), call.started.elapsed())
            })
        };
        let waiters: Vec<_> = (0..4).map(submit).collect();
        for waiter in waiters {
            let (error, waited) = waiter.join().unwrap();
            assert_eq!(error.kind, Kind::Busy, "{error}");
            // Twice as long would be the busy_timeout of the one before it and then its own.
            assert!(BUSY_TIMEOUT <= waited && waited < BUSY_TIMEOUT * 19 / 10, "it waited for {waited:?}");
        }
    });
    foreign.execute_batch("COMMIT").unwrap();
    submit(&db, insert(9)).unwrap();
    assert_eq!(items(&db), [9]);
}

#[test]
fn write_timeout_ends_the_wait_for_another_process_if_it_is_shorter() {
    let db = Database::with_items(|_| ());
    let foreign = db.foreign();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = failure(db.submit(&call_within(Duration::from_millis(50)), insert(1)));
    assert_eq!((error.kind, error.outcome), (Kind::WriteTimeout, Outcome::NotApplied));
    assert!(error.message.contains("another process"), "{error}");
    foreign.execute_batch("COMMIT").unwrap();
}

#[test]
fn vacuum_waits_for_the_lock_of_another_process() {
    let db = Database::with_items(|_| ());
    let foreign = db.foreign();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::scope(|scope| {
        let vacuum = scope.spawn(|| db.vacuum(&Call::internal()));
        until("vacuum has the writer, or has failed", || vacuum.is_finished() || figure(&db, "busy_waits") > 0);
        foreign.execute_batch("COMMIT").unwrap();
        vacuum.join().unwrap().unwrap();
    });
}

/// ```text
/// another process     this one: job after job, in gaps of microseconds
/// BEGIN IMMEDIATE
///                     busy: it is not alone
/// COMMIT
///                     a job, a job, ...
///                     waits for a moment before the next
/// ```
#[test]
fn lock_is_left_for_a_moment_where_another_process_writes_too() {
    let db = Database::with_items(|_| ());
    let mut foreign = db.foreign();
    let (caller, mut waits) = Telling::waits();
    let call = call_of(caller);
    // One thread here, and no disk to wait for: whatever it is told of is the lock.
    let left_in_ten_jobs = |waits: &Receiver<()>| {
        for _ in 0..10 {
            db.submit(&call, job(&TAKES_MILLISECONDS.replace("1000", "NULL"))).unwrap();
        }
        waits.try_iter().count() > 0
    };
    assert!(!left_in_ten_jobs(&waits), "nobody else writes");
    until("the lock is left", || {
        foreign.execute_batch("BEGIN IMMEDIATE; DELETE FROM item").unwrap();
        thread::scope(|scope| {
            let (foreign, waits) = (&mut foreign, &mut waits);
            scope.spawn(move || {
                await_busy(waits);
                foreign.execute_batch("COMMIT").unwrap();
            });
            db.submit(&call, insert(0)).unwrap();
        });
        waits.try_iter().for_each(drop); // what it was told of that wait
        left_in_ten_jobs(&waits)
    });
}

#[test]
fn what_another_process_committed_is_seen() {
    let db = Database::with_items(|config| config.readers = 1);
    let foreign = db.foreign();
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    foreign.execute("INSERT INTO item (id) VALUES (1)", []).unwrap();
    let seen = snapshot.fetch(&Call::internal(), "SELECT id FROM item", &Params::NONE, Want::ALL).unwrap();
    assert_eq!(seen.len(), 0);
    drop(snapshot);
    assert_eq!(items(&db), [1]);
    submit(&db, job("INSERT INTO item (id) SELECT max(id) + 1 FROM item")).unwrap();
    let sum: i64 = foreign.query_row("SELECT sum(id) FROM item", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 3);
}
