//! Jobs and leases of callers who must not block: they are told what came of it, and a native thread leads for them.
//!
//! ```text
//! event loop                     writer's hand (a thread)          another caller
//! join_absent: job in line
//! join_absent: another
//! wake: the seat is free
//!   -> handed over               BEGIN, runs both, COMMIT          joins the line
//!                                tells both
//!                                passes the seat on             -> leads
//! ```
//!
//! A job may join some time before `wake`: so a burst of them makes one group, and whoever leads meanwhile takes them along.

use std::sync::Arc;
use std::time::Instant;

use super::queue::{Offer, Tell, Ticket, Wish};
use super::{Begun, Lease, Turn, Writer, closed, stopped};
use crate::caller::Call;
use crate::error::{Outcome, Result};
use crate::group_commit::{Answer, Job};

/// What takes an offered seat to the native thread that leads for absent callers.
pub type Hand = Box<dyn Fn(Offer) + Send + Sync>;

impl Writer {
    /// Who leads for absent callers; said once, before the first of them comes.
    pub fn set_hand(&self, hand: Hand) {
        // A second one would be the same: the engine says it once.
        let _ = self.hand.set(hand);
    }

    pub(super) fn hand_over(&self, offer: Option<Offer>) {
        if let (Some(offer), Some(hand)) = (offer, self.hand.get()) {
            hand(offer);
        }
    }

    /// Queue a job; `tell` gets its answer, on a thread of the engine's. Nobody leads it before `wake` or another caller.
    /// Where the queue has its bytes the job is held back, and nobody blocks.
    ///
    /// # Errors
    /// `Closed` and `QueueFull`, at once.
    pub fn submit_absent(
        self: &Arc<Self>,
        call: &Call,
        job: Job,
        tell: impl FnOnce(Answer) + Send + 'static,
    ) -> Result<Arc<Ticket>> {
        let job = Arc::new(job);
        let tell = {
            let (writer, job, call) = (Arc::downgrade(self), Arc::clone(&job), *call);
            move |answer| {
                writer.upgrade().inspect(|writer| writer.tell_slow(&call, &job));
                tell(answer);
            }
        };
        self.join_absent(Ticket::for_absent(Wish::Job(job), call, Tell::Job(Box::new(tell))))
    }

    /// Queue for a transaction; `tell` gets the lease, on a thread of the engine's.
    ///
    /// # Errors
    /// `Closed` and `QueueFull`, at once.
    pub fn lease_absent(
        self: &Arc<Self>,
        call: &Call,
        tell: impl FnOnce(Result<Lease>) + Send + 'static,
    ) -> Result<Arc<Ticket>> {
        self.join_absent(Ticket::for_absent(Wish::Turn, call, Tell::Lease(Box::new(tell))))
    }

    fn join_absent(&self, ticket: Arc<Ticket>) -> Result<Arc<Ticket>> {
        let mut queue = self.queue.lock();
        self.refuse(&queue)?;
        queue.push_or_hold_back(&ticket);
        self.tell_levels(&queue);
        Ok(ticket)
    }

    /// Have the queue led, if nobody leads it.
    pub fn wake(&self) {
        let offer = {
            let mut queue = self.queue.lock();
            let offer = queue.pass_on_free_seat();
            self.tell_levels(&queue);
            offer
        };
        self.hand_over(offer);
    }

    /// The instant at which a wait for the writer's turn ends.
    pub fn deadline(&self, call: &Call) -> Instant {
        call.wait_deadline(self.rules.write_timeout)
    }

    /// Take an absent caller's wish back; true if nothing will come of it. Else a group has the job, or the lease is being
    /// begun and will be given.
    pub fn cancel(&self, ticket: &Arc<Ticket>) -> bool {
        ticket.go_away(); // whoever waits for another process for its sake need not any more
        self.withdraw(ticket)
    }

    /// As `cancel`, because its time is over: an absent caller is told so.
    pub fn expire(&self, ticket: &Arc<Ticket>) -> bool {
        let Some(error) = self.overdue(ticket.call(), ticket) else { return false };
        let is_withdrawn = self.cancel(ticket);
        if is_withdrawn {
            ticket.fail(error);
        }
        is_withdrawn
    }

    /// Lead for an absent caller, or begin its transaction: on the hand's thread.
    pub fn lead_for(self: &Arc<Self>, offer: Offer) {
        let Offer { conn, ticket } = offer;
        let turn = Turn { writer: Arc::clone(self), conn: Some(conn) };
        let begun = self.begin(ticket.call(), &turn, &ticket);
        if ticket.job().is_some() {
            let led = match begun {
                Ok(Begun::Yes) => turn.run(|conn| self.lead(conn)),
                Ok(Begun::MustAsk) => Ok(()), // it was given up, and has left the line
                Err(error) => Err(error),
            };
            self.fail_if_waiting(&ticket, led);
            return; // the turn passes on: to the same again, where the group was full without it
        }
        match begun {
            Ok(Begun::Yes) => drop(ticket.give(self.lease_of(turn))),
            Ok(Begun::MustAsk) => ticket.fail(closed()), // nobody listens any more
            Err(error) => ticket.fail(error),
        }
    }

    fn fail_if_waiting(&self, ticket: &Arc<Ticket>, led: Result<()>) {
        if let Err(error) = led
            && self.withdraw(ticket)
        {
            ticket.fail(error);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Whoever was never told, as where a thread panicked, is told that nobody knows.
        self.fail(stopped().with_outcome(Outcome::Unknown));
    }
}
