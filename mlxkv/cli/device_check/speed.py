"""Checks of speed on this device, beside mlx-lm where it has the like.

On the CPU backend speeds are information: nothing there is judged. Two sides run in turns, so that a machine that does
other things slows both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlxkv.cli.bench.measure import (
    compare,
    decode_ours,
    decode_speeds,
    decode_theirs,
    fill,
    prefill_speeds,
    their_caches,
)
from mlxkv.cli.device_check.check import REPORT, Outcome, State
from mlxkv.cli.device_check.subject import ROUNDS
from mlxkv.stats import rate_text

if TYPE_CHECKING:
    from mlxkv.cache.rings.rows import Codec
    from mlxkv.cli.bench.measure import Speeds
    from mlxkv.cli.device_check.subject import Subject

SLOW = 0.95  # of mlx-lm's speed
AGAIN = "close other programs and run it again"
_BLOCK = 256  # rows that are evicted together
_STEPS_PER_FLUSH = 5  # a flush that takes more is noticed
_DRAFTS = (1, 2, 5, 9, 17)  # tokens of one forward
_CHUNKS = (512, 1024, 2048)
_CHUNK_TOKENS, _CHUNK_S = 2048, 20.0  # prefilled for each, and seconds for all


def judged(subject: Subject, ratio: float, figure: str, values: Mapping[str, float]) -> Outcome:
    """The outcome of a ratio that should be 1 or more; on the CPU backend it is only told."""
    if subject.device.is_cpu or ratio >= SLOW:
        return Outcome(State.OK, figure, values=values)
    return Outcome(State.ATTENTION, figure, f"{AGAIN}; otherwise {REPORT}", values)


def prefill(subject: Subject) -> Outcome:
    """Prefill beside mlx-lm's loop."""
    count = subject.sizes.tokens
    return _beside(
        subject, prefill_speeds(subject.runner, subject.plan(count, copies=3), subject.prompt(count), ROUNDS)
    )


def decode(subject: Subject) -> Outcome:
    """Decode beside mlx-lm's loop."""
    count, steps = subject.sizes.tokens, subject.sizes.steps
    filled = fill(subject.runner, subject.plan(count + steps + 1, copies=4), subject.prompt(count))
    return _beside(subject, decode_speeds(subject.runner, filled, subject.prompt(count)[-1], steps, ROUNDS))


def _beside(subject: Subject, found: Speeds) -> Outcome:
    ratio = found.ratio.median
    figure = f"{ratio:.2f} x mlx-lm: {rate_text(found.ours_tps)} and {rate_text(found.theirs_tps)} tok/s"
    return judged(subject, ratio, figure, {"ratio": ratio, "mlxkv": found.ours_tps, "mlx-lm": found.theirs_tps})


def quantized(subject: Subject, bits: int | str) -> Outcome:
    """Decode on quantized rows against 16 bits, and beside mlx-lm's quantized cache where it has one."""
    runner, count, steps = subject.runner, subject.sizes.tokens, subject.sizes.steps
    last = subject.prompt(count)[-1]
    ours, plain = (subject.prefilled(subject.plan(count + steps + 1, bits=b, copies=4), count) for b in (bits, None))

    def fewer_bits() -> float:
        return decode_ours(runner, ours, last, steps)

    whole = compare(fewer_bits, lambda: decode_ours(runner, plain, last, steps), ROUNDS)
    figure, values = f"{whole.median:.2f} x the speed of 16 bits", {"to_16_bits": whole.median}
    codec = next(leaf.key_codec for leaf in ours.plan.leaves if leaf.key_codec.bits is not None)
    theirs = None if isinstance(bits, str) else _their_quantized(subject, count, codec)
    if theirs is None:
        return Outcome(State.OK, f"{figure}; mlx-lm has no such cache", values=values)
    beside = compare(fewer_bits, lambda: decode_theirs(runner, theirs, last, steps), ROUNDS)
    figure = f"{figure}, {beside.median:.2f} x mlx-lm's quantized cache"
    return judged(subject, beside.median, figure, {**values, "ratio": beside.median})


def _their_quantized(subject: Subject, count: int, codec: Codec) -> list[Any] | None:
    """mlx-lm's caches, prefilled and quantized; None if it cannot quantize all of them."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import KVCache

    caches = their_caches(subject.runner)
    if not all(type(cache) is KVCache for cache in caches):
        return None
    next(generate_step(mx.array(subject.prompt(count)), subject.network, max_tokens=1, prompt_cache=caches))
    found = [cache.to_quantized(codec.group_size, codec.bits) for cache in caches]
    mx.eval([cache.state for cache in found])
    return found


def eviction(subject: Subject) -> Outcome:
    """Seconds that a step takes longer when it evicts a block."""
    block = min(_BLOCK, subject.sizes.tokens // 2)
    plan = subject.plan(2 * block, block=block)
    geometry = plan.geometry
    if geometry is None or geometry.block != block:
        return Outcome(State.NOT_RUN, "this model's caches evict no blocks")
    before = 4  # steps
    cache = subject.prefilled(plan, geometry.capacity - before)
    cache.checkpoint()
    start, longer, usual = cache.offset, [], []
    for _ in range(ROUNDS):
        times, begun = [], time.perf_counter()
        for _ in subject.stream(cache, 2 * before + 2):
            times.append(time.perf_counter() - begun)
            begun = time.perf_counter()
        step = statistics.median(times[1:])
        # The step that evicts is computed while the token before it arrives.
        longer.append(sum(times[before - 1 : before + 2]) - 3 * step)
        usual.append(step)
        cache.rewind(start)
    step, flush = statistics.median(usual), max(statistics.median(longer), 0.0)
    figure = f"a block of {block} tokens takes {1000 * flush:.1f} ms, a step {1000 * step:.1f} ms"
    values = {"block": block, "flush_s": flush, "step_s": step}
    if flush > _STEPS_PER_FLUSH * step and not subject.device.is_cpu:
        return Outcome(State.ATTENTION, figure, f"{AGAIN}; otherwise {REPORT}", values)
    return Outcome(State.OK, figure, values=values)


def forwards(subject: Subject) -> Outcome:
    """What a forward of several tokens, which verifies a draft, costs beside one of a single token."""
    import mlx.core as mx

    count = subject.sizes.tokens
    cache = subject.prefilled(subject.plan(count + max(_DRAFTS)), count)
    cache.checkpoint()
    ids = subject.prompt(count + max(_DRAFTS))[count:]
    times: dict[int, list[float]] = {n: [] for n in _DRAFTS}
    for _ in range(ROUNDS + 1):
        for n, found in times.items():
            begun = time.perf_counter()
            mx.eval(subject.network(mx.array([ids[:n]]), cache=cache.layers))
            found.append(time.perf_counter() - begun)
            cache.advance(ids[:n])
            cache.rewind(count)
    one, *others = (statistics.median(found[1:]) for found in times.values())
    costs = {n: seconds / one for n, seconds in zip(_DRAFTS[1:], others, strict=True)}
    figure = ", ".join(f"{n} tokens {cost:.2f}" for n, cost in costs.items())
    return Outcome(State.OK, f"{figure} x one", values={str(n): cost for n, cost in costs.items()})


def chunks(subject: Subject) -> Outcome:
    """Prefill in chunks of several sizes."""
    from mlxkv.inference.runner import ModelRunner

    takes = 2 * len(_CHUNKS) * _CHUNK_TOKENS * subject.sizes.token_s
    if takes > _CHUNK_S:
        return Outcome(State.NOT_RUN, f"it would take {takes:,.0f} s at {1 / subject.sizes.token_s:.0f} tok/s")
    plan, ids = subject.plan(_CHUNK_TOKENS, copies=2), subject.prompt(_CHUNK_TOKENS)
    fitting = [n for n in _CHUNKS if subject.budget.fits(plan, subject.model.loaded.weight_bytes, n)]
    times: dict[int, list[float]] = {n: [] for n in fitting}
    for _ in range(2):
        for n, found in times.items():
            begun = time.perf_counter()
            for _ in ModelRunner(subject.network, n).prefill(subject.cache(plan), ids):
                pass
            found.append(time.perf_counter() - begun)
    rates = {n: _CHUNK_TOKENS / min(found) for n, found in times.items()}
    figure = ", ".join(f"{n:,} tokens {rate_text(rate)}" for n, rate in rates.items())
    return Outcome(State.OK, f"{figure} tok/s", values={str(n): rate for n, rate in rates.items()})
