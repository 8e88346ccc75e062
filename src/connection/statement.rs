//! Binding and running one statement, and keeping a cursor open over several calls.

use rusqlite::Statement;
use self_cell::self_cell;

use crate::error::{Error, Kind, Result};
use crate::locking::OfThisProcess;
use crate::value::{Params, Rows, Value};

/// What a statement did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ran {
    /// Rows that INSERT, UPDATE or DELETE changed, triggers not counted; -1 for other statements.
    pub rowcount: i64,
    /// The rowid of the last row that was inserted; None where nothing was.
    pub lastrowid: Option<i64>,
    /// Rows that came back.
    pub rows: Rows,
}

/// What of a statement's result is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Column names too: they cost an allocation each.
    pub columns: bool,
    /// Stop after this many rows.
    pub most: usize,
}

impl Want {
    /// Every row, with the names of the columns.
    pub const ALL: Want = Want { columns: true, most: usize::MAX };
}

/// Whether the text is an INSERT, UPDATE, DELETE or REPLACE, whose changed rows are counted.
///
/// `is_readonly` is SQLite's own word on the prepared statement; it settles what stands behind WITH, since no statement
/// that begins so can write but these four. https://www.sqlite.org/lang_with.html
pub fn counts_rows(sql: &str, is_readonly: bool) -> bool {
    if is_readonly {
        return false;
    }
    let verb = first_word(sql);
    ["insert", "update", "delete", "replace", "with"].iter().any(|known| verb.eq_ignore_ascii_case(known))
}

/// Whether the text is a PRAGMA.
pub fn is_pragma(sql: &str) -> bool {
    first_word(sql).eq_ignore_ascii_case("pragma")
}

/// Whether the text may insert rows.
pub fn inserts(sql: &str) -> bool {
    ["insert", "replace", "with"].iter().any(|verb| first_word(sql).eq_ignore_ascii_case(verb))
}

/// Whether a word stands anywhere in the text, in whatever case.
pub fn mentions(sql: &str, word: &str) -> bool {
    let word = word.as_bytes();
    let is_first = |byte: u8| word.first().is_some_and(|first| first.eq_ignore_ascii_case(&byte));
    // The first letter by itself: comparing at every place cost more than preparing the statement.
    sql.as_bytes().windows(word.len()).any(|part| is_first(part[0]) && part.eq_ignore_ascii_case(word))
}

/// Whether there is nothing but white space and comments.
pub fn is_empty(sql: &str) -> bool {
    first_word(sql).is_empty()
}

/// The first keyword, behind white space and comments.
fn first_word(sql: &str) -> &str {
    let mut rest = sql.trim_start();
    loop {
        let behind = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map_or("", |(_, behind)| behind)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, behind)| behind)
        } else {
            break;
        };
        rest = behind.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
    }
    let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    &rest[..end]
}

/// Bind every parameter.
///
/// # Errors
/// `Programming` for a wrong number, a missing name, or one kind of parameters where the SQL has the other.
pub fn bind(stmt: &mut Statement<'_>, params: &Params) -> Result<()> {
    match params {
        Params::Positional(values) => bind_positions(stmt, values),
        Params::Named(pairs) => bind_names(stmt, pairs),
    }
}

fn bind_positions(stmt: &mut Statement<'_>, values: &[Value]) -> Result<()> {
    let wanted = stmt.parameter_count();
    if wanted != values.len() {
        return Err(Error::new(
            Kind::Programming,
            format!("the statement takes {wanted} parameters, but {} were given", values.len()),
        ));
    }
    for (index, value) in values.iter().enumerate() {
        stmt.raw_bind_parameter(index + 1, value)?;
    }
    // Looked up only where it can matter: names are rare, and a lookup costs a call for each parameter.
    if let Some(name) = (1..=wanted).find_map(|index| stmt.parameter_name(index).filter(|name| !name.starts_with('?')))
    {
        return Err(Error::new(
            Kind::Programming,
            format!("the statement names its parameter {name}; give a mapping instead of a sequence"),
        ));
    }
    Ok(())
}

fn bind_names(stmt: &mut Statement<'_>, pairs: &[(Box<str>, Value)]) -> Result<()> {
    for index in 1..=stmt.parameter_count() {
        let Some(name) = stmt.parameter_name(index).filter(|name| !name.starts_with('?')) else {
            return Err(Error::new(
                Kind::Programming,
                format!("parameter {index} has no name; give a sequence instead of a mapping"),
            ));
        };
        let Some((_, value)) = pairs.iter().find(|(given, _)| **given == name[1..]) else {
            return Err(Error::new(Kind::Programming, format!("no value was given for parameter {name}")));
        };
        stmt.raw_bind_parameter(index, value)?;
    }
    Ok(())
}

/// Step through a bound statement and copy its rows out.
pub fn collect(stmt: &mut Statement<'_>, want: Want) -> Result<Rows> {
    let mut collected = Rows::default();
    let mut rows = stmt.raw_query();
    while collected.len() < want.most
        && let Some(row) = rows.next()?
    {
        collected.push(row)?;
    }
    drop(rows);
    name_columns(&mut collected, stmt, want);
    Ok(collected)
}

/// After the first step: SQLite prepares a cached statement anew there if the schema has changed, with other columns.
fn name_columns(rows: &mut Rows, stmt: &Statement<'_>, want: Want) {
    if want.columns {
        rows.columns = stmt.column_names().into_iter().map(Into::into).collect();
    }
}

/// Whatever keeps a connection for as long as a cursor is open on it.
pub type Keeper = Box<dyn AsRef<super::Connection> + Send>;

self_cell!(
    struct Held {
        owner: Keeper,
        #[not_covariant]
        dependent: Statement,
    }
);

/// A statement that stays in the middle of its rows between calls, together with the connection it runs on.
pub struct Cursor {
    held: OfThisProcess<Held>,
    sql: Box<str>, // for its errors, which may quote it and nothing else
    has_ended: bool,
}

// SAFETY: rusqlite's Statement is not Send because it borrows its connection, which is not Sync. Here both move together, and
// whoever has the cursor has the only way to either; SQLite itself (THREADSAFE=2) asks for no more than one thread at a time.
#[allow(unsafe_code)]
unsafe impl Send for Cursor {}

impl Cursor {
    /// Prepare and bind; no row is read yet.
    pub fn open(owner: Keeper, sql: &str, params: &Params) -> Result<Self> {
        let held = Held::try_new(owner, |owner| {
            let mut stmt = (**owner).as_ref().prepare_read(sql)?;
            bind(&mut stmt, params)?;
            Ok::<_, Error>(stmt)
        })?;
        Ok(Cursor { held: OfThisProcess::new(held), sql: sql.into(), has_ended: false })
    }

    /// The next rows, `most` at most; fewer, or none, at the end. Behind the end, or an error, there are none.
    pub fn next_rows(&mut self, want: Want) -> Result<Rows> {
        self.held.get()?;
        let (has_ended, sql) = (&mut self.has_ended, &self.sql);
        self.held.with_dependent_mut(|owner, stmt| {
            let mut collected = Rows::default();
            if std::mem::replace(has_ended, true) {
                return Ok(collected); // a statement that is stepped behind its end begins anew
            }
            let mut rows = stmt.raw_query();
            while collected.len() < want.most {
                match rows.next() {
                    Ok(Some(row)) => collected.push(row)?,
                    Ok(None) => break,
                    Err(error) => return Err((**owner).as_ref().explain_run(error.into(), sql)),
                }
            }
            if collected.len() == want.most {
                // Dropping it would reset the statement; the cursor must stay where it is.
                std::mem::forget(rows);
                *has_ended = false;
            } else {
                drop(rows);
            }
            name_columns(&mut collected, stmt, want);
            Ok(collected)
        })
    }

    /// The connection that the cursor runs on.
    pub fn connection(&self) -> &super::Connection {
        (**self.held.borrow_owner()).as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_is_found_behind_comments() {
        for (sql, verb) in [
            ("  insert into t values (1)", "insert"),
            ("-- why\n UPDATE t SET a = 1", "UPDATE"),
            ("/* a */ /* b */DELETE FROM t", "DELETE"),
            ("-- only a comment", ""),
            ("", ""),
        ] {
            assert_eq!(first_word(sql), verb);
        }
        assert!(
            mentions("SELECT Last_Insert_RowID()", "last_insert_rowid") && !mentions("SELECT 1", "last_insert_rowid")
        );
        assert!(!counts_rows("CREATE TABLE t (a)", false));
        assert!(counts_rows("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", false));
        assert!(!counts_rows("WITH x AS (SELECT 1) SELECT * FROM x", true));
    }
}
