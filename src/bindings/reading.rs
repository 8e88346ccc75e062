//! The verbs that read, the same on every class: how their arguments are taken, and what becomes of the rows.

use pyo3::prelude::*;

use super::aio::lifetime;
use super::convert::{self, RowAs};
use super::ending;
use super::mailbox::Reply;
use crate::connection::Want;
use crate::error;
use crate::value::Rows;

/// What becomes of a read's rows.
#[derive(Clone, Copy)]
pub enum Shape {
    /// A list of them all.
    All,
    /// The first, or None.
    First,
    /// The first value of the first, or None.
    Value,
}

impl Shape {
    fn want(self, row_as: &RowAs<'_>) -> Want {
        let most = if matches!(self, Shape::All) { usize::MAX } else { 1 };
        Want { columns: row_as.wants_columns(), most }
    }

    fn convert<'py>(self, py: Python<'py>, rows: &Rows, row_as: &RowAs<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Shape::All => convert::list(py, rows, row_as).map(Bound::into_any),
            Shape::First => convert::first(py, rows, row_as),
            Shape::Value => convert::first_value(py, rows),
        }
    }
}

/// One read: how it is asked, and what its rows become.
pub struct Read<'py> {
    row: Option<Bound<'py, PyAny>>,
    /// What each row becomes.
    pub row_as: RowAs<'py>,
    shape: Shape,
}

impl<'py> Read<'py> {
    /// From the arguments of a verb.
    pub fn new(row: Option<Bound<'py, PyAny>>, shape: Shape) -> PyResult<Self> {
        Ok(Read { row_as: RowAs::from_argument(row.clone())?, row, shape })
    }

    /// What of the result is wanted.
    pub fn want(&self) -> Want {
        self.shape.want(&self.row_as)
    }

    /// The answer, as Python has it.
    pub fn answer(&self, py: Python<'py>, rows: &Rows) -> PyResult<Bound<'py, PyAny>> {
        self.shape.convert(py, rows, &self.row_as)
    }

    /// A closure that sends the rows, as Python has them. Many of them become objects where they are, on a native thread.
    pub fn tell(self, reply: Reply) -> impl FnOnce(error::Result<Rows>) + Send + 'static {
        let (shape, row) = (self.shape, self.row.map(Bound::unbind));
        move |rows| {
            let is_large = rows.as_ref().is_ok_and(|rows| rows.len() * rows.width() > convert::MANY_CELLS);
            if !is_large {
                return reply
                    .send(rows, lifetime(move |py, rows: Rows| shape.convert(py, &rows, &row_as(py, row.as_ref())?)));
            }
            // None where the interpreter is ending: nobody will ask for the rows then.
            let made = ending::attach(|py| {
                rows.map(|rows| {
                    let list = row_as(py, row.as_ref()).and_then(|row_as| convert::list_in_pieces(py, &rows, &row_as));
                    drop(row);
                    list.map(Bound::unbind)
                })
            });
            if let Some(made) = made {
                reply.send(made, lifetime(|py: Python<'_>, list: PyResult<Py<_>>| Ok(list?.into_bound(py).into_any())));
            }
        }
    }
}

fn row_as<'py>(py: Python<'py>, row: Option<&Py<PyAny>>) -> PyResult<RowAs<'py>> {
    RowAs::from_argument(row.map(|row| row.bind(py).clone()))
}

/// `fetch`, `fetchone` and `fetchval` of a class, by its own `read`, which answers with `$answer`.
macro_rules! reading_verbs {
    ($class:ty => $answer:ty) => {
        #[pymethods]
        impl $class {
            #[pyo3(signature = (sql, params, row, timeout))]
            fn fetch<'py>(
                &self,
                py: Python<'py>,
                sql: &str,
                params: &Bound<'py, PyAny>,
                row: Option<Bound<'py, PyAny>>,
                timeout: Option<Seconds>,
            ) -> PyResult<$answer> {
                self.read(py, sql, params, Read::new(row, Shape::All)?, timeout)
            }

            #[pyo3(signature = (sql, params, row, timeout))]
            fn fetchone<'py>(
                &self,
                py: Python<'py>,
                sql: &str,
                params: &Bound<'py, PyAny>,
                row: Option<Bound<'py, PyAny>>,
                timeout: Option<Seconds>,
            ) -> PyResult<$answer> {
                self.read(py, sql, params, Read::new(row, Shape::First)?, timeout)
            }

            #[pyo3(signature = (sql, params, timeout))]
            fn fetchval<'py>(
                &self,
                py: Python<'py>,
                sql: &str,
                params: &Bound<'py, PyAny>,
                timeout: Option<Seconds>,
            ) -> PyResult<$answer> {
                self.read(py, sql, params, Read::new(None, Shape::Value)?, timeout)
            }
        }
    };
}
pub(super) use reading_verbs;
