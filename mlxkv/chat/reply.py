"""ReplyRun: one reply: restore, generate, record, save. Also the prefill of a chat without a reply.

Between the generation, which knows only token ids, and the chat. On the MLX thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.history import History, HistorySnapshot
from mlxkv.chat.prompts.prompt import PromptState
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.events import FinishReason, KVNotSaved, NoAnswer, Notice, PrefillProgress, TextDelta, TurnEvent, TurnFinished
from mlxkv.inference.generation import Generation
from mlxkv.inference.hooks import Hooks
from mlxkv.inference.sampling import SamplingParams
from mlxkv.stats import TurnStats, no_answer_text
from mlxkv.store.records import Restored, TurnRecord, TurnState

_UPDATE_TOKENS = 256  # an open reply is written to disk this often,
_UPDATE_SECONDS = 2.0  # or this often, whichever comes first
_MIN_REPORTED = 256  # tokens reused from another chat; fewer are not reported
_MIN_MEASURED = 64  # tokens; fewer say little about the speed of prefill


@dataclass(frozen=True)
class ReplyOptions:
    """How one reply is generated; see Generation. `begin`: the text that it begins with. `asked`: set to end its
    reasoning."""

    params: SamplingParams
    started: float
    cancelled: Callable[[], bool] = bool
    begin: str = ""
    hooks: Hooks = field(default_factory=Hooks)
    asked: threading.Event | None = None


def make_generation(
    runtime: ModelRuntime,
    history: History,
    cache: PromptCache,
    prompt: PromptState,
    options: ReplyOptions,
    reply: tuple[Sequence[int], str, str] = ((), "", ""),
    checkpoints: Sequence[int] = (),
) -> Generation:
    """A generation for `prompt`, which a reply to continue may begin; see Generation."""
    prefixes = history.prefix_ends if cache.checkpoints.is_needed else ()
    return Generation(
        runtime.runner,
        runtime.tokenizer,
        cache,
        prompt.ids + reply[0],
        options.params,
        started=options.started,
        cancelled=options.cancelled,
        reply=reply,
        reader=history.prompts.reader(prompt, options.params.stop, history.num_calls),
        checkpoints=checkpoints,
        prefixes=prefixes,
        hooks=options.hooks,
        asked=options.asked,
    )


def prefill_chat(
    runtime: ModelRuntime, history: History, cache: PromptCache, cancelled: Callable[[], bool]
) -> Iterator[PrefillProgress]:
    """Restore and prefill the rows of a conversation that the cache lacks, and save the new ones."""
    runtime.check_cache(cache)
    conversation = history.conversation
    ids = conversation.log[:-1]  # as after a turn: the last token was sampled and is not in the cache
    if not ids:
        return
    conversation.restore_rows_for(cache, ids)
    cached, begun = cache.reuse(ids).cached, time.perf_counter()
    with cache.in_use():
        stops, prefixes = history.turn_starts(cached), history.prefix_ends
        for done in runtime.runner.prefill(cache, ids[cached:], cancelled, stops, prefixes):
            tps = done / max(time.perf_counter() - begun, 1e-9)
            yield PrefillProgress(done, len(ids) - cached, cached, tps)
    cache.checkpoint()
    if conversation.session_id is not None:
        conversation.save_rows(cache, resume_at=history.resume_at)


class ReplyRun:
    """The reply to `prompt`. Iterate `events` once.

    Args:
        think: the template's switch for reasoning; None: unset.
        undo: the history to return to if the reply is stopped before its first token; None: never.
        keeps_message: called in that case; true keeps the message in the history, as a crash would.
    """

    def __init__(
        self,
        history: History,
        generation: Generation,
        prompt: PromptState,
        think: bool | None,
        undo: HistorySnapshot | None,
        keeps_message: Callable[[], bool],
    ) -> None:
        self._history, self._conversation, self._prompts = history, history.conversation, history.prompts
        self._generation, self._prompt, self._think = generation, prompt, think
        self._undo, self._keeps_message = undo, keeps_message
        self._begun = generation.text, generation.thinking  # of a reply to continue, or the caller's
        self.stats = TurnStats()

    def events(self) -> Iterator[TurnEvent]:
        """The generation's events, notices about saving, and a TurnFinished at the end."""
        generation = self._generation
        restored = self._conversation.restore_rows_for(generation.cache, generation.ids)
        notice, undo = None, self._undo
        try:
            yield from self._generate(restored)
        except Exception:
            undo = None  # the message stays, and the caller sees the error
            raise
        finally:
            if undo is None or not self._is_unanswered:
                undo = None
                notice = self._finish()
            else:
                self.stats = generation.stats
                if self._keeps_message():
                    self._history.prompt_state, undo = self._prompt, None
                else:
                    self._history.return_to(undo)
        if saving := self._conversation.pop_notice():
            yield saving
        if undo is not None:
            yield TurnFinished(FinishReason.STOPPED, "", self.stats, unanswered=True, returned=undo.returned)
            return
        if notice:
            yield KVNotSaved(notice)
        if (no_answer := self._no_answer()) is not None:
            yield no_answer
        yield TurnFinished(
            generation.reason,
            generation.text,
            self.stats,
            generation.thinking,
            self._can_be_quiet,
            tool_calls=generation.tool_calls,
            logprobs=tuple(generation.logprobs),
        )

    def _generate(self, restored: Restored | None) -> Iterator[TurnEvent]:
        """The generation's events but the last; a saved chat's open reply is written every few seconds."""
        saved_at, saved_tokens = time.monotonic(), 0
        begun = self._begun[0] if self._undo is not None else ""  # a caller's beginning, which was not shown yet
        for event in self._generation.events():
            if begun and self._generation.generated:
                yield TextDelta(begun, 0)
                begun = ""
            if isinstance(event, TurnFinished):
                return
            if isinstance(event, PrefillProgress) and restored is not None:
                # The last token of a prompt is prefilled even if its row is cached: its logits are needed.
                reused = restored.shared - max(0, restored.tokens - event.cached)
                if reused >= _MIN_REPORTED:
                    yield Notice(f"Reused {reused:,} tokens of an earlier chat with the same prefix.")
                restored = None
            yield event
            if self._conversation.session_id is None or not isinstance(event, TextDelta):
                continue
            grown = event.num_tokens - saved_tokens
            if grown >= _UPDATE_TOKENS or time.monotonic() - saved_at >= _UPDATE_SECONDS:
                self._conversation.write_reply(self._record(TurnState.OPEN, self._generation.stats))
                saved_at, saved_tokens = time.monotonic(), event.num_tokens

    def _finish(self) -> str | None:
        """Record the reply, then save its rows; a notice if they could not be saved."""
        generation, conversation, prompt = self._generation, self._conversation, self._prompt
        ids = (*generation.reply_ids, *generation.generated)
        state = self._prompts.with_reply(prompt, generation.raw, ids)
        if generation.reason == FinishReason.STOP_STRING:  # the ids go beyond the text: tokenize the text next time
            shown = () if self._prompts.has_template else self._prompts.displayed_ids(generation.text, ids, prompt.ids)
            state = PromptState("", prompt.ids + shown) if shown else prompt
        is_stopped = generation.reason == FinishReason.STOPPED
        stats = self.stats = generation.stats  # once, so that a reopened chat shows the same seconds
        conversation.write_reply(self._record(TurnState.STOPPED if is_stopped else TurnState.DONE, stats))
        self._history.prompt_state = state
        if conversation.session_id is None:
            return None
        if stats.prefill_tokens >= _MIN_MEASURED:
            conversation.record_prefill_speed(stats.prefill_tps)
        written, notice = conversation.save_rows(generation.cache, resume_at=self._history.resume_at)
        self.stats = replace(stats, disk_bytes=conversation.disk_bytes(), disk_written_bytes=written)
        return notice

    @property
    def _can_be_quiet(self) -> bool:
        """Whether reasoning could be turned off, and was not."""
        return self._think is not False and self._prompts.has_think_switch

    @property
    def _is_unanswered(self) -> bool:
        """Whether the reply was stopped before it had any text, reasoning or ids."""
        generation = self._generation
        is_empty = (generation.text, generation.thinking) == self._begun and not generation.tool_calls
        return generation.reason == FinishReason.STOPPED and is_empty

    def _no_answer(self) -> NoAnswer | None:
        """A notice for a reply without text, unless it was stopped."""
        generation = self._generation
        if generation.text or generation.tool_calls or generation.reason == FinishReason.STOPPED:
            return None
        num_tokens, thinking = len(generation.generated), bool(generation.thinking)
        quiet = "think=False" if self._can_be_quiet else ""
        text = no_answer_text(num_tokens, generation.reason, thinking, "max_tokens", quiet)
        return NoAnswer(text, num_tokens, generation.reason, thinking, self._can_be_quiet)

    def _record(self, state: TurnState, stats: TurnStats) -> TurnRecord:
        generation, model = self._generation, self._conversation.model
        ids, figures = (*generation.reply_ids, *generation.generated), asdict(stats)
        if state == TurnState.OPEN:
            figures["finish_reason"] = FinishReason.STOPPED  # right if nothing is written after this
        params = asdict(generation.params) | ({} if self._think is None else {"think": self._think})
        if model is not None:
            params |= {"model": model, "model_name": self._conversation.model_name}
        calls = generation.tool_calls
        return TurnRecord("assistant", generation.text, ids, None, generation.thinking, state, params, figures, calls)
