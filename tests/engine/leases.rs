//! Leases: the writer in one caller's hands while its transaction is open. How they are taken back is in `revocation`.

use std::thread;

use walpool::caller::Call;
use walpool::connection::Want;
use walpool::error::{Kind, Outcome};
use walpool::value::{Params, Value};
use walpool::writer::Lease;

use crate::support::*;

fn execute(lease: &Lease, sql: &str) -> walpool::error::Result<walpool::connection::Ran> {
    lease.execute(&Call::internal(), sql, &Params::NONE)
}

fn items_in(lease: &Lease) -> Vec<i64> {
    let sql = "SELECT id FROM item ORDER BY id";
    numbers(&lease.fetch(&Call::internal(), sql, &Params::NONE, Want::ALL).unwrap())
}

fn put(lease: &Lease, id: i64) {
    execute(lease, &format!("INSERT INTO item (id) VALUES ({id})")).unwrap();
}

#[test]
fn transaction_sees_its_own_writes_and_others_see_them_after_commit() {
    let db = Database::with_items(|_| ());
    let lease = db.lease(&Call::internal()).unwrap();
    put(&lease, 1);
    assert_eq!((items_in(&lease), items(&db)), (vec![1], vec![]));
    lease.commit(&Call::internal()).unwrap();
    assert_eq!(items(&db), [1]);
    assert_eq!(failure(execute(&lease, "DELETE FROM item")).kind, Kind::Interface);
    assert_eq!(failure(lease.commit(&Call::internal())).kind, Kind::Interface);
    lease.rollback().unwrap(); // nothing is wrong with rolling back what has ended
    assert_eq!((items(&db), figure(&db, "leases")), (vec![1], 1));
}

#[test]
fn transaction_that_is_rolled_back_or_dropped_leaves_nothing() {
    let db = Database::with_items(|_| ());
    let lease = db.lease(&Call::internal()).unwrap();
    put(&lease, 1);
    lease.rollback().unwrap();
    let lease = db.lease(&Call::internal()).unwrap();
    put(&lease, 2);
    drop(lease);
    submit(&db, insert(3)).unwrap();
    assert_eq!(items(&db), [3]);
}

#[test]
fn savepoint_that_is_undone_leaves_what_lies_around_it() {
    let db = Database::with_items(|_| ());
    let call = Call::internal();
    let lease = db.lease(&call).unwrap();
    put(&lease, 1);
    lease.mark(&call).unwrap();
    put(&lease, 2);
    lease.mark(&call).unwrap();
    put(&lease, 3);
    lease.undo_to_mark(&call).unwrap();
    put(&lease, 4);
    lease.keep_mark(&call).unwrap();
    lease.mark(&call).unwrap();
    put(&lease, 5);
    lease.undo_to_mark(&call).unwrap();
    lease.commit(&call).unwrap();
    assert_eq!(items(&db), [1, 2, 4]);
}

#[test]
fn failed_statement_leaves_the_transaction_open() {
    let db = Database::with_items(|_| ());
    let lease = db.lease(&Call::internal()).unwrap();
    put(&lease, 1);
    assert_eq!(failure(execute(&lease, "INSERT INTO item (id) VALUES (2), (1)")).kind, Kind::Integrity);
    let rows: Vec<_> = [3, 4, 1].map(|id| Params::Positional(vec![Value::Integer(id)])).into();
    let many = lease.execute_many(&Call::internal(), "INSERT INTO item (id) VALUES (?)", &rows);
    let error = failure(many);
    assert!(error.kind == Kind::Integrity && error.message.contains("in row 3"), "{error}");
    for sql in ["COMMIT", "ROLLBACK", "SAVEPOINT mine", "PRAGMA synchronous = OFF", "/* walpool */ COMMIT"] {
        assert_eq!(failure(execute(&lease, sql)).kind, Kind::Programming, "{sql}");
    }
    assert_eq!(items_in(&lease), [1]);
    lease.commit(&Call::internal()).unwrap();
    assert_eq!(items(&db), [1]);
}

#[test]
fn statement_that_rolls_the_transaction_back_ends_it_and_nothing_runs_outside_one() {
    let db = Database::with_items(|_| ());
    let lease = db.lease(&Call::internal()).unwrap();
    put(&lease, 1);
    assert_eq!(failure(execute(&lease, "INSERT OR ROLLBACK INTO item (id) VALUES (1)")).kind, Kind::Integrity);
    let error = failure(execute(&lease, "INSERT INTO item (id) VALUES (2)"));
    assert!(error.message.contains("rolled the transaction back"), "{error}");
    let error = failure(lease.commit(&Call::internal()));
    assert_eq!((error.kind, error.outcome), (Kind::Operational, Outcome::NotApplied));
    submit(&db, insert(3)).unwrap();
    assert_eq!(items(&db), [3]);
}

#[test]
fn deferred_foreign_key_fails_the_commit_and_nothing_is_applied() {
    let db = Database::with_items(|_| ());
    write(&db, "CREATE TABLE child (item REFERENCES item(id) DEFERRABLE INITIALLY DEFERRED)").unwrap();
    let lease = db.lease(&Call::internal()).unwrap();
    put(&lease, 1);
    execute(&lease, "INSERT INTO child VALUES (999)").unwrap();
    let error = failure(lease.commit(&Call::internal()));
    assert_eq!((error.kind, error.outcome), (Kind::Integrity, Outcome::NotApplied));
    submit(&db, insert(2)).unwrap();
    assert_eq!((items(&db), int(&db, "SELECT count(*) FROM child")), (vec![2], 0));
}

/// ```text
/// holder                      another thread
/// execute: runs
///                             execute: refused at once
/// goes on to its end
/// ```
#[test]
fn transaction_that_is_in_use_refuses_a_second_thread() {
    let db = Database::with_items(|_| ());
    let (caller, is_running, go_on) = Paused::new();
    let call = call_of(caller);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| lease.execute(&call, TAKES_MILLISECONDS, &Params::NONE));
        is_running.recv().unwrap();
        let error = failure(execute(&lease, "DELETE FROM item"));
        assert!(error.kind == Kind::Interface && error.message.contains("in use"), "{error}");
        assert_eq!(failure(lease.commit(&Call::internal())).kind, Kind::Interface);
        go_on.send(()).unwrap();
        first.join().unwrap().unwrap();
    });
    lease.commit(&Call::internal()).unwrap();
    assert_eq!(items(&db), [1_000]);
}

#[test]
fn timeout_of_a_statement_inside_a_transaction_stops_that_statement() {
    let db = Database::with_items(|_| ());
    let lease = db.lease(&Call::internal()).unwrap();
    put(&lease, 1);
    let call = call_within(std::time::Duration::from_millis(50));
    let error = failure(lease.fetch(&call, ENDLESS, &Params::NONE, Want::ALL));
    assert_eq!(error.kind, Kind::StatementTimeout);
    lease.commit(&Call::internal()).unwrap(); // a read that is stopped undoes nothing
    assert_eq!(items(&db), [1]);
}

/// SQLite counts the steps of a cached statement over all its runs, and asks the watch every 500: sooner or later it asks in
/// the middle of a COMMIT, when the timeout of an earlier statement is long over.
#[test]
fn commit_is_never_stopped_by_the_timeout_of_an_earlier_statement() {
    let db = Database::with_items(|_| ());
    for id in 0..600 {
        let lease = db.lease(&Call::internal()).unwrap();
        let call = call_within(std::time::Duration::from_millis(2));
        let sql = "INSERT INTO item (id) VALUES (?)";
        let inserted = lease.execute(&call, sql, &Params::Positional(vec![Value::Integer(id)]));
        if inserted.is_err() {
            continue; // a slow machine: its time was over before it ran
        }
        until("the timeout is over", || call.started.elapsed() > call.timeout.unwrap());
        lease.commit(&Call::internal()).unwrap();
        assert_eq!(int(&db, "SELECT max(id) FROM item"), id);
    }
}
