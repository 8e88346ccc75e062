//! A caller's hold on the writer while its transaction is open.
//!
//! ```text
//! holder                        engine's keeper
//! lease: BEGIN, watched
//! execute                       deadline passes: revoke
//!   in use -> its statement     marks it
//!   is stopped by its limit
//! sees the mark: rolls back,
//! passes the seat on
//! commit -> TransactionTimeout
//! ```

use std::sync::Arc;
use std::time::Instant;

use super::queue::{Ticket, Wish};
use super::{Begun, Turn, Writer};

use crate::caller::Call;
use crate::connection::{Connection, Limit, Ran, Want};
use crate::error::{Error, Kind, Result};
use crate::group_commit::commit_outcome;
use crate::locking::OfThisProcess;
use crate::log::{Level, excerpt};
use crate::revocable::{Refused, Revocable, Tenure};
use crate::sync::Mutex;
use crate::value::{Params, Rows};

/// The part of a lease that the engine can take back.
pub struct Transaction {
    turn: OfThisProcess<Revocable<Turn>>,
    writer: Arc<Writer>,
    began: Instant,
    deadline: Instant,
    /// For the one who wonders who held the writer.
    last_sql: Mutex<String>,
}

/// An open transaction; dropping it rolls back.
pub struct Lease(Arc<Transaction>);

impl Writer {
    /// Begin a transaction when the turn in the queue comes.
    ///
    /// # Errors
    /// `WriteTimeout`, `Busy`, `QueueFull`, `Closed`, `Interrupted`.
    pub fn lease(self: &Arc<Self>, call: &Call) -> Result<Lease> {
        let ticket = Ticket::new(Wish::Turn, call);
        let mut turn = self.turn_of(call, &ticket)?;
        while let Begun::MustAsk = self.begin(call, &turn, &ticket)? {
            // Back to the front of the queue while the caller is asked: asking may block, and blocks nobody so.
            self.queue.lock().push_front(&ticket);
            ticket.go_away();
            drop(turn);
            let conn = match self.ask_caller(call, &ticket)? {
                Some(conn) => conn,
                None => self.wait_for_turn(call, &ticket)?,
            };
            turn = Turn { writer: Arc::clone(self), conn: Some(conn) };
        }
        Ok(self.lease_of(turn))
    }

    /// A lease of a turn in which a transaction was begun.
    pub(super) fn lease_of(self: &Arc<Self>, turn: Turn) -> Lease {
        self.stats.leases.one();
        let began = Instant::now();
        let deadline = began + self.rules.transaction_timeout;
        let last_sql = Mutex::new("(no statement yet)".to_owned());
        let writer = Arc::clone(self);
        Lease(Arc::new(Transaction {
            turn: OfThisProcess::new(Revocable::new(turn)),
            writer,
            began,
            deadline,
            last_sql,
        }))
    }
}

impl Lease {
    /// What the engine watches: revoked when its deadline passes.
    pub fn transaction(&self) -> &Arc<Transaction> {
        &self.0
    }

    /// Run one statement.
    pub fn execute(&self, call: &Call, sql: &str, params: &Params) -> Result<Ran> {
        self.0.with(call, Some(sql), |conn| conn.run(sql, params))
    }

    /// Run one statement for each row of parameters: all of them or none.
    pub fn execute_many(&self, call: &Call, sql: &str, rows: &[Params]) -> Result<Ran> {
        self.0.with(call, Some(sql), |conn| {
            conn.mark()?;
            conn.forget_last_rowid();
            match conn.run_many(sql, rows) {
                Ok(ran) => conn.keep_mark().map(|()| ran),
                Err(error) if conn.is_autocommit() => Err(error),
                Err(error) => conn.undo_to_mark().and(Err(error)),
            }
        })
    }

    /// Read inside the transaction: its own writes are seen.
    pub fn fetch(&self, call: &Call, sql: &str, params: &Params, want: Want) -> Result<Rows> {
        self.0.with(call, Some(sql), |conn| conn.fetch(sql, params, want, call.work_starts()))
    }

    /// Begin a savepoint inside.
    pub fn mark(&self, call: &Call) -> Result<()> {
        self.0.with(call, None, Connection::mark)
    }

    /// End the innermost savepoint and keep what it did.
    pub fn keep_mark(&self, call: &Call) -> Result<()> {
        self.0.with(call, None, Connection::keep_mark)
    }

    /// End the innermost savepoint and undo what it did.
    pub fn undo_to_mark(&self, call: &Call) -> Result<()> {
        self.0.with(call, None, Connection::undo_to_mark)
    }

    /// Commit, and give the writer back.
    ///
    /// # Errors
    /// `TransactionTimeout` if it was revoked; `Integrity` for a deferred foreign key; what COMMIT says otherwise, with its
    /// outcome. The transaction is over in every case.
    pub fn commit(&self, call: &Call) -> Result<()> {
        let lent = self.0.turn.get()?;
        if Instant::now() >= self.0.deadline {
            self.0.revoke(); // the keeper may be late
        }
        let turn = lent.end().map_err(|refused| self.0.refusal(refused))?;
        self.0.writer.tell_waiting_for_disk(call);
        let committed = turn.run(|conn| {
            if conn.is_autocommit() {
                return Err(ended_by_statement());
            }
            conn.commit().map_err(|error| {
                let outcome = commit_outcome(&error);
                // A failed COMMIT may leave the transaction open; should this fail too, the next BEGIN says so.
                let _ = conn.rollback();
                error.with_outcome(outcome)
            })
        });
        self.0.tell_end();
        let frames = committed?;
        self.0.writer.stats.wal_frames.set(u64::from(frames));
        drop(turn);
        (self.0.writer.after_commit)(frames);
        Ok(())
    }

    /// Roll back, and give the writer back. Nothing is wrong with rolling back what was revoked, or is the parent's.
    pub fn rollback(&self) -> Result<()> {
        let Ok(lent) = self.0.turn.get() else { return Ok(()) };
        match lent.end() {
            Ok(turn) => {
                self.0.tell_end();
                turn.run(Connection::rollback)
            }
            Err(Refused::Revoked | Refused::Ended) => Ok(()),
            Err(refused) => Err(self.0.refusal(refused)),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Ok(lent) = self.0.turn.get()
            && let Ok(turn) = lent.end()
        {
            self.0.tell_end();
            // The turn is passed on either way; should this fail, the next BEGIN says so.
            let _ = turn.run(Connection::rollback);
        }
    }
}

impl Transaction {
    /// Use the connection, for the statement `sql` if it is one of the caller's.
    fn with<T>(&self, call: &Call, sql: Option<&str>, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let limit = Some(match call.deadline() {
            Some(deadline) if deadline < self.deadline => Limit::Timeout(deadline),
            _ => Limit::Tenure(self.deadline),
        });
        let lent = self.turn.get()?;
        if Instant::now() >= self.deadline {
            self.revoke(); // the keeper may be late
        }
        let used = lent.use_it(
            |turn| {
                sql.inspect(|sql| self.note(sql));
                turn.run(|conn| {
                    if conn.is_autocommit() {
                        return Err(ended_by_statement());
                    }
                    conn.watch().arm(call, Instant::now(), limit, true);
                    work(conn)
                })
            },
            |turn| self.take_back(turn),
        );
        let done = used.map_err(|refused| self.refusal(refused))?;
        if let Err(error) = &done
            && error.kind == Kind::TransactionTimeout
        {
            self.revoke(); // what its error says is true when the caller reads it
        }
        done
    }

    fn refusal(&self, refused: Refused) -> Error {
        match refused {
            Refused::Revoked => Error::new(
                Kind::TransactionTimeout,
                format!(
                    "the transaction was open for longer than transaction_timeout ({} s), was rolled back and the writer \
                     given to others; do slow work before transaction(), or raise transaction_timeout",
                    self.writer.rules.transaction_timeout.as_secs_f64()
                ),
            ),
            Refused::InUse => Error::new(Kind::Interface, "the transaction is in use by another thread"),
            Refused::Ended => Error::new(Kind::Interface, "the transaction has ended"),
        }
    }

    fn note(&self, sql: &str) {
        let mut last = self.last_sql.lock();
        last.clear();
        last.push_str(sql);
    }

    fn take_back(&self, turn: Turn) {
        // Should the rollback fail, the next BEGIN says so.
        let _ = turn.run(Connection::rollback);
        self.writer.stats.leases_revoked.one();
        self.tell_end();
        self.warn("transaction rolled back (transaction_timeout)");
        drop(turn);
    }

    fn warn(&self, what: &str) {
        let (held, last) = (self.began.elapsed().as_secs_f64(), excerpt(&self.last_sql.lock()));
        let text = format!("{what}: it held the writer for {held:.3} s; its last statement: {last}");
        self.writer.log.add(Level::Warning, text);
    }

    fn tell_end(&self) {
        let held = self.began.elapsed();
        self.writer.stats.lease.record_duration(held);
        if held > self.writer.rules.slow_threshold {
            self.writer.stats.slow.one();
            self.warn("slow lease");
        }
    }
}

impl Tenure for Transaction {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn revoke(&self) {
        if let Some(turn) = self.turn.revoke() {
            self.take_back(turn);
        }
    }
}

fn ended_by_statement() -> Error {
    Error::new(
        Kind::Operational,
        "a statement has rolled the transaction back (OR ROLLBACK, RAISE(ROLLBACK), or a write that was stopped by its \
         timeout); nothing of it is applied",
    )
}
