"""Beside: what a chat can do apart from its turns: ask something aside, go on elsewhere with other turns, read ahead.

The part of Chat that nothing of a turn needs. On the MLX thread.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from mlxkv.arguments import optional, public, text, whole
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.conversation import Conversation
from mlxkv.chat.prompt import PromptState
from mlxkv.chat.replay import Replay, spans
from mlxkv.chat.reply import ChatBackend
from mlxkv.chat.runs import ReplyGate
from mlxkv.device import set_wired_limit
from mlxkv.errors import PromptError
from mlxkv.events import PrefillProgress, TurnEvent
from mlxkv.inference.generation import Generation
from mlxkv.inference.sampling import SAMPLING, SamplingParams
from mlxkv.store import TurnRecord
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import common_prefix


class Beside(ABC):
    """The chat's own parts are declared here and made by the subclass."""

    _backend: ChatBackend
    _gate: ReplyGate
    _conversation: Conversation
    _prompt_state: PromptState
    cache: PromptCache

    @property
    @abstractmethod
    def system(self) -> str | None: ...

    @property
    @abstractmethod
    def thinking(self) -> bool | None: ...

    @property
    @abstractmethod
    def _replay(self) -> Replay: ...

    @abstractmethod
    def _check_cache(self) -> None: ...

    @abstractmethod
    def _sampling(self, chosen: Mapping[str, Any]) -> SamplingParams: ...

    @abstractmethod
    def _begin(self, title: str | None, parent: str | None = None, pinned: int = 0) -> None: ...

    @abstractmethod
    def _another(self, cache: CacheConfig) -> Self:
        """A chat like this one, in which nothing was said."""

    @public(*SAMPLING, text=text)
    def aside(self, text: str, **sampling: Any) -> Iterator[TurnEvent]:
        """Ask something that is no part of the chat: events as of `send`, and nothing is recorded.

        The cache holds the question and its answer until the next message, which goes on without them.

        Raises:
            PromptError: `text` is empty. ConfigError: no such sampling parameter, or a reply is still being generated.
        """
        if not text.strip():
            raise PromptError("The question is empty; write something first.")
        params = self._sampling(sampling)
        return self._gate.start(lambda cancelled: self._asked(text, params, cancelled))

    def _asked(self, text: str, params: SamplingParams, cancelled: Callable[[], bool]) -> Iterator[TurnEvent]:
        self._check_cache()
        prompt = self._aside(text)
        self._conversation.restore_rows_for(self.cache, prompt.ids)
        turn = Generation(
            self._backend.runner,
            self._backend.tokenizer,
            self.cache,
            prompt.ids,
            params,
            cancelled=cancelled,
            reader=self._backend.prompts.reader(prompt, params.stop),
        )
        with set_wired_limit():
            yield from turn.events()

    @public(text=text)
    def num_to_read(self, text: str) -> int:
        """Tokens that `aside` would read: the question, and what the cache does not hold of the chat."""
        ids = self._aside(text).ids
        return len(ids) - self.cache.landing(min(common_prefix(self.cache.log, ids), len(ids) - 1))

    def _aside(self, text: str) -> PromptState:
        """The prompt; without reasoning first, unless saying so changes what was read before."""
        prompts, asked = self._backend.prompts, TurnRecord("user", well_formed(text))
        messages = self._replay.messages([*self._conversation.turns, asked])
        as_ever = prompts.prompt(messages, self._prompt_state, self.thinking)
        if prompts.reasoning is None:
            return as_ever
        quiet, held = prompts.prompt(messages, self._prompt_state, False), self.cache.log
        return quiet if common_prefix(held, quiet.ids) + 64 > common_prefix(held, as_ever.ids) else as_ever

    @public(num_pinned=whole, title=optional(text))
    def abridge(self, turns: Sequence[TurnRecord], *, num_pinned: int = 0, title: str | None = None) -> Self:
        """Another chat in which only `turns` were said, with this one's system prompt; its cache is empty (see `read`).

        This chat stays as it is. Where it is saved, so is the other, as a fork of it before its first message.

        Args:
            num_pinned: so many of `turns` never rotate out, if they take no more than a quarter of the window.

        Raises:
            StoreError: it cannot be saved. OutOfMemoryError. ConfigError: a reply is still being generated.
        """
        self._gate.check_idle()
        laid, fed = self._replay.retokenize(turns)
        config, pinned = self.cache.plan.resolved, spans(laid)[num_pinned - 1][1] if num_pinned else 0
        if config.window is None or pinned > config.window // 4:
            pinned = 0
        twin = self._another(replace(config, sinks=pinned) if pinned else config)
        twin._conversation, twin._prompt_state = self._conversation.apart(laid), fed
        if self._conversation.session_id is not None:
            twin._begin(title, parent=self._conversation.session_id, pinned=pinned)
        return twin

    @public()
    def read(self) -> Iterator[PrefillProgress]:
        """Read what was said, as far as the cache does not hold it, so that the next message has only itself to read.

        `cancel` stops it; what was read stays read.

        Raises:
            OutOfMemoryError: it does not fit; the next message tries again. ConfigError: a reply is still being
            generated.
        """
        return self._gate.start(self._read)

    def _read(self, cancelled: Callable[[], bool]) -> Iterator[PrefillProgress]:
        self._check_cache()
        ids = self._conversation.log[:-1]  # as after a turn: the last token has been sampled and not been fed
        if not ids:
            return
        self._conversation.restore_rows_for(self.cache, ids)
        cached, begun = self.cache.reuse(ids).cached, time.perf_counter()
        with set_wired_limit(), self.cache.in_use():
            for done in self._backend.runner.prefill(self.cache, ids[cached:], cancelled):
                tps = done / max(time.perf_counter() - begun, 1e-9)
                yield PrefillProgress(done, len(ids) - cached, cached, tps)
        self.cache.checkpoint()
        if self._conversation.session_id is not None:
            self._conversation.save_rows(self.cache)

    @public()
    def forget(self) -> None:
        """Give the cache's memory back; the next message has everything read again, or brought back from disk."""
        self._gate.check_idle()
        self.cache = self._backend.new_cache(self.cache.plan.resolved, self.system)
