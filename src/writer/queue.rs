//! The line before the writer: tickets, the seat, and who gets it next. Nothing here blocks but `Ticket::sleep`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::caller::{Call, WAIT_SLICE};
use crate::connection::Connection;
use crate::group_commit::{Answer, Job};
use crate::grouping::{Bounds, Load};
use crate::sync::{Condvar, Mutex};

/// Where the writer connection is.
enum Seat {
    Free(Box<Connection>),
    Taken,
    Gone,
}

/// What stands in the queue.
pub enum Wish {
    /// To be run in a group.
    Job(Arc<Job>),
    /// To have the connection itself for a while.
    Turn,
}

enum Slot {
    /// Asleep, or about to be: may be offered a turn.
    Waiting,
    /// Asking its caller something, which may block: gets no turn.
    Away,
    /// In a group.
    Taken,
    Turn(Box<Connection>),
    Answered(Answer),
}

/// What a sleeper was woken with.
pub enum Woken {
    /// Its job was run.
    Answer(Answer),
    /// It has the writer now.
    Turn(Box<Connection>),
}

/// One caller's place in the queue.
pub struct Ticket {
    wish: Wish,
    queued_at: Instant,
    slot: Mutex<Slot>, // locked after the queue, never before it
    woken: Condvar,
}

impl Ticket {
    /// A ticket that is not in the queue yet.
    pub fn new(wish: Wish, call: &Call) -> Arc<Self> {
        Arc::new(Ticket { wish, queued_at: call.started, slot: Mutex::new(Slot::Waiting), woken: Condvar::new() })
    }

    /// The job, if it is one.
    pub fn job(&self) -> Option<&Arc<Job>> {
        match &self.wish {
            Wish::Job(job) => Some(job),
            Wish::Turn => None,
        }
    }

    /// Bytes that it holds back in the queue.
    pub fn bytes(&self) -> u64 {
        self.job().map_or(0, |job| job.bytes)
    }

    /// How long it has waited, counted from `since` if that is later.
    pub fn waited(&self, since: Option<Instant>) -> Duration {
        since.map_or(self.queued_at, |since| since.max(self.queued_at)).elapsed()
    }

    fn wants_turn(&self) -> bool {
        self.job().is_none()
    }

    /// Hand the answer over and wake the sleeper.
    pub fn answer(&self, answer: Answer) {
        *self.slot.lock() = Slot::Answered(answer);
        self.woken.notify_one();
    }

    /// Sleep until woken, until `deadline`, or for one slice, whichever comes first.
    pub fn sleep(&self, deadline: Instant) -> Option<Woken> {
        let mut slot = self.slot.lock();
        let until = deadline.min(Instant::now() + WAIT_SLICE);
        loop {
            if let Some(news) = slot.take_news() {
                return Some(news);
            }
            let (woken, is_over) = self.woken.wait_until(slot, until);
            slot = woken;
            if is_over && !slot.is_news() {
                return None;
            }
        }
    }

    /// What has come in, without sleeping.
    pub fn take_news(&self) -> Option<Woken> {
        self.slot.lock().take_news()
    }

    /// From now on no turn is offered.
    pub fn go_away(&self) {
        let mut slot = self.slot.lock();
        if matches!(*slot, Slot::Waiting) {
            *slot = Slot::Away;
        }
    }

    /// From now on a turn may be offered again. False if there is nothing to wait for in the queue: a group has taken the
    /// job, or there is news.
    pub fn come_back(&self) -> bool {
        let mut slot = self.slot.lock();
        if matches!(*slot, Slot::Away) {
            *slot = Slot::Waiting;
        }
        matches!(*slot, Slot::Waiting)
    }

    fn take(&self) {
        *self.slot.lock() = Slot::Taken;
    }

    fn offer(&self, conn: Box<Connection>) -> Result<(), Box<Connection>> {
        let mut slot = self.slot.lock();
        if !matches!(*slot, Slot::Waiting) {
            return Err(conn);
        }
        *slot = Slot::Turn(conn);
        drop(slot);
        self.woken.notify_one();
        Ok(())
    }
}

impl Slot {
    fn is_news(&self) -> bool {
        matches!(self, Slot::Turn(_) | Slot::Answered(_))
    }

    fn take_news(&mut self) -> Option<Woken> {
        match std::mem::replace(self, Slot::Waiting) {
            Slot::Answered(answer) => Some(Woken::Answer(answer)),
            // Its job is still in the queue, and may find no room in the group that it leads: it waits for another turn then.
            Slot::Turn(conn) => Some(Woken::Turn(conn)),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// The queue and the seat, under the writer's one mutex.
pub struct Queue {
    seat: Seat,
    line: VecDeque<Arc<Ticket>>,
    bytes: u64,
    /// New tickets are refused.
    pub is_closed: bool,
    /// Since when another process has kept the writer from beginning.
    pub busy_since: Option<Instant>,
    last_writer: Option<ThreadId>,
    contended_until: Option<Instant>,
}

/// Threads that take turns by the GIL's switch interval (5 ms) must still be seen as writing at the same time.
const CONTENTION: Duration = Duration::from_millis(20);

impl Queue {
    /// An empty queue before a free seat.
    pub fn new(conn: Box<Connection>) -> Self {
        Queue {
            seat: Seat::Free(conn),
            line: VecDeque::new(),
            bytes: 0,
            is_closed: false,
            busy_since: None,
            last_writer: None,
            contended_until: None,
        }
    }

    /// Remember that this thread writes; two threads within a short time contend.
    pub fn note_writer(&mut self, now: Instant) {
        let writer = Some(std::thread::current().id());
        if self.last_writer.is_some() && self.last_writer != writer {
            self.contended_until = Some(now + CONTENTION);
        }
        self.last_writer = writer;
    }

    /// Whether several threads have written lately.
    pub fn is_contended(&self, now: Instant) -> bool {
        self.contended_until.is_some_and(|until| now < until)
    }

    /// Tickets in the queue.
    pub fn len(&self) -> usize {
        self.line.len()
    }

    /// Bytes of parameters in the queue.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nobody waits and nobody has the seat.
    pub fn is_at_rest(&self) -> bool {
        self.line.is_empty() && !matches!(self.seat, Seat::Taken)
    }

    /// Stand at the end.
    pub fn push(&mut self, ticket: &Arc<Ticket>) {
        self.bytes += ticket.bytes();
        self.line.push_back(Arc::clone(ticket));
    }

    /// Stand at the front again, after a turn that could not begin.
    pub fn push_front(&mut self, ticket: &Arc<Ticket>) {
        self.bytes += ticket.bytes();
        self.line.push_front(Arc::clone(ticket));
    }

    /// Leave the queue; false if it is no longer in it.
    pub fn remove(&mut self, ticket: &Arc<Ticket>) -> bool {
        let Some(place) = self.line.iter().position(|queued| Arc::ptr_eq(queued, ticket)) else { return false };
        self.line.remove(place);
        self.bytes -= ticket.bytes();
        true
    }

    /// The seat, for one who stands in the queue, if it is free and this one may take it: a job may lead unless a turn
    /// stands at the front, and a turn must stand there itself, which takes it out of the queue.
    pub fn take_seat(&mut self, ticket: &Arc<Ticket>) -> Option<Box<Connection>> {
        let front = self.line.front()?;
        let may_take = if front.wants_turn() { Arc::ptr_eq(front, ticket) } else { !ticket.wants_turn() };
        if !may_take {
            return None;
        }
        let conn = self.take_free_seat()?;
        if ticket.wants_turn() {
            self.line.pop_front();
        }
        Some(conn)
    }

    fn take_free_seat(&mut self) -> Option<Box<Connection>> {
        match std::mem::replace(&mut self.seat, Seat::Taken) {
            Seat::Free(conn) => Some(conn),
            other => {
                self.seat = other;
                None
            }
        }
    }

    /// Take the seat for good: for `close`.
    pub fn remove_seat(&mut self) -> Option<Box<Connection>> {
        let conn = self.take_free_seat()?;
        self.seat = Seat::Gone;
        Some(conn)
    }

    /// The next job for a group, if it still has room.
    pub fn next_job(&mut self, load: Load, bounds: Bounds) -> Option<Arc<Ticket>> {
        let front = self.line.front()?;
        if front.wants_turn() || !load.has_room(front.bytes(), bounds) {
            return None;
        }
        let ticket = self.line.pop_front()?;
        self.bytes -= ticket.bytes();
        ticket.take();
        Some(ticket)
    }

    /// Give the connection to the next who can take it: to the turn at the front, or to the first job whose caller can lead.
    /// Where all are away the seat lies free, and whoever comes back takes it up.
    pub fn pass_on(&mut self, conn: Box<Connection>) {
        let mut conn = conn;
        for place in 0..self.line.len() {
            let ticket = Arc::clone(&self.line[place]);
            let is_turn = ticket.wants_turn();
            if is_turn && place > 0 {
                break; // a turn waits for those before it
            }
            match ticket.offer(conn) {
                Ok(()) if is_turn => {
                    self.line.pop_front();
                    self.seat = Seat::Taken;
                    return;
                }
                Ok(()) => {
                    self.seat = Seat::Taken;
                    return;
                }
                Err(refused) => conn = refused,
            }
            if is_turn {
                break; // first come, first served: nobody leads past it
            }
        }
        if self.line.is_empty() {
            self.busy_since = None; // whoever comes next finds out anew
        }
        self.seat = Seat::Free(conn);
    }

    /// Pass a seat on that lies free, after somebody for whom it was left has gone.
    pub fn pass_on_free_seat(&mut self) {
        if let Some(conn) = self.take_free_seat() {
            self.pass_on(conn);
        }
    }
}
