"""Bytes of one prefill: the peak of a model call beside weights and cache, by a formula.

Computed from shapes (the model's modules and the cache plan), so it takes no time and no memory. MLX queues operations
ahead of computing them and keeps their inputs until then: the peak is the sum of arrays over one to two layers, of the
largest layer of each kind:

    activations      chunk x outputs of the layer's modules (an expert's once per token that it is chosen for)
    attention        heads x chunk x rows, where no fused kernel computes scores; masks
    copied rows      decoded rows of a quantized cache; rows that a sliding-window layer concatenates; keys and values
                     that latent attention expands
    recurrent state  copies that a scan makes per token
    logits           one row, and the sampler's copies of it

or a block of every ring, which a flush reads before it writes any, if that is more.

The factors are fitted to MLX's CPU backend (tests/memory/test_peak.py): never less than measured, up to about twice as
much for dense models, more for recurrent ones. On Metal nothing has been measured; there `Budget` corrects the formula
by the peak of the first chunks, as it does everywhere. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxkv.cache.planning.plan import CachePlan, LayerPlan
from mlxkv.cache.planning.trained_length import config_tables
from mlxkv.cache.recurrent.state import keeps_state
from mlxkv.cache.recurrent.state_shapes import state_nbytes
from mlxkv.device import current_device

_LAYERS = 3.5  # of activations: one to two layers, each with as much again for norms, ropes and residuals
_ATTENTION = 1.25  # layers of scores
_EXPERTS = 1.5  # outputs of experts, with their sorted inputs
_LOGITS = 12  # arrays of the vocabulary's size while sampling
_SCAN = 8  # states per token of a scan that keeps all of them (Mamba-1)
_QUEUED_STEPS = 50  # states of a loop that keeps the last one
_SSD_STEP, _SSD_MATRICES = 256, 6  # Mamba-2: matrices of step x step per head
_FLOAT32 = 4
_FUSED_HEAD_SIZES = (64, 80, 128)  # of Metal's attention kernel
_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "num_query_heads")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k", "top_k")
_USUAL_TOP_K = 8


def prefill_bytes(
    model: Any, plan: CachePlan, chunk: int, tokens: int | None = None, *, has_kernel: bool | None = None
) -> int:
    """The bytes that a prefill of `chunk` tokens takes beside weights and cache, and a decode step after it.

    Args:
        model: an mlx-lm model or its skeleton; only shapes are read.
        tokens: how many the cache holds after the call; None: the full window, or `chunk` where nothing bounds it.
        has_kernel: whether a fused kernel computes attention, as on Metal; None: as on this machine.
    """
    capacity = plan.geometry.capacity if plan.geometry else tokens or chunk
    end = max(min(tokens or capacity, capacity), 1)
    chunk = min(chunk, end)
    item = max((leaf.shape.dtype.size for leaf in plan.leaves if leaf.shape), default=_FLOAT32)
    layers = [layer for layer in getattr(model, "layers", ()) if isinstance(layer, nn.Module)] or [model]
    top_k = max(_settings(model, _TOP_K), default=_USUAL_TOP_K)
    activations = max(_output_bytes(layer, item, top_k) for layer in layers) * chunk
    expanded = max(_expanded_width(layer) for layer in layers) * end * item
    heads = max(_settings(model, _HEADS), default=0)
    has_kernel = current_device().is_metal if has_kernel is None else has_kernel
    attention = max((_attention_bytes(leaf, chunk, end, item, heads, has_kernel) for leaf in plan.leaves), default=0)
    copies = max((_copied_bytes(leaf, chunk, end) for leaf in plan.leaves), default=0)
    state = max(state_nbytes(model, plan), default=0)
    states = max(_state_bytes(layer, chunk, state) for layer in layers) if state else 0
    logits = _LOGITS * _FLOAT32 * _vocabulary(model)
    prefill = int(_LAYERS * activations + _ATTENTION * (attention + copies) + 2 * expanded + states)
    block = sum(leaf.geometry.block * leaf.row_bytes for leaf in plan.leaves if leaf.geometry)
    return max(prefill, logits + prefill // chunk, block if tokens is None or tokens > capacity else 0)


def _output_bytes(layer: Any, item: int, top_k: int) -> int:
    """Bytes per token of the outputs of a layer's modules; norms compute in float32."""
    total = 0.0
    for module, shape in _weights(layer):
        if len(shape) == 1:
            total += shape[0] * _FLOAT32
        elif len(shape) == 3 and hasattr(module, "num_experts"):
            total += _EXPERTS * top_k * shape[1] * item
        else:
            total += shape[0] * item
    return int(total)


def _expanded_width(layer: Any) -> int:
    """Numbers that latent attention expands a cached row to: one projection per head (mlx-lm's MultiLinear)."""
    return sum(shape[0] * max(shape[1:]) for module, shape in _weights(layer) if "MultiLinear" in type(module).__name__)


def _attention_bytes(leaf: LayerPlan, chunk: int, end: int, item: int, heads: int, has_kernel: bool) -> int:
    """Bytes of scores and masks of one layer."""
    if keeps_state(leaf):
        return 0
    rows = min(leaf.geometry.capacity if leaf.geometry else end, end) + (chunk if leaf.native_window else 0)
    shape = leaf.shape
    masks = chunk * rows * _FLOAT32
    is_latent = shape is not None and shape.k_dim != shape.v_dim  # adds scores of positions to those of contents
    if has_kernel and shape is not None and not is_latent and shape.k_dim in _FUSED_HEAD_SIZES:
        return masks
    heads = heads or (shape.heads if shape else 1)
    return masks + heads * chunk * rows * (shape.dtype.size if shape else item) * (2 if is_latent else 1)


def _copied_bytes(leaf: LayerPlan, chunk: int, end: int) -> int:
    """Bytes of rows that are decoded, or concatenated where a call crosses a sliding window's block boundary."""
    if leaf.geometry is None or leaf.shape is None:
        return 0
    is_decoded = leaf.key_codec.bits is not None or leaf.value_codec.bits is not None
    is_crossing = leaf.native_window is not None and chunk > leaf.geometry.block and end > leaf.geometry.capacity
    rows = min(leaf.geometry.capacity, end) + chunk
    return (is_decoded + is_crossing) * leaf.shape.row_bytes * rows


def _state_bytes(layer: Any, chunk: int, state: int) -> int:
    """Bytes that a recurrent layer's scan holds for `chunk` tokens."""
    parameters = {name: p for module in _modules(layer) for name, p in module.items() if name in ("A_log", "D")}
    decay = parameters.get("A_log")
    if decay is not None and decay.ndim > 1:
        return _SCAN * chunk * state
    step = min(chunk, _SSD_STEP)
    matrices = _SSD_MATRICES * decay.size * step * step * _FLOAT32 if decay is not None and "D" in parameters else 0
    return min(chunk, _QUEUED_STEPS) * state + matrices


def _vocabulary(model: Any) -> int:
    kinds = (nn.Embedding, nn.QuantizedEmbedding)
    return max((module["weight"].shape[0] for module in _modules(model) if isinstance(module, kinds)), default=0)


def _weights(layer: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The modules of a layer that have a weight, with its shape."""
    for module in _modules(layer):
        if isinstance(weight := module.get("weight"), mx.array):
            yield module, tuple(weight.shape)


def _modules(layer: Any) -> Iterator[Any]:
    yield from (module for _, module in layer.named_modules()) if isinstance(layer, nn.Module) else ()


def _settings(model: Any, names: tuple[str, ...]) -> list[int]:
    """The whole numbers that the model's arguments give under these names, the largest of a list."""
    found = [table[name] for table in config_tables(getattr(model, "args", None)) for name in names if name in table]
    numbers = [max(value, default=0) if isinstance(value, list) else value for value in found]
    return [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n > 0]
