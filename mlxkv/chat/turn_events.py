"""TurnEvents: what a chat does between a call of `send`, `reply`, `retry` or another of its methods and the last event.

Adds the message, begins the reply, and goes back if nothing is generated; ReplyRun generates it. Made at the first
event of a turn, from where on nothing else changes the chat. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.history import History, HistorySnapshot
from mlxkv.chat.prompts.prompt import PromptState
from mlxkv.chat.reply import ReplyOptions, ReplyRun, make_generation
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.errors import CacheError, ConfigError, StoreError
from mlxkv.events import Notice, TurnEvent
from mlxkv.stats import TurnStats
from mlxkv.store.records import TurnRecord
from mlxkv.token_ids import common_prefix


@dataclass(frozen=True)
class TurnEvents:
    """One turn of a chat, as iterators of its events.

    Attributes:
        thinking: the chat's; see `Chat.thinking`.
        notices: are taken, and come before the events of the turn.
        begin_session: saves a new chat under a title, where chats are saved; may return a notice.
        keeps_message: whether a message stays that gets no reply; see `Chat.cancel`.
        began: called with what tells the figures of a reply so far.
        record: called with its figures at its end.
    """

    runtime: ModelRuntime
    history: History
    cache: PromptCache
    thinking: bool | None
    options: ReplyOptions
    notices: list[Notice]
    begin_session: Callable[[str], Notice | None]
    keeps_message: Callable[[], bool]
    began: Callable[[Callable[[], TurnStats]], None]
    record: Callable[[TurnStats], None]

    def of_message(self, text: str, undo: HistorySnapshot | None = None, *, whole: bool = False) -> Iterator[TurnEvent]:
        """A message and its reply. `undo`: the state to return to if nothing is generated; None: the present one."""
        undo = undo or self.history.snapshot(text)
        try:
            yield from self._begin()
            message = TurnRecord("user", text)
            prompt = yield from self.history.add_message(
                message, self.cache, self._thinks, whole=whole, begin_session=self.begin_session
            )
        except BaseException:
            self._return_to(undo)
            raise
        yield from self._reply(prompt, self._begun(prompt), undo)

    def of_reply(self, undo: HistorySnapshot | None = None) -> Iterator[TurnEvent]:
        """A reply to the messages as they are; `undo`: as for `of_message`."""
        try:
            yield from self._begin()
            prompt = self.history.prompt_without_reply(self.cache, self._thinks)
        except BaseException:
            if undo is not None:
                self._return_to(undo)
            raise
        yield from self._reply(prompt, self._begun(prompt), undo or self.history.snapshot())

    def of_replacement(
        self, turn: int, was: TurnRecord, text: str | None, *, autosaved: bool, whole: bool
    ) -> Iterator[TurnEvent]:
        """`text` (None: the same text) in place of message number `turn`, the user's, and a reply to it.

        Args:
            was: the message that was there when the caller asked.
            autosaved: a session of this message alone was made for it, and goes with it.
            whole: see `Chat.send`.

        Raises:
            ConfigError: another one is there now.
        """
        history = self.history
        self._check_unchanged(turn, [was])
        is_only = autosaved and history.is_only_message(turn)
        is_unanswered = turn == len(history.conversation.turns) - 1
        asked = history.user_text(turn) if text is None else text
        undo = history.snapshot("" if text is None and not is_unanswered else asked)
        history.remove_from(turn)
        if is_only:
            undo = history.empty(undo.returned)
        elif is_unanswered:
            undo = history.snapshot(asked)
        yield from self.of_message(asked, undo, whole=whole)

    def of_other_reply(self, turn: int, was: Sequence[TurnRecord]) -> Iterator[TurnEvent]:
        """Message number `turn` anew, a reply that follows the results of tools, or is missing there.

        Args:
            was: the messages from there on when the caller asked.

        Raises:
            ConfigError: others are there now.
        """
        self._check_unchanged(turn, was)
        undo = self.history.snapshot()
        if was[0].role == "assistant":
            self.history.remove_from(turn)
        yield from self.of_reply(undo)

    def of_rest(self) -> Iterator[TurnEvent]:
        """The rest of the last reply."""
        self.runtime.check_cache(self.cache)
        last, prompt = self.history.continuable_reply(self.cache.plan.learned), self.history.prompt_before_reply()
        self.history.conversation.reopen_reply()
        yield from self._reply(prompt, last)

    def of_aside(self, text: str) -> Iterator[TurnEvent]:
        """The reply to a question that is not recorded."""
        self.runtime.check_cache(self.cache)
        prompt = self.history.aside_prompt(text, self.thinking, self.cache.log)
        self.history.conversation.restore_rows_for(self.cache, prompt.ids)
        kept = common_prefix(self.cache.log, prompt.ids)
        try:
            yield from make_generation(self.runtime, self.history, self.cache, prompt, self.options).events()
        finally:
            with suppress(CacheError):  # rows were evicted: the next prompt finds what can be reused
                self.cache.rewind(min(kept, self.cache.offset))

    def _reply(
        self, prompt: PromptState, before: TurnRecord, undo: HistorySnapshot | None = None
    ) -> Iterator[TurnEvent]:
        """Generate the reply to `prompt`, which begins with the reply `before`; `undo`: if nothing is generated."""
        history, cache, think = self.history, self.cache, self._thinks
        checkpoints = history.checkpoints(prompt, think, cache) if cache.checkpoints.is_needed else ()
        begun = (before.ids, before.text, before.thinking)
        generation = make_generation(self.runtime, history, cache, prompt, self.options, begun, checkpoints)
        run = ReplyRun(history, generation, prompt, think, undo, self.keeps_message)
        self.began(lambda: generation.stats)
        try:
            yield from run.events()
        finally:
            self.record(run.stats)

    def _begun(self, prompt: PromptState) -> TurnRecord:
        """The reply with which generation begins."""
        begin = self.options.begin
        return TurnRecord("assistant", begin, self.history.prompts.begun(prompt, begin) if begin else ())

    @property
    def _thinks(self) -> bool | None:
        """The template's switch for a reply; one with a given beginning has no reasoning."""
        return False if self.options.begin and self.history.prompts.has_think_switch else self.thinking

    def _begin(self) -> Iterator[Notice]:
        self.history.conversation.check_writable()
        self.runtime.check_cache(self.cache)
        while self.notices:
            yield self.notices.pop(0)

    def _check_unchanged(self, turn: int, was: Sequence[TurnRecord]) -> None:
        if tuple(self.history.conversation.turns[turn : turn + len(was)]) != tuple(was):
            raise ConfigError("The chat has changed since this was asked for; call `retry` or `edit` again.")

    def _return_to(self, undo: HistorySnapshot) -> None:
        with suppress(StoreError):  # report the first error, not this one
            self.history.return_to(undo)
