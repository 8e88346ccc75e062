//! Callers who must not block: their jobs make groups that others lead, their wishes can be taken back, and each of them is
//! told once.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use walpool::connection::{Ran, Want};
use walpool::engine::{Engine, Expiry, Leased, Waiting, absent_call};
use walpool::error::{Kind, Result};
use walpool::group_commit::{Answer, Job};
use walpool::value::{Params, Rows};

use super::support::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A job whose answer comes through a channel.
fn queue(db: &Engine, job: Job) -> (Waiting, Receiver<Answer>) {
    queue_within(db, job, None)
}

fn queue_within(db: &Engine, job: Job, timeout: Option<Duration>) -> (Waiting, Receiver<Answer>) {
    let (tell, told) = mpsc::channel();
    let waiting = db.submit_absent(&absent_call(timeout), job, move |answer| drop(tell.send(answer))).unwrap();
    (waiting, told)
}

fn heard<T>(told: &Receiver<Result<T>>) -> Result<T> {
    told.recv_timeout(PATIENCE).expect("nobody told")
}

fn lease(db: &Engine) -> (Waiting, Receiver<Result<Leased>>) {
    let (tell, told) = mpsc::channel();
    let waiting = db.lease_absent(&absent_call(None), move |leased| drop(tell.send(leased))).unwrap();
    (waiting, told)
}

fn read(db: &Engine, sql: &str) -> (Waiting, Receiver<Result<Rows>>) {
    let (tell, told) = mpsc::channel();
    let tell = move |rows| drop(tell.send(rows));
    let waiting = db.fetch_absent(absent_call(None), sql.into(), Params::NONE, Want::ALL, tell).unwrap();
    (waiting, told)
}

fn execute(leased: &Leased, sql: &'static str) -> Result<Ran> {
    let (tell, told) = mpsc::channel();
    let work = move |call: &_, lease: &walpool::writer::Lease| lease.execute(call, sql, &Params::NONE);
    leased.ask(None, work, move |ran| drop(tell.send(ran)))?;
    heard(&told)
}

fn commit(leased: &Leased) -> Result<()> {
    let (tell, told) = mpsc::channel();
    leased.ask(None, |call, lease| lease.commit(call), move |done| drop(tell.send(done)))?;
    heard(&told)
}

/// ```text
/// event loop                       writer's hand
/// three jobs join, seat free
/// wake                          -> one group of three
/// ```
#[test]
fn jobs_of_one_turn_of_the_loop_make_one_group() {
    let db = Database::with_items(|_| ());
    let groups = figure(&db, "groups");
    let told: Vec<_> = (1..=3).map(|id| queue(&db, insert(id)).1).collect();
    assert_eq!(figure(&db, "jobs_waiting"), 3);
    db.wake();
    told.iter().for_each(|told| drop(heard(told).unwrap()));
    assert_eq!(items(&db), [1, 2, 3]);
    assert_eq!(figure(&db, "groups"), groups + 1);
}

#[test]
fn another_caller_takes_the_jobs_along_that_nobody_was_woken_for() {
    let db = Database::with_items(|_| ());
    let (_, told) = queue(&db, insert(1));
    submit(&db, insert(2)).unwrap();
    heard(&told).unwrap();
    assert_eq!(items(&db), [1, 2]);
}

#[test]
fn failed_job_is_told_its_error_and_its_neighbours_their_success() {
    let db = Database::with_items(|_| ());
    submit(&db, insert(1)).unwrap();
    let (twice, once) = (queue(&db, insert(1)).1, queue(&db, insert(2)).1);
    db.wake();
    assert_eq!(failure(heard(&twice)).kind, Kind::Integrity);
    heard(&once).unwrap();
    assert_eq!(items(&db), [1, 2]);
}

#[test]
fn cancelled_job_never_runs() {
    let db = Database::with_items(|_| ());
    let open = db.lease(&absent_call(None)).unwrap();
    let (waiting, told) = queue(&db, insert(1));
    db.wake();
    waiting.cancel();
    open.rollback().unwrap();
    submit(&db, insert(2)).unwrap();
    assert_eq!(items(&db), [2]);
    drop(waiting);
    // Whoever cancels listens no more; what the ticket says at its end is no answer to the job.
    assert!(heard(&told).is_err());
}

#[test]
fn job_whose_turn_does_not_come_expires_with_nothing_written() {
    let db = Database::with_items(|_| ());
    let open = db.lease(&absent_call(None)).unwrap();
    let (waiting, told) = queue_within(&db, insert(1), Some(Duration::from_millis(5)));
    let deadline = waiting.deadline().unwrap();
    assert_eq!(waiting.expire(deadline - Duration::from_millis(1)), Expiry::Until(deadline));
    until("the deadline has passed", || Instant::now() >= deadline);
    assert_eq!(waiting.expire(Instant::now()), Expiry::Settled);
    assert_eq!(failure(heard(&told)).kind, Kind::WriteTimeout);
    open.rollback().unwrap();
    assert!(items(&db).is_empty());
}

#[test]
fn job_for_which_the_queue_has_no_room_is_held_back_and_then_runs() {
    let db = Database::with_items(|config| config.max_waiting_bytes = 1_024);
    let open = db.lease(&absent_call(None)).unwrap();
    let (first, second) = (queue(&db, insert_bytes(1, 900)), queue(&db, insert_bytes(2, 900)));
    db.wake();
    assert_eq!((figure(&db, "jobs_waiting"), figure(&db, "jobs_held_back")), (2, 1));
    open.rollback().unwrap();
    heard(&first.1).unwrap();
    heard(&second.1).unwrap();
    assert_eq!((items(&db), figure(&db, "jobs_held_back")), (vec![1, 2], 0));
}

#[test]
fn held_back_job_that_is_cancelled_never_runs() {
    let db = Database::with_items(|config| config.max_waiting_bytes = 1_024);
    let open = db.lease(&absent_call(None)).unwrap();
    let (first, second) = (queue(&db, insert_bytes(1, 900)), queue(&db, insert_bytes(2, 900)));
    second.0.cancel();
    open.rollback().unwrap();
    heard(&first.1).unwrap();
    assert_eq!(items(&db), [1]);
}

/// ```text
/// closing                          hand                     holder of the writer
///                                                           has an open transaction
/// refuses what is held back
/// waits for what was accepted
///                                                           rolls back
///                                  leads it
/// ```
#[test]
fn close_answers_what_nobody_was_woken_for_and_refuses_what_is_held_back() {
    let db = Database::with_items(|config| config.max_waiting_bytes = 1_024);
    let open = db.lease(&absent_call(None)).unwrap();
    let (accepted, held_back) = (queue(&db, insert_bytes(1, 900)).1, queue(&db, insert_bytes(2, 900)).1);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| db.close(&absent_call(None)));
        assert_eq!(failure(heard(&held_back)).kind, Kind::Closed);
        let refused = db.submit_absent(&absent_call(None), insert(3), |_| ());
        assert_eq!(refused.err().unwrap().kind, Kind::Closed);
        open.rollback().unwrap();
        heard(&accepted).unwrap();
        closing.join().unwrap().unwrap();
    });
}

#[test]
fn close_has_the_jobs_led_of_an_event_loop_that_stopped() {
    let db = Database::with_items(|_| ());
    let stopped = queue(&db, insert(3)).1;
    db.close(&absent_call(None)).unwrap();
    heard(&stopped).unwrap();
}

#[test]
fn lease_is_given_in_its_turn_and_holds_the_writer_until_it_ends() {
    let db = Database::with_items(|_| ());
    let (before, (_, leased), after) = (queue(&db, insert(1)).1, lease(&db), queue(&db, insert(3)).1);
    db.wake();
    let leased = heard(&leased).unwrap();
    heard(&before).unwrap();
    assert!(after.try_recv().is_err());
    execute(&leased, "INSERT INTO item (id) SELECT max(id) + 1 FROM item").unwrap();
    commit(&leased).unwrap();
    heard(&after).unwrap();
    assert_eq!(items(&db), [1, 2, 3]);
}

#[test]
fn lease_that_is_dropped_rolls_back() {
    let db = Database::with_items(|_| ());
    let (_, leased) = lease(&db);
    db.wake();
    let leased = heard(&leased).unwrap();
    execute(&leased, "INSERT INTO item (id) VALUES (1)").unwrap();
    leased.roll_back(|_| ());
    submit(&db, insert(2)).unwrap();
    assert_eq!(items(&db), [2]);
}

#[test]
fn cancelled_wish_for_a_lease_lets_the_next_in() {
    let db = Database::with_items(|_| ());
    let open = db.lease(&absent_call(None)).unwrap();
    let ((waiting, _told), next) = (lease(&db), queue(&db, insert(1)).1);
    waiting.cancel();
    open.rollback().unwrap();
    heard(&next).unwrap();
}

/// ```text
/// caller                           reader's thread
/// fetch_absent                     runs for ever
/// cancel                           hears it, stops, checks its reader in
/// ```
#[test]
fn cancelled_read_is_interrupted_and_its_reader_comes_back_clean() {
    let db = Database::with_items(|config| config.readers = 2);
    let (waiting, told) = read(&db, ENDLESS);
    until("it runs", || figure(&db, "readers_out") == 1);
    waiting.cancel();
    assert_eq!(failure(heard(&told)).kind, Kind::Interrupted);
    assert_eq!(figure(&db, "readers_out"), 0);
    assert!(items(&db).is_empty());
}

/// ```text
/// snapshots                        gate                     a third reader
/// both permits are taken
///                                                           waits in line
/// go on reading: their tasks
/// never wait for a permit
/// one ends                         permit passes on         reads
/// ```
#[test]
fn those_who_hold_all_readers_can_go_on_while_others_wait() {
    let db = Database::with_items(|config| config.readers = 2);
    let take = || {
        let (tell, told) = mpsc::channel();
        db.snapshot_absent(absent_call(None), move |snapshot| drop(tell.send(snapshot))).unwrap();
        heard(&told).unwrap()
    };
    let (first, second) = (take(), take());
    let (_, third) = read(&db, "SELECT 3");
    assert_eq!(figure(&db, "reads_waiting"), 1);
    for snapshot in [&first, &second, &first] {
        let (tell, told) = mpsc::channel();
        let tell = move |rows| drop(tell.send(rows));
        snapshot.fetch(absent_call(None), "SELECT 1".into(), Params::NONE, Want::ALL, tell).unwrap();
        assert_eq!(numbers(&heard(&told).unwrap()), [1]);
    }
    assert!(third.try_recv().is_err());
    first.end(|_| ());
    assert_eq!(numbers(&heard(&third).unwrap()), [3]);
    second.end(|_| ());
}

#[test]
fn read_that_waits_for_a_reader_expires_or_is_refused_by_close() {
    let db = Database::with_items(|config| {
        config.readers = 1;
        config.checkout_timeout = Duration::from_millis(5);
    });
    let (tell, told) = mpsc::channel();
    db.snapshot_absent(absent_call(None), move |snapshot| drop(tell.send(snapshot))).unwrap();
    let snapshot = heard(&told).unwrap();
    let ((waiting, expired), (_, refused)) = (read(&db, "SELECT 1"), read(&db, "SELECT 2"));
    until("the deadline has passed", || Instant::now() >= waiting.deadline().unwrap());
    waiting.expire(Instant::now());
    assert_eq!(failure(heard(&expired)).kind, Kind::CheckoutTimeout);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| db.close(&absent_call(None)));
        assert_eq!(failure(heard(&refused)).kind, Kind::Closed);
        snapshot.end(|_| ());
        closing.join().unwrap().unwrap();
    });
}

#[test]
fn only_a_statement_that_was_short_lately_runs_at_once() {
    let db = Database::with_items(|_| ());
    submit(&db, insert(1)).unwrap();
    let at_once = |sql| db.fetch_at_once(&absent_call(None), sql, &Params::NONE, Want::ALL).unwrap();
    assert!(at_once("SELECT id FROM item").is_none()); // it never ran
    until("it is known to be short", || {
        items(&db); // another statement of the same length must not be taken for it
        ints(&db, "SELECT id FROM item");
        at_once("SELECT id FROM item").is_some()
    });
    assert_eq!(numbers(&at_once("SELECT id FROM item").unwrap()), [1]);
}

/// A statement that is short with one row and long with many is taken to be short when it is run on many.
#[test]
fn read_that_outgrows_its_budget_is_stopped_and_leaves_nothing() {
    let db = Database::with_items(|config| config.readers = 1);
    submit(&db, insert(1)).unwrap();
    let sql = "SELECT count(*) FROM item a, item b, item c WHERE a.id + b.id + c.id > 0";
    let at_once = || db.fetch_at_once(&absent_call(None), sql, &Params::NONE, Want::ALL).unwrap();
    until("it is known to be short", || {
        ints(&db, sql);
        at_once().is_some()
    });
    write(&db, "INSERT INTO item (id) WITH n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n LIMIT 200) SELECT i FROM n")
        .unwrap();
    assert!(at_once().is_none());
    assert_eq!((figure(&db, "reads_restarted"), figure(&db, "readers_out")), (1, 0));
    assert_eq!(ints(&db, sql), [201 * 201 * 201]);
}

#[test]
fn read_at_once_waits_for_no_reader() {
    let db = Database::with_items(|config| config.readers = 1);
    until("it is known to be short", || {
        ints(&db, "SELECT 1");
        db.fetch_at_once(&absent_call(None), "SELECT 1", &Params::NONE, Want::ALL).unwrap().is_some()
    });
    let snapshot = db.snapshot(&absent_call(None)).unwrap();
    assert!(db.fetch_at_once(&absent_call(None), "SELECT 1", &Params::NONE, Want::ALL).unwrap().is_none());
    snapshot.end();
}

/// ```text
/// another process                  hand                     caller
/// BEGIN IMMEDIATE
///                                  waits for the file
///                                                           cancel
///                                  gives the seat back
/// ```
#[test]
fn hand_does_not_wait_for_another_process_for_one_who_has_given_up() {
    let db = Database::with_items(|_| ());
    let other = db.foreign();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (waiting, _told) = queue(&db, insert(1));
    db.wake();
    until("the hand has met the other process", || figure(&db, "jobs_waiting") == 1);
    waiting.cancel();
    other.execute_batch("ROLLBACK").unwrap();
    submit(&db, insert(2)).unwrap();
    assert_eq!(items(&db), [2]);
}

#[test]
fn writers_hand_is_free_while_all_readers_scan() {
    let db = Database::with_items(|config| config.readers = 2);
    let scans: Vec<_> = (0..4).map(|_| read(&db, ENDLESS)).collect();
    until("both readers are out", || figure(&db, "readers_out") == 2);
    let (_, told) = queue(&db, insert(1));
    db.wake();
    heard(&told).unwrap();
    scans.iter().for_each(|(waiting, _)| waiting.cancel());
}
