"""What is checked of one architecture: the same checks make the tests and the table in docs/models.md.

Everything is compared with mlx-lm's own caches, or with one call of the model over all tokens with a mask that shows
what a ring would still hold. A check raises AssertionError with a sentence, or says what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.layer_plan import FULL
from mlxkv.cache.planning.plan import CachePlan, plan_cache
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.planning.traits import native_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.rings.geometry import Geometry
from mlxkv.errors import ConfigError, RewindError, UnboundedError
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.prompts.kv_file import read_prompt_file, write_prompt_file
from tests.reference import largest

CONFIG = CacheConfig(window=64, sinks=4, block=16, slack=32, positions="absolute", group_size=32)
FITS = 66  # tokens that evict nothing: 4 + 64 fit
CALLS = (50, 40, 1, 1, 1, 1, 1, 1, 1, 1, 17, 1, 1, 1, 1, 16)  # evictions in a call, two in one, and in decode steps
LENGTH = sum(CALLS)
_EVICTED = 80  # of LENGTH tokens, by layers that attend to everything


class EverythingKept:
    """A cache that keeps every row; its mask shows those a ring or a sliding window of this geometry would attend."""

    def __init__(self, geometry: Geometry | None, native_window: int | None, keep: int) -> None:
        self.geometry, self.native_window, self.keep = geometry, native_window, keep
        self.keys: Any = None
        self.values: Any = None
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values, self.offset = keys, values, keys.shape[2]
        return keys, values

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        return self.keys, self.values

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> mx.array | None:
        if N == 1 and self.keys is None:
            return mx.ones((1, 1), mx.bool_) if return_array else None
        rows = [
            [self._sees(q, k) and (window_size is None or k > q - window_size) for k in range(self.offset + N)]
            for q in range(self.offset, self.offset + N)
        ]
        return mx.array(rows)

    def _sees(self, q: int, k: int) -> bool:
        if k > q:
            return False
        if self.native_window is not None:
            return k < self.keep or k > q - self.native_window
        if self.geometry is None:
            return True
        K, W, R = self.geometry.sinks, self.geometry.window, self.geometry.block
        gone = 0 if q < K + W else ((q - K - W) // R + 1) * R
        return k < K or k >= K + gone

    @property
    def state(self) -> list[mx.array]:
        return []


def reference_caches(model: Any, plan: CachePlan) -> list[Any]:
    """The model's own caches, with EverythingKept for each that becomes a ring."""
    plans = iter(plan.leaves)

    def stand_in(cache: Any) -> Any:
        if children := getattr(cache, "caches", None):
            cache.caches = tuple(stand_in(child) for child in children)
            return cache
        leaf = next(plans)
        if leaf.geometry is None:
            return cache
        return EverythingKept(leaf.geometry, leaf.native_window, getattr(cache, "keep", 0))

    return [stand_in(cache) for cache in native_cache(model)]


def feed(
    model: Any, caches: list[Any], ids: Sequence[int], calls: Sequence[int], after: Callable[[], None] = lambda: None
) -> mx.array:
    """The logits (len(ids), vocab) of calls of these sizes; `after` each."""
    out, at = [], 0
    for n in calls:
        out.append(model(mx.array([list(ids[at : at + n])]), cache=caches)[0])
        mx.eval(out[-1], [cache.state for cache in caches])
        after()
        at += n
    assert at == len(ids)
    return mx.concatenate(out)


def difference(got: mx.array, expected: mx.array) -> float:
    """The largest difference, of the largest logit."""
    return largest_apart(got, expected) / largest(mx.where(mx.isinf(expected), 0.0, expected))


def largest_apart(got: mx.array, expected: mx.array) -> float:
    """The largest difference; some models put logits at minus infinity, which is equal to itself."""
    return largest(mx.where(got == expected, 0.0, got - expected))


def token_ids(n: int = LENGTH) -> list[int]:
    ids = mx.random.randint(1, 64, (n,), key=mx.random.key(3)).tolist()
    return [int(i) for i in ids]  # type: ignore


@dataclass(frozen=True)
class Parity:
    """Largest differences of the logits, of the largest logit."""

    whole: float  # to mlx-lm's caches, one call, nothing evicted
    pieces: float  # the same in pieces and decode steps
    evicted: float | None  # to the reference past the window; None where there is no ring


def parity(model: Any, plan: CachePlan) -> Parity:
    ids = token_ids()
    whole, pieces = (
        difference(
            feed(model, plan.make(model), ids[:FITS], calls), feed(model, native_cache(model), ids[:FITS], calls)
        )
        for calls in ((FITS,), (23, 30, 1, 1, 1, 7, 1, 1, 1))
    )
    if not any(leaf.geometry for leaf in plan.leaves):
        return Parity(whole, pieces, None)
    expected = feed(model, reference_caches(model, plan), ids, (LENGTH,))
    caches = plan.make(model)
    got = feed(model, caches, ids, CALLS, lambda: check_bounded(plan, caches))
    return Parity(whole, pieces, difference(got, expected))


def check_bounded(plan: CachePlan, caches: Sequence[Any]) -> None:
    """Each ring holds exactly the rows of its geometry: sinks, window and undo blocks."""
    for leaf, cache in zip(plan.leaves, leaves(caches), strict=True):
        if leaf.geometry is None:
            continue
        g = leaf.geometry
        rows = {held.count for held in (cache.key_rows, cache.value_rows)}
        assert rows == {g.sinks + g.window + g.undo * g.block}, f"layer {leaf.name} holds {rows} rows of {g}"
        assert cache.nbytes == leaf.nbytes, f"layer {leaf.name} holds {cache.nbytes} bytes of {leaf.nbytes}"
        if leaf.native_class in FULL:
            assert g.rows <= 4 + 64 + 32, f"layer {leaf.name} keeps {g.rows} rows"


def planned(model: Any, **more: Any) -> CachePlan:
    """The plan for CONFIG; without its window where the model cannot be held to one."""
    config = replace(CONFIG, **more)
    try:
        return plan_cache(model, config)
    except UnboundedError:
        return plan_cache(model, replace(config, window=None))


def streams(model: Any) -> bool | None:
    """Whether evicted tokens leave no gap between the pinned ones and the rest; None without full attention or rings.

    Where the plan says so, the first token's key must be what the model makes of it so many positions later.
    """
    plan = planned(model, positions="streaming")
    full = [leaf for leaf in plan.leaves if leaf.geometry is not None and leaf.native_window is None]
    if not full:
        return None
    if not all(leaf.is_streaming for leaf in full):
        return False
    caches = plan.make(model)
    feed(model, caches, token_ids(), CALLS)
    later = later_caches(model, plan, _EVICTED)
    feed(model, later, token_ids()[:1], (1,))
    for leaf, ring, fresh in zip(plan.leaves, leaves(caches), leaves(later), strict=True):
        if leaf.geometry is None or leaf.native_window is not None:
            continue
        assert ring.evicted == _EVICTED, f"{ring.evicted} tokens were evicted"
        moved, expected = ring.key_rows.dense(0, 1), fresh.keys
        error = largest(moved - expected) / largest(expected)
        assert error < 1e-3, f"layer {leaf.name}: the first key is off by {error:.1e} of its largest number"
    return True


def later_caches(model: Any, plan: CachePlan, offset: int) -> list[Any]:
    """Caches that are empty, and at this offset."""
    caches = reference_caches(model, plan)
    for cache in leaves(caches):
        if hasattr(cache, "offset"):
            cache.offset = offset
        if hasattr(cache, "start_position"):
            cache.start_position = offset
    return caches


def quantizes(model: Any) -> str | None:
    """Why this model's rows are not quantized; None where 8, 4 and (8, 4) bits work past the window."""
    for bits in (8, 4, (8, 4)):
        try:
            plan = planned(model, bits=bits)
        except ConfigError as error:
            return str(error)
        caches = plan.make(model)
        logits = feed(model, caches, token_ids(), CALLS, lambda: check_bounded(plan, caches))  # noqa: B023  # called here
        assert not mx.any(mx.isnan(logits)).item(), f"{bits} bits give logits that are no numbers"
        packed = [leaf for leaf in plan.leaves if leaf.geometry and not leaf.is_fused]
        if bits == 8 and packed:
            # The packed path of a decode step must see the same rows as the fused one does.
            fused = decoded(plan).make(model)
            error = difference(feed(model, fused, token_ids(), CALLS), logits)
            assert error < 1e-3, f"packed and decoded rows differ by {error:.1e}"
    return None


def decoded(plan: CachePlan) -> CachePlan:
    """The plan with rows always decoded for attention."""
    return replace(
        plan,
        layers=tuple(
            replace(p, is_fused=True, children=tuple(replace(c, is_fused=True) for c in p.children))
            for p in plan.layers
        ),
    )


def run(model: Any, cache: PromptCache, ids: Sequence[int], chunk: int = 24) -> mx.array:
    """The logits of `ids`, fed as the runner feeds them."""
    out, at = [], 0
    while at < len(ids):
        n = min(chunk, len(ids) - at, cache.tokens_to_boundary() or chunk)
        out.append(model(mx.array([list(ids[at : at + n])]), cache=cache.layers)[0])
        mx.eval(out[-1], [layer.state for layer in cache.layers])
        cache.advance(ids[at : at + n])
        at += n
    return mx.concatenate(out)


def rewinds(model: Any, plan: CachePlan, target: int = 99) -> bool:
    """Whether going back to `target` from 119, where a turn began, is exactly as if the rest had never been fed."""
    ids, other = token_ids()[:119], token_ids()[20:50]
    back, straight = PromptCache(plan, model), PromptCache(plan, model)
    for cache in (back, straight):
        run(model, cache, ids[:target])
        cache.checkpoint()
    run(model, back, ids[target:])
    try:
        if back.rewind(target) != target:
            return False
    except RewindError:
        return False
    error = largest_apart(run(model, back, other), run(model, straight, other))
    assert error == 0.0, f"after rewinding the logits differ by {error:.1e}"
    return True


def resumes(model: Any, plan: CachePlan, path: Path) -> bool:
    """Whether a cache that was saved and read into another one goes on bit by bit as if it never had been."""
    ids, other = token_ids()[:109], token_ids()[20:50]
    cache, fresh = PromptCache(plan, model), PromptCache(plan, model)
    run(model, cache, ids)
    cache.checkpoint()
    if not cache.can_save:
        return False
    identity = ModelIdentity.of("tiny", {"config.hidden": "64"})
    write_prompt_file(path, cache, identity)
    restored = read_prompt_file(path, fresh, identity)
    path.unlink()
    assert restored.tokens == len(ids), f"{restored.tokens} of {len(ids)} tokens came back"
    error = largest_apart(run(model, fresh, other), run(model, cache, other))
    assert error == 0.0, f"after resuming the logits differ by {error:.1e}"
    return True
