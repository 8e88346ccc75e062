//! Something lent out that its owner can take back between two uses, never during one. Must not know what it is.
//!
//! ```text
//! holder                owner
//! use_it: takes it out
//!                       revoke: it is in use -> only marks it
//! use_it: ends, sees the mark, and gives it up itself
//! ```

use std::time::Instant;

use crate::sync::Mutex;

/// Something held until an instant, after which its owner wants it back.
pub trait Tenure: Send + Sync {
    /// When it ends.
    fn deadline(&self) -> Instant;
    /// End it, now or as soon as what runs in it has been stopped. Does nothing when it has ended.
    fn revoke(&self);
}

enum State<T> {
    Idle(T),
    InUse,
    InUseAndRevoked,
    Revoked,
    Ended,
}

/// Why it cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was revoked.
    Revoked,
    /// It is in use by another thread, or further up on this one.
    InUse,
    /// Its holder has given it back.
    Ended,
}

/// The thing, or the reason why it is gone.
pub struct Revocable<T>(Mutex<State<T>>);

impl<T> Revocable<T> {
    /// Lend it out.
    pub fn new(thing: T) -> Self {
        Revocable(Mutex::new(State::Idle(thing)))
    }

    /// Use it. The lock is not held meanwhile. `give_up` gets it if it was revoked during the use.
    pub fn use_it<R>(&self, work: impl FnOnce(&mut T) -> R, give_up: impl FnOnce(T)) -> Result<R, Refused> {
        let mut thing = self.take_out()?;
        let done = work(&mut thing);
        let revoked = {
            let mut state = self.0.lock();
            match *state {
                State::InUseAndRevoked => {
                    *state = State::Revoked;
                    Some(thing)
                }
                _ => {
                    *state = State::Idle(thing);
                    None
                }
            }
        };
        if let Some(thing) = revoked {
            give_up(thing);
        }
        Ok(done)
    }

    fn take_out(&self) -> Result<T, Refused> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::InUse) {
            State::Idle(thing) => Ok(thing),
            other => {
                let refused = match other {
                    State::Revoked => Refused::Revoked,
                    State::Ended => Refused::Ended,
                    _ => Refused::InUse,
                };
                *state = other;
                Err(refused)
            }
        }
    }

    /// Take it back from the holder's side: the end of its use.
    pub fn end(&self) -> Result<T, Refused> {
        let thing = self.take_out()?;
        *self.0.lock() = State::Ended;
        Ok(thing)
    }

    /// Take it back now if it is idle; if it is in use, its user gives it up when that use ends.
    pub fn revoke(&self) -> Option<T> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Revoked) {
            State::Idle(thing) => Some(thing),
            State::InUse | State::InUseAndRevoked => {
                *state = State::InUseAndRevoked;
                None
            }
            gone => {
                *state = gone;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revoked_while_idle_it_comes_back_at_once() {
        let lent = Revocable::new(7);
        assert_eq!(lent.use_it(|n| *n += 1, |_| ()), Ok(()));
        assert_eq!(lent.revoke(), Some(8));
        assert_eq!(lent.use_it(|_| (), |_| ()), Err(Refused::Revoked));
        assert_eq!(lent.end(), Err(Refused::Revoked));
        assert_eq!(lent.revoke(), None);
    }

    #[test]
    fn revoked_while_in_use_its_user_gives_it_up() {
        let lent = Revocable::new(7);
        let mut given_up = None;
        let done = lent.use_it(
            |_| {
                assert_eq!(lent.revoke(), None);
                assert_eq!(lent.use_it(|_| (), |_| ()), Err(Refused::InUse));
            },
            |thing| given_up = Some(thing),
        );
        assert_eq!((done, given_up), (Ok(()), Some(7)));
        assert_eq!(lent.end(), Err(Refused::Revoked));
    }

    #[test]
    fn ended_it_is_gone_for_both() {
        let lent = Revocable::new(7);
        assert_eq!(lent.end(), Ok(7));
        assert_eq!((lent.end(), lent.revoke()), (Err(Refused::Ended), None));
    }
}
