"""Prompts that are prefilled in the same calls: fewer calls, and the rows and replies of each alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlxkv import scheduler as scheduler_module
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.events import FinishReason
from mlxkv.inference.batch import RowCache
from mlxkv.inference.chunk_size import ChunkSize
from mlxkv.inference.joint_prefill import JointPrefill
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import Budget
from mlxkv.scheduler import Request, Scheduler
from tests.inference.batches import CONFIG, GREEDY, TOKENIZER, Sinks, alone, cache_of, scheduler_of, together
from tests.reference import random_ids, tiny_llama

PROMPTS = [random_ids(n, seed=n) for n in (40, 64, 9, 40)]


class Calls:
    """A model that notes the shape of each call's ids."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        call = type(model).__call__

        def noted(model: Any, ids: mx.array, **more: Any) -> mx.array:
            self.shapes.append(ids.shape)
            return call(model, ids, **more)

        monkeypatch.setattr(type(model), "__call__", noted)

    @property
    def prefills(self) -> list[tuple[int, ...]]:
        return [shape for shape in self.shapes if shape[1] > 1]


def test_a_call_has_as_many_tokens_of_each_as_the_shortest_still_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    expected = [alone(model, ids) for ids in PROMPTS]
    together(model, PROMPTS)  # and its first trial of the model
    calls = Calls(monkeypatch, model)
    assert [list(reply.tokens) for reply in together(model, PROMPTS)] == expected
    assert calls.prefills == [(4, 8), (3, 31), (1, 24)]


def test_rows_are_those_of_each_prompt_alone() -> None:
    model = tiny_llama()
    plan = plan_cache(model, CONFIG)
    caches = [RowCache(plan, model) for _ in PROMPTS]
    joint = JointPrefill(model, 0, ChunkSize(64))  # 16 tokens of each
    members = [joint.add(cache, ids) for cache, ids in zip(caches, PROMPTS, strict=True)]
    while any(member.done < len(member.ids) for member in members):
        joint.step()
    for cache, ids in zip(caches, PROMPTS, strict=True):
        single = RowCache(plan, model)
        for _ in ModelRunner(model).prefill(single, ids):
            pass
        assert list(cache.tokens) == ids
        for layer, own in zip(cache.layers, single.layers, strict=True):
            assert layer.offset == own.offset == len(ids)
            for a, b in ((layer.keys, own.keys), (layer.values, own.values)):
                assert mx.allclose(a[..., : len(ids), :], b[..., : len(ids), :], rtol=1e-4, atol=1e-5).item()


def test_prompts_that_share_a_beginning_start_together_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, same = tiny_llama(), random_ids(100, seed=4)
    prompts = [[*same, *random_ids(5, seed=i)] for i in range(4)]
    prompts[2][100:103] = prompts[0][100:103]  # shares three tokens more, which are prefilled again
    together(model, PROMPTS)
    expected = [alone(model, ids) for ids in prompts]
    calls = Calls(monkeypatch, model)
    replies = together(model, prompts)
    assert [list(reply.tokens) for reply in replies] == expected
    assert calls.prefills == [(1, 104), (3, 4)]
    assert [reply.stats.prefill_tokens for reply in replies] == [105, 5, 5, 5]


def test_a_cancelled_prompt_leaves_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sinks = tiny_llama(), Sinks()
    prompts, cache = [random_ids(120, seed=i) for i in range(3)], cache_of(model)
    expected = [alone(model, ids) for ids in prompts]
    together(model, PROMPTS)
    calls = Calls(monkeypatch, model)
    scheduler = Scheduler(ModelRunner(model, chunk=96), TOKENIZER, Budget(model, 0))
    for i, ids in enumerate(prompts):
        scheduler.submit(Request(i, ids, GREEDY, cache), sinks.of(i))
    while len(sinks.events.get(1, [])) < 2:  # its first chunk
        scheduler.step()
    scheduler.cancel(1)
    scheduler.run()
    assert sinks.end(1).reason == FinishReason.STOPPED
    assert [list(sinks.end(i).tokens) for i in (0, 2)] == [expected[0], expected[2]]
    assert calls.prefills[:2] == [(3, 32), (2, 48)]


def test_memory_bounds_how_many_are_prefilled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sinks = tiny_llama(), Sinks()
    cache, budget = cache_of(model), Budget(model, 1)
    together(model, PROMPTS)
    need = scheduler_module._COPIES * scheduler_module.row_bytes(budget, cache.plan, 44)
    need += budget.prefill_bytes(cache.plan, 20)
    calls = Calls(monkeypatch, model)
    scheduler = scheduler_of(model, mx.get_active_memory() + 2 * need + need // 2)
    for i in range(4):
        scheduler.submit(Request(i, random_ids(20, seed=i), GREEDY, cache), sinks.of(i))
    scheduler.run()
    assert calls.prefills == [(2, 19), (2, 19)]
