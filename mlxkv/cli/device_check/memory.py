"""Checks of memory on this device: rings written in place, the predicted peak of a prefill, wired weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlxkv.cli.bench.measure import compare, peak_of, timed
from mlxkv.cli.device_check.check import REPORT, Outcome, State
from mlxkv.cli.device_check.speed import AGAIN, SLOW, judged
from mlxkv.cli.device_check.subject import CHUNK, ROUNDS
from mlxkv.stats import bytes_text

if TYPE_CHECKING:
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.cli.device_check.subject import Subject

_SMALL, _LARGE = 1024, 32_768  # windows
_FILLED = 64  # tokens in both
_COPY = 0.9  # of a buffer: a step that takes so much more copies it


def in_place(subject: Subject) -> Outcome:
    """Decode on a small and on a large window that hold as many tokens: no step may copy a ring."""
    window = subject.largest_window(_SMALL, _LARGE)
    if window is None:
        return Outcome(State.NOT_RUN, f"there is no memory for a window of more than {_SMALL:,}")
    small, large = (subject.prefilled(subject.plan(w), _FILLED) for w in (_SMALL, window))

    ratio = compare(lambda: _seconds(subject, large), lambda: _seconds(subject, small), ROUNDS)
    rises = [peak_of(lambda cache=cache: subject.decoded(cache, subject.sizes.steps))[1] for cache in (small, large)]
    ring = _largest_buffer(large)
    figure = (
        f"a window of {window:,} decodes at {ratio.median:.2f} x one of {_SMALL:,}, with {bytes_text(rises[1])} of "
        f"temporaries against {bytes_text(rises[0])}"
    )
    values = {"window": window, "ratio": ratio.median, "small_rise": rises[0], "large_rise": rises[1], "buffer": ring}
    if subject.runner.in_place(large).copies:
        figure += "; its steps wait for the token before, since they would copy a ring else"
    if rises[1] - rises[0] >= _COPY * (ring - _largest_buffer(small)):
        return Outcome(
            State.ATTENTION, f"{figure}: steps copy a ring", f"a smaller --window is faster; {REPORT}", values
        )
    return judged(subject, ratio.median, figure, values)


def predicted_peak(subject: Subject) -> Outcome:
    """The peak of a prefill against the prediction by which prompts are refused or cut."""
    count = subject.sizes.tokens
    plan = subject.plan(count)
    chunk = min(CHUNK, count)
    predicted = subject.budget.cache_bytes(plan) + subject.budget.prefill_bytes(plan, chunk, count)
    _, measured = peak_of(lambda: subject.prefilled(plan, count))
    share = measured / predicted
    figure = (
        f"prefilling {count:,} tokens took {bytes_text(measured)} beside the weights, predicted {bytes_text(predicted)}"
    )
    values = {"measured": measured, "predicted": predicted}
    if share > 1:
        return Outcome(State.ATTENTION, figure, f"set MLXKV_MEMORY_LIMIT lower if memory is short; {REPORT}", values)
    return Outcome(State.OK, figure, values=values)


def wired(subject: Subject) -> Outcome:
    """Decode with the weights wired, as mlxkv does, and not."""
    if not subject.device.is_metal:
        return Outcome(State.NOT_RUN, "only Metal wires memory")
    count, steps = subject.sizes.tokens, subject.sizes.steps
    cache = subject.prefilled(subject.plan(count + (2 * ROUNDS + 2) * (steps + 1)), count)

    def unwired() -> float:
        with _no_wired_memory():
            return _seconds(subject, cache)

    ratio = compare(lambda: _seconds(subject, cache), unwired, ROUNDS)
    figure = f"wired {steps / ratio.ours:.1f} tok/s, not wired {steps / ratio.theirs:.1f}"
    values = {"wired": steps / ratio.ours, "not_wired": steps / ratio.theirs}
    if ratio.median < SLOW:
        return Outcome(State.ATTENTION, figure, f"{AGAIN}; if it stays, set `wired` to false", values)
    return Outcome(State.OK, figure, values=values)


def _seconds(subject: Subject, cache: PromptCache) -> float:
    """Seconds to decode on the cache itself, which then holds the tokens: a fork would copy its rings."""
    return timed(subject.stream(cache, subject.sizes.steps + 1))


@contextmanager
def _no_wired_memory() -> Iterator[None]:
    import mlx.core as mx

    mx.synchronize()
    before = mx.set_wired_limit(0)
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)


def _largest_buffer(cache: PromptCache) -> int:
    """Bytes of the largest array of rows."""
    from mlxkv.cache.planning.probe import leaves
    from mlxkv.cache.rings.ring import RingKVCache

    rings = [c for c in leaves(cache.layers) if isinstance(c, RingKVCache)]
    return max((a.nbytes for ring in rings for rows in (ring.key_rows, ring.value_rows) if rows for a in rows.arrays),
               default=0)  # fmt: skip
