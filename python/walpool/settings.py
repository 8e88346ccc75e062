"""`Settings`: every setting of a pool, where its value came from, and the text forms it may be written in.

Owns the precedence (keyword, URL, environment, default), the URL forms, and hiding passwords. Names, defaults, units
and limits are `_core.setting_table()`'s, read when settings are loaded, never at import. Must not know pools.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import string
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import unquote

from walpool import _core
from walpool.errors import ConfigError

__all__ = ["ConfigWarning", "Explained", "Explanation", "Settings"]

_PREFIX = "WALPOOL_"
SERVER_READERS = 4
"""Readers of a server by default, at least: they wait for the network, and the cores here are not the measure."""


class ConfigWarning(UserWarning):
    """The environment holds a `WALPOOL_*` variable that is no setting; said once for each name in a process."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The settings of one pool: immutable, checked, and each with the place that it came from.

    Made by `Settings.load`. What each field means, its default and its limits: docs/settings.md, which is checked
    against the engine's own table.
    """

    __module__ = "walpool"  # where users import it from

    path: str | None
    """The database file, as it was given, or `:memory:`; None for a Postgres URL, or where nothing was given."""

    readers: int
    synchronous: str  # "full" or "normal"
    checkout_timeout: float  # seconds, like every duration here
    write_timeout: float
    transaction_timeout: float
    busy_timeout: float
    max_waiting: int
    max_waiting_bytes: int
    max_group: int
    max_group_bytes: int
    foreign_keys: bool
    file_mode: int  # permission bits
    write_retired: bool
    cache_size: int  # bytes
    statement_cache: int
    sketch_memory: int  # bytes
    wal_limit: int  # bytes
    slow_threshold: float
    url: str | None  # the path or URL as it was given, password and all
    disable: bool

    _origins: dict[str, str] = field(compare=False)

    @classmethod
    def load(
        cls,
        path_or_url: str | os.PathLike[str] | None = None,
        /,
        *,
        env: Mapping[str, str] | None = None,
        **overrides: object,
    ) -> Settings:
        """Return the settings for `path_or_url`, each from the first place that gives it.

        The places: the keyword; the URL's query; the environment variable `WALPOOL_<NAME>` (empty counts as not set);
        the default. Only the value that wins is checked. `path_or_url` is the setting `url` and wins over all other
        places; without it the keyword `url` or `WALPOOL_URL` says which database, and that URL's query counts.

        Args:
            path_or_url: a path, taken as it is (`~` and `?` mean nothing in it), or `:memory:`; or one of the URLs
                `walpool:///absolute.db`, `walpool://relative.db`, `sqlite:////absolute.db`, `sqlite:///relative.db`
                and `postgresql://...`, with settings in its query: `?readers=8&synchronous=normal`.
            env: the environment to read; None reads `os.environ`.
            **overrides: settings by name, as Python values or in the text forms of docs/settings.md.

        Raises:
            ConfigError: a value, a keyword or a key of the URL is not accepted; the message says what is.

        Warns:
            ConfigWarning: a variable that begins with `WALPOOL_` is no setting; once for each name in a process.
        """
        table = [_Spec(*row) for row in _core.setting_table()]
        names = [spec.name for spec in table]
        keywords = _from_keywords(names, path_or_url, overrides)
        environment = _from_environment(names, os.environ if env is None else env)
        target = keywords.get("url") or environment.get("url")
        path, query = _from_target(names, target) if target else (None, {})
        given = {**environment, **query, **keywords}
        values: dict[str, Any] = {spec.name: spec.resolve(given.get(spec.name)) for spec in table}
        if target and path is None and "readers" not in given:
            values["readers"] = max(values["readers"], SERVER_READERS)
        origins = {name: given[name].origin if name in given else "default" for name in names}
        return cls(path=path, _origins=origins, **values)

    @property
    def explicit(self) -> frozenset[str]:
        """The names of the settings whose value is not the default's."""
        return frozenset(name for name, origin in self._origins.items() if origin != "default")

    @property
    def shown_url(self) -> str | None:
        """The path or URL with its passwords masked: what a message may show."""
        return None if self.url is None else str(_shown(self.url))

    def values(self) -> dict[str, object]:
        """Return each setting by name, durations as float seconds, sizes as bytes; a password in `url` stands there."""
        return {name: getattr(self, name) for name in self._origins}

    def keywords(self) -> dict[str, Any]:
        """Return what was given besides the URL, as keywords that open another pool with the same settings."""
        return {name: value for name, value in self.values().items() if name in self.explicit - {"url"}}

    def explain(self) -> Explanation:
        """Return a row for each setting: its name, its value and where that came from; passwords are masked."""
        units = {spec.name: spec.unit for spec in (_Spec(*row) for row in _core.setting_table())}
        return Explanation(
            Explained(name, _shown(value), _UNITS[units[name]].show(value), self._origins[name])
            for name, value in self.values().items()
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={_shown(getattr(self, f.name))!r}" for f in fields(self) if f.name != "_origins")
        return f"Settings({shown})"

    # Immutable, so a copy is the object itself; only a pickle leaves the process, and it must not carry a password.
    def __copy__(self) -> Settings:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Settings:
        return self

    def __getstate__(self) -> dict[str, object]:
        # A file's URL has none, and what looks like one in it may be the file's name.
        return {**self.__dict__, "url": _without_password(self.url) if self.path is None else self.url}


class Explained(NamedTuple):
    """One setting, its value and the place that it came from."""

    name: str
    value: object
    """As in `Settings`, but with passwords masked."""
    text: str
    """The value as it may be written in a variable or a URL, such as `64MiB`; `-` for none."""
    origin: str
    """`keyword`, `argument` (the path or URL itself), `url ?readers=8`, `environment WALPOOL_READERS` or `default`."""

    def __str__(self) -> str:
        return f"{self.name} = {self.text} ({self.origin})"


class Explanation(list[Explained]):
    """The rows of `Settings.explain()`, in the order of the settings table; `str()` aligns them, one a line."""

    def __str__(self) -> str:
        name = max((len(row.name) for row in self), default=0)
        text = max((len(row.text) for row in self), default=0)
        return "\n".join(f"{row.name:{name}}  {row.text:{text}}  {row.origin}" for row in self)


# Where values are given: each place yields what it gives by name.


class _Given(NamedTuple):
    """A value somebody gave, unchecked: where it stands, and how an error quotes it there."""

    value: object
    origin: str
    quote: str


def _from_keywords(names: list[str], target: object, overrides: Mapping[str, object]) -> dict[str, _Given]:
    for name in overrides:
        if name not in names:
            raise ConfigError(f"{name!r} is not a setting{_nearest(name, names)}")
    given = {
        name: _Given(value, "keyword", f"{name}={_quoted(value)}")
        for name, value in overrides.items()
        if name != "url" or value is not None  # callers pass their own `url=None` on
    }
    if target is not None:
        given["url"] = _Given(target, "argument", _quoted(target))
    return given


def _from_environment(names: list[str], env: Mapping[str, str]) -> dict[str, _Given]:
    known = {_PREFIX + name.upper(): name for name in names}
    for variable in sorted(env):
        if variable.startswith(_PREFIX) and variable not in known:
            _warn_once(variable, list(known))
    return {
        name: _Given(env[variable], f"environment {variable}", f"{variable}={_quoted(env[variable])}")
        for variable, name in known.items()
        if env.get(variable, "").strip()
    }


_warned: set[str] = set()  # names of variables; a process hears about each once, however often it loads settings


def _warn_once(variable: str, known: list[str]) -> None:
    if variable not in _warned:
        message = f"the environment variable {variable} is not a walpool setting{_nearest(variable.upper(), known)}"
        warnings.warn(message, ConfigWarning, stacklevel=4)  # the line that called `Settings.load`
        _warned.add(variable)  # after the warning: where it is an error, it stays one


def _nearest(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else f"; the settings are {', '.join(known)}"


# The path or URL: which file, and which settings in its query.

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)  # two letters at least: `C://` is a path
_POSTGRES = ("postgresql", "postgres")
# As a path it would be shown, password and all: `postgres:/host`, or a URL in quotes, or behind another scheme.
_NEARLY_URL = re.compile(r"\A\s*postgres(ql)?:|[A-Za-z0-9+.-]{2}://", re.IGNORECASE)
_KEYWORDS = re.compile(r"\s*(?:host|hostaddr|port|user|dbname|service)\s*=")  # libpq's other form: never a file's name
_TARGETS = (
    "a path, :memory:, walpool:///absolute.db, walpool://relative.db, sqlite:////absolute.db, sqlite:///relative.db "
    "or postgresql://host/name"
)


def _from_target(names: list[str], given: _Given) -> tuple[str | None, dict[str, _Given]]:
    """Return the file that a path or URL names (None for Postgres), and what its query gives."""
    text = _parse_text(given.value)
    if not text or text.startswith("file:"):  # not a path in disguise: SQLite would read it as a URI of its own
        raise ConfigError(f"{given.quote} is not accepted: use {_TARGETS}")
    url = _URL.fullmatch(text)
    if url is None:
        if isinstance(given.value, str) and _KEYWORDS.match(text):  # not quoted: a password stands there
            raise ConfigError(f"libpq's keywords ({given.origin}) are not accepted: write postgresql://user@host/name")
        if _NEARLY_URL.search(text):
            raise ConfigError(f"{given.quote} is not accepted: use {_TARGETS}")
        return text, {}
    scheme, (location, _, query) = url[1].lower(), url[2].partition("?")
    if scheme in _POSTGRES:
        return None, _from_query(names, query, others_allowed=True)  # what is no setting belongs to libpq
    path = {"walpool": location, "sqlite": location[1:] if location.startswith("/") else ""}.get(scheme)
    if not path or _replace_password(text, "") != text:  # a file has no user and no password
        raise ConfigError(f"{given.quote} is not accepted: use {_TARGETS}")
    return unquote(path), _from_query(names, query, others_allowed=False)


def _from_query(names: list[str], query: str, *, others_allowed: bool) -> dict[str, _Given]:
    keys = [name for name in names if name != "url"]  # a URL does not hold another one
    given: dict[str, _Given] = {}
    for key, value in _pairs(query):
        if key in given:
            raise ConfigError(f"the URL gives {key} twice")
        if key in keys:
            origin = f"url ?{key}={masked(value)}"
            given[key] = _Given(value, origin, origin)
        elif not others_allowed:
            raise ConfigError(f"the URL's key {masked(key)!r} is not a setting{_nearest(key, keys)}")
    return given


def _pairs(query: str) -> list[tuple[str, str]]:
    parts = (pair.partition("=") for pair in query.split("&") if pair)
    return [(unquote(key), unquote(value)) for key, _, value in parts]


# Passwords: shown never, pickled never.


def _written(word: str) -> str:
    """Return a pattern for a word, each character of which may be percent-encoded."""
    return "".join(f"(?:{re.escape(each)}|%{ord(each):x}|%{ord(each.upper()):x})" for each in word)


# A scheme and a user. The password goes on to the last @ of the whole text, though a URL's own ends at the first slash:
# a password with an unescaped slash or question mark in it is a wrong URL, and must not be printed either. For a server
# the colon may be encoded by mistake, which makes the password a piece of the name; in a file's name it is none.
_USER = re.compile(  # with bounds, or it takes long on a long text
    r"(postgres[a-z0-9+.-]{0,23}:/*(?:(?!%3A)[^:@/?])*)%3A|([a-z][a-z0-9+.-]{1,30}:/*[^:@/?]*):", re.IGNORECASE
)
# libpq's keys of secrets, and what people write for them. Anywhere in a URL: behind a wrong separator, with blanks
# before the equals sign, in the value of another key. And a user's name in the query, up to its colon; and a URL in
# such a value, up to the same.
_SECRET = re.compile(
    rf"(?:{'|'.join(map(_written, ('password', 'passwd', 'passphrase', 'pass', 'pwd', 'secret')))}"
    rf"|{_written('scram_client_key')}|{_written('scram_server_key')})(?:\s|\+|%20|%09|%0a|%0d){{0,30}}(?:=|%3D)"
    rf"|(?<=[?&]){_written('user')}=(?:[\w.@-]|%(?!3[AD])[0-9a-f]{{2}})*(?::|%3A)"
    r"|%3A(?:/|%2F){2}(?:(?!%3[AD])[^:@/?&=;])*(?::|%3A)",
    re.IGNORECASE,
)
_OF_KEYS = string.ascii_letters + string.digits + "_%"
_PAIR = re.compile("[&?]([^&?=]*)=")
_LIBPQ_KEYS = frozenset((
    "service", "user", "password", "passfile", "channel_binding", "connect_timeout", "dbname", "host", "hostaddr",
    "port", "client_encoding", "options", "application_name", "fallback_application_name", "keepalives",
    "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout", "sslmode", "sslnegotiation",
    "sslcompression", "sslcert", "sslkey", "sslcertmode", "sslpassword", "sslrootcert", "sslcrl", "sslcrldir",
    "sslsni", "requirepeer", "require_auth", "min_protocol_version", "max_protocol_version",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "gssencmode", "krbsrvname", "gsslib", "gssdelegation",
    "replication", "target_session_attrs", "load_balance_hosts", "scram_client_key", "scram_server_key",
    "oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope", "sslkeylogfile",
))  # fmt: skip
"""Keys that end a password where they follow it: any other may be a piece of one with an unescaped & in it."""


def masked(url: str) -> str:
    """Return a URL, or a piece of one, with asterisks for what is or may be a password."""
    return _replace_secrets(_replace_password(url, ":***"), "***")


def _shown(value: object) -> object:
    """Return `value`, with the passwords masked if it is a URL."""
    if not isinstance(value, str) or ":" not in value:
        return value
    return masked(value)


def _without_password(url: str | None) -> str | None:
    """Return `url` with no password in it, so that libpq looks for it in PGPASSWORD or its password file."""
    return url and _replace_secrets(_replace_password(url, ""), None)


def _replace_password(url: str, mask: str) -> str:
    before, _, host = url.rpartition("@")
    found = _USER.search(before)
    return url if found is None else f"{found.string[: found.end(found.lastindex or 0)]}{mask}@{host}"


def _replace_secrets(url: str, mask: str | None) -> str:
    """Replace the values of secret keys, each up to what is surely the next key; None takes the keys out too."""
    kept, position = "", 0
    for found in _SECRET.finditer(url):
        if found.start() >= position:
            before = url[position : found.start()]
            kept += before.rstrip(_OF_KEYS).removesuffix("&") if mask is None else before + found[0] + mask
            position = _behind_secret(url, found.end())
    kept += url[position:]
    return kept if mask is not None else kept.replace("?&", "?")


def _behind_secret(url: str, start: int) -> int:
    known = _LIBPQ_KEYS.union(row[0] for row in _core.setting_table())
    marks = "&" if "?" in url[:start] else "&?"  # in the query, ? is a character like others
    following = _PAIR.finditer(url, start)
    return next((pair.start() for pair in following if pair[0][0] in marks and unquote(pair[1]) in known), len(url))


_REPR = reprlib.Repr()  # of objects that nest for ever, or have no repr
_REPR.maxstring = _REPR.maxother = sys.maxsize  # cut below, when the passwords are masked


def _quoted(value: object) -> str:
    quoted = repr(_shown(value)) if isinstance(value, str) else str(_shown(_REPR.repr(value)))
    return quoted if len(quoted) <= 100 else f"{quoted[:96]}...{quoted[-1]}"


# Units: how each is read and written. A parser returns None for what it does not understand.


class _Spec(NamedTuple):
    """One row of `_core.setting_table()`."""

    name: str
    unit: str
    default: Any
    minimum: Any
    maximum: Any
    choices: tuple[str, ...]
    doc: str

    def resolve(self, given: _Given | None) -> Any:
        """Return the checked value of what was given, or the default."""
        if given is None:
            return self.default
        value = _UNITS[self.unit].parse(given.value)
        if value is None or not self._allows(value):
            raise ConfigError(f"{given.quote} is not accepted: {self.name} takes {self.accepts()}")
        return value

    def accepts(self) -> str:
        """Return what the setting takes, in words."""
        what = " or ".join(self.choices) or _UNITS[self.unit].accepts
        return f"{what}, {self.limits()}" if self.limits() else what

    def limits(self) -> str:
        """Return the range in words; empty where the unit has no order."""
        show = _UNITS[self.unit].show
        return "" if self.minimum is None else f"from {show(self.minimum)} to {show(self.maximum)}"

    def _allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return self.minimum is None or bool(self.minimum <= value <= self.maximum)


def _parse_whole(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


_SECONDS = {"": Decimal(1), "ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


def _parse_duration(value: object) -> float | None:
    if isinstance(value, str):
        scaled = _scaled(value, _SECONDS)
        seconds = None if scaled is None else float(scaled)
    else:
        seconds = value if isinstance(value, float) else _parse_whole(value)
    return None if seconds is None else float(seconds)  # the limits refuse infinity and NaN


def _show_duration(seconds: float) -> str:
    # The unit in which it is easiest to read; nothing is lost, and the same float is read back.
    unit = "ms" if 0 < seconds < 1 else "h" if seconds and seconds % 3600 == 0 else "s"
    number = Decimal(repr(float(seconds))) / _SECONDS[unit]
    return f"{number.normalize():f}{unit}"


_BYTES = {unit: Decimal(10) ** (3 * power) for power, unit in enumerate(("b", "kb", "mb", "gb", "tb"))}
_BYTES |= {unit: Decimal(1024) ** power for power, unit in enumerate(("", "kib", "mib", "gib", "tib"))}


def _parse_bytes(value: object) -> int | None:
    if not isinstance(value, str):
        return _parse_whole(value)
    scaled = _scaled(value.lower(), _BYTES)
    return int(scaled) if scaled is not None and scaled < 2**63 and scaled == scaled.to_integral_value() else None


def _show_bytes(count: int) -> str:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count and count % 1024**power == 0:
            return f"{count // 1024**power}{unit}"
    return str(count)


def _scaled(text: str, units: Mapping[str, Decimal]) -> Decimal | None:
    # Decimal, because 9 * 0.001 is not 0.009 in binary.
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = units.get(match[2]) if match else None
    return Decimal(match[1]) * unit if match and unit is not None else None


_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _parse_switch(value: object) -> bool | None:
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


def _parse_mode(value: object) -> int | None:
    if not isinstance(value, str):
        return _parse_whole(value)
    match = re.fullmatch(r"\s*(?:0o)?([0-7]{3,4})\s*", value)  # `600` too: nobody means it in decimal
    return int(match[1], 8) if match else None


def _parse_choice(value: object) -> str | None:
    return value.strip().lower() if isinstance(value, str) else None


def _parse_text(value: object) -> str | None:
    return os.fsdecode(value) if isinstance(value, (str, os.PathLike)) else None


class _Unit(NamedTuple):
    parse: Callable[[object], object]
    show: Callable[[Any], str]
    accepts: str


_UNITS = {
    "count": _Unit(_parse_whole, str, "a whole number"),
    "duration": _Unit(_parse_duration, _show_duration, "seconds, or a duration such as 500ms, 5s, 2m or 1h"),
    "bytes": _Unit(_parse_bytes, _show_bytes, "bytes, or a size such as 1024, 64MB or 64MiB"),
    "switch": _Unit(_parse_switch, lambda value: "on" if value else "off", "1, 0, true, false, yes, no, on or off"),
    "mode": _Unit(_parse_mode, lambda mode: f"0{mode:03o}", "permission bits in octal, such as 0600 or 0o600"),
    "choice": _Unit(_parse_choice, str, ""),
    "text": _Unit(_parse_text, lambda text: "-" if text is None else str(_shown(text)), _TARGETS),
}
