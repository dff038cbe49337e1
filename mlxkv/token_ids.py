"""Packed token ids, which are copied and compared as memory, and the common prefix of two sequences.

Pure; any thread.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, SupportsIndex, overload


class IdArray(Protocol):
    """An array of numpy or MLX with one dimension, shape (tokens,)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def tolist(self) -> Any: ...


PromptIds = Sequence[SupportsIndex] | IdArray  # token ids as a caller may give them


class TokenIds(Sequence[int]):
    """Token ids at four bytes each: equal to a tuple or list of the same ids; immutable."""

    __slots__ = ("packed",)

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.packed: array[int] = packed(ids)

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> TokenIds: ...
    def __getitem__(self, at: int | slice) -> int | TokenIds:
        found = self.packed[at]
        return TokenIds(found) if isinstance(found, array) else found

    def __iter__(self) -> Iterator[int]:
        return iter(self.packed)

    def __add__(self, more: Iterable[int]) -> TokenIds:
        return TokenIds(self.packed + packed(more))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenIds | tuple | list | array):
            return NotImplemented
        return len(self) == len(other) and self.packed == packed(other)

    def __hash__(self) -> int:
        return hash(self.packed.tobytes())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"

    def count(self, value: int) -> int:
        return self.packed.count(value)


class TokenLog(TokenIds):
    """Token ids that can be extended and truncated."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.packed = packed(ids)[:]

    def extend(self, ids: Iterable[int]) -> None:
        self.packed.extend(packed(ids))

    def cut(self, length: int) -> None:
        """Keep only the first `length` ids."""
        del self.packed[length:]

    def clear(self) -> None:
        self.cut(0)


def packed(ids: Iterable[int]) -> array[int]:
    """The ids as int32; do not change the result, which may be `ids` itself.

    Raises:
        OverflowError, TypeError: one is not an int32.
    """
    if isinstance(ids, TokenIds):
        return ids.packed
    return ids if isinstance(ids, array) else array("i", ids)


def common_prefix(a: Sequence[int] | str, b: Sequence[int] | str) -> int:
    """Number of equal leading ids or characters.

    Binary search, since Python loops over 100,000 ids are slow; usually one sequence is a prefix of the other.
    """
    x, y = (a, b) if isinstance(a, str) and isinstance(b, str) else (_comparable(a), _comparable(b))
    low, high = 0, min(len(x), len(y))
    if x[:high] == y[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if x[low:middle] == y[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _comparable(ids: Sequence[int] | str) -> array[int] | list[int]:
    try:
        return packed(ids)  # type: ignore[arg-type]
    except (OverflowError, TypeError):
        return list(ids)  # type: ignore[arg-type]
