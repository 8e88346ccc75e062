"""The ```python blocks of README.md and docs/ run, each page as one program in a folder of its own; no link is dead."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What pages and blocks with such a word need; for langgraph a package beside it: tests/langgraph passes for its own.
FRAMEWORKS = {
    "crewai": "crewai",
    "langgraph": "langchain_core",
    "openai-agents": "agents",
    "agents import": "agents",
    "WalpoolSession": "agents",
}
MISSING = {word for word, package in FRAMEWORKS.items() if importlib.util.find_spec(package) is None}
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
TIME_LIMIT = 120  # seconds; to import crewai for the first time compiles all of it


SERVER = "postgresql://app@db.example/agents"  # of examples; a new database, whose URL has a query, stands for it


def program(page: Path, folder: Path) -> str:
    """Return the page with every line blank that is no Python, so that a traceback names the page's own lines.

    Absolute paths in examples (`/srv/agents.db`) are moved into `folder`. Pages and blocks on a framework are left out
    where it is not installed.
    """
    lines, block = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        if block is not None and line.startswith("```"):
            runs = not any(word == page.stem or word in "".join(block) for word in MISSING)
            lines += [*(block if runs else [""] * len(block)), ""]
            block = None
        elif block is not None:
            block.append(re.sub(r"(?<![\w.])/srv/", f"{folder}/", line))
        elif line.startswith("```python"):
            lines, block = [*lines, ""], []
        else:
            lines.append("")
    assert block is None, f"{page.name}: a block of code has no end"
    return "\n".join(lines) + "\n"


@pytest.mark.timeout(TIME_LIMIT + 10)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    script = tmp_path / f"page_{page.stem}.py"  # crewai.py would pass for the package
    text = program(page, tmp_path)
    if SERVER in text:
        text = text.replace(f"{SERVER}?", f"{SERVER}&").replace(SERVER, request.getfixturevalue("postgres_url"))
    script.write_text(text, encoding="utf-8")
    settings = {name for name in os.environ if name.startswith("WALPOOL_")}
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    environment |= {"HOME": str(tmp_path), "CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false"}
    done = subprocess.run(
        # The second filter is pyproject.toml's, with its reason.
        [sys.executable, "-W", "error", "-W", "ignore:Cannot set an attribute on:ImportWarning", str(script)],
        check=False,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(bool(MISSING), reason="blocks are left out")
def test_pages_have_code() -> None:
    assert all(program(page, ROOT).strip() for page in PAGES if page.stem not in MISSING)


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "CHANGELOG.md", ROOT / ".github" / "CONTRIBUTING.md", ROOT / "src" / "DESIGN.md"],
    ids=lambda page: page.name,
)
def test_page_links_to_files_that_exist(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
