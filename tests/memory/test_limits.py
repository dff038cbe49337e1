"""A matrix of models and windows up to three times the limit: each cell works within it or is refused in a sentence.

The cells run in a child process that could not take much more than the limit: one that did would die, and be counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cache.recurrent.checkpoints import MIN_CHECKPOINTS
from mlxkv.cache.recurrent.state_shapes import state_nbytes
from mlxkv.errors import OutOfMemoryError
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import CHUNKS, Budget, budget
from tests import hybrids
from tests.memory.models import build
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
    mx.reset_peak_memory()
    try:
        stats = model.generate("once " * 150, max_tokens=2, cache=mlxkv.CacheConfig(window=window, bits=bits)).stats
        print(json.dumps(["works", mx.get_peak_memory(), stats.cache_bytes]), flush=True)
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


@pytest.mark.slow
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


def test_the_largest_chunk_that_fits() -> None:
    model = tiny_llama()
    plan = plan_cache(model, CacheConfig(window=2048))
    needs = [plan.nbytes + Budget(model, 0).prefill_bytes(plan, chunk) for chunk in CHUNKS]
    for chunk, need in zip(CHUNKS, needs, strict=True):
        assert Budget(model, need).chunk(plan, 0, 10_000) == chunk
        assert Budget(model, need + 100).chunk(plan, 100, 10_000) == chunk
    assert Budget(model, needs[0] + 100).fits(plan, 100, CHUNKS[0])
    assert not Budget(model, needs[0] + 100).fits(plan, 101, CHUNKS[0])
    assert Budget(model, needs[-1] - 1).chunk(plan, 0, 200) in CHUNKS  # a short prompt does not fill the window
    with pytest.raises(OutOfMemoryError, match=r"Prefilling a prompt of 10,000 tokens needs .* would fit\."):
        Budget(model, needs[-1] - 1).chunk(plan, 0, 10_000)


def test_the_runner_asks_before_it_prefills() -> None:
    model = tiny_llama(layers=1)
    plan = plan_cache(model, CacheConfig(window=2048))
    needs = {chunk: plan.nbytes + Budget(model, 0).prefill_bytes(plan, chunk) for chunk in CHUNKS}

    def read(limit: int) -> PromptCache:
        cache = PromptCache(plan, model)
        budget = Budget(model, mx.get_active_memory() + limit)
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
    with pytest.raises(OutOfMemoryError, match="Prefilling a prompt of"):
        list(model.runner.prefill(cache, [1] * 600))
    assert cache.offset == 0


def test_few_predictions_for_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula looks at every module, so a chat of a thousand turns must not ask it a thousand times."""
    calls = []
    monkeypatch.setattr(budget, "prefill_bytes", lambda *args: calls.append(args) or 1000)
    model = tiny_llama(layers=1, hidden=64, heads=2, kv_heads=1)
    memory = Budget(model, 1 << 30)
    plan = plan_cache(model, CacheConfig(window=1024))
    for tokens in range(1, 5000):
        assert memory.chunk(plan, 0, tokens, tokens) == CHUNKS[0]
    assert len(calls) < 30


def test_recurrent_states_and_their_checkpoints_count() -> None:
    model = hybrids.tiny("mamba2")
    plan = plan_cache(model, CacheConfig())
    assert (
        Budget(model, 0).cache_bytes(plan)
        == plan.nbytes + (MIN_CHECKPOINTS + 1) * sum(state_nbytes(model, plan))
        > plan.nbytes
    )


def test_what_would_fit_does() -> None:
    model, config = build("packed cache")
    config = CacheConfig(window=4096)
    plan = plan_cache(model, config)
    small = Budget(model, plan.nbytes)
    with pytest.raises(OutOfMemoryError, match=r"a window of 1,024 tokens would fit\."):
        small.check(plan, 0)
    small.check(plan_cache(model, CacheConfig(window=1024)), 0)
    eight, mixed = (plan_cache(model, CacheConfig(window=4096, bits=bits)) for bits in (8, "8/4"))
    between = Budget(model, (eight.nbytes + mixed.nbytes) // 2 + small.prefill_bytes(mixed, 128))
    assert between.advice(config, 0) == "a window of 2,048 tokens, or one of 4,096 in 8/4 bits, would fit"
    between.check(mixed, 0)
    tight = Budget(model, small.prefill_bytes(plan_cache(model, CacheConfig(window=64, bits=8)), 128) + 120_000)
    assert "in 8 bits would fit" in tight.advice(CacheConfig(window=64), 0) or "no window" in tight.advice(config, 0)


def test_a_window_left_open_is_one_that_can_be_filled() -> None:
    model = tiny_llama(max_position_embeddings=8192)
    whole = plan_cache(model, CacheConfig(window=8192))
    limit = whole.nbytes + Budget(model, 0).prefill_bytes(whole, 128) // 2
    plan = Budget(model, limit).plan(CacheConfig(), 0)
    assert plan.geometry is not None
    assert 64 <= plan.geometry.window < 8192
    Budget(model, limit).check(plan, 0)
