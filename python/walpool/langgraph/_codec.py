"""Between LangGraph's checkpoints and the rows of the savers' tables: pure functions; no SQL, no I/O.

The savers, sync and async, differ in how they run a statement; what it says, and what its rows mean, is said here.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from walpool.errors import ConfigError, DataError
from walpool.langgraph import _sql, _upkeep_sql
from walpool.langgraph._dialects import Dialect
from walpool.langgraph._sql import Key, Search, Statement
from walpool.types import Value

# What lies in each checkpoint that has it: a row of its own would be longer. Of this kind are most of LangGraph's own.
_SHORT: Final = frozenset({type(None), bool, int, float})
_SHORT_TEXT: Final = 64  # characters; a row's key has more

_COUNT_DIGITS: Final = 32
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_NUL: Final = "\\u0000"  # as JSON has it


class Place(NamedTuple):
    """Where a config points: a thread, a namespace in it, and a checkpoint; None for the latest."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


def place_of(config: RunnableConfig) -> Place:
    """Return where a config points.

    Raises:
        ConfigError: it names no thread.
    """
    configurable = _configurable(config)
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        msg = "the config names no thread: give config={'configurable': {'thread_id': ...}}"
        raise ConfigError(msg)
    checkpoint_id = configurable.get("checkpoint_id") or None
    return Place(
        thread_id if type(thread_id) is str else str(thread_id),
        configurable.get("checkpoint_ns") or "",
        None if checkpoint_id is None else str(checkpoint_id),
    )


def checkpoint_place_of(config: RunnableConfig) -> tuple[Place, str]:
    """Return where a config points, and the id of the checkpoint that it must name.

    Raises:
        ConfigError: it names no thread or no checkpoint.
    """
    place = place_of(config)
    if place.checkpoint_id is None:
        msg = "the config names no checkpoint: writes belong to the config that put() returned"
        raise ConfigError(msg)
    return place, place.checkpoint_id


def next_version(current: str | None) -> str:
    """Return a version that sorts after `current`: a count, as in LangGraph's own savers, and something that is unique.

    Values are stored by version, so two branches that begin at one checkpoint must not give theirs the same one: hence
    the time in milliseconds and 40 random bits, from the system, since programs seed `random`. The time is in it for
    `blob_key`.
    """
    count = 0 if current is None else int(str(current).partition(".")[0])
    return f"{count + 1:032d}.{time.time_ns() // 1_000_000:011x}{secrets.randbits(40):010x}"


def blob_key(version: object) -> str:
    """Return the key under which the value of a channel at a version is stored; one for each version.

    What `next_version` made is turned round, so that keys follow each other in time.
    """
    return _turned_round(version) if type(version) is str else repr(version)


@lru_cache(maxsize=4096)  # most channels keep their version from step to step
def _turned_round(version: str) -> str:
    count, dot, unique = version.partition(".")
    if dot and len(count) == _COUNT_DIGITS and count.isdecimal():
        return f"{unique}.{int(count)}"
    return repr(version)


def encode_put(
    dialect: Dialect,
    serde: SerializerProtocol,
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
) -> tuple[list[Statement], RunnableConfig]:
    """Return the statements that store a checkpoint and its new values as one job, and the config that names it."""
    thread_id, ns, parent_id = place_of(config)
    dumps = serde.dumps_typed
    rest = cast("dict[str, Any]", checkpoint.copy())
    values: dict[str, Any] = rest.pop("channel_values", {})
    versions: ChannelVersions = rest.get("channel_versions", {})
    statements: list[Statement] = []
    channels: dict[str, str | int | None] = dict.fromkeys(versions)
    short: dict[str, Any] = {}
    for channel, value in values.items():
        kind = type(value)
        if kind in _SHORT or (kind is str and len(value) <= _SHORT_TEXT) or channel not in versions:
            short[channel] = value
            channels[channel] = 0
            continue
        channels[channel] = key = blob_key(versions[channel])
        if channel in new_versions:
            statements.append(dialect.put_blob(key, thread_id, ns, channel, dumps(value)))
    if short:
        rest["channel_values"] = short
    channels_json = _to_json(channels)
    if _NUL in channels_json:
        msg = "a channel's name or version holds a NUL character"
        raise DataError(msg)
    full_metadata = cast("dict[str, Any]", get_checkpoint_metadata(config, metadata))
    run_id = full_metadata.get("run_id")
    statements.append(
        dialect.put_checkpoint(
            thread_id,
            ns,
            checkpoint["id"],
            parent_id,
            None if run_id is None else str(run_id),
            channels_json,
            _to_json(full_metadata),
            dumps(rest),
        )
    )
    return statements, _config(thread_id, ns, checkpoint["id"])


def encode_writes(
    dialect: Dialect,
    serde: SerializerProtocol,
    config: RunnableConfig,
    writes: Sequence[tuple[str, Any]],
    task_id: str,
    task_path: str,
) -> list[tuple[Value, ...]]:
    """Return the parameters of `put_writes`, a row for each write."""
    (thread_id, ns, _), checkpoint_id = checkpoint_place_of(config)
    dumps, special, stored = serde.dumps_typed, WRITES_IDX_MAP, dialect.stored
    return [
        (thread_id, ns, checkpoint_id, task_id, special.get(channel, idx), task_path, channel, *stored(dumps(value)))
        for idx, (channel, value) in enumerate(writes)
    ]


def decode_tuples(
    dialect: Dialect, serde: SerializerProtocol, rows: Iterable[Sequence[Any]]
) -> dict[int, CheckpointTuple]:
    """Return the checkpoints of `get_many`, by the number of each."""
    by_row: dict[int, list[Sequence[Any]]] = {}
    for row in rows:
        by_row.setdefault(row[1], []).append(row)
    decoded = {number: decode_tuple(dialect, serde, its_rows) for number, its_rows in by_row.items()}
    return {number: found for number, found in decoded.items() if found is not None}


def decode_tuple(dialect: Dialect, serde: SerializerProtocol, rows: Iterable[Sequence[Any]]) -> CheckpointTuple | None:
    """Return the checkpoint of `get`; None where there is none."""
    loads, loaded = serde.loads_typed, dialect.loaded
    head: Sequence[Any] | None = None
    values: dict[str, Any] = {}
    writes: list[tuple[str, str, int, str, tuple[str, bytes]]] = []
    for row in rows:
        kind = row[0]
        if kind == _sql.KIND_BLOB:
            values[row[2]] = loads(loaded(row[7], row[8]))
        elif kind == _sql.KIND_WRITE:
            writes.append((row[2], row[3], int(row[4]), row[5], loaded(row[7], row[8])))
        else:
            head = row
    if head is None:
        return None
    _, _, thread_id, ns, checkpoint_id, parent_id, metadata, type_, stored = head
    checkpoint = loads(loaded(type_, stored))
    checkpoint["channel_values"] = {**checkpoint.get("channel_values", {}), **values}
    writes.sort()  # the order of `writes_sort_key`: path, task, index; no two have the same three
    return CheckpointTuple(
        _config(thread_id, ns, checkpoint_id),
        checkpoint,
        json.loads(metadata),
        None if parent_id is None else _config(thread_id, ns, parent_id),
        [(task_id, channel, loads(typed)) for _, task_id, _, channel, typed in writes],
    )


class Listing:
    """The state of one `list`: what to look for next, and which of the keys found are to be read.

    A saver asks for a page at a time: `keys_wanted`, then the rows that `choose` returns, in one snapshot each; between
    pages nothing is held.

    Args:
        dialect: what is said to the database.
        config: as `list` takes it, and so are the others.
        metadata_filter: what the metadata must hold.
        before: the config of the checkpoint before which to begin.
        limit: the most to return.
    """

    page = 32  # checkpoints in memory at once
    _keys = 512  # keys looked at for a page, where only their metadata says which are meant

    def __init__(
        self,
        dialect: Dialect,
        config: RunnableConfig | None,
        metadata_filter: Mapping[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> None:
        self._dialect = dialect
        self._filter = dict(metadata_filter or {})
        # The run has an index; the comparison below is made all the same.
        run_id = self._filter.get("run_id")
        self._search = _search(config, before, run_id if isinstance(run_id, str) else None)
        self._after: Key | None = None
        self._left = limit
        self._asked = 0
        self.is_done = limit is not None and limit <= 0

    def keys_wanted(self) -> Statement:
        """Return the query of the next keys."""
        wanted = self.page if self._left is None else min(self.page, self._left)
        self._asked = self._keys if self._filter else wanted
        return self._dialect.find(self._search, self._after, self._asked)

    def choose(self, rows: Sequence[Sequence[Any]]) -> list[Key]:
        """Return which checkpoints to read, in order, given what `keys_wanted` found."""
        most = self.page if self._left is None else min(self.page, self._left)
        keys = _sql.keys(rows)
        chosen: list[Key] = []
        for key in keys:
            self._after = key
            if not self._filter or self._matches(json.loads(key.metadata)):
                chosen.append(key)
                if len(chosen) == most:
                    break
        else:
            self.is_done = len(keys) < self._asked
        if self._left is not None:
            self._left -= len(chosen)
            self.is_done = self.is_done or self._left == 0
        return chosen

    def _matches(self, metadata: Mapping[str, Any]) -> bool:
        return all(metadata.get(name) == value for name, value in self._filter.items())


def _search(config: RunnableConfig | None, before: RunnableConfig | None, run_id: str | None) -> Search:
    before_id = _configurable(before).get("checkpoint_id") if before else None
    if config is None:
        return Search(before_id=before_id, run_id=run_id)
    place = place_of(config)
    ns = _configurable(config).get("checkpoint_ns")  # None: every namespace
    return Search(place.thread_id, ns, place.checkpoint_id, before_id, run_id)


def decode_history(
    dialect: Dialect, serde: SerializerProtocol, rows: Iterable[Sequence[Any]], channels: Sequence[str]
) -> dict[str, DeltaChannelHistory]:
    """Return what `history` found, for each channel: its writes, oldest first, and the value that they begin from."""
    first: str | None = None
    steps: dict[tuple[str, str], tuple[str | None, Any]] = {}
    writes: dict[tuple[str, str], list[tuple[str, str, int, Any]]] = {}
    loaded = dialect.loaded
    for kind, channel, at, other, order, type_, value in rows:
        if kind == _upkeep_sql.KIND_START:
            first = at
        elif kind == _upkeep_sql.KIND_STEP:
            steps[channel, at] = other, None if type_ is None else loaded(type_, value)
        elif kind == _upkeep_sql.KIND_INLINED:
            short = serde.loads_typed(loaded(type_, value))["channel_values"][channel]
            steps[channel, at] = other, serde.dumps_typed(short)
        else:
            path, idx = json.loads(order)
            writes.setdefault((channel, at), []).append((path, other, idx, loaded(type_, value)))
    return {channel: _history_of(serde, channel, first, steps, writes) for channel in channels}


def _history_of(
    serde: SerializerProtocol,
    channel: str,
    first: str | None,
    steps: Mapping[tuple[str, str], tuple[str | None, Any]],
    writes: Mapping[tuple[str, str], list[tuple[str, str, int, Any]]],
) -> DeltaChannelHistory:
    loads = serde.loads_typed
    chain: dict[str, None] = {}  # a set in order, newest first: chains of parents may bite their own tail
    seed = None
    at = first
    while at is not None and (channel, at) in steps and at not in chain:
        chain[at] = None
        at, seed = steps[channel, at]
        if seed is not None:
            break
    found: list[PendingWrite] = [
        (task_id, channel, loads(typed))
        for ancestor in reversed(chain)
        for _, task_id, _, typed in sorted(writes.get((channel, ancestor), ()))
    ]
    return {"writes": found} if seed is None else {"writes": found, "seed": loads(seed)}


def _config(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}}


def _configurable(config: RunnableConfig) -> dict[str, Any]:
    try:
        configurable = config["configurable"]
    except (KeyError, TypeError):
        configurable = None
    if not isinstance(configurable, dict):
        msg = "a config is a dict with a dict under 'configurable'"
        raise ConfigError(msg)
    return configurable
