//! What the engine tells the one who called it: "I am about to wait", "this takes longer than a moment".
//! Owns the trait `Caller`, one call's limits, and locks that tell before they wait. Must not know Python: the GIL is one
//! reading of this trait, made in `bindings/`.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
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
    /// How often a running statement may ask `is_interrupted`.
    fn asked_every(&self) -> Duration {
        WAIT_SLICE
    }
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

/// Whether a caller that is elsewhere still wants what was begun for it.
#[derive(Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// It does not.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

thread_local! {
    /// For whom this thread works, while it works for a caller that is elsewhere.
    static FOR: RefCell<Option<Cancel>> = const { RefCell::new(None) };
}

/// A caller that is elsewhere, as on an event loop: a native thread works for it, and has nothing to give up.
pub struct Absent;

/// The one caller of every native thread that works for others.
pub static ABSENT: Absent = Absent;

impl Absent {
    /// Work for one of them on this thread: what runs ends early if that one cancels.
    pub fn working_for<T>(cancel: &Cancel, work: impl FnOnce() -> T) -> T {
        FOR.replace(Some(cancel.clone()));
        let done = work();
        FOR.replace(None);
        done
    }
}

impl Caller for Absent {
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
        FOR.with_borrow(Option::is_some)
    }
    fn is_interrupted(&self) -> bool {
        FOR.with_borrow(|cancel| cancel.as_ref().is_some_and(Cancel::is_cancelled))
    }
    /// Asking is a look at a flag.
    fn asked_every(&self) -> Duration {
        Duration::from_millis(1)
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
    /// Whether it has waited for a thread since it began.
    pub is_handed_on: bool,
}

impl Call {
    /// A call that begins now.
    pub fn new(caller: &'static dyn Caller, timeout: Option<Duration>) -> Self {
        Call { caller, started: Instant::now(), timeout, is_handed_on: false }
    }

    /// The same call on the thread that does it.
    pub fn handed_on(self) -> Self {
        Call { is_handed_on: true, ..self }
    }

    /// The instant from which its own work counts, before it has waited for anything else: without a look at the clock where
    /// it has only just begun.
    pub fn work_starts(&self) -> Instant {
        if self.is_handed_on { Instant::now() } else { self.started }
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
/// statement give up too early for a few runs, which costs time and nothing else. What never ran is taken to be neither long
/// nor short.
pub struct Lately([AtomicU8; LATELY_SLOTS]);

const LATELY_SLOTS: usize = 1024; // one cache line of chance for each of the usual 128 cached statements
const LATELY_ONCE: u8 = 1; // one long run may be the scheduler's doing: it makes no long statement
const LATELY_LONG: u8 = 9; // after two in a row: eight short runs to be trusted again
const DOUBTED: std::ops::RangeInclusive<u8> = 100..=164; // after an overrun: as many short runs to be tried again
const NEVER_RAN: u8 = u8::MAX;

impl Default for Lately {
    fn default() -> Self {
        Lately(std::array::from_fn(|_| AtomicU8::new(NEVER_RAN)))
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
        let runs = self.0[place].load(Ordering::Relaxed);
        runs > LATELY_ONCE && runs <= LATELY_LONG
    }

    /// Remember that the statement at this place was taken to be short, and outgrew its budget where that cost most: its work
    /// was thrown away. One that lies about the budget would do so again and again.
    pub fn doubt(&self, place: usize) {
        self.0[place].store(*DOUBTED.end(), Ordering::Relaxed);
    }

    /// Whether the last runs of the statement at this place were short.
    pub fn is_short(&self, place: usize) -> bool {
        self.0[place].load(Ordering::Relaxed) == 0
    }

    /// Remember how long a run took.
    pub fn ran(&self, place: usize, took: Duration) {
        let slot = &self.0[place];
        let runs = match slot.load(Ordering::Relaxed) {
            NEVER_RAN if took <= BUDGET => 1, // one short run makes it a short statement
            NEVER_RAN => 0,
            runs if runs == *DOUBTED.start() => 1,
            runs => runs,
        };
        // Races between threads lose a count of eight at most, which only moves the guess.
        if took > BUDGET && DOUBTED.contains(&runs) {
            self.doubt(place);
        } else if took > BUDGET {
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
        assert!(!lately.is_long(place) && !lately.is_short(place));
        lately.ran(place, BUDGET * 2);
        assert!(!lately.is_long(place) && !lately.is_short(place));
        lately.ran(place, BUDGET * 2);
        assert!(lately.is_long(place));
        for _ in LATELY_ONCE..LATELY_LONG {
            lately.ran(place, Duration::ZERO);
        }
        assert!(!lately.is_long(place) && !lately.is_short(place));
        lately.ran(place, Duration::ZERO);
        assert!(lately.is_short(place));
    }

    #[test]
    fn a_doubted_statement_is_neither_long_nor_short_until_many_short_runs() {
        let lately = Lately::default();
        lately.doubt(7);
        for _ in DOUBTED {
            assert!(!lately.is_short(7) && !lately.is_long(7));
            lately.ran(7, Duration::ZERO);
        }
        assert!(lately.is_short(7));
        lately.doubt(7);
        lately.ran(7, BUDGET * 2);
        assert!(!lately.is_long(7));
    }

    #[test]
    fn one_short_run_makes_a_short_statement() {
        let lately = Lately::default();
        lately.ran(7, Duration::ZERO);
        assert!(lately.is_short(7));
    }

    #[test]
    fn an_absent_caller_is_heard_only_by_the_thread_that_works_for_it() {
        let cancel = Cancel::default();
        assert!(!ABSENT.can_be_interrupted());
        Absent::working_for(&cancel, || {
            assert!(ABSENT.can_be_interrupted() && !ABSENT.is_interrupted());
            cancel.cancel();
            assert!(ABSENT.is_interrupted());
        });
        assert!(!ABSENT.is_interrupted());
    }

    #[test]
    fn the_shorter_of_timeout_and_setting_ends_a_wait() {
        let call = Call::new(&Unhurried, Some(Duration::from_secs(2)));
        assert_eq!(call.wait_deadline(Duration::from_secs(9)), call.started + Duration::from_secs(2));
        assert_eq!(call.wait_deadline(Duration::from_secs(1)), call.started + Duration::from_secs(1));
    }
}
