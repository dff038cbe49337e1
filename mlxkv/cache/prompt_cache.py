"""PromptCache: all layers' caches and the log of the tokens they hold.

The token log is the truth about what the cache holds. This module decides what of it a prompt can reuse and goes back
to there; it knows no text, and no disk: saving goes through the `PromptFiles` it was given. Used on the MLX thread.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlxkv import arguments
from mlxkv.arguments import public, text
from mlxkv.cache.groups.layer_groups import Group, make_groups
from mlxkv.cache.groups.state_group import StateGroup
from mlxkv.cache.interchange import PromptText
from mlxkv.cache.plan import CachePlan
from mlxkv.cache.probe import leaves
from mlxkv.cache.recurrent.checkpoints import EVERY, Checkpoint, Checkpoints
from mlxkv.cache.recurrent.state import (
    arrays_of,
    capture,
    go_back,
    is_recurrent,
    put_back,
    rewind_floor,
    tokens_fed,
    unseen,
)
from mlxkv.cache.recurrent.state_shapes import Frames
from mlxkv.cache.ring import RingKVCache
from mlxkv.errors import CacheError, MismatchError, PromptError, RewindError
from mlxkv.system.thread_owner import Owner
from mlxkv.token_ids import TokenIds, TokenLog, common_prefix


@dataclass(frozen=True)
class Reuse:
    """`cached` tokens of a prompt are in the cache; `stopped_at` and `why` say where and why the rest is not."""

    cached: int
    stopped_at: int | None = None
    why: str | None = None


class PromptFiles(Protocol):
    """Where prompt caches are saved; the store implements it."""

    def write(self, path: Path, cache: PromptCache) -> int: ...

    def export(self, path: Path, cache: PromptCache, version: str) -> int: ...

    @property
    def model_id(self) -> str: ...


class PromptCache:
    """The caches of all layers of one model, and `log`, the ids of everything fed so far.

    Args:
        plan: what each layer gets.
        model: the mlx-lm model the plan was made from.
        files: where `save` writes; None makes `save` raise.
    """

    def __init__(self, plan: CachePlan, model: Any, files: PromptFiles | None = None) -> None:
        self.plan = plan
        self._owner = Owner()
        self.prompt: PromptText | None = None  # for whoever prefilled it; nothing here looks at it
        self.log = TokenLog()
        self.layers: list[Any] = plan.make(model)
        self._model = model
        self._files = files
        self._is_in_use = False
        self._frames = Frames(model)
        self._adopt(())
        self._empty = tuple(None if isinstance(c, RingKVCache) else capture(c) for c in leaves(self.layers))

    def _adopt(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Take `layers` for this cache's own."""
        caches = leaves(self.layers)
        self._exact = tuple(cache for cache in caches if not is_recurrent(cache))
        self.checkpoints = Checkpoints([cache for cache in caches if is_recurrent(cache)], checkpoints)
        self.groups: tuple[Group, ...] = make_groups(self.plan, caches, self._frames, self.checkpoints, self.log)
        self._note_state()

    # -- who may use it ----------------------------------------------------------------------------------------------

    def check_model(self, model: Any, model_id: Callable[[], str]) -> None:
        """`model_id` names the weights of `model`; it is asked where the two are not one object.

        Raises:
            MismatchError: this cache was made with another model.
        """
        if model is self._model or (self._files is not None and self._files.model_id == model_id()):
            return
        raise MismatchError(
            "This prompt cache was made with another model; use it with that one, or prefill the text again.", "model"
        )

    def check_log(self) -> None:
        """Whether the layers hold the tokens of the log.

        Raises:
            CacheError: something that does not write the log, such as mlx-lm's own loop, has fed them.
        """
        if fed := self._fed_otherwise():
            raise CacheError(
                f"The layers of this cache hold {fed} and its log {self.offset:,}: something else has fed them; "
                f"prefill again, and give other loops the layers of a fork (`pc.fork().layers`)."
            )

    def _fed_otherwise(self) -> str:
        """What the layers hold, where it is not what the log says; "" where it is."""
        fed = {tokens_fed(cache) for cache in leaves(self.layers)}
        if wrong := fed - {None, 0, self.offset}:  # a layer that the model never calls stays empty
            return f"{max(filter(None, wrong)):,} tokens"
        state = self._state()
        return "" if state is None or self._noted is None or self._noted() is state else "another state"

    def _state(self) -> Any:
        """One array of the recurrent state, which each token replaces."""
        first = next(iter(self.checkpoints.caches), None)
        return None if first is None else next(iter(arrays_of(vars(first)).values()), None)

    def _note_state(self) -> None:
        """Remember which state belongs to the log. A weak reference: a second owner would have MLX copy the state."""
        state = self._state() if self.checkpoints.is_needed else None
        self._noted = None if state is None else weakref.ref(state)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a reply is generated on it.

        Raises:
            CacheError: one is being generated already, or see `check_log`.
        """
        if self._is_in_use:
            raise CacheError(
                "A reply is being generated on this prompt cache; close it first, or use a fork (`pc.fork()`)."
            )
        self.check_log()
        self._is_in_use = True
        try:
            yield
        finally:
            self._is_in_use = False

    # -- size --------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> list[int]:
        """The ids of everything fed so far, as a list of your own."""
        return list(self.log)

    @property
    def offset(self) -> int:
        """Tokens seen; the position of the next one."""
        return len(self.log)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, and of the checkpoints of recurrent layers."""
        return sum(c.nbytes for c in leaves(self.layers) if not c.empty()) + self.checkpoints.nbytes(self.offset)

    @property
    def live_nbytes(self) -> int:
        """Bytes of the rows that are attended, and of recurrent states."""
        caches = leaves(self.layers)
        rings = sum(cache.live_nbytes for cache in caches if isinstance(cache, RingKVCache))
        return rings + sum(c.nbytes for c in caches if not isinstance(c, RingKVCache) and not c.empty())

    @property
    def shared_nbytes(self) -> int:
        """Bytes that the next token copies, since a fork holds them too: all rings, or none of them."""
        return sum(c.shared_nbytes for c in leaves(self.layers) if isinstance(c, RingKVCache))

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

    def num_unattended(self, position: int, num_tokens: int) -> int:
        """Of the first `num_tokens` those that the query at `position` sees in no layer. Recurrent state, which has
        something of all of them, does not count, and a model of nothing else has none."""
        spans = [unseen(cache, position) for cache in leaves(self.layers) if tokens_fed(cache)]
        return min((max(0, min(end, num_tokens) - start) for start, end in spans), default=0)

    # -- feeding -----------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Tokens one model call may feed before a block boundary or a checkpoint; 0 means any number."""
        geometry = self.plan.geometry
        room = geometry.room(self.offset) if geometry else 0
        if not self.checkpoints.is_needed:
            return room
        to_next = EVERY - self.offset % EVERY
        return min(room, to_next) if room else to_next

    @property
    def num_left(self) -> int | None:
        """Tokens that can still be fed before the model's learned positions are used up; None: any number."""
        return None if self.plan.learned is None else max(self.plan.learned - self.offset, 0)

    def check_length(self, num_tokens: int) -> None:
        """Refuse a prompt that ends beyond the model's learned positions.

        Raises:
            PromptError: with both numbers; nothing was fed.
        """
        learned = self.plan.learned
        if learned is not None and num_tokens > learned:
            raise PromptError(
                f"The prompt has {num_tokens:,} tokens, and this model has learned positions for {learned:,}; shorten "
                "it, or begin a new chat."
            )

    def advance(self, ids: Sequence[int]) -> None:
        """The model has been fed `ids`."""
        self.log.extend(ids)
        self._note_state()
        if self.offset % EVERY == 0:
            self.checkpoints.take(self.offset, is_turn=False)

    def checkpoint(self) -> None:
        """A turn begins or ends here: one may want to come back. Costs nothing without recurrent layers."""
        self.checkpoints.take(self.offset, is_turn=True)

    # -- going back --------------------------------------------------------------------------------------------------

    def reuse(self, ids: Sequence[int]) -> Reuse:
        """Keep the longest common prefix of the token log and `ids`, and forget the rest.

        At least the last id is left to be fed, since its logits are wanted. With recurrent layers the last checkpoint
        before it is kept. Where the rows to go back to have rotated out, everything is forgotten.
        """
        self.check_log()
        common = common_prefix(self.log, ids)
        keep = min(common, len(ids) - 1)
        why = None
        if common < min(len(self.log), len(ids)):
            why = f"the prompt differs from the cached one from token {common:,} on"
        landing = self.landing(keep)
        if landing:
            self.rewind(landing)
        else:
            self.reset()
        if landing == keep:
            return Reuse(keep, common if why else None, why)
        if self.checkpoints.is_needed:
            back = f"recurrent layers went back to token {landing:,}, where their state was kept"
            return Reuse(landing, landing, f"{why}; {back}" if why else back)
        return Reuse(0, keep, "the rows to go back to have rotated out, so the prompt is read again")

    def landing(self, offset: int) -> int:
        """Where rewinding to `offset` leads: there, or with recurrent layers to the last checkpoint before it.

        0 where neither is possible: then everything is forgotten and read again.
        """
        if offset >= self.offset:
            return self.offset
        floor = self._floor
        if not self.checkpoints.is_needed:
            return offset if offset >= floor else 0
        checkpoint = self.checkpoints.newest(offset, floor)
        return checkpoint.position if checkpoint else 0

    @public(offset=arguments.whole)
    def rewind(self, offset: int) -> int:
        """Forget everything from position `landing(offset)` on, exactly as if it had never been fed; that position.

        Raises:
            RewindError: a layer no longer holds the rows to go back to; nothing was changed.
        """
        self.check_log()
        n = self.offset - offset
        if not 0 <= offset <= self.offset:
            raise CacheError(f"Cannot rewind to token {offset:,}: {self.offset:,} have been fed, give 0 to that.")
        if n == 0:
            return offset
        landing = self.landing(offset)
        if not landing and (offset or self._floor):
            raise RewindError(
                f"Rewinding {n:,} tokens needs rows that have rotated out: this cache can go back "
                f"{self.rewindable:,}; raise `slack` or prefill again."
            )
        if not landing:
            self.reset()
            return 0
        for cache in self._exact:
            go_back(cache, self.offset - landing)
        if checkpoint := self.checkpoints.newest(landing, landing):
            self.checkpoints.go_back(checkpoint)
        self.log.cut(landing)
        self._note_state()
        return landing

    def recover(self) -> None:
        """After a call of the model that raised: back to what every layer holds, or else to nothing."""
        target = self.offset
        if self.checkpoints.is_needed:
            checkpoint = self.checkpoints.newest(target)
            target = checkpoint.position if checkpoint else 0
        try:
            for cache in self._exact:
                surplus = (tokens_fed(cache) or 0) - target
                if surplus > 0 and rewind_floor(cache, target + surplus) <= target:
                    go_back(cache, surplus)
            if checkpoint := self.checkpoints.newest(target, target):
                self.checkpoints.go_back(checkpoint)
            self.log.cut(target)
            self._note_state()
            mx.eval([layer.state for layer in self.layers])
        except Exception:  # whatever the model raised may be raised again: its arrays are part of the graph
            self.log.clear()
        if not self.log or self._fed_otherwise():
            self.log.clear()
            self.layers[:] = self.plan.make(self._model)
            self._adopt(())

    @property
    def rewindable(self) -> int:
        """Tokens that can be taken back now; with recurrent layers up to the oldest checkpoint (see `landing`)."""
        floor = self._floor
        if self.checkpoints.is_needed:
            floor = next((c.position for c in self.checkpoints if c.position >= floor), self.offset)
        return self.offset - floor

    @property
    def _floor(self) -> int:
        """The smallest offset that every layer but the recurrent ones can go back to."""
        return max((rewind_floor(cache, self.offset) for cache in self._exact), default=0) if self.log else 0

    @public()
    def reset(self) -> None:
        """Forget everything; ring buffers stay allocated."""
        self.log.clear()
        self.checkpoints.clear()
        self._noted = None
        for cache, empty in zip(leaves(self.layers), self._empty, strict=True):
            if isinstance(cache, RingKVCache):
                cache.reset()
            elif empty is not None:
                put_back(cache, empty)

    @public()
    def fork(self) -> PromptCache:
        """An independent copy, which costs nothing until one side is fed.

        Then that side copies the whole window (`nbytes`, however few tokens are in it), once; the last one that still
        holds the old buffers writes into them. Models from `mlxkv.load` refuse a copy that does not fit in memory with
        OutOfMemoryError, before anything is fed.

        Raises:
            CacheError: see `check_log`.
        """
        self.check_log()
        twin = copy.copy(self)
        twin._is_in_use = False
        twin.log = TokenLog(self.log)
        twin.layers = [copy.deepcopy(layer) for layer in self.layers]
        twin._adopt(tuple(self.checkpoints))
        return twin

    # -- disk --------------------------------------------------------------------------------------------------------

    @property
    def can_save(self) -> bool:
        """False where a layer keeps a cache of the model's own that has no form on disk."""
        return not self.unsaved

    @cached_property
    def unsaved(self) -> tuple[str, ...]:
        """The class names of the caches that have no form on disk."""
        try:
            groups = [group for group in self.groups if isinstance(group, StateGroup)]
            return tuple(sorted({name for group in groups for name in group.unsaved}))
        except (ValueError, TypeError, AttributeError, IndexError, KeyError, RuntimeError):
            return self.plan.passed_through  # the model cannot be run to see what it makes

    @public(path=arguments.path)
    def save(self, path: str | os.PathLike[str]) -> int:
        """Write one file that `Model.load_cache` reads; the bytes written.

        Raises:
            CacheError: this cache was made without a model to save it for, or a layer has no form on disk.
        """
        if self._files is None or not self.can_save:
            what = "A cache made outside `mlxkv.load`" if self._files is None else ", ".join(self.unsaved)
            raise CacheError(f"{what} cannot be saved; use another model, or `mlxkv.load` to make the cache.")
        self.check_log()
        return self._files.write(Path(path), self)

    @public(path=arguments.path, version=text)
    def export_mlx_lm(self, path: str | os.PathLike[str], version: str = "0.32") -> int:
        """Write a file that mlx-lm's `load_prompt_cache` reads, from 0.32 on or ("0.31") before it; the bytes written.

        Raises:
            CacheError: mlx-lm has no cache that could hold this one; it says why. ConfigError: no such version.
        """
        if self._files is None:
            raise CacheError("A cache made outside `mlxkv.load` cannot be exported; make it with `Model.prefill`.")
        self.check_log()
        return self._files.export(Path(path), self, version)

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
        ids = TokenIds(list(ids))  # they may be those of this cache
        self.reset()
        self.log.extend(ids)
        for group in self.groups:
            group.begin_restore(len(ids))

    def finish_restore(self) -> None:
        """Every required row is back.

        Raises:
            CacheError: one is missing; call `reset`.
        """
        for group in self.groups:
            group.finish_restore()
        self._note_state()
