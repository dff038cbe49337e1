"""mlx-lm's own speculative decoding on rings: past the window it says what greedy decoding says.

It rewinds both caches after every rejected draft. A rotating cache that has wrapped cannot go back, and says so only by
the 0 that `trim` returns, which the loop does not look at: with RotatingKVCache(max_size=window, keep=4) on both sides
the same six cells leave greedy decoding after 4, 4, 2, 1, 1 and 1 tokens (measured with mlx-lm 0.32.2).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.generate import generate_step, speculative_generate_step

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import make_cache
from tests.cache.architectures import ARCHITECTURES
from tests.reference import random_ids

pytestmark = pytest.mark.slow

TOKENS = 96


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """A model, and the same with noise: about half of its drafts are right."""
    model, draft = (ARCHITECTURES["llama"].build() for _ in range(2))
    mx.random.seed(1)
    draft.update(tree_map(lambda w: w + 0.02 * mx.random.normal(w.shape), draft.parameters()))
    mx.eval(draft.parameters())
    return model, draft


def rings(model: Any, window: int) -> list[Any]:
    return make_cache(model, CacheConfig(window=window, block=8, slack=8, sinks=4))


def greedy(model: Any, cache: list[Any]) -> list[int]:
    steps = generate_step(mx.array(random_ids(80)), model, max_tokens=TOKENS, prompt_cache=cache)
    return [int(token) for token, _ in steps]


def speculative(model: Any, draft: Any, caches: list[Any], drafts: int) -> tuple[list[int], int]:
    """The tokens, and how many of them were drafted."""
    prompt = mx.array(random_ids(80))
    steps = list(
        speculative_generate_step(prompt, model, draft, num_draft_tokens=drafts, max_tokens=TOKENS, prompt_cache=caches)
    )
    return [int(token) for token, _, _ in steps], sum(drafted for _, _, drafted in steps)


@pytest.mark.parametrize("window", [64, 48, 32])
@pytest.mark.parametrize("drafts", [2, 4])
def test_it_equals_greedy_decoding(pair: tuple[Any, Any], window: int, drafts: int) -> None:
    model, draft = pair
    expected = greedy(model, rings(model, window))
    got, drafted = speculative(model, draft, rings(model, window) + rings(draft, window), drafts)
    assert got == expected
    assert TOKENS // 10 < drafted < TOKENS * 9 // 10  # some were rejected, and rewound
