"""Names for sessions (ULIDs) and temporary files; no path is ever built from any other string. Any thread."""

from __future__ import annotations

import os
import re
import time

from mlxkv.errors import SessionNotFoundError

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U
_ULID = re.compile(rf"[0-7][{_ALPHABET}]{{25}}")


def new_ulid(now: float | None = None) -> str:
    """A new ULID: 26 characters, 48 bits of milliseconds and 80 random bits. Sorts by time. See
    github.com/ulid/spec."""
    milliseconds = int((time.time() if now is None else now) * 1000) & (1 << 48) - 1
    number = milliseconds << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    return _ULID.fullmatch(text) is not None


def checked_ulid(text: str) -> str:
    """`text` if it is a session id. Raises SessionNotFoundError otherwise."""
    if not is_ulid(text):
        raise SessionNotFoundError(f"{text[:80]!r} is not a session id; `mlxkv chats ls` lists them.")
    return text


def random_name() -> str:
    return os.urandom(16).hex()
