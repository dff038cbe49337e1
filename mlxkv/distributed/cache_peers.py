"""CachePeers: the caches of the other processes, of the number of one of rank 0's; see `cache/peers.py`.

Each change is told to them (`link.py`), and their PromptCaches make it to their own rows: equal logs, equal geometry,
other heads or layers. The model's calls are told by `lead_model.py`. On the MLX thread.
"""

from __future__ import annotations

import json
import sys
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from mlxkv.cache.peers import Agree, SessionKey
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.distributed.link import Link, Op, shielded
from mlxkv.errors import MachineError, MlxkvError
from mlxkv.token_ids import TokenLog


class SharedLayers(list[Any]):
    """The layers of a cache that has peers."""

    peers: CachePeers


class CachePeers:
    """See the module. `number`: the name of `cache` among the processes."""

    def __init__(self, link: Link, number: int, cache: PromptCache) -> None:
        self.number, self._link, self._log = number, link, cache.log
        self._is_telling = False
        self._num_told = len(cache.log)  # tokens in the others' logs
        layers = SharedLayers(cache.layers)
        layers.peers = self
        cache.layers, cache.peers = layers, self
        weakref.finalize(cache, link.drop, number).atexit = False

    @property
    def names(self) -> Sequence[str]:
        return self._link.names

    def check(self) -> None:
        self._link.check_connected()

    # -- changes -------------------------------------------------------------------------------------------------------

    @contextmanager
    def told(self, name: str, a: int = 0, b: int = 0) -> Iterator[None]:
        error = sys.exc_info()[1]
        if name == "recover" and isinstance(error, RuntimeError) and not isinstance(error, MlxkvError):
            raise self._link.lost(error) from error  # nothing more is evaluated: it would wait for ever
        with self._telling(Op[name.upper()], a, b):
            yield

    @contextmanager
    def _telling(self, op: Op, a: int = 0, b: int = 0, ids: Sequence[int] = ()) -> Iterator[None]:
        """Tell the others, and do here what the block does. What it calls is part of the same operation."""
        if self._is_telling:
            yield
            return
        with self._link.held(), shielded():
            self._is_telling = True
            try:
                self._link.send(op, self.number, a, b, ids)
                yield
            finally:
                self._is_telling = False
                self._num_told = len(self._log)

    def logged_by_others(self, num_tokens: int) -> None:
        """They have been told to log so many tokens with their call of the model."""
        self._num_told += num_tokens

    def fed(self, ids: Sequence[int]) -> None:
        if len(self._log) + len(ids) > self._num_told and not self._is_telling:
            with self._link.held(), shielded():
                self._link.send(Op.ADVANCE, self.number, ids=list(ids))
                self._num_told = len(self._log) + len(ids)

    def fork(self, fork: PromptCache) -> None:
        number = self._link.new_number()
        with self._telling(Op.FORK, number):
            CachePeers(self._link, number, fork)

    def compare(self) -> None:
        """Compare the logs of all processes.

        Raises:
            MachineError: one differs; its name is in the sentence.
        """
        own = log_numbers(self._log)
        with self._telling(Op.COMPARE):
            found = self._link.compare(*own)
        for name, numbers in zip(self._link.names, found, strict=True):
            if numbers != list(own):
                raise MachineError(
                    f"The cache on {name} holds other tokens than this one; start mlxkv again on all machines."
                )

    # -- the disk ------------------------------------------------------------------------------------------------------

    @contextmanager
    def saving(self, session: SessionKey, num_tokens: int, occasion: str, resume_at: int) -> Iterator[list[str]]:
        failed: list[str] = []
        table = {"session": asdict(session), "tokens": num_tokens, "occasion": occasion, "resume_at": resume_at}
        with self._telling(Op.SAVE, ids=list(json.dumps(table).encode())):
            try:
                yield failed
            finally:
                texts = zip(self._link.names, self._link.texts(""), strict=True)
                failed += [f"{name}: {text}" for name, text in texts if text]

    @contextmanager
    def restoring(
        self, session: SessionKey | None, ids: Sequence[int], held: int, prefill_tps: float | None
    ) -> Iterator[Agree]:
        key = None if session is None else asdict(session)
        table = json.dumps({"session": key, "held": held, "prefill_tps": prefill_tps}).encode()
        with self._telling(Op.RESTORE, len(table), ids=[*table, *ids]):
            yield self._link.agree


def log_numbers(log: TokenLog) -> tuple[int, int]:
    """The length of a cache's log and a checksum of it (31 bits)."""
    return len(log), zlib.crc32(log.packed.tobytes()) >> 1
