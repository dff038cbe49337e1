"""Every error mlxkv raises on purpose.

MlxkvError                    one sentence: what was wrong, the value, what to do
├── ConfigError               a setting, a flag or an argument has a value it cannot have
│   ├── ArgumentError         a function was given a value of the wrong type, or an argument that it does not have
│   └── UnboundedError        a window was asked for, and a model's cache cannot be held to it
├── WrongThreadError          a model was used from another thread than the one that loaded it
├── PlatformError             this machine cannot run MLX
├── ModelError                a model cannot be used
│   ├── ModelNotFoundError    no such folder, repository or built-in name
│   ├── ModelUnsupportedError mlx-lm has no such architecture, or the repository wants to run its own code
│   ├── ModelDownloadError    offline, gated, disk too small, broken off
│   └── ModelFileError        a weights file that is not what it says it is
├── OutOfMemoryError          the predicted peak does not fit; raised before anything is allocated
├── CacheError                a KV cache was asked for something it cannot do
│   └── RewindError           the rows to go back to are no longer held
├── PromptError               an empty prompt, one over the limit, or input that is no text
│   └── MessageTooLongError   the window would hold only a part of the message; `overflow` has the figures
├── OutputError               what is printed cannot be written
│   └── OutputClosedError     its reader has gone, as in `mlxkv chats ls | head -1`
└── StoreError                a session or a prompt-cache file cannot be used
    ├── ReadOnlyError         nothing can be saved where the chats are: a read-only disk, or missing permissions
    ├── SessionNotFoundError  no session has this id or title
    ├── SessionLockedError    another process has it open
    ├── SessionChangedError   it was changed by someone else since it was read
    ├── FileMissingError      there is no such file
    ├── DiskError             the disk is full, read-only or failing: nothing was written, and it may be tried again
    ├── MismatchError         it was made with another model or cache layout; `field` says which part
    └── CorruptError          the bytes are not what was written
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class MlxkvError(Exception):
    """Base of all errors raised on purpose; `str(error)` is a sentence for the user."""


class ConfigError(MlxkvError, ValueError):
    pass


class ArgumentError(ConfigError, TypeError):
    """Also a TypeError, which is what Python itself raises for these."""


class UnboundedError(ConfigError):
    pass


class WrongThreadError(MlxkvError, RuntimeError):
    pass


class PlatformError(MlxkvError):
    pass


class ModelError(MlxkvError):
    pass


class ModelNotFoundError(ModelError):
    pass


class ModelUnsupportedError(ModelError):
    pass


class ModelDownloadError(ModelError):
    pass


class ModelFileError(ModelError):
    pass


class OutOfMemoryError(MlxkvError):
    pass


class CacheError(MlxkvError):
    pass


class RewindError(CacheError):
    pass


class PromptError(MlxkvError, ValueError):
    pass


class MessageTooLongError(PromptError):
    """`overflow` is a `stats.Overflow`."""

    def __init__(self, message: str, overflow: Any) -> None:
        super().__init__(message)
        self.overflow = overflow


class OutputError(MlxkvError):
    pass


class OutputClosedError(OutputError):
    pass


class StoreError(MlxkvError):
    pass


class ReadOnlyError(StoreError):
    pass


class DiskError(StoreError):
    pass


class SessionNotFoundError(StoreError):
    pass


class SessionLockedError(StoreError):
    pass


class SessionChangedError(StoreError):
    pass


class FileMissingError(StoreError):
    pass


class MismatchError(StoreError):
    """Made with another model or cache layout. `field` names the first part that differs."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class CorruptError(StoreError):
    pass


MOST_SHOWN = 200  # characters of a foreign value in a sentence


def shortened(value: object) -> str:
    """`str(value)` for a sentence: if it is long, its beginning and its length."""
    text = str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"


def quoted(value: object) -> str:
    """`repr(value)` for a sentence, shortened as `shortened` does."""
    if isinstance(value, str) and len(value) > MOST_SHOWN:
        return f"{value[:MOST_SHOWN]!r}… ({len(value):,} characters)"
    return shortened(repr(value))


def first_line(error: BaseException) -> str:
    """What a foreign `error` says, for a sentence of ours: its first line, at most 200 characters, printable only; its
    type where it says nothing."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".: ")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def as_sentence(kind: type[MlxkvError], sentence: Callable[[str], str]) -> Iterator[None]:
    """Turn any exception of foreign code into `error`, with the text `sentence(reason)`.

    A panic of Rust is a BaseException and is turned into one too. Ctrl+C, an exit and our own errors pass.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MlxkvError):
        raise
    except BaseException as error:
        raise kind(sentence(first_line(error))) from error
