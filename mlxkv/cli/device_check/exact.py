"""Checks that replies are right on this device: as mlx-lm's, after a rewind, and after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxkv.cli.bench.measure import their_caches
from mlxkv.cli.device_check.check import REPORT, Outcome, State
from mlxkv.cli.device_check.subject import CHUNK
from mlxkv.stats import bytes_text, plural

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.cli.device_check.subject import Subject

_TIE = 0.05  # of a log-probability: closer than what the order of a sum in 16 bits changes


def equal_tokens(subject: Subject) -> Outcome:
    """Greedy tokens against mlx-lm's own loop on its own caches."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    count, steps = subject.sizes.tokens, 2 * subject.sizes.steps
    ours = subject.decoded(subject.prefilled(subject.plan(count + steps + 1, copies=2), count), steps)
    theirs, margins = list[int](), list[float]()
    for token, logprobs in generate_step(
        mx.array(subject.prompt(count + 1)), subject.network, max_tokens=steps,
        prompt_cache=their_caches(subject.runner), prefill_step_size=CHUNK,
    ):  # fmt: skip
        best = mx.sort(logprobs.reshape(-1).astype(mx.float32))[-2:]
        theirs.append(int(token))
        margins.append(float(best[1] - best[0]))
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), steps)
    figure = f"{same} of {plural(steps, 'token')} after {count:,} as mlx-lm's loop"
    values: dict[str, float] = {"tokens": steps, "equal": same}
    if same == steps:
        return Outcome(State.OK, figure, values=values)
    values["margin"] = margins[same]
    if margins[same] < _TIE:
        return Outcome(State.ATTENTION, f"{figure}; two tokens were equally likely there", "nothing to do", values)
    return Outcome(State.FAILED, f"{figure}; mlx-lm preferred its token by {margins[same]:.2f}", REPORT, values)


def rewind(subject: Subject) -> Outcome:
    """Rows and greedy tokens after the window has moved on and was rewound."""
    count, steps = subject.sizes.tokens, subject.sizes.steps
    plan = subject.plan(count // 2, copies=3)
    cache = subject.prefilled(plan, count)
    cache.checkpoint()
    expected, rows = subject.decoded(cache.fork(), steps), _rows(cache)
    geometry = plan.geometry
    back = geometry.undo * geometry.block if geometry else steps
    subject.feed(cache, subject.prompt(count + back)[count:])
    figure = f"back by {plural(back, 'token')}, over {plural(cache.num_evicted, 'evicted token')}"
    if (target := cache.rewind_target(count)) != count:
        return Outcome(State.FAILED, f"{figure}: only {plural(count + back - target, 'token')} can be rewound", REPORT)
    cache.rewind(count)
    return _compared(figure, _rows(cache), rows, subject.decoded(cache, steps), expected)


def resume(subject: Subject) -> Outcome:
    """Rows and greedy tokens of a cache that was saved and loaded again."""
    count, steps = subject.sizes.tokens, subject.sizes.steps
    cache = subject.model.make_cache(subject.plan(count + steps + 1, copies=3).resolved)
    subject.feed(cache, subject.prompt(count))
    path = subject.folder / "check.kv"
    size = cache.save(path)
    loaded = subject.model.load_cache(path)
    path.unlink()
    rows, expected_rows = _rows(loaded), _rows(cache)
    figure = f"{plural(count, 'token')} saved and loaded again, {bytes_text(size)}"
    return _compared(figure, rows, expected_rows, subject.decoded(loaded, steps), subject.decoded(cache, steps))


def _rows(cache: PromptCache) -> list[mx.array]:
    """Copies of all attended rows, as stored."""
    import mlx.core as mx

    from mlxkv.cache.planning.probe import leaves
    from mlxkv.cache.rings.ring import RingKVCache

    rings = [c for c in leaves(cache.layers) if isinstance(c, RingKVCache)]
    buffers = [(rows, ring.size()) for ring in rings for rows in (ring.key_rows, ring.value_rows) if rows is not None]
    copies = [mx.contiguous(part) for rows, live in buffers for part in rows.parts(0, live)]
    mx.eval(copies)
    return copies


def _compared(
    figure: str, rows: Sequence[mx.array], expected_rows: Sequence[mx.array], tokens: list[int], expected: list[int]
) -> Outcome:
    """The outcome by whether all rows and tokens are equal."""
    import mlx.core as mx

    same = [mx.array_equal(a, b).item() for a, b in zip(rows, expected_rows, strict=True)]
    wrong = [f"{same.count(False)} of {len(same)} arrays of rows"] if not all(same) else []
    wrong += ["the tokens after them"] if tokens != expected else []
    if wrong:
        return Outcome(State.FAILED, f"{figure}: {' and '.join(wrong)} differ", REPORT)
    return Outcome(State.OK, f"{figure}: the same rows and {plural(len(tokens), 'token')}")
