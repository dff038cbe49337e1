"""Log-probabilities of real text under a cache: what `bench.perplexity` compares.

The text is Python's own reference (`pydoc_data.topics`), read at run time and cut into stretches that run side by side
as one batch. Each token is scored once, given what the cache has kept of those before it. Knows no tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.sink_rotation import SinkRotation

MOST_ROWS = 512  # tokens of one call, over all stretches: the logits of Gemma's are 1 MB each
Layers = list[Any]  # mlx-lm's caches or ours, one per layer


def stretches(encode: Callable[[str], list[int]], prefix: list[int], count: int, length: int) -> mx.array:
    """(count, length) token ids: `prefix`, then text from equally spaced places of Python's reference."""
    from pydoc_data.topics import topics

    ids = encode("\n\n".join(topics[name] for name in sorted(topics)))
    own = length - len(prefix)
    starts = [n * (len(ids) - own) // max(count - 1, 1) for n in range(count)] if count > 1 else [len(ids) // 2]
    return mx.array([[*prefix, *ids[start : start + own]] for start in starts])


def ring(model: nn.Module, config: CacheConfig) -> Layers:
    """Our caches of every layer."""
    return plan_cache(model, config).make(model)


def native(model: nn.Module, replace: Callable[[], Any] | None = None) -> Layers:
    """mlx-lm's own caches; `replace` makes those of the layers that attend to everything."""
    caches = make_prompt_cache(model)
    return [replace() if replace and type(cache).__name__ == "KVCache" else cache for cache in caches]


def move_on(caches: Layers, by: int, rotation: SinkRotation) -> None:
    """Make caches what they would be if `by` more tokens had been evicted before the text that they hold.

    Keys in the window move with their positions; the first tokens keep theirs, until a ring moves them. Rings must have
    evicted, and `by` be whole turns of them and their undo areas. `rotation` is that of all layers.
    """
    for cache in caches:
        if isinstance(cache, RotatingKVCache):
            assert cache.keys is not None
            first, rest = cache.keys[..., : cache.keep, :], cache.keys[..., cache.keep :, :]
            cache.keys = mx.concatenate([first, rotation(rest, by)], axis=2)
            cache.offset += by
            continue
        geometry, keys = cache.geometry, cache.key_rows
        assert cache.evicted
        assert by % (geometry.block * geometry.slots * max(geometry.undo, 1)) == 0
        keys.put_parts(0, cache.pristine)  # as a restored chat has them, see RingKVCache.finish_restore
        keys.put(geometry.sinks, rotation(keys.dense(geometry.sinks, geometry.rows), by))
        cache.finish_restore(cache.offset + by, cache.undo_blocks)


def scores(model: Any, caches: Layers, ids: mx.array, chunk: int = MOST_ROWS) -> mx.array:
    """(stretches, tokens - 1) float32: the log-probability of each token but the first, given those before it.

    Calls are as long as `chunk` allows, and end at the block boundaries of the rings, as the product's do.
    """
    B, T = ids.shape
    done, found = 0, [mx.zeros((B, 0))]
    while done < T - 1:
        rings = [cache for cache in leaves(caches) if isinstance(cache, RingKVCache)]
        n = min(max(MOST_ROWS // B, 1), chunk, T - 1 - done)
        n = min([n, *(cache.geometry.tokens_to_boundary(cache.offset) for cache in rings)])
        logits = model(ids[:, done : done + n], cache=caches).astype(mx.float32)
        found.append(_of(logits, ids[:, done + 1 : done + n + 1]))
        mx.eval(found[-1], [cache.state for cache in caches])
        del logits  # until then the last layer's rows are held, and the next write would copy them
        done += n
    return mx.concatenate(found, axis=1)


def window_scores(model: Any, ids: mx.array, at: Sequence[int], lengths: Sequence[int], keep: int = 0) -> mx.array:
    """(stretches, positions) the log-probability of the token at each position of each stretch, given nothing but the
    `lengths[i]` tokens before it (the first `keep` of them those of the stretch), prefilled anew."""
    found = []
    for p, length in zip(at, lengths, strict=True):
        window = mx.concatenate([ids[:, :keep], ids[:, p - length + keep : p]], axis=1)
        caches = make_prompt_cache(model)
        model(window[:, :-1], cache=caches)  # its logits are never computed
        mx.eval([cache.state for cache in caches])
        found.append(_of(model(window[:, -1:], cache=caches).astype(mx.float32), ids[:, p : p + 1]))
        mx.eval(found[-1])
    return mx.concatenate(found, axis=1)


def _of(logits: mx.array, ids: mx.array) -> mx.array:
    """The log-probability of `ids` (B, S) by `logits` (B, S, vocabulary)."""
    return mx.take_along_axis(logits, ids[..., None], axis=-1)[..., 0] - mx.logsumexp(logits, axis=-1)
