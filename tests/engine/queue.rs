//! The queue before the writer: who shares a COMMIT, in which order, and what happens to those who wait too long.

use std::thread;
use std::time::{Duration, Instant};

use walpool::caller::Call;
use walpool::config::Config;
use walpool::error::{Kind, Outcome};
use walpool::group_commit::{Job, Work};
use walpool::value::Params;

use crate::support::*;

const SHORT: Duration = Duration::from_millis(50);

/// The fewest groups that jobs of these sizes took in several tries: a group also closes after 5 ms of work, and on a slow
/// machine that may come first.
fn groups_of(change: impl Fn(&mut Config), sizes: &[usize]) -> u64 {
    let groups = (0..5).map(|_| {
        let db = Database::with_items(&change);
        db.stats(&Call::internal(), true).unwrap();
        let jobs = sizes.iter().enumerate().map(|(id, bytes)| insert_bytes(id as i64, *bytes)).collect();
        assert!(run_together(&db, jobs).iter().all(Result::is_ok));
        assert_eq!((items(&db).len(), figure(&db, "jobs")), (sizes.len(), sizes.len() as u64));
        figure(&db, "groups")
    });
    groups.min().unwrap()
}

#[test]
fn jobs_that_wait_together_share_one_commit() {
    assert_eq!(groups_of(|_| (), &[10; 16]), 1);
}

#[test]
fn lone_job_is_led_by_its_own_caller() {
    let db = Database::with_items(|_| ());
    let (caller, waits) = Telling::waits();
    db.submit(&call_of(caller), insert(1)).unwrap();
    assert!(waits.try_recv().is_err(), "with `normal` and nobody else there is nothing to wait for");
}

#[test]
fn group_closes_at_max_group() {
    assert_eq!(groups_of(|config| config.max_group = 4, &[10; 10]), 3);
}

#[test]
fn group_closes_at_max_group_bytes_and_a_larger_job_runs_alone() {
    assert_eq!(groups_of(|config| config.max_group_bytes = 2_048, &[800; 6]), 3);
    let with_a_large_one = [10, 10, 5_000, 10, 10];
    assert_eq!(groups_of(|config| config.max_group_bytes = 2_048, &with_a_large_one), 3, "two, the large one, two");
}

#[test]
fn jobs_are_run_in_the_order_in_which_they_came() {
    let db = Database::with_items(|config| config.max_group = 3);
    let at_the_end = |n: i64| job(&format!("INSERT INTO item (data) VALUES ({n})"));
    assert!(run_together(&db, (0..10).map(at_the_end).collect()).iter().all(Result::is_ok));
    assert_eq!(ints(&db, "SELECT data FROM item ORDER BY id"), (0..10).collect::<Vec<_>>());
}

#[test]
fn leases_and_jobs_have_their_turn_in_the_order_in_which_they_came() {
    let db = Database::with_items(|_| ());
    let sql = |n: i64| format!("INSERT INTO item (data) VALUES ({n})");
    let first = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        for n in 0..9 {
            let (db, sql) = (&db, sql(n));
            scope.spawn(move || {
                if n % 3 == 1 {
                    let lease = db.lease(&Call::internal()).unwrap();
                    lease.execute(&Call::internal(), &sql, &Params::NONE).unwrap();
                    lease.commit(&Call::internal()).unwrap();
                } else {
                    write(db, &sql).unwrap();
                }
            });
            until_waiting(db, n as u64 + 1);
        }
        first.rollback().unwrap();
    });
    assert_eq!(ints(&db, "SELECT data FROM item ORDER BY id"), (0..9).collect::<Vec<_>>());
}

#[test]
fn job_whose_turn_does_not_come_in_time_is_not_applied_then_or_later() {
    let db = Database::with_items(|config| config.write_timeout = SHORT);
    let lease = db.lease(&Call::internal()).unwrap();
    let error = failure(submit(&db, insert(1)));
    assert_eq!((error.kind, error.outcome), (Kind::WriteTimeout, Outcome::NotApplied));
    assert!(error.kind.is_retryable() && error.message.contains("transaction()"), "{error}");
    assert_eq!((figure(&db, "jobs_waiting"), figure(&db, "jobs_withdrawn")), (0, 1));
    lease.rollback().unwrap();
    submit(&db, insert(2)).unwrap();
    assert_eq!(items(&db), [2]);
}

#[test]
fn timeout_of_the_call_ends_the_wait_for_a_turn_if_it_is_shorter() {
    let db = Database::with_items(|_| ());
    let lease = db.lease(&Call::internal()).unwrap();
    assert_eq!(failure(db.submit(&call_within(SHORT), insert(1))).kind, Kind::WriteTimeout);
    assert_eq!(db.lease(&call_within(SHORT)).err().unwrap().kind, Kind::WriteTimeout);
    lease.rollback().unwrap();
    submit(&db, insert(2)).unwrap(); // those who left have not kept the writer
    assert_eq!(items(&db), [2]);
}

#[test]
fn job_beyond_max_waiting_is_refused_at_once() {
    let db = Database::with_items(|config| config.max_waiting = 2);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        for id in 0..2 {
            let db = &db;
            scope.spawn(move || submit(db, insert(id)).unwrap());
            until_waiting(db, id as u64 + 1);
        }
        let error = failure(submit(&db, insert(2)));
        assert_eq!((error.kind, error.outcome), (Kind::QueueFull, Outcome::NotApplied));
        assert_eq!(db.lease(&Call::internal()).err().unwrap().kind, Kind::QueueFull);
        lease.rollback().unwrap();
    });
    assert_eq!(items(&db), [0, 1]);
}

/// ```text
/// holder            first           second
/// lease
///                   queued
///                                   held back: its bytes find no room
/// rollback
///                   taken           queued, run
/// ```
#[test]
fn job_that_finds_no_room_for_its_bytes_is_held_back_until_there_is() {
    let db = Database::with_items(|config| config.max_waiting_bytes = 1_024);
    let lease = db.lease(&Call::internal()).unwrap();
    let (caller, waits) = Telling::waits();
    let call = call_of(caller);
    thread::scope(|scope| {
        let first = scope.spawn(|| submit(&db, insert_bytes(1, 900)));
        until_waiting(&db, 1);
        let second = scope.spawn(|| db.submit(&call, insert_bytes(2, 900)));
        waits.recv().unwrap();
        assert_eq!(figure(&db, "jobs_waiting"), 1, "the second is not in the queue");
        lease.rollback().unwrap();
        first.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    assert_eq!(items(&db), [1, 2]);
    assert!(figure(&db, "bytes_waiting_peak") <= 1_024);
}

#[test]
fn job_larger_than_the_queue_is_taken_when_nobody_waits() {
    let db = Database::with_items(|config| config.max_waiting_bytes = 1_024);
    submit(&db, insert_bytes(1, 100_000)).unwrap();
    assert_eq!(items(&db), [1]);
}

/// ```text
/// first             held back                      others, again and again
/// queued
///                   no room
///                                                  queued, withdrawn: "there may be room"
///                   looks: no room, waits on       queued, withdrawn: "there may be room"
///                   its time is over: an error
/// ```
#[test]
fn job_that_is_held_back_keeps_its_deadline_while_others_come_and_go() {
    let db = Database::with_items(|config| config.max_waiting_bytes = 2_048);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| submit(&db, insert_bytes(1, 900)));
        until_waiting(&db, 1);
        let held_back = scope.spawn(|| {
            let started = Instant::now();
            let error = failure(db.submit(&call_within(4 * SHORT), insert_bytes(2, 1_500)));
            (error, started.elapsed())
        });
        let mut others = 0;
        while !held_back.is_finished() && others < 1_000 {
            let error = failure(db.submit(&call_within(SHORT / 10), insert(3)));
            assert_eq!(error.kind, Kind::WriteTimeout);
            others += 1;
        }
        let (error, took) = held_back.join().unwrap();
        assert_eq!((error.kind, error.outcome), (Kind::WriteTimeout, Outcome::NotApplied));
        assert!(error.message.contains("max_waiting_bytes"), "{error}");
        assert!(took < 20 * SHORT, "it waited for {took:?}, while {others} others came and went");
        lease.rollback().unwrap();
        first.join().unwrap().unwrap();
    });
    assert_eq!(items(&db), [1]);
}

/// ```text
/// hurried              leader
/// queued
/// is asked: away
///                      queued, leads: takes both jobs, pauses in the second
/// is back, its time is over; its job cannot be withdrawn: sleeps on
///                      COMMIT, answers
/// has its answer
/// ```
#[test]
fn job_that_a_group_has_taken_runs_to_its_end_past_its_timeout_while_its_caller_sleeps() {
    let db = Database::with_items(|_| ());
    let (hurried, is_asked, answer) = Asked::new();
    let (leader, is_running, go_on) = Paused::new();
    let timeout = 6 * SHORT;
    let (call, leader) = (Call { timeout: Some(timeout), ..call_of(hurried) }, call_of(leader));
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let hurried = scope.spawn(|| db.submit(&call, insert(1)));
        is_asked.recv().unwrap();
        let leader = scope.spawn(|| db.submit(&leader, job(TAKES_MILLISECONDS)));
        until_waiting(&db, 2);
        lease.rollback().unwrap();
        is_running.recv().unwrap();
        let mut asked_late = 0;
        while call.started.elapsed() < 3 * timeout {
            answer.send(false).unwrap();
            is_asked.recv().unwrap();
            asked_late += u32::from(call.started.elapsed() > timeout);
        }
        go_on.send(()).unwrap();
        drop(answer);
        leader.join().unwrap().unwrap();
        hurried.join().unwrap().unwrap();
        assert!(asked_late < 50, "it was awake {asked_late} times in {:?}", 2 * timeout);
    });
    assert_eq!(items(&db), [1, 1_000]);
}

#[test]
fn many_rows_are_one_job() {
    let db = Database::with_items(|_| ());
    let rows = (0..1_000).map(|id| Params::Positional(vec![walpool::value::Value::Integer(id)])).collect();
    let ran = submit(&db, Job::new(Work::Many("INSERT INTO item (id) VALUES (?)".into(), rows))).unwrap();
    assert_eq!((ran[0].rowcount, ran[0].lastrowid), (1_000, Some(999)));
    assert_eq!(items(&db).len(), 1_000);
}
