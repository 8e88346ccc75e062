//! Who gets the seat, and that it is never lost, whatever instant a caller goes away or gives up at.

use tempfile::TempDir;

use super::*;
use crate::caller::Caller;
use crate::connection::{Common, open_writer};
use crate::group_commit::Work;
use crate::value::Params;

/// One who can be asked, and was interrupted or not.
struct Asked(bool);

impl Caller for Asked {
    fn about_to_wait(&self) -> bool {
        false
    }
    fn budget_used(&self) -> bool {
        false
    }
    fn is_waiting_dear(&self) -> bool {
        false
    }
    fn can_be_interrupted(&self) -> bool {
        true
    }
    fn is_interrupted(&self) -> bool {
        self.0
    }
}

fn writer() -> (Arc<Writer>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::default();
    let (common, log) = (Common::new(&config), Arc::new(Log::new(Arc::default())));
    let stats = Arc::clone(&common.stats);
    let conn = open_writer(&Call::internal(), &folder.path().join("test.db"), &config, &common).unwrap();
    (Writer::new(conn, &config, Box::new(|_| ()), stats, log), folder)
}

fn job() -> Arc<Ticket> {
    let job = Job::new(Work::Execute("SELECT 1".into(), Params::NONE));
    Ticket::new(Wish::Job(Arc::new(job)), &Call::internal())
}

fn turn() -> Arc<Ticket> {
    Ticket::new(Wish::Turn, &Call::internal())
}

/// A writer whose seat the test has taken, and these tickets in its queue.
fn queue_of(tickets: &[&Arc<Ticket>]) -> (Arc<Writer>, Box<Connection>, TempDir) {
    let (writer, folder) = writer();
    let mut queue = writer.queue.lock();
    let first = turn();
    queue.push(&first);
    let conn = queue.take_seat(&first).unwrap();
    for ticket in tickets {
        queue.push(ticket);
    }
    drop(queue);
    (writer, conn, folder)
}

fn was_offered(ticket: &Ticket) -> bool {
    matches!(ticket.take_news(), Some(Woken::Turn(_)))
}

#[test]
fn seat_goes_to_the_first_job_whose_caller_is_there() {
    let (away, next, last) = (job(), job(), job());
    let (writer, conn, _folder) = queue_of(&[&away, &next, &last]);
    away.go_away();
    writer.pass_on(conn);
    assert!(!was_offered(&away) && !was_offered(&last));
    assert!(was_offered(&next));
}

#[test]
fn seat_goes_to_the_turn_at_the_front_and_takes_it_out_of_the_queue() {
    let (first, next) = (turn(), job());
    let (writer, conn, _folder) = queue_of(&[&first, &next]);
    writer.pass_on(conn);
    assert!(was_offered(&first) && !was_offered(&next));
    assert_eq!(writer.queue.lock().len(), 1);
}

#[test]
fn nobody_gets_the_seat_past_a_turn_whose_caller_is_away() {
    for tickets in [[turn(), job(), turn()], [job(), turn(), job()]] {
        let (writer, conn, _folder) = queue_of(&tickets.each_ref());
        tickets[0].go_away();
        writer.pass_on(conn);
        assert!(!tickets.iter().any(|ticket| was_offered(ticket)));
        let latecomer = job();
        let mut queue = writer.queue.lock();
        queue.push(&latecomer);
        assert_eq!(queue.take_seat(&latecomer).is_some(), tickets[0].job().is_some(), "a job may lead those before it");
    }
}

#[test]
fn caller_that_comes_back_takes_a_seat_that_lies_free() {
    for ticket in [job(), turn()] {
        let (writer, conn, _folder) = queue_of(&[&ticket]);
        ticket.go_away();
        writer.pass_on(conn);
        let call = Call::new(&Asked(false), None);
        assert!(writer.ask_caller(&call, &ticket).unwrap().is_some());
    }
}

/// ```text
/// a                          b                        c
/// asked: away                                         asked: away
///                            leads, takes a's job
///                            passes on: the seat lies free
/// back: must not lead        returns
///                                                     back: leads
/// ```
/// Were `a` to lead and fail to begin, it would be told that its job was not applied.
#[test]
fn caller_whose_job_was_run_while_it_was_away_does_not_lead() {
    let (a, c) = (job(), job());
    let (writer, conn, _folder) = queue_of(&[&a, &c]);
    a.go_away();
    c.go_away();
    let bounds = Bounds { jobs: 1, bytes: u64::MAX };
    let taken = writer.queue.lock().next_job(Load::default(), bounds).unwrap();
    taken.answer(Ok(Vec::new()));
    writer.pass_on(conn);
    let call = Call::new(&Asked(false), None);
    assert!(writer.ask_caller(&call, &a).unwrap().is_none());
    assert!(matches!(a.take_news(), Some(Woken::Answer(Ok(_)))));
    assert!(writer.ask_caller(&call, &c).unwrap().is_some());
}

/// ```text
/// caller                              leader
/// sleeps; its patience is over
///                                     passes the seat on: offered to the caller
/// withdraws
/// ```
/// The connection must not go with the ticket: nobody could ever write again.
#[test]
fn job_that_is_withdrawn_as_it_is_offered_the_seat_passes_it_on() {
    let (withdrawn, next) = (job(), job());
    let (writer, conn, _folder) = queue_of(&[&withdrawn, &next]);
    writer.pass_on(conn);
    assert!(writer.withdraw(&withdrawn));
    assert!(was_offered(&next));
}

#[test]
fn caller_that_is_interrupted_as_it_is_offered_the_seat_passes_it_on() {
    for ticket in [job(), turn()] {
        let next = job();
        let (writer, conn, _folder) = queue_of(&[&ticket, &next]);
        writer.pass_on(conn);
        ticket.go_away(); // too late: the offer has come
        let call = Call::new(&Asked(true), None);
        let error = writer.ask_caller(&call, &ticket).err().unwrap();
        assert_eq!((error.kind, error.outcome), (Kind::Interrupted, Outcome::NotApplied));
        assert!(was_offered(&next));
    }
}

#[test]
fn leader_whose_own_job_is_still_queued_is_offered_the_seat_again() {
    let leader = job();
    let (writer, conn, _folder) = queue_of(&[&leader]);
    writer.pass_on(conn);
    let Some(Woken::Turn(conn)) = leader.take_news() else { panic!("no turn was offered") };
    writer.pass_on(conn);
    assert!(was_offered(&leader));
}

#[test]
fn queue_is_at_rest_when_nobody_waits_and_the_seat_is_free_or_gone() {
    let ticket = job();
    let (writer, conn, _folder) = queue_of(&[&ticket]);
    assert!(!writer.queue.lock().is_at_rest());
    writer.withdraw(&ticket);
    assert!(!writer.queue.lock().is_at_rest(), "somebody has the seat");
    writer.pass_on(conn);
    assert!(writer.queue.lock().is_at_rest());
    writer.close(&Call::internal()).unwrap();
    writer.close(&Call::internal()).unwrap();
    assert!(writer.queue.lock().is_at_rest());
    assert_eq!(writer.submit(&Call::internal(), Job::new(Work::Batch(Vec::new()))).unwrap_err().kind, Kind::Closed);
}
