//! What the engine tells the one who called it: "I am about to wait", "this takes longer than a moment".
//! Owns the trait `Caller`, one call's limits, and locks that tell before they wait. Must not know Python: the GIL is one
//! reading of this trait, made in `bindings/`.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::sync::{Mutex, MutexGuard};

/// How long a waiting thread sleeps before it looks at its deadline and its caller again.
/// Half of the 100 ms within which Ctrl-C must be heard.
pub const WAIT_SLICE: Duration = Duration::from_millis(50);

/// What runs may keep its caller's thread to itself for this long; what outgrows it gives it up.
/// Giving the GIL up for 5 µs may cost 5 ms to have it back beside a busy thread, so less would be worse for short
/// statements; more would be felt by the others (benches/README.md, "the GIL").
pub const BUDGET: Duration = Duration::from_micros(50);

/// The one whose thread the engine works on. Methods are called on that very thread.
pub trait Caller: Sync {
    /// The engine will block now. True if something was given up by this call.
    fn about_to_wait(&self) -> bool;
    /// What runs has used up its budget. True if something was given up by this call.
    fn budget_used(&self) -> bool;
    /// Whether giving up has lately cost so much that what need not wait had better not: a busy thread stands beside it.
    fn is_waiting_dear(&self) -> bool;
    /// Whether `is_interrupted` can ever say yes on this thread; asked before anything is handed back for the question.
    fn can_be_interrupted(&self) -> bool;
    /// Whether the caller wants the call to end now. May block: never asked while an engine lock or the writer is held.
    fn is_interrupted(&self) -> bool;
}

/// A caller with nothing to give up: the engine's own threads, and plain Rust programs.
pub struct Unhurried;

impl Caller for Unhurried {
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
        false
    }
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// One call into the engine: who calls, and until when it may take.
#[derive(Clone, Copy)]
pub struct Call {
    /// The one on whose thread this runs.
    pub caller: &'static dyn Caller,
    /// When the call began.
    pub started: Instant,
    /// The caller's own `timeout`, for the whole call; None leaves it to the settings.
    pub timeout: Option<Duration>,
}

impl Call {
    /// A call that begins now.
    pub fn new(caller: &'static dyn Caller, timeout: Option<Duration>) -> Self {
        Call { caller, started: Instant::now(), timeout }
    }

    /// A call of the engine itself, without a limit of its own.
    pub fn internal() -> Self {
        Call::new(&Unhurried, None)
    }

    /// The instant at which a wait ends that may take `setting`, or the caller's `timeout` if that is shorter.
    pub fn wait_deadline(&self, setting: Duration) -> Instant {
        self.started + self.timeout.map_or(setting, |timeout| timeout.min(setting))
    }

    /// The instant at which the whole call must be over, if the caller gave one.
    pub fn deadline(&self) -> Option<Instant> {
        self.timeout.map(|timeout| self.started + timeout)
    }
}

/// Lock, and tell the caller first if that means waiting: nobody blocks on an engine lock while holding the GIL.
pub fn lock_telling<'a, T>(mutex: &'a Mutex<T>, caller: &dyn Caller) -> MutexGuard<'a, T> {
    if let Some(guard) = mutex.try_lock() {
        return guard;
    }
    caller.about_to_wait();
    mutex.lock()
}

/// Which statements outgrew their budget lately, by a hash of their text.
///
/// Such a statement gives its caller's thread up at the start rather than after the budget. A collision makes a short
/// statement give up too early for a few runs, which costs time and nothing else.
pub struct Lately([AtomicU8; LATELY_SLOTS]);

const LATELY_SLOTS: usize = 1024; // one cache line of chance for each of the usual 128 cached statements
const LATELY_ONCE: u8 = 1; // one long run may be the scheduler's doing: it makes no long statement
const LATELY_LONG: u8 = 9; // after two in a row: eight short runs to be trusted again

impl Default for Lately {
    fn default() -> Self {
        Lately(std::array::from_fn(|_| AtomicU8::new(0)))
    }
}

impl Lately {
    /// The place of a statement's text.
    pub fn place(sql: &str) -> usize {
        // Four words out of the text and its length: enough to tell the statements of one program apart, and as cheap for a
        // long text as for a short one.
        let bytes = sql.as_bytes();
        let word = |part: usize| {
            let start = (bytes.len().saturating_sub(8)) * part / 3;
            bytes[start..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
        };
        let hash = (0..4).fold(bytes.len() as u64, |hash, part| {
            (hash ^ word(part)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
        (hash >> 32) as usize % LATELY_SLOTS
    }

    /// Whether the statement at this place is taken to be long.
    pub fn is_long(&self, place: usize) -> bool {
        self.0[place].load(Ordering::Relaxed) > LATELY_ONCE
    }

    /// Remember how long a run took.
    pub fn ran(&self, place: usize, took: Duration) {
        let slot = &self.0[place];
        let runs = slot.load(Ordering::Relaxed);
        // Races between threads lose a count of eight at most, which only moves the guess.
        if took > BUDGET {
            slot.store(if runs == 0 { LATELY_ONCE } else { LATELY_LONG }, Ordering::Relaxed);
        } else if runs > 0 {
            slot.store(runs - 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_long_after_two_long_runs_and_trusted_again_after_short_ones() {
        let lately = Lately::default();
        let place = Lately::place("SELECT 1");
        assert!(!lately.is_long(place));
        lately.ran(place, BUDGET * 2);
        assert!(!lately.is_long(place));
        lately.ran(place, BUDGET * 2);
        assert!(lately.is_long(place));
        for _ in LATELY_ONCE..LATELY_LONG {
            lately.ran(place, Duration::ZERO);
        }
        assert!(!lately.is_long(place));
    }

    #[test]
    fn the_shorter_of_timeout_and_setting_ends_a_wait() {
        let call = Call::new(&Unhurried, Some(Duration::from_secs(2)));
        assert_eq!(call.wait_deadline(Duration::from_secs(9)), call.started + Duration::from_secs(2));
        assert_eq!(call.wait_deadline(Duration::from_secs(1)), call.started + Duration::from_secs(1));
    }
}
