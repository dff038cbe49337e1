"""What a stored session says about the chat that continues it: cache bounds, sampling, reasoning, tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from mlxkv.cache.config import DEFAULT_SINKS, CacheConfig
from mlxkv.cache.planning.traits import traits_of
from mlxkv.chat.chat import Chat
from mlxkv.chat.prompts import clock
from mlxkv.chat.resuming.own_bounds import fitting
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.chat.tools import Tool
from mlxkv.inference.sampling import SamplingParams
from mlxkv.settings.setting_sources import ChatSettings
from mlxkv.store.records import SessionRecord


def resumed(
    runtime: ModelRuntime,
    record: SessionRecord,
    cache: CacheConfig | None,
    tools: tuple[Tool, ...] | None,
    sampling: Mapping[str, Any],
    *,
    own: bool,
) -> Chat:
    """The chat of a session; see `Model.resume`. `tools`: None for its own. `own`: apply the chat's own settings."""
    chosen = ChatSettings.read(record.settings if own else {}, None)[0].settings
    if cache is None:
        cache, _ = fitting(CacheConfig.chosen(chosen), lambda config: runtime.new_cache(config, None, None))
    sampling = {**{name: value for name, value in chosen.sampling.items() if value is not None}, **sampling}
    think = record.params.get("think") if chosen.think is None else chosen.think
    began = clock.from_text(record.clock) or clock.from_seconds(record.created)
    if "sampling" in record.params:
        params = SamplingParams.saved(dict(record.params["sampling"] or {}))
    else:  # a chat of another program
        params = SamplingParams.for_model(runtime.loaded.generation)
    chat = Chat(
        runtime,
        system=record.system,
        cache=_config(runtime, record, cache, began),
        params=replace(params, **sampling),
        autosave=True,
        think=think if isinstance(think, bool) else None,
        began=began,
        tools=runtime.saved_tools(record.params.get("tools")) if tools is None else tools,
    )
    chat.load(record)
    return chat


def _config(runtime: ModelRuntime, record: SessionRecord, cache: CacheConfig | None, began: datetime) -> CacheConfig:
    """The bounds of a session; or those asked for, with its pinned tokens if they differ in nothing else."""
    saved = CacheConfig.from_table(record.params.get("cache"))
    if saved.sinks == "system" and not record.system:
        saved = replace(saved, sinks=DEFAULT_SINKS)  # an older version wrote this for them
    if cache is not None:
        saved = replace(saved, checkpoint_bytes=cache.checkpoint_bytes)  # concerns no saved rows
    if cache is None or replace(cache, checkpoint_bytes=None) == CacheConfig():
        learned = traits_of(runtime.loaded.model).learned
        if learned and saved.window and saved.window > saved.geometry(learned).window:
            return replace(saved, window=None, block=None, slack=None)  # saved before this was checked
        return saved
    if cache.sinks != "system":
        return cache
    made = runtime.new_cache(cache, runtime.prompts.at(began), record.system)
    if replace(made.plan.resolved, sinks=saved.sinks) == saved:
        return saved
    pinned, most = record.params.get("pinned"), (cache.window or 1 << 24) // 4
    return replace(cache, sinks=pinned) if isinstance(pinned, int) and 0 < pinned <= most else cache
