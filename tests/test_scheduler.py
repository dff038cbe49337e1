"""The scheduler: order, memory, cancelling, deadlines, and what one request may do to the others: nothing."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlxkv import scheduler as scheduler_module
from mlxkv.cache.config import CacheConfig
from mlxkv.errors import OutOfMemoryError, PromptError, QueueFullError
from mlxkv.events import FinishReason, PrefillProgress, RequestFailed, TextDelta
from mlxkv.inference.reply_parser import ReplyText
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import Budget
from mlxkv.scheduler import Request, Scheduler
from tests.inference.batches import GREEDY, TOKENIZER, Sinks, alone, cache_of, scheduler_of
from tests.reference import random_ids, tiny_llama

PROMPTS = [random_ids(n, seed=n) for n in (9, 60, 23)]


def submit(scheduler: Scheduler, sinks: Sinks, prompts: list[list[int]], cache: Any, **more: Any) -> None:
    for i, ids in enumerate(prompts):
        scheduler.submit(Request(i, ids, **{"params": GREEDY, "cache": cache, **more}), sinks.of(i))


def test_events_of_each_request_go_to_its_own_sink() -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler = scheduler_of(model)
    submit(scheduler, sinks, PROMPTS, cache_of(model))
    scheduler.run()
    for i in range(3):
        kinds = [type(event).__name__ for event in sinks.events[i]]
        assert kinds[0] == "PrefillProgress"
        assert kinds[-1] == "ReplyFinished"
        text = "".join(event.text for event in sinks.events[i] if isinstance(event, TextDelta))
        assert text == sinks.end(i).text
    assert not scheduler.step()


def test_a_long_prompt_is_prefilled_in_chunks_between_which_others_get_tokens() -> None:
    model, sinks, cache = tiny_llama(), Sinks(), None
    scheduler = Scheduler(ModelRunner(model, chunk=16), TOKENIZER, Budget(model, 0))
    cache = cache_of(model)
    order: list[str] = []
    first = Request("short", PROMPTS[0], replace(GREEDY, max_tokens=20), cache)
    scheduler.submit(first, lambda event: order.append("token" if isinstance(event, TextDelta) else ""))
    scheduler.submit(Request("other", PROMPTS[2], replace(GREEDY, max_tokens=20), cache), sinks.of("other"))
    while order.count("token") < 2:
        scheduler.step()
    late = Request("long", random_ids(160, seed=1), replace(GREEDY, max_tokens=2), cache)
    scheduler.submit(late, lambda event: order.append("chunk" if isinstance(event, PrefillProgress) else ""))
    scheduler.run()
    chunks = [i for i, what in enumerate(order) if what == "chunk"]
    assert len(chunks) == 11  # the beginning, and ten of 16 tokens
    between = [order[a:b].count("token") for a, b in itertools.pairwise(chunks)]
    assert set(between) == {1}


def test_prompts_are_gathered_before_the_batch_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler = scheduler_of(model)
    submit(scheduler, sinks, [random_ids(9, seed=i) for i in range(8)], cache_of(model))
    scheduler.run()
    assert scheduler._batch.largest == 8
    assert scheduler._batch._num_steps == 24  # as many as one reply has tokens
    monkeypatch.setattr(scheduler_module, "_GATHER", 10)
    monkeypatch.setattr(scheduler_module, "_LEAST_OF_EACH", 512)  # each prompt alone
    scheduler = scheduler_of(model)
    submit(scheduler, Sinks(), [random_ids(9, seed=i) for i in range(8)], cache_of(model))
    scheduler.run()
    assert scheduler._batch._num_steps > 24


def test_a_prompt_shares_the_rows_of_the_last_one() -> None:
    model, sinks, cache = tiny_llama(), Sinks(), None
    cache, same = cache_of(model), random_ids(100, seed=4)
    prompts = [[*same, *random_ids(5, seed=i)] for i in range(4)]
    scheduler = scheduler_of(model)
    submit(scheduler, sinks, prompts, cache)
    scheduler.run()
    assert [sinks.end(i).stats.prefill_tokens for i in range(4)] == [105, 5, 5, 5]
    assert [list(sinks.end(i).tokens) for i in range(4)] == [alone(model, ids) for ids in prompts]


def test_rows_of_another_cache_are_not_shared() -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler, same = scheduler_of(model), random_ids(100, seed=4)
    for i in range(2):
        scheduler.submit(Request(i, [*same, i], GREEDY, cache_of(model)), sinks.of(i))
    scheduler.run()
    assert [sinks.end(i).stats.prefill_tokens for i in range(2)] == [101, 101]


def test_one_request_runs_in_place() -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler = scheduler_of(model)
    submit(scheduler, sinks, PROMPTS[:1], cache_of(model))
    scheduler.run()
    assert (sinks.end(0).stats.batched, sinks.end(0).stats.not_batched_why) == (False, "nothing else ran")
    assert list(sinks.end(0).tokens) == alone(model, PROMPTS[0])


def test_the_line_is_bounded() -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler, cache = scheduler_of(model, max_waiting=2), cache_of(model)
    submit(scheduler, sinks, PROMPTS[:2], cache)
    assert not scheduler.can_take
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        scheduler.submit(Request(9, PROMPTS[2], GREEDY, cache), sinks.of(9))
    scheduler.step()
    assert scheduler.can_take


@pytest.mark.parametrize("bits", [None, 8])
def test_a_cancelled_request_keeps_what_it_has_and_the_others_go_on(bits: int | None) -> None:
    model, sinks = tiny_llama(hidden=128), Sinks()
    scheduler, cache = scheduler_of(model, max_rows=2, max_turns=2), cache_of(model, CacheConfig(window=256, bits=bits))
    submit(scheduler, sinks, PROMPTS, cache)
    while sum(isinstance(event, TextDelta) for event in sinks.events.get(1, [])) < 3:
        scheduler.step()
    for name in (1, 2, "nobody"):  # one that runs, one that waits
        thread = threading.Thread(target=scheduler.cancel, args=(name,))
        thread.start()
        thread.join()
    scheduler.run()
    assert [sinks.end(i).reason for i in range(3)] == [FinishReason.LENGTH, FinishReason.STOPPED, FinishReason.STOPPED]
    expected = [alone(model, ids, cache=cache) for ids in PROMPTS]
    assert list(sinks.end(0).tokens) == expected[0]
    tokens = sinks.end(1).tokens
    assert 3 <= len(tokens) < 24
    assert list(tokens) == expected[1][: len(tokens)]
    assert (sinks.end(2).tokens, sinks.end(2).text) == ((), "")


def test_a_prefill_is_cancelled_between_two_chunks() -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler = Scheduler(ModelRunner(model, chunk=8), TOKENIZER, Budget(model, 0))
    submit(scheduler, sinks, PROMPTS, cache_of(model))
    while len(sinks.events.get(1, [])) < 3:
        scheduler.step()
    scheduler.cancel(1)
    scheduler.run()
    assert sinks.end(1).reason == FinishReason.STOPPED
    assert sinks.end(1).stats.prefill_tokens < 60
    assert list(sinks.end(2).tokens) == alone(model, PROMPTS[2])


def test_a_deadline_ends_a_reply_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sinks, now = tiny_llama(), Sinks(), [100.0]
    monkeypatch.setattr(scheduler_module.time, "perf_counter", lambda: now[0])
    scheduler, cache = scheduler_of(model, max_rows=2), cache_of(model)
    for i, ids in enumerate(PROMPTS):
        scheduler.submit(Request(i, ids, GREEDY, cache, deadline=None if i == 0 else 5.0), sinks.of(i))
    while sum(isinstance(event, TextDelta) for event in sinks.events.get(1, [])) < 3:
        scheduler.step()
    now[0] += 5.0
    scheduler.run()
    assert [sinks.end(i).reason for i in range(3)] == ["length", "deadline", "deadline"]
    assert sinks.end(1).stats.finish_reason == FinishReason.DEADLINE
    assert len(sinks.end(1).tokens) >= 3
    assert sinks.end(2).tokens == ()  # it was in line


@pytest.mark.slow
def test_memory_decides_how_many_run_at_once() -> None:
    model = tiny_llama()
    cache = cache_of(model)
    prompts = [random_ids(20, seed=i) for i in range(6)]
    budget = Budget(model, 1)
    prefill = budget.prefill_bytes(cache.plan, 20)
    row = scheduler_module._COPIES * scheduler_module.row_bytes(budget, cache.plan, 44)
    for most in (2, 3):
        limit = mx.get_active_memory() + most * (row + prefill) + row // 2
        scheduler, sinks = scheduler_of(model, limit), Sinks()
        submit(scheduler, sinks, prompts, cache)
        scheduler.run()
        assert scheduler._batch.largest == most
        assert [list(sinks.end(i).tokens) for i in range(6)] == [alone(model, ids) for ids in prompts]


@pytest.mark.slow
def test_a_request_that_does_not_fit_alone_fails_and_the_others_are_answered() -> None:
    model, sinks = tiny_llama(), Sinks()
    cache = cache_of(model, CacheConfig(window=64, block=16, sinks=4))
    big = cache_of(model, CacheConfig(window=1 << 20, sinks=4))
    scheduler = scheduler_of(model, mx.get_active_memory() + 40_000_000)
    for i, (ids, held) in enumerate([(PROMPTS[0], cache), (random_ids(300), big), (PROMPTS[2], cache)]):
        params = replace(GREEDY, max_tokens=900_000) if held is big else GREEDY
        scheduler.submit(Request(i, ids, params, held), sinks.of(i))
    scheduler.run()
    failed = sinks.events[1][-1]
    assert isinstance(failed, RequestFailed)
    assert isinstance(failed.error, OutOfMemoryError)
    assert "a window of" in str(failed.error)
    assert list(sinks.end(2).tokens) == alone(model, PROMPTS[2], cache=cache)


def test_an_invalid_request_fails_by_itself() -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler = scheduler_of(model)
    submit(scheduler, sinks, [PROMPTS[0], [], PROMPTS[2]], cache_of(model))
    scheduler.run()
    failed = sinks.events[1][-1]
    assert isinstance(failed, RequestFailed)
    assert isinstance(failed.error, PromptError)
    assert list(sinks.end(2).tokens) == alone(model, PROMPTS[2])


@pytest.mark.slow
def test_an_interrupt_leaves_cache_and_model_usable() -> None:
    model, sinks = tiny_llama(), Sinks()
    cache = cache_of(model, ids=random_ids(50, seed=8))
    prompts = [[*cache.tokens, *ids] for ids in PROMPTS]
    expected = [alone(model, ids, cache=cache) for ids in prompts]
    scheduler = scheduler_of(model)

    def interrupt(event: object) -> None:
        if isinstance(event, TextDelta):
            raise KeyboardInterrupt

    scheduler.submit(Request("x", prompts[0], GREEDY, cache), interrupt)
    submit(scheduler, sinks, prompts, cache)
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()
    assert not scheduler.step()  # nothing is left of them
    submit(scheduler, sinks, prompts, cache)
    scheduler.run()
    assert [list(sinks.end(i).tokens) for i in range(3)] == expected
    assert [alone(model, ids, cache=cache) for ids in prompts] == expected


def test_stop_strings_and_readers_belong_to_the_request() -> None:
    model, sinks = tiny_llama(), Sinks()
    scheduler, cache = scheduler_of(model), cache_of(model)
    whole = [TOKENIZER.decode(alone(model, ids)) for ids in PROMPTS]
    stop = whole[0][4:6]
    made = []

    def reader() -> ReplyText:
        made.append(ReplyText(TOKENIZER))
        return made[-1]

    scheduler.submit(Request(0, PROMPTS[0], replace(GREEDY, stop=(stop,)), cache), sinks.of(0))
    scheduler.submit(Request(1, PROMPTS[1], GREEDY, cache, reader=reader), sinks.of(1))
    scheduler.run()
    assert sinks.end(0).reason == FinishReason.STOP_STRING
    assert sinks.end(0).text == whole[0][: whole[0].index(stop)]
    assert sinks.end(1).reason == FinishReason.LENGTH
    assert len(made) == 1
