"""CrewAI's flow persistence: the states of flows and what they wait for, in a walpool database."""

from __future__ import annotations

import json
from datetime import date, datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from crewai.flow.async_feedback.types import PendingFeedbackContext
from crewai.flow.persistence.base import FlowPersistence
from pydantic import BaseModel, Field, JsonValue, PrivateAttr, model_validator
from typing_extensions import Self

from walpool.crewai import _sql
from walpool.crewai._database import Reopening, canonical_url, file_of, open_tables
from walpool.crewai._json import decode
from walpool.pool import Pool

if TYPE_CHECKING:
    from walpool.postgres import PostgresPool

__all__ = ["WalpoolFlowPersistence"]


class WalpoolFlowPersistence(FlowPersistence):
    """A `FlowPersistence` for `@persist(...)` and `Flow(persistence=...)`.

    Safe to share between flows and threads. A state is appended by one job and durable when `save_state` returns; the
    last one counts. JSON holds it, as with CrewAI's own store: models as their fields, sets and tuples as lists, dates
    in ISO form, anything else as its `str`.

    The fields go into checkpoints, so they are plain JSON; a restored one stores in the same database. A password does
    not go with them: where it is needed the process has it in `WALPOOL_URL`, or libpq in PGPASSWORD or its own file.

    Args:
        url: a path, or a `walpool://`, `sqlite://` or `postgresql://` URL; None takes `WALPOOL_URL`, and without that
            `walpool.db` where CrewAI keeps its own databases. The field does not show a password.
        settings: as `walpool.get_pool` takes them, with `tenant` on a server.

    Raises:
        ConfigError: the URL is none of a database.
        NotSupportedError: the tables come from a newer walpool.
        StorageError, OperationalError: the database cannot be opened.
    """

    # CrewAI looks a restored one up by this field in a table whose keys are names of classes.
    persistence_type: str = Field(default="WalpoolFlowPersistence")
    url: str = Field(default_factory=lambda: canonical_url(None))
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    _pool: Reopening[Pool | PostgresPool] = PrivateAttr()

    def __init__(self, url: str | None = None, /, **fields: Any) -> None:
        super().__init__(**fields if url is None else {"url": url, **fields})

    @model_validator(mode="after")
    def _open(self) -> Self:
        self.url = canonical_url(self.url)
        self._pool = Reopening(file_of(self.url), partial(open_tables, self.url, dict(self.settings)))
        self.init_db()
        return self

    def init_db(self) -> None:
        """Make the database's tables, where they are missing."""
        self._pool.get()

    def save_state(self, flow_uuid: str, method_name: str, state_data: dict[str, Any] | BaseModel) -> None:
        """Append a state to the flow's history; one job."""
        state_json = _encode(_as_dict(state_data))
        now = _now()
        self._pool.use(
            lambda pool: pool.execute(*_sql.save_state(pool.backend, flow_uuid, method_name, now, state_json))
        )

    def load_state(self, flow_uuid: str) -> dict[str, Any] | None:
        """Return the state that was saved last; None if there is none, or if it is not an object."""
        state_json = self._pool.use(lambda pool: pool.fetchval(*_sql.load_state(pool.backend, flow_uuid)))
        state = None if state_json is None else decode(state_json)
        return state if isinstance(state, dict) else None

    def save_pending_feedback(
        self, flow_uuid: str, context: PendingFeedbackContext, state_data: dict[str, Any] | BaseModel
    ) -> None:
        """Append a state and note what the flow waits for: both or neither, one job."""
        state_json = _encode(_as_dict(state_data))
        context_json = _encode(context.to_dict())
        now = _now()

        def save(pool: Pool | PostgresPool) -> None:
            state = _sql.save_state(pool.backend, flow_uuid, context.method_name, now, state_json)
            pool.batch([state, _sql.save_feedback(pool.backend, flow_uuid, context_json, state_json, now)])

        self._pool.use(save)

    def load_pending_feedback(self, flow_uuid: str) -> tuple[dict[str, Any], PendingFeedbackContext] | None:
        """Return the state and the context that a flow waits with; None if it waits for nothing."""
        row = self._pool.use(lambda pool: pool.fetchone(*_sql.load_feedback(pool.backend, flow_uuid)))
        if row is None:
            return None
        state_json, context_json = row
        return decode(state_json), PendingFeedbackContext.from_dict(decode(context_json))

    def clear_pending_feedback(self, flow_uuid: str) -> None:
        """Forget what the flow waited for; its states stay."""
        self._pool.use(lambda pool: pool.execute(*_sql.clear_feedback(pool.backend, flow_uuid)))

    def close(self) -> None:
        """Give the database back; the next call opens it again."""
        self._pool.close()


WalpoolFlowPersistence.__module__ = "walpool.crewai"


def _as_dict(state: object) -> dict[str, Any]:
    if isinstance(state, BaseModel):
        return _fields(state)
    if isinstance(state, dict):
        return state
    raise ValueError(f"the state of a flow is a dict or a pydantic model, not {type(state).__name__}")


def _fields(model: BaseModel) -> dict[str, Any]:
    # A field without a JSON form makes pydantic refuse the whole model: then `_encode` decides field by field.
    try:
        return model.model_dump(mode="json")
    except Exception:  # noqa: BLE001 - a serializer of the user's may raise anything
        return model.model_dump(mode="python")


def _encode(value: dict[str, Any]) -> str:
    return json.dumps(value, default=_json_form)


def _json_form(value: object) -> object:
    """Return what JSON shall hold in place of a value that it has no form for."""
    if isinstance(value, BaseModel):
        return _fields(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, date):  # a datetime is one too
        return value.isoformat()
    return str(value)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
