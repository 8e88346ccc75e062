"""What is tried many times: shortly in every run, at full length with --torture, and a table of what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import pytest

T = TypeVar("T")


@dataclass
class Torture:
    """How long this run's attempts last, and the tally of what they tried and lost."""

    is_full: bool
    tally: list[tuple[str, int, str, int, str]] = field(default_factory=list)

    def size(self, short: T, full: T) -> T:
        """Return `full` with --torture, else `short`: a number of rounds, seconds, anything."""
        return full if self.is_full else short

    def tell(self, what: str, *, tried: int, unit: str, lost: int, note: str = "") -> None:
        """Enter a line of the table: so many `unit` of `what` were tried, so many acknowledged things were lost.

        A test tells before it asserts, so that the table shows a loss too.
        """
        self.tally.append((what, tried, unit, lost, note))


_TORTURE = pytest.StashKey[Torture]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="run what is tried many times at its full length")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TORTURE] = Torture(is_full=bool(config.getoption("--torture")))


@pytest.fixture
def torture(request: pytest.FixtureRequest) -> Torture:
    """Return the size of this run's attempts, and the place to tell what came of them."""
    return request.config.stash[_TORTURE]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[_TORTURE].tally
    if not tally or not config.stash[_TORTURE].is_full:
        return
    rows = [("what was tried", "how often", "", "lost", "")]
    rows += [(what, f"{tried:,}", unit, f"{lost:,}", note) for what, tried, unit, lost, note in tally]
    wide = [max(len(row[column]) for row in rows) for column in range(5)]
    terminalreporter.section("torture")
    for what, tried, unit, lost, note in rows:
        line = f"{what:<{wide[0]}}  {tried:>{wide[1]}} {unit:<{wide[2]}}  {lost:>{wide[3]}}  {note}"
        terminalreporter.write_line(line.rstrip())
