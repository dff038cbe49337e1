"""The clock of a chat: the local time it began at, which its template prints for as long as the chat lasts.

Otherwise a template that prints today's date would change the front of every prompt at midnight. Pure but for `now`.
"""

from __future__ import annotations

from datetime import datetime


def now() -> datetime:
    return datetime.now().astimezone().replace(microsecond=0)


def from_text(text: str | None) -> datetime | None:
    """The time that `isoformat` wrote; None where it is not one with an offset."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def from_seconds(seconds: float) -> datetime:
    """The local time of a UNIX time; now where no calendar knows it."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().replace(microsecond=0)
    except (ValueError, OverflowError, OSError):
        return now()
