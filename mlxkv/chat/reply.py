"""ReplyRun: one reply of a chat: brought back what is on disk, generated, shown, recorded, its rows saved.

Between the turn (token ids on a cache) and the chat, which knows what is asked. On the MLX thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Self

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.conversation import Conversation
from mlxkv.chat.prompt import PromptFormat, PromptState
from mlxkv.device import set_wired_limit
from mlxkv.events import NoAnswer, Notice, PrefillProgress, TextDelta, TurnEvent, TurnFinished
from mlxkv.inference.generation import Generation
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.stats import TurnStats, no_answer_text
from mlxkv.store import ModelIdentity, SessionStore, TurnRecord
from mlxkv.store.borrow import Borrower

_UPDATE_TOKENS = 256  # an open reply is written to disk this often,
_UPDATE_SECONDS = 2.0  # or this often, whichever comes first
_WORTH_TELLING = 256  # tokens that another chat's rows saved
_MEASURED_TOKENS = 64  # fewer do not tell how fast a model reads


@dataclass(frozen=True)
class ChatBackend:
    """What a chat needs of the model it runs on; `Model` makes it."""

    runner: ModelRunner
    tokenizer: Any
    prompts: PromptFormat
    make_cache: Callable[[CacheConfig, int], PromptCache]  # with so many tokens of the template and system prompt
    store: Callable[[], SessionStore]
    identity: Callable[[], ModelIdentity]
    borrower: Borrower
    check_cache: Callable[[PromptCache], None]  # raises MismatchError

    def at(self, clock: datetime) -> Self:
        """The same with a template that prints this time."""
        return replace(self, prompts=self.prompts.at(clock))

    def new_cache(self, config: CacheConfig, system: str | None) -> PromptCache:
        """An empty cache for a chat with this system prompt.

        Raises:
            OutOfMemoryError: it could not be filled.
        """
        return self.make_cache(config, self.prompts.num_system_tokens(system) if config.sinks == "system" else 0)


class ReplyRun:
    """The reply to `prompt`, of which there is `before` already. Iterate `events` once, then call `finish`.

    Args:
        think: what the template was told about reasoning.
        marks: see Generation.
        started, cancelled: see Generation.
    """

    def __init__(
        self,
        backend: ChatBackend,
        said: Conversation,
        cache: PromptCache,
        prompt: PromptState,
        before: TurnRecord,
        params: SamplingParams,
        think: bool | None,
        *,
        marks: tuple[int, ...],
        started: float,
        cancelled: Callable[[], bool],
    ) -> None:
        ids = prompt.ids + before.ids
        self._prompts, self._conversation, self._cache, self._prompt = backend.prompts, said, cache, prompt
        self._params, self._think = params, think
        self._back = said.restore_rows_for(cache, ids)
        self.turn = Generation(
            backend.runner,
            backend.tokenizer,
            cache,
            ids,
            params,
            started=started,
            cancelled=cancelled,
            reply=(before.ids, before.text, before.thinking),
            reader=backend.prompts.reader(prompt, params.stop),
            marks=marks,
        )
        self.fed = prompt
        self.stats = TurnStats()

    def events(self) -> Iterator[TurnEvent]:
        """The turn's events but the last; a saved chat's open reply reaches the disk every few seconds."""
        saved_at, saved_tokens = time.monotonic(), 0
        with set_wired_limit():
            for event in self.turn.events():
                if isinstance(event, TurnFinished):
                    return
                if isinstance(event, PrefillProgress) and (reused := self._num_reused(event.cached)):
                    yield Notice(f"Reused {reused:,} tokens from an earlier chat that began alike.")
                yield event
                if self._conversation.session_id is None or not isinstance(event, TextDelta):
                    continue
                grown = event.num_tokens - saved_tokens
                if grown >= _UPDATE_TOKENS or time.monotonic() - saved_at >= _UPDATE_SECONDS:
                    self._conversation.write_reply(self._record("open"))
                    saved_at, saved_tokens = time.monotonic(), event.num_tokens

    def _num_reused(self, cached: int) -> int:
        """Rows of another chat among the `cached` tokens, where that is worth telling, once. The last token of a prompt
        is fed again though its row is there: its logits are wanted."""
        back, self._back = self._back, None
        reused = back.shared - max(0, back.tokens - cached) if back is not None else 0
        return reused if reused >= _WORTH_TELLING else 0

    def finish(self) -> str | None:
        """Record the reply, then its rows; the notice to show when rows could not be saved."""
        turn, said = self.turn, self._conversation
        ids = (*turn.reply_ids, *turn.generated)
        self.fed = self._prompts.with_reply(self._prompt, turn.raw, ids)
        if turn.reason == "stop_string":  # the ids say more than the text: tokenize the text again next time
            before = self._prompt.ids
            shown = () if self._prompts.has_template else self._prompts.shown(turn.text, ids, before)
            self.fed = PromptState("", before + shown) if shown else self._prompt
        self.stats = turn.stats
        said.write_reply(self._record("stopped" if turn.reason == "stopped" else "done"))
        if said.session_id is None:
            return None
        if self.stats.prefill_tokens >= _MEASURED_TOKENS:
            said.measured_prefill(self.stats.prefill_tps)
        written, notice = said.save_rows(self._cache)
        self.stats = turn.stats_on_disk(said.disk_bytes(), written)
        return notice

    @property
    def can_be_quiet(self) -> bool:
        """Whether the model can be told not to reason, and was not."""
        return self._think is not False and self._prompts.has_think_switch

    @property
    def is_unanswered(self) -> bool:
        """It was stopped before there was anything of the reply."""
        turn = self.turn
        return turn.reason == "stopped" and not (turn.reply_ids or turn.text or turn.thinking)

    def no_answer(self) -> NoAnswer | None:
        """For a reply that ended without text; one that was stopped is no surprise."""
        turn = self.turn
        if turn.text or turn.reason == "stopped":
            return None
        num_tokens, thinking = len(turn.generated), bool(turn.thinking)
        quiet = "think=False" if self.can_be_quiet else ""
        text = no_answer_text(num_tokens, turn.reason, thinking, "max_tokens", quiet)
        return NoAnswer(text, num_tokens, turn.reason, thinking, self.can_be_quiet)

    def _record(self, state: str) -> TurnRecord:
        turn, model = self.turn, self._conversation.model
        ids, stats = (*turn.reply_ids, *turn.generated), asdict(turn.stats)
        if state == "open":
            stats["finish_reason"] = "stopped"  # what holds if nothing else is ever written
        chosen = asdict(self._params) | ({} if self._think is None else {"think": self._think})
        if model is not None:
            chosen["model"] = model
        return TurnRecord("assistant", turn.text, ids, None, turn.thinking, state, chosen, stats)
