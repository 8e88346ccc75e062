"""The command line: what `walpool env` prints, its exit codes, and errors as one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import walpool
from tests.layers import environment_with
from walpool import cli
from walpool.errors import BusyError, ConfigError
from walpool.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WALPOOL_")]:
        monkeypatch.delenv(name)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m walpool` in a process of its own."""
    command = [sys.executable, "-m", "walpool", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=variables)


def fake_command(error: BaseException) -> cli.Command:
    def fail(arguments: Any) -> None:
        raise error

    return cli.Command("fake", "fails", lambda parser: None, fail)


def test_python_m_walpool_prints_each_setting_with_its_value_and_origin() -> None:
    done = run("env", "walpool://a.db?readers=7", WALPOOL_SYNCHRONOUS="normal")
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert ["readers", "7", "url ?readers=7"] in rows
    assert ["synchronous", "normal", "environment WALPOOL_SYNCHRONOUS"] in rows
    assert ["busy_timeout", "30s", "default"] in rows
    assert len(rows) == len(Settings.load(env={}).values())


def test_env_without_an_argument_explains_the_url_of_the_environment() -> None:
    done = run("env", "--json", WALPOOL_URL="walpool:///srv/a.db?max_group=9")
    answer = json.loads(done.stdout)
    assert answer["path"] == "/srv/a.db"
    assert {"name": "max_group", "value": 9, "text": "9", "origin": "url ?max_group=9"} in answer["settings"]


def test_env_json_holds_every_setting_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json", "a.db"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["settings"]] == list(Settings.load(env={}).values())
    assert answer["path"] == "a.db"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_env_prints_no_password(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", *options, "postgresql://ann:secret@db/agents?sslpassword=secret"]) == 0
    output = capsys.readouterr().out
    assert "secret" not in output
    assert "postgresql://ann:***@db/agents" in output


def test_env_prints_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["env", "[bold]a.db"]) == 0
    output = capsys.readouterr().out
    assert "┏━" in output
    assert "[bold]a.db" in output  # rich would take it for markup


def test_env_prints_plain_text_on_a_terminal_without_rich(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["env", "a.db"]) == 0
    assert capsys.readouterr().out == f"{Settings.load('a.db').explain()}\n"


def test_a_wrong_setting_is_one_line_on_stderr_and_code_2() -> None:
    done = run("env", WALPOOL_READERS="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("walpool: error: WALPOOL_READERS='many' is not accepted")
    assert done.stderr.count("\n") == 1


def test_an_unknown_variable_is_one_line_on_stderr_and_the_command_goes_on() -> None:
    done = run("env", WALPOOL_READRES="8")
    assert done.returncode == 0
    assert "readers" in done.stdout
    assert done.stderr == (
        "walpool: warning: the environment variable WALPOOL_READRES is not a walpool setting; "
        "did you mean 'WALPOOL_READERS'?\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("wrong\n  setting"), 2, "walpool: error: wrong setting"),
        (BusyError("a.db is busy"), 1, "walpool: error: a.db is busy"),
        (FileNotFoundError(2, "No such file", "a.db"), 1, "walpool: error: [Errno 2] No such file: 'a.db'"),
        (KeyboardInterrupt(), 1, "walpool: error: interrupted"),
    ],
)
def test_an_error_becomes_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["fake"], (fake_command(error),)) == code
    assert capsys.readouterr().err == f"{line}\n"


def interrupt(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["_parser", "_completed", "_migrate._options", "_migrate.progress_of_each"])
def test_migrate_that_is_interrupted_before_its_work_begins_exits_with_3(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"walpool.cli.{step}" if "." in step else f"walpool.cli._main.{step}", interrupt)
    assert cli.main(["migrate", str(tmp_path / "a.db"), "postgresql://127.0.0.1:1/x"]) == 3
    line = capsys.readouterr().err
    assert line.startswith("walpool: error: interrupted; ")
    assert line.count("\n") == 1


def test_interrupt_inside_an_exec_is_an_exit_code_too(tmp_path: Path) -> None:
    # Where a module is imported that makes dataclasses, which is most of the time before a migration begins.
    (tmp_path / "interrupted.py").write_text("""if True:
        import sys
        from walpool import cli
        run = lambda arguments: exec("raise KeyboardInterrupt")
        sys.exit(cli.main(["migrate"], [cli.Command("migrate", "", lambda parser: None, run)]))
    """)
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 3, done.stderr


def test_migrate_that_is_interrupted_behind_its_work_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate"], (fake_command(KeyboardInterrupt())._replace(name="migrate"),)) == 3
    assert "--resume goes on from there" in capsys.readouterr().err


def test_an_error_of_our_own_making_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake"], (fake_command(ZeroDivisionError()),))


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is another error elsewhere")
def test_a_closed_pipe_ends_the_command_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "walpool", "env"]
    done = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_version_names_walpool_and_its_sqlite(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"walpool {version('walpool')} (SQLite {walpool.sqlite_version})\n"


def test_a_group_with_a_default_needs_no_command_named() -> None:
    group = cli.Group("look", "looks", (fake_command(ConfigError("fake ran")),), default="fake")
    assert group.completed(["a.db"]) == ["fake", "a.db"]
    assert group.completed(["--json"]) == ["fake", "--json"]
    assert group.completed([]) == ["fake"]
    assert group.completed(["fake", "a.db"]) == ["fake", "a.db"]
    assert group.completed(["--help"]) == ["--help"]
    assert cli.main(["look"], (group,)) == 2


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["env", "--unknown"], ["env", "a.db", "b.db"], ["import"]])
def test_wrong_arguments_are_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: walpool" in capsys.readouterr().err


def test_every_command_has_json_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        inner = command.commands if isinstance(command, cli.Group) else ()
        for words, help_, has_json in [
            ([command.name], command.help, not inner),
            *(([command.name, each.name], each.help, True) for each in inner),
        ]:
            with pytest.raises(SystemExit):
                cli.main([*words, "--help"])
            output = capsys.readouterr().out
            assert ("--json" in output) == has_json
            assert help_ in " ".join(output.split())


def test_a_command_imports_only_what_it_needs() -> None:
    code = "import sys, walpool.cli; walpool.cli.main(['env']); sys.exit('walpool.memory' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60).returncode == 0


def test_env_touches_no_database(tmp_path: Path) -> None:
    done = run("env", str(tmp_path / "a.db"))
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


# walpool doctor


def test_doctor_says_which_locks_this_machine_has(tmp_path: Path) -> None:
    done = run("doctor", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert (done.returncode, findings["SQLite"]["verdict"]) == (0, "ok")
    assert walpool.sqlite_version in findings["SQLite"]["said"]
    assert (findings["file locks"]["verdict"] == "ok") == sys.platform.startswith(("linux", "darwin"))


def test_doctor_warns_where_locks_belong_to_the_process(tmp_path: Path) -> None:
    done = run("doctor", **environment_with("posix_locks", tmp_path))
    assert done.returncode == 0
    assert "warning  file locks" in done.stdout


def test_doctor_checks_a_database(database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    database.chmod(0o644)
    done = run("doctor", str(database))
    verdicts = {line[9:21].strip(): line[:8].strip() for line in done.stdout.splitlines()}
    assert done.returncode == 0
    assert (verdicts["integrity"], verdicts["WAL"], verdicts["permissions"]) == ("ok", "ok", "warning")


def test_doctor_of_a_damaged_database_fails(database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (a); CREATE INDEX i ON t (a)")
        pool.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(2000)])
    content = bytearray(database.read_bytes())
    content[8192:8292] = bytes(100)  # the beginning of a page: nothing reads it as a b-tree any more
    database.write_bytes(content)
    done = run("doctor", str(database))
    assert done.returncode == 1
    assert "bad      integrity" in done.stdout
    assert "the database is damaged" in done.stderr


def test_doctor_makes_no_file(database: Path) -> None:
    done = run("doctor", str(database))
    assert (done.returncode, database.exists()) == (1, False)
    assert "there is no file" in done.stderr
