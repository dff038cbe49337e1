"""What tests of chats share: a small window, greedy replies, and how to say something."""

from __future__ import annotations

from typing import Any

import mlxkv
from mlxkv.events import TurnFinished
from mlxkv.model import Model

CONFIG = mlxkv.CacheConfig(window=512, block=64)
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


def new(model: Model, **more: Any) -> mlxkv.Chat:
    return model.chat(cache=CONFIG, **{**GREEDY, **more})


def say(chat: mlxkv.Chat, text: str, **more: Any) -> TurnFinished:
    *_, last = chat.send(text, **more)
    assert isinstance(last, TurnFinished)
    return last
