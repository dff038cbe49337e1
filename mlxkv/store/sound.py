"""Whether values from the database can be what was written there: a damaged page may hold any value, of any type, and
digests become paths.

Turns need none of this: their chain of digests covers them. Pure; any thread.
"""

from __future__ import annotations

import re

_LAST = 253_402_300_799.0  # seconds: the end of the year 9999
_DIGEST = re.compile(r"[0-9a-f]{32}")


def is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_chunk(digest: object, size: object, group: object, a: object, b: object, key: object = "") -> bool:
    """Whether a row of `chunk` can be one: only its checksum and its key tell whether it is true."""
    if not (is_digest(digest) and isinstance(group, str) and isinstance(key, str)):
        return False
    return isinstance(size, int) and isinstance(a, int) and isinstance(b, int) and size > 0 and 0 <= a < b


def as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def as_time(value: object) -> float:
    """Seconds since the epoch, that any calendar knows."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= _LAST else 0.0
