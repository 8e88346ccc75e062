"""Settings: precedence, origins, text forms, URLs, errors, passwords; and that the docs' table is the engine's own.

`python tests/test_settings.py` writes the table into the docs anew.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import pickle
import re
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walpool import _core, settings
from walpool.errors import ConfigError
from walpool.settings import ConfigWarning, Settings

ROOT = Path(__file__).resolve().parent.parent
TABLE_HOMES = [ROOT / "docs" / "settings.md", ROOT / "README.md"]
TABLE_MARKERS = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)
KINDS = {
    "count": "number",
    "duration": "duration",
    "bytes": "size",
    "switch": "switch",
    "mode": "permissions",
    "text": "path or URL",
}
DEFAULTS_OF_THE_MACHINE = {"readers": "one for each CPU"}

SPECS = {row[0]: settings._Spec(*row) for row in _core.setting_table()}


def load(target: str | os.PathLike[str] | None = None, /, env: dict[str, str] | None = None, **kw: object) -> Settings:
    """Load settings in an environment that holds nothing but `env`."""
    return Settings.load(target, env=env or {}, **kw)


def origins(loaded: Settings) -> dict[str, str]:
    return {row.name: row.origin for row in loaded.explain()}


# The table


def test_the_fields_of_settings_are_the_engines_table() -> None:
    names = [field.name for field in dataclasses.fields(Settings)]
    assert names == ["path", *SPECS, "_origins"]


def test_defaults_are_the_tables_and_nothing_is_explicit() -> None:
    loaded = load()
    assert loaded.values() == {name: spec.default for name, spec in SPECS.items()}
    assert (loaded.explicit, loaded.path) == (frozenset(), None)
    assert set(origins(loaded).values()) == {"default"}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_each_default_is_a_value_that_the_setting_accepts(spec: settings._Spec) -> None:
    if spec.default is not None:
        assert load(**{spec.name: spec.default}).values()[spec.name] == spec.default


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_each_value_has_the_type_of_its_unit(spec: settings._Spec) -> None:
    kinds = {"count": int, "duration": float, "bytes": int, "switch": bool, "mode": int, "choice": str}
    if spec.unit in kinds:
        assert type(load().values()[spec.name]) is kinds[spec.unit]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_each_shown_value_may_be_written_back(spec: settings._Spec) -> None:
    row = next(row for row in load().explain() if row.name == spec.name)
    if row.value is not None:
        again = load(env={f"WALPOOL_{spec.name.upper()}": row.text})
        assert again.values()[spec.name] == row.value


LIMITED = [spec for spec in SPECS.values() if spec.minimum is not None]


@pytest.mark.parametrize("spec", LIMITED, ids=lambda spec: spec.name)
def test_limits_themselves_are_accepted_and_what_lies_beyond_is_not(spec: settings._Spec) -> None:
    for limit in (spec.minimum, spec.maximum):
        assert load(**{spec.name: limit}).values()[spec.name] == limit
    for beyond in (spec.minimum - 1, spec.maximum + 1):
        with pytest.raises(ConfigError, match=rf"^{spec.name}={beyond} is not accepted: {spec.name} takes "):
            load(**{spec.name: beyond})


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().readers = 3  # type: ignore[misc]


# Precedence


def test_keyword_wins_over_url_over_environment_over_default() -> None:
    url = "walpool:///srv/a.db?max_group=2&statement_cache=2"
    env = {"WALPOOL_MAX_GROUP": "3", "WALPOOL_STATEMENT_CACHE": "3", "WALPOOL_READERS": "3"}
    loaded = load(url, env, max_group=1)
    assert (loaded.max_group, loaded.statement_cache, loaded.readers) == (1, 2, 3)
    assert loaded.explicit == {"max_group", "statement_cache", "readers", "url"}
    found = origins(loaded)
    assert found["max_group"] == "keyword"
    assert found["statement_cache"] == "url ?statement_cache=2"
    assert found["readers"] == "environment WALPOOL_READERS"
    assert found["url"] == "argument"
    assert found["synchronous"] == "default"


@pytest.mark.parametrize("name", [name for name in SPECS if name != "url"])
def test_each_setting_has_a_keyword_a_url_key_and_a_variable(name: str) -> None:
    text = next(row.text for row in load().explain() if row.name == name)
    assert origins(load(**{name: text}))[name] == "keyword"
    assert origins(load(f"walpool://a.db?{name}={text}"))[name] == f"url ?{name}={text}"
    assert origins(load(env={f"WALPOOL_{name.upper()}": text}))[name] == f"environment WALPOOL_{name.upper()}"


def test_a_value_equal_to_the_default_is_explicit_all_the_same() -> None:
    assert load(max_group=SPECS["max_group"].default).explicit == {"max_group"}


def test_a_server_has_four_readers_at_least_unless_told_otherwise() -> None:
    url, cores = "postgresql://db.example/agents", SPECS["readers"].resolve(None)
    assert Settings.load(url).readers == max(4, cores)
    assert "readers" not in Settings.load(url).explicit
    assert Settings.load(f"{url}?readers=1").readers == 1
    assert Settings.load(url, readers=2).readers == 2
    assert Settings.load("agents.db").readers == cores


def test_a_wrong_variable_does_no_harm_where_a_keyword_wins() -> None:
    assert load(env={"WALPOOL_READERS": "many"}, readers=4).readers == 4


@pytest.mark.parametrize("empty", ["", "  "], ids=repr)
def test_an_empty_variable_counts_as_not_set(empty: str) -> None:
    assert load(env={"WALPOOL_READERS": empty, "WALPOOL_URL": empty}).explicit == frozenset()


def test_the_process_environment_is_read_at_each_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALPOOL_MAX_GROUP", "17")
    assert Settings.load().max_group == 17
    monkeypatch.setenv("WALPOOL_MAX_GROUP", "18")
    assert Settings.load().max_group == 18


# Paths and URLs


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("agents.db", "agents.db"),
        ("/srv/agents.db", "/srv/agents.db"),
        ("~/agents.db", "~/agents.db"),
        ("what?readers=8.db", "what?readers=8.db"),
        ("100%25.db", "100%25.db"),
        (r"C:\data\agents.db", r"C:\data\agents.db"),
        ("C://data/agents.db", "C://data/agents.db"),
        (":memory:", ":memory:"),
        (Path("data") / "agents.db", os.path.join("data", "agents.db")),
        ("walpool:///srv/agents.db", "/srv/agents.db"),
        ("walpool:///srv/agents.db?", "/srv/agents.db"),
        ("walpool://agents.db", "agents.db"),
        ("walpool://data/agents.db?max_group=8", "data/agents.db"),
        ("walpool://my%20agents%3F.db", "my agents?.db"),
        ("walpool://:memory:", ":memory:"),
        ("walpool://C:/data/agents.db", "C:/data/agents.db"),
        ("WALPOOL://agents.db", "agents.db"),
        ("sqlite:////srv/agents.db", "/srv/agents.db"),
        ("sqlite:///agents.db?max_group=8", "agents.db"),
        ("sqlite:///:memory:", ":memory:"),
        ("postgresql://ann@db/agents", None),
        ("postgres:///agents", None),
    ],
)
def test_path_is_the_file_that_a_path_or_url_names(target: str | os.PathLike[str], path: str | None) -> None:
    loaded = load(target)
    assert loaded.path == path
    assert loaded.url == os.fspath(target)
    assert load(url=target) == loaded == load(env={"WALPOOL_URL": os.fspath(target)})


def test_the_query_of_walpool_url_counts_where_no_argument_is_given() -> None:
    env = {"WALPOOL_URL": "walpool:///srv/a.db?max_group=2", "WALPOOL_MAX_GROUP": "3"}
    assert (load(env=env).max_group, load(env=env).path) == (2, "/srv/a.db")
    assert (load("b.db", env).max_group, load("b.db", env).path, load("b.db", env).url) == (3, "b.db", "b.db")


def test_a_keyword_url_of_none_is_not_given() -> None:
    assert load(url=None).explicit == frozenset()
    assert load("a.db", url=None).path == "a.db"
    assert load(env={"WALPOOL_URL": "a.db"}, url=None).path == "a.db"


def test_keys_of_libpq_stay_in_a_postgres_url() -> None:
    url = "postgresql://ann@db/agents?sslmode=require&max_group=8&connect_timeout=3"
    loaded = load(url)
    assert (loaded.url, loaded.max_group, loaded.path) == (url, 8, None)
    assert loaded.explicit == {"url", "max_group"}


@pytest.mark.parametrize(
    "target",
    [
        "",
        "walpool://",
        "walpool://?readers=8",
        "sqlite://",
        "sqlite:///",
        "sqlite://agents.db",
        "mysql://db/agents",
        "sqlite+aiosqlite:///agents.db",
        "file:agents.db?mode=ro",
    ],
)
def test_a_target_that_names_no_database_is_refused_with_what_is_accepted(target: str) -> None:
    with pytest.raises(ConfigError, match="is not accepted: use a path") as error:
        load(target)
    assert repr(target) in str(error.value)


@pytest.mark.parametrize("target", ['"{}"', "'{}'", "jdbc:{}", "url={}", "postgresql:/{}"])
def test_url_that_would_be_taken_for_a_path_is_refused_without_its_password(target: str) -> None:
    with pytest.raises(ConfigError, match="is not accepted: use a path") as error:
        load(target.format("postgresql://ann:sesame@host/x"))
    assert "sesame" not in str(error.value)


def test_keywords_of_libpq_are_no_path_and_are_not_quoted() -> None:
    for target in ("host=db password=sesame dbname=agents", " dbname = agents password=sesame", "service=agents"):
        with pytest.raises(ConfigError, match="write postgresql://user@host/name") as error:
            load(target)
        assert "sesame" not in str(error.value)
    with pytest.raises(ConfigError, match="environment WALPOOL_URL"):
        load(env={"WALPOOL_URL": "host=db"})
    assert load(Path("host=db")).path == "host=db"  # who says that it is a path is believed
    assert load("hosts=2.db").path == "hosts=2.db"


def test_a_target_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^5 is not accepted: use a path"):
        load(5)  # type: ignore[arg-type]


def test_a_wrong_walpool_url_is_named_by_its_variable() -> None:
    with pytest.raises(ConfigError, match=r"^WALPOOL_URL='mysql://db' is not accepted"):
        load(env={"WALPOOL_URL": "mysql://db"})


def test_the_argument_wins_over_the_keyword_url() -> None:
    # So a pool opens again from its real path and its explicit settings, `url` among them, in another working folder.
    loaded = load("/srv/a.db", url="walpool://a.db?readers=3", readers=4)
    assert (loaded.path, loaded.url, loaded.readers) == ("/srv/a.db", "/srv/a.db", 4)


def test_a_key_given_twice_in_a_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="the URL gives readers twice"):
        load("walpool://a.db?readers=2&readers=3")


# Text forms


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("5s", 5), (" 5 s ", 5), ("500ms", 0.5), ("9ms", 0.009), ("2m", 120), ("1.5h", 5400), ("0.25", 0.25)],
)
def test_a_duration_may_be_written_as(text: str, seconds: float) -> None:
    assert load(write_timeout=text).write_timeout == seconds


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "s",
        "-1",
        "1e3",
        "5 5",
        "5x",
        "5S",
        ".5",
        "\u0665",
        "nan",
        "inf",
        -1,
        -0.5,
        float("nan"),
        float("inf"),
        pytest.param(10**400, id="10**400"),
        True,
        None,
        [5],
    ],
    ids=repr,
)
def test_a_duration_is_refused_when_it_is(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"is not accepted: write_timeout takes seconds, or a duration such as 500ms"):
        load(write_timeout=wrong)


@given(st.floats(min_value=0, max_value=1e9))
def test_every_duration_survives_being_shown_and_read(seconds: float) -> None:
    assert settings._parse_duration(settings._show_duration(seconds)) == seconds


@given(st.integers(min_value=0, max_value=10**9), st.sampled_from([("ms", 1000, 1), ("s", 1, 1), ("m", 1, 60)]))
def test_every_number_with_a_unit_is_the_float_nearest_to_it(number: int, unit: tuple[str, int, int]) -> None:
    name, divisor, factor = unit
    assert settings._parse_duration(f"{number}{name}") == number * factor / divisor


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("1024B", 1024),
        ("64kB", 64_000),
        ("64MB", 64_000_000),
        ("64mb", 64_000_000),
        ("64KiB", 64 * 1024),
        ("64MiB", 64 * 1024**2),
        ("1.5 GiB", 3 * 512 * 1024**2),
        ("1GB", 10**9),
    ],
)
def test_a_size_may_be_written_as(text: str, size: int) -> None:
    assert load(max_waiting_bytes=text).max_waiting_bytes == size


@pytest.mark.parametrize(
    "wrong",
    ["", "MiB", "-1", "2000.5", "2.0001KiB", "64M", "1XB", "1e6", "9" * 50, 2**63, 1.0, True, None],
    ids=repr,
)
def test_a_size_is_refused_when_it_is(wrong: object) -> None:
    with pytest.raises(ConfigError, match="is not accepted: max_waiting_bytes takes bytes, or a size such as"):
        load(max_waiting_bytes=wrong)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_every_size_survives_being_shown_and_read(size: int) -> None:
    assert settings._parse_bytes(settings._show_bytes(size)) == size


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    for name in SPECS:
        if name != "url":
            with contextlib.suppress(ConfigError):
                load(**{name: text})


@pytest.mark.parametrize("value", [True, 1, "1", "true", "True", "YES", "on", " on "], ids=repr)
def test_a_switch_is_on_when_it_is(value: object) -> None:
    assert load(disable=value).disable is True


@pytest.mark.parametrize("value", [False, 0, "0", "false", "no", "OFF"], ids=repr)
def test_a_switch_is_off_when_it_is(value: object) -> None:
    assert load(foreign_keys=value).foreign_keys is False


@pytest.mark.parametrize("wrong", ["", "2", "y", "enabled", 2, -1, 1.0, None], ids=repr)
def test_a_switch_is_refused_when_it_is(wrong: object) -> None:
    with pytest.raises(ConfigError, match="takes 1, 0, true, false, yes, no, on or off"):
        load(disable=wrong)


@pytest.mark.parametrize("value", [0o640, "0640", "0o640", "640"], ids=repr)
def test_permissions_may_be_written_as(value: object) -> None:
    assert load(file_mode=value).file_mode == 0o640


@pytest.mark.parametrize("wrong", ["", "0x1ff", "888", "6", "rw-------", "1777", 600, -1, True, None, 384.0], ids=repr)
def test_permissions_are_refused_when_they_are(wrong: object) -> None:
    with pytest.raises(ConfigError, match="file_mode takes permission bits in octal"):
        load(file_mode=wrong)


@pytest.mark.parametrize("value", ["normal", "NORMAL", " normal "], ids=repr)
def test_a_choice_may_be_written_as(value: str) -> None:
    assert load(synchronous=value).synchronous == "normal"


@pytest.mark.parametrize("wrong", ["", "off", 1, None], ids=repr)
def test_a_choice_is_refused_when_it_is(wrong: object) -> None:
    with pytest.raises(ConfigError, match="synchronous takes full or normal"):
        load(synchronous=wrong)


@pytest.mark.parametrize("wrong", ["", "many", "4.0", "1_0", "+4", "\u0664", "9" * 50, 2.0, True, None], ids=repr)
def test_a_count_is_refused_when_it_is(wrong: object) -> None:
    with pytest.raises(ConfigError, match="readers takes a whole number, from 1 to"):
        load(readers=wrong)


# Errors and warnings


def test_an_error_names_the_place_the_value_and_what_is_accepted() -> None:
    accepted = r" is not accepted: synchronous takes full or normal$"
    with pytest.raises(ConfigError, match=r"^synchronous='off'" + accepted):
        load(synchronous="off")
    with pytest.raises(ConfigError, match=r"^url \?synchronous=off" + accepted):
        load("walpool://a.db?synchronous=off")
    with pytest.raises(ConfigError, match=r"^WALPOOL_SYNCHRONOUS='off'" + accepted):
        load(env={"WALPOOL_SYNCHRONOUS": "off"})


def test_an_error_quotes_no_more_than_the_beginning_of_a_long_value() -> None:
    with pytest.raises(ConfigError) as error:
        load(readers="x" * 10_000)
    assert len(str(error.value)) < 300


def test_a_wrong_setting_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="readers"):
        load(readers="many")


def test_an_unknown_keyword_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"^'reeders' is not a setting; did you mean 'readers'\?$"):
        load(reeders=8)


def test_an_unknown_keyword_that_is_near_to_nothing_lists_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"^'xyz' is not a setting; the settings are readers, .*, disable$"):
        load(xyz=8)


def test_an_unknown_url_key_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'write_timout' is not a setting; did you mean 'write_timeout'\?$"):
        load("walpool://a.db?write_timout=5")


def test_a_url_does_not_hold_another_url() -> None:
    with pytest.raises(ConfigError, match="the URL's key 'url' is not a setting"):
        load("walpool://a.db?url=b.db")


@pytest.fixture
def _nothing_warned_of_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_warned", set())


@pytest.mark.usefixtures("_nothing_warned_of_yet")
def test_an_unknown_variable_warns_once_with_the_nearest_name() -> None:
    env = {"WALPOOL_READRES": "8", "WALPOOL_readers": "8", "PATH": "/bin", "WALPOOLS": "x"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load(env=env).explicit == frozenset()
        load(env=env)
    assert [(type(item.message), str(item.message)) for item in caught] == [
        (ConfigWarning, f"the environment variable {name} is not a walpool setting; did you mean 'WALPOOL_READERS'?")
        for name in ("WALPOOL_READRES", "WALPOOL_readers")
    ]


@pytest.mark.usefixtures("_nothing_warned_of_yet")
def test_the_warning_points_at_the_line_that_loads_the_settings() -> None:
    with pytest.warns(ConfigWarning) as caught:
        Settings.load(env={"WALPOOL_XYZ": "1"})
    assert caught[0].filename == __file__


@pytest.mark.usefixtures("_nothing_warned_of_yet")
def test_an_unknown_variable_stays_an_error_where_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(ConfigWarning, match="WALPOOL_XYZ"):
                load(env={"WALPOOL_XYZ": "1"})


# Explaining


def test_an_explanation_has_a_row_for_each_setting_and_aligns_as_text() -> None:
    explanation = load("a.db", {"WALPOOL_WAL_LIMIT": "128MiB"}).explain()
    assert [row.name for row in explanation] == list(SPECS)
    lines = str(explanation).splitlines()
    assert len(lines) == len(SPECS)
    assert len({line.index(row.origin, 20) for line, row in zip(lines, explanation, strict=True)}) == 1
    row = next(row for row in explanation if row.name == "wal_limit")
    assert (row.value, row.text) == (128 * 1024**2, "128MiB")
    assert str(row) == "wal_limit = 128MiB (environment WALPOOL_WAL_LIMIT)"


def test_values_hold_durations_as_float_seconds() -> None:
    values = load(busy_timeout=2, write_timeout="500ms").values()
    assert (values["busy_timeout"], values["write_timeout"]) == (2.0, 0.5)
    assert type(values["busy_timeout"]) is float


def test_repr_names_the_path_and_each_value() -> None:
    assert repr(load("a.db", readers=5)).startswith("Settings(path='a.db', readers=5, synchronous='full', ")


# Passwords

SECRET_URLS = [
    "postgresql://ann:hunter2@db/agents",
    "postgresql://ann:hunter2@db:5432,db2:5432/agents?max_group=8",
    "postgres://:hunter2@db/agents",
    "postgresql://ann:hunter2@[::1]:5432/agents",
    "postgresql://ann:p@hunter2@db/agents",
    "postgresql://ann:p/hunter2@db/agents",
    "postgresql://ann:p?hunter2@db/agents",
    "postgresql://ann@db/agents?password=hunter2&max_group=8",
    "postgresql://ann@db/agents?pass%77ord=hunter2",
    "postgresql://ann@db/agents?sslpassword=hunter2",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_password_is_never_shown(url: str) -> None:
    loaded = load(url)
    assert (loaded.url, loaded.values()["url"]) == (url, url)
    shown = repr(loaded) + str(loaded) + str(loaded.explain()) + repr(loaded.explain())
    assert "hunter2" not in shown
    assert "***" in shown


@pytest.mark.parametrize("url", [*SECRET_URLS, "mysql://ann:hunter2@db/agents", "sqlite://ann:hunter2@db/agents"])
def test_a_password_stands_in_no_error(url: str) -> None:
    wrong = url.replace("postgres", "pg")
    for attempt in (lambda: load(wrong), lambda: load(url=wrong), lambda: load(env={"WALPOOL_URL": wrong})):
        with pytest.raises(ConfigError) as error:
            attempt()
        assert "hunter2" not in str(error.value)
    with pytest.raises(ConfigError) as error:
        load(readers=url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql://ann@db:5432/agents?application_name=x", "postgresql://[::1]:5432/agents", "walpool:///srv/a:b.db"],
)
def test_a_url_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert next(row.text for row in load(url).explain() if row.name == "url") == url


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_password_is_not_pickled(url: str) -> None:
    loaded = load(url)
    pickled = pickle.dumps(loaded)
    assert b"hunter2" not in pickled
    again = pickle.loads(pickled)
    assert again.url is not None
    assert "***" not in again.url
    assert dataclasses.replace(again, url=None) == dataclasses.replace(loaded, url=None)


def test_a_pickled_url_keeps_all_but_the_password() -> None:
    again = pickle.loads(pickle.dumps(load("postgresql://ann:x@db:1/agents?password=y&sslmode=require&sslpassword=z")))
    assert again.url == "postgresql://ann@db:1/agents?sslmode=require"


@pytest.mark.parametrize("path", ["a?password=x&y.db", "walpool://ann%3Ax@b.db", "/srv/bypass=1/a:b.db"])
def test_a_pickled_file_keeps_its_name(path: str) -> None:
    loaded = load(path)
    assert pickle.loads(pickle.dumps(loaded)).url == loaded.url == path


# Copies


def test_pickle_keeps_values_and_origins() -> None:
    loaded = load("walpool://a.db?readers=8", {"WALPOOL_WAL_LIMIT": "1MiB"}, max_group=3)
    again = pickle.loads(pickle.dumps(loaded))
    assert again == loaded
    assert hash(again) == hash(loaded)
    assert again.explain() == loaded.explain()
    assert again.explicit == loaded.explicit


def test_a_copy_keeps_the_password() -> None:
    loaded = load("postgresql://ann:hunter2@db/agents")
    assert copy.copy(loaded).url == copy.deepcopy(loaded).url == loaded.url


def test_settings_are_equal_whatever_their_origins() -> None:
    assert load(readers=8) == load(env={"WALPOOL_READERS": "8"})
    assert load(readers=8) != load(readers=9)


# The table in the docs


def documented_table() -> str:
    """Return the settings table in Markdown."""
    rows = ["| setting | default | takes | meaning |", "|---|---|---|---|"]
    for spec in SPECS.values():
        default = "–" if spec.default is None else f"`{settings._UNITS[spec.unit].show(spec.default)}`"
        takes = " or ".join(f"`{choice}`" for choice in spec.choices) or KINDS[spec.unit]
        takes += f", {spec.limits()}" if spec.limits() else ""
        rows.append(f"| `{spec.name}` | {DEFAULTS_OF_THE_MACHINE.get(spec.name, default)} | {takes} | {spec.doc} |")
    assert not any(spec.doc.count("|") for spec in SPECS.values()), "a bar in a doc would split its cell"
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("home", TABLE_HOMES, ids=lambda home: home.name)
def test_the_table_in_the_docs_is_the_engines(home: Path) -> None:
    tables = TABLE_MARKERS.findall(home.read_text(encoding="utf-8"))
    assert tables or home.name == "README.md", "the markers <!-- settings --> and <!-- /settings --> are gone"
    for table in tables:
        assert table == documented_table(), "run: python tests/test_settings.py"


def write_tables() -> None:
    for home in TABLE_HOMES:
        text = home.read_text(encoding="utf-8")
        home.write_text(TABLE_MARKERS.sub(lambda _: documented_table(), text), encoding="utf-8")


if __name__ == "__main__":
    write_tables()
