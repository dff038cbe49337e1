"""Perplexity of real text past the window, by real weights; `bench.perplexity` measures more of it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

from bench.continuations import move_on, native, ring, scores, stretches
from bench.real_weights import folder
from mlxkv.cache.config import CacheConfig
from tests.thorough import THOROUGH

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOKENS, SPLIT = (240, 96) if THOROUGH else (144, 80)  # the window of 64 tokens is full after 68
FAR = 48 * 1024  # six times the trained length; whole turns of a ring of three slots of 16


@pytest.fixture(scope="module")
def smollm2_folder() -> Path:
    if (path := folder("smollm2")) is None:
        pytest.skip("smollm2 has not been made: `make real-models` makes it")
    return path


@pytest.fixture(scope="module")
def model(smollm2_folder: Path) -> Any:
    model, _ = load_model(smollm2_folder)
    model.set_dtype(mx.float32)
    return model


@pytest.fixture(scope="module")
def ids(smollm2_folder: Path) -> mx.array:
    tokenizer = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    return stretches(lambda text: tokenizer.encode(text).ids, [], 1, TOKENS)


def perplexity(found: mx.array) -> float:
    return math.exp(-mx.mean(found).item())  # type: ignore[arg-type]


def test_past_the_window_text_stays_as_likely_however_far(model: Any, ids: mx.array) -> None:
    """Beside all tokens, a window of a quarter costs little; and nothing changes with the number of evicted tokens,
    which would with sinks that are not moved along: at this distance they were never trained."""
    near = ring(model, CacheConfig(window=64, sinks=4))
    scores(model, near, ids[:, : SPLIT + 1])
    far = copy.deepcopy(near)
    move_on(far, FAR, near[0].rotation)
    found = [scores(model, caches, ids[:, SPLIT:]) for caches in (near, far)]
    full = scores(model, native(model), ids)[:, SPLIT:]
    here, there, all_tokens = (perplexity(x) for x in (*found, full))
    assert here <= 2 * all_tokens  # 1.42 times; 3.6 times without sinks
    assert there == pytest.approx(here, rel=0.01)  # 2.4 times if they stay
