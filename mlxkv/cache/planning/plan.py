"""CachePlan: a bounded cache for each layer of a model, in place of the caches that the model asks for, and its bytes.

`plan_cache` examines the model, `CachePlan.make` builds the caches. `layer_plan.py` plans one cache, `ring.py` is the
ring, `prompt_cache.py` all layers with the token log. On the MLX thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxkv.arguments import instance, optional, public, wrong_type
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.layer_plan import FULL, LayerPlan, pass_through, plan_leaf, quantized, unbounded_in
from mlxkv.cache.planning.probe import Sinks, leaves
from mlxkv.cache.planning.trained_length import trained_length
from mlxkv.cache.planning.traits import native_cache, traits_of
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.device import Device, current_device
from mlxkv.errors import ConfigError, UnboundedError

RECURRENT = ("ArraysCache",)  # mlx-lm's caches of recurrent layers; budgets count their states and checkpoints
_UNLIMITED = 1 << 62  # bytes for a default window if the caller names no budget


@dataclass(frozen=True)
class CachePlan:
    """One plan per cache entry of the model, and notes for the user."""

    layers: tuple[LayerPlan, ...]
    config: CacheConfig
    notes: tuple[str, ...] = field(default=())
    learned: int | None = None
    """Positions in the model's table of them: no more tokens can be fed, whatever the window. None: no such table."""
    trained: int | None = None
    """Tokens that the model was trained for; None if unknown."""

    @property
    def leaves(self) -> tuple[LayerPlan, ...]:
        """One plan per cache, with the children of a CacheList in its place, in the order of `probe.leaves`."""
        return tuple(leaf for plan in self.layers for leaf in (plan.children or (plan,)))

    @property
    def nbytes(self) -> int:
        """Bytes that the caches will hold once allocated."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one attended token over all layers."""
        return sum(leaf.row_bytes for leaf in self.leaves if leaf.geometry)

    @property
    def geometry(self) -> Geometry | None:
        """The ring of the full-attention layers; of the widest sliding-window layer where there are none."""
        rings = [leaf for leaf in self.leaves if leaf.geometry]
        full = [layer.geometry for layer in rings if layer.native_window is None]
        return full[0] if full else max((r.geometry for r in rings if r.geometry), key=lambda g: g.window, default=None)

    @property
    def resolved(self) -> CacheConfig:
        """The config with every default resolved, so that the same cache can be made on any machine."""
        if (g := self.geometry) is None:
            return self.config
        if any(unbounded_in(layer) for layer in self.layers):
            return replace(self.config, sinks=g.sinks)
        return replace(self.config, window=g.window, sinks=g.sinks, block=g.block, slack=g.undo * g.block)

    @property
    def beyond_training(self) -> str:
        """A warning if the config's window is larger than the model was trained for; "" otherwise."""
        window, trained = self.config.window, self.trained
        if self.geometry is None or window is None or trained is None or window <= trained:
            return ""
        return (
            f"The window of {window:,} tokens is larger than the {trained:,} that this model was trained for; "
            "beyond that its replies get worse."
        )

    @property
    def passed_through(self) -> tuple[str, ...]:
        """Class names of the model's own caches that stay unchanged."""
        return tuple(sorted({leaf.native_class for leaf in self.leaves if leaf.geometry is None}))

    @property
    def description(self) -> str:
        """One sentence: how this model's cache is bounded."""
        geometry = self.geometry
        if geometry is None:
            what = "This model's own caches are used unchanged"
            if {*self.passed_through} <= {*RECURRENT}:
                what = "All layers are recurrent and keep a state of constant size"
            return "; ".join([what, *self.notes]) + "."
        rings = sum(any(leaf.geometry for leaf in (layer.children or (layer,))) for layer in self.layers)
        text = (
            f"{rings} layers keep {geometry.sinks} + {geometry.window:,} tokens, "
            f"evict {geometry.block} at a time and rewind at least {geometry.undo * geometry.block}"
        )
        if self.config.bits is not None:
            text += f", in {self.config.named_bits} bits"
        if states := sum(leaf.native_class in RECURRENT for leaf in self.leaves):
            text += f"; {states} keep a recurrent state"
        return "; ".join([text, *self.notes]) + "."

    def make(self, model: nn.Module) -> list[Any]:
        made = [plan.make(native) for plan, native in zip(self.layers, native_cache(model), strict=True)]
        for leaf in leaves(made):
            if isinstance(leaf, RingKVCache):
                leaf.max_positions = self.learned
        return made


def plan_cache(
    model: Any,
    config: CacheConfig | None = None,
    *,
    system_tokens: int = 0,
    budget: int = _UNLIMITED,
    is_loaded: bool = True,
    device: Device | None = None,
    trained: int | None = None,
) -> CachePlan:
    """Plan a bounded cache for any mlx-lm model.

    Args:
        model: an mlx-lm model.
        config: its bounds.
        system_tokens: length of the system prompt, for `sinks="system"`.
        budget: bytes the cache may take when `config.window` is None.
        is_loaded: once per model it is run to see how the pinned tokens can be moved; see `traits.py`. False, for an
            estimate: nothing is computed, no weights are read, and a layer's own rope is trusted.
        device: the machine it will run on, for quantized rows; None: this one.
        trained: the model's trained length, if its config.json says more about it than the model's arguments.

    Raises:
        ConfigError: `config.bits` does not fit this model's rows or its attention, or `config.window` is beyond its
            learned positions. UnboundedError: `config.window` was asked for, and a layer cannot be held to it.
    """
    config = config or CacheConfig()
    traits = traits_of(model)
    seen = traits.leaves
    full = [leaf for leaf in seen if leaf.native_class in FULL]
    row_bytes = sum(leaf.shape.row_bytes for leaf in full if leaf.shape)
    if config.bits is not None:  # scales and biases included, a little more than bits/16 of 16-bit rows
        row_bytes = row_bytes * 9 // 16
    learned = traits.learned
    if learned and config.window and config.window > config.geometry(learned).window:
        raise ConfigError(
            f"`window` is {config.window:,}, and this model has learned positions for {learned:,} tokens; ask for no "
            "more than that."
        )
    trained = min((n for n in (trained or trained_length(model), learned) if n), default=None)
    window = config.window or config.default_window(trained, row_bytes, budget)
    geometry = config.geometry(window, system_tokens)
    notes = []
    if config.window is not None and geometry.window != window:
        notes.append(f"the window of {window:,} is rounded up to {geometry.window:,}, whole blocks of {geometry.block}")
    sinks: Sequence[Sinks] = (Sinks(),) * len(seen)
    can_move = learned is None and config.positions == "streaming"  # probing far positions needs rows of the table
    if can_move and geometry.sinks and full:
        sinks = traits.sinks(model, is_loaded=is_loaded)
    reason = traits.counts_rows
    flat = iter(zip(seen, sinks, strict=True))
    asked = {leaf.max_size: leaf.mask_window for leaf in seen if leaf.mask_window}
    plans = []
    for i, cache in enumerate(native_cache(model)):
        children = getattr(cache, "caches", None)
        planned = tuple(
            plan_leaf(
                LayerPlan(i, type(c).__name__, child=n if children else None), c, *next(flat), config, geometry,
                asked.get(getattr(c, "max_size", None)),
            )
            for n, c in enumerate(children or (cache,))
        )  # fmt: skip
        plans.append(LayerPlan(i, type(cache).__name__, children=planned) if children else planned[0])
    if reason is not None:
        plans = [pass_through(plan) for plan in plans]
    unbounded = sorted({name for plan in plans for name in unbounded_in(plan)})
    if unbounded and config.window is not None:
        reason = reason or "this model has a cache of its own that mlxkv cannot bound"
        raise UnboundedError(
            f"`window` is {config.window:,}, and {', '.join(unbounded)} cannot be held to it: {reason}; leave it out."
        )
    plan = CachePlan(tuple(plans), config, tuple(notes), learned, trained)
    if config.bits is not None and unbounded:
        raise ConfigError(f"`bits` is {config.bits!r}, and {', '.join(unbounded)} cannot be quantized; leave it out.")
    if config.bits is not None:
        plan = _quantized_plan(model, plan, device or current_device())
    return replace(plan, notes=(*notes, *_notes(plan, unbounded, reason)))


def _notes(plan: CachePlan, unbounded: Sequence[str], reason: str | None) -> list[str]:
    """Notes for the user about a plan."""
    notes = []
    full = [leaf for leaf in plan.leaves if leaf.geometry is not None and leaf.native_window is None]
    streaming = plan.config.positions == "streaming"
    if streaming and any(leaf.geometry and leaf.geometry.sinks and not leaf.is_streaming for leaf in full):
        notes.append("its positions cannot be moved, so the pinned tokens keep theirs")
    if plan.learned:
        notes.append(f"it has learned positions for {plan.learned:,} tokens, and a chat ends there")
    if unbounded:
        why = f", since {reason}" if reason else ""
        notes.append(f"{_own_caches(unbounded)} is used unchanged and grows with every token{why}")
    if others := [name for name in plan.passed_through if name not in (*unbounded, *RECURRENT)]:
        notes.append(f"{_own_caches(others)} is used unchanged, outside the cache budget")
    return notes


def _own_caches(names: Sequence[str]) -> str:
    return f"the model's own cache in some layers ({', '.join(names)})"


def _network(name: str, value: Any) -> Any:
    if not callable(value) or not (hasattr(value, "layers") or hasattr(value, "make_cache")):
        wrong_type(name, value, "an mlx-lm model", "for a model from `mlxkv.load` that is `model.loaded.model`")
    return value


@public(model=_network, config=optional(instance(CacheConfig)))
def make_cache(model: Any, config: CacheConfig | None = None) -> list[Any]:
    """Bounded caches for an mlx-lm model, to pass as `prompt_cache` to mlx-lm's own loops.

    Returns one entry per layer. `sinks="system"` means 4 here, where there is no chat. Warns of layers whose caches
    stay unchanged, and of a window that was rounded up.

    Args:
        model: an mlx-lm model: what `mlx_lm.load` returned, or `model.loaded.model`.
        config: how to bound them.

    Raises:
        UnboundedError: a window was asked for, and this model's own cache cannot be limited.
        ConfigError: this model takes no quantized rows, or no window of this size.
    """
    plan = plan_cache(model, config)
    for note in plan.notes:
        warnings.warn(note, UserWarning, stacklevel=3)  # `public` is a frame in between
    return plan.make(model)


def _quantized_plan(model: Any, plan: CachePlan, device: Device) -> CachePlan:
    """The plan with rows of `config.bits`, tested: packed rows in a decode step if model and device support them.

    Raises:
        ConfigError: the rows do not divide into groups, or the model needs them as numbers.
    """

    def with_leaves(change: Any) -> CachePlan:
        def of(layer: LayerPlan) -> LayerPlan:
            if layer.children:
                return replace(layer, children=tuple(change(child) for child in layer.children))
            return change(layer)

        return replace(plan, layers=tuple(of(layer) for layer in plan.layers))

    packed = with_leaves(lambda leaf: quantized(leaf, plan.config, device))
    if _refusal(model, packed) is None:
        return packed
    fused = with_leaves(lambda leaf: replace(quantized(leaf, plan.config, device), is_fused=True))
    if (error := _refusal(model, fused)) is None:
        return fused
    raise ConfigError(
        f"`bits` is {plan.config.bits!r}, and this model's attention does not take quantized rows ({error}); leave it "
        f"out."
    )


def _refusal(model: Any, plan: CachePlan) -> str | None:
    """The error of `_try_out` for this plan; a model is tested once."""
    known = traits_of(model).quantization_errors
    key = tuple((leaf.geometry, leaf.key_codec, leaf.value_codec, leaf.is_fused) for leaf in plan.leaves)
    if key not in known:
        known[key] = _try_out(model, plan)
    return known[key]


def _try_out(model: Any, plan: CachePlan) -> str | None:
    """The error that the model raises for a few tokens; None if it takes them. Nothing is computed.

    Prefills and decode steps, first into empty rings, then into full ones: attention may differ with many rows.
    """
    caches = plan.make(model)
    try:
        for n in (3, 1, 1):
            model(mx.zeros((1, n), mx.int32), cache=caches)
        for ring in leaves(caches):
            if isinstance(ring, RingKVCache):
                ring.offset = max(ring.geometry.capacity - 4, ring.offset)
        for n in (1, 2, 1):
            model(mx.zeros((1, n), mx.int32), cache=caches)
    except Exception as error:  # a model's own code may raise anything
        return str(error)
    return None
