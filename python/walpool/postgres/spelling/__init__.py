"""How PostgreSQL spells values that other databases keep as text or numbers: a module for each family of types.

All that is known of one type stands in one `Spelling`: what may be written for a value, what the server gives back for
it (`CAST(x AS text)` in UTC, intervals as ISO 8601), how that is sent in binary, and how it stands in an array's JSON.
Pure. The table of all of them is `walpool.postgres.binary.Form`.
"""

from __future__ import annotations

__all__: list[str] = []
