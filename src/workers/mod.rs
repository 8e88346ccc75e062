//! Named threads: the engine's own, and those that work for callers who must not block. Must not know asyncio.

mod crew;
mod keeper;
mod lane;

use std::thread::JoinHandle;

pub use self::crew::{Crew, Permit};
pub use self::keeper::{Bell, Keeper};
pub use self::lane::{Strand, Task};
use crate::error::{Error, Kind, Result};

/// Start a thread; whoever gets the handle joins it.
///
/// # Errors
/// `Operational` where the system gives no thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map_err(|error| Error::new(Kind::Operational, format!("no thread could be started: {error}")))
}
