"""PromptCache: the caches of all layers and the log of the tokens they hold.

The token log is the truth about the contents of the cache. This module decides how much of it a prompt can reuse, and
rewinds. It knows no text and no disk: saving goes through `PromptFiles`. On the MLX thread.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from mlxkv.cache.peers import Peers
from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.recurrent.checkpoints import Checkpoints
from mlxkv.cache.recurrent.state import (
    Snapshot,
    arrays_of,
    capture,
    is_recurrent,
    restore_snapshot,
    rewind_floor,
    rewind_rows,
    tokens_fed,
    tokens_within_block,
    unseen_positions,
)
from mlxkv.cache.recurrent.state_shapes import StateShapes
from mlxkv.cache.rings import flushes
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.errors import CacheError, MismatchError, PromptError, RewindError
from mlxkv.stats import bytes_text, plural
from mlxkv.system.inspection import copies, hides, twin
from mlxkv.system.thread_owner import Owner
from mlxkv.token_ids import TokenIds, TokenLog, common_prefix

IN_NO_FILE = (
    "Prompt caches of a model that is split between machines are in no file; save a chat instead, or load the model on "
    "one machine."
)


@dataclass(frozen=True)
class Reuse:
    """`cached` tokens of a prompt are in the cache; `stopped_at` and `why` say where reuse ended and why."""

    cached: int
    stopped_at: int | None = None
    why: str | None = None


@dataclass(frozen=True)
class Mark:
    """A position to take tokens back to, and the state of the recurrent layers there; see `PromptCache.mark`."""

    offset: int
    states: tuple[Snapshot, ...]


class PromptFiles(Protocol):
    """Saves prompt caches; ModelRuntime implements it."""

    def write_cache(self, path: Path, cache: PromptCache) -> int: ...

    def export_cache(self, path: Path, cache: PromptCache, version: str) -> int: ...

    @property
    def model_id(self) -> str: ...


@hides(
    "prompt", "peers", "groups", "checkpoints", "num_moves", "unsaved", "check_model", "in_use", "ring_nbytes",
    "growth", "live_nbytes_of", "largest_buffer", "unallocated_nbytes", "num_unattended", "tokens_to_boundary",
    "make_room", "needs_room", "num_left", "check_length", "advance", "begin_turn", "checkpoint", "reuse",
    "num_draftable", "mark", "take_back", "recover", "layout", "begin_restore", "finish_restore",
)  # fmt: skip
@copies("write a file with `pc.save(path)`, and read it with `model.load_cache(path)`.", by="fork")
class PromptCache:
    """The KV caches of all layers of one model. Made by `Model.prefill`, `Model.make_cache` and `Model.load_cache`.

    Attributes:
        layers: the cache of each layer, for mlx-lm's own loops.
        log: the ids of all tokens fed so far.
        plan: how each layer is cached; `plan.description` says it in words.
    """

    def __init__(self, plan: CachePlan, model: Any, files: PromptFiles | None = None) -> None:
        """`model`: the mlx-lm model that `plan` was made from. `files`: writes for `save`, which raises without it."""
        self.plan = plan
        self._owner = Owner()
        self.prompt: PromptText | None = None  # set and read by the chat; not used here
        self.peers: Peers | None = None  # of a model that is split between machines
        self.log = TokenLog()
        self.layers: list[Any] = plan.make(model)
        self.num_moves = 0  # how often `make_room` had something to look at
        self._model = model
        self._files = files
        self._is_in_use = False
        self._state_shapes = StateShapes(model)
        self._adopt(None)
        self._empty = tuple(None if isinstance(c, RingKVCache) else capture(c) for c in leaves(self.layers))

    def __repr__(self) -> str:
        bounds = [f"window {self.capacity:,}"] if self.capacity else []
        bounds += [f"{bits} bits"] if (bits := self.plan.config.named_bits) else []
        parts = [plural(self.offset, "token"), *bounds, bytes_text(self.nbytes)]
        return f"<{type(self).__name__} {', '.join(parts)}>"

    def _adopt(self, checkpoints: Checkpoints | None) -> None:
        """Set up the groups of `layers`, and their checkpoints: a fork of those given."""
        caches = leaves(self.layers)
        self._exact = tuple(cache for cache in caches if not is_recurrent(cache))
        self._rings = tuple(cache for cache in caches if isinstance(cache, RingKVCache))
        self._next_flush = self._room = 0  # `make_room` has nothing to do in a call that begins and ends before these
        recurrent = [cache for cache in caches if is_recurrent(cache)]
        self.checkpoints = (
            Checkpoints(recurrent, self.plan.nbytes, self.plan.config.checkpoint_bytes)
            if checkpoints is None
            else checkpoints.fork(recurrent)
        )
        self.groups: tuple[Group, ...] = make_groups(self.plan, caches, self._state_shapes, self.checkpoints, self.log)
        self._note_state()

    # -- checks before use ---------------------------------------------------------------------------------------------

    def check_model(self, model: Any, model_id: Callable[[], str]) -> None:
        """Check that this cache belongs to `model`; `model_id`, called if it is another object, names its weights.

        Raises:
            MismatchError: this cache was made with another model.
        """
        if model is self._model or (self._files is not None and self._files.model_id == model_id()):
            return
        raise MismatchError(
            "This prompt cache was made with another model; use it with that one, or prefill the text again.", "model"
        )

    def check_log(self) -> None:
        """Check that the layers hold the tokens of the log.

        Raises:
            CacheError: they were fed by something that does not write the log, such as mlx-lm's own loop.
            MachineError: another machine, which has a part of the model, is gone.
        """
        if self.peers is not None:
            self.peers.check()
        if fed := self._log_mismatch():
            raise CacheError(
                f"The layers of this cache hold {fed} and its log {self.offset:,}: they were fed by another loop; "
                f"prefill again, and give other loops the layers of a fork (`pc.fork().layers`)."
            )

    def _log_mismatch(self) -> str:
        """The contents of the layers if they differ from the log, for an error; "" if they are equal."""
        fed = {tokens_fed(cache) for cache in leaves(self.layers)}
        if wrong := fed - {None, 0, self.offset}:  # layers that the model never calls stay empty
            return f"{max(filter(None, wrong)):,} tokens"
        state = self._state()
        return "" if state is None or self._noted is None or self._noted() is state else "another state"

    def _state(self) -> Any:
        """An array of the recurrent state, which each token replaces."""
        first = next(iter(self.checkpoints.caches), None)
        return None if first is None else next(iter(arrays_of(vars(first)).values()), None)

    def _note_state(self) -> None:
        """Remember which state belongs to the log. A weak reference: with a second owner MLX would copy the state."""
        state = self._state() if self.checkpoints.is_needed else None
        self._noted = None if state is None else weakref.ref(state)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Lock this cache while a reply is generated on it.

        Raises:
            CacheError: one is being generated already; or see `check_log`.
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
        """The ids of all tokens fed so far, as a new list."""
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
    def ring_nbytes(self) -> int:
        """Bytes of the rings."""
        return sum(ring.nbytes for ring in self._rings if not ring.empty())

    @property
    def live_nbytes(self) -> int:
        """Bytes of the rows that are attended, and of recurrent states."""
        return self.live_nbytes_of(self.offset)

    def live_nbytes_of(self, num_tokens: int) -> int:
        """`live_nbytes` if only the first `num_tokens` had been fed."""
        caches = leaves(self.layers)
        rings = sum(cache.live_nbytes(num_tokens) for cache in caches if isinstance(cache, RingKVCache))
        return rings + sum(c.nbytes for c in caches if not isinstance(c, RingKVCache) and not c.empty())

    @property
    def shared_nbytes(self) -> int:
        """Bytes of all rings that are shared with a fork; the next token copies those of its rows that are in use."""
        return sum(ring.shared_nbytes for ring in self._rings)

    def growth(self, num_tokens: int) -> int:
        """Bytes that a fork allocates when it is fed `num_tokens`: a copy of its rows, or what it grows by."""
        return sum(ring.growth(num_tokens) for ring in self._rings if not ring.empty())

    @property
    def largest_buffer(self) -> int:
        """Bytes of the largest buffer of a ring."""
        return max((array.nbytes for ring in self._rings for array in ring._arrays), default=0)

    @property
    def unallocated_nbytes(self) -> int:
        """Bytes of the rings that were never fed."""
        planned = zip(self.plan.leaves, leaves(self.layers), strict=True)
        return sum(leaf.nbytes for leaf, ring in planned if isinstance(ring, RingKVCache) and ring.empty())

    @property
    def num_attended(self) -> int:
        """Tokens the next query will see."""
        geometry = self.plan.geometry
        return geometry.live(self.offset) if geometry else self.offset

    @property
    def capacity(self) -> int:
        """The most tokens attended, sinks included; 0 if the model's own caches set no bound."""
        return self.plan.geometry.capacity if self.plan.geometry else 0

    @property
    def num_evicted(self) -> int:
        """Tokens that were evicted."""
        geometry = self.plan.geometry
        return geometry.flushes(self.offset) * geometry.block if geometry else 0

    def num_unattended(self, position: int, num_tokens: int) -> int:
        """Number of the first `num_tokens` that the query at `position` sees in no layer.

        Recurrent state does not count, since every token is part of it; 0 for a model with nothing else.
        """
        spans = [unseen_positions(cache, position) for cache in leaves(self.layers) if tokens_fed(cache)]
        return min((max(0, min(end, num_tokens) - start) for start, end in spans), default=0)

    # -- feeding -----------------------------------------------------------------------------------------------------

    def tokens_to_boundary(self) -> int:
        """Tokens that one model call may feed before a block boundary; 0 means any number."""
        geometry = self.plan.geometry
        return geometry.tokens_to_boundary(self.offset) if geometry else 0

    def make_room(self, num_tokens: int) -> None:
        """Prepare for a model call with the next `num_tokens`: forks copy and grow, and all layers evict together.

        Without this call each ring does so by itself, and waits: see `flushes.py`.
        """
        if not self.needs_room(num_tokens):
            return
        used = [ring for ring in self._rings if not ring.empty()]
        self.num_moves += 1
        for ring in used:
            ring.make_room(num_tokens)
        if due := [ring for ring in used if flushes.is_due(ring, num_tokens)]:
            flushes.flush(due)
        boundaries = (ring.offset + ring.geometry.tokens_to_boundary(ring.offset) for ring in used)
        self._next_flush = min(boundaries, default=0)
        self._room = min((ring.room for ring in used), default=0)

    def needs_room(self, num_tokens: int) -> bool:
        """Whether `make_room` may have something to do."""
        return self.offset >= self._next_flush or self.offset + num_tokens > self._room

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
                "it, or start a new chat."
            )

    def advance(self, ids: Sequence[int]) -> None:
        """Record that the model was fed `ids`."""
        if self.peers is not None:
            self.peers.fed(ids)
        self.log.extend(ids)
        if self.checkpoints.is_needed:
            self._note_state()
            if self.checkpoints.is_far_back(self.offset):
                self._take_checkpoint()
            elif self.checkpoints.is_over_budget:
                self.checkpoints.thin(self.offset, self._floor)

    def begin_turn(self, *, is_prefix: bool = False) -> None:
        """Mark the start of a turn, to rewind to later; see `checkpoint`."""
        if self.checkpoints.is_needed:
            with self._told("begin_turn", is_prefix):
                self.checkpoints.begin_turn(self.offset)
                self._take_checkpoint(is_prefix)

    def checkpoint(self, *, is_prefix: bool = False) -> None:
        """Take a checkpoint, to rewind to later, such as before a reply. Free without recurrent layers.

        Args:
            is_prefix: a part ends here that other chats begin with too, such as the system prompt; its checkpoint is
                never dropped for others.
        """
        if self.checkpoints.is_needed:
            with self._told("checkpoint", is_prefix):
                self._take_checkpoint(is_prefix)

    def _take_checkpoint(self, is_prefix: bool = False) -> None:
        self.checkpoints.take(self.offset, is_prefix=is_prefix)
        self.checkpoints.thin(self.offset, self._floor)

    def _told(self, name: str, a: int = 0, b: int = 0) -> AbstractContextManager[None]:
        """See Peers.told."""
        return nullcontext() if self.peers is None else self.peers.told(name, a, b)

    # -- rewinding -----------------------------------------------------------------------------------------------------

    def reuse(self, ids: Sequence[int]) -> Reuse:
        """Rewind to the longest common prefix of the token log and `ids`.

        At least the last id is left to be fed, since its logits are needed. With recurrent layers, rewind to the last
        checkpoint before that. If the rows to rewind to were evicted, forget all tokens.
        """
        self.check_log()
        common = common_prefix(self.log, ids)
        keep = min(common, len(ids) - 1)
        why = None
        if common < min(len(self.log), len(ids)):
            why = f"the prompt differs from the cached one from token {common:,} on"
        target = self.rewind_target(keep)
        if target:
            self.rewind(target)
        else:
            self.reset()
        if target == keep:
            return Reuse(keep, common if why else None, why)
        if self.checkpoints.is_needed:
            back = f"recurrent layers rewound to token {target:,}, their last checkpoint"
            return Reuse(target, target, f"{why}; {back}" if why else back)
        return Reuse(0, keep, "the rows to rewind to were evicted, so the whole prompt is prefilled")

    def rewind_target(self, offset: int) -> int:
        """The position reached by rewinding to `offset`: that, or with recurrent layers the last checkpoint before it.

        0 if neither is possible: then all tokens have to be prefilled again.
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
        """Forget the tokens from `rewind_target(offset)` on, as if they had never been fed; returns that position.

        Raises:
            RewindError: a layer no longer holds the rows to rewind to; nothing was changed.
            CacheError: `offset` is not from 0 to `self.offset`.
        """
        self.check_log()
        n = self.offset - offset
        if not 0 <= offset <= self.offset:
            raise CacheError(f"Cannot rewind to token {offset:,}: give a position from 0 to {self.offset:,}.")
        if n == 0:
            return offset
        target = self.rewind_target(offset)
        if not target and (offset or self._floor):
            raise RewindError(
                f"Rewinding {n:,} tokens needs rows that were evicted: this cache can rewind "
                f"{self.rewindable:,}; raise `slack` or prefill again."
            )
        if not target:
            self.reset()
            return 0
        with self._told("rewind", target):
            self._rewind_rows(self.offset - target)
            if checkpoint := self.checkpoints.newest(target, target):
                self.checkpoints.restore(checkpoint)
            self.log.cut(target)
            self._note_state()
        return target

    def _rewind_rows(self, num_tokens: int) -> None:
        self._next_flush = self._room = 0
        try:
            flushes.rewind(self._rings, num_tokens)
        except BaseException:  # interrupted between two evaluations
            self.recover()
            raise
        for cache in self._exact:
            if not isinstance(cache, RingKVCache) and tokens_fed(cache):  # layers that the model never calls stay empty
                rewind_rows(cache, num_tokens)

    @property
    def num_draftable(self) -> int:
        """The most tokens of one call of which all but the first can be taken back exactly (see `take_back`): those
        up to the next block boundary of any ring; 0 if there are none."""
        free = [tokens_within_block(cache, self.offset, keeps=self.checkpoints.is_needed) for cache in self._exact]
        return max(min([n for n in (*free, self.num_left) if n is not None], default=1 << 30) - 1, 0)

    def mark(self) -> Mark:
        """Note this position, to take tokens back that are fed from here on. States are held by reference."""
        return Mark(self.offset, tuple(capture(cache) for cache in self.checkpoints.caches))

    def take_back(self, mark: Mark, fed: Sequence[int], keep: int) -> Sequence[int]:
        """Forget all but the first `keep` of the tokens `fed` since `mark`, in one call of `num_draftable + 1` at most.

        Returns those of them to feed again: all that are kept with recurrent layers, whose state is that of `mark`
        now, else none. The log ends before these; it may have had the tokens or not.
        """
        left = 0 if self.checkpoints.is_needed else keep
        with self._told("take_back", len(fed), keep):
            if left < len(fed):
                self._rewind_rows(len(fed) - left)
            for cache, state in zip(self.checkpoints.caches, mark.states, strict=True):
                restore_snapshot(cache, state)
            self.log.cut(mark.offset + left)
            self.checkpoints.cut(mark.offset)
            self._note_state()
        return fed[left:keep]

    def recover(self) -> None:
        """Rewind, after a model call that raised, to the tokens that every layer holds; else forget all tokens."""
        with self._told("recover", self.offset):
            self._recover()

    def _recover(self) -> None:
        target = self.offset
        if self.checkpoints.is_needed:
            checkpoint = self.checkpoints.newest(target)
            target = checkpoint.position if checkpoint else 0
        self._next_flush = self._room = 0
        try:
            flushes.undo([ring for ring in self._rings if ring.is_evicted_ahead])
            for cache in self._exact:
                surplus = (tokens_fed(cache) or 0) - target
                if surplus > 0 and rewind_floor(cache, target + surplus) <= target:
                    rewind_rows(cache, surplus)
            if checkpoint := self.checkpoints.newest(target, target):
                self.checkpoints.restore(checkpoint)
            self.log.cut(target)
            self._note_state()
            mx.eval([layer.state for layer in self.layers])
        except Exception:  # the model's error may be raised again: its arrays are part of the graph
            self.log.clear()
        if not self.log or self._log_mismatch() or not all(ring.is_intact for ring in self._rings):
            self.log.clear()
            self.layers[:] = self.plan.make(self._model)
            self._adopt(None)

    @property
    def rewindable(self) -> int:
        """Tokens that can be rewound now; with recurrent layers, to the oldest checkpoint (see `rewind_target`)."""
        floor = self._floor
        if self.checkpoints.is_needed:
            floor = next((c.position for c in self.checkpoints if c.position >= floor), self.offset)
        return self.offset - floor

    @property
    def _floor(self) -> int:
        """The smallest offset that every layer but the recurrent ones can rewind to."""
        return max((rewind_floor(cache, self.offset) for cache in self._exact), default=0) if self.log else 0

    @public()
    def reset(self) -> None:
        """Forget all tokens; ring buffers stay allocated."""
        with self._told("reset"):
            self.log.clear()
            self.checkpoints.clear()
            self._noted, self._next_flush, self._room = None, 0, 0
            for cache, empty in zip(leaves(self.layers), self._empty, strict=True):
                if isinstance(cache, RingKVCache):
                    cache.reset()
                elif empty is not None:
                    restore_snapshot(cache, empty)

    @public()
    def fork(self) -> PromptCache:
        """An independent copy, as by `copy.copy` and `copy.deepcopy`; takes no memory until one side is fed.

        Then that side copies the rows in use, into buffers of the next power of two, which grow with the tokens up to
        the window; a window that was full is copied whole. The last cache that holds the old buffers writes into them.
        Models from `mlxkv.load` refuse a copy that does not fit in memory with OutOfMemoryError, before anything is
        fed.

        Raises:
            CacheError: see `check_log`.
        """
        self.check_log()
        self._room = 0  # its buffers are shared now
        fork = twin(self)
        fork._is_in_use = False
        fork.log = TokenLog(self.log)
        fork.layers = [copy.deepcopy(layer) for layer in self.layers]
        fork._adopt(self.checkpoints)
        if self.peers is not None:
            self.peers.fork(fork)
        return fork

    # -- disk --------------------------------------------------------------------------------------------------------

    @property
    def can_save(self) -> bool:
        """False if a layer has a cache of the model's own that cannot be written to disk."""
        return not self.unsaved

    @cached_property
    def unsaved(self) -> tuple[str, ...]:
        """The class names of the caches that cannot be written to disk."""
        try:
            groups = [group for group in self.groups if isinstance(group, StateGroup)]
            return tuple(sorted({name for group in groups for name in group.unsaved}))
        except (ValueError, TypeError, AttributeError, IndexError, KeyError, RuntimeError):
            return self.plan.passed_through  # the model cannot be run to observe its caches

    @public(path=arguments.path)
    def save(self, path: str | os.PathLike[str]) -> int:
        """Write one file that `Model.load_cache` reads; returns the bytes written.

        Raises:
            CacheError: this cache was made without `mlxkv.load`, a layer cannot be written to disk, or the model is
                split between machines.
        """
        if self.peers is not None:
            raise CacheError(IN_NO_FILE)
        if self._files is None or not self.can_save:
            what = "A cache made outside `mlxkv.load`" if self._files is None else ", ".join(self.unsaved)
            raise CacheError(f"{what} cannot be saved; use another model, or `mlxkv.load` to make the cache.")
        self.check_log()
        return self._files.write_cache(Path(path), self)

    @public(path=arguments.path, version=text)
    def export_mlx_lm(self, path: str | os.PathLike[str], version: str = "0.32") -> int:
        """Write a file that mlx-lm's `load_prompt_cache` reads, from 0.32 on or ("0.31") before; returns the bytes.

        Raises:
            CacheError: mlx-lm has no cache that could hold this one; it says why.
            ConfigError: no such version.
        """
        if self.peers is not None:
            raise CacheError(IN_NO_FILE)
        if self._files is None:
            raise CacheError("A cache made outside `mlxkv.load` cannot be exported; make it with `Model.prefill`.")
        self.check_log()
        return self._files.export_cache(Path(path), self, version)

    def layout(self) -> dict[str, Any]:
        """The layout that saved rows must have to fit: JSON-able, and equal for the same model and settings."""
        config = self.plan.config
        return {
            "positions": config.positions,
            "bits": config.bits,
            "group_size": config.group_size if config.bits else None,
            "groups": {group.name: group.layout() for group in self.groups},
        }

    def begin_restore(self, ids: Sequence[int]) -> None:
        """Prepare for saved rows of `ids`: import them group by group, then call `finish_restore`."""
        ids = TokenIds(list(ids))  # they may be those of this cache
        self.reset()
        self.log.extend(ids)
        for group in self.groups:
            group.begin_restore(len(ids))

    def finish_restore(self) -> None:
        """Continue from the restored rows.

        Raises:
            CacheError: a required row is missing; call `reset`.
        """
        for group in self.groups:
            group.finish_restore()
        self._note_state()
        if self.checkpoints.is_needed:
            self._take_checkpoint()
