"""TLS, from threads and from event loops: what lies in libpq's layer of it keeps nobody waiting.

the loop's thread                      libpq                                   the server
waits for the socket                                                           the last record: 16 KiB
is told, has libpq read                reads what it has room for
waits for the socket, which is empty   has the rest of the record decrypted
looks all the same                     reads the rest

Against a server of PostgreSQL's own, and against a gate that cuts its answers as poolers and other servers may.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import WITHIN, eventually
from looping import Heartbeat, cancel, on_asyncio, on_every_loop, outcome, run, until
from psycopg.waiting import Wait

from tests.postgres.certificates import making_certificate
from tests.postgres.plugin import new_database
from tests.postgres.pools import (
    INSERT,
    TABLE,
    TEXTS,
    array_of,
    assert_unharmed,
    kept,
    others,
    plain,
    running,
    terminate,
    warm,
)
from tests.postgres.tls import RECORD, TlsGate, TlsServer, ragged, verifying
from walpool import errors
from walpool.postgres import AsyncPostgresPool, PostgresPool, _driving, _line, binary
from walpool.postgres._wire import Connection
from walpool.postgres.bulk import Bulk

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer

PASSWORD = "Hunter2"  # not a secret


@dataclass
class Place:
    """A database that is reached by TLS.

    Attributes:
        url: verifies the server.
        aside: a URL of the same database that no gate stands before.
        certificate: the server's.
        server: whose it is.
    """

    url: str
    aside: str
    certificate: Path
    server: PostgresServer


@pytest.fixture(params=["server", "gate"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "server":
        secured: TlsServer = request.getfixturevalue("tls_server")
        with new_database(secured) as url:
            yield Place(url, url, secured.certificate, secured)
    elif shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    else:
        server: PostgresServer = request.getfixturevalue("own_postgres_server")
        with new_database(server) as aside, TlsGate(aside, tmp_path) as gate:
            yield Place(gate.url, aside, gate.certificate, server)


@pytest.fixture
def secure(tls: Place) -> Iterator[PostgresPool]:
    """Yield a pool of two readers, with an empty table t."""
    with PostgresPool(tls.url, readers=2, write_timeout=WITHIN) as pool:
        pool.script(TABLE)
        yield pool
        assert_unharmed(pool)


@pytest.fixture
def asecure(secure: PostgresPool, tls: Place) -> Iterator[AsyncPostgresPool]:
    """Yield an asynchronous pool beside `secure`, whose connections it shares."""
    pool = AsyncPostgresPool(tls.url)
    yield pool
    run(pool.close())


def lengths_of_rows(seed: int) -> Iterator[list[int]]:
    """Yield, for results of all sorts, how long the texts of their rows are: round the sizes of records and buffers."""
    drawn = random.Random(seed)
    for size in (8_000, 8_192, 12_000, RECORD, RECORD + 8_192, 2 * RECORD, 65_536, 200_000):
        yield [size + drawn.randrange(-40, 120)]
        yield [size // 20 + drawn.randrange(0, 99) for _ in range(20)]
    for _ in range(40):
        yield [drawn.randrange(1, 900) for _ in range(drawn.randrange(1, 490))]
        yield [drawn.randrange(1, 20_000) for _ in range(drawn.randrange(1, 40))]
        yield [drawn.randrange(8_000, 200_000) for _ in range(drawn.randrange(1, 4))]


@pytest.mark.parametrize("size", [1, RECORD, RECORD + 1, 10 * RECORD + 9_000])
def test_gate_sends_what_is_over_first_and_then_full_records(size: int) -> None:
    first, *others = ragged(size)
    assert first + sum(others) == size
    assert 0 < first <= RECORD
    assert set(others) <= {RECORD}


# The server's name and certificate


def test_connection_is_encrypted_and_the_server_verified(secure: PostgresPool, tls: Place) -> None:
    with secure._engine.address.connect(WITHIN) as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.may_be_pending
    assert "sslmode=verify-full" in tls.url
    unverified = tls.url.partition("?")[0] + "?sslmode=require"
    with PostgresPool(unverified) as pool:
        assert pool.fetchval("SELECT 1") == 1


def test_server_itself_says_that_it_is_spoken_to_in_tls(tls_server: TlsServer) -> None:
    with new_database(tls_server) as url, PostgresPool(url) as pool:
        assert pool.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True
    with pytest.raises(errors.OperationalError, match=r"no pg_hba\.conf entry .* no encryption"):
        PostgresPool(url.partition("?")[0] + "?sslmode=disable")


def refused_from_threads(url: str) -> str:
    with pytest.raises(errors.OperationalError) as refused:
        PostgresPool(url, write_timeout=WITHIN)
    return str(refused.value)


def refused_from_a_loop(url: str) -> str:
    async def main() -> str:
        pool = AsyncPostgresPool(url, write_timeout=WITHIN)
        with pytest.raises(errors.OperationalError) as refused:
            await pool.fetch("SELECT 1")
        return str(refused.value)

    return asyncio.run(asyncio.wait_for(main(), 2 * WITHIN))


@pytest.mark.parametrize("refused", [refused_from_threads, refused_from_a_loop])
def test_server_of_another_certificate_or_name_is_refused(
    tls: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, refused: Callable[[str], str]
) -> None:
    (tmp_path / "others").mkdir()
    subprocess.run(making_certificate(tmp_path / "others"), check=True, capture_output=True)
    location = tls.url.partition("?")[0].partition("@")[2]
    url = f"postgresql://ann:{PASSWORD}@{location}?"
    wrong = url + verifying(tmp_path / "others" / "certificate.pem")
    misnamed = f"{url}{verifying(tls.certificate)}&host=db.example&hostaddr=127.0.0.1"
    for asked, reason in ((wrong, "certificate verify failed"), (misnamed, 'does not match host name "db.example"')):
        said = refused(asked)
        assert reason in said
        assert "connecting to postgresql://ann@" in said
        assert PASSWORD not in said + caplog.text


# Reads


@on_every_loop
async def test_rows_of_all_sizes_come_to_tasks(asecure: AsyncPostgresPool) -> None:
    for lengths in lengths_of_rows(seed=1):
        rows = await outcome(asecure.fetch(TEXTS, (array_of(lengths),)))
        assert [len(text) for (text,) in rows] == lengths


@on_asyncio
async def test_rows_of_all_sizes_come_to_many_tasks_at_once(asecure: AsyncPostgresPool) -> None:
    async def read(seed: int) -> None:
        for lengths in list(lengths_of_rows(seed))[seed::8]:
            rows = await outcome(asecure.fetch(TEXTS, (array_of(lengths),)))
            assert [len(text) for (text,) in rows] == lengths
            assert await outcome(asecure.fetchval("SELECT ?", (seed,))) == seed

    await asyncio.gather(*(read(seed) for seed in range(8)))


def test_rows_of_all_sizes_come_to_threads(secure: PostgresPool) -> None:
    for lengths in lengths_of_rows(seed=2):
        rows = secure.fetch(TEXTS, (array_of(lengths),), timeout=WITHIN)
        assert [len(text) for (text,) in rows] == lengths


def test_rows_are_copied_in(secure: PostgresPool) -> None:
    drawn = random.Random(3)
    rows = [(secrets.token_hex(drawn.randrange(1, 20_000)), n) for n in range(200)]
    encoded = binary.rows([binary.Form.TEXT, binary.Form.BIGINT], rows)
    secure.script("CREATE TABLE copied (a text, n bigint)")
    with Bulk(secure) as bulk, bulk.transaction():
        assert bulk.copy_in("copied", ["a", "n"], [encoded]) == len(rows)
    assert secure.fetch("SELECT a, n FROM copied ORDER BY n") == rows


# Writes, and all else


@on_every_loop
async def test_large_values_are_written_by_many_tasks(asecure: AsyncPostgresPool) -> None:
    await asecure.script("CREATE TABLE large (id int PRIMARY KEY, body text)")
    drawn = random.Random(4)
    bodies = [secrets.token_hex(drawn.randrange(1, 10_000)) for _ in range(120)]

    async def work(n: int) -> None:
        done = await asecure.execute("INSERT INTO large VALUES (?, ?) RETURNING body", (n, bodies[n]))
        assert done.rows == [(bodies[n],)]
        assert await asecure.fetchval("SELECT body FROM large WHERE id = ?", (n,)) == bodies[n]

    await outcome(asyncio.gather(*(work(n) for n in range(len(bodies)))))
    rows = [(1000 + n, secrets.token_hex(50_000)) for n in range(30)]
    assert (await outcome(asecure.executemany("INSERT INTO large VALUES (?, ?)", rows))).rowcount == 30
    assert await outcome(asecure.fetch("SELECT * FROM large WHERE id >= 1000 ORDER BY id")) == rows


@on_every_loop
async def test_verbs_of_a_block_work(asecure: AsyncPostgresPool) -> None:
    text = "x" * 20_000
    async with asecure.transaction() as tx:
        await outcome(tx.executemany(INSERT, [(str(n) + text[: n * 100],) for n in range(20)]))
        with pytest.raises(errors.IntegrityError):
            await outcome(tx.execute(INSERT, ("0",)))
        assert await outcome(tx.fetchval("SELECT count(*) FROM t")) == 20
    async with asecure.read() as snapshot:
        assert len(await outcome(snapshot.fetch("SELECT repeat(a, 100) FROM t"))) == 20

    async def count() -> int:
        return len([row async for row in asecure.stream("SELECT repeat('x', i * 9) FROM generate_series(1, 900) AS i")])

    assert await outcome(count()) == 900


@on_every_loop
async def test_read_and_block_that_are_cancelled_are_stopped_on_the_server(
    asecure: AsyncPostgresPool, tls: Place
) -> None:
    async def in_a_block() -> None:
        async with asecure.transaction() as tx:
            await tx.execute(INSERT, ("gone",))
            await tx.fetch("SELECT pg_sleep(60)")

    with plain(tls.aside) as other:
        tasks = [asyncio.create_task(asecure.fetch("SELECT pg_sleep(60)")), asyncio.create_task(in_a_block())]
        await until(lambda: len(running(other, "pg_sleep(60)")) == 2)
        for task in tasks:
            await cancel(task)
        assert running(other, "pg_sleep(60)") == []
    with pytest.raises(errors.StatementTimeout):
        await outcome(asecure.fetch("SELECT pg_sleep(60)", timeout=0.1))
    assert await outcome(asecure.fetchval("SELECT count(*) FROM t")) == 0


def test_transaction_whose_connection_is_ended_is_known_not_to_be_applied(tls_server: TlsServer) -> None:
    with new_database(tls_server) as url, PostgresPool(url) as pool, plain(url) as other:
        pool.script(TABLE)
        with pytest.raises(errors.OperationalError) as refused, pool.transaction() as tx:
            tx.execute(INSERT, ("x",))
            pids = others(other, "state = 'idle in transaction'")
            assert terminate(other, "state = 'idle in transaction'") == 1
            eventually(lambda: not set(pids) & set(others(other)))
        assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
        assert kept(pool) == []
        assert_unharmed(pool)


class Load:
    """Tasks that write and read for as long as they are let, and what each write was told."""

    def __init__(self, pool: AsyncPostgresPool) -> None:
        self.told: dict[str, str] = {}
        self.is_over = False
        self._pool = pool
        self._tasks = [asyncio.create_task(self._work(name)) for name in range(12)]

    async def until_acknowledged(self, count: int = 100) -> None:
        before = list(self.told.values()).count("acknowledged")
        await until(lambda: list(self.told.values()).count("acknowledged") >= before + count)

    async def end(self) -> None:
        """Let the tasks end, and hold what is there to what was told."""
        self.is_over = True
        await outcome(asyncio.gather(*self._tasks))
        found = {a for (a,) in await outcome(self._pool.fetch("SELECT a FROM t"))}
        assert {value for value, each in self.told.items() if each == "acknowledged"} <= found
        assert not {value for value, each in self.told.items() if each == "not_applied"} & found

    async def _work(self, name: int) -> None:
        n = 0
        while not self.is_over:
            n += 1
            value = f"{name}/{n}/" + "x" * (n * 997 % 2_000)
            try:
                await outcome(self._pool.execute(INSERT, (value,)), within=2 * WITHIN)
                self.told[value] = "acknowledged"
                if n % 3 == 0:
                    await outcome(self._pool.fetch("SELECT repeat('x', 10 * n::int) FROM generate_series(1, 99) AS n"))
            except errors.OperationalError as error:
                self.told.setdefault(value, error.outcome)


@on_every_loop
async def test_connections_ended_under_load_lose_nothing_and_let_nobody_wait(
    asecure: AsyncPostgresPool, tls: Place
) -> None:
    await warm(asecure)
    load = Load(asecure)
    ended = 0
    with plain(tls.aside) as other:
        for _ in range(8):
            await load.until_acknowledged(50)
            ended += terminate(other)
    await load.end()
    assert ended >= 8


@pytest.mark.crash
@on_asyncio
async def test_server_that_restarts_under_load_loses_nothing_and_lets_nobody_wait(
    asecure: AsyncPostgresPool, tls: Place
) -> None:
    load = Load(asecure)
    for mode in ("fast", "immediate"):
        await load.until_acknowledged()
        await asyncio.get_running_loop().run_in_executor(None, tls.server.restart, mode)
    await load.until_acknowledged()
    await load.end()


# Reads and writes at once

NOISY = "DO $$ BEGIN FOR i IN 1..400 LOOP RAISE NOTICE '%', repeat('n', 20000); END LOOP; END $$"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have new connections take little at once, however much the system would hold for them."""
    make = Connection.__init__

    def made(self: Connection, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)

    monkeypatch.setattr(Connection, "__init__", made)


@on_every_loop
async def test_ten_megabytes_go_out_from_the_loop_while_notices_come_in(
    narrow: None, asecure: AsyncPostgresPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_line, "LOOP_BYTES", 2**30)  # the loop sends whatever it is
    await warm(asecure)
    waits: list[Wait] = []
    watch_answers = _driving.Drive._watch_answers

    def watched(self: Any, request: Any, wait: Wait) -> None:
        waits.append(wait)
        watch_answers(self, request, wait)

    monkeypatch.setattr(_driving.Drive, "_watch_answers", watched)
    async with Heartbeat() as heart:
        for size in (10_000_000, 10_000_000 + RECORD // 2):
            large = "y" * size
            done = await outcome(asecure.batch([NOISY, ("SELECT length(?)", (large,)), NOISY]))
            assert done[1].rows == [(size,)]
            assert Wait.RW in waits  # the server did not take it at once
            waits.clear()
            assert await outcome(asecure.fetchval("SELECT ?", (large,))) == large
            assert Wait.RW in waits
            waits.clear()
    heart.assert_free()
