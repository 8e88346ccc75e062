"""CrewAI's store of kickoff task outputs, what `crewai replay` reads: the latest run, in a walpool database."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from crewai.task import Task
from crewai.utilities.crew_json_encoder import CrewJSONEncoder
from crewai.utilities.errors import DatabaseError, DatabaseOperationError

from walpool.crewai import _sql
from walpool.crewai._database import Reopening, canonical_url, file_of, open_tables
from walpool.crewai._json import decode
from walpool.errors import Error

if TYPE_CHECKING:
    from walpool.pool import Pool
    from walpool.postgres import PostgresPool

__all__ = ["WalpoolKickoffStorage"]

T = TypeVar("T")

_logger = logging.getLogger("walpool.crewai")


class WalpoolKickoffStorage:
    """What `KickoffTaskOutputsSQLiteStorage` is, method for method, without a lock or a connection per call.

    The semantics are CrewAI's: one table for all crews, keyed by task, emptied by every kickoff. So a crew's kickoff
    takes the replay data of the crew before it, and of crews that run at once each sees the others' rows.

    Args:
        db_path: a path, or a `walpool://`, `sqlite://` or `postgresql://` URL; None takes `WALPOOL_URL`, and without
            that `walpool.db` where CrewAI keeps its own databases.
        **settings: as `walpool.get_pool` takes them, with `tenant` on a server.

    Raises:
        DatabaseOperationError: the file cannot be opened.
    """

    def __init__(self, db_path: str | None = None, **settings: Any) -> None:
        self.url = canonical_url(db_path)
        self.db_path = file_of(self.url)
        self._pool = Reopening(self.db_path, partial(open_tables, self.url, settings))
        self._run(DatabaseError.INIT_ERROR, lambda _: None)

    def add(
        self,
        task: Task,
        output: dict[str, Any],
        task_index: int,
        was_replayed: bool = False,
        inputs: dict[str, Any] | None = None,
    ) -> None:
        """Store the output of a task, or replace it.

        Raises:
            DatabaseOperationError: the database refused; `original_error` is walpool's.
        """
        row = (
            str(task.id),
            task.key,
            task.expected_output,
            _encode(output),
            task_index,
            _encode(inputs or {}),
            was_replayed,
        )
        self._run(DatabaseError.SAVE_ERROR, lambda pool: pool.execute(*_sql.add_output(pool.backend, *row)))

    def update(self, task_index: int, **kwargs: Any) -> None:
        """Change columns of the output at `task_index`; a dict is stored as JSON. No such output is a warning.

        Raises:
            DatabaseOperationError: the database refused, or there is no such column.
        """
        changes = {column: _encode(value) if isinstance(value, dict) else value for column, value in kwargs.items()}
        unknown = [column for column in changes if column not in _sql.KICKOFF_COLUMNS]
        if unknown or not changes:
            named = ", ".join(unknown) or "none given"
            raise _failed(DatabaseError.UPDATE_ERROR, ValueError(f"no such column: {named}"))
        result = self._run(
            DatabaseError.UPDATE_ERROR,
            lambda pool: pool.execute(*_sql.update_outputs(pool.backend, task_index, changes)),
        )
        if result.rowcount == 0:
            _logger.warning("No row found with task_index %s. No update performed.", task_index)

    def load(self) -> list[dict[str, Any]]:
        """Return the stored outputs as dicts, in the order of their tasks; `output` and `inputs` are decoded.

        Raises:
            DatabaseOperationError: the database refused.
        """
        rows = self._run(DatabaseError.LOAD_ERROR, lambda pool: pool.fetch(_sql.LOAD_OUTPUTS[pool.backend], row=dict))
        for row in rows:
            row["output"] = decode(row["output"])
            row["inputs"] = decode(row["inputs"])
        return rows

    def delete_all(self) -> None:
        """Delete every stored output.

        Raises:
            DatabaseOperationError: the database refused.
        """
        self._run(DatabaseError.DELETE_ERROR, lambda pool: pool.execute(_sql.DELETE_OUTPUTS[pool.backend]))

    def close(self) -> None:
        """Give the database back; the next call opens it again."""
        self._pool.close()

    def _run(self, what_failed: str, work: Callable[[Pool | PostgresPool], T]) -> T:
        try:
            return self._pool.use(work)
        except Error as error:
            raise _failed(what_failed, error) from error


WalpoolKickoffStorage.__module__ = "walpool.crewai"


def _encode(value: object) -> str:
    return json.dumps(value, cls=CrewJSONEncoder)


def _failed(what_failed: str, error: Exception) -> DatabaseOperationError:
    message = DatabaseError.format_error(what_failed, error)
    _logger.error(message)
    return DatabaseOperationError(message, error)
