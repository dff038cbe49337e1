"""The end of the reasoning after a budget, or when it is asked for: the same ids as if the model had ended it there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.chat.prompt import PromptFormat
from mlxkv.errors import ConfigError
from mlxkv.events import Notice, ReplyFinished, TextDelta
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.model import Model
from mlxkv.stats import stat_line
from tests.chats import CONFIG, say
from tests.tokenizers import CHATML, OPENING, STRIPPING, THINK, tiny_folder, tiny_tokenizer

BUDGET, MOST = 7, 24
CLOSING = "\n</think>\n\n"
NEVER = {"logit_bias": {2: -1000, **{i: -1000 for i in range(56, 64)}}}  # no end of turn, and no marker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("m")
    tiny_folder(folder, tokenizer=tiny_tokenizer(OPENING, marks=THINK))
    with mlxkv.load(str(folder)) as model:
        yield model


def chat(model: Model, **more: Any) -> mlxkv.Chat:
    return model.chat(cache=CONFIG, **{"temperature": 0.0, "max_tokens": MOST, "thinking_budget": BUDGET, **NEVER, **more})


def plain_greedy(model: Model, ids: list[int], count: int) -> list[int]:
    """What the model says after `ids`, computed anew for each token, within what `NEVER` allows."""
    bias, out = mx.zeros((64,)), []
    for token, value in NEVER["logit_bias"].items():
        bias[token] = value
    for _ in range(count):
        out.append(int(mx.argmax(model.loaded.model(mx.array([[*ids, *out]]))[0, -1] + bias).item()))
    return out


def test_it(model: Model) -> None:
    prompts = PromptFormat(model.tokenizer)
    c = chat(model)
    done = say(c, "is it?")
    ids = list(c.turns[-1].ids)
    prompt = list(c.log[: -len(ids)])
    closing = prompts.encode(CLOSING)
    reasoning = plain_greedy(model, prompt, BUDGET)
    rest = plain_greedy(model, [*prompt, *reasoning, *closing], MOST - BUDGET - len(closing))
    print(done, ids, c.stats)
    assert ids == [*reasoning, *closing, *rest]
