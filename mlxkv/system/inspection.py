"""How objects look to someone who inspects them: `dir()`, Markdown for a notebook, and what a copy of them is.

Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from mlxkv.errors import ArgumentError

T = TypeVar("T")


def hides(*internal: str) -> Callable[[type[T]], type[T]]:
    """Decorator of a class: `dir()` and completion leave out these names and those with an underscore."""

    def wrap(cls: type[T]) -> type[T]:
        def listed(self: object) -> list[str]:
            names = {*object.__dir__(self)} - {*internal}
            return sorted(name for name in names if name.startswith("__") or not name.startswith("_"))

        cls.__dir__ = listed  # type: ignore[method-assign]
        return cls

    return wrap


def copies(advice: str, *, by: str = "") -> Callable[[type[T]], type[T]]:
    """Decorator of a class whose instances cannot be pickled: the error ends with `advice`.

    `copy.copy` and `copy.deepcopy` call the method `by`; without it they raise the same error.
    """

    def wrap(cls: type[T]) -> type[T]:
        def refuse(self: object, *_: object) -> NoReturn:
            raise ArgumentError(f"A {cls.__name__} cannot be {'pickled' if by else 'copied or pickled'}: {advice}")

        def copied(self: Any, *_: object) -> Any:
            return getattr(self, by)()

        for name in ("__copy__", "__deepcopy__"):
            setattr(cls, name, copied if by else refuse)
        cls.__reduce_ex__ = refuse  # type: ignore[method-assign]
        return cls

    return wrap


def twin(original: T) -> T:
    """An object of the same class with the same attributes, as `copy.copy` makes one of a class without `__copy__`."""
    made = object.__new__(type(original))
    vars(made).update(vars(original))
    return made


def table(rows: Iterable[tuple[str, str]]) -> str:
    """A Markdown table of names and values."""
    cells = (f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows)
    return "\n".join(["| | |", "|---|--:|", *cells])
