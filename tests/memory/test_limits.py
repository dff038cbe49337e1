"""A matrix of models and windows up to three times the limit: each cell works within it or is refused in a sentence.

The cells run in a child process that could not take much more than the limit: one that did would die, and be counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.recurrent.checkpoints import KEPT
from mlxkv.cache.recurrent.state_shapes import state_nbytes
from mlxkv.device import memory_used
from mlxkv.errors import OutOfMemoryError
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import CHUNKS, Budget, budget
from mlxkv.memory.bound import most_bytes, widths
from tests import hybrids
from tests.memory.models import CASES, build
from tests.reference import tiny_llama
from tests.tokenizers import tiny_folder

LIMIT = 24_000_000
SHAPES: dict[str, dict[str, Any]] = {
    "wide": {"hidden": 128, "heads": 4, "kv_heads": 4},
    "deep": {"layers": 4, "hidden": 64, "heads": 2},
}
SHARES = (0.02, 0.1, 0.3, 0.6, 0.9, 1.5, 3.0)  # of the limit, as the cache alone
CHILD = """
import json, resource, sys
import mlx.core as mx
import mlxkv
from mlxkv.device import peak_memory, reset_peak_memory
from mlxkv.errors import OutOfMemoryError

first, limit = True, int(sys.argv[1])
for line in sys.stdin:
    folder, window, bits = json.loads(line)
    model = mlxkv.load(folder)
    if first:
        model.generate("once", max_tokens=1, cache=mlxkv.CacheConfig(window=64))
        used = int(open("/proc/self/statm").read().split()[5]) * 4096  # what RLIMIT_DATA counts
        resource.setrlimit(resource.RLIMIT_DATA, (used + 2 * limit, used + 2 * limit))
        first = False
    reset_peak_memory()
    try:
        stats = model.generate("once " * 150, max_tokens=2, cache=mlxkv.CacheConfig(window=window, bits=bits)).stats
        print(json.dumps(["works", peak_memory(), stats.cache_bytes]), flush=True)
    except OutOfMemoryError as error:
        print(json.dumps(["refused", str(error)]), flush=True)
    model.close()
    del model
    mx.clear_cache()
"""


def cells(folder: Path) -> Iterator[tuple[str, int, int | None]]:
    for name, shape in SHAPES.items():
        path = str(tiny_folder(folder / name, **shape))
        for bits in (None, 8) if name == "deep" else (None,):
            row = mlxkv.estimate(path, CacheConfig(window=1024, bits=bits)).bytes_per_token
            for share in SHARES:
                yield path, int(LIMIT * share / row), bits


def test_no_cell_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = list(cells(tmp_path))
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", str(LIMIT))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(LIMIT)],
        input="\n".join(map(json.dumps, matrix)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    results = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(results) == len(matrix)
    works = [result for result in results if result[0] == "works"]
    refused = [result[1] for result in results if result[0] == "refused"]
    print(f"{len(works)} cells work, {len(refused)} are refused, 0 of {len(matrix)} ended the process")
    assert all(peak <= LIMIT for _, peak, _ in works)
    assert max(cache for *_, cache in works) > 0.3 * LIMIT  # not all caution
    assert len(works) >= 7
    assert len(refused) >= 6
    for text in refused:
        assert text.endswith(" fit.")
        assert "\n" not in text


def test_smaller_pieces_first() -> None:
    model = tiny_llama()
    plan = plan_cache(model, CacheConfig(window=2048))
    needs = [plan.nbytes + Budget(model, 0).reading(plan, chunk) for chunk in CHUNKS]
    for chunk, need in zip(CHUNKS, needs, strict=True):
        assert Budget(model, need).chunk(plan, 0, 10_000) == chunk
        assert Budget(model, need + 100).chunk(plan, 100, 10_000) == chunk
    assert Budget(model, needs[0] + 100).fits(plan, 100, CHUNKS[0])
    assert not Budget(model, needs[0] + 100).fits(plan, 101, CHUNKS[0])
    assert Budget(model, needs[-1] - 1).chunk(plan, 0, 200) in CHUNKS  # a short prompt does not fill the window
    with pytest.raises(OutOfMemoryError, match=r"Reading a prompt of 10,000 tokens needs .* would fit\."):
        Budget(model, needs[-1] - 1).chunk(plan, 0, 10_000)


def test_the_runner_asks_before_it_reads() -> None:
    model = tiny_llama(layers=1)
    plan = plan_cache(model, CacheConfig(window=2048))
    needs = {chunk: plan.nbytes + Budget(model, 0).reading(plan, chunk) for chunk in CHUNKS}

    def read(limit: int) -> PromptCache:
        cache = PromptCache(plan, model)
        budget = Budget(model, memory_used() + limit)
        done = list(ModelRunner(model, budget=budget).prefill(cache, [1] * 2052))
        pieces.append(done[0])
        return cache

    pieces: list[int] = []
    read(needs[512])
    read(needs[256])
    assert read(needs[128]).offset == 2052
    assert pieces == [512, 256, 128]
    with pytest.raises(OutOfMemoryError):
        read(plan.nbytes // 2)
    assert len(pieces) == 3


def test_the_limit_is_the_one_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that fits is made and read into; then no more, in either."""
    model = mlxkv.load(str(tiny_folder(tmp_path, layers=1)))
    cache = model.make_cache(CacheConfig(window=512))
    row = model.loaded.weight_bytes + cache.plan.nbytes
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", str(row))
    with pytest.raises(OutOfMemoryError, match="This KV cache needs"):
        model.make_cache(CacheConfig(window=512))
    with pytest.raises(OutOfMemoryError, match="Reading a prompt of"):
        list(model.runner.prefill(cache, [1] * 600))
    assert cache.offset == 0


def test_one_prediction_for_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One took as long as a short turn, and there was one for each power of two of the prompts' lengths."""
    calls = []
    monkeypatch.setattr(budget, "prefill_bytes", lambda *args: calls.append(args) or 1000)
    model = tiny_llama(layers=1, hidden=64, heads=2, kv_heads=1)
    memory = Budget(model, 1 << 20)
    plan = memory.plan(CacheConfig(), 0)
    memory.check(plan, 0)
    for tokens in (1, 50, 700, 5000, 100_000):
        assert memory.chunk(plan, 0, tokens, tokens) == CHUNKS[0]
    assert len(calls) == 1
    assert memory.reading(plan, 128) == memory.reading(plan, 128, 100_000)
    assert len(calls) == 2
    memory.reading(plan, 128, 200)
    memory.reading(plan_cache(model, CacheConfig(bits=8)), 128)
    assert len(calls) == 4
    assert not Budget(model, plan.nbytes).fits(plan, 0)
    assert len(calls) == 4  # the cache alone is too much: nothing to predict


def test_nothing_is_predicted_where_memory_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of the whole model was built before the first token of every process."""
    monkeypatch.setattr(budget, "prefill_bytes", lambda *args: pytest.fail("predicted"))
    model = tiny_llama(layers=1, hidden=64, heads=2, kv_heads=1)
    memory = Budget(model, 1 << 40)
    plan = memory.plan(CacheConfig(), 0)
    memory.check(plan, 0)
    assert memory.chunk(plan, 0, 100_000, 100_000) == CHUNKS[0]
    small = Budget(model, plan.nbytes + most_bytes(widths(model), plan, 8))
    assert small.chunk(plan, 0, 1000, 8) == CHUNKS[0]  # a short question fits where a long one would be predicted
    with pytest.raises(pytest.fail.Exception):
        small.chunk(plan, 0, 1000, 512)


@pytest.mark.parametrize("case", CASES)
def test_the_bound_is_above_the_prediction(case: str) -> None:
    model, config = build(case)
    for bits in (config.bits, None):
        plan = plan_cache(model, replace(config, bits=bits))
        for chunk in (1, *CHUNKS):
            assert most_bytes(widths(model), plan, chunk) > 2 * Budget(model, 0).reading(plan, chunk) > 0


def test_no_bound_is_given_for_states() -> None:
    model = hybrids.tiny("jamba")
    assert most_bytes(widths(model), plan_cache(model, CacheConfig()), 1) > 1 << 60


def test_recurrent_states_and_their_checkpoints_count() -> None:
    model = hybrids.tiny("mamba2")
    plan = plan_cache(model, CacheConfig())
    assert Budget(model, 0)._held(plan) == plan.nbytes + (KEPT + 1) * state_nbytes(model, plan) > plan.nbytes


def test_what_would_fit_does() -> None:
    model, config = build("packed cache")
    config = CacheConfig(window=4096)
    plan = plan_cache(model, config)
    small = Budget(model, plan.nbytes)
    with pytest.raises(OutOfMemoryError, match=r"a window of 2,048 tokens would fit\."):
        small.check(plan, 0)
    small.check(plan_cache(model, CacheConfig(window=2048)), 0)
    tight = Budget(model, small.reading(plan_cache(model, CacheConfig(window=64, bits=8)), 128) + 120_000)
    assert "in 8 bits would fit" in tight.advice(CacheConfig(window=64), 0) or "no window" in tight.advice(config, 0)


def test_a_window_left_open_is_one_that_can_be_filled() -> None:
    model = tiny_llama(max_position_embeddings=8192)
    whole = plan_cache(model, CacheConfig(window=8192))
    limit = whole.nbytes + Budget(model, 0).reading(whole, 128) // 2
    plan = Budget(model, limit).plan(CacheConfig(), 0)
    assert plan.geometry is not None
    assert 64 <= plan.geometry.window < 8192
    Budget(model, limit).check(plan, 0)
