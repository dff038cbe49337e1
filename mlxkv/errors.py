"""Every error mlxkv raises on purpose.

MlxkvError                    one sentence: what was wrong, the value, what to do
├── ConfigError               a setting, an option or an argument has an invalid value
│   ├── ArgumentError         a value of the wrong type, or an unknown argument
│   └── UnboundedError        a window was requested, but the model's cache cannot be limited
├── WrongThreadError          a model was used on another thread than the one that loaded it
├── PlatformError             this machine cannot run MLX
├── ModelError                a model cannot be used
│   ├── ModelNotFoundError    no such folder, repository or built-in name
│   ├── ModelUnsupportedError mlx-lm lacks the architecture, or the model requires running its own code
│   ├── ModelDownloadError    offline, gated, disk too small, interrupted
│   └── ModelFileError        a file of the model is damaged or invalid
├── OutOfMemoryError          the predicted peak does not fit; raised before anything is allocated
├── CacheError                a KV cache does not support the operation
│   └── RewindError           the rows to rewind to have been evicted
├── PromptError               an empty prompt, one over the limit, or input that is not text
│   └── MessageTooLongError   the message does not fit the window; `overflow` has the numbers
├── OutputError               output cannot be written
│   └── OutputClosedError     its reader is gone, as in `mlxkv chats ls | head -1`
└── StoreError                a session or a prompt-cache file cannot be used
    ├── ReadOnlyError         chats cannot be saved: a read-only disk, or missing permissions
    ├── SessionNotFoundError  no session has this id or title
    ├── SessionLockedError    another process has it open
    ├── SessionChangedError   another process changed it since it was read
    ├── FileMissingError      the file does not exist
    ├── DiskError             the disk is full, read-only or failing: nothing was written; a retry is possible
    ├── MismatchError         it was made with another model or cache layout; `field` says which part
    └── CorruptError          the bytes differ from those written
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
    """Also a TypeError, as Python raises in these cases."""


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
    """`str(value)` for a sentence; a long one is cut, and its length is given."""
    text = str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"


def quoted(value: object) -> str:
    """`repr(value)` for a sentence, shortened as `shortened` does."""
    if isinstance(value, str) and len(value) > MOST_SHOWN:
        return f"{value[:MOST_SHOWN]!r}… ({len(value):,} characters)"
    return shortened(repr(value))


def escaped(value: object) -> str:
    """`ascii(value)` for a sentence, at most 80 characters: foreign text must not control the terminal."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def first_line(error: BaseException) -> str:
    """First line of a foreign error for a sentence, at most 200 printable characters; its type if it is empty."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".: ")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def as_sentence(kind: type[MlxkvError], sentence: Callable[[str], str]) -> Iterator[None]:
    """Convert any exception of foreign code into `kind` with the text `sentence(reason)`.

    This includes panics in Rust, which are BaseExceptions. Ctrl+C, exits and our own errors pass.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MlxkvError):
        raise
    except BaseException as error:
        raise kind(sentence(first_line(error))) from error
