"""What tests of chats share: a small window, greedy replies, how to say something, a model that is told what to say."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import mlx.core as mx

import mlxkv
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompts.prompt import PromptFormat
from mlxkv.events import TurnFinished
from mlxkv.inference.draws import Draws
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.model import Model

CONFIG = mlxkv.CacheConfig(window=512, block=64)
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


def new(model: Model, **more: Any) -> mlxkv.Chat:
    return model.chat(cache=CONFIG, **{**GREEDY, **more})


def say(chat: mlxkv.Chat, text: str, **more: Any) -> TurnFinished:
    *_, last = chat.send(text, **more)
    assert isinstance(last, TurnFinished)
    return last


class Scripted(ModelRunner):
    """Feeds the model, and samples what it is told to; an exception in the script is raised there."""

    script: list[int | BaseException]

    def decode(
        self, cache: PromptCache, last: int, params: SamplingParams, seen: Sequence[int] = (), **more: Any
    ) -> Generator[int]:
        runner = self

        class Told(Draws):
            def next(self, logits: mx.array, y: mx.array) -> mx.array:
                sampled = runner.script.pop(0) if runner.script else 2
                if isinstance(sampled, BaseException):
                    raise sampled
                return mx.array([sampled])

        more["draws"] = lambda: Told(params, seen, more.get("num_before", 0))
        return super().decode(cache, last, params, seen, **more)


def scripted(model: Model, ids: Sequence[int | BaseException]) -> None:
    """The next tokens of `model`; then its end of turn."""
    runner = model.runner
    if not isinstance(runner, Scripted):
        runner = model._runtime.runner = Scripted(model.loaded.model)
    runner.script = list(ids)


def script(model: Model, *replies: str) -> None:
    prompts = PromptFormat(model.tokenizer)
    scripted(model, [i for reply in replies for i in (*prompts.encode(reply), 2, 2)])  # one is fed ahead
