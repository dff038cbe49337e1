"""What tests of batches share: prompts through the scheduler, beside each alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.events import ReplyFinished, RequestFailed, TurnEvent
from mlxkv.inference.generation import Generation
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.memory import Budget
from mlxkv.scheduler import Request, Scheduler
from tests.tokenizers import tiny_tokenizer

CONFIG = CacheConfig(window=256, block=32, sinks=4)
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
TOKENIZER = tiny_tokenizer()


def cache_of(model: Any, config: CacheConfig = CONFIG, ids: Sequence[int] = ()) -> PromptCache:
    """A cache that holds `ids`."""
    cache = PromptCache(plan_cache(model, config), model)
    for _ in ModelRunner(model).prefill(cache, ids):
        pass
    return cache


def alone(
    model: Any, ids: Sequence[int], params: SamplingParams = GREEDY, cache: PromptCache | None = None
) -> list[int]:
    """The tokens of the reply to one prompt."""
    held = cache.fork() if cache else cache_of(model)
    generation = Generation(ModelRunner(model), TOKENIZER, held, ids, params)
    for _ in generation.events():
        pass
    return generation.generated


def scheduler_of(model: Any, limit: int = 0, **more: Any) -> Scheduler:
    budget = Budget(model, limit)
    return Scheduler(ModelRunner(model, budget=budget), TOKENIZER, budget, **more)


class Sinks:
    """Collects the events of requests, by id."""

    def __init__(self) -> None:
        self.events: dict[int | str, list[TurnEvent | RequestFailed]] = {}
        self.finished: list[int | str] = []  # in this order

    def of(self, name: int | str) -> Any:
        def sink(event: TurnEvent | RequestFailed) -> None:
            self.events.setdefault(name, []).append(event)
            if isinstance(event, ReplyFinished | RequestFailed):
                self.finished.append(name)

        return sink

    def end(self, name: int | str) -> ReplyFinished:
        last = self.events[name][-1]
        assert isinstance(last, ReplyFinished), last
        return last


def together(
    model: Any,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] = GREEDY,
    cache: PromptCache | None = None,
    **more: Any,
) -> list[ReplyFinished]:
    """The replies to all prompts, through one scheduler."""
    scheduler, sinks, held = scheduler_of(model, **more), Sinks(), cache or cache_of(model)
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    for i, (ids, own) in enumerate(zip(prompts, each, strict=True)):
        scheduler.submit(Request(i, ids, own, held), sinks.of(i))
    scheduler.run()
    return [sinks.end(i) for i in range(len(prompts))]
