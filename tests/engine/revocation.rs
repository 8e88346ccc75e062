//! What is held for longer than `transaction_timeout` is taken back: leases, snapshots and streams, idle or in use.

use std::thread;
use std::time::Duration;

use walpool::caller::Call;
use walpool::connection::Want;
use walpool::error::{Kind, Outcome};
use walpool::log::{Level, Message};
use walpool::value::Params;

use crate::support::*;

const TENURE: Duration = Duration::from_millis(100);

fn short_tenure() -> Database {
    Database::with_items(|config| config.transaction_timeout = TENURE)
}

/// ```text
/// holder                        keeper                     next
/// lease, INSERT
///                                                          submit: queued
/// (idle)                        deadline: rolls back,
///                               passes the seat on         leads, COMMIT
/// execute -> TransactionTimeout
/// ```
#[test]
fn idle_transaction_is_rolled_back_and_the_writer_given_to_the_next() {
    let db = short_tenure();
    let lease = db.lease(&Call::internal()).unwrap();
    lease.execute(&Call::internal(), "INSERT INTO item (id) VALUES (1)", &Params::NONE).unwrap();
    submit(&db, insert(2)).unwrap();
    let error = failure(lease.execute(&Call::internal(), "INSERT INTO item (id) VALUES (3)", &Params::NONE));
    assert_eq!((error.kind, error.outcome), (Kind::TransactionTimeout, Outcome::NotApplied));
    assert_eq!(failure(lease.commit(&Call::internal())).kind, Kind::TransactionTimeout);
    lease.rollback().unwrap();
    assert_eq!(items(&db), [2]);
    until("it is counted and told", || {
        let is_told = |message: &Message| {
            message.level == Level::Warning
                && message.text.contains("transaction_timeout")
                && message.text.contains("INSERT INTO item (id) VALUES (1)")
        };
        figure(&db, "leases_revoked") == 1 && db.take_messages().iter().any(is_told)
    });
}

#[test]
fn transaction_is_taken_back_in_the_middle_of_a_long_write() {
    let db = short_tenure();
    let lease = db.lease(&Call::internal()).unwrap();
    lease.execute(&Call::internal(), "INSERT INTO item (id) VALUES (1)", &Params::NONE).unwrap();
    let error = failure(lease.execute(&Call::internal(), ENDLESS_WRITE, &Params::NONE));
    assert_eq!((error.kind, error.outcome), (Kind::TransactionTimeout, Outcome::NotApplied));
    submit(&db, insert(2)).unwrap();
    assert_eq!(failure(lease.commit(&Call::internal())).kind, Kind::TransactionTimeout);
    assert_eq!(items(&db), [2]);
}

#[test]
fn transaction_is_taken_back_in_the_middle_of_a_long_read() {
    let db = short_tenure();
    let lease = db.lease(&Call::internal()).unwrap();
    let error = failure(lease.fetch(&Call::internal(), ENDLESS, &Params::NONE, Want::ALL));
    assert_eq!(error.kind, Kind::TransactionTimeout);
    submit(&db, insert(1)).unwrap();
    assert_eq!(items(&db), [1]);
}

/// The checkpoint that is due waits for the writer; who takes the writer back must not wait with it.
///
/// ```text
/// holder       writer                      keeper
/// lease
///              queued: many pages
///              queued: a lease, held for ever
/// rollback     COMMIT: checkpoint is due   wants a turn: behind the lease
///              lease                       deadline: must revoke it
/// ```
#[test]
fn transaction_is_taken_back_in_time_while_a_checkpoint_is_due() {
    let db = Database::with_items(|config| {
        config.transaction_timeout = 5 * TENURE;
        config.write_timeout = Duration::from_secs(50);
    });
    let first = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let large = scope.spawn(|| submit(&db, insert_bytes(1, 20_000_000)));
        until_waiting(&db, 1);
        let held = scope.spawn(|| db.lease(&Call::internal()));
        until_waiting(&db, 2);
        first.rollback().unwrap();
        large.join().unwrap().unwrap();
        let held = held.join().unwrap().unwrap();
        let call = call_within(Duration::from_secs(20));
        db.submit(&call, insert(2)).unwrap();
        assert_eq!(failure(held.commit(&Call::internal())).kind, Kind::TransactionTimeout);
    });
    assert_eq!(items(&db), [1, 2]);
}

#[test]
fn idle_snapshot_is_taken_back_and_its_reader_given_to_the_next() {
    let db = Database::with_items(|config| {
        config.transaction_timeout = TENURE;
        config.readers = 1;
    });
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    submit(&db, insert(1)).unwrap();
    assert_eq!(items(&db), [1], "the only reader has come home, and without its old snapshot");
    let error = failure(snapshot.fetch(&Call::internal(), "SELECT 1", &Params::NONE, Want::ALL));
    assert_eq!(error.kind, Kind::TransactionTimeout);
    until("it is counted", || (figure(&db, "leases_revoked"), figure(&db, "readers_out")) == (1, 0));
}

#[test]
fn snapshot_is_taken_back_in_the_middle_of_a_long_read() {
    let db = short_tenure();
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    let error = failure(snapshot.fetch(&Call::internal(), ENDLESS, &Params::NONE, Want::ALL));
    assert_eq!(error.kind, Kind::TransactionTimeout);
    until("the reader has come home", || figure(&db, "readers_out") == 0);
    let error = failure(snapshot.fetch(&Call::internal(), "SELECT 1", &Params::NONE, Want::ALL));
    assert_eq!(error.kind, Kind::TransactionTimeout);
}

#[test]
fn idle_stream_is_taken_back_in_the_middle_of_its_rows() {
    let db = short_tenure();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000) SELECT i FROM n";
    let stream = db.stream(&Call::internal(), sql, &Params::NONE).unwrap();
    let want = Want { columns: false, most: 10 };
    assert_eq!(stream.next_rows(&Call::internal(), want).unwrap().len(), 10);
    until("the reader has come home", || figure(&db, "readers_out") == 0);
    assert_eq!(failure(stream.next_rows(&Call::internal(), want)).kind, Kind::TransactionTimeout);
}

/// ```text
/// holders (each again and again)        keeper
/// lease, execute, execute, ...
///                                       deadline: revokes, at any instant
/// commit or TransactionTimeout
/// ```
#[test]
fn revocation_that_races_with_use_never_applies_half_a_transaction() {
    let db = Database::with_items(|config| config.transaction_timeout = Duration::from_millis(5));
    let committed: i64 = thread::scope(|scope| {
        let holder = |thread: i64| {
            let db = &db;
            scope.spawn(move || {
                let mut committed = 0;
                for round in 0..60 {
                    let lease = db.lease(&Call::internal()).unwrap();
                    let first = (thread * 60 + round) * 1_000;
                    // From well inside the tenure to well past it.
                    let inserts = (0..round * 20).try_for_each(|n| {
                        let sql = format!("INSERT INTO item (id, data) VALUES ({}, {})", first + n, round * 20);
                        lease.execute(&Call::internal(), &sql, &Params::NONE).map(drop)
                    });
                    match inserts.and_then(|()| lease.commit(&Call::internal())) {
                        Ok(()) => committed += round * 20,
                        Err(error) => assert_eq!(error.kind, Kind::TransactionTimeout, "{error}"),
                    }
                }
                committed
            })
        };
        let holders: Vec<_> = (0..3).map(holder).collect();
        holders.into_iter().map(|holder| holder.join().unwrap()).sum()
    });
    assert_eq!(int(&db, "SELECT count(*) FROM item"), committed);
    assert!(figure(&db, "leases_revoked") > 0, "nothing was revoked: the test tests nothing");
    submit(&db, insert(-1)).unwrap();
}
