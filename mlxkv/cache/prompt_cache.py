"""PromptCache: all layers' caches and the log of the tokens they hold.

The token log is the truth about what the cache holds. This module decides what of it a prompt can reuse and goes back
to there; it knows no text, and no disk: saving goes through the `PromptFiles` it was given. Used on the MLX thread.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlxkv.cache.group import LayerGroup, make_groups
from mlxkv.cache.plan import CachePlan
from mlxkv.cache.ring import RingKVCache
from mlxkv.errors import CacheError, RewindError


@dataclass(frozen=True)
class Reuse:
    """`cached` tokens of a prompt are in the cache; `stopped_at` and `why` say where and why the rest is not."""

    cached: int
    stopped_at: int | None = None
    why: str | None = None


class PromptFiles(Protocol):
    """Where prompt caches are saved; the store implements it."""

    def write(self, path: Path, cache: PromptCache) -> int: ...


class PromptCache:
    """The caches of all layers of one model, and `tokens`, the ids of everything fed so far.

    Args:
        plan: what each layer gets.
        model: the mlx-lm model the plan was made from.
        files: where `save` writes; None makes `save` raise.
    """

    def __init__(self, plan: CachePlan, model: Any, files: PromptFiles | None = None) -> None:
        self.plan = plan
        self.tokens: list[int] = []
        self.layers: list[Any] = plan.make(model)
        self.groups: tuple[LayerGroup, ...] = make_groups(plan, self.layers)
        self._model = model
        self._files = files

    # -- size --------------------------------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Tokens seen; the position of the next one."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.nbytes for layer in self.layers if not layer.empty())

    @property
    def live_nbytes(self) -> int:
        """Bytes of the rows that are attended."""
        return sum(getattr(layer, "live_nbytes", 0) or 0 for layer in self.layers)

    @property
    def num_attended(self) -> int:
        """Tokens the next query will see."""
        geometry = self.plan.geometry
        return geometry.live(self.offset) if geometry else self.offset

    @property
    def capacity(self) -> int:
        """The most tokens attended, sinks included; 0 where the model's own caches set no bound."""
        return self.plan.geometry.capacity if self.plan.geometry else 0

    @property
    def num_evicted(self) -> int:
        """Tokens that have rotated out."""
        geometry = self.plan.geometry
        return geometry.flushes(self.offset) * geometry.block if geometry else 0

    @property
    def can_save(self) -> bool:
        """False where a layer keeps the model's own cache, which has no form on disk yet."""
        return not self.plan.passed_through

    # -- feeding -----------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Tokens one model call may feed before a block boundary; 0 means any number."""
        geometry = self.plan.geometry
        return geometry.room(self.offset) if geometry else 0

    def advance(self, ids: Sequence[int]) -> None:
        """The model has been fed `ids`."""
        self.tokens.extend(ids)

    # -- going back --------------------------------------------------------------------------------------------------

    def reuse(self, ids: Sequence[int]) -> Reuse:
        """Keep the longest common prefix of the token log and `ids`, and forget the rest.

        At least the last id is left to be fed, since its logits are wanted. Where the rows to go back to have rotated
        out, everything is forgotten.
        """
        common = common_prefix(self.tokens, ids)
        keep = min(common, len(ids) - 1)
        why = None
        if common < min(len(self.tokens), len(ids)):
            why = f"the prompt differs from the cached one from token {common:,} on"
        try:
            if keep:
                self.rewind(keep)
            else:
                self.reset()
        except RewindError:
            self.reset()
            return Reuse(0, keep, "the rows to go back to have rotated out, so the prompt is read again")
        return Reuse(keep, common if why else None, why)

    def rewind(self, offset: int) -> None:
        """Forget everything from position `offset` on, exactly as if it had never been fed.

        Raises:
            RewindError: a layer no longer holds the rows to go back to; nothing was changed.
        """
        n = self.offset - offset
        if n < 0:
            raise CacheError(f"Cannot rewind to token {offset:,}: only {self.offset:,} have been fed.")
        if n == 0:
            return
        if n > self.rewindable:
            raise RewindError(
                f"Rewinding {n:,} tokens needs rows that have rotated out: this cache can go back "
                f"{self.rewindable:,}; raise `slack` or prefill again."
            )
        for layer in self.layers:
            layer.trim(n)
        del self.tokens[offset:]

    @property
    def rewindable(self) -> int:
        """Tokens that can be taken back now."""
        if offset := self.offset:
            return min((_rewindable(layer, offset) for layer in self.layers), default=offset)
        return 0

    def reset(self) -> None:
        """Forget everything; ring buffers stay allocated."""
        self.tokens = []
        if any(not isinstance(layer, RingKVCache) for layer in self.layers):
            fresh = self.plan.make(self._model)
            rings = [old if isinstance(old, RingKVCache) else new for old, new in zip(self.layers, fresh, strict=True)]
            self.layers[:] = rings
        for layer in self.layers:
            if isinstance(layer, RingKVCache):
                layer.reset()

    def fork(self) -> PromptCache:
        """An independent copy; buffers are shared until one side writes (copy on write)."""
        twin = copy.copy(self)
        twin.tokens = list(self.tokens)
        twin.layers = [
            layer.fork() if isinstance(layer, RingKVCache) else copy.deepcopy(layer) for layer in self.layers
        ]
        twin.groups = make_groups(self.plan, twin.layers)
        return twin

    # -- disk --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> int:
        """Write one file that `Model.load_cache` reads; the bytes written.

        Raises:
            CacheError: this cache was made without a model to save it for, or a layer has no form on disk.
        """
        if self._files is None or not self.can_save:
            what = ", ".join(self.plan.passed_through) or "a cache made outside `mlxkv.load`"
            raise CacheError(f"{what} cannot be saved yet; use a model whose layers all have ring caches.")
        return self._files.write(Path(path), self)

    def layout(self) -> dict[str, Any]:
        """What has to be equal for saved rows to fit: JSON-able, and the same for the same model and settings."""
        config = self.plan.config
        return {
            "positions": config.positions,
            "bits": config.bits,
            "group_size": config.group_size if config.bits else None,
            "groups": {group.name: group.layout() for group in self.groups},
        }

    def begin_restore(self, ids: Sequence[int]) -> None:
        """Make room for saved rows of `ids`: import them group by group, then `finish_restore`."""
        self.reset()
        self.tokens = list(ids)
        for group in self.groups:
            group.begin_restore(len(ids))

    def finish_restore(self) -> None:
        """Every required row is back.

        Raises:
            CacheError: one is missing; call `reset`.
        """
        for group in self.groups:
            group.finish_restore()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):
        return n
    return next(i for i in range(n) if a[i] != b[i])


def _rewindable(layer: Any, offset: int) -> int:
    if isinstance(layer, RingKVCache):
        return layer.rewindable
    return offset if layer.is_trimmable() else 0
