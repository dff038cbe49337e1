"""Whether values from the database can be what was written there: a damaged page may hold any value, of any type, and
digests become paths.

Turns need none of this: their chain of digests covers them. Pure; any thread.
"""

from __future__ import annotations

import datetime
import re

_LAST = 253_402_214_400.0  # seconds: a day before the year 10000, which begins earlier in the east
_DIGEST = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLOCK = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", re.ASCII)
MAX_SEED = (1 << 63) - 1


def is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def is_chunk(digest: object, size: object, group: object, a: object, b: object, key: object = "") -> bool:
    """Whether a row of `chunk` can be one: only its checksum and its key tell whether it is true."""
    if not (is_digest(digest) and isinstance(group, str) and isinstance(key, str)):
        return False
    return isinstance(size, int) and isinstance(a, int) and isinstance(b, int) and size > 0 and 0 <= a < b


def is_clock(value: object) -> bool:
    """Whether it is a local time with its offset, to the second: "2026-11-29T23:58:12+01:00"."""
    if not (isinstance(value, str) and _CLOCK.fullmatch(value)):
        return False
    try:
        return datetime.datetime.fromisoformat(value).astimezone(datetime.UTC) is not None
    except (ValueError, OverflowError):
        return False


def is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_SEED


def as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def as_time(value: object) -> float:
    """Seconds since the epoch, that any calendar knows."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= _LAST else 0.0
