"""Speed of a hybrid beside mlx-lm's own loop and caches, in one process: `python -m bench --only hybrid_speed`.

Prefill, decode of 64 tokens, and a turn: a message and a reply on a cache that holds a prompt, with the checkpoints
that a chat takes. Medians of five, the two sides alternating; ratios above 1 mean mlxkv is faster. The model is random,
of one real layer shape (hybrid_models.py).
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import stream_generate
from mlx_lm.models.cache import make_prompt_cache

import mlxkv
from bench.hybrid_models import FAMILIES, VOCAB, Family, build
from bench.measure import make_part
from bench.speed import COLUMNS
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import CachePlan, plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cli.bench.measure import ROUNDS, Speeds, compare, decode_speeds, fill, prefill_speeds, random_ids
from mlxkv.cli.bench.parts import speed_row
from mlxkv.cli.bench.report import Part
from mlxkv.config import Folders
from mlxkv.inference.generation import Generation
from mlxkv.inference.runner import PREFILL_CHUNK
from mlxkv.inference.sampling import SamplingParams

MESSAGE, REPLY = 64, 32  # tokens of the turn


def turn_speeds(model: mlxkv.Model, plan: CachePlan, ids: list[int]) -> Speeds:
    """A turn on a cache that holds `ids`. Each round has a copy of its own, made before the clock runs."""
    network, runner = model.loaded.model, model.runner
    message, params = random_ids(MESSAGE, VOCAB), SamplingParams(temperature=0.0, max_tokens=REPLY)
    full, cache = PromptCache(plan, network), make_prompt_cache(network)
    for _ in runner.prefill(full, ids, checkpoints=[len(ids)]):
        pass
    for at in range(0, len(ids), PREFILL_CHUNK):
        network(mx.array([ids[at : at + PREFILL_CHUNK]]), cache=cache)
        mx.eval([layer.state for layer in cache])

    def timed(events: Any) -> float:
        begun = time.perf_counter()
        for _ in events:
            pass
        return time.perf_counter() - begun

    def ours() -> float:
        full.rewind(len(ids))  # a fork would copy its rings within the measured time
        return timed(Generation(runner, model.tokenizer, full, [*ids, *message], params).events())

    def theirs() -> float:
        fresh = copy.deepcopy(cache)
        return timed(stream_generate(network, model.tokenizer, message, max_tokens=REPLY, prompt_cache=fresh))

    return Speeds(f"a turn of {MESSAGE} + {REPLY} tokens after", MESSAGE + REPLY, compare(ours, theirs))


def speed_part(family: Family, layers: int, tokens: int, decoded: int = 64) -> Part:
    """Prefill, decode and a turn, with a prompt of so many tokens."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o700)
        folders = Folders.from_env({"MLXKV_HOME": str(Path(root) / "home")})
        model = mlxkv.load(build(Path(root) / "model", family, layers), folders=folders, draft=False)
        ids = random_ids(tokens, VOCAB)
        plan = plan_cache(model.loaded.model, CacheConfig(window=tokens + 512))
        found = [
            prefill_speeds(model.runner, plan, ids),
            decode_speeds(model.runner, fill(model.runner, plan, ids), ids[-1], decoded),
            turn_speeds(model, plan, ids),
        ]
        model.close()
    return make_part(
        f"{family.name}-speed", f"Hybrids: speed of {family.name} beside mlx-lm",
        f"random {family.name} of real shape, {layers} layers, {str(family.dtype).removeprefix('mlx.core.')}",
        f"greedy, {decoded} tokens decoded; medians of {ROUNDS}, the sides in turns", COLUMNS,
        [speed_row(f"{speeds.what} {tokens:,} tokens", speeds, tokens) for speeds in found],
    )  # fmt: skip


def parts(full: bool) -> Iterator[Part]:
    for family in FAMILIES.values() if full else [FAMILIES["qwen3_5"]]:
        yield speed_part(family, family.few, 2048 if full else 128)
