"""The floors of the building: a module uses only modules on lower floors, and neighbours do not know each other.

The tables below are the design (src/DESIGN.md draws them): a new module has its place in them, or these tests fail, and
to change them is to change the design. A folder is one module, but for `memory`, whose files have floors of their own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUST_ROOT = ROOT / "src"
PYTHON_ROOT = ROOT / "python" / "walpool"

RUST_FLOORS = {
    "bindings": 9,
    "engine": 8,
    "workers": 7,
    "reader": 6,
    "writer": 6,
    "backup": 5,
    "checkpoint": 5,
    "group_commit": 5,
    "connection": 4,
    "functions": 3,
    "locking": 2,
    "log": 2,
    "sketches": 2,
    "caller": 1,
    "config": 1,
    "files": 1,
    "grouping": 1,
    "key_set": 1,
    "revocable": 1,
    "stats": 1,
    "value": 1,
    "vector": 1,
    "error": 0,
    "sync": 0,
}

PYTHON_FLOORS = {
    "__main__": 15,
    "cli": 14,
    "crewai": 13,
    "interchange": 13,
    "langgraph": 13,
    "openai_agents": 13,
    "doctor": 13,
    "memory": 12,
    "memory.postgres": 11,
    "memory._postgres_needs": 10,
    "memory._postgres_roles": 10,
    "memory._postgres_hnsw": 9,
    "memory._postgres_upkeep": 9,
    "memory._spaces": 8,
    "memory.sqlite": 8,
    "memory._postgres_search": 8,
    "memory._postgres_writes": 8,
    "memory._sqlite_search": 7,
    "memory._sqlite_upkeep": 7,
    "memory._sqlite_writes": 7,
    "memory._postgres_sql": 7,
    "copying": 6,
    "migrating": 6,
    "memory._sqlite_matches": 6,
    "memory._sqlite_schema": 6,
    "memory._sqlite_sql": 6,
    "memory._postgres_filters": 6,
    "walpool": 5,  # the list of names: those above may use it, those whose names it lists may not
    "memory._store": 5,
    "memory._sqlite_filters": 5,
    "memory._postgres_marks": 5,
    "memory._columns": 4,
    "memory._search": 4,
    "memory._postgres_vectors": 4,
    "memory.contract": 4,
    "registry": 4,
    "schema": 4,
    "memory._rows": 3,
    "memory._postgres_words": 3,
    "aio": 3,
    "pool": 3,
    "postgres": 3,
    "memory._operations": 2,
    "memory._ranking": 2,
    "memory._sqlite_rows": 2,
    "memory._sqlite_words": 2,
    "memory._postgres_schema": 2,
    "desk": 2,
    "holds": 2,
    "settings": 2,
    "memory._pages": 1,
    "memory._sqlite_values": 1,
    "memory._words": 1,
    "memory.conditions": 1,
    "memory.records": 1,
    "_core": 1,
    "memory._html": 0,
    "errors": 0,
    "types": 0,
}

# Who may name a package of somebody else's; `lib.rs` is the root, which lists modules and has no logic.
RUST_PACKAGES = {
    "pyo3": {"bindings", "lib"},
    "r2d2": {"reader"},
    "r2d2_sqlite": {"reader"},
    "scheduled_thread_pool": {"reader"},
    "rusqlite": {"backup", "connection", "error", "functions", "locking", "value"},
}
PYTHON_PACKAGES = {
    "agents": {"openai_agents"},
    "crewai": {"crewai"},
    "crewai_core": {"crewai"},
    "lancedb": {"crewai"},  # to read what CrewAI stored in it
    "langchain_core": {"langgraph"},
    "langgraph": {"langgraph"},
    "ormsgpack": {"langgraph"},
    "psycopg": {"postgres"},
    "pyarrow": {"interchange"},
    "pydantic": {"crewai"},
    "pydantic_core": {"crewai"},
    "qdrant_edge": {"crewai"},
    "rich": {"cli"},
    # For the classes that ours derive from; and to read what others wrote. A file of walpool's is never opened with it.
    "sqlite3": {"copying", "errors"},
}

LONGEST_FILE = 700  # lines; a longer one says "Long, because ..." in its first lines
HEAD = 12  # lines

RUST_SILENT = re.compile(
    r"""//[^\n]* | /\*.*?\*/                       # comments
      | r(?P<hashes>\#*)".*?"(?P=hashes)           # raw strings
      | b?"(?:\\.|[^"\\])*"                        # strings
      | b?'(?:\\[^\n]+?|[^'\\\n])'                 # characters, not lifetimes
    """,
    re.VERBOSE | re.DOTALL,
)
RUST_TEST_MODULE = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*mod\s+\w+\s*\{")
RUST_INLINE_MODULE = re.compile(r"\bmod\s+\w+\s*\{")
RUST_PATH = re.compile(r"\b(?P<start>crate|super(?:\s*::\s*super)*)\s*::\s*(?P<rest>\{|\w+)")


def rust_files() -> list[Path]:
    return sorted(RUST_ROOT.rglob("*.rs"))


def rust_module_path(file: Path) -> tuple[str, ...]:
    """Return ("connection", "guard") for src/connection/guard.rs, ("connection",) for its mod.rs, () for lib.rs."""
    parts = file.relative_to(RUST_ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] in ("mod", "lib") else parts


def rust_code(file: Path) -> str:
    """Return the text of a file without comments, strings and `#[cfg(test)]` modules."""
    code = RUST_SILENT.sub(" ", file.read_text(encoding="utf-8"))
    while found := RUST_TEST_MODULE.search(code):
        code = code[: found.start()] + code[closing_brace(code, found.end()) :]
    return code


def closing_brace(code: str, start: int) -> int:
    """Return the index after the brace that closes the one before `start`."""
    depth = 1
    for index in range(start, len(code)):
        depth += {"{": 1, "}": -1}.get(code[index], 0)
        if depth == 0:
            return index + 1
    raise AssertionError("a brace is not closed")


def names_in_group(code: str, start: int) -> Iterator[str]:
    """Yield `a` and `b` of the group `{a::X, b::{Y, Z}}` whose opening brace ends at `start`."""
    group = code[start : closing_brace(code, start) - 1]
    while "{" in group:
        group = re.sub(r"\{[^{}]*\}", "", group)
    for entry in group.split(","):
        if name := re.match(r"\s*(\w+)", entry):
            yield name[1]


def rust_uses(file: Path) -> set[str]:
    """Return the names directly under the crate's root that the file names outside its tests."""
    here, code = rust_module_path(file), rust_code(file)
    inline = [(start.start(), closing_brace(code, start.end())) for start in RUST_INLINE_MODULE.finditer(code)]
    found: set[str] = set()
    for path in RUST_PATH.finditer(code):
        depth = len(here) + sum(start < path.start() < end for start, end in inline)
        climbed = path["start"].count("super")
        if climbed and climbed != depth:
            continue  # `super` that stays in the file or its folder
        found |= set(names_in_group(code, path.end())) if path["rest"] == "{" else {path["rest"]}
    return found


def test_every_rust_module_has_a_floor() -> None:
    assert {rust_module_path(file)[0] for file in rust_files() if rust_module_path(file)} == set(RUST_FLOORS)


@pytest.mark.parametrize("file", rust_files(), ids=lambda file: str(file.relative_to(RUST_ROOT)))
def test_rust_module_uses_only_lower_floors(file: Path) -> None:
    if not (path := rust_module_path(file)):
        return  # lib.rs lists them all
    uses = rust_uses(file) - {path[0]}
    not_lower = {name for name in uses if RUST_FLOORS.get(name, 99) >= RUST_FLOORS[path[0]]}
    assert not not_lower, f"{path[0]} stands on floor {RUST_FLOORS[path[0]]}"


@pytest.mark.parametrize("package", RUST_PACKAGES)
def test_rust_package_is_named_only_where_its_knowledge_lives(package: str) -> None:
    naming = {(rust_module_path(f) or ("lib",))[0] for f in rust_files() if re.search(rf"\b{package}\b", rust_code(f))}
    assert naming <= RUST_PACKAGES[package]


def test_rust_reader_of_this_test_sees_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "RUST_ROOT", tmp_path)
    (tmp_path / "writer").mkdir()
    file = tmp_path / "writer" / "lease.rs"
    file.write_text(
        """
        use crate::{error::Error, value::{Params, Rows}};
        use super::queue::Ticket; // use crate::comment::X
        use super::super::stats;
        const TEXT: &str = "crate::text::X \\" }"; const BRACE: char = '}';
        fn f<'a>(x: &'a str) { crate::log::log(r#"crate::raw::X"#) }
        #[cfg(test)]
        mod tests { use crate::engine::Engine; fn f() { if true {} } }
        fn g() { crate::caller::g() }
        mod inner { use super::super::queue::X; use super::super::super::config::Config; }
        """
    )
    assert rust_uses(file) == {"error", "value", "stats", "log", "caller", "config"}


def python_files() -> list[Path]:
    return sorted([*PYTHON_ROOT.rglob("*.py"), *PYTHON_ROOT.rglob("*.pyi")])


def python_module(file: Path) -> str:
    """Return the key of PYTHON_FLOORS under which a file stands."""
    parts = file.relative_to(PYTHON_ROOT).with_suffix("").parts
    return floor_key("walpool." + ".".join(part for part in parts if part != "__init__"))


def floor_key(dotted: str) -> str:
    """Return the key for the dotted name of a module or of something in it: the longest part of it that is a module."""
    parts = dotted.removeprefix("walpool").strip(".").split(".")
    if parts[0] == "memory" and len(parts) > 1 and is_python_module("memory", parts[1]):
        return ".".join(parts[:2])
    return parts[0] if is_python_module(parts[0]) else "walpool"  # in the package's own list of names


def is_python_module(*parts: str) -> bool:
    path = PYTHON_ROOT.joinpath(*parts)
    exists = any(candidate.exists() for candidate in (path, path.with_suffix(".py"), path.with_suffix(".pyi")))
    return bool(parts[-1]) and (exists or ".".join(parts) in PYTHON_FLOORS)


@cache  # each file is asked for by each package
def python_imports(file: Path) -> tuple[str, ...]:
    """Return the dotted name of each thing that the file imports, anywhere in it; each `from a import b` is `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def test_every_python_module_has_a_floor() -> None:
    assert {python_module(file) for file in python_files()} == set(PYTHON_FLOORS)


@pytest.mark.parametrize("file", python_files(), ids=lambda file: str(file.relative_to(PYTHON_ROOT)))
def test_python_module_uses_only_lower_floors(file: Path) -> None:
    here = python_module(file)
    uses = {floor_key(name) for name in python_imports(file) if name.split(".")[0] == "walpool"} - {here}
    not_lower = {name for name in uses if PYTHON_FLOORS.get(name, 99) >= PYTHON_FLOORS[here]}
    assert not not_lower, f"{here} stands on floor {PYTHON_FLOORS[here]}"


@pytest.mark.parametrize("file", python_files(), ids=lambda file: str(file.relative_to(PYTHON_ROOT)))
def test_underscored_python_module_is_imported_only_in_its_folder(file: Path) -> None:
    folder = ".".join(("walpool", *file.relative_to(PYTHON_ROOT).parent.parts))
    for name in python_imports(file):
        parts = name.split(".")
        private = [index for index, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
        if parts[0] == "walpool" and private:
            assert ".".join(parts[: private[0]]) in (folder, "walpool"), f"{name} belongs to its folder"


@pytest.mark.parametrize("package", PYTHON_PACKAGES)
def test_python_package_is_named_only_where_its_knowledge_lives(package: str) -> None:
    naming = {python_module(f) for f in python_files() for name in python_imports(f) if name.split(".")[0] == package}
    assert naming <= PYTHON_PACKAGES[package]


SOURCES = [
    *rust_files(),
    *python_files(),
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "benches").rglob("*.py")),
]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_file_has_one_subject(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_FILE or any("Long, because" in line for line in lines[:HEAD])
