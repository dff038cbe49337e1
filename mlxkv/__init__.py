"""mlxkv: local chat on Apple silicon with a rotating, preallocated KV cache that lives on disk between runs.

The public names, nothing else. They are imported when first used, so that `mlxkv --help` stays quick.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what `typing` says, without the milliseconds it takes to import
if TYPE_CHECKING:
    from typing import Any

    from mlxkv import errors, events
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cache.planning.plan import make_cache
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.chat.chat import Chat
    from mlxkv.chat.completion import Completion
    from mlxkv.engine.open_async.async_chat import AsyncChat, AsyncPromptCache
    from mlxkv.engine.open_async.async_events import AsyncEvents
    from mlxkv.engine.open_async.async_model import AsyncModel, open_async
    from mlxkv.errors import MlxkvError
    from mlxkv.events import (
        BatchEvent,
        Notice,
        PrefillProgress,
        ReplyFinished,
        RequestFailed,
        TextDelta,
        TokenLogprobs,
        ToolCall,
        TurnEvent,
        TurnFinished,
    )
    from mlxkv.inference.sampling import SamplingParams
    from mlxkv.inference.sampling_types import Sampling
    from mlxkv.inference.scores import Choice, Score
    from mlxkv.memory.estimate import Estimate, estimate
    from mlxkv.model import Model, load
    from mlxkv.stats import TurnStats

__version__ = "0.1.0"

__all__ = [
    "AsyncChat",
    "AsyncEvents",
    "AsyncModel",
    "AsyncPromptCache",
    "BatchEvent",
    "CacheConfig",
    "Chat",
    "Choice",
    "Completion",
    "Estimate",
    "MlxkvError",
    "Model",
    "Notice",
    "PrefillProgress",
    "PromptCache",
    "ReplyFinished",
    "RequestFailed",
    "Sampling",
    "SamplingParams",
    "Score",
    "TextDelta",
    "TokenLogprobs",
    "ToolCall",
    "TurnEvent",
    "TurnFinished",
    "TurnStats",
    "errors",
    "estimate",
    "events",
    "load",
    "make_cache",
    "open_async",
]

_HOME = {
    "AsyncChat": "mlxkv.engine.open_async.async_chat",
    "AsyncEvents": "mlxkv.engine.open_async.async_events",
    "AsyncModel": "mlxkv.engine.open_async.async_model",
    "AsyncPromptCache": "mlxkv.engine.open_async.async_chat",
    "BatchEvent": "mlxkv.events",
    "CacheConfig": "mlxkv.cache.config",
    "Chat": "mlxkv.chat.chat",
    "Choice": "mlxkv.inference.scores",
    "Completion": "mlxkv.chat.completion",
    "Estimate": "mlxkv.memory.estimate",
    "MlxkvError": "mlxkv.errors",
    "Model": "mlxkv.model",
    "Notice": "mlxkv.events",
    "PrefillProgress": "mlxkv.events",
    "PromptCache": "mlxkv.cache.prompt_cache",
    "ReplyFinished": "mlxkv.events",
    "RequestFailed": "mlxkv.events",
    "Sampling": "mlxkv.inference.sampling_types",
    "SamplingParams": "mlxkv.inference.sampling",
    "Score": "mlxkv.inference.scores",
    "TextDelta": "mlxkv.events",
    "ToolCall": "mlxkv.events",
    "TokenLogprobs": "mlxkv.events",
    "TurnEvent": "mlxkv.events",
    "TurnFinished": "mlxkv.events",
    "TurnStats": "mlxkv.stats",
    "estimate": "mlxkv.memory.estimate",
    "load": "mlxkv.model",
    "make_cache": "mlxkv.cache.planning.plan",
    "open_async": "mlxkv.engine.open_async.async_model",
}


_MODULES = ("errors", "events")


def __getattr__(name: str) -> Any:
    if name not in _HOME and name not in _MODULES:
        raise AttributeError(f"module 'mlxkv' has no attribute {name!r}")
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"mlxkv.{name}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
