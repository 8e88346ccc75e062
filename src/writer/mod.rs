//! The one writer: its queue, who leads, the lease of an open transaction. Must not know readers.
//!
//! Leading is a role, not a mutex: the connection lies in the seat, and whoever takes it out leads. A caller who finds the
//! seat free leads at once, on its own thread; the others queue and sleep.
//!
//! ```text
//! A                         B                     C
//! join: seat free, takes it
//! BEGIN                     join: queued          join: queued
//! takes A, B, C from the queue, runs them
//! COMMIT returns
//! answers B and C           returns               returns
//! passes the seat on, returns
//! ```
//!
//! A leader gives way after one group: it passes the seat to one who waits, or leaves it free. A caller who must ask Python
//! something (was there a Ctrl-C?) may block on the GIL, so it has gone away meanwhile and is offered no turn.

mod absent;
mod courtesy;
mod lease;
mod queue;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use self::absent::Hand;
use self::courtesy::{Courtesy, MOMENT};
pub use self::lease::{Lease, Transaction};
pub use self::queue::{Offer, Tell, Ticket};
use self::queue::{Queue, Wish, Woken};
use crate::caller::{Call, WAIT_SLICE, lock_telling};
use crate::config::{Config, Synchronous};
use crate::connection::{BUSY_RETRY, Connection, Limit};
use crate::error::{Error, Kind, Outcome, Result};
use crate::group_commit::{Answer, Ended, Group, Job};
use crate::grouping::{Bounds, Load, MOST_WORK, Past};
use crate::log::{Level, Log, excerpt};
use crate::stats::Stats;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The settings that the writer goes by.
struct Rules {
    waits_for_disk: bool,
    write_timeout: Duration,
    busy_timeout: Duration,
    transaction_timeout: Duration,
    max_waiting: u64,
    bounds: Bounds,
    slow_threshold: Duration,
}

/// The writer of one file.
pub struct Writer {
    queue: Mutex<Queue>,       // never held while SQLite runs, nor while a caller is asked
    room: Condvar,             // bytes have left the queue, or it was closed
    at_rest: Condvar,          // nobody waits and nobody has the seat
    courtesy: Mutex<Courtesy>, // towards other processes; whoever has the seat asks it, so nobody ever waits for it
    past: Mutex<Past>,         // of the groups; so too
    rules: Rules,
    after_commit: Box<dyn Fn(u32) + Send + Sync>, // gets the frames in the WAL
    hand: OnceLock<Hand>,
    stats: Arc<Stats>,
    log: Arc<Log>,
}

/// Whether a transaction was begun.
enum Begun {
    Yes,
    /// Another process keeps the lock, and it is time to ask the caller whether it still wants to wait.
    MustAsk,
}

/// The writer connection in somebody's hands; dropping it passes the seat on.
pub struct Turn {
    writer: Arc<Writer>,
    conn: Option<Box<Connection>>,
}

impl Turn {
    /// Run on the writer connection, outside any transaction.
    pub fn run<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.conn.as_deref().map_or_else(|| Err(stopped()), work)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.writer.pass_on(conn);
        }
    }
}

/// The tickets of a group; those still unanswered when it is dropped, as by a panic, are told that nobody knows.
#[derive(Default)]
struct Taken(Vec<Arc<Ticket>>);

impl Drop for Taken {
    fn drop(&mut self) {
        for ticket in &self.0 {
            ticket.answer(Err(stopped().with_outcome(Outcome::Unknown)));
        }
    }
}

impl Writer {
    /// A writer over its connection. `after_commit` is told the frames in the WAL, on the leader's thread.
    pub fn new(
        conn: Connection,
        config: &Config,
        after_commit: Box<dyn Fn(u32) + Send + Sync>,
        stats: Arc<Stats>,
        log: Arc<Log>,
    ) -> Arc<Self> {
        let rules = Rules {
            waits_for_disk: config.synchronous == Synchronous::Full,
            write_timeout: config.write_timeout,
            busy_timeout: config.busy_timeout,
            transaction_timeout: config.transaction_timeout,
            max_waiting: config.max_waiting,
            bounds: Bounds { jobs: config.max_group as usize, bytes: config.max_group_bytes, work: MOST_WORK },
            slow_threshold: config.slow_threshold,
        };
        let (room, at_rest) = (Condvar::new(), Condvar::new());
        Arc::new(Writer {
            queue: Mutex::new(Queue::new(Box::new(conn), config.max_waiting_bytes)),
            room,
            at_rest,
            courtesy: Mutex::default(),
            past: Mutex::default(),
            rules,
            after_commit,
            hand: OnceLock::new(),
            stats,
            log,
        })
    }

    /// Run a job and return when it is committed.
    ///
    /// # Errors
    /// The job's own; `WriteTimeout`, `Busy`, `QueueFull` and `Closed` with nothing applied; `Interrupted` with the outcome
    /// that it says.
    ///
    /// # Guarantees
    /// Serialized writes, whole jobs, answer after commit.
    pub fn submit(self: &Arc<Self>, call: &Call, job: Job) -> Answer {
        let job = Arc::new(job);
        let ticket = Ticket::new(Wish::Job(Arc::clone(&job)), call);
        let answer = self.see_through(call, &ticket);
        self.tell_slow(call, &job);
        answer
    }

    fn tell_slow(&self, call: &Call, job: &Job) {
        let took = call.started.elapsed();
        if took > self.rules.slow_threshold {
            self.stats.slow.one();
            self.log.add(Level::Warning, format!("slow job: {:.3} s: {}", took.as_secs_f64(), excerpt(job.sql())));
        }
    }

    /// Wait and lead until the ticket is answered.
    fn see_through(self: &Arc<Self>, call: &Call, ticket: &Arc<Ticket>) -> Answer {
        let mut seat = self.join(call, ticket)?;
        loop {
            let conn = match seat.take() {
                Some(conn) => conn,
                None => match self.wait(call, ticket)? {
                    Woken::Answer(answer) => return answer,
                    Woken::Turn(conn) => conn,
                },
            };
            let turn = Turn { writer: Arc::clone(self), conn: Some(conn) };
            match self.begin(call, &turn, ticket) {
                Ok(Begun::Yes) => turn.run(|conn| self.lead(conn))?,
                Ok(Begun::MustAsk) => {
                    ticket.go_away();
                    drop(turn);
                    seat = self.ask_caller(call, ticket)?;
                    continue;
                }
                Err(error) => {
                    self.withdraw(ticket); // it is in the queue still: nothing is taken from it before BEGIN
                    return Err(error);
                }
            }
            drop(turn); // the next leader starts before this caller goes on
            match ticket.take_news() {
                Some(Woken::Answer(answer)) => return answer,
                Some(Woken::Turn(conn)) => seat = Some(conn), // the group was full: one more
                None => {}                                    // a lease, or another leader, comes first
            }
        }
    }

    /// Take the writer connection, with nothing begun on it, when the turn comes. What runs on it may be interrupted.
    pub fn turn(self: &Arc<Self>, call: &Call) -> Result<Turn> {
        let turn = self.turn_of(call, &Ticket::new(Wish::Turn, call))?;
        turn.run(|conn| {
            conn.watch().arm(call, Instant::now(), call.deadline().map(Limit::Timeout), true);
            conn.rollback() // what a failed COMMIT may have left open
        })?;
        Ok(turn)
    }

    fn turn_of(self: &Arc<Self>, call: &Call, ticket: &Arc<Ticket>) -> Result<Turn> {
        let conn = match self.join(call, ticket)? {
            Some(conn) => conn,
            None => self.wait_for_turn(call, ticket)?,
        };
        Ok(Turn { writer: Arc::clone(self), conn: Some(conn) })
    }

    fn wait_for_turn(&self, call: &Call, ticket: &Arc<Ticket>) -> Result<Box<Connection>> {
        match self.wait(call, ticket)? {
            Woken::Turn(conn) => Ok(conn),
            Woken::Answer(_) => Err(stopped()), // only jobs are answered
        }
    }

    /// Stand in the queue, and take the seat if it is free.
    fn join(&self, call: &Call, ticket: &Arc<Ticket>) -> Result<Option<Box<Connection>>> {
        let queue = lock_telling(&self.queue, call.caller);
        let mut queue = self.make_room(call, ticket, queue)?;
        if ticket.job().is_some() {
            queue.note_writer(call.started); // not the keeper, nor a lease: these join no group
        }
        queue.push(ticket);
        let seat = queue.take_seat(ticket);
        self.tell_levels(&queue);
        Ok(seat)
    }

    fn tell_levels(&self, queue: &Queue) {
        self.stats.jobs_waiting.set(queue.len() as u64);
        self.stats.jobs_held_back.set(queue.held_back() as u64);
        self.stats.bytes_waiting.set(queue.bytes());
    }

    fn tell_waiting_for_disk(&self, call: &Call) {
        if self.rules.waits_for_disk {
            self.tell_waiting(call); // the others may run Python meanwhile
        }
    }

    fn tell_waiting(&self, call: &Call) {
        if call.caller.about_to_wait() {
            self.stats.yields_to_wait.one();
        }
    }

    fn refuse(&self, queue: &Queue) -> Result<()> {
        if queue.is_closed {
            return Err(closed());
        }
        if self.rules.max_waiting > 0 && queue.len() as u64 >= self.rules.max_waiting {
            return Err(queue_full(self.rules.max_waiting));
        }
        Ok(())
    }

    /// Refuse the ticket where the queue has its number of jobs; hold it back while the queue has its bytes.
    fn make_room<'a>(
        &'a self,
        call: &Call,
        ticket: &Ticket,
        mut queue: MutexGuard<'a, Queue>,
    ) -> Result<MutexGuard<'a, Queue>> {
        let deadline = call.wait_deadline(self.rules.write_timeout);
        let mut ask_at = Instant::now() + WAIT_SLICE;
        loop {
            self.refuse(&queue)?;
            if queue.has_room(ticket.bytes()) {
                return Ok(queue);
            }
            // By the clock, not by how the sleep ended: others who come and go may ring all the time.
            let now = Instant::now();
            if now >= deadline {
                return Err(write_timeout("the queue stayed over max_waiting_bytes"));
            }
            if now >= ask_at {
                ask_at = now + WAIT_SLICE;
                drop(queue);
                if is_interrupted(call) {
                    return Err(interrupted(Outcome::NotApplied));
                }
                queue = self.queue.lock();
                continue; // there may be room now
            }
            self.tell_waiting(call);
            (queue, _) = self.room.wait_until(queue, deadline.min(ask_at));
        }
    }

    /// Sleep until the job is answered or a turn is offered.
    fn wait(&self, call: &Call, ticket: &Arc<Ticket>) -> Result<Woken> {
        self.tell_waiting(call);
        let mut deadline = call.wait_deadline(self.rules.write_timeout);
        loop {
            if let Some(woken) = ticket.sleep(deadline) {
                return Ok(woken);
            }
            if let Some(error) = self.overdue(call, ticket) {
                if self.withdraw(ticket) {
                    return Err(error);
                }
                deadline = Instant::now() + WAIT_SLICE; // a group has it, and will answer: there is no other end to this wait
            }
            if call.caller.can_be_interrupted() {
                ticket.go_away();
                if let Some(conn) = self.ask_caller(call, ticket)? {
                    return Ok(Woken::Turn(conn));
                }
            }
        }
    }

    /// Ask the caller, which has gone away, whether it was interrupted; back again, it takes a seat that lies free.
    fn ask_caller(&self, call: &Call, ticket: &Arc<Ticket>) -> Result<Option<Box<Connection>>> {
        let was_interrupted = is_interrupted(call);
        if was_interrupted {
            return Err(self.abandon(ticket));
        }
        let mut queue = self.queue.lock();
        // One whose job was run meanwhile leaves a free seat to those who need it.
        let is_waiting = ticket.come_back();
        Ok(if is_waiting { queue.take_seat(ticket) } else { None })
    }

    /// The interrupt of a caller: its job is withdrawn, or, if a group has it already, ends as it would have.
    fn abandon(&self, ticket: &Arc<Ticket>) -> Error {
        if self.withdraw(ticket) {
            return interrupted(Outcome::NotApplied);
        }
        match ticket.take_news() {
            Some(Woken::Answer(Ok(_))) => interrupted(Outcome::Applied),
            Some(Woken::Answer(Err(error))) => interrupted(error.outcome),
            Some(Woken::Turn(conn)) => {
                self.pass_on(conn);
                interrupted(Outcome::NotApplied)
            }
            None => interrupted(Outcome::Unknown),
        }
    }

    /// The error of a ticket that has waited too long, each by its own clock.
    fn overdue(&self, call: &Call, ticket: &Ticket) -> Option<Error> {
        let busy_since = self.queue.lock().busy_since;
        if busy_since.is_some() && ticket.waited(busy_since) >= self.rules.busy_timeout {
            return Some(busy(self.rules.busy_timeout));
        }
        if Instant::now() < call.wait_deadline(self.rules.write_timeout) {
            return None;
        }
        Some(write_timeout(match busy_since {
            Some(_) => "another process has the file's write lock",
            None => "the writer was not free; a transaction() that stays open keeps everybody waiting",
        }))
    }

    /// Leave the queue. False if it is no longer there: a group has taken the job, or a lease was given its turn.
    fn withdraw(&self, ticket: &Arc<Ticket>) -> bool {
        let mut queue = self.queue.lock();
        if !queue.remove(ticket) {
            return false;
        }
        self.stats.jobs_withdrawn.one();
        self.after_leaving(&mut queue);
        let offer = match ticket.take_news() {
            // A job that is offered the seat stays in the queue. The offer may come between the end of its caller's
            // patience and here; the connection must not go with the ticket.
            Some(Woken::Turn(conn)) => queue.pass_on(conn),
            _ => queue.pass_on_free_seat(), // it may have been the one for whom the seat lay free
        };
        if queue.is_at_rest() {
            self.at_rest.notify_all();
        }
        drop(queue);
        self.hand_over(offer);
        true
    }

    fn after_leaving(&self, queue: &mut Queue) {
        queue.admit();
        self.tell_levels(queue);
        self.room.notify_all();
        if queue.is_at_rest() {
            self.at_rest.notify_all();
        }
    }

    fn pass_on(&self, conn: Box<Connection>) {
        self.courtesy.lock().free(Instant::now);
        // One who waits is offered the seat, so somebody is always responsible for those in the queue.
        let mut queue = self.queue.lock();
        let offer = queue.pass_on(conn);
        self.tell_levels(&queue);
        if queue.is_at_rest() {
            self.at_rest.notify_all();
        }
        drop(queue);
        self.hand_over(offer);
    }

    /// Begin the write transaction, waiting for another process's lock.
    fn begin(&self, call: &Call, turn: &Turn, ticket: &Ticket) -> Result<Begun> {
        self.let_others_join(call);
        let started = Instant::now();
        turn.run(|conn| {
            conn.watch().arm(call, started, None, false);
            conn.rollback()?; // what a failed COMMIT may have left open
            let was_left = self.leave_lock(call, started);
            let begun = self.begin_patiently(call, conn, ticket, started);
            if !matches!(begun, Ok(Begun::MustAsk)) {
                self.tell_busy_wait(&begun);
            }
            if let Ok(Begun::Yes) = begun {
                self.courtesy.lock().take(Instant::now);
                if was_left {
                    let version = conn.data_version()?;
                    self.courtesy.lock().note_version(version, started);
                }
            }
            begun
        })
    }

    /// Let another process have the lock, if it is its turn. Jobs that come meanwhile join the group.
    fn leave_lock(&self, call: &Call, now: Instant) -> bool {
        let is_owed = self.courtesy.lock().owes_a_moment(now);
        if is_owed {
            self.tell_waiting(call);
            std::thread::sleep(MOMENT);
        }
        is_owed
    }

    fn tell_busy_wait(&self, begun: &Result<Begun>) {
        let mut queue = self.queue.lock();
        let Some(since) = queue.busy_since else { return };
        self.stats.busy_waits.one();
        self.stats.busy_wait.record_duration(since.elapsed());
        if begun.is_ok() {
            queue.busy_since = None; // else it goes on for those behind: each has its own clock, and it runs from here
        }
    }

    /// Give up before the group begins, where COMMIT will wait for the disk anyway, or where other threads write too: they
    /// can only join the group while this one does not keep them from running, and a shared COMMIT is worth the switch.
    fn let_others_join(&self, call: &Call) {
        let is_worth_it = self.rules.waits_for_disk
            || (!call.caller.is_waiting_dear() && self.queue.lock().is_contended(call.started));
        if is_worth_it {
            self.tell_waiting(call);
        }
    }

    fn begin_patiently(&self, call: &Call, conn: &Connection, ticket: &Ticket, started: Instant) -> Result<Begun> {
        loop {
            match conn.begin() {
                Err(error) if error.is_busy() => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(Begun::Yes),
            }
            self.tell_waiting(call);
            self.courtesy.lock().meet(Instant::now());
            self.queue.lock().busy_since.get_or_insert(started);
            if let Some(error) = self.overdue(call, ticket) {
                return Err(error);
            }
            if ticket.is_given_up() || call.caller.can_be_interrupted() && started.elapsed() >= WAIT_SLICE {
                return Ok(Begun::MustAsk);
            }
            std::thread::sleep(BUSY_RETRY);
        }
    }

    /// Lead one group: run those who wait now, commit once, answer them all.
    fn lead(&self, conn: &Connection) -> Result<()> {
        let started = Instant::now();
        let past = *self.past.lock();
        let most = self.queue.lock().absent().map_or(usize::MAX, |waiting| past.most_of_loops(waiting));
        let bounds = Bounds { jobs: most.min(self.rules.bounds.jobs), work: past.most_work(), ..self.rules.bounds };
        let mut group = Group::new(conn, self.rules.busy_timeout, past);
        let mut taken = Taken::default();
        let mut load = Load::default();
        let mut last = started;
        while let Some(ticket) = self.next_job(load, bounds) {
            let Some(job) = ticket.job().map(Arc::clone) else { break };
            self.stats.job_wait.record_duration(ticket.waited(None));
            taken.0.push(ticket);
            let bytes = job.bytes;
            let goes_on = group.run(job);
            let now = Instant::now();
            load.add(bytes, now - last);
            last = now;
            if !goes_on {
                break;
            }
        }
        let ended = group.commit();
        *self.past.lock() = ended.past;
        self.stats.group.record_duration(started.elapsed());
        self.tell_group(&ended);
        for (ticket, answer) in std::mem::take(&mut taken.0).into_iter().zip(ended.answers) {
            ticket.answer(answer);
        }
        Ok(())
    }

    fn next_job(&self, load: Load, bounds: Bounds) -> Option<Arc<Ticket>> {
        let mut queue = self.queue.lock();
        let ticket = queue.next_job(load, bounds)?;
        self.after_leaving(&mut queue);
        Some(ticket)
    }

    fn tell_group(&self, ended: &Ended) {
        let failed = ended.answers.iter().filter(|answer| answer.is_err()).count() as u64;
        self.stats.jobs.add(ended.answers.len() as u64 - failed);
        self.stats.jobs_failed.add(failed);
        self.stats.group_replays.add(ended.replays);
        if let Some(frames) = ended.wal_frames {
            self.stats.groups.one();
            self.stats.jobs_per_group.record(ended.answers.len() as u64);
            self.stats.commit.record_duration(ended.commit_took);
            self.stats.wal_frames.set(u64::from(frames));
            (self.after_commit)(frames);
        }
    }

    /// Refuse new work, wait until all that was accepted is answered, and close the connection. Safe to call twice.
    ///
    /// # Blocking
    /// For as long as an open lease lasts, `transaction_timeout` at most, and the jobs behind it.
    pub fn close(&self, call: &Call) -> Result<()> {
        let mut queue = lock_telling(&self.queue, call.caller);
        queue.is_closed = true;
        self.room.notify_all();
        let refused = queue.refuse_held_back();
        // An event loop that stopped may never have said that its jobs want to be led.
        let offer = queue.pass_on_free_seat();
        drop(queue);
        refused.iter().for_each(|ticket| ticket.fail(closed()));
        self.hand_over(offer);
        queue = self.queue.lock();
        if !queue.is_at_rest() {
            self.tell_waiting(call);
        }
        while !queue.is_at_rest() {
            queue = self.at_rest.wait(queue);
        }
        let conn = queue.remove_seat();
        drop(queue);
        conn.map_or(Ok(()), |conn| conn.close())
    }
}

fn is_interrupted(call: &Call) -> bool {
    call.caller.can_be_interrupted() && call.caller.is_interrupted()
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the pool is closed")
}

fn stopped() -> Error {
    Error::new(Kind::WriterStopped, "the writer stopped in the middle of a group; open the pool anew")
}

fn interrupted(outcome: Outcome) -> Error {
    let text = match outcome {
        Outcome::NotApplied => "interrupted; the job was withdrawn",
        Outcome::Applied => "interrupted; the job had been committed",
        Outcome::Unknown => "interrupted; the job was in a group by then, which goes on without its caller",
    };
    Error::new(Kind::Interrupted, text).with_outcome(outcome)
}

fn busy(busy_timeout: Duration) -> Error {
    let seconds = busy_timeout.as_secs_f64();
    Error::new(
        Kind::Busy,
        format!(
            "another process has kept the file locked for {seconds} s (busy_timeout); nothing was written, try again"
        ),
    )
}

fn write_timeout(why: &str) -> Error {
    Error::new(Kind::WriteTimeout, format!("the job's turn did not come in time: {why}; nothing was written"))
}

fn queue_full(max_waiting: u64) -> Error {
    Error::new(
        Kind::QueueFull,
        format!("{max_waiting} jobs are waiting already (max_waiting); nothing was written, try again later"),
    )
}
