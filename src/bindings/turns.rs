//! `Turns`: what reads on a loop's thread may take of each of its turns. Knows no loop.

use std::collections::VecDeque;
use std::time::Duration;

use pyo3::prelude::*;

use crate::caller::BUDGET;

/// Of one turn, whichever tasks the reads are of; then each task that has read waits.
const MOST: Duration = Duration::from_micros(BUDGET.as_micros() as u64 / 2);
/// So many of the tasks that wait go on in one turn: each costs asyncio as much as several reads.
const AGAIN: usize = 4;

/// One loop's turns, while its tasks read.
#[derive(Default)]
pub struct Turns {
    spent: Duration,
    is_due: bool, // the loop will say when its next turn has come
    again: VecDeque<Py<PyAny>>,
}

impl Turns {
    /// Count what a read took. Returns whether its task is to wait, and whether the loop is to be asked for its next turn.
    pub fn spend(&mut self, took: Duration) -> (bool, bool) {
        self.spent += took;
        let is_over = self.spent > MOST;
        let is_first = is_over && !self.is_due;
        self.is_due |= is_over;
        (is_over, is_first)
    }

    /// Keep the future of a task that waits.
    pub fn wait(&mut self, future: Py<PyAny>) {
        self.again.push_back(future);
    }

    /// Begin the next turn. Returns whose tasks go on in it, and whether another turn is to be asked for.
    pub fn next(&mut self) -> (Vec<Py<PyAny>>, bool) {
        self.spent = Duration::ZERO;
        let count = self.again.len().min(AGAIN);
        let again = self.again.drain(..count).collect();
        self.is_due = !self.again.is_empty();
        (again, self.is_due)
    }

    /// Tasks that wait.
    pub fn waiting(&self) -> usize {
        self.again.len()
    }

    /// Forget the tasks that wait: their loop is closed.
    pub fn clear(&mut self) {
        self.again.clear();
    }
}
