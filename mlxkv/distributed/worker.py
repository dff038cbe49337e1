"""Worker: a process that has a part of the model and follows rank 0's messages until it ends.

It has no terminal and no tokenizer in use; its caches are PromptCaches of its own heads or layers, whose rows are in a
store of its own (`part_store.py`). Ctrl+C is rank 0's to handle. On the MLX thread.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import Mark, PromptCache
from mlxkv.config import Folders
from mlxkv.device import current_device
from mlxkv.distributed.cache_peers import log_numbers
from mlxkv.distributed.link import Link, Message, Op
from mlxkv.distributed.machines import agreed_plan, load_split
from mlxkv.distributed.measure import about, memory_of, seconds_between, seconds_of_sum
from mlxkv.distributed.part_store import PartStore
from mlxkv.distributed.split import Split
from mlxkv.errors import MachineError, MlxkvError
from mlxkv.memory import Budget
from mlxkv.models import LoadedModel

_CLEAR_EVERY = 2048  # tokens between returns of MLX's free buffers


@dataclass
class Worker:
    """Follows one rank 0.

    Args:
        load: this process's part of the model that a LOAD message describes.
        sleep: blocks until rank 0 goes on, False if it is gone; None: messages are waited for busily.
        folders: where rows are saved; None: by the environment.
    """

    link: Link
    load: Callable[[dict[str, Any], Split], LoadedModel]
    sleep: Callable[[], bool] | None = None
    folders: Folders | None = None
    _caches: dict[int, PromptCache] = field(default_factory=dict)
    _marks: dict[int, Mark] = field(default_factory=dict)
    _loaded: LoadedModel | None = None
    _budget: Budget | None = None
    _store: PartStore | None = None
    _num_fed: int = 0

    def run(self) -> None:
        """Follow until END, or until rank 0 is gone."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while (message := self._next()) is not None:
                try:
                    self._follow(message)
                except MachineError:
                    if self.link.is_lost:
                        return
                except MlxkvError:
                    continue  # rank 0 had the same error, or was told of it
                except RuntimeError:  # how MLX reports a lost connection
                    return
        finally:
            self._close_store()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _next(self) -> Message | None:
        """None: this was the last one, or rank 0 is gone."""
        try:
            message = self.link.receive()
        except MachineError:
            return None
        is_last = message.op == Op.END or (message.op == Op.REST and self.sleep is not None and not self.sleep())
        return None if is_last else message

    def _follow(self, message: Message) -> None:
        match message.op:
            case Op.LOAD:
                self._load(message.table)
            case Op.UNLOAD:
                self._caches.clear()
                self._marks.clear()
                self._loaded = self._budget = None
                mx.clear_cache()
                if self._store is not None:
                    self._store.keep(message.table)
                self._close_store()
                self.link.agree(0)  # rank 0 waits: what it does next may end this process
            case Op.NEW:
                self._new(message.cache, message.table)
            case Op.DROP:
                for number in message.ids:
                    self._caches.pop(number, None)
                    self._marks.pop(number, None)
            case Op.ABOUT:
                about(self.link, message.table["name"])
            case Op.SUM:
                seconds_of_sum(self.link, message.a, message.b)
            case Op.PAIR:
                seconds_between(self.link, *message.ids)
            case Op.MEMORY:
                memory_of(self.link, message.table["name"], message.table["kind"])
            case Op.REST:
                pass
            case _:
                self._change(self._caches[message.cache], message)

    def _change(self, cache: PromptCache, message: Message) -> None:
        match message.op:
            case Op.FEED:
                self._call(cache, message.ids)
                mx.eval([layer.state for layer in cache.layers])
                cache.advance(message.ids)
            case Op.STEP:
                logits = self._call(cache, (message.token,))
                mx.async_eval(logits, [layer.state for layer in cache.layers])
                cache.advance((message.token,))
            case Op.VERIFY:
                self._marks[message.cache] = cache.mark()
                logits = self._call(cache, message.ids)
                mx.async_eval(logits, [layer.state for layer in cache.layers])
            case Op.ADVANCE:
                cache.advance(message.ids)
            case Op.TAKE_BACK:
                cache.take_back(self._marks[message.cache], range(message.a), message.b)
            case Op.REWIND:
                cache.rewind(message.a)
            case Op.RESET:
                cache.reset()
            case Op.FORK:
                self._caches[message.a] = cache.fork()
            case Op.RECOVER:
                cache.log.cut(message.a)
                cache.recover()
            case Op.BEGIN_TURN:
                cache.begin_turn(is_prefix=bool(message.a))
            case Op.CHECKPOINT:
                cache.checkpoint(is_prefix=bool(message.a))
            case Op.COMPARE:
                self.link.compare(*log_numbers(cache.log))
            case Op.SAVE:
                assert self._store is not None
                self.link.texts(self._store.save(cache, message.table))
            case Op.RESTORE:
                assert self._store is not None
                self._store.restore(cache, message.table, message.ids[message.a :], self.link.agree)

    def _call(self, cache: PromptCache, ids: tuple[int, ...]) -> mx.array:
        assert self._loaded is not None
        cache.make_room(len(ids))
        logits = self._loaded.model(mx.array([ids]), cache=cache.layers)
        self._num_fed += len(ids)
        if self._num_fed >= _CLEAR_EVERY:
            self._num_fed = 0
            mx.clear_cache()
        return logits

    def _load(self, table: dict[str, Any]) -> None:
        loaded, split = load_split(
            self.link, table["name"], table["distributed"], lambda split: self.load(table, split)
        )
        limit = current_device().memory_limit if table["limited"] else 0
        self._loaded, self._budget = loaded, Budget(loaded.model, limit, loaded.trained_length)
        self._close_store()
        self._store = PartStore(self.folders or Folders.from_env(), loaded, split)

    def _new(self, number: int, table: dict[str, Any]) -> None:
        assert self._loaded is not None
        assert self._budget is not None
        config = CacheConfig.from_table(table["config"])
        plan = agreed_plan(self.link, config, table["pinned"], self._budget, self._loaded.weight_bytes)
        self._caches[number] = PromptCache(plan, self._loaded.model)
