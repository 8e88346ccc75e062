//! SQL values and rows that own their bytes: what may cross a thread. Must not know connections.

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

use crate::error::Result;

/// A value on its way into SQLite.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT.
    Text(Box<str>),
    /// BLOB.
    Blob(Box<[u8]>),
}

impl Value {
    /// Bytes it holds back in the queue: its payload and its own size.
    pub fn bytes(&self) -> u64 {
        let payload = match self {
            Value::Text(text) => text.len(),
            Value::Blob(blob) => blob.len(),
            _ => 0,
        };
        (payload + size_of::<Value>()) as u64
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

/// The parameters of one statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Params {
    /// For `?` and `?1`: by position.
    Positional(Vec<Value>),
    /// For `:name`, `@name` and `$name`: by name, without the sign.
    Named(Vec<(Box<str>, Value)>),
}

impl Params {
    /// No parameters.
    pub const NONE: Params = Params::Positional(Vec::new());

    /// Bytes they hold back in the queue.
    pub fn bytes(&self) -> u64 {
        match self {
            Params::Positional(values) => values.iter().map(Value::bytes).sum(),
            Params::Named(pairs) => pairs.iter().map(|(name, value)| name.len() as u64 + value.bytes()).sum(),
        }
    }
}

/// One value of a row; text and blobs point into the rows' shared bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(usize, usize),
    Blob(usize, usize),
}

/// Rows that own their bytes, in one buffer: a point read costs two allocations, a range costs no more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Column names; empty where nobody asked for them or the statement returns no rows.
    pub columns: Vec<Box<str>>,
    width: usize,
    count: usize,
    cells: Vec<Cell>,
    bytes: Vec<u8>,
}

/// A value of a row, on its way out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Out<'a> {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT, which SQLite does not check: whoever makes a string of it finds out whether it is UTF-8.
    Text(&'a [u8]),
    /// BLOB.
    Blob(&'a [u8]),
}

impl Rows {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many columns each row has; 0 where there are no rows.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Copy one row in.
    pub fn push(&mut self, row: &rusqlite::Row<'_>) -> Result<()> {
        if self.count == 0 {
            self.width = row.as_ref().column_count();
        }
        for column in 0..self.width {
            let cell = match row.get_ref(column)? {
                ValueRef::Null => Cell::Null,
                ValueRef::Integer(integer) => Cell::Integer(integer),
                ValueRef::Real(real) => Cell::Real(real),
                ValueRef::Text(text) => Cell::Text(self.store(text), text.len()),
                ValueRef::Blob(blob) => Cell::Blob(self.store(blob), blob.len()),
            };
            self.cells.push(cell);
        }
        self.count += 1;
        Ok(())
    }

    fn store(&mut self, bytes: &[u8]) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start
    }

    /// The value in a row and column, both counted from 0 and in range.
    pub fn value(&self, row: usize, column: usize) -> Out<'_> {
        match self.cells[row * self.width + column] {
            Cell::Null => Out::Null,
            Cell::Integer(integer) => Out::Integer(integer),
            Cell::Real(real) => Out::Real(real),
            Cell::Text(start, length) => Out::Text(&self.bytes[start..start + length]),
            Cell::Blob(start, length) => Out::Blob(&self.bytes[start..start + length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_bytes_count_payload_and_overhead() {
        let text = Value::Text("0123456789".into());
        assert_eq!(text.bytes(), 10 + Value::Null.bytes());
        let named = Params::Named(vec![("ab".into(), text.clone())]);
        assert_eq!(named.bytes(), 2 + Params::Positional(vec![text]).bytes());
    }
}
