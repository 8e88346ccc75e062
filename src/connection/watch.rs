//! Watching a statement while it runs, from SQLite's progress handler: its caller's budget, its deadline, an interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::caller::{BUDGET, Call, Caller, Unhurried};
use crate::error::{Error, Kind, Result};
use crate::functions::Lookout;
use crate::stats::Stats;
use crate::sync::Mutex;

/// Virtual-machine steps between two looks at the clock: 10 to 30 µs of the usual statements, under half of the budget.
const STEPS: std::ffi::c_int = 500;

/// What ends a statement before its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The caller's `timeout`.
    Timeout(Instant),
    /// The end of the snapshot or lease that it runs in.
    Tenure(Instant),
}

impl Limit {
    fn instant(self) -> Instant {
        match self {
            Limit::Timeout(instant) | Limit::Tenure(instant) => instant,
        }
    }

    fn error(self) -> Error {
        match self {
            Limit::Timeout(_) => Error::new(
                Kind::StatementTimeout,
                "the statement ran past its timeout and was interrupted; give it a longer timeout, or an index",
            ),
            Limit::Tenure(_) => Error::new(
                Kind::TransactionTimeout,
                "the statement ran past transaction_timeout and was stopped; its transaction was rolled back and is over",
            ),
        }
    }
}

struct State {
    caller: &'static dyn Caller,
    started: Instant,
    limit: Option<Limit>,
    /// Whether the caller may interrupt what runs: reads yes, a write in a group never.
    is_interruptible: bool,
    next_poll: Instant,
    has_yielded: bool,
    /// Whether the handler was called since the watch was armed.
    was_called: bool,
    /// What uses up its budget is stopped, rather than run on with something given up.
    ends_over_budget: bool,
    was_over_budget: bool,
    stopped_by: Option<Error>,
}

impl Lookout for Watch {
    fn expect_long(&self) -> bool {
        self.look_inside(true)
    }

    fn look(&self) -> bool {
        self.look_inside(false)
    }
}

/// The watch of one connection.
#[derive(Clone)]
pub struct Watch {
    // Never contended: the connection is used by one thread at a time. A mutex, because SQLite's callback must be `Send`.
    state: Arc<Mutex<State>>,
    is_shielded: Arc<AtomicBool>,
    stats: Arc<Stats>,
}

impl Watch {
    /// A watch that is installed on a connection for as long as it is open.
    pub fn install(raw: &rusqlite::Connection, stats: Arc<Stats>) -> rusqlite::Result<Watch> {
        let now = Instant::now();
        let state = State {
            caller: &Unhurried,
            started: now,
            limit: None,
            is_interruptible: false,
            next_poll: now,
            has_yielded: true,
            was_called: false,
            ends_over_budget: false,
            was_over_budget: false,
            stopped_by: None,
        };
        let watch = Watch { state: Arc::new(Mutex::new(state)), is_shielded: Arc::default(), stats };
        let handler = watch.clone();
        raw.progress_handler(STEPS, Some(move || handler.look()))?;
        Ok(watch)
    }

    /// From here on, what runs is run for this call; the budget counts from `since`.
    pub fn arm(&self, call: &Call, since: Instant, limit: Option<Limit>, is_interruptible: bool) {
        let mut state = self.state.lock();
        state.caller = call.caller;
        state.started = since;
        state.limit = limit;
        state.is_interruptible = is_interruptible && call.caller.can_be_interrupted();
        state.next_poll = since + call.caller.asked_every();
        state.has_yielded = false;
        state.was_called = false;
        state.ends_over_budget = false;
        state.was_over_budget = false;
        state.stopped_by = None;
    }

    /// As `arm`, for a caller's read that must not take longer than the budget: it is stopped then.
    pub fn arm_for_budget(&self, call: &Call, limit: Option<Limit>) {
        self.arm(call, call.started, limit, false);
        self.state.lock().ends_over_budget = true;
    }

    /// Whether what ran last was stopped by its budget.
    pub fn was_over_budget(&self) -> bool {
        self.state.lock().was_over_budget
    }

    /// Run walpool's own statement: it is stopped by nobody, and asks nobody.
    ///
    /// What is armed was meant for a caller's statement: its limit may be long over, and its caller's thread another one,
    /// as when the keeper rolls back. And SQLite looks here once more behind the last step: a COMMIT that is stopped there
    /// has been applied, and says that it was not.
    pub fn shield<T>(&self, work: impl FnOnce() -> T) -> T {
        self.is_shielded.store(true, Ordering::Relaxed);
        let done = work();
        self.is_shielded.store(false, Ordering::Relaxed);
        done
    }

    /// What runs next is known to be long: give the caller's thread up before it starts.
    pub fn expect_long(&self) {
        self.yield_now();
    }

    /// Between two statements of a group: give up if together they have used the budget.
    pub fn look_between(&self) {
        if self.has_used_budget() {
            self.yield_now();
        }
    }

    fn has_used_budget(&self) -> bool {
        let state = self.state.lock();
        !state.has_yielded && state.started.elapsed() > BUDGET
    }

    fn yield_now(&self) {
        let caller = {
            let mut state = self.state.lock();
            state.has_yielded = true;
            state.caller
        };
        if caller.budget_used() {
            self.stats.yields_over_budget.one();
        }
    }

    /// SQLite's progress callback; true interrupts the statement.
    ///
    /// SQLite counts a cached statement's steps over all its runs, so that a short statement comes here now and then too:
    /// once, however long the scheduler kept it waiting. Only a second call tells that it is long, and then the clock decides.
    fn look(&self) -> bool {
        if self.is_shielded.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        let (caller, must_yield, must_poll) = {
            let mut state = self.state.lock();
            if let Some(limit) = state.limit
                && now >= limit.instant()
            {
                state.stopped_by = Some(limit.error());
                return true;
            }
            let is_long = std::mem::replace(&mut state.was_called, true);
            let must_yield = is_long && !state.has_yielded && now.duration_since(state.started) > BUDGET;
            let must_poll = state.is_interruptible && now >= state.next_poll;
            if must_yield && state.ends_over_budget {
                state.was_over_budget = true;
                return true;
            }
            if must_poll {
                state.next_poll = now + state.caller.asked_every();
            }
            (state.caller, must_yield, must_poll)
        };
        if must_yield {
            self.yield_now();
        }
        // The question may block and may run Python: the state is not locked here.
        if must_poll && caller.is_interrupted() {
            self.state.lock().stopped_by =
                Some(Error::new(Kind::Interrupted, "the read was interrupted; nothing was changed"));
            return true;
        }
        false
    }

    /// Look between two steps of a long function, as SQLite does between those of a statement; true says that it must stop.
    /// With `is_long` it is known to take longer than the budget from here on.
    fn look_inside(&self, is_long: bool) -> bool {
        if !is_long || self.is_shielded.load(Ordering::Relaxed) {
            return self.look();
        }
        {
            let mut state = self.state.lock();
            if state.ends_over_budget {
                state.was_over_budget = true;
                return true;
            }
            if state.has_yielded {
                return false;
            }
        }
        self.yield_now();
        false
    }

    /// Look between two tries of what another process keeps from running, where SQLite does not look.
    ///
    /// # Errors
    /// What a running statement would have been stopped by.
    pub fn look_between_tries(&self) -> Result<()> {
        if !self.look() {
            return Ok(());
        }
        self.state.lock().stopped_by.take().map_or(Ok(()), Err)
    }

    /// The reason why a statement that SQLite calls interrupted was stopped, in place of SQLite's own error.
    pub fn explain(&self, error: Error) -> Error {
        if error.kind != Kind::Interrupted {
            return error;
        }
        let reason = self.state.lock().stopped_by.take();
        reason.unwrap_or_else(|| {
            // Nobody else stops a statement from outside.
            let text = "the pool was closed, and waited for transaction_timeout; the statement was stopped then";
            Error { message: text.to_owned(), ..error }
        })
    }

    /// Fail now if the limit has already passed, so that a short statement does not slip past it.
    pub fn check_limit(limit: Option<Limit>) -> Result<()> {
        match limit {
            Some(limit) if Instant::now() >= limit.instant() => Err(limit.error()),
            _ => Ok(()),
        }
    }
}
