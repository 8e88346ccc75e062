"""`walpool export`, `walpool import FILE` and what they stand on: every record comes back to the bit, or is named."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import walpool.memory
import walpool.schema
from walpool import cli
from walpool.copying import canonical
from walpool.errors import ConfigError, DataError
from walpool.interchange import export_memory, import_memory
from walpool.memory import Query, Record, pack

FORMATS = ("jsonl", "jsonl.gz", "parquet")
UTC = timezone.utc
DAY = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
NUL_TEXTS = [("n\0", "a"), ("text", "a\0"), ("fine", "a")]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
times = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
vectors = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)
records = st.builds(
    Record,
    id=names,
    content=texts,
    scope=names.map(lambda name: f"/{name}"),
    categories=st.lists(names, max_size=3, unique=True).map(tuple),
    metadata=st.dictionaries(names, json_values, max_size=3),
    importance=st.floats(0, 1),
    created_at=times,
    accessed_at=times,
    embedding=st.none() | vectors.map(pack),
    source=st.none() | names,
    private=st.booleans(),
)


def fill(database: Path, given_records: Iterable[Record], **collection: str) -> None:
    with walpool.memory.open(database, **collection) as store:
        store.save(given_records)


def held(database: Path, **collection: str) -> dict[str, bytes]:
    with walpool.memory.open(database, **collection) as store:
        return {record.id: canonical(record) for record in store.iterate()}


def some(number: int = 5) -> list[Record]:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Record(
            id=f"id {n}",
            content=f"line\n{n} é 猫",
            scope=f"/a/{n % 2}",
            categories=("x", f"ü{n}"),
            metadata={"n": n, "d": {"e": [1, 1.0, True, None]}},
            created_at=at + timedelta(microseconds=n),
            accessed_at=at,
            embedding=pack([n, -0.0, 1e-45, 3.4e38]) if n else None,
            source="me",
        )
        for n in range(number)
    ]


def skip_without_pyarrow(suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(records, max_size=8, unique_by=lambda record: record.id))
def test_every_record_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, found: list[Record]
) -> None:
    skip_without_pyarrow(suffix)
    folder = tmp_path_factory.mktemp("trip")
    fill(folder / "a.db", found)
    exported = export_memory(folder / "a.db", folder / f"m.{suffix}")
    assert exported.records == len(found)
    report = import_memory(folder / f"m.{suffix}", folder / "b.db")
    assert report.is_verified
    assert report.added == len(found)
    assert held(folder / "b.db") == held(folder / "a.db") == {record.id: canonical(record) for record in found}
    again = export_memory(folder / "b.db", folder / f"n.{suffix}")
    assert again.checksum == exported.checksum


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(records, max_size=4, unique_by=lambda record: record.id))
def test_lists_of_numbers_come_back_to_the_bit_too(
    tmp_path_factory: pytest.TempPathFactory, found: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    fill(folder / "a.db", found)
    export_memory(folder / "a.db", folder / "m.jsonl", as_lists=True)
    assert import_memory(folder / "m.jsonl", folder / "b.db").is_verified
    assert held(folder / "b.db") == held(folder / "a.db")


@pytest.mark.parametrize("suffix", FORMATS)
def test_collections_of_tenants_keep_apart_and_can_be_chosen(tmp_path: Path, database: Path, suffix: str) -> None:
    skip_without_pyarrow(suffix)
    fill(database, some())
    fill(database, [Record(id="id 1", content="of a tenant", embedding=pack([1, 2]))], tenant="ten/ant")
    fill(database, [Record(id="c", content="猫だ")], tenant="ten/ant", collection="other", words="trigram")
    file = tmp_path / f"m.{suffix}"
    report = export_memory(database, file)
    assert report.collections == {("", "memory"): 5, ("ten/ant", "memory"): 1, ("ten/ant", "other"): 1}
    copied = import_memory(file, tmp_path / "b.db")
    assert copied.is_verified
    assert [part.table for part in copied.parts] == ["memory", "ten/ant/memory", "ten/ant/other"]
    found = walpool.memory.collections(tmp_path / "b.db")
    assert [(each.tenant, each.collection, each.words, each.dims, each.records) for each in found] == [
        ("", "memory", "unicode61", 4, 5),
        ("ten/ant", "memory", "unicode61", 2, 1),
        ("ten/ant", "other", "trigram", None, 1),
    ]
    assert held(tmp_path / "b.db", tenant="ten/ant") == held(database, tenant="ten/ant")
    assert export_memory(database, file, tenants=["ten/ant"], collections=["other"]).records == 1
    export_memory(database, file)
    assert import_memory(file, tmp_path / "c.db", collections=["memory"]).added == 6


@pytest.mark.parametrize("suffix", FORMATS)
def test_import_run_again_adds_nothing_and_leaves_alone_what_differs_unless_told(
    tmp_path: Path, database: Path, suffix: str
) -> None:
    skip_without_pyarrow(suffix)
    fill(database, some())
    file, target = tmp_path / f"m.{suffix}", tmp_path / "b.db"
    export_memory(database, file)
    assert import_memory(file, target).added == 5
    again = import_memory(file, target)
    assert (again.added, again.is_verified, again.parts[0].present) == (0, True, 5)
    with walpool.memory.open(target) as store:
        store.update("id 2", content="ours")
        store.update("id 0", embedding=pack([1, 1, 1, 1]))
        store.touch(["id 3"])
    differing = import_memory(file, target)
    assert {difference.subject for difference in differing.parts[0].differences} == {"record 'id 0'", "record 'id 2'"}
    assert differing.parts[0].present == 3
    assert import_memory(file, target, overwrite=True).is_verified
    with walpool.memory.open(target) as store:
        assert store.get("id 2").content == "line\n2 é 猫"  # type: ignore[union-attr]
        assert store.get("id 0").embedding is None  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", FORMATS)
def test_file_that_was_cut_off_anywhere_is_refused_whole(tmp_path: Path, database: Path, suffix: str) -> None:
    skip_without_pyarrow(suffix)
    fill(database, some())
    export_memory(database, tmp_path / f"m.{suffix}")
    content = (tmp_path / f"m.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    ends = {0, 1, len(content) - 2, *range(3, len(content), max(1, len(content) // 40))}
    if suffix == "jsonl":
        ends |= {place + 1 for place, byte in enumerate(content[:-1]) if byte == ord("\n")}
    for end in sorted(ends - {0}):
        cut.write_bytes(content[:end])
        with pytest.raises(DataError):
            import_memory(cut, tmp_path / "b.db")
    assert not (tmp_path / "b.db").exists()


@pytest.mark.parametrize("change", [(b"line", b"lime"), (b'"private":false', b'"private":true'), (b"/a/1", b"/a/2")])
def test_file_that_was_changed_is_refused(tmp_path: Path, database: Path, change: tuple[bytes, bytes]) -> None:
    fill(database, some())
    export_memory(database, tmp_path / "m.jsonl")
    content = (tmp_path / "m.jsonl").read_bytes()
    (tmp_path / "m.jsonl").write_bytes(content.replace(*change, 1))
    with pytest.raises(DataError, match="checksum differs"):
        import_memory(tmp_path / "m.jsonl", tmp_path / "b.db")


def test_file_of_another_program_needs_no_head_and_says_which_lines_cannot_be_taken(
    tmp_path: Path, database: Path
) -> None:
    lines: list[Any] = [
        {"id": "a", "content": "é", "created_at": "2026-01-01T00:00:00Z", "embedding": [1, 2.5], "unknown": 1},
        {"id": "no time", "content": "x"},
        {"id": "surrogate", "content": "\ud800", "created_at": "2026-01-01T00:00:00"},
        {"id": "dims", "content": "x", "created_at": "2026-01-01T00:00:00", "embedding": [1]},
        {"id": "nan", "content": "x", "created_at": "2026-01-01T00:00:00", "embedding": [1, float("nan")]},
        {"id": 5, "content": "x", "created_at": "2026-01-01T00:00:00"},
        {"id": "vector", "content": "x", "created_at": "2026-01-01T00:00:00", "embedding": "é"},
        {"id": "b", "content": "x", "created_at": "2026-01-01T00:00:00+02:00", "scope": "a/b", "importance": 1},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = import_memory(tmp_path / "m.jsonl", database)
    assert not report.has_end
    assert report.added == 2
    named = {difference.subject for difference in report.parts[0].differences}
    assert named == {f"record {name!r}" for name in ("no time", "surrogate", "dims", "nan", "5", "vector")}
    with walpool.memory.open(database) as store:
        assert [record.id for record in store.list(Query())] == ["a", "b"]
    assert import_memory(tmp_path / "m.jsonl", database).added == 0


def test_parquet_has_the_columns_that_others_expect(tmp_path: Path, database: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    fill(database, some())
    export_memory(database, tmp_path / "m.parquet")
    table = parquet.read_table(tmp_path / "m.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types["embedding"] == "fixed_size_list<element: float>[4]"
    assert types["created_at"] == types["accessed_at"] == "timestamp[us, tz=UTC]"
    assert types["metadata"] == "string"
    assert types["categories"] == "list<element: string>"
    rows = table.to_pylist()
    assert rows[2]["embedding"] == array("f", [2, -0.0, 1e-45, 3.4e38]).tolist()
    assert rows[0]["embedding"] is None
    assert json.loads(rows[2]["metadata"]) == {"n": 2, "d": {"e": [1, 1.0, True, None]}}
    assert rows[2]["created_at"] == datetime(2026, 1, 1, 0, 0, 0, 2, tzinfo=UTC)
    fill(database, [Record(id="x", content="", embedding=pack([1, 2]))], collection="two dims")
    export_memory(database, tmp_path / "m.parquet")
    assert str(parquet.read_schema(tmp_path / "m.parquet").field("embedding").type) == "list<element: float>"


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, some())
    file = tmp_path / "m.parquet"
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"pip install 'walpool\[export\]'"):
        export_memory(database, file)
    assert not list(tmp_path.glob("*.part"))
    file.touch()
    with pytest.raises(ConfigError, match=r"pip install 'walpool\[export\]'"):
        import_memory(file, database)


@pytest.mark.parametrize("suffix", FORMATS)
def test_file_appears_whole_or_not_at_all(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    skip_without_pyarrow(suffix)
    fill(database, some())
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / f"m.{suffix}"
    file.write_text("before")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_memory(database, file, progress=lambda done, total, what: interrupted() if done > 2 else None)
    assert [entry.read_text() for entry in (tmp_path / "out").iterdir()] == ["before"]
    export_memory(database, file)
    one = file.read_bytes()
    export_memory(database, file)
    assert file.read_bytes() == one
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_export_needs_a_database_and_another_file(tmp_path: Path, database: Path) -> None:
    with pytest.raises(ConfigError, match="no database to export"):
        export_memory(tmp_path / "none.db", tmp_path / "m.jsonl")
    assert not (tmp_path / "none.db").exists()
    fill(database, some())
    before = database.read_bytes()
    with pytest.raises(ConfigError, match="another one than its database"):
        export_memory(database, database, format="jsonl")
    with pytest.raises(ConfigError, match="another one than its database"):
        import_memory(database, database, format="jsonl")
    with pytest.raises(ConfigError, match=r"ends in \.jsonl"):
        export_memory(database, tmp_path / "m.csv")
    assert database.read_bytes() == before


def test_export_takes_as_long_as_it_takes(
    tmp_path: Path, large: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WALPOOL_TRANSACTION_TIMEOUT", "0.05")
    database, number = large
    assert export_memory(database, tmp_path / "m.jsonl").records == number
    with walpool.Pool(database, transaction_timeout=0.05), pytest.raises(walpool.errors.TransactionTimeout):
        export_memory(database, tmp_path / "m.jsonl.gz")
    assert not (tmp_path / "m.jsonl.gz").exists()


# The command line


def walpool_command(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "walpool", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, timeout=55, check=False)


def test_commands_pass_memories_through_a_pipe(tmp_path: Path, database: Path) -> None:
    fill(database, some())
    out = walpool_command("export", database)
    assert out.returncode == 0
    assert out.stderr.startswith(b"5 records to standard output; checksum ")
    assert len(out.stdout.splitlines()) == 7
    for content in (out.stdout, gzip.compress(out.stdout)):
        target = tmp_path / f"{len(content)}.db"
        back = walpool_command("import", "-", target, given=content)
        assert back.returncode == 0, back.stderr
        assert held(target) == held(database)
    cut = walpool_command("import", "-", tmp_path / "cut.db", given=out.stdout[:-1000])
    assert cut.returncode == 2
    assert b"cut off" in cut.stderr


def test_commands_print_what_they_did_and_exit_as_documented(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(database, some())
    file, target = str(tmp_path / "m.jsonl.gz"), str(tmp_path / "b.db")
    assert cli.main(["export", str(database), "--to", file]) == 0
    assert capsys.readouterr().out.startswith(f"memory: 5 records\n5 records to {file}, read again; checksum ")
    assert cli.main(["import", file, target, "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith(f"5 would be added to {target}; nothing was written\n")
    assert not Path(target).exists()
    assert cli.main(["import", file, target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"][0]["stored"]["count"] == 5
    assert cli.main(["import", "file", file, target]) == 0
    assert capsys.readouterr().out.endswith(f"nothing new for {target}\n")
    with walpool.memory.open(target) as store:
        store.update("id 1", content="other")
    assert cli.main(["import", file, target]) == 1
    assert "record 'id 1': the target has it with other content: left alone" in capsys.readouterr().out
    assert cli.main(["import", str(tmp_path / "none.jsonl"), target]) == 2
    assert cli.main(["export", str(tmp_path / "none.db")]) == 2
    assert cli.main(["export", str(database), "--to", str(tmp_path / "m.txt")]) == 2


def test_command_shows_progress_on_a_terminal_with_rich_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from walpool.cli._screen import progress_of_each

    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "rich.progress", None)  # type: ignore[arg-type]
    with progress_of_each(False) as show:
        assert show is not None
        show(1, 0, "reading\x1b")
        show(3, 3, "copying")
    assert terminal.getvalue() == "\rreading\\x1b: 1\rcopying: 3/3\n"
    monkeypatch.delitem(sys.modules, "rich.progress")
    pytest.importorskip("rich")
    with progress_of_each(False) as show:
        assert show is not None
        for done, what in ((0, "one"), (2, "one"), (0, "one"), (1, "two")):
            show(done, 2, what)
    assert "2/2" in terminal.getvalue()


# Much


@pytest.mark.crash
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_import_that_was_killed_and_run_again_ends_as_one_that_was_not(
    tmp_path: Path, database: Path, torture: Any
) -> None:
    fill(database, some(40))
    export_memory(database, tmp_path / "m.jsonl")
    program = """
import os, signal, sys
import walpool.copying._records as records
from walpool.interchange import import_memory
records._CHUNK = 5
def kill(done, total, what):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
import_memory(sys.argv[1], sys.argv[2], progress=kill)
"""
    for place in torture.size((10,), (1, 10, 20, 30, 45, 79)):
        target = tmp_path / f"{place}.db"
        command = [sys.executable, "-c", program, str(tmp_path / "m.jsonl"), str(target), str(place)]
        assert subprocess.run(command, check=False, timeout=55).returncode == -signal.SIGKILL
        report = import_memory(tmp_path / "m.jsonl", target)
        assert report.is_verified
        assert 0 <= report.added < 40
        assert held(target) == held(database)


DIMS = 256


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> tuple[Path, int]:
    """Return a database of many records, and how many."""
    database = tmp_path_factory.mktemp("large") / "test.db"
    number = 100_000 if pytestconfig.getoption("--torture") else 3_000
    with walpool.memory.open(database, synchronous="normal") as store:
        for start in range(0, number, 500):
            store.save(
                Record(id=str(n), content=f"content {n}", embedding=pack([n % 97 + 1.0] * DIMS))
                for n in range(start, start + 500)
            )
    return database, number


@pytest.mark.torture
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
@pytest.mark.parametrize("suffix", FORMATS)
def test_memory_does_not_grow_with_the_number_of_records(
    tmp_path: Path, large: tuple[Path, int], torture: Any, suffix: str
) -> None:
    skip_without_pyarrow(suffix)
    database, number = large
    program = """
import resource, sys
from walpool.interchange import export_memory, import_memory
one, file, other, sixth = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def mark(done, total, what):
    if done and done % int(sixth) == 0:
        marks.append(peak())
for work in (lambda: export_memory(one, file, progress=mark), lambda: import_memory(file, other, progress=mark)):
    marks = []
    work()
    print(peak() - marks[0])
"""
    arguments = [str(database), str(tmp_path / f"m.{suffix}"), str(tmp_path / "b.db"), str(number // 6)]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=torture.size(55, 3000), check=False)
    assert done.returncode == 0, done.stderr
    grown = [float(line) for line in done.stdout.splitlines()]  # MiB, from a sixth of the work to its end
    # A few batches, and what allocators keep; all embeddings of the full size are 98 MiB.
    assert max(grown) < 48


# PostgreSQL


@pytest.mark.postgres
def test_memories_go_into_a_server_and_come_back_to_the_bit(tmp_path: Path, database: Path, postgres_url: str) -> None:
    some = [
        Record(id="1", content="a", embedding=pack([0.1, -0.0, 1e-45]), created_at=DAY, metadata={"k": [1, None]}),
        Record(id="2", content="b", created_at=DAY),
    ]
    fill(database, some)
    fill(database, some[1:], tenant="ann", collection="notes")
    export_memory(database, tmp_path / "out.jsonl")
    report = import_memory(tmp_path / "out.jsonl", postgres_url)
    assert (report.added, report.is_verified) == (3, True)
    assert import_memory(tmp_path / "out.jsonl", postgres_url).added == 0
    export_memory(postgres_url, tmp_path / "back.jsonl")
    assert sorted((tmp_path / "back.jsonl").read_text().splitlines()[1:-1]) == sorted(
        (tmp_path / "out.jsonl").read_text().splitlines()[1:-1]
    )


@pytest.mark.postgres
def test_record_that_postgresql_cannot_hold_is_named_and_the_rest_goes_on(tmp_path: Path, postgres_url: str) -> None:
    lines = [{"id": name, "content": content, "created_at": DAY.isoformat()} for name, content in NUL_TEXTS]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = import_memory(tmp_path / "in.jsonl", postgres_url)
    assert [difference.subject for difference in report.parts[0].differences] == [r"record 'n\x00'", "record 'text'"]
    assert report.added == 1


@pytest.mark.postgres
def test_dry_run_makes_no_table_and_the_command_prints_no_password(
    tmp_path: Path, database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(database, [Record(id="1", content="a", created_at=DAY)])
    export_memory(database, tmp_path / "out.jsonl")
    url = postgres_url.replace("@", ":geheim@", 1)
    for place in (url, str(tmp_path / "other.db")):
        with walpool.get_pool(place) as pool:
            pool.execute("CREATE TABLE mine (a INTEGER)")
        assert cli.main(["import", str(tmp_path / "out.jsonl"), place, "--dry-run"]) == 0
        printed = capsys.readouterr()
        assert "1 would be added to " in printed.out
        assert "geheim" not in printed.out + printed.err
        assert walpool.memory.collections(place) == []
        with walpool.get_pool(place) as pool:
            assert walpool.schema.version(pool, "memory") == 0
