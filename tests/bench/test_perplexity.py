"""The benchmark of perplexity, on a tiny random model."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from bench import perplexity
from bench.cache_study import FULL, RING, ROTATING_CALLS, Size, Study, ratio
from bench.continuations import move_on, native, ring, scores, stretches, window_scores
from mlxkv.cache.config import CacheConfig
from tests.reference import largest, tiny_llama

IDS = mx.random.randint(0, 64, (2, 150), key=mx.random.key(3))
CONFIG = CacheConfig(window=64, sinks=4)
TURN = 48  # three slots of 16


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(hidden=128)


def test_a_ring_that_holds_everything_scores_like_mlx_lm_in_calls_of_any_length(model: Any) -> None:
    full = scores(model, native(model), IDS)
    assert full.shape == (2, 149)
    everything = CacheConfig(window=256)
    assert largest(scores(model, ring(model, everything), IDS) - full) < 1e-5
    assert largest(scores(model, native(model), IDS, chunk=7) - full) < 1e-5
    assert largest(scores(model, ring(model, CONFIG), IDS) - full) > 1e-3


def test_a_window_is_scored_by_its_own_tokens_alone(model: Any) -> None:
    full = scores(model, native(model), IDS)
    assert largest(window_scores(model, IDS, [40, 90], [40, 90])[:, 1] - full[:, 89]) < 1e-5
    alone = scores(model, native(model), IDS[:, 60:91])[:, -1]
    assert largest(window_scores(model, IDS, [90], [30])[:, 0] - alone) < 1e-5
    kept = mx.concatenate([IDS[:, :1], IDS[:, 61:91]], axis=1)
    alone = scores(model, native(model), kept)[:, -1]
    assert largest(window_scores(model, IDS, [90], [30], keep=1)[:, 0] - alone) < 1e-5


def test_a_ring_that_is_moved_on_scores_the_same(model: Any) -> None:
    here, there = ring(model, CONFIG), ring(model, CONFIG)
    for caches in (here, there):
        scores(model, caches, IDS[:, :101])
    move_on(there, 20 * TURN, here[0].rotation)
    assert [cache.evicted for cache in there] == [cache.evicted + 20 * TURN for cache in here]
    near, far = (scores(model, caches, IDS[:, 100:]) for caches in (here, there))
    assert largest(near - far) < 1e-3


def test_a_ratio_and_its_error() -> None:
    assert ratio([-1.0, -1.0], [-0.8, -0.6]) == pytest.approx((math.exp(0.3), math.exp(0.3) * 0.1))
    assert ratio([-1.0], [-1.0]) == (1.0, None)


def test_stretches_begin_with_the_prefix_and_differ() -> None:
    found = stretches(lambda text: [ord(c) for c in text], [7], 3, 50)
    assert found.shape == (3, 50)
    assert found[:, 0].tolist() == [7, 7, 7]
    assert len({tuple(row) for row in found.tolist()}) == 3  # type: ignore[union-attr, arg-type]


def test_tables_of_a_study(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    tokenizer = SimpleNamespace(encode=lambda text, **_: [ord(c) % 64 for c in text])
    loaded: Any = SimpleNamespace(model=model, tokenizer=tokenizer, trained_length=64)
    make = partial(Study, "smollm2", loaded, Size(32, 32, 128, 2, 4, is_far=True), tmp_path)
    study = make()
    names = list(study.measure(True, (FULL, RING, ROTATING_CALLS, f"{RING}, 8 bits")))
    curve = perplexity.curve(study)
    assert [row.values["tokens"] for row in curve.rows] == [32, 64, 96, 128]
    assert curve.rows[0].values[RING] == pytest.approx(curve.rows[0].values[FULL])
    monkeypatch.setitem(perplexity.WINDOW_GOALS, ("smollm2", 32, 96), 2.0)
    ratios = perplexity.ratios(study)
    goals = [row.what for row in ratios.rows if row.goal is not None]
    assert goals[0] == f"{RING} to {FULL}, tokens 64 to 96"
    assert goals[1] == f"{RING}, 8 bits to {RING}, inside the window"
    far = [row for row in ratios.rows if "further on" in row.what]
    assert far[0].values["ratio"] == pytest.approx(1, abs=1e-3)
    monkeypatch.setattr("bench.cache_study.scores", None)  # what was kept is not measured again
    again = make()
    assert list(again.measure(True, names)) == names
    assert perplexity.curve(again).rows == curve.rows
