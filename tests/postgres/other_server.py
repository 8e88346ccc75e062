"""A PostgreSQL server that somebody else runs, for tests: reached by a URL, and by no other way."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from benches.postgres_server import Databases


class OtherServer(Databases):
    """The server of a URL whose user may create databases."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)

    def url(self, *, database: str | None = None, user: str | None = None, password: str | None = None) -> str:
        """Return the server's URL, with another database or another login where one is given."""
        login, at, place = self._parts.netloc.rpartition("@")
        if user is not None:
            login, at = quote(user, safe="") + ("" if password is None else f":{quote(password, safe='')}"), "@"
        path = self._parts.path if database is None else f"/{quote(database, safe='')}"
        query = self._parts.query and f"?{self._parts.query}"
        # Not by urlunsplit, which leaves out the slashes before an empty place, that of a socket.
        return f"{self._parts.scheme}://{login}{at}{place}{path}{query}"
