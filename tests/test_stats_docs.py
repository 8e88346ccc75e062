"""The table of `stats()` in docs/operations.md is the engine's own; `python tests/test_stats_docs.py` renews it."""

from __future__ import annotations

import re
from pathlib import Path

from walpool import _core

HOME = Path(__file__).parents[1] / "docs" / "operations.md"
MARKERS = re.compile(r"(?<=<!-- stats -->\n).*?(?=<!-- /stats -->)", re.DOTALL)


def documented_stats() -> str:
    """Return the table as the page must have it; a figure's percentiles and peak share its row, errors have one."""
    rows: dict[str, str] = {}
    for key, meaning in _core.stat_keys():
        if key.startswith("errors_"):
            rows["`errors_<class>`"] = f"{meaning}, one key for each class of `walpool.errors`"
        elif key.endswith("_p50"):
            rows[f"`{key}`, `_p99`"] = meaning
        elif key.endswith("_p99"):
            continue
        elif key.endswith("_peak"):
            name = key.removesuffix("_peak")
            rows = {(f"`{name}`, `_peak`" if row == f"`{name}`" else row): said for row, said in rows.items()}
        else:
            rows[f"`{key}`"] = meaning
    return "| key | meaning |\n|---|---|\n" + "".join(f"| {key} | {meaning} |\n" for key, meaning in rows.items())


def test_the_table_of_stats_is_the_engines() -> None:
    assert MARKERS.findall(HOME.read_text(encoding="utf-8")) == [documented_stats()], f"run: python {__file__}"


if __name__ == "__main__":
    page = HOME.read_text(encoding="utf-8")
    HOME.write_text(MARKERS.sub(lambda _: documented_stats(), page), encoding="utf-8")
