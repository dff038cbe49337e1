"""Prefills of raw text, token ids or the beginning of a chat into a new PromptCache. On the MLX thread."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from mlxkv import arguments
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.interchange import PromptText
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompts import clock
from mlxkv.chat.prompts.prompt import PromptFormat, PromptState, check_ids
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.errors import ConfigError, PromptError
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import TokenIds


def new_cache(runtime: ModelRuntime, config: CacheConfig | None, system: str | None) -> PromptCache:
    """An empty cache; see `Model.make_cache`."""
    prompts, system = (runtime.prompts, well_formed(system)) if system else (None, None)
    return runtime.new_cache(config or CacheConfig(), prompts, system)


def prefill_steps(
    runtime: ModelRuntime,
    prompt: Any,
    config: CacheConfig | None,
    system: str | None,
    chat: bool | None,
    save_to: Path | None,
) -> Generator[tuple[int, int], None, PromptCache]:
    """`Model.prefill` a chunk at a time; yields the number of tokens prefilled so far, and of all."""
    as_chat = system is not None if chat is None else chat
    prompts = runtime.prompts.at(began := clock.now())
    system = well_formed(system) if system else system
    state = _chat_prefix(prompts, system, prompt) if as_chat else _raw(runtime, prompts, prompt)
    held = (
        runtime.new_cache(config or CacheConfig(), prompts, system) if as_chat else new_cache(runtime, config, system)
    )
    if save_to is not None:
        runtime.check_space(save_to, held, len(state.ids))
    if as_chat:
        held.prompt = PromptText(system, well_formed(prompt), state.text, len(state.ids), began.isoformat())
    runtime.borrower.borrow(held, state.ids)
    borrowed = held.offset
    if borrowed:
        yield borrowed, len(state.ids)
    prefixes = [prompts.num_system_tokens(system), len(state.ids)] if as_chat else [len(state.ids)]
    for done in runtime.runner.prefill(held, state.ids[borrowed:], prefixes=prefixes):
        yield borrowed + done, len(state.ids)
    return held


def _raw(runtime: ModelRuntime, prompts: PromptFormat, prompt: Any) -> PromptState:
    if isinstance(prompt, str):
        if not prompt:
            raise _empty()
        return PromptState("", TokenIds(prompts.encode_raw(well_formed(prompt))))
    return PromptState("", TokenIds(check_ids(arguments.token_ids("prompt", prompt), runtime.model_args)))


def _chat_prefix(prompts: PromptFormat, system: str | None, prompt: Any) -> PromptState:
    if not isinstance(prompt, str):
        raise ConfigError("Token ids cannot begin a chat: its template needs text; give text, or no `system`.")
    if not prompt and not system:
        raise _empty()
    return prompts.chat_prefix(system, well_formed(prompt))


def _empty() -> PromptError:
    return PromptError("The text to prefill is empty; give some.")
