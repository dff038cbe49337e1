"""Every error mlxkv raises on purpose. Its text is one sentence: what was wrong, the value, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class MlxkvError(Exception):
    """Base of all errors raised on purpose; `str(error)` is a sentence for the user."""


class ConfigError(MlxkvError, ValueError):
    """A setting, an option or an argument has an invalid value."""


class ArgumentError(ConfigError, TypeError):
    """A value of the wrong type, or an unknown argument; also a TypeError, as Python raises then."""


class UnboundedError(ConfigError):
    """A window was requested, but the model's cache cannot be limited."""


class WrongThreadError(MlxkvError, RuntimeError):
    """A model was used on another thread than the one that loaded it."""


class PlatformError(MlxkvError):
    """This machine cannot run MLX."""


class ModelError(MlxkvError):
    """A model cannot be used."""


class ModelNotFoundError(ModelError):
    """No such folder, repository or built-in name."""


class ModelUnsupportedError(ModelError):
    """mlx-lm lacks the architecture, or the model requires running its own code."""


class ModelDownloadError(ModelError):
    """Offline, gated, disk too small, interrupted."""


class ModelFileError(ModelError):
    """A file of the model is damaged or invalid."""


class OutOfMemoryError(MlxkvError):
    """The predicted peak does not fit; raised before anything is allocated."""


class CacheError(MlxkvError):
    """A KV cache does not support the operation."""


class RewindError(CacheError):
    """The rows to rewind to have been evicted."""


class PromptError(MlxkvError, ValueError):
    """An empty prompt, one over the limit, or input that is not text."""


class MessageTooLongError(PromptError):
    """The message does not fit the window; `overflow` is a `stats.Overflow`."""

    def __init__(self, message: str, overflow: Any) -> None:
        super().__init__(message)
        self.overflow = overflow


class QueueFullError(MlxkvError):
    """Too many requests are waiting."""


class MachineError(MlxkvError):
    """Another machine that has a part of the model failed, is gone, or disagrees."""


class ClosedError(MlxkvError):
    """The model was closed before, or while, something was asked of it."""


class OutputError(MlxkvError):
    """Output cannot be written."""


class OutputClosedError(OutputError):
    """Its reader is gone, as in `mlxkv chats ls | head -1`."""


class StoreError(MlxkvError):
    """A session or a prompt-cache file cannot be used."""


class ReadOnlyError(StoreError):
    """Chats cannot be saved: a read-only disk, or missing permissions."""


class DiskError(StoreError):
    """The disk is full, read-only or failing: nothing was written; a retry is possible."""


class SessionNotFoundError(StoreError):
    """No session has this id or title."""


class SessionLockedError(StoreError):
    """Another process has it open."""


class SessionChangedError(StoreError):
    """Another process changed it since it was read."""


class FileMissingError(StoreError):
    """The file does not exist."""


class MismatchError(StoreError):
    """Made with another model or cache layout. `field` names the first part that differs."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class CorruptError(StoreError):
    """The bytes differ from those written."""


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


def printable(text: str) -> str:
    """`text` with escapes in place of characters that cannot be printed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """First line of a foreign error for a sentence, at most 200 printable characters; its type if it is empty."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".: ")
    return printable(text)


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
