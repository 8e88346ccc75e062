"""What the index of metadata holds for a JSON value, as SQL; no I/O.

It is made, looked up and compared by the same expressions, so that they cannot disagree.

A row for each top-level key (element 0), and one for each element of a list there (element 1): its kind, and its value.

    kind 0 null     0                    kind 1 true, false     1, 0
    kind 2 number   the number           kind 3 text            the text
    kind 4 list or object: a text that two of them share exactly if they are equal

A number is what SQLite makes of it: beyond 64 bits an integer is the float nearest to it, and NaN, which JSON lacks, is
null. Of a text of more than `LONGEST` bytes it holds the beginning, as a BLOB; whoever finds one compares again.
"""

from __future__ import annotations

from typing import Final

__all__ = ["KINDS", "LONGEST", "full", "kind", "rows", "value"]

LONGEST: Final = 512
"""Bytes of a value in the index."""
_PREFIX: Final = 128

KINDS: Final = {"null": 0, "bool": 1, "number": 2, "text": 3, "json": 4}


def kind(entry: str) -> str:
    """Return the SQL of the kind of `entry`, a row of `json_each`."""
    return (
        f"CASE {entry}.type WHEN 'null' THEN 0 WHEN 'true' THEN 1 WHEN 'false' THEN 1 WHEN 'integer' THEN 2"
        f" WHEN 'real' THEN 2 WHEN 'text' THEN 3 ELSE 4 END"
    )


def full(entry: str) -> str:
    """Return the SQL of the value of `entry`, whole."""
    canonical = _canonical(entry)
    return (
        f"CASE {entry}.type WHEN 'null' THEN 0 WHEN 'array' THEN {canonical} WHEN 'object' THEN {canonical}"
        f" ELSE {entry}.atom END"
    )


def value(entry: str) -> str:
    """Return the SQL of what the index holds of the value of `entry`."""
    canonical = f"(SELECT {_cut('whole')} FROM (SELECT {_canonical(entry)} AS whole))"
    return (
        f"CASE {entry}.type WHEN 'null' THEN 0 WHEN 'array' THEN {canonical} WHEN 'object' THEN {canonical}"
        f" ELSE {_cut(entry + '.atom')} END"
    )


def rows(record: str, source: str = "", condition: str = "true") -> tuple[str, str]:
    """Return the SELECTs of the rows that belong to the metadata of a record (a row's alias, NEW or OLD).

    The first is that of the keys, the second that of the elements of lists; what a list holds twice is there twice.
    """
    columns = "{record}.space, j.key, {element}, {kind}, {value}, {record}.key"
    keys = columns.format(record=record, element=0, kind=kind("j"), value=value("j"))
    elements = columns.format(record=record, element=1, kind=kind("e"), value=value("e"))
    found = f"{source}json_each({record}.metadata) AS j"
    return (
        f"SELECT {keys} FROM {found} WHERE {condition}",
        f"SELECT {elements} FROM {found}, json_each(j.value) AS e WHERE j.type = 'array' AND {condition}",
    )


def _cut(text: str) -> str:
    # A BLOB's prefix rather than a text's: substr() of a text ends at a NUL.
    return f"iif(octet_length({text}) > {LONGEST}, substr(CAST({text} AS BLOB), 1, {_PREFIX}), {text})"


def _canonical(entry: str) -> str:
    """Return the SQL of a text of each path, type and value in a list or an object, in order: 1.0 is 1 there too."""
    number = "t.type = 'real' AND t.atom = CAST(t.atom AS INTEGER)"
    # The order comes from a subquery, not from within the aggregate: triggers hold this, and an SQLite below 3.44,
    # Python's own perhaps, that cannot parse one trigger of a file can read nothing of it.
    return (
        "(SELECT json_group_array(json(part)) FROM (SELECT json_array(t.fullkey,"
        f" iif(t.type = 'real', 'integer', t.type), iif({number}, CAST(t.atom AS INTEGER), t.atom)) AS part"
        f" FROM json_tree({entry}.value) AS t ORDER BY t.fullkey))"
    )
