//! `vec_key_set`: integers of many rows become one blob.

use rusqlite::Connection;
use rusqlite::functions::{Aggregate, Context, FunctionFlags};
use rusqlite::types::ValueRef;

use crate::error::{Error, Kind};
use crate::key_set::Collector;

struct Collect;

impl Aggregate<Collector, Vec<u8>> for Collect {
    fn init(&self, _: &mut Context<'_>) -> rusqlite::Result<Collector> {
        Ok(Collector::default())
    }

    fn step(&self, ctx: &mut Context<'_>, collector: &mut Collector) -> rusqlite::Result<()> {
        let taken = match ctx.get_raw(0) {
            ValueRef::Integer(number) => collector.add(number),
            ValueRef::Null => Ok(()),
            other => Err(Error::new(
                Kind::Programming,
                format!("the argument must be an INTEGER, not {}", other.data_type()),
            )),
        };
        taken.map_err(|error| rusqlite::Error::UserFunctionError(format!("vec_key_set: {error}").into()))
    }

    fn finalize(&self, _: &mut Context<'_>, collector: Option<Collector>) -> rusqlite::Result<Vec<u8>> {
        Ok(collector.unwrap_or_default().into_blob())
    }
}

pub(super) fn register(conn: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    conn.create_aggregate_function("vec_key_set", 1, flags, Collect)
}
