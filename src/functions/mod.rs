//! The SQL functions that every connection of walpool has.
//! Owns their names, what arguments they take and what NULL means to them. Must not know pools.

mod key_set;
mod nearest;

use std::sync::Arc;

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ToSql};

use crate::error::{Error, Kind, Result};
use crate::sketches::Sketches;
use crate::stats::Stats;
use crate::vector::sketch;
use crate::vector::{self, Vector};

/// Add walpool's SQL functions to `conn`.
///
/// | function | answers |
/// |---|---|
/// | `vec_cosine(a, b)` | the cosine of the angle between the two, -1 to 1; 0.0 if either has length 0 |
/// | `vec_dot(a, b)` | their dot product |
/// | `vec_l2sq(a, b)` | the square of their L2 distance |
/// | `vec_sketch(a, c)` | a sketch of it as seen from the centroid `c` (NULL: from 0), a BLOB of half a byte a value and 24 more, for `vec_nearest`; NULL if `a` holds a NaN or an infinity |
/// | `vec_key_set(n)` | an aggregate: the set of these integers from 0 on as a BLOB, for `vec_nearest`; NULLs are left out |
/// | `vec_nearest(...)` | the records nearest to a vector: see `register_search` |
///
/// `a` and `b` are BLOBs of little-endian `f32`; the answer is a REAL where no other type is named. It is NULL if an
/// argument is NULL, or if the result is not a number (a NaN in a vector). Unequal dims, a blob that ends within a float,
/// and any other type are errors of the statement. A scan is fastest with the constant vector second:
/// `vec_cosine(embedding, ?1)` computes the length of `?1` once.
///
/// # Errors
/// What SQLite says if it is out of memory, or if a statement that uses a function of this name is running.
pub fn register(conn: &Connection) -> rusqlite::Result<()> {
    add(conn, "vec_cosine", 2, |ctx| score(ctx, cosine))?;
    add(conn, "vec_dot", 2, |ctx| score(ctx, |_, a, b| vector::dot(a, b)))?;
    add(conn, "vec_l2sq", 2, |ctx| score(ctx, |_, a, b| vector::l2_squared(a, b)))?;
    key_set::register(conn)?;
    add(conn, "vec_sketch", 2, |ctx| match vector_argument(ctx, 0)? {
        Some(vector) => sketch::encode(vector, vector_argument(ctx, 1)?),
        None => Ok(None),
    })
}

/// Who watches over the statement that a function runs in. Both answer whether the function must stop.
pub trait Lookout: Send + 'static {
    /// What comes takes longer than a moment: the caller's thread is given up.
    fn expect_long(&self) -> bool;
    /// Between two steps of something long.
    fn look(&self) -> bool;
}

/// Add `vec_nearest`, which needs more than its arguments.
///
/// `vec_nearest(tables, space, query, metric, limit, scopes, keys, change, after_score, after_key)` answers a JSON array of the
/// keys of exactly the `limit` best records of a space, by falling score, then by rising key.
///
/// | argument | is |
/// |---|---|
/// | `tables` | whose: the word before `_spaces`, `_sketches` and `_vectors` in the names of the three tables, such as `'memory'` |
/// | `space` | the number of a row of the spaces; of one that is not there, no records are found |
/// | `query` | a BLOB of little-endian `f32` |
/// | `metric` | `'cosine'`, `'dot'`, or `'l2'`, whose score is `1 / (1 + d²)` |
/// | `limit` | how many; none from 0 down |
/// | `scopes` | a `vec_key_set` of scopes; NULL for all |
/// | `keys` | a `vec_key_set` of records; NULL for all |
/// | `change` | only records whose last change is this one or an earlier; NULL for all |
/// | `after_score`, `after_key` | the last record of the page before: only what comes behind it; both NULL for the first page |
///
/// Spaces have the columns `space`, `dims`, `centroid` (that all of its sketches are made with), `epoch` (the next one says that
/// all that was known of its rows is void) and `trimmed` (tombstones up to this change may be gone). Vectors have `embedding`,
/// and the record's key as their rowid. Sketches have one row for each record of a space, its latest state: `change` (a number
/// that was never there before), `space`, `key`, `scope`, `gone` (1: deleted, a tombstone) and `sketch`; and an index by `space`.
///
/// A record without an embedding counts as a vector of zeros, whose cosine is 0. It reads the tables in the snapshot of the
/// statement that it stands in, what that transaction has written among it, and may stand in no view and no trigger.
///
/// # Errors
/// As `register`.
pub fn register_search(
    conn: &Connection,
    sketches: &Arc<Sketches>,
    stats: &Arc<Stats>,
    lookout: impl Lookout,
) -> rusqlite::Result<()> {
    nearest::register(conn, Arc::clone(sketches), Arc::clone(stats), lookout)
}

/// The class of an own message's error, where SQLite's word for it (a statement that is wrong) is not the one.
pub fn kind_of(message: &str) -> Option<Kind> {
    nearest::is_about_data(message).then_some(Kind::Data)
}

/// Whether a message that SQLite passes on is one of these functions' own, which quote no values.
pub fn is_own_message(message: &str) -> bool {
    message.starts_with("vec_")
}

fn add<T: ToSql + 'static>(
    conn: &Connection,
    name: &'static str,
    arguments: i32,
    function: fn(&Context<'_>) -> Result<Option<T>>,
) -> rusqlite::Result<()> {
    // Deterministic: may stand in an index. Innocuous: may be called by views and triggers of an untrusted schema.
    // https://www.sqlite.org/c3ref/c_deterministic.html
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    conn.create_scalar_function(name, arguments, flags, move |ctx| {
        function(ctx).map_err(|error| rusqlite::Error::UserFunctionError(format!("{name}: {error}").into()))
    })
}

type Score = fn(&Context<'_>, Vector<'_>, Vector<'_>) -> Result<f64>;

fn score(ctx: &Context<'_>, score: Score) -> Result<Option<f64>> {
    match (vector_argument(ctx, 0)?, vector_argument(ctx, 1)?) {
        (Some(a), Some(b)) => score(ctx, a, b).map(Some),
        _ => Ok(None),
    }
}

fn vector_argument<'a>(ctx: &'a Context<'_>, index: usize) -> Result<Option<Vector<'a>>> {
    argument(ctx, index)?.map(Vector::from_blob).transpose()
}

/// The blob in argument `index`, where SQLite keeps it; None if it is NULL.
fn argument<'a>(ctx: &'a Context<'_>, index: usize) -> Result<Option<&'a [u8]>> {
    match ctx.get_raw(index) {
        ValueRef::Null => Ok(None),
        ValueRef::Blob(blob) => Ok(Some(blob)),
        other => Err(Error::new(
            Kind::Programming,
            format!("argument {} must be a BLOB, not {}", index + 1, other.data_type()),
        )),
    }
}

fn cosine(ctx: &Context<'_>, a: Vector<'_>, b: Vector<'_>) -> Result<f64> {
    // SQLite keeps the length from row to row where the second argument is constant, and drops it where it is not:
    // https://www.sqlite.org/c3ref/get_auxdata.html. It saves a scan 7 % at 3072 dims, and costs two columns 2 %. Not
    // for the first argument too: what is dropped for each row costs more than it saves.
    let b_squared = *ctx.get_or_create_aux(1, |_| Ok::<_, Error>(b.norm_squared()))?;
    vector::cosine(a, b, b_squared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::params;
    use rusqlite::types::Value;

    #[allow(clippy::disallowed_methods)] // a function needs no WAL
    fn connection() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        register(&conn).unwrap();
        conn
    }

    fn blob(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn call(name: &str, a: impl Into<Value>, b: impl Into<Value>) -> rusqlite::Result<Option<f64>> {
        let (a, b): (Value, Value) = (a.into(), b.into());
        connection().query_row(&format!("SELECT {name}(?1, ?2)"), params![a, b], |row| row.get(0))
    }

    #[test]
    fn each_function_answers_what_its_name_says() {
        let (a, b) = (blob(&[3.0, 4.0]), blob(&[4.0, 3.0]));
        for (name, expected) in [("vec_cosine", 24.0 / 25.0), ("vec_dot", 24.0), ("vec_l2sq", 2.0)] {
            assert_eq!(call(name, a.clone(), b.clone()).unwrap(), Some(expected), "{name}");
        }
    }

    #[test]
    fn null_and_not_a_number_answer_null() {
        for name in ["vec_cosine", "vec_dot", "vec_l2sq"] {
            let one = blob(&[1.0]);
            assert_eq!(call(name, one.clone(), Value::Null).unwrap(), None, "{name}");
            assert_eq!(call(name, Value::Null, one.clone()).unwrap(), None, "{name}");
            assert_eq!(call(name, one, blob(&[f32::NAN])).unwrap(), None, "{name}");
        }
    }

    #[test]
    fn cosine_with_a_vector_of_no_length_is_zero() {
        assert_eq!(call("vec_cosine", blob(&[0.0, 0.0]), blob(&[1.0, 2.0])).unwrap(), Some(0.0));
        assert_eq!(call("vec_cosine", blob(&[]), blob(&[])).unwrap(), Some(0.0));
    }

    #[test]
    fn wrong_arguments_are_errors_that_name_the_function_and_no_value() {
        let two = || Value::Blob(blob(&[12345.0, 67890.0]));
        let three = Value::Blob(blob(&[1.0, 2.0, 3.0]));
        for (other, reason) in [
            (three, "vectors of 2 and 3 dims cannot be compared"),
            (Value::Blob(vec![0; 7]), "a blob of 7 bytes is not a vector of 4-byte floats"),
            (Value::Text("secret".into()), "argument 2 must be a BLOB, not Text"),
            (Value::Integer(12345), "argument 2 must be a BLOB, not Integer"),
        ] {
            for name in ["vec_cosine", "vec_dot", "vec_l2sq"] {
                let error = Error::from(call(name, two(), other.clone()).unwrap_err());
                assert_eq!(error.message, format!("{name}: {reason}"));
            }
        }
    }

    #[test]
    fn cosine_of_each_row_is_right_wherever_the_constant_stands() {
        let conn = connection();
        conn.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, a BLOB, b BLOB)").unwrap();
        let row = |id: u8| (blob(&[f32::from(id), 1.0, 2.0]), blob(&[1.0, -f32::from(id), 0.5]));
        for id in 0..50_u8 {
            let (a, b) = row(id);
            conn.execute("INSERT INTO t VALUES (?1, ?2, ?3)", params![id, a, b]).unwrap();
        }
        let mut stmt =
            conn.prepare("SELECT id, vec_cosine(a, ?1), vec_cosine(?1, a), vec_cosine(a, b) FROM t").unwrap();
        // The second query must not see the length that was kept for the first.
        for query in [blob(&[1.0, 2.0, 3.0]), blob(&[-7.0, 0.5, 100.0])] {
            let mut rows = stmt.query([&query]).unwrap();
            while let Some(found) = rows.next().unwrap() {
                let (a, b) = row(found.get(0).unwrap());
                let expected = |a: &[u8], b: &[u8]| {
                    let (a, b) = (Vector::from_blob(a).unwrap(), Vector::from_blob(b).unwrap());
                    vector::cosine(a, b, b.norm_squared()).unwrap()
                };
                assert_eq!(found.get::<_, f64>(1).unwrap(), expected(&a, &query));
                assert_eq!(found.get::<_, f64>(2).unwrap(), expected(&query, &a));
                assert_eq!(found.get::<_, f64>(3).unwrap(), expected(&a, &b));
            }
        }
    }

    #[test]
    fn sketch_of_null_and_of_what_is_not_finite_is_null() {
        let conn = connection();
        let sketch = |a: Option<&[u8]>, c: Option<&[u8]>| {
            conn.query_row("SELECT vec_sketch(?1, ?2)", params![a, c], |row| row.get::<_, Option<Vec<u8>>>(0))
        };
        let a = blob(&[0.3, -0.2, 0.7]);
        assert!(sketch(Some(&a), None).unwrap().is_some());
        assert!(sketch(Some(&a), Some(&a)).unwrap().is_some());
        assert_eq!(sketch(None, Some(&a)).unwrap(), None);
        assert_eq!(sketch(Some(&blob(&[1.0, f32::NAN, 0.0])), None).unwrap(), None);
        let error = Error::from(sketch(Some(&a), Some(&a[..8])).unwrap_err());
        assert_eq!(error.message, "vec_sketch: vectors of 3 and 2 dims cannot be compared");
    }

    #[test]
    fn functions_may_stand_in_an_index_of_an_untrusted_schema() {
        let conn = connection();
        conn.execute_batch(
            "PRAGMA trusted_schema = OFF;
             CREATE TABLE t (e BLOB);
             CREATE INDEX t_length ON t (vec_dot(e, e));
             CREATE VIEW lengths AS SELECT vec_dot(e, e) AS squared FROM t;
             INSERT INTO t VALUES (x'0000803f'), (x'00000040');",
        )
        .unwrap();
        let plan: String = conn
            .query_row("EXPLAIN QUERY PLAN SELECT 1 FROM lengths WHERE squared = 4", [], |row| row.get("detail"))
            .unwrap();
        assert!(plan.contains("t_length"), "{plan}");
    }
}
