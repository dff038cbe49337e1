"""SharedCache: rank 0's PromptCache of a model that is split between processes.

Each change is told to the others (`link.py`), whose PromptCache of the same number does the same to its own rows:
equal logs, equal geometry, other heads or layers. The model's calls are told by `lead_model.py`. On the MLX thread.
"""

from __future__ import annotations

import os
import sys
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.prompt_cache import Mark, PromptCache, PromptFiles
from mlxkv.distributed.link import Link, Op, shielded
from mlxkv.errors import CacheError, MachineError, MlxkvError

_NO_FILES = "Rows of a model that is split between machines are in no file; prefill the text again."


class SharedLayers(list[Any]):
    """The layers of a SharedCache, which say whose they are."""

    owner: SharedCache


class SharedCache(PromptCache):
    """See the module. `number`: its name among the processes."""

    def __init__(self, plan: CachePlan, model: Any, files: PromptFiles | None, link: Link, number: int) -> None:
        super().__init__(plan, model, files)
        self._link = link
        self._is_telling = False
        self._num_told = 0  # tokens in the others' logs
        self._take_number(number)

    def _take_number(self, number: int) -> None:
        self.number = number
        layers = SharedLayers(self.layers)
        layers.owner = weakref.proxy(self)
        self.layers = layers
        weakref.finalize(self, self._link.drop, number).atexit = False

    @contextmanager
    def _told(self, op: Op, a: int = 0, b: int = 0, ids: Sequence[int] = ()) -> Iterator[None]:
        """Tell the others, and do here what the block does. What it calls is part of the same operation."""
        if self._is_telling:
            yield
            return
        with shielded():
            self._is_telling = True
            try:
                self._link.send(op, self.number, a, b, ids)
                yield
            finally:
                self._is_telling = False
                self._num_told = len(self.log)

    def logged_by_others(self, num_tokens: int) -> None:
        """The others have been told to log so many tokens with their call of the model."""
        self._num_told += num_tokens

    # -- the same everywhere -----------------------------------------------------------------------------------------

    def advance(self, ids: Sequence[int]) -> None:
        if len(self.log) + len(ids) <= self._num_told:
            self._is_telling = True
            try:
                super().advance(ids)
            finally:
                self._is_telling = False
            return
        with self._told(Op.ADVANCE, ids=list(ids)):
            super().advance(ids)

    def begin_turn(self, *, is_prefix: bool = False) -> None:
        if self.checkpoints.is_needed:
            with self._told(Op.BEGIN_TURN, int(is_prefix)):
                super().begin_turn(is_prefix=is_prefix)

    def checkpoint(self, *, is_prefix: bool = False) -> None:
        if self.checkpoints.is_needed:
            with self._told(Op.CHECKPOINT, int(is_prefix)):
                super().checkpoint(is_prefix=is_prefix)

    def rewind(self, offset: int) -> int:
        with self._told(Op.REWIND, offset):
            return super().rewind(offset)

    def take_back(self, mark: Mark, fed: Sequence[int], keep: int) -> Sequence[int]:
        with self._told(Op.TAKE_BACK, len(fed), keep):
            return super().take_back(mark, fed, keep)

    def recover(self) -> None:
        error = sys.exc_info()[1]  # that ended a call of the model
        if isinstance(error, RuntimeError) and not isinstance(error, MlxkvError):
            raise self._link.lost(error) from error  # nothing more is evaluated: it would wait for ever
        with self._told(Op.RECOVER, len(self.log)):
            super().recover()

    def reset(self) -> None:
        with self._told(Op.RESET):
            super().reset()

    def fork(self) -> PromptCache:
        number = self._link.new_number()
        with self._told(Op.FORK, number):
            fork = super().fork()
        assert isinstance(fork, SharedCache)
        fork._take_number(number)
        fork._num_told = len(fork.log)
        return fork

    def compare(self) -> None:
        """Compare the logs of all processes.

        Raises:
            MachineError: one differs; its name is in the sentence.
        """
        own = log_numbers(self)
        with self._told(Op.COMPARE):
            found = self._link.compare(*own)
        for name, numbers in zip(self._link.names, found, strict=True):
            if numbers != list(own):
                raise MachineError(
                    f"The cache on {name} holds other tokens than this one; start mlxkv again on all machines."
                )

    def check_log(self) -> None:
        self._link.check_connected()
        super().check_log()

    # -- not shared --------------------------------------------------------------------------------------------------

    @property
    def can_save(self) -> bool:
        return False

    def save(self, path: str | os.PathLike[str]) -> int:
        raise CacheError(_NO_FILES)

    def export_mlx_lm(self, path: str | os.PathLike[str], version: str = "0.32") -> int:
        raise CacheError(_NO_FILES)

    def begin_restore(self, ids: Sequence[int]) -> None:
        raise CacheError(_NO_FILES)


def log_numbers(cache: PromptCache) -> tuple[int, int]:
    """The length of a cache's log and a checksum of it (31 bits)."""
    return len(cache.log), zlib.crc32(cache.log.packed.tobytes()) >> 1
