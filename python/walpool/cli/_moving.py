"""What copies into a database print: what came of each part of it, and what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from walpool.cli._command import Failed
from walpool.cli._screen import harmless, print_json

if TYPE_CHECKING:
    from walpool.copying import Part, Report

__all__ = ["print_report"]

_SHOWN = 20  # differences of a part that are printed; --json has all of them
_DIGITS = 12  # of a checksum


def print_report(report: Report, *, as_json: bool) -> None:
    """Print what came of a copy.

    Raises:
        Failed: something is not in the target as it is in the source; it was printed.
    """
    if as_json:
        print_json(report.as_dict())
    else:
        for part in report.parts:
            _print_part(part, report)
        print(_summary(report))
    number = sum(len(part.differences) for part in report.parts)
    if number or not report.is_verified:
        raise Failed(f"{number} of the source are not in the target as they are there")


def _print_part(part: Part, report: Report) -> None:
    counts = [f"{part.found} found", f"{part.added} {'to add' if report.is_dry else 'added'}"]
    counts += [f"{part.present} there already"] if part.present else []
    counts += [f"{part.superseded} superseded"] if part.superseded else []
    counts += [f"{len(part.differences)} differ"] if part.differences else []
    checked = f"; {part.stored.count} read back, checksum {str(part.stored)[:_DIGITS]}" if part.stored.count else ""
    print(f"{harmless(part.table)}: {', '.join(counts)}{checked if part.is_verified else ''}")
    print(f"  {harmless(part.source)}")
    for note in part.notes:
        print(f"  {harmless(note)}")
    for subject, said in part.differences[:_SHOWN]:
        print(f"  {harmless(subject)}: {harmless(said)}")
    if len(part.differences) > _SHOWN:
        print(f"  and {len(part.differences) - _SHOWN} more: --json lists them")


def _summary(report: Report) -> str:
    target = harmless(report.target)
    if report.is_dry:
        return f"{report.added} would be added to {target}; nothing was written"
    return f"{report.added} added to {target}" if report.added else f"nothing new for {target}"
