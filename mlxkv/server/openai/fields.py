"""Fields: the JSON object of a request, read field by field; what nobody read is refused, never ignored. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from mlxkv.server.errors import ApiError, invalid, shown, unsupported

T = TypeVar("T")
_MISSING = object()


class Fields:
    """One object of a request.

    Args:
        table: the object.
        path: where it is in the request, for messages; "" for the request itself.

    Every reader raises ApiError for a value of a wrong type or out of range; null counts as left out.
    """

    def __init__(self, table: Any, path: str = "") -> None:
        if not isinstance(table, dict):
            raise invalid(path or None, f"{path or 'The request'} is {shown(table)}; it must be an object.")
        self._table, self._path = table, path
        self._unread = dict.fromkeys(table)

    def path(self, name: str) -> str:
        """A field's name for messages."""
        return f"{self._path}.{name}" if self._path else name

    def has(self, name: str) -> bool:
        """Whether a field is given, and not null."""
        return self._table.get(name) is not None

    def any(self, name: str) -> Any:
        """A field's value, whatever it is; None if it is left out."""
        self._unread.pop(name, None)
        return self._table.get(name)

    def text(self, name: str, default: Any = None) -> Any:
        return self._read(name, default, "a string", lambda value: isinstance(value, str))

    def flag(self, name: str, default: Any = None) -> Any:
        return self._read(name, default, "true or false", lambda value: isinstance(value, bool))

    def whole(self, name: str, low: float = -math.inf, high: float = math.inf, default: Any = None) -> Any:
        def fits(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

        return self._read(name, default, f"a whole number{_range(low, high)}", fits)

    def number(self, name: str, low: float = -math.inf, high: float = math.inf, default: Any = None) -> Any:
        def fits(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

        return self._read(name, default, f"a number{_range(low, high)}", fits)

    def table(self, name: str) -> Fields | None:
        """A field that is an object; None if it is left out."""
        value = self.any(name)
        return None if value is None else Fields(value, self.path(name))

    def items(self, name: str) -> list[Any]:
        """A field that is a list; empty if it is left out."""
        return self._read(name, [], "a list", lambda value: isinstance(value, list))

    def only(self, name: str, allowed: Collection[Any], why: str) -> Any:
        """A field of which only some values are honoured; `why` says why not others."""
        value = self.any(name)
        if value is not None and not any(value == other and type(value) is type(other) for other in allowed):
            raise unsupported(self.path(name), f"{shown(value)} was asked for, and {why}")
        return value

    def refuse(self, *names: str, why: str) -> None:
        """Refuse fields that are given."""
        for name in names:
            if self.any(name) is not None:
                raise unsupported(self.path(name), why)

    def labels(self, *names: str) -> None:
        """Fields that say nothing about the reply: labels for the client's own bookkeeping."""
        for name in names:
            self._unread.pop(name, None)

    def end(self) -> None:
        """Refuse what nobody has read."""
        for name in self._unread:
            if self._table[name] is not None:
                raise invalid(
                    self.path(name), f"Unknown parameter: `{self.path(name)}`; leave it out.", "unknown_parameter"
                )

    def _read(self, name: str, default: T, what: str, fits: Callable[[Any], bool]) -> Any | T:
        value = self.any(name)
        if value is None:
            return default
        if not fits(value):
            raise self.wrong(name, value, what)
        return value

    def wrong(self, name: str, value: Any, what: str) -> ApiError:
        """An error about a field's value."""
        path = self.path(name)
        return invalid(path, f"`{path}` is {shown(value)}; it must be {what}.", "invalid_value")


def _range(low: float, high: float) -> str:
    if low == -math.inf:
        return ""
    return f" from {low:g}" if high == math.inf else f" from {low:g} to {high:g}"
