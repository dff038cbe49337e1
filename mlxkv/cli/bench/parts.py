"""What `mlxkv bench` measures of one model: speed and memory beside mlx-lm, and the share of the machine's bandwidth.

Chooses the contexts and makes the tables; `measure.py` measures, `report.py` prints. On the MLX thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxkv.cli.bench.measure import (
    ROUNDS,
    Filled,
    Speeds,
    copy_bandwidth,
    decode_peaks,
    decode_speeds,
    fill,
    prefill_speeds,
    random_ids,
    their_bytes,
)
from mlxkv.cli.bench.report import Environment, Goal, Part, Row, Unit, command_line
from mlxkv.stats import bytes_text, plural

if TYPE_CHECKING:
    from mlxkv.cache.planning.plan import CachePlan
    from mlxkv.inference.runner import ModelRunner
    from mlxkv.memory import Budget

CONTEXTS = (512, 4096)
FASTEST = Goal("ratio", at_least=0.99)
_COPIED = 256_000_000  # bytes: several times the caches of any of these machines
_PATIENCE = 180.0  # seconds for the prefills of a context that was not asked for
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")


@dataclass(frozen=True)
class Subject:
    """A model to measure. `weight_bytes` is what it holds, `vocab` bounds the random ids of its prompts."""

    name: str
    model: Any
    weight_bytes: int
    vocab: int


@dataclass(frozen=True)
class Options:
    """Counts are tokens. No `contexts`: 512 and, where it takes no more than a few minutes, 4,096.

    `window`: of both sides; None: one that holds the context and what is generated.
    """

    contexts: Sequence[int] = ()
    tokens: int = 64
    window: int | None = None
    rounds: int = ROUNDS


@dataclass(frozen=True)
class _Found:
    """What one context gave."""

    context: int
    plan: CachePlan
    prefill: Speeds
    decode: Speeds
    filled: Filled
    live: int  # bytes of the rows that decode attends
    decode_peaks: tuple[int, int]


def measure(subject: Subject, options: Options, say: Callable[[str], None] = lambda _: None) -> list[Part]:
    """Measure all contexts: the parts `speed`, `cache` and `bandwidth`. `say` is told what is being measured.

    Raises:
        OutOfMemoryError: the caches of both sides do not fit beside the weights. UnboundedError: see `plan_cache`.
    """
    from mlxkv.device import Wired, current_device
    from mlxkv.inference.runner import ModelRunner
    from mlxkv.memory import Budget

    begun, device = time.perf_counter(), current_device()
    budget = Budget(subject.model, device.memory_limit)
    plans = {context: _plan(budget, subject, options, context) for context in options.contexts or CONTEXTS}
    runner = ModelRunner(subject.model, None, budget)  # the chunk as measured, as in a chat
    speed, cache, notes = [], [], []
    copied = min(_COPIED, max(device.memory_limit - subject.weight_bytes, 4) // 4)
    read = bytes_read(subject.model)
    with closing(Wired(device)):
        say("the bandwidth of a copy")
        bandwidth = copy_bandwidth(copied, device.is_cpu)
        shares = [Row(f"a copy of {bytes_text(copied)}", {"bytes per second": int(bandwidth), "share": 1.0})]
        seconds = 0.0  # of one prefilled token
        for context, plan in plans.items():
            takes = 2 * (options.rounds + 2) * seconds * context
            if not options.contexts and takes > _PATIENCE:
                notes.append(f"A run left `--context {context}` out: it would take {takes / 60:.0f} minutes or more.")
                continue
            found = _measure(runner, subject, options, plan, context, say)
            seconds = found.prefill.ratio.ours / context
            speed += _speed_rows(found)
            cache += _cache_rows(found)
            rate = (read + found.live) * found.decode.ours_tps
            values = {"read per token": read + found.live, "bytes per second": int(rate), "share": rate / bandwidth}
            shares.append(Row(f"decode after {context:,} tokens", values))
    bounds = f"window {options.window:,}" if options.window else "a window that holds all"
    settings = f"{bounds}; {options.tokens:,} tokens generated"
    here, took = Environment.here(command_line()), time.perf_counter() - begun
    weights = f"{bytes_text(subject.weight_bytes)} of weights"

    def part(name: str, title: str, settings: str, columns: dict[str, Unit], rows: list[Row], *notes: str) -> Part:
        return Part(name, title, f"{subject.name}, {weights}", settings, columns, rows, here, took, notes)

    rate, size = Unit.TOKENS_PER_SECOND, Unit.BYTES
    return [
        part("speed", "Speed beside mlx-lm", f"{settings}, greedy; medians of {options.rounds}, the sides in turns",
             {"context": Unit.COUNT, "mlxkv": rate, "mlx-lm": rate, "ratio": Unit.RATIO, "worst pair": Unit.RATIO},
             speed, *notes, f"mlxkv: {next(iter(plans.values())).description}", *_ways(runner)),
        part("cache", "Memory beside mlx-lm", f"{settings}; peaks above the weights, the cache included",
             {"context": Unit.COUNT, "a token": size, "rows held": Unit.COUNT, "bytes held": size,
              "peak of prefill": size, "peak of decode": size}, cache),
        part("bandwidth", "Share of the machine's bandwidth",
             f"{settings}; the best of 5 copies: bytes read and written",
             {"read per token": size, "bytes per second": size, "share": Unit.SHARE}, shares,
             "Decode reads the weights that a token uses and the KV rows it attends. A small model that stays in the "
             "processor's caches may exceed the copy. A share is one of the copy of its own run."),
    ]  # fmt: skip


def _ways(runner: ModelRunner) -> list[str]:
    """How the runner came to feed the model here."""
    copies = [check.copies for check in runner.in_place_checks]
    ways = {True: "is evaluated once the token before has arrived, since rings would be copied else",
            False: "is evaluated ahead of the token before, and writes its rows in place"}  # fmt: skip
    decode = [f"A decode step {way}." for found, way in ways.items() if found in copies]
    return [
        f"Prefill came to calls of {runner.chunk_size.at(0):,} tokens, within a block once a window is full.",
        *decode,
    ]


def _plan(budget: Budget, subject: Subject, options: Options, context: int) -> CachePlan:
    """The plan of one context, checked: both sides hold a cache, and a copy of each for a round."""
    from mlxkv.cache.config import CacheConfig

    window = options.window or context + options.tokens + 1
    plan = budget.plan(CacheConfig(window=window), subject.weight_bytes)
    budget.check(plan, subject.weight_bytes + 3 * plan.nbytes)
    return plan


def _measure(
    runner: ModelRunner, subject: Subject, options: Options, plan: CachePlan, context: int, say: Callable[[str], None]
) -> _Found:
    ids = random_ids(context, subject.vocab)
    say(f"prefill of {plural(context, 'token')}")
    prefill = prefill_speeds(runner, plan, ids, options.rounds, options.window)
    say(f"decode after {plural(context, 'token')}")
    filled = fill(runner, plan, ids, options.window)
    live = filled.ours.live_nbytes
    decode = decode_speeds(runner, filled, ids[-1], options.tokens, options.rounds)
    return _Found(context, plan, prefill, decode, filled, live, decode_peaks(runner, filled, ids[-1]))


def _speed_rows(found: _Found) -> list[Row]:
    return [speed_row(f"{speeds.what}, {found.context:,} tokens", speeds, found.context)
            for speeds in (found.prefill, found.decode)]  # fmt: skip


def speed_row(what: str, speeds: Speeds, context: int) -> Row:
    """A row of tokens per second, whose goal is to be as fast as mlx-lm."""
    ratio = speeds.ratio
    values = {
        "context": context, "mlxkv": speeds.ours_tps, "mlx-lm": speeds.theirs_tps, "ratio": ratio.median,
        "worst pair": ratio.worst,
    }  # fmt: skip
    return Row(what, values, FASTEST)


def _cache_rows(found: _Found) -> list[Row]:
    ours, theirs, filled = found.filled.ours, found.filled.theirs, found.filled
    kinds = ", ".join(sorted({type(cache).__name__ for cache in theirs}))
    rows = max((leaf.geometry.rows for leaf in found.plan.leaves if leaf.geometry), default=0)
    their_rows = max((rows_of(cache) for cache in theirs), default=0)
    token = found.plan.bytes_per_token
    return [
        _cache_row("mlxkv", found.context, token, rows, ours.nbytes, filled.our_peak, found.decode_peaks[0]),
        _cache_row(f"mlx-lm ({kinds})", found.context, token, their_rows, their_bytes(theirs), filled.their_peak,
                   found.decode_peaks[1]),
    ]  # fmt: skip


def _cache_row(side: str, context: int, token: int, rows: int, held: int, prefill: int, decode: int) -> Row:
    values = {"context": context, "a token": token, "rows held": rows, "bytes held": held, "peak of prefill": prefill,
              "peak of decode": decode}  # fmt: skip
    return Row(f"{context:,} tokens, {side}", values)


def rows_of(cache: Any) -> int:
    """Rows that one of mlx-lm's caches has memory for; 0 if it holds none or another kind of state."""
    keys = getattr(cache, "keys", None)
    keys = keys[0] if isinstance(keys, list | tuple) else keys  # quantized: packed numbers, scales, biases
    return 0 if keys is None else int(keys.shape[2])


def bytes_read(model: Any) -> int:
    """Bytes of weights that one decode step reads: of experts those in use, of an embedding table a row at most."""
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    modules = [module for _, module in model.named_modules()]
    tables = [m for m in modules if isinstance(m, nn.Embedding | nn.QuantizedEmbedding)]
    logits = [m for m in modules if isinstance(m, nn.Linear | nn.QuantizedLinear)]

    def size(module: Any) -> int:
        return sum(array.nbytes for _, array in tree_flatten(module.parameters()))  # type: ignore[union-attr]

    total = size(model) - sum(size(table) for table in tables)
    if tables and all(linear.weight.shape[0] != tables[0].weight.shape[0] for linear in logits):
        total += size(tables[0])  # it makes the logits too
    active = _active_experts(model)
    for module in modules:
        if active and isinstance(module, SwitchLinear | QuantizedSwitchLinear):
            total -= size(module) * (1 - active / module.weight.shape[0])
    return int(total)


def _active_experts(model: Any) -> int:
    """Experts that a token uses; 0 if the model's arguments do not say."""
    args = getattr(model, "args", None)
    text = getattr(args, "text_config", None)
    tables = [x if isinstance(x, dict) else vars(x) for x in (args, text) if x is not None]
    return next((int(table[name]) for table in tables for name in _ACTIVE_EXPERTS if table.get(name)), 0)
