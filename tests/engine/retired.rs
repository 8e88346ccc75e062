//! A file that has gone over to a server: it is read on and not written, whoever marked it, and whenever.

use std::sync::mpsc;
use std::thread;

use walpool::caller::Call;
use walpool::config::Config;
use walpool::connection::CheckpointMode;
use walpool::engine::{Engine, absent_call};
use walpool::error::{Kind, Outcome};
use walpool::value::Params;

use crate::support::*;

const TABLE: &str = "CREATE TABLE walpool_retired (successor TEXT PRIMARY KEY, retired_at TEXT NOT NULL)";
const MARK: &str = "INSERT INTO walpool_retired VALUES ('postgresql://host/agents', '2026-01-02 03:04:05')";

/// As `walpool migrate --retire` does in another process.
fn retire(db: &Database) {
    db.foreign().execute_batch(&format!("BEGIN IMMEDIATE; {TABLE}; {MARK}; COMMIT")).unwrap();
}

fn assert_is_refused<T: std::fmt::Debug>(done: walpool::error::Result<T>) {
    let error = failure(done);
    assert_eq!((error.kind, error.outcome), (Kind::ReadOnly, Outcome::NotApplied), "{error}");
    for said in ["2026-01-02 03:04:05", "postgresql://host/agents", "nothing was written", "write_retired", "test.db"] {
        assert!(error.message.contains(said), "{error}");
    }
}

#[test]
fn file_that_another_process_retires_takes_no_write_from_then_on() {
    let db = Database::with_items(|_| ());
    let call = Call::internal();
    submit(&db, insert(1)).unwrap();
    retire(&db);
    assert_is_refused(submit(&db, insert(2)));
    assert_is_refused(submit(&db, batch(&["CREATE TABLE other (id)", "DELETE FROM item"])));
    assert_is_refused(db.lease(&call).map(drop));
    assert_is_refused(db.vacuum(&call));
    assert_eq!(items(&db), [1]);
    assert!(db.checkpoint(&call, CheckpointMode::Truncate).unwrap().is_complete());
    assert_eq!(db.foreign().execute("DELETE FROM item", []), Ok(1), "the write lock was let go");
}

#[test]
fn callers_who_must_not_block_are_refused_too() {
    let db = Database::with_items(|_| ());
    retire(&db);
    for _ in 0..2 {
        let (tell, told) = mpsc::channel();
        db.submit_absent(&absent_call(None), insert(1), move |answer| drop(tell.send(answer))).unwrap();
        db.wake();
        assert_is_refused(told.recv().unwrap());
        let (tell, told) = mpsc::channel();
        db.lease_absent(&absent_call(None), move |leased| drop(tell.send(leased.map(drop)))).unwrap();
        db.wake();
        assert_is_refused(told.recv().unwrap());
    }
    assert_eq!(items(&db), []);
}

/// ```text
/// this thread             threads
/// lease
///                         queue their jobs
/// marks the file, commits
///                         each is refused
/// ```
#[test]
fn jobs_behind_the_transaction_that_retires_the_file_are_refused() {
    let db = Database::with_items(|_| ());
    let call = Call::internal();
    let lease = db.lease(&call).unwrap();
    thread::scope(|scope| {
        let queue = |id| {
            let waiter = scope.spawn({
                let db = &db;
                move || submit(db, insert(id))
            });
            until_waiting(&db, id as u64);
            waiter
        };
        let waiting: Vec<_> = (1..=3).map(queue).collect();
        for sql in [TABLE, MARK, "INSERT INTO item (id) VALUES (9)"] {
            lease.execute(&call, sql, &Params::NONE).unwrap();
        }
        lease.commit(&call).unwrap();
        waiting.into_iter().for_each(|waiter| assert_is_refused(waiter.join().unwrap()));
    });
    assert_eq!(items(&db), [9]);
}

#[test]
fn mark_is_found_when_the_statement_that_sets_it_runs_a_second_time() {
    let db = Database::with_items(|_| ());
    let call = Call::internal();
    write(&db, TABLE).unwrap();
    let lease = db.lease(&call).unwrap();
    lease.execute(&call, MARK, &Params::NONE).unwrap();
    lease.rollback().unwrap();
    submit(&db, insert(1)).unwrap();
    write(&db, MARK).unwrap();
    assert_is_refused(submit(&db, insert(2)));
}

#[test]
fn retired_file_opens_to_read_only_and_says_so_once() {
    let db = Database::with_items(|_| ());
    submit(&db, insert(1)).unwrap();
    let (path, call) = (db.path.clone(), Call::internal());
    retire(&db);
    db.close(&call).unwrap();
    let again = Engine::open(&call, &path, &Config::default(), &[]).unwrap();
    let other = Engine::open(&call, &path, &Config::default(), &[]).unwrap();
    let messages: Vec<_> = [&again, &other].into_iter().flat_map(Engine::take_messages).collect();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].text.contains("retired") && messages[0].text.contains("postgresql://host/agents"));
    assert_eq!(items(&other), [1]);
    assert_is_refused(submit(&other, insert(2)));
}

#[test]
fn write_retired_writes_all_the_same() {
    let db = Database::with_items(|config| config.write_retired = true);
    retire(&db);
    submit(&db, insert(1)).unwrap();
    write(&db, "DROP TABLE walpool_retired").unwrap();
    let (path, call) = (db.path.clone(), Call::internal());
    db.close(&call).unwrap();
    let again = Engine::open(&call, &path, &Config::default(), &[]).unwrap();
    submit(&again, insert(2)).unwrap();
    assert_eq!((items(&again), again.take_messages()), (vec![1, 2], vec![]));
}

#[test]
fn table_of_that_name_is_no_mark_without_a_row_or_with_other_columns() {
    for sql in [TABLE, "CREATE TABLE walpool_retired (id); INSERT INTO walpool_retired VALUES (1)"] {
        let db = Database::with_items(|_| ());
        db.foreign().execute_batch(sql).unwrap();
        submit(&db, insert(1)).unwrap();
        let (path, call) = (db.path.clone(), Call::internal());
        db.close(&call).unwrap();
        submit(&Engine::open(&call, &path, &Config::default(), &[]).unwrap(), insert(2)).unwrap();
    }
}

#[test]
fn what_a_strangers_mark_says_is_one_short_line() {
    let db = Database::with_items(|_| ());
    let mark = "INSERT INTO walpool_retired VALUES (char(27) || 'a' || char(10) || hex(zeroblob(5000)), x'ff')";
    db.foreign().execute_batch(&format!("{TABLE}; {mark}")).unwrap();
    let error = failure(submit(&db, insert(1)));
    assert!(error.message.len() < 800 && !error.message.contains(char::is_control), "{error}");
}
