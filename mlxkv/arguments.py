"""Checks of the arguments of public functions: names and types.

`public` wraps a function: an unknown argument or a value of the wrong type raises at the call (also for generators), in
one sentence. The rules below take a name and a value and return the converted value: numbers of numpy, MLX and
`fractions` as Python's own, paths as `Path`. Pure, any thread.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from mlxkv.errors import ArgumentError, ConfigError, ModelNotFoundError, PromptError, printable

BOUNDS = ("window", "sinks", "bits")  # of `CacheConfig`, where callers look for them elsewhere
MAX_PROMPT_TOKENS = 4_000_000

P = ParamSpec("P")
R = TypeVar("R")
Rule = Callable[[str, Any], Any]
_MOST_SHOWN = 60  # characters of a value in a sentence
_LONGEST_NAME = 255  # bytes of a file's name: every file system here

# -- functions -------------------------------------------------------------------------------------------------------


def public(*more: str, **rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: check arguments on each call; `rules` by argument name.

    `more`: the keywords that its `**` argument takes. A method of an object with an `_owner` belongs to one thread.

    Raises (the wrapped function):
        ArgumentError: an argument is unknown or missing, or a value has the wrong type. ConfigError: a value is out of
        range. WrongThreadError: see `owner.Owner`.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        signature = functools.cache(lambda: inspect.signature(function))

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            is_method = next(iter(signature().parameters), "") == "self" and bool(args)
            if is_method and (owner := getattr(args[0], "_owner", None)) is not None:
                owner.check()
            name = f"{type(args[0]).__name__}.{function.__name__}" if is_method else f"mlxkv.{function.__name__}"
            bound = _bound(name, signature(), more, args, kwargs)
            for argument in bound.arguments.keys() & rules.keys():
                bound.arguments[argument] = rules[argument](argument, bound.arguments[argument])
            return function(*bound.args, **bound.kwargs)

        return checked

    return wrap


def keywords(cls: type[R]) -> type[R]:
    """Decorator of a dataclass: an unknown keyword raises an error that names the class and the closest field."""
    make: Any = cls.__init__
    signature = functools.cache(lambda: inspect.signature(make))

    @functools.wraps(make)
    def checked(self: R, *args: Any, **kwargs: Any) -> None:
        _bound(cls.__name__, signature(), (), (self, *args), kwargs)
        make(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def _bound(
    name: str, signature: inspect.Signature, more: Iterable[str], args: Iterable[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Bind `args` and `kwargs` to the parameters of the function `name`."""
    kinds = {p.name: p.kind for p in signature.parameters.values() if p.name != "self"}
    known = [n for n, kind in kinds.items() if kind is not inspect.Parameter.VAR_KEYWORD]
    known += [n for n in more if n not in kinds]
    for unknown in kwargs.keys() - {*known}:
        near = difflib.get_close_matches(unknown, known, 1) or [n for n in known if n.startswith(unknown)]
        if "cache" in known and unknown in BOUNDS:
            raise ArgumentError(f"`{name}` has no argument `{unknown}`; give `cache=mlxkv.CacheConfig({unknown}=...)`.")
        advice = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known) or 'none'}."
        raise ArgumentError(f"`{name}` has no argument `{printable(unknown)}`; {advice}")
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(
            f"`{name}` cannot be called that way ({error}); it has {', '.join(known) or 'none'}."
        ) from None


# -- values ----------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """`value` for a sentence: one short, printable line, even if its `repr` fails."""
    try:
        text = " ".join(reprlib.repr(value).split())
    except Exception:  # a number of 5,000 digits, or a class of the caller
        text = f"a value of type {type(value).__name__}"
    text = printable(text)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 4]} ..."


def wrong_type(name: str, value: object, rule: str, advice: str = "") -> NoReturn:
    """Raises ArgumentError."""
    raise ArgumentError(f"`{name}` is {shown(value)}; it must be {rule}{f': {advice}' if advice else ''}.")


def optional(rule: Rule) -> Rule:
    """Accept None, or what `rule` accepts."""
    return lambda name, value: None if value is None else rule(name, value)


def text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    advice = "decode the bytes first" if isinstance(value, bytes | bytearray) else ""
    if isinstance(value, list | tuple) and value and all(_is_number(x) for x in value):
        advice = "token ids are read by `Model.prefill`"
    wrong_type(name, value, "text (str)", advice)


def label(name: str, value: Any) -> str:
    """Accept text that is valid as an id."""
    try:
        text(name, value).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"`{name}` is {shown(value)}, which contains half a character; it must be text.") from None
    return value


def path(name: str, value: Any) -> Path:
    """A file or folder, as str or os.PathLike of str."""
    found = value
    if not isinstance(value, str):
        try:
            found = os.fspath(value)
        except Exception:  # a class of the caller may raise anything
            found = None
    if not isinstance(found, str):
        wrong_type(name, value, "a path (str or os.PathLike)")
    try:
        is_possible = bool(found) and "\0" not in found and _is_short(found)
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise ConfigError(f"`{name}` is {shown(value)}; no file can have that name.")
    return Path(found)


def model_name(name: str, value: Any) -> str:
    """A built-in model, a repository id or a folder; a path object always means a folder."""
    if isinstance(value, str):
        if not _is_short(value, "surrogatepass"):
            raise ModelNotFoundError(f"{shown(value)} is not a model; no folder or repository has a name that long.")
        return value
    if not isinstance(value, os.PathLike):
        wrong_type(name, value, "the name of a model (str) or its folder (os.PathLike)")
    return os.path.abspath(os.path.expanduser(path(name, value)))


def flag(name: str, value: Any) -> bool:
    plain = _plain(value)
    if isinstance(plain, bool) or (isinstance(plain, int) and plain in (0, 1)):
        return bool(plain)
    wrong_type(name, value, "True or False")


def whole(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, word: str = "") -> int:
    """A whole number from `low` to `high`; `word` names other valid values."""
    plain = _plain(value)
    rule = f"a whole number{_span(low, high)}{word}"
    if isinstance(plain, bool | str):
        wrong_type(name, value, rule)
    try:
        number = operator.index(plain)
    except Exception:  # a class of the caller may raise anything
        wrong_type(name, value, rule)
    if not low <= number <= high:
        raise ConfigError(f"`{name}` is {shown(value)}; it must be {rule}.")
    return number


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`: whatever has `__float__` or `__index__`; text has neither."""
    plain = _plain(value)
    rule = f"a number{_span(low, high)}"
    if isinstance(plain, bool) or not _is_number(plain):
        wrong_type(name, value, rule)
    found = math.nan
    try:
        found = plain if isinstance(plain, int) else float(plain)
        is_possible = math.isfinite(found) and low <= found <= high
    except Exception:  # a Decimal that signals, an integer of 5,000 digits, a class of the caller
        is_possible = False
    if not is_possible:
        raise ConfigError(f"`{name}` is {shown(value)}; it must be {rule}.")
    return found


def function(name: str, value: Any) -> Any:
    return value if callable(value) else wrong_type(name, value, "a function")


def instance(*types: type, advice: str = "") -> Rule:
    """Accept an instance of one of our classes."""

    def rule(name: str, value: Any) -> Any:
        if isinstance(value, types):
            return value
        names = (f"{'an' if t.__name__[0] in 'AEIOU' else 'a'} {t.__name__}" for t in types)
        wrong_type(name, value, " or ".join(names), advice)

    return rule


def token_ids(name: str, value: Any) -> list[Any]:
    """Elements of a list, tuple, one-dimensional array or other sequence; unchecked."""
    listed = getattr(value, "tolist", None)
    if callable(listed) and len(getattr(value, "shape", (0,))) == 1 and not isinstance(value, memoryview):
        return list(listed())  # type: ignore[call-overload]
    is_sequence = hasattr(value, "__len__") and hasattr(value, "__getitem__") and not hasattr(value, "shape")
    if is_sequence and not isinstance(value, str | bytes | bytearray | memoryview | Mapping):
        try:
            is_short = len(value) <= MAX_PROMPT_TOKENS
        except OverflowError:  # of a range
            is_short = False
        if not is_short:
            raise PromptError(f"`{name}` has more than {MAX_PROMPT_TOKENS:,} token ids; give it in parts.")
        return list(value)
    advice = "decode the bytes first" if isinstance(value, bytes | bytearray) else ""
    advice = "make a `list` of it first" if hasattr(value, "__next__") else advice
    wrong_type(name, value, "text (str) or a list of token ids", advice)


def _is_short(path: str, errors: str = "surrogateescape") -> bool:
    """Whether a file system accepts a name of this length."""
    return all(len(part) <= _LONGEST_NAME for part in path.encode(errors=errors).split(b"/"))


def _plain(value: Any) -> Any:
    """Python number of a numpy or MLX scalar."""
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        return item()
    return value


def _is_number(value: object) -> bool:
    if isinstance(value, bool | str | bytes) or getattr(value, "shape", ()) != ():
        return False
    return hasattr(type(value), "__float__") or hasattr(type(value), "__index__")


def _span(low: float, high: float) -> str:
    if math.isinf(low):
        return ""
    return f" from {low:,}" if math.isinf(high) else f" from {low:,} to {high:,}"
