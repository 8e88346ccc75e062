//! The line before the writer: tickets, the seat, and who gets it next. Nothing here blocks but `Ticket::sleep`.
//!
//! A caller either sleeps on its ticket, and leads when it is offered the seat, or it is absent: it is told what came of
//! it, and a native thread (the writer's hand) leads in its place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::Lease;
use crate::caller::{Call, WAIT_SLICE};
use crate::connection::Connection;
use crate::error::{Error, Result as EngineResult};
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

/// How an absent caller is told what came of its wish; called once, with no lock of the engine held.
pub enum Tell {
    /// The answer to its job.
    Job(Box<dyn FnOnce(Answer) + Send>),
    /// Its lease of the writer.
    Lease(Box<dyn FnOnce(EngineResult<Lease>) + Send>),
}

impl Tell {
    fn error(self, error: Error) {
        match self {
            Tell::Job(tell) => tell(Err(error)),
            Tell::Lease(tell) => tell(Err(error)),
        }
    }
}

/// One caller's place in the queue.
pub struct Ticket {
    wish: Wish,
    call: Call,
    slot: Mutex<Slot>, // locked after the queue, never before it
    woken: Condvar,
    /// Whether the caller is absent, and how it is told.
    is_absent: bool,
    tell: Mutex<Option<Tell>>,
}

/// The seat, for a native thread that leads in the place of an absent caller.
pub struct Offer {
    /// The connection.
    pub conn: Box<Connection>,
    /// Whose turn it is. A job's ticket is still in the line; that of a lease has left it.
    pub ticket: Arc<Ticket>,
}

impl Ticket {
    /// A ticket that is not in the queue yet, of a caller that will sleep on it.
    pub fn new(wish: Wish, call: &Call) -> Arc<Self> {
        Self::make(wish, call, None)
    }

    /// As `new`, of a caller that is absent.
    pub fn for_absent(wish: Wish, call: &Call, tell: Tell) -> Arc<Self> {
        Self::make(wish, call, Some(tell))
    }

    fn make(wish: Wish, call: &Call, tell: Option<Tell>) -> Arc<Self> {
        let (slot, woken, is_absent) = (Mutex::new(Slot::Waiting), Condvar::new(), tell.is_some());
        Arc::new(Ticket { wish, call: *call, slot, woken, is_absent, tell: Mutex::new(tell) })
    }

    /// The call that it was made for.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// Whether its caller is absent and no longer wants its turn.
    pub fn is_given_up(&self) -> bool {
        self.is_absent && matches!(*self.slot.lock(), Slot::Away)
    }

    /// Tell an absent caller that nothing comes of it. Does nothing for one that was told.
    pub fn fail(&self, error: Error) {
        let tell = self.tell.lock().take();
        if let Some(tell) = tell {
            tell.error(error);
        }
    }

    /// Give an absent caller its lease; it comes back where nobody waits for one.
    pub fn give(&self, lease: Lease) -> Option<Lease> {
        let tell = self.tell.lock().take();
        match tell {
            Some(Tell::Lease(tell)) => {
                tell(Ok(lease));
                None
            }
            _ => Some(lease),
        }
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
        since.map_or(self.call.started, |since| since.max(self.call.started)).elapsed()
    }

    fn wants_turn(&self) -> bool {
        self.job().is_none()
    }

    /// Hand the answer over: wake the sleeper, or tell the absent.
    pub fn answer(&self, answer: Answer) {
        if self.is_absent {
            let tell = self.tell.lock().take();
            if let Some(Tell::Job(tell)) = tell {
                tell(answer);
            }
            return;
        }
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
    /// Jobs of absent callers for which the line has no room yet.
    held_back: VecDeque<Arc<Ticket>>,
    bytes: u64,
    most_bytes: u64,
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
    /// An empty queue before a free seat, with room for `most_bytes` of parameters.
    pub fn new(conn: Box<Connection>, most_bytes: u64) -> Self {
        Queue {
            seat: Seat::Free(conn),
            line: VecDeque::new(),
            held_back: VecDeque::new(),
            bytes: 0,
            most_bytes,
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

    /// Tickets in the queue, those held back among them.
    pub fn len(&self) -> usize {
        self.line.len() + self.held_back.len()
    }

    /// Tickets that are held back.
    pub fn held_back(&self) -> usize {
        self.held_back.len()
    }

    /// Whether the line has room for so many bytes more, with nobody held back before them. One ticket always has.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.held_back.is_empty() && self.fits(bytes)
    }

    fn fits(&self, bytes: u64) -> bool {
        self.line.is_empty() || self.bytes + bytes <= self.most_bytes
    }

    /// Stand at the end, or be held back while there is no room.
    pub fn push_or_hold_back(&mut self, ticket: &Arc<Ticket>) {
        if self.has_room(ticket.bytes()) {
            self.push(ticket);
        } else {
            self.held_back.push_back(Arc::clone(ticket));
        }
    }

    /// Let those into the line for whom there is room by now.
    pub fn admit(&mut self) {
        while let Some(ticket) = self.held_back.front()
            && self.fits(ticket.bytes())
        {
            if let Some(ticket) = self.held_back.pop_front() {
                self.push(&ticket);
            }
        }
    }

    /// Refuse those who are held back: for `close`.
    pub fn refuse_held_back(&mut self) -> VecDeque<Arc<Ticket>> {
        std::mem::take(&mut self.held_back)
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
        let place = |line: &VecDeque<Arc<Ticket>>| line.iter().position(|queued| Arc::ptr_eq(queued, ticket));
        if let Some(place) = place(&self.held_back) {
            self.held_back.remove(place);
            return true;
        }
        let Some(place) = place(&self.line) else { return false };
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

    /// How many tickets stand in line, if the first one's caller is absent: one on an event loop.
    pub fn absent(&self) -> Option<usize> {
        self.line.front().filter(|ticket| ticket.is_absent).map(|_| self.line.len())
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
    /// Where all are away the seat lies free, and whoever comes back takes it up. An absent caller's turn is handed back: it
    /// is for the writer's hand, once the queue is unlocked.
    #[must_use]
    pub fn pass_on(&mut self, conn: Box<Connection>) -> Option<Offer> {
        let mut conn = conn;
        for place in 0..self.line.len() {
            let ticket = Arc::clone(&self.line[place]);
            let is_turn = ticket.wants_turn();
            if is_turn && place > 0 {
                break; // a turn waits for those before it
            }
            if ticket.is_absent {
                if is_turn {
                    self.line.pop_front();
                }
                self.seat = Seat::Taken;
                return Some(Offer { conn, ticket });
            }
            match ticket.offer(conn) {
                Ok(()) => {
                    if is_turn {
                        self.line.pop_front();
                    }
                    self.seat = Seat::Taken;
                    return None;
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
        None
    }

    /// Pass a seat on that lies free: after somebody for whom it was left has gone, or for the absent who have come.
    #[must_use]
    pub fn pass_on_free_seat(&mut self) -> Option<Offer> {
        let conn = self.take_free_seat()?;
        self.pass_on(conn)
    }
}
