"""ModelTraits: shapes, windows and key rotations of what a loaded model stores in its caches. Found once per model.

They are an attribute of the model, with its lifetime. They are found again if its layers or their weights have been
replaced since. Used on the MLX thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxkv.cache.planning.equal_layers import layer_kinds
from mlxkv.cache.planning.probe import Recorder, RowShape, Sinks, learned_positions, leaves, observe, sink_rotations
from mlxkv.cache.rings.sink_rotation import rotation_for

_ATTRIBUTE = "_mlxkv_traits"

# By the names of mlx-lm's modules, where only reading the module shows it.
_UNEQUAL_CALLS = ("phi3small", "plamo3")
_COUNT_BLOCKS = ("minimax_m3_vl",)
_COUNT_ROWS = {
    "afm7": "its last layers take the number of rows for the position of the query",
    "phi3small": "its sparse attention takes a row's index for the position of the key",
}


@dataclass(frozen=True)
class LeafTraits:
    """One cache of a model. `shape` None: it has no rows that a ring could store. `is_shared`: layers without a cache
    read it. `mask_window`: the window that the model masks it to."""

    native_class: str
    shape: RowShape | None = None
    is_shared: bool = False
    mask_window: int | None = None
    max_size: int | None = None


@dataclass
class ModelTraits:
    """Traits of one model, without a reference to it, which would keep its weights.

    Args:
        leaves: in the order of `probe.leaves`.
        origin: the objects they were found from.
        module: the name of the model's module in mlx-lm.
        learned: see `probe.learned_positions`.
        state_shapes: see `state_shapes.StateShapes`.
        quantization_errors: errors of quantized rows; see `plan._refusal`.
        batch_errors: one entry once it has been tried; see `batch_check.model_error`.
    """

    leaves: tuple[LeafTraits, ...]
    origin: Sequence[Any]
    module: str = ""
    learned: int | None = None
    state_shapes: dict[Any, Any] = field(default_factory=dict)
    quantization_errors: dict[Hashable, str | None] = field(default_factory=dict)
    batch_errors: list[str | None] = field(default_factory=list)
    _sinks: dict[bool, tuple[Sinks, ...]] = field(default_factory=dict)

    @property
    def counts_blocks(self) -> bool:
        """Whether its sparse attention counts blocks of rows, which a batch's padding would move."""
        return self.module in _COUNT_BLOCKS

    @property
    def counts_rows(self) -> str | None:
        """The reason if it needs every row in order, since its attention uses a row's index as a position."""
        return _COUNT_ROWS.get(self.module)

    def sinks(self, model: Any, *, is_loaded: bool) -> tuple[Sinks, ...]:
        """How each cache's sinks are moved; found by two decode steps through one layer of each kind.

        `is_loaded` False: nothing is computed, and a layer's own rope is trusted.
        """
        if is_loaded not in self._sinks:
            modules = _modules(model)
            if is_loaded:
                alike = self._kinds(model, modules)
                found = sink_rotations(model, native_cache(model), native_cache(model), modules, alike)
            else:
                found = tuple(_trusted(module, leaf) for module, leaf in zip(modules, self.leaves, strict=True))
            self._sinks[is_loaded] = found
        return self._sinks[is_loaded]

    def _kinds(self, model: Any, modules: Sequence[Any]) -> list[Hashable]:
        """For each cache its kind: equal layers treat them equally; a cache of an unknown layer has its own kind."""
        is_known = {id(module) for module in modules} == {id(layer) for layer in getattr(model, "layers", ())}
        of_layers = layer_kinds(modules) if is_known else range(len(modules))
        passes: dict[int, int] = {}  # models that loop use a layer more than once, and may treat it differently
        found: list[Hashable] = []
        for leaf, module, kind in zip(self.leaves, modules, of_layers, strict=True):
            passes[id(module)] = passes.get(id(module), 0) + 1
            found.append((leaf, kind, passes[id(module)]))
        return found


def has_equal_calls(model: Any) -> bool:
    """Whether calls of one token attend to the same keys as those of several, which drafts need."""
    return _module(model) not in _UNEQUAL_CALLS


def traits_of(model: Any) -> ModelTraits:
    """The traits of an mlx-lm model; its weights are not read."""
    natives = native_cache(model)
    origin = _origin(model, natives)
    known = getattr(model, "__dict__", {}).get(_ATTRIBUTE)
    if known is not None and _same(known.origin, origin):
        return known
    classes = [type(cache).__name__ for cache in leaves(natives)]
    seen = observe(model, natives)
    found_leaves = tuple(
        LeafTraits(name, leaf.shape, leaf.is_shared, leaf.mask_window, leaf.max_size)
        if isinstance(leaf, Recorder)
        else LeafTraits(name)
        for name, leaf in zip(classes, seen, strict=True)
    )
    module = _module(model)
    found = ModelTraits(found_leaves, origin, module, learned_positions(model))
    with contextlib.suppress(AttributeError, TypeError):  # an object that takes no attribute is observed again
        setattr(model, _ATTRIBUTE, found)
    return found


def native_cache(model: Any) -> list[Any]:
    """The cache entries that mlx-lm would use."""
    from mlx_lm.models.cache import make_prompt_cache

    return make_prompt_cache(model)


def _origin(model: Any, natives: Sequence[Any]) -> list[Any]:
    """Objects whose replacement is noticed: the layers, all parts of the first and the last one, and the caches."""
    layers = [layer for layer in getattr(model, "layers", ()) if isinstance(layer, nn.Module)]
    ends = [layers[0], layers[-1]] if layers else [model] if isinstance(model, nn.Module) else []
    inside = [module for end in ends for _, module in end.named_modules() if module is not model]
    arrays = [array for end in ends for _, array in tree_flatten(end.parameters())]  # type: ignore[misc]
    asked = [(type(c).__name__, getattr(c, "max_size", None), getattr(c, "keep", None)) for c in leaves(natives)]
    return [asked, *layers, *inside, *arrays]


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and a[0] == b[0] and all(x is y for x, y in zip(a[1:], b[1:], strict=True))


def _modules(model: Any) -> list[Any]:
    """For each leaf of the model's cache its layer, matched by index; None if the counts do not match."""
    native = native_cache(model)
    layers = list(getattr(model, "layers", []))
    fits = layers and (
        len(native) <= len(layers) or len(native) % len(layers) == 0
    )  # models that loop use layers again
    modules = []
    for i, cache in enumerate(native):
        modules += [layers[i % len(layers)] if fits else None] * len(leaves([cache]))
    return modules


def _trusted(module: Any, leaf: LeafTraits) -> Sinks:
    rotation = rotation_for(module, leaf.shape.k_dim) if module is not None and leaf.shape is not None else None
    return Sinks(rotation, rotation is not None)


def _module(model: Any) -> str:
    return type(model).__module__.rsplit(".", 1)[-1]
