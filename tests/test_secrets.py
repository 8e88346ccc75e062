"""No parameter value, no stored value and no password of a URL stands in an error, a log, a warning, a repr, a figure.

Each secret has a mark of its own, so that a leak says which it was; all that walpool says is searched for the marks.
"""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers import COUNT_TO, Caller, locked_by_another_process, queue_up, writer_held

import walpool
from walpool import cli, errors, memory

TEXT = "zq7text"
BLOB = b"zq7blob"
WHOLE = 7391471304716  # large enough for COUNT_TO to run for longer than any test
REAL = 73914.71325
KEY = "zq7key"
PASSWORD = "zq7pass"
MARKS = re.compile(r"zq7|7a7137|73914|TXET7QZ|[a-z]{3}7qz", re.IGNORECASE)  # hexadecimal and backwards too
VALUES = {"text": TEXT, "blob": BLOB, "whole": WHOLE, "real": REAL}


def said(error: BaseException) -> str:
    """Return all that can be read off an error: its texts, fields, notes and pickle, and those of what it came from."""
    parts = [str(error), repr(error), repr(error.args), repr(getattr(error, "__dict__", {})), repr(error.__reduce__())]
    parts += [repr(getattr(error, "__notes__", [])), "".join(traceback.format_exception_only(error))]
    if isinstance(error, errors.Error):
        parts.append(repr(pickle.dumps(error)))
    parts += [said(other) for other in (error.__cause__, error.__context__) if other is not None]
    return "\n".join(parts)


def assert_silent(text: str) -> None:
    found = MARKS.search(text)
    assert found is None, f"{found and found[0]!r} in {text!r}"


@pytest.fixture(autouse=True)
def everything_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Search the logs and the warnings of every test here for the marks."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
    for record in caplog.get_records("call"):
        assert_silent(record.getMessage() + repr(record.args))
    for warning in warned:
        assert_silent(f"{warning.message!r}")


SCHEMA = """
    CREATE TABLE kept (kind TEXT PRIMARY KEY, v);
    CREATE TABLE plain (a);
    CREATE TABLE whole (a INTEGER) STRICT;
    CREATE TABLE rowids (a INTEGER PRIMARY KEY);
    CREATE TABLE checked (a CHECK (a IS NULL));
    CREATE TABLE named (a CONSTRAINT none_at_all CHECK (a IS NULL));
    CREATE TABLE uniq (a UNIQUE);
    CREATE UNIQUE INDEX by_text ON plain (CAST(a AS TEXT) || '');
    CREATE TABLE filled (a NOT NULL);
    CREATE TABLE child (a REFERENCES uniq (a));
    CREATE TABLE late (a REFERENCES uniq (a) DEFERRABLE INITIALLY DEFERRED);
    CREATE VIRTUAL TABLE words USING fts5(a);
    CREATE VIRTUAL TABLE boxes USING rtree(id, low, high);
    CREATE TABLE aborts (a);
    CREATE TRIGGER aborts_all BEFORE INSERT ON aborts BEGIN SELECT RAISE(ABORT, NEW.a); END;
    CREATE TABLE fails (a);
    CREATE TRIGGER fails_all BEFORE INSERT ON fails BEGIN SELECT RAISE(FAIL, 'no ' || NEW.a || '!'); END;
    CREATE TABLE rolls (a);
    CREATE TRIGGER rolls_all BEFORE INSERT ON rolls BEGIN SELECT RAISE(ROLLBACK, upper(NEW.a)); END;
    CREATE TABLE parses (a);
    CREATE TRIGGER parses_all AFTER INSERT ON parses BEGIN SELECT json_extract('{}', NEW.a); END;
"""

# What makes SQLite, its extensions or walpool's functions refuse the value that stands where {v} does.
READS = [
    "SELECT json_extract('{{}}', {v})",
    "SELECT json({v})",
    "SELECT json_set('{{}}', {v}, 1)",
    "SELECT json_remove('{{}}', {v})",
    "SELECT json_array({v}, x'00')",
    "SELECT json_object({v}, x'00')",
    "SELECT json_valid('1', {v})",
    "SELECT * FROM json_each({v})",
    "SELECT * FROM json_tree('{{}}', {v})",
    "SELECT jsonb({v})",
    "SELECT jsonb_extract('{{}}', {v})",
    "SELECT * FROM words WHERE words MATCH '\"' || {v}",
    "SELECT * FROM words WHERE words MATCH {v} || ': a'",
    "SELECT * FROM words WHERE words MATCH 'AND ' || {v} || ' ('",
    "SELECT * FROM words WHERE words MATCH '{{' || {v} || '}} : a'",
    "SELECT * FROM words WHERE words MATCH 'NEAR(a b, ' || {v} || ')'",
    "SELECT * FROM words({v} || '.')",
    "SELECT * FROM words WHERE words MATCH 'a' AND rank MATCH {v}",
    "SELECT * FROM pragma_table_info('plain', {v})",
    "SELECT 'a' LIKE 'b' ESCAPE {v}",
    "SELECT abs(-9223372036854775807 - 1), {v}",
    "SELECT vec_dot({v}, x'00')",
    "SELECT vec_sketch({v}, NULL)",
    "SELECT vec_sketch(x'00000000', {v})",
    "SELECT vec_key_set({v})",
    "SELECT vec_nearest({v}, 1, x'00', 'dot', 1, NULL, NULL, NULL, NULL, NULL)",
    "SELECT vec_nearest('memory', {v}, x'00', 'dot', 1, NULL, NULL, NULL, NULL, NULL)",
    "SELECT vec_nearest('memory', 1, {v}, 'dot', 1, NULL, NULL, NULL, NULL, NULL)",
    "SELECT vec_nearest('memory', 1, x'00000000', {v}, 1, NULL, NULL, NULL, NULL, NULL)",
    "SELECT ntile(-1) OVER (ORDER BY {v})",
    "SELECT nth_value(1, {v}) OVER ()",
    "SELECT 1 LIMIT {v} || 'x'",
    "SELECT zeroblob(3000000000), {v}",
    "SELECT rtreecheck({v})",
    "SELECT load_extension({v})",
    "SELECT fts3_tokenizer({v}, x'00')",
    "SELECT CAST(x'ff' || {v} AS TEXT)",
]
WRITES = [
    "INSERT INTO whole VALUES (x'' || {v} || 'x')",
    "INSERT INTO rowids VALUES ({v} || 'x')",
    "INSERT INTO checked VALUES ({v})",
    "INSERT INTO named VALUES ({v})",
    "INSERT INTO uniq SELECT {v} UNION ALL SELECT {v}",
    "INSERT INTO plain SELECT {v} UNION ALL SELECT {v}",
    "INSERT INTO filled SELECT nullif({v}, {v})",
    "INSERT INTO child VALUES ({v})",
    "INSERT INTO late VALUES ({v})",
    "INSERT INTO boxes VALUES (1, {v}, -1e30)",
    "INSERT INTO words (words) VALUES ({v})",
    "INSERT INTO words (words, rank) VALUES ('pgsz', {v})",
    "INSERT INTO words (words, rank) VALUES ({v}, {v})",
    "INSERT INTO words (words, rank) VALUES ('rank', {v})",
    "INSERT INTO aborts VALUES ({v})",
    "INSERT INTO fails VALUES ({v})",
    "INSERT INTO rolls VALUES ({v})",
    "INSERT OR ROLLBACK INTO checked VALUES ({v})",
    "INSERT INTO parses VALUES ({v})",
    "ATTACH {v} AS other",
    "VACUUM INTO {v}",
]
# How the value comes into the statement: bound, out of a table, and made of several.
SOURCES = ["?1", "(SELECT v FROM kept WHERE v = ?1)", "('a' || ?1 || 'b')", "upper(?1)", "hex(?1)", "('$[' || ?1)"]


@pytest.fixture
def opened(database: Path) -> Iterator[walpool.Pool]:
    """Return a pool that logs every statement as slow, with tables that refuse things."""
    with walpool.Pool(database, slow_threshold=0, readers=2, synchronous="normal") as pool:
        pool.script(SCHEMA)
        pool.executemany("INSERT INTO kept VALUES (?, ?)", list(VALUES.items()))
        yield pool


def streamed(pool: walpool.Pool, sql: str, params: Any) -> object:
    with pool.stream(sql, params) as rows:
        return [repr(rows), list(rows)]


def read(pool: walpool.Pool, sql: str, params: Any) -> object:
    with pool.read() as snapshot:
        return [repr(snapshot), snapshot.fetch(sql, params), snapshot.fetchval(sql, params)]


def calls(pool: walpool.Pool, sql: str, params: Any) -> list[Callable[[], object]]:
    return [
        lambda: pool.execute(sql, params),
        lambda: pool.executemany(sql, [params]),
        lambda: pool.batch([(sql, params)]),
        lambda: pool.run(lambda tx: (repr(tx), tx.execute(sql, params))),
        lambda: pool.run(lambda tx: tx.executemany(sql, [params])),
        lambda: pool.run(lambda tx: tx.fetch(sql, params)),
        lambda: pool.fetch(sql, params),
        lambda: pool.fetchone(sql, params, row=dict),
        lambda: pool.fetchval(sql, params),
        lambda: streamed(pool, sql, params),
        lambda: read(pool, sql, params),
    ]


def refusals(every: list[Callable[[], object]]) -> int:
    """Make the calls, search what each says, and return how many were refused."""
    refused = 0
    for call in every:
        try:
            outcome = call()
        except (errors.Error, ValueError, TypeError) as error:
            refused += 1
            assert_silent(said(error))
        else:
            assert_silent(repr(outcome) if isinstance(outcome, walpool.Result) else "")
    return refused


@pytest.mark.parametrize("template", [*READS, *WRITES])
def test_error_of_a_statement_that_runs_quotes_no_value(opened, template):
    refused = 0
    for source in SOURCES:
        sql = template.format(v=source)
        for value in VALUES.values():
            every = calls(opened, sql, (value,))
            refused += refusals(every if source == "?1" else [every[0], every[6], every[9]])  # execute, fetch, stream
    assert refused > 0, "it was meant to be refused"
    assert_silent(repr(opened.stats()) + repr(opened))
    opened.execute("INSERT INTO plain VALUES (1)")


@pytest.mark.parametrize("template", [sql for sql in [*READS, *WRITES] if "ATTACH" not in sql and "VACUUM" not in sql])
def test_error_of_a_script_quotes_no_stored_value(opened, template):
    for kind in VALUES:
        sql = template.format(v=f"(SELECT v FROM kept WHERE kind = '{kind}')")
        refusals([lambda: opened.script(sql), lambda: opened.fetch(sql)])  # noqa: B023 - called at once


def test_message_of_a_trigger_stays_where_it_is_a_literal(opened):
    opened.script("""
        CREATE TABLE guarded (a);
        CREATE TRIGGER guard BEFORE INSERT ON guarded BEGIN SELECT RAISE(ABORT, 'that''s too much'); END;
        CREATE TABLE parents (a PRIMARY KEY); INSERT INTO parents VALUES (1);
        CREATE TABLE children (a REFERENCES parents ON DELETE RESTRICT); INSERT INTO children VALUES (1);
    """)
    with pytest.raises(errors.IntegrityError, match=r"^that's too much \["):
        opened.execute("INSERT INTO guarded VALUES (?)", (TEXT,))
    with pytest.raises(errors.IntegrityError, match="FOREIGN KEY constraint failed"):
        opened.execute("DELETE FROM parents")
    with pytest.raises(errors.IntegrityError, match="a trigger refused it"):
        opened.execute("INSERT INTO aborts VALUES (?)", (TEXT,))


def test_message_keeps_the_words_that_help(opened):
    with pytest.raises(errors.ProgrammingError, match="fts5: syntax error near"):
        opened.fetch("SELECT * FROM words WHERE words MATCH ?", (f"( {TEXT}",))
    with pytest.raises(errors.ProgrammingError, match="bad JSON path: …"):
        opened.fetch("SELECT json_extract('{}', ?)", (TEXT,))
    with pytest.raises(errors.ProgrammingError, match="malformed JSON"):
        opened.fetch("SELECT json(?)", (TEXT,))
    with pytest.raises(errors.ProgrammingError, match="vec_dot: argument 1 must be a BLOB, not Text"):
        opened.fetch("SELECT vec_dot(?, x'')", (TEXT,))


class Shown:
    """Not a value that SQLite has; its repr and its str would tell."""

    def __repr__(self) -> str:
        return TEXT

    __str__ = __repr__


STRANGE = {
    "an object": Shown(),
    "a list": [TEXT],
    "a dict": {KEY: TEXT},
    "a set": {TEXT},
    "a decimal": Decimal("73914.71325"),
    "a UUID": UUID("7a713773-9147-1304-7160-000000000000"),
    "a surrogate": TEXT + "\ud800",
    "a large int": WHOLE**3,
    "a complex number": complex(REAL),
    "a datetime": datetime(1973, 9, 14, tzinfo=timezone.utc),
    "a path": Path(TEXT),
    "a class": type(TEXT, (), {}),
    "a memoryview": memoryview(BLOB)[::2],
}


@pytest.mark.parametrize("kind", STRANGE)
def test_refusal_of_a_parameter_tells_its_type_and_place_alone(opened, kind):
    value = STRANGE[kind]
    sql = "SELECT :a"
    shapes: list[Any] = [(value,), [value], {"a": value}, {"a": 1, KEY: value}, {KEY: value}, value, {1: value}]
    shapes += [(TEXT, value), {"a": value, KEY: TEXT}, ((TEXT, value),), {TEXT: TEXT}, {TEXT + "\ud800": 1}]
    for params in shapes:
        refusals(calls(opened, sql, params))
        refusals([lambda: opened.executemany("INSERT INTO plain VALUES (?)", [(1,), params])])  # noqa: B023


@pytest.mark.parametrize(
    "params", [(TEXT, BLOB), (), {KEY: TEXT}, {"b": TEXT}, TEXT, BLOB, WHOLE, REAL, {TEXT}, None, iter([TEXT])]
)
def test_parameters_that_do_not_fit_are_refused_without_being_shown(opened, params):
    for sql in ("SELECT ?", "SELECT :a", "SELECT nonsense(?)", "SELECT ?1, :a", "INSERT INTO plain VALUES (?)"):
        assert refusals(calls(opened, sql, params)) > 0


def test_row_factory_that_raises_is_told_as_it_is_and_nothing_is_added(opened):
    def refuse(columns: tuple[str, ...], values: tuple[object, ...]) -> object:
        raise ValueError("the factory's own words")

    assert refusals([lambda: opened.fetch("SELECT v FROM kept", row=refuse)]) == 1


def test_errors_of_the_surroundings_quote_no_value(database):
    # Each class that a caller meets with a good statement in hand and a secret in its parameters.
    insert = "INSERT INTO plain VALUES (?)"
    with walpool.Pool(database, slow_threshold=0, readers=1, max_waiting=1, busy_timeout=0.01) as pool:
        pool.script("CREATE TABLE plain (a)")
        told = []
        with locked_by_another_process(database):
            told.append(Caller(lambda: pool.execute(insert, (TEXT,))).error(errors.BusyError))
        with writer_held(pool):
            told.append(Caller(lambda: pool.execute(insert, (WHOLE,), timeout=0.0)).error(errors.WriteTimeout))
            waiting = queue_up(pool, [lambda: pool.execute(insert, (BLOB,))])
            told.append(Caller(lambda: pool.execute(insert, (BLOB,))).error(errors.QueueFull))
        assert waiting[0].outcome().rowcount == 1
        told.append(Caller(lambda: pool.fetch(COUNT_TO, (WHOLE,), timeout=0.01)).error(errors.StatementTimeout))
        with pool.read():
            late = Caller(lambda: pool.fetch("SELECT ?", (TEXT,), timeout=0.01))
            told.append(late.error(errors.CheckoutTimeout))
            with pytest.raises(errors.ReentrantError) as caught:
                pool.execute(insert, (TEXT,))
            told.append(caught.value)
    told.append(Caller(lambda: pool.execute(insert, (TEXT,))).error(errors.ClosedError))
    with walpool.Pool(database, transaction_timeout=0.05) as pool:
        long = partial(pool.run, lambda tx: tx.execute(f"INSERT INTO plain {COUNT_TO}", (WHOLE,)))
        told.append(Caller(long).error(errors.TransactionTimeout))
    for error in told:
        assert_silent(said(error))


def test_memory_store_quotes_neither_records_nor_questions(database, caplog):
    vector = memory.pack([0.5, 0.25])
    with memory.open(database, slow_threshold=0) as store:
        record = memory.Record(id=TEXT, content=TEXT, scope=f"/{TEXT}", metadata={KEY: TEXT}, embedding=vector)
        store.save([record])
        wrong = memory.Record(id=TEXT, content=TEXT, embedding=memory.pack([REAL]))
        calls: list[Callable[[], object]] = [
            lambda: store.save([wrong]),
            lambda: store.save([memory.Record(id=KEY, content=TEXT, metadata={KEY: Shown()})]),
            lambda: store.search(memory.pack([REAL])),
            lambda: store.search(TEXT),  # type: ignore[arg-type]
            lambda: store.search(vector, metric=TEXT),  # type: ignore[arg-type]
            lambda: store.get(Shown()),  # type: ignore[arg-type]
            lambda: store.search(text=TEXT, after=TEXT),
            lambda: store.search(fts=f'"{TEXT}'),
            lambda: store.list(after=TEXT),
            lambda: store.list(memory.Query(scope=f"/{TEXT}\ud800")),
            lambda: memory.Record(id=TEXT, content=TEXT, importance=REAL),
            lambda: memory.pack([TEXT]),  # type: ignore[list-item]
            lambda: memory.pack([WHOLE**100]),
        ]
        assert refusals(calls) == len(calls)
        assert store.search(vector)
        assert_silent(repr(store) + repr(store.pool.stats()))
    assert any("slow" in record.getMessage() for record in caplog.records)


# The password stands in each of these; some are what people write by mistake.
URLS = [
    f"postgresql://user:{PASSWORD}@host/name",
    f"postgres://user:{PASSWORD}@host:5432/name?sslmode=require",
    f"POSTGRESQL://user:{PASSWORD}@host/name",
    f"postgresql+psycopg://user:{PASSWORD}@host/name",
    f"postgresql://user:{PASSWORD}/more@host/name",
    f"postgresql://user:{PASSWORD}?more@host/name",
    f"postgresql://user:{PASSWORD}#more@host/name",
    f"postgresql://user:more@{PASSWORD}@host/name",
    f"postgresql://user:a%2F{PASSWORD}@host/name",
    f"postgresql://:{PASSWORD}@host/name",
    f"postgresql://host/name?user=u&password={PASSWORD}",
    f"postgresql://host/name?p%61ssword={PASSWORD}",
    f"postgresql://host/name?PASSWORD={PASSWORD}",
    f"postgresql://host/name?sslpassword={PASSWORD}&readers=2",
    f"postgresql://host/name?oauth_client_secret={PASSWORD}",
    f"postgresql://user:{PASSWORD}@one,two/name?password={PASSWORD}",
    f"postgresql:/user:{PASSWORD}@host/name",
    f"postgresql:user:{PASSWORD}@host/name",
    f"postgres:///user:{PASSWORD}@host/name",
    f" postgresql://user:{PASSWORD}@host/name ",
    f"mysql://user:{PASSWORD}@host/name",
    f"sqlite://user:{PASSWORD}@host/name.db",
    f"walpool://user:{PASSWORD}@/nowhere/name.db?readers=none",
    f"postgresql://user:{PASSWORD}@host/name?readers=none",
    f"postgresql://user:{PASSWORD}@host/name?readers=1&readers=2",
    f"sqlite://user:{PASSWORD}@host/name.db?unknown=1",
    f"postgresql://host/name?user=u;password={PASSWORD}",
    f"postgresql://host/name?user=u,password={PASSWORD}",
    f"postgresql://host/name?user=u&password%20={PASSWORD}",
    f"postgresql://host/name?user=u&password+={PASSWORD}",
    f"postgresql://host/name?user=u#password={PASSWORD}",
    f"postgresql://host/name?user=u&passwd={PASSWORD}",
    f"postgresql://host/name?user=u:{PASSWORD}",
    f"postgresql://host/name&password={PASSWORD}",
    f"postgresql://host/name;password={PASSWORD}?sslmode=disable",
    f"postgresql://user;password={PASSWORD}@host/name",
    f"postgresql://host/name?dbname=host%3Dx%20password%3D{PASSWORD}",
    f"postgresql://host/name?dbname=postgresql%3A//user%3A{PASSWORD}%40host/name",
    f"postgresql://user%3A{PASSWORD}@host/name",
    f"postgresql://host/name?user=u&password=first&{PASSWORD}",
    f"postgresql://host/name?user=u&password=first&{PASSWORD}=&sslmode=disable",
    f"postgresql://host/name?user=u&password=first?sslmode={PASSWORD}",
    f"postgresql://host/name?readers=8;password={PASSWORD}",
    f"sqlite:///name.db?unknown;password%3D{PASSWORD}",
]


@pytest.mark.parametrize("url", URLS)
def test_password_of_a_url_is_shown_nowhere(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def loaded(**given: Any) -> None:
        settings = walpool.Settings.load(**given)
        for one in (settings, copy.copy(settings), copy.deepcopy(settings), pickle.loads(pickle.dumps(settings))):
            assert_silent(f"{one} {one!r} {one.explain()} {one.explain()!r} {one.explicit!r}")
        assert_silent(repr(pickle.dumps(settings)))

    calls: list[Callable[[], object]] = [
        lambda: walpool.Settings.load(url).explain(),
        lambda: loaded(url=url),
        lambda: loaded(env={"WALPOOL_URL": url}),
        lambda: loaded(env={"WALPOOL_URL": url, "WALPOOL_READERS": "none"}),
        lambda: loaded(url=url, readers="none"),
        lambda: loaded(url=url, nonsense=1),
        lambda: walpool.Pool(url),
        lambda: walpool.Pool(tmp_path / "a.db", url=url),
        lambda: walpool.get_pool(url),
        lambda: walpool.get_pool(url, readers=2),
        lambda: memory.open(url),
    ]
    monkeypatch.setenv("WALPOOL_URL", url)
    refused = refusals([*calls, lambda: walpool.get_pool(), lambda: memory.open()])
    assert refused > 0
    for arguments in (["env"], ["env", "--json"], ["env", url], ["env", url, "--json"]):
        cli.main(arguments)
        out, err = capsys.readouterr()
        assert_silent(out + err)
        if "--json" in arguments and out:
            json.loads(out)
