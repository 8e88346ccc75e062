//! The engine's own two threads: one takes back what was held for too long, the other does a chore (checkpoints) when rung.
//! The chore waits for its turn behind whoever holds the writer, so whoever ends that hold must not be the one who waits.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::spawn;
use crate::error::Result;
use crate::revocable::Tenure;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// What the keeper does when it is rung: returns when to do it again, if it is not done with.
pub type Chore = Box<dyn Fn() -> Option<Duration> + Send>;

#[derive(Default)]
struct Agenda {
    tenures: Vec<(Instant, Weak<dyn Tenure>)>,
    /// Until when the thread that takes back sleeps: only a tenure that ends before is worth waking it for. It may be that
    /// of a tenure that has ended by itself, as nearly all do.
    sleeps_until: Option<Instant>,
    chore_at: Option<Instant>,
    is_closing: bool,
}

/// The part of the keeper that others may ring.
#[derive(Default)]
pub struct Bell {
    agenda: Mutex<Agenda>,
    is_wanted: Condvar,   // a chore is to be done
    ends_sooner: Condvar, // a tenure ends before the thread would wake
}

impl Bell {
    /// Ask for the chore, as soon as the keeper is free.
    pub fn ring(&self) {
        let mut agenda = self.agenda.lock();
        if agenda.chore_at.is_none() {
            agenda.chore_at = Some(Instant::now());
            self.is_wanted.notify_one();
        }
    }

    /// Revoke this when its deadline passes.
    pub fn watch(&self, tenure: &Arc<dyn Tenure>) {
        let mut agenda = self.agenda.lock();
        agenda.tenures.retain(|(_, tenure)| tenure.strong_count() > 0);
        let deadline = tenure.deadline();
        agenda.tenures.push((deadline, Arc::downgrade(tenure)));
        if agenda.sleeps_until.is_none_or(|until| deadline < until) {
            self.ends_sooner.notify_one();
        }
    }
}

/// The two threads.
pub struct Keeper {
    bell: Arc<Bell>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Keeper {
    /// Start the threads.
    pub fn start(bell: Arc<Bell>, chore: Chore) -> Result<Self> {
        let keeper = Keeper { bell, threads: Mutex::default() };
        let (for_tenures, for_chores) = (Arc::clone(&keeper.bell), Arc::clone(&keeper.bell));
        keeper.spawn("walpool-keeper", move || take_back(&for_tenures))?;
        keeper.spawn("walpool-chores", move || do_chores(&for_chores, &chore))?;
        Ok(keeper)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        self.threads.lock().push(spawn(name, work)?);
        Ok(())
    }

    /// End the threads and wait for them. Safe to call twice.
    pub fn close(&self) {
        self.bell.agenda.lock().is_closing = true;
        self.bell.is_wanted.notify_one();
        self.bell.ends_sooner.notify_one();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A panic in it has been told on stderr; there is nothing left to do about it here.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
    }
}

/// Revoke each tenure when its deadline passes, until the engine closes.
fn take_back(bell: &Bell) {
    let mut agenda = bell.agenda.lock();
    while !agenda.is_closing {
        let overdue = take_overdue(&mut agenda.tenures, Instant::now());
        if !overdue.is_empty() {
            drop(agenda);
            overdue.iter().for_each(|tenure| tenure.revoke());
            agenda = bell.agenda.lock();
            continue;
        }
        agenda.sleeps_until = agenda.tenures.iter().map(|(deadline, _)| *deadline).min();
        let next = agenda.sleeps_until;
        agenda = sleep_until(&bell.ends_sooner, agenda, next);
    }
}

/// Do the chore whenever it is wanted, until the engine closes.
fn do_chores(bell: &Bell, chore: &Chore) {
    let mut agenda = bell.agenda.lock();
    while !agenda.is_closing {
        if agenda.chore_at.take_if(|at| *at <= Instant::now()).is_none() {
            let next = agenda.chore_at;
            agenda = sleep_until(&bell.is_wanted, agenda, next);
            continue;
        }
        drop(agenda);
        let again = chore();
        agenda = bell.agenda.lock();
        if let Some(delay) = again {
            agenda.chore_at.get_or_insert_with(|| Instant::now() + delay);
        }
    }
}

fn sleep_until<'a>(rung: &Condvar, agenda: MutexGuard<'a, Agenda>, next: Option<Instant>) -> MutexGuard<'a, Agenda> {
    match next {
        Some(next) => rung.wait_until(agenda, next).0,
        None => rung.wait(agenda),
    }
}

fn take_overdue(tenures: &mut Vec<(Instant, Weak<dyn Tenure>)>, now: Instant) -> Vec<Arc<dyn Tenure>> {
    let mut overdue = Vec::new();
    tenures.retain(|(deadline, tenure)| {
        if *deadline <= now {
            overdue.extend(tenure.upgrade());
        }
        *deadline > now && tenure.strong_count() > 0
    });
    overdue
}
