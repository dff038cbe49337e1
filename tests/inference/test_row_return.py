"""Requests that keep their cache: alone or in a batch, it then holds the prompt and the reply."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.row_return import take_rows
from mlxkv.scheduler import Request
from tests.inference.batches import GREEDY, Sinks, alone, cache_of, scheduler_of
from tests.reference import random_ids, tiny_llama

PROMPTS = [random_ids(n, seed=n) for n in (9, 60, 23)]


@pytest.mark.parametrize("num_prompts", [1, 3])  # alone and in a batch
def test_a_kept_cache_holds_prompt_and_reply_and_continues_them(num_prompts: int) -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler, root = scheduler_of(model), cache_of(model, ids=[5])
    caches: list[PromptCache] = [root.fork() for _ in range(num_prompts)]
    prompts = PROMPTS[:num_prompts]
    for _ in range(2):  # the second prompt of each continues its first reply
        for i, ids in enumerate(prompts):
            scheduler.submit(
                Request(i, ids, replace(GREEDY, max_tokens=8 + i), caches[i], keeps_cache=True), sinks.of(i)
            )
        scheduler.run()
        for i, ids in enumerate(prompts):
            reply = sinks.end(i).tokens
            assert sinks.end(i).stats.batched == (num_prompts > 1)
            assert list(reply) == alone(model, ids, replace(GREEDY, max_tokens=8 + i))
            assert list(caches[i].log) == [*ids, *reply][: len(ids) + len(reply) - 1]
        prompts = [[*ids, *sinks.end(i).tokens, 7, 9] for i, ids in enumerate(prompts)]
    assert all(sinks.end(i).stats.prefill_tokens == 3 for i in range(num_prompts))  # the last sampled, and two new ones
    assert list(root.log) == [5]


def test_rows_that_mlx_lm_evicted_are_not_taken() -> None:
    from mlx_lm.models.cache import RotatingKVCache

    model = tiny_llama()
    cache, rotated = cache_of(model, ids=[1, 2]), [RotatingKVCache(4) for _ in model.layers]
    for layer in rotated:
        layer.offset = 9
    assert not take_rows(cache, list(range(9)), rotated)
    assert list(cache.log) == [1, 2]
