//! Interrupts (Ctrl-C) and callers that are away: one that is asked whether it was interrupted may block meanwhile, and
//! must neither be offered the writer nor change what its neighbours get.

use std::thread;
use std::time::Duration;

use walpool::caller::Call;
use walpool::connection::Want;
use walpool::error::{Kind, Outcome};
use walpool::group_commit::Job;
use walpool::value::Params;

use crate::support::*;

/// Ten times what is promised (100 ms): the machine may be slow, a timeout of seconds must not pass.
const SOON: Duration = Duration::from_secs(1);

#[test]
fn interrupted_job_that_waits_is_withdrawn() {
    let db = Database::with_items(|_| ());
    let lease = db.lease(&Call::internal()).unwrap();
    let call = call_of(Interrupted);
    let error = failure(db.submit(&call, insert(1)));
    assert_eq!((error.kind, error.outcome), (Kind::Interrupted, Outcome::NotApplied));
    assert_eq!(db.lease(&call).err().unwrap().kind, Kind::Interrupted);
    assert!(call.started.elapsed() < SOON);
    assert_eq!(figure(&db, "jobs_waiting"), 0);
    lease.rollback().unwrap();
    submit(&db, insert(2)).unwrap();
    assert_eq!(items(&db), [2]);
}

#[test]
fn interrupt_is_heard_while_a_job_is_held_back() {
    let db = Database::with_items(|config| config.max_waiting_bytes = 1_024);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| submit(&db, insert_bytes(1, 900)));
        until_waiting(&db, 1);
        let call = call_of(Interrupted);
        let error = failure(db.submit(&call, insert_bytes(2, 900)));
        assert_eq!((error.kind, error.outcome), (Kind::Interrupted, Outcome::NotApplied));
        assert!(call.started.elapsed() < SOON);
        lease.rollback().unwrap();
        first.join().unwrap().unwrap();
    });
    assert_eq!(items(&db), [1]);
}

#[test]
fn interrupt_is_heard_while_another_process_has_the_lock() {
    let db = Database::with_items(|_| ());
    let foreign = db.foreign();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let call = call_of(Interrupted);
    let error = failure(db.submit(&call, insert(1)));
    assert_eq!((error.kind, error.outcome), (Kind::Interrupted, Outcome::NotApplied));
    assert_eq!(db.lease(&call).err().unwrap().kind, Kind::Interrupted);
    assert!(call.started.elapsed() < SOON);
    foreign.execute_batch("COMMIT").unwrap();
    submit(&db, insert(2)).unwrap();
    assert_eq!(items(&db), [2]);
}

/// A waiting caller comes back from being asked, again and again, and has its turn in the end.
#[test]
fn caller_that_is_asked_while_another_process_has_the_lock_still_has_its_turn() {
    for takes_lease in [false, true] {
        let db = Database::with_items(|_| ());
        let foreign = db.foreign();
        foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (caller, is_asked, answer) = Asked::new();
        let call = call_of(caller);
        thread::scope(|scope| {
            let asked =
                scope.spawn(|| if takes_lease { insert_by_lease(&db, &call, 1) } else { insert_by_job(&db, &call, 1) });
            for _ in 0..3 {
                is_asked.recv().unwrap();
                answer.send(false).unwrap();
            }
            is_asked.recv().unwrap(); // it is away
            let other = scope.spawn(|| submit(&db, insert(2)));
            until_waiting(&db, 2);
            foreign.execute_batch("COMMIT").unwrap();
            drop(answer);
            asked.join().unwrap().unwrap();
            other.join().unwrap().unwrap();
        });
        assert_eq!(items(&db), [1, 2]);
    }
}

fn insert_by_job(db: &Database, call: &Call, id: i64) -> walpool::error::Result<()> {
    db.submit(call, insert(id)).map(drop)
}

fn insert_by_lease(db: &Database, call: &Call, id: i64) -> walpool::error::Result<()> {
    let lease = db.lease(call)?;
    lease.execute(call, &format!("INSERT INTO item (id) VALUES ({id})"), &Params::NONE)?;
    lease.commit(call)
}

/// ```text
/// holder      interrupted                       leader
/// lease
///             queued; is asked: away
///                                               queued
/// rollback                                      leads: takes both jobs, pauses in its own
///             was interrupted: outcome unknown
///                                               COMMIT
/// ```
#[test]
fn interrupted_job_that_a_group_has_taken_goes_on_without_its_caller() {
    let db = Database::with_items(|_| ());
    let (interrupted, is_asked, answer) = Asked::new();
    let (leader, is_running, go_on) = Paused::new();
    let (interrupted, leader) = (call_of(interrupted), call_of(leader));
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let interrupted = scope.spawn(|| db.submit(&interrupted, insert(1)));
        is_asked.recv().unwrap();
        let leader = scope.spawn(|| db.submit(&leader, job(TAKES_MILLISECONDS)));
        until_waiting(&db, 2);
        lease.rollback().unwrap();
        is_running.recv().unwrap();
        answer.send(true).unwrap();
        let error = failure(interrupted.join().unwrap());
        assert_eq!((error.kind, error.outcome), (Kind::Interrupted, Outcome::Unknown));
        go_on.send(()).unwrap();
        leader.join().unwrap().unwrap();
    });
    assert_eq!(items(&db), [1, 1_000]);
}

fn outcome_when_interrupted_after_its_group(db: &Database, job: Job) -> Outcome {
    let (interrupted, is_asked, answer) = Asked::new();
    let interrupted = call_of(interrupted);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let interrupted = scope.spawn(|| db.submit(&interrupted, job));
        is_asked.recv().unwrap();
        let leader = scope.spawn(|| submit(db, insert(2)));
        until_waiting(db, 2);
        lease.rollback().unwrap();
        leader.join().unwrap().unwrap();
        answer.send(true).unwrap();
        let error = failure(interrupted.join().unwrap());
        assert_eq!(error.kind, Kind::Interrupted);
        error.outcome
    })
}

/// ```text
/// holder      interrupted                       leader
/// lease
///             queued; is asked: away
///                                               queued
/// rollback                                      leads: takes both jobs, COMMIT
///             was interrupted: it was applied
/// ```
#[test]
fn interrupt_that_comes_after_the_group_tells_what_became_of_the_job() {
    let db = Database::with_items(|_| ());
    assert_eq!(outcome_when_interrupted_after_its_group(&db, insert(1)), Outcome::Applied);
    assert_eq!(items(&db), [1, 2]);
    let db = Database::with_items(|_| ());
    let failing = job("INSERT INTO item (nothing) VALUES (1)");
    assert_eq!(outcome_when_interrupted_after_its_group(&db, failing), Outcome::NotApplied);
    assert_eq!(items(&db), [2]);
}

/// ```text
/// holder          away                     (nobody else)
/// lease
///                 queued; is asked: away
/// rollback: the seat lies free
///                 is back: takes it, leads
/// ```
#[test]
fn caller_that_comes_back_takes_the_writer_that_was_left_free() {
    let db = Database::with_items(|_| ());
    let (caller, is_asked, answer) = Asked::new();
    let call = call_of(caller);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let away = scope.spawn(|| db.submit(&call, insert(1)));
        is_asked.recv().unwrap();
        lease.rollback().unwrap();
        answer.send(false).unwrap();
        away.join().unwrap().unwrap();
    });
    assert_eq!(items(&db), [1]);
}

/// ```text
/// holder      away                          waiting
/// lease
///             queued; is asked: away
///                                           queued: a lease, which waits for those before it
/// rollback: the seat lies free
///             was interrupted: gone         has the writer
/// ```
#[test]
fn writer_that_was_left_free_for_one_who_goes_is_given_to_the_next() {
    let db = Database::with_items(|_| ());
    let (caller, is_asked, answer) = Asked::new();
    let call = call_of(caller);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let away = scope.spawn(|| db.submit(&call, insert(1)));
        is_asked.recv().unwrap();
        let next = scope.spawn(|| insert_by_lease(&db, &Call::internal(), 2));
        until_waiting(&db, 2);
        lease.rollback().unwrap();
        answer.send(true).unwrap();
        assert_eq!(failure(away.join().unwrap()).outcome, Outcome::NotApplied);
        next.join().unwrap().unwrap();
    });
    assert_eq!(items(&db), [2]);
}

/// ```text
/// holder      away                        follower
/// lease
///             queued; is asked: away
///                                         queued
/// rollback                                is offered the writer, leads one job: that of the one who is away
///                                         (the group is full) has its own turn
/// ```
#[test]
fn leader_whose_own_job_found_no_room_in_its_group_leads_again() {
    let db = Database::with_items(|config| config.max_group = 1);
    let (caller, is_asked, answer) = Asked::new();
    let call = call_of(caller);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let away = scope.spawn(|| db.submit(&call, insert(1)));
        is_asked.recv().unwrap();
        let follower = scope.spawn(|| {
            let call = Call::internal();
            db.submit(&call, insert(2)).map(|_| call.started.elapsed())
        });
        until_waiting(&db, 2);
        lease.rollback().unwrap();
        assert!(follower.join().unwrap().unwrap() < 10 * SOON);
        drop(answer);
        away.join().unwrap().unwrap();
    });
    assert_eq!(items(&db), [1, 2]);
}

#[test]
fn long_read_is_stopped_by_an_interrupt() {
    let db = Database::with_items(|config| config.readers = 1);
    let call = call_of(Interrupted);
    assert_eq!(failure(fetch(&db, &call, ENDLESS)).kind, Kind::Interrupted);
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    let error = failure(snapshot.fetch(&call, ENDLESS, &Params::NONE, Want::ALL));
    assert_eq!(error.kind, Kind::Interrupted);
    drop(snapshot);
    let stream = db.stream(&Call::internal(), ENDLESS, &Params::NONE).unwrap();
    assert_eq!(failure(stream.next_rows(&call, Want::ALL)).kind, Kind::Interrupted);
    drop(stream);
    assert!(call.started.elapsed() < SOON);
    assert_eq!((items(&db), figure(&db, "readers_out")), (vec![], 0));
}

#[test]
fn interrupt_is_heard_while_no_reader_is_free() {
    let db = Database::with(|config| config.readers = 1);
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    let call = call_of(Interrupted);
    assert_eq!(failure(fetch(&db, &call, "SELECT 1")).kind, Kind::Interrupted);
    assert!(call.started.elapsed() < SOON);
    drop(snapshot);
    assert_eq!((int(&db, "SELECT 1"), figure(&db, "readers_out")), (1, 0));
}

#[test]
fn job_is_never_stopped_in_the_middle_by_its_callers_interrupt() {
    let db = Database::with_items(|_| ());
    let call = call_of(Interrupted);
    let long = "INSERT INTO item (id) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1500000) \
                SELECT 1 FROM n WHERE i = 1500000"; // longer than the slice after which a read would be stopped
    db.submit(&call, job(long)).unwrap();
    assert_eq!(items(&db), [1]);
}

#[test]
fn commit_is_never_stopped_by_an_interrupt() {
    let db = Database::with_items(|_| ());
    for id in 0..300 {
        let lease = db.lease(&Call::internal()).unwrap();
        let sql = format!("INSERT INTO item (id) VALUES ({id})");
        lease.execute(&call_of(Interrupted), &sql, &Params::NONE).unwrap();
        lease.commit(&Call::internal()).unwrap();
    }
    assert_eq!(items(&db).len(), 300);
}

#[test]
fn vacuum_is_not_stopped_by_the_end_of_an_earlier_transaction() {
    const TENURE: Duration = Duration::from_millis(500);
    let db = Database::with_items(|config| config.transaction_timeout = TENURE);
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) SELECT i FROM n";
    write(&db, &format!("INSERT INTO item (id) {numbers}")).unwrap();
    let began = Call::internal().started;
    insert_by_lease(&db, &Call::internal(), -1).unwrap();
    until("the transaction's time would be over", || began.elapsed() > TENURE);
    db.vacuum(&Call::internal()).unwrap();
    assert_eq!(int(&db, "SELECT count(*) FROM item"), 5_001);
}
