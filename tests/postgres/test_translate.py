"""SQL for either backend as PostgreSQL takes it: parameters, the order of their values, and what holds no parameter."""

from __future__ import annotations

import re
import timeit
from collections import UserDict, UserList, defaultdict
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import walpool
from walpool.errors import ProgrammingError
from walpool.postgres._translate import parse, translate

NUMBERED = re.compile(r"\$([0-9]+)")


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT ?, ?", "SELECT $1, $2"),
        ("SELECT ?2, ?1, ?2", "SELECT $2, $1, $2"),
        ("SELECT ?1, ?2, ?", "SELECT $1, $2, $3"),
        ("SELECT ?7, ?", "SELECT $1, $2"),  # of eight values the seventh and the eighth: no gap for PostgreSQL
        ("SELECT ?, ?1, ?", "SELECT $1, $1, $2"),
        ("SELECT :b, :a, :b", "SELECT $1, $2, $1"),
        ("SELECT :a1_$é::int", "SELECT $1::int"),
        ("SELECT x::int, f(a := 1), 1 ::text", "SELECT x::int, f(a := 1), 1 ::text"),
        ("SELECT d ?? 'a', d ??| x, d ??& x, d @?? y", "SELECT d ? 'a', d ?| x, d ?& x, d @? y"),
        ("SELECT d ??? , ????", "SELECT d ?$1 , ??"),
        ("SELECT d ??1, ?", "SELECT d ?1, $1"),
        ("SELECT?AND?1AS x", "SELECT $1 AND $1 AS x"),
        ("SELECT 1?2, x?1y", "SELECT 1 $2, x $1 y"),
        ("SELECT 1:a, x:a", "SELECT 1 $1, x $1"),
        ("SELECT ?||'a', ?|?", "SELECT $1||'a', $2|$3"),
        ("SELECT @x, @ x, $x, a$b", "SELECT @x, @ x, $x, a$b"),
        ("SELECT $1, $2", "SELECT $1, $2"),
        ("SELECT 'a' -- ?\r, ?", "SELECT 'a' -- ?\r, $1"),
        ("SELECT 4 -/* ? */ ?, 5 +--?\n?", "SELECT 4 -/* ? */ $1, 5 +--?\n$2"),
        ("SELECT e'\\'?' , likE'\\', ?", "SELECT e'\\'?' , likE'\\', $1"),
        ("SELECT E'a'\n '\\'?', ?", "SELECT E'a'\n '\\'?', $1"),
        ("SELECT E'a' -- it's ?\n '\\'?', ?", "SELECT E'a' -- it's ?\n '\\'?', $1"),
        ("SELECT 'a'\n '\\', ?", "SELECT 'a'\n '\\', $1"),
        ("SELECT $$ ? $a$ $$, $a$ $$ $b$ ? $a$, ?", "SELECT $$ ? $a$ $$, $a$ $$ $b$ ? $a$, $1"),
        ("SELECT a$$, ?, b$$", "SELECT a$$, $1, b$$"),
    ],
)
def test_parameters_become_numbers(sql: str, expected: str) -> None:
    assert translate(sql).sql == expected


def test_slice_has_a_parameter_where_a_name_follows_its_colon() -> None:
    assert translate("SELECT a[?:?], a[1:2], a[:?]").sql == "SELECT a[$1:$2], a[1:2], a[:$3]"
    assert translate("SELECT a[i:j], a[i : j]").names == ("j",)


def test_names_are_given_in_the_order_of_their_numbers() -> None:
    translated = translate("SELECT :b, :a, :b")
    assert (translated.names, translated.count, translated.wanted) == (("b", "a"), 2, 2)
    assert translate("SELECT ?").names is None


def test_numbers_that_are_left_out_are_counted_but_not_sent() -> None:
    translated = translate("SELECT ?5, ?2")
    assert (translated.sql, translated.count, translated.wanted) == ("SELECT $2, $1", 2, 5)
    assert list(translated.arrange([10, 20, 30, 40, 50])) == [20, 50]


def test_mixed_parameters_are_refused() -> None:
    with pytest.raises(ProgrammingError, match=r"mixes \? and :name; name all"):
        translate("SELECT ?, :a")
    with pytest.raises(ProgrammingError, match=r"write \?1, as in SQLite"):
        translate("SELECT $1, ?")
    assert translate("SELECT $1 ?? 'a'").sql == "SELECT $1 ? 'a'"


@pytest.mark.parametrize("number", ["0", "00", "32767", "9" * 5_000])
def test_number_out_of_range_is_refused_in_the_words_of_sqlite(number: str) -> None:
    with pytest.raises(ProgrammingError, match="32766 are the most"):
        translate(f"SELECT {', '.join(f':p{n}' for n in range(32_767))}")
    with pytest.raises(ProgrammingError, match=r"^variable number must be between \?1 and \?32766$"):
        translate(f"SELECT ?{number}")


def test_nul_character_is_refused() -> None:
    with pytest.raises(ProgrammingError, match="the SQL contains a NUL character"):
        translate("SELECT 1\0")


# What is quoted, each for any text: the text made harmless, and the quotes around it.


def in_dollars(text: str, tag: str) -> str:
    # Without its own dollars, of which the last could close it: `$$`, `a$` and `$$`.
    mark = f"${tag}$"
    return f"{mark}{text.replace('$', '§')}{mark}"


def nested(text: str) -> str:
    plain = text.replace("/", "|").replace("*", "+")
    return f"/* {plain} /* {plain}' */ {plain}\" */"


TEXTS = st.text(st.sampled_from("?:a1'\"$\\-/*;[]`\n E\u00a0é") | st.characters(codec="utf-8", exclude_characters="\0"))
QUOTED = st.one_of(
    TEXTS.map(lambda text: "'" + text.replace("'", "''") + "'"),
    TEXTS.map(lambda text: "N'" + text.replace("'", "''") + "'"),
    TEXTS.map(lambda text: "U&'" + text.replace("'", "''") + "'"),
    TEXTS.map(lambda text: '"' + text.replace('"', '""') + '"'),
    TEXTS.map(lambda text: 'U&"' + text.replace('"', '""') + '"'),
    TEXTS.map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    TEXTS.map(lambda text: "e'" + text.replace("\\", "\\\\").replace("'", "''") + "'"),
    st.builds(in_dollars, TEXTS, st.sampled_from(["", "a", "_1", "é", "E"])),
    TEXTS.map(nested),
    TEXTS.map(lambda text: "--" + re.sub(r"[\r\n]", " ", text) + "\n"),
)
PARAMETERS = st.lists(st.one_of(st.just("?"), st.integers(1, 9).map("?{}".format)), max_size=6)


@given(quoted=st.lists(QUOTED, max_size=5))
@example(["/* /* */ ? */"])
def test_nothing_is_changed_inside_quotes_and_comments(quoted: list[str]) -> None:
    sql = "SELECT " + " ".join(quoted)
    translated = parse(sql)
    assert translated.sql == sql
    assert (translated.count, translated.is_single, translated.keyword) == (0, True, "SELECT")


@given(quoted=st.lists(QUOTED, min_size=1, max_size=5), named=st.booleans())
def test_parameters_between_quotes_are_found(quoted: list[str], named: bool) -> None:
    # Commas, since a string right behind a parameter is refused: the operator ? was meant.
    sql = "SELECT " + "".join(f"{text} ,{f':p{place}' if named else '?'}, " for place, text in enumerate(quoted))
    expected = "SELECT " + "".join(f"{text} ,${place}, " for place, text in enumerate(quoted, 1))
    translated = parse(sql)
    assert (translated.sql, translated.count) == (expected, len(quoted))


@given(text=TEXTS.filter(lambda text: "?" not in text and not re.search(r":[^\W\d]|:[\x80-\U0010ffff]", text)))
def test_text_without_parameters_comes_back_as_it_is(text: str) -> None:
    try:
        assert parse("x" + text).sql == "x" + text
    except ProgrammingError:
        pytest.fail("nothing to refuse")


@given(text=st.text(st.sampled_from("?:ab1'\"$\\-/*;()[]`|\n E\u00a0é")))
@example("E'\\")
@example("E'a' " + "-- " * 5_000)
@example("/*" * 5_000)
@example("'" * 5_001)
@example("$a" * 5_000)
def test_any_text_is_translated_or_refused_and_soon(text: str) -> None:
    try:
        translated = parse(text)
    except ProgrammingError:
        return
    assert (translated.count == 0) <= (NUMBERED.findall(translated.sql) == NUMBERED.findall(text))
    assert len(translated.arrange(dict.fromkeys(translated.names or (), 0) or [0] * translated.wanted)) == (
        translated.count
    )


@given(parameters=PARAMETERS.filter(bool), data=st.data())
def test_values_go_where_sqlite_puts_them(parameters: list[str], data: st.DataObject) -> None:
    sql = "SELECT " + ", ".join(parameters)
    translated = parse(sql)
    values = data.draw(st.lists(st.integers(0, 99), min_size=translated.wanted, max_size=translated.wanted))
    numbers = [int(number) for number in NUMBERED.findall(translated.sql)]
    assert sorted(set(numbers)) == list(range(1, translated.count + 1))
    sent = translated.arrange(values)
    assert len(sent) == translated.count
    assert tuple(sent[number - 1] for number in numbers) == on_sqlite(sql, values)


@given(names=st.lists(st.sampled_from(["a", "b", "Ab", "a_1", "é", "a$"]), min_size=1, max_size=6))
def test_names_get_the_values_that_sqlite_gives_them(names: list[str]) -> None:
    sql = "SELECT " + ", ".join(f":{name}" for name in names)
    translated = parse(sql)
    values = {name: number for number, name in enumerate([*names, "more"])}
    sent = translated.arrange(values)
    numbers = [int(number) for number in NUMBERED.findall(translated.sql)]
    assert tuple(sent[number - 1] for number in numbers) == on_sqlite(sql, values)
    assert len(sent) == translated.count == len(set(names))


POOL: list[walpool.Pool] = []


@pytest.fixture(autouse=True, scope="module")
def sqlite_beside() -> Any:
    with walpool.Pool(":memory:") as pool:
        POOL.append(pool)
        yield
        POOL.clear()


def on_sqlite(sql: str, params: Any) -> tuple[Any, ...]:
    row = POOL[0].fetchone(sql, params)
    assert isinstance(row, tuple)
    return row


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT ?", ()),
        ("SELECT ?", (1, 2)),
        ("SELECT 1", (1,)),
        ("SELECT ?3", (3,)),
        ("SELECT ?", {"a": 1}),
        ("SELECT ?", {}),
        ("SELECT :a", {}),
        ("SELECT :a, :b", {"a": 1}),
        ("SELECT :a", {"A": 1}),
        ("SELECT :a", ()),
        ("SELECT :a", (1,)),
        ("SELECT :a", defaultdict(int)),
        ("SELECT :a", {"a": 1, 2: 3}),
        ("SELECT ?", {1: 1}),
        ("SELECT ?", "a"),
        ("SELECT ?", b"a"),
        ("SELECT ?", bytearray(b"a")),
        ("SELECT 1", ""),
        ("SELECT ?", 5),
        ("SELECT ?", None),
        ("SELECT ?", {1}),
        ("SELECT ?", iter([1])),
        ("SELECT ?0", ()),
    ],
)
def test_wrong_parameters_are_refused_in_the_words_of_the_engine(sql: str, params: Any) -> None:
    with pytest.raises(ProgrammingError) as on_engine:
        POOL[0].fetch(sql, params)
    with pytest.raises(ProgrammingError) as caught:
        translate(sql).arrange(params)
    assert str(caught.value) == re.sub(r" \[[^]]*\]$", "", str(on_engine.value))


def test_any_sequence_and_any_mapping_will_do() -> None:
    assert list(translate("SELECT ?, ?").arrange(UserList([1, 2]))) == [1, 2]
    assert list(translate("SELECT ?, ?").arrange(range(2))) == [0, 1]
    assert list(translate("SELECT :a").arrange(UserDict(a=1, b=2))) == [1]
    assert list(translate("SELECT 1").arrange({"a": 1})) == []


@pytest.mark.parametrize(
    ("sql", "keyword", "is_single"),
    [
        ("select 1", "SELECT", True),
        (" /* a; b */ -- ;\n ( Values (1) ) ; ; -- ;", "VALUES", True),
        ("; with x as (select 1) delete from y", "WITH", True),
        ("", "", True),
        (" ;-- select", "", True),
        ("select 1; select 2", "SELECT", False),
        ("select ';' ; ;select 2", "SELECT", False),
        ("create rule r as on insert to t do also (select 1; select 2)", "CREATE", True),
        (
            "create function f() returns int begin atomic select case when true then 1 end; select 2; end;",
            "CREATE",
            True,
        ),
        ("create function f() returns int begin atomic select 1; end; select 2", "CREATE", False),
        ("create function f(begin int) returns int return 1; select 2", "CREATE", False),
        ("select 1 as case; select 2", "SELECT", False),
        ("do $$ begin a; b; end $$", "DO", True),
        ("select )); select 2", "SELECT", False),
    ],
)
def test_first_keyword_and_number_of_statements_are_told(sql: str, keyword: str, is_single: bool) -> None:
    translated = translate(sql)
    assert (translated.keyword, translated.is_single) == (keyword, is_single)


def test_translated_text_is_kept_and_a_new_one_takes_no_long() -> None:
    sql = (
        "SELECT id, content, embedding FROM memories WHERE tenant = ? AND scope >= ? AND scope < ? AND kind = 'fact' "
        "AND (created_at, id) < (?, ?) ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?"
    )
    assert translate(sql) is translate(sql)
    # About 0.1 ms; ten times as much says that something is looked at more than once.
    assert min(timeit.repeat(lambda: parse(sql), number=20, repeat=5)) / 20 < 1e-3
