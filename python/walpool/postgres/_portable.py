"""What SQLite takes and PostgreSQL does not, or what no shared connection can bear: refused, or explained; pure.

A statement is refused before it is sent only where no PostgreSQL would take it, or where it would change the session
for whoever has the connection next: inside a transaction a server's refusal would cost the transaction. Where a name
may be the user's own (a function `instr`, a column `hex`, a collation `nocase`) the server is asked, and `hint` says
what to write when it has refused.

The patterns look at shapes (see `scan.Token`) with one space between: `INSERT INTO T ( A ) VALUES ( ? )`. So text in
strings, quoted names and comments is never taken for SQL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from walpool.errors import ProgrammingError
from walpool.postgres.scan import scan

__all__ = ["hint", "refuse"]


class Rule(NamedTuple):
    """What one kind of statement looks like, and what is said to it."""

    words: str
    """Looked at only where one of these shapes stands in the statement."""
    pattern: str
    text: str


_WORKS: Final = "which works on both SQLite and PostgreSQL"
# A verb where a statement, or what follows WITH (...), begins.
_STARTS: Final = r"^(?:EXPLAIN (?:.* )?|WITH .* \) )?"
# Not `t.limit` and not `AS limit`, where a keyword is a mere name.
_KEYWORD: Final = r"(?<!\S)(?<!\. )(?<!AS )"
_REMARK: Final = "^(?:COMMENT|SECURITY LABEL) "  # its IS is no operator
# PostgreSQL's own function, not somebody's `mine.set_config`.
_CALLED: Final = r"(?<!\S)(?:(?<!\. )|(?<=PG_CATALOG \. ))"

# What may stand between parentheses, with some more inside of it.
_INSIDE: Final = r"(?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*"

_LOCKS: Final = " ".join(
    f"PG_{verb}{shared}"
    for verb in ("ADVISORY_LOCK", "TRY_ADVISORY_LOCK", "ADVISORY_UNLOCK")
    for shared in ("", "_SHARED")
)
_TRANSACTION: Final = "walpool begins and ends transactions itself: use batch() or transaction()"
_SESSION: Final = "would change one connection of many, and behind PgBouncer somebody else's"

_REFUSED: Final = (
    # What belongs to the pool, in the words of the SQLite engine where it refuses the same.
    Rule("BEGIN COMMIT END ROLLBACK ABORT SAVEPOINT RELEASE START",
         r"^(?:BEGIN|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|START)(?!\S)", _TRANSACTION),
    Rule("PREPARE", "^PREPARE TRANSACTION ", _TRANSACTION),
    Rule("TRANSACTION TRANSACTION_READ_ONLY TRANSACTION_ISOLATION TRANSACTION_DEFERRABLE",
         "^SET (?:LOCAL |SESSION )?TRANSACTION",
         "walpool sets the mode of its transactions itself: read with fetch() or read(), write with transaction()"),
    Rule("SET", "^SET (?!LOCAL |CONSTRAINTS )",
         f"SET {_SESSION}: use SET LOCAL, or set_config(..., true), in a transaction()"),
    Rule("SET_CONFIG", rf"{_CALLED}SET_CONFIG \( (?!{_INSIDE}, (?:IS_LOCAL (?:=>|:=) )?TRUE \))",
         f"set_config(..., false) {_SESSION}: use set_config(..., true) in a transaction()"),
    Rule("RESET DISCARD LOAD", r"^(?:RESET|DISCARD|LOAD)(?!\S)", f"the statement {_SESSION}: use SET LOCAL"),
    Rule("PREPARE DEALLOCATE", r"^(?:PREPARE|DEALLOCATE)(?!\S)", f"a prepared statement {_SESSION}: give its SQL"),
    Rule("DECLARE", "^DECLARE .* WITH HOLD FOR ", f"a cursor WITH HOLD {_SESSION}: use stream()"),
    Rule("LISTEN UNLISTEN", r"^(?:LISTEN|UNLISTEN)(?!\S)", f"LISTEN {_SESSION}: use a connection of your own"),
    Rule("TEMP TEMPORARY", r"^CREATE (?:OR REPLACE )?(?:GLOBAL |LOCAL )?(?:TEMP|TEMPORARY) (?!.* ON COMMIT DROP(?!\S))",
         "TEMP objects would live on one connection of many: use an ordinary table or a WITH clause"),
    Rule(_LOCKS + " PG_ADVISORY_UNLOCK_ALL",
         rf"{_CALLED}PG_(?:TRY_)?ADVISORY_(?:UN)?LOCK(?:_SHARED|_ALL)? \(",
         f"an advisory lock of the session {_SESSION}: use pg_advisory_xact_lock() in a transaction()"),
    # What only SQLite takes.
    Rule("INSERT UPDATE", _STARTS + "(?:INSERT|UPDATE) OR IGNORE ",
         f"OR IGNORE is SQLite's own: write INSERT ... ON CONFLICT DO NOTHING, {_WORKS}"),
    Rule("INSERT UPDATE", _STARTS + "(?:INSERT|UPDATE) OR REPLACE ",
         f"OR REPLACE is SQLite's own: write INSERT ... ON CONFLICT (key) DO UPDATE SET col = excluded.col, {_WORKS}"),
    Rule("REPLACE", _STARTS + "REPLACE INTO ",
         f"REPLACE is SQLite's own: write INSERT ... ON CONFLICT (key) DO UPDATE SET col = excluded.col, {_WORKS}"),
    Rule("INSERT UPDATE", _STARTS + "(?:INSERT|UPDATE) OR (?:ABORT|FAIL|ROLLBACK) ",
         "OR ABORT, OR FAIL and OR ROLLBACK are SQLite's own: leave them out; a failed job is undone on both"),
    Rule("CONFLICT", r"^CREATE TABLE .* ON CONFLICT (?:REPLACE|IGNORE|ABORT|FAIL|ROLLBACK)(?!\S)",
         f"a constraint's ON CONFLICT is SQLite's own: write it in the INSERT, as ON CONFLICT (key) DO ..., {_WORKS}"),
    Rule("PRAGMA", "^PRAGMA ", "PRAGMA is SQLite's own: use the settings of the pool, or the server's"),
    Rule("ATTACH DETACH", "^(?:ATTACH|DETACH) ", "ATTACH and DETACH are SQLite's own: open another pool"),
    Rule("QUERY", "^EXPLAIN QUERY PLAN ",
         f"EXPLAIN QUERY PLAN is SQLite's own: write EXPLAIN, {_WORKS}, each in its own words"),
    Rule("VIRTUAL", "^CREATE VIRTUAL TABLE ",
         "virtual tables are SQLite's own: PostgreSQL has to_tsvector() and a GIN index for full text"),
    Rule("TRIGGER", "^CREATE TRIGGER (?!.* EXECUTE ).* BEGIN ",
         "a trigger with a body is SQLite's own: PostgreSQL's say EXECUTE FUNCTION; write one for each"),
    Rule("AUTOINCREMENT", r"PRIMARY KEY (?:ASC |DESC )?AUTOINCREMENT(?!\S)",
         f"AUTOINCREMENT is SQLite's own: make the key in the client (a UUID as TEXT), {_WORKS}; PostgreSQL alone has "
         "BIGINT GENERATED BY DEFAULT AS IDENTITY"),
    Rule("WITHOUT", r"^CREATE TABLE .* \) WITHOUT ROWID(?!\S)",
         f"WITHOUT ROWID is SQLite's own: leave it out, {_WORKS}"),
    Rule("STRICT", r"^CREATE TABLE (?!.* AS (?:SELECT|WITH|VALUES|TABLE|EXECUTE|\() ).*[),] STRICT(?: ,|$)",
         f"STRICT is SQLite's own: leave it out, {_WORKS}; PostgreSQL is always strict"),
    Rule("LIMIT", rf"{_KEYWORD}LIMIT (?:0|\?|\( [^()]* \)) , ",
         f"LIMIT offset, count is SQLite's own: write LIMIT count OFFSET offset, {_WORKS}"),
    Rule("COMMENT LABEL", rf"{_REMARK}.* IS [?0]$",
         "COMMENT and SECURITY LABEL take no parameter: write the text in quotes"),
    Rule("IS", rf"{_KEYWORD}IS (?:NOT )?[?0](?!\S)",
         f"IS with a value is SQLite's own: write IS NOT DISTINCT FROM, for IS NOT write IS DISTINCT FROM, {_WORKS}"),
    Rule("GLOB REGEXP MATCH", r"(?<!\S)(?:GLOB|REGEXP|MATCH) \?",
         f"GLOB, REGEXP and MATCH are SQLite's own: write LIKE, {_WORKS}, though SQLite's takes a for A"),
    Rule("?", r"(?<!\S)\? (?:'s'|[|&] ARRAY \[ 's')",
         "? is a parameter: the operators ?, ?| and ?& are written ??, ??| and ??&"),
)  # fmt: skip

_TIME: Final = f"give the time as a parameter (an integer, in microseconds), or write CURRENT_TIMESTAMP, {_WORKS}"
_CLIENT: Final = "make the value in Python and give it as a parameter"
_KEY: Final = f"name the table's own key, {_WORKS}"
_ROWCOUNT: Final = f"take rowcount of the result, {_WORKS}"
_CASE: Final = f"write CASE WHEN ... THEN ... ELSE ... END, {_WORKS}"

# By what the server's message names: with a parenthesis a function, a comma behind it where it must have several
# arguments; without a parenthesis a column, collation, type or table.
_UNKNOWN: Final = {
    "ifnull(": f"write coalesce(a, b), {_WORKS}",
    "iif(": _CASE,
    "max(,": f"max() and min() of several values are SQLite's own: {_CASE}",
    "min(,": f"max() and min() of several values are SQLite's own: {_CASE}",
    "total(": f"write coalesce(sum(x), 0), {_WORKS}",
    "group_concat(": f"write string_agg(x, ','), {_WORKS}",
    "json_extract(": f"write data ->> 'key', {_WORKS}",
    "json_each(": "json_each() of PostgreSQL takes the type json: CAST(x AS JSON), or take the JSON apart in Python",
    "json_group_array(": "PostgreSQL has json_agg(x); or fetch the rows and make the JSON in Python",
    "json_group_object(": "PostgreSQL has json_object_agg(k, v); or fetch the rows and make the JSON in Python",
    "strftime(": _TIME,
    "datetime(": _TIME,
    "julianday(": _TIME,
    "unixepoch(": _TIME,
    "last_insert_rowid(": f"write INSERT ... RETURNING and the key, {_WORKS}",
    "changes(": _ROWCOUNT,
    "total_changes(": _ROWCOUNT,
    "instr(": f"write x LIKE '%' || ? || '%', {_WORKS}; PostgreSQL has strpos(x, y)",
    "printf(": f"write format('%s', x), {_WORKS}",
    "hex(": "PostgreSQL has encode(x, 'hex'); or do it in Python",
    "randomblob(": _CLIENT,
    "zeroblob(": _CLIENT,
    "typeof(": "PostgreSQL has pg_typeof(x)",
    "round(": f"write round(CAST(x AS NUMERIC), n), {_WORKS}",
    "rowid": _KEY,
    "_rowid_": _KEY,
    "oid": _KEY,
    "nocase": f"write lower(a) = lower(b), {_WORKS}, or create a collation of that name",
    "blob": f"name the type BYTEA, {_WORKS}",
    "double": f"name the type DOUBLE PRECISION, {_WORKS}",
    "tinyint": f"name the type SMALLINT, {_WORKS}",
    "mediumint": f"name the type INTEGER, {_WORKS}",
    "datetime": f"name the type BIGINT or TIMESTAMP, {_WORKS}",
    "sqlite_master": "PostgreSQL keeps its tables in information_schema.tables",
    "sqlite_schema": "PostgreSQL keeps its tables in information_schema.tables",
}
# By the types that the message names, in the order in which it does: the wanted one first, or as they stand in the SQL.
_NUMBER: Final = r"\b(?:smallint|integer|bigint|numeric|real|double precision)\b"
_TRUTH: Final = (
    "write TRUE and FALSE for 1 and 0, give a bool as the parameter, and write n <> 0 where a number n is the "
    f"condition, {_WORKS}"
)
_OPERATOR: Final = r"[-+*/<>=~!@#%^&|`?]+"
_TYPES: Final = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (rf"\bboolean \S+ {_NUMBER}|{_NUMBER} \S+ boolean\b", _TRUTH),
        (rf"\btext \S+ {_NUMBER}|{_NUMBER} \S+ text\b",
         f"give a str where a text is compared and an int where a number is, or write CAST(x AS TEXT), {_WORKS}"),
        (r"\b(?:sum|avg)\(boolean\)", f"write count(*) FILTER (WHERE flag), {_WORKS}"),
        (rf"\bboolean\b.*{_NUMBER}", _TRUTH),
        (rf"{_NUMBER}.*\bboolean\b", f"write CASE WHEN flag THEN 1 ELSE 0 END, {_WORKS}"),
    )
)  # fmt: skip
# An int goes as a bigint, which many functions and operators do not take, and nothing makes an integer of in silence.
_WIDE: Final = re.compile(rf"\w\((?:[^()]*, )?bigint\b| {_OPERATOR} bigint\b|\bbigint {_OPERATOR} ")
# By the statement, where the message is about syntax or an operator and so names no more than a place.
_SYNTAX: Final = (
    Rule("==", r"(?<!\S)==(?!\S)", f"write = for ==, {_WORKS}"),
    Rule("`", r"(?<!\S)` .* `", f'write "name" for `name`, {_WORKS}'),
    Rule("[", r'(?<!\S)(?:SELECT|DISTINCT|FROM|JOIN|INTO|UPDATE|TABLE|EXISTS|BY|WHERE|AND|OR|ON|SET|,|\(|\.) \[ [^\d?]',
         f'write "name" for [name], {_WORKS}'),
    Rule("$1", r"(?<!\S)\$1", f"write ?1 for $1, {_WORKS}"),
    Rule("$", r"\$ \w", f"write :name for $name, {_WORKS}"),
    Rule("GLOB REGEXP MATCH", r"(?<!\S)(?:GLOB|REGEXP|MATCH) ", f"write LIKE, {_WORKS}, though SQLite's takes a for A"),
    Rule("IS",
         rf"^(?!{_REMARK}).*{_KEYWORD}IS (?:NOT )?"
         "(?!NOT |NULL|TRUE|FALSE|UNKNOWN|DISTINCT|DOCUMENT|JSON|NORMALIZED|NF)",
         f"write IS NOT DISTINCT FROM for IS, and IS DISTINCT FROM for IS NOT, {_WORKS}"),
    Rule("LIMIT", rf"{_KEYWORD}LIMIT [^(),]+ ,", f"write LIMIT count OFFSET offset, {_WORKS}"),
    Rule("INDEXED", r"(?<!\S)INDEXED BY ", f"leave INDEXED BY out, {_WORKS}"),
    Rule("CONFLICT", "ON CONFLICT DO UPDATE ", f"name the key: ON CONFLICT (key) DO UPDATE, {_WORKS}"),
    Rule("WALPOOL_ROWS", r"^DECLARE .* CURSOR FOR (?:INSERT|UPDATE|DELETE|MERGE)(?!\S)",
         "the statement writes, and this is a read: use execute(), batch() or transaction()"),
    Rule("WALPOOL_ROWS", r"^DECLARE .* CURSOR FOR (?!SELECT |WITH |VALUES |TABLE |\()",
         "stream() takes SELECT, WITH, VALUES and TABLE: use fetch()"),
    Rule("AUTOINCREMENT", "AUTOINCREMENT", f"make the key in the client (a UUID as TEXT), {_WORKS}"),
)  # fmt: skip


class _Table:
    """Rules by the words that they look for: a statement meets only those that have a word of its own."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(re.compile(rule.pattern), rule.text) for rule in rules]
        self._numbers: dict[str, list[int]] = {}
        for number, rule in enumerate(rules):
            for word in rule.words.split():
                self._numbers.setdefault(word, []).append(number)

    def text_for(self, shapes: Sequence[str]) -> str | None:
        """Return what the first rule says that a statement meets, None if it meets none."""
        words = self._numbers.keys() & set(shapes)
        if not words:
            return None
        statement = " ".join(shapes)
        for number in sorted({number for word in words for number in self._numbers[word]}):
            pattern, text = self._rules[number]
            if pattern.search(statement):
                return text
        return None


_REFUSALS: Final = _Table(_REFUSED)
_HINTS: Final = _Table(_SYNTAX)
_PARAMETER: Final = re.compile(r"\$[0-9]")
_NAMED: Final = re.compile(r"\b([a-z_][a-z0-9_]*)\b(?! precision)(?:(\()(?:[^(),]*(,))?)?")


def refuse(shapes: Sequence[str]) -> None:
    """Raise `ProgrammingError` for a statement that no PostgreSQL takes, or that would change the session.

    Args:
        shapes: those of one statement's tokens.
    """
    if text := _REFUSALS.text_for(shapes):
        raise ProgrammingError(text)


def hint(sql: str, message: str) -> str | None:
    """Return what to write instead where the server refused a statement; None where nothing is known of it.

    For SQLSTATE 42601 (syntax), 42883 (function or operator), 42703 (column), 42704 (type, collation), 42804 (another
    type), 42P01 (table), 42P02 (no such parameter) and 42P18 (a parameter of which the type is not known).

    Args:
        sql: the statement as the caller wrote it.
        message: the server's; in any language, since only the names in it count.
    """
    shapes = [token.shape for token in scan(sql)]
    words = set(shapes)
    for name, parenthesis, comma in _NAMED.findall(message.lower()):
        text = _UNKNOWN.get(name + parenthesis) or _UNKNOWN.get(name + parenthesis + comma)
        if text and name.upper() in words:  # it may stand in a function of the server's
            return text
    for pattern, text in _TYPES:
        if pattern.search(message.lower()):
            return text
    if "?" in words and _WIDE.search(message.lower()):
        return f"where an int is the parameter, write CAST(? AS INTEGER), {_WORKS}"
    if "$1" not in words and _PARAMETER.search(message):
        return f"say which type the parameter has: CAST(? AS TEXT), {_WORKS}"
    return _HINTS.text_for(shapes)
