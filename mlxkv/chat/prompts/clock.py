"""The clock of a chat: its template always prints the local time at which the chat began.

Otherwise a template that prints the date would change the beginning of every prompt at midnight. Pure except `now`.
"""

from __future__ import annotations

from datetime import datetime


def now() -> datetime:
    return datetime.now().astimezone().replace(microsecond=0)


def from_text(text: str | None) -> datetime | None:
    """Parse an ISO 8601 time with an offset; None if it is not one."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def from_seconds(seconds: float) -> datetime:
    """The local time of a UNIX time; now if it is out of range."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().replace(microsecond=0)
    except (ValueError, OverflowError, OSError):
        return now()
