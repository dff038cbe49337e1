"""Chat: one turn after the other on one KV cache: messages to prompt, prompt to reply.

Owns the cache and what has been fed; what was said and where it is saved belongs to Conversation. Going back (undo,
retry, edit) never destroys: a saved chat goes on in a fork. On the MLX thread, but for `cancel`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Self

from mlxkv import arguments
from mlxkv.arguments import optional, public, text
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.mlx_lm import ForeignCache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat import clock
from mlxkv.chat.beside import Beside
from mlxkv.chat.conversation import Conversation, Snapshot, title_of
from mlxkv.chat.prompt import PromptState
from mlxkv.chat.prompt_start import Start, start_from
from mlxkv.chat.replay import Replay
from mlxkv.chat.reply import ChatBackend, ReplyRun
from mlxkv.chat.runs import ReplyGate
from mlxkv.errors import (
    CacheError,
    ConfigError,
    DiskError,
    MessageTooLongError,
    PromptError,
    ReadOnlyError,
    StoreError,
)
from mlxkv.events import Branch, KVNotSaved, Message, Notice, NotSaved, Sibling, TurnEvent, TurnFinished
from mlxkv.inference.generation import check_size
from mlxkv.inference.sampling import SAMPLING, SamplingParams, set_random_state
from mlxkv.memory.overflow import overflow_of
from mlxkv.stats import TurnStats, evicted_text
from mlxkv.store import Restored, SessionRecord, TurnRecord
from mlxkv.system.thread_owner import Owner
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import common_prefix


@dataclass(frozen=True)
class Before:
    """What a chat goes back to where nothing comes of a turn: `fed` is what the next prompt continues."""

    mark: Snapshot
    fed: PromptState


@dataclass(frozen=True)
class Undo:
    """`returned`: see TurnFinished."""

    before: Before
    returned: str


_STARTED = optional(arguments.number)
_NOTHING = Snapshot(None, "", (), None)  # a chat in which nothing was said yet


class Chat(Beside):
    """A conversation with a model. Made by `Model.chat` and `Model.resume`.

    Args:
        autosave: make a session at the first turn; else only `save` does.
        began: the time that the chat's template prints; None is now, or the prompt cache's.
        think: whether the model shall reason before it answers, where its template knows of that; None leaves it to
            the model. `thinking` changes it from the next turn on.
    """

    def __init__(
        self,
        backend: ChatBackend,
        *,
        system: str | None = None,
        cache: CacheConfig | PromptCache | None = None,
        params: SamplingParams | None = None,
        autosave: bool = False,
        think: bool | None = None,
        began: datetime | None = None,
    ) -> None:
        self._params = params or SamplingParams()
        self._autosave = autosave
        self._owner = Owner()
        self._gate = ReplyGate(self._owner)
        self._keeps_message = False  # see `cancel`
        self._conversation = Conversation(backend.store, backend.identity, backend.borrower)
        system = well_formed(system) if system else None
        self._prefix = Start(system, began=began or clock.now())
        if isinstance(cache, PromptCache):
            backend.check_cache(cache)
            self._prefix = start_from(cache, system, backend.prompts)
        self._backend = backend.at(self._prefix.began)
        self._prompt_state = self._prefix.fed  # what the next prompt can go on from
        self.thinking = think
        if not isinstance(cache, PromptCache):
            cache = self._backend.new_cache(cache or CacheConfig(), self.system)
        self.cache: PromptCache = cache
        self.stats = TurnStats()
        self.restored: Restored | None = None  # what came back from disk when the chat was resumed

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self._prefix.system

    @system.setter
    def system(self, text: str | None) -> None:
        raise ConfigError(
            "The system prompt of a chat cannot be changed once it is made; make another with `model.chat(system=...)`."
        )

    @property
    def thinking(self) -> bool | None:
        """Whether the model shall reason, from the next turn on; None leaves it to the model."""
        return self._thinking

    @thinking.setter
    def thinking(self, think: bool | None) -> None:
        self._thinking = optional(arguments.flag)("thinking", think)

    # -- talking -----------------------------------------------------------------------------------------------------

    @public(*SAMPLING, text=text, started=_STARTED, whole=arguments.flag)
    def send(
        self, text: str, *, started: float | None = None, whole: bool = False, **sampling: Any
    ) -> Iterator[TurnEvent]:
        """Say `text`; iterate for PrefillProgress, TextDelta, Notice and one TurnFinished at the end.

        A saved chat has the user's turn on disk before anything is generated. Walking away early keeps what was
        generated, as `cancel` does; before the first token of the reply the message leaves the chat again.

        Args:
            started: `time.perf_counter()` when the user asked, for the time to first token.
            whole: refuse a message of which the window would hold only a part.
            sampling: SamplingParams fields for this turn.

        Raises:
            PromptError: `text` is empty. MessageTooLongError: see `whole`; nothing was said. ConfigError: no such
            sampling parameter, or a reply is still being generated.
            StoreError: the turn cannot be saved. SessionLockedError: the chat is read-only. CacheError: something else
            has fed the layers of `cache`. MismatchError: `cache` was made with another model.
        """
        _check_not_empty(text)
        text = well_formed(text)
        self._conversation.check_writable()
        params, begun = self._sampling(sampling), time.perf_counter() if started is None else started
        return self._gate.start(lambda cancelled: self._turn(text, params, begun, cancelled, whole=whole))

    @public(*SAMPLING, started=_STARTED)
    def continue_reply(self, *, started: float | None = None, **sampling: Any) -> Iterator[TurnEvent]:
        """Let the last reply go on where it was stopped or cut at `max_tokens`; events as of `send`.

        It grows in place: TextDelta brings what is new, TurnFinished the whole text. Nothing is read again but the last
        token, whose logits are wanted.

        Raises:
            PromptError: there is no such reply, or it had come to its end. SessionLockedError: the chat is read-only.
            ConfigError: a reply is still being generated.
        """
        self._gate.check_idle()
        self._conversation.check_writable()
        self._cut_reply()
        params, begun = self._sampling(sampling), time.perf_counter() if started is None else started
        return self._gate.start(lambda cancelled: self._continued(params, begun, cancelled))

    def _cut_reply(self) -> TurnRecord:
        """The last turn, if it is a reply that can be continued."""
        last = self._conversation.turns[-1] if self._conversation.turns else None
        if last is None or last.role != "assistant":
            raise PromptError("There is no reply to continue; write something first.")
        reason = last.stats.get("finish_reason", "stopped")
        if reason not in ("stopped", "length") or not self._prompt_state.ids:
            why = "was made by another model" if not self._prompt_state.ids else "came to its end"
            raise PromptError(f"The last reply {why}: it cannot be continued; retry it, or write something.")
        learned = self.cache.plan.learned
        if learned is not None and len(self._conversation.log) > learned:
            raise PromptError(
                f"The last reply ends where this model's {learned:,} learned positions are used up, so it cannot be "
                "continued; begin a new chat."
            )
        return last

    def cancel(self, *, keep_message: bool = False) -> None:
        """Stop the reply that is iterated, or else will be, after its current token or prefill chunk; from any thread.

        What there is of the reply is kept. If there is nothing of it, the message leaves the chat again
        (`TurnFinished.returned`), and a retry or an edit is undone; what was prefilled stays in the cache until the
        next prompt differs from it. A reply that is asked for later is not stopped.

        Args:
            keep_message: the message stays in the chat though nothing answers it: for a process that is about to end.
        """
        self._keeps_message = keep_message
        self._gate.cancel()

    @property
    def think_notice(self) -> str:
        """Why `thinking` changes nothing with this model: its template has no such switch. "" where it has one. The
        first turn that `thinking` would change brings it as a Notice."""
        return self._backend.prompts.think_notice(self.thinking)

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, without the system prompt."""
        return self._conversation.messages

    @property
    def num_messages(self) -> int:
        return len(self._conversation.turns)

    def _turn(
        self,
        text: str,
        params: SamplingParams,
        started: float,
        cancelled: Callable[[], bool],
        before: Before | None = None,
        *,
        whole: bool = False,
        returned: str | None = None,
    ) -> Iterator[TurnEvent]:
        """`before`: what the chat goes back to if nothing comes of this turn; None: what it is now.

        `returned`: the message that is the user's again then; None: `text`.
        """
        before = before or self._before
        try:
            prompt = yield from self._prompted(text, whole)
        except BaseException:
            with suppress(StoreError):  # what went wrong first is what to tell
                self._go_back(before)
            raise
        undo = Undo(before, text if returned is None else returned)
        yield from self._reply(prompt, TurnRecord("assistant", ""), params, started, cancelled, undo)

    def _prompted(self, text: str, whole: bool) -> Generator[TurnEvent, None, PromptState]:
        """Add the user's message, on disk too; the prompt that it makes."""
        self._conversation.check_writable()
        self._check_cache()
        said = self._conversation
        if not said.turns and not self.cache.log and self.session_id is None:  # made yesterday, begun now
            self._prefix = replace(self._prefix, began=clock.now())
            self._backend = self._backend.at(self._prefix.began)
        message = self._prefix.text + text if not said.turns else text
        if not said.turns:
            yield from (Notice(f"{note[0].upper()}{note[1:]}.") for note in self.cache.plan.notes)
            yield from map(Notice, filter(None, (self.cache.plan.beyond_training,)))
        elif said.turns[-1].role == "user":  # a crash came before any reply: keep the roles alternating
            said.append(TurnRecord("assistant", "", state="stopped"))
        messages = self._replay.messages([*said.turns, TurnRecord("user", message)])
        prompt = self._backend.prompts.prompt(messages, self._prompt_state, self.thinking)
        check_size(prompt.ids)
        self.cache.check_length(len(prompt.ids))
        start = common_prefix(said.log, prompt.ids)
        if whole:
            self._check_whole(message, len(prompt.ids), start)
        if self._autosave and self.session_id is None:
            try:
                self._save(title_of(text))
            except ReadOnlyError as error:
                self._autosave = False
                yield Notice(str(error))
            except DiskError as error:
                said.fall_behind(error)
        is_new = not said.turns or not self._prompt_state.ids
        thought = None if is_new else said.turns[-1].params.get("think")
        said.append(TurnRecord("user", message, tuple(prompt.ids[start:]), start))
        yield from map(Notice, self._backend.prompts.notices(messages, is_new))
        if self.thinking != thought and (notice := self.think_notice):
            yield Notice(notice)
        yield from self._saving_news()
        return prompt

    def _check_whole(self, message: str, num_tokens: int, num_before: int) -> None:
        """Raises MessageTooLongError: the window would evict a part of `message`, which the prompt ends with."""
        plan = self.cache.plan
        if overflow_of(plan, num_tokens, num_before) is None:
            return
        if (
            self._conversation.turns and not self._prompt_state.ids
        ):  # the earlier turns were another model's: this one prefills them all
            num_before = max(num_before, num_tokens - len(self._backend.prompts.encode_text(message)))
        if overflow := overflow_of(plan, num_tokens, num_before):
            raise MessageTooLongError(evicted_text(overflow, "CacheConfig(window={})".format), overflow)

    @property
    def _before(self) -> Before:
        """What a turn that begins now goes back to if nothing comes of it."""
        return Before(self._conversation.mark(), self._prompt_state)

    def _go_back(self, before: Before) -> None:
        self._conversation.return_to(before.mark)
        self._prompt_state = before.fed

    def _continued(self, params: SamplingParams, started: float, cancelled: Callable[[], bool]) -> Iterator[TurnEvent]:
        self._check_cache()
        last, prompt = self._cut_reply(), self._replay.prompt_before_reply()
        self._conversation.reopen_reply()
        yield from self._reply(prompt, last, params, started, cancelled)

    def _check_cache(self) -> None:
        self._backend.check_cache(self.cache)
        self.cache.check_log()

    def _reply(
        self,
        prompt: PromptState,
        before: TurnRecord,
        params: SamplingParams,
        started: float,
        cancelled: Callable[[], bool],
        undo: Undo | None = None,
    ) -> Iterator[TurnEvent]:
        """Generate the reply to `prompt`, of which there is `before` already. `undo`: if nothing comes of it."""
        past = self._replay
        exchange = ReplyRun(
            self._backend,
            self._conversation,
            self.cache,
            prompt,
            before,
            params,
            self.thinking,
            marks=past.marks(prompt, self.thinking) if self.cache.checkpoints.is_needed else (),
            started=started,
            cancelled=cancelled,
        )
        notice = None
        try:
            yield from exchange.events()
        except Exception:
            undo = None  # what went wrong is told, and the message stays
            raise
        finally:
            if undo is None or not exchange.is_unanswered:
                undo = None
                notice = exchange.finish()
                self._prompt_state, self.stats = exchange.fed, exchange.stats
            else:
                self.stats = exchange.turn.stats
                if self._keeps_message:  # as a crash would leave it
                    self._prompt_state, undo = prompt, None
                else:
                    self._go_back(undo.before)
        yield from self._saving_news()
        if undo is not None:
            yield TurnFinished("stopped", "", self.stats, unanswered=True, returned=undo.returned)
            return
        if notice:
            yield KVNotSaved(notice)
        if (no_answer := exchange.no_answer()) is not None:
            yield no_answer
        turn = exchange.turn
        yield TurnFinished(turn.reason, turn.text, self.stats, turn.thinking, exchange.can_be_quiet)

    def _saving_news(self) -> Iterator[Notice]:
        if news := self._conversation.pop_notice():
            yield (NotSaved if self._conversation.is_behind else Notice)(news)

    # -- going back --------------------------------------------------------------------------------------------------

    @public()
    def undo(self) -> str:
        """Take back the last exchange; the user's text of it. A saved chat goes on in a fork.

        Raises:
            PromptError: nothing has been said.
        """
        return self.rewind(self._last_user())

    @public(turn=arguments.whole)
    def rewind(self, turn: int) -> str:
        """Go on before message number `turn` (0 is the first), which must be the user's; its text. See `undo`.

        Raises:
            ConfigError: there is no such message, or it is not the user's; or a reply is still being generated.
        """
        self._gate.check_idle()
        self._check_mine(turn)
        text = self._text_of(turn)
        is_all = self._is_all(turn)
        self._take_back(turn)
        if is_all:
            self._conversation.return_to(_NOTHING)
        return text

    def _is_all(self, turn: int) -> bool:
        """Whether message number `turn` is all there is of a session that was made, and named, for it."""
        said = self._conversation
        is_made_for_it = self._autosave and self.session_id is not None and said.read_only is None
        return is_made_for_it and turn == 0 and len(said.turns) == 1 and said.title == title_of(self._text_of(0))

    def _check_mine(self, turn: int) -> None:
        mine = [i for i, t in enumerate(self._conversation.turns) if t.role == "user"]
        if turn not in mine:
            raise ConfigError(f"Message {turn!r} is not one of yours; yours are {mine}.")

    def _text_of(self, turn: int) -> str:
        """What the user wrote in a message; the first one begins with a prompt cache's text."""
        return self._conversation.turns[turn].text.removeprefix(self._prefix.text if turn == 0 else "")

    def _take_back(self, turn: int) -> None:
        said = self._conversation
        if turn == len(said.turns) - 1 and said.read_only is None:  # nothing has answered it: there is nothing to keep
            said.return_to(replace(said.mark(), turns=said.turns[:turn]))
        else:
            said.branch(turn)
        self._prompt_state = self._replay.fed()  # the cache goes back when the next prompt says how far

    def question(self, turn: int | None = None) -> int:
        """The number of the user's message that message number `turn` is, or is the reply to; None: the last one.

        Raises:
            PromptError: nothing has been said. ConfigError: there is no such message.
        """
        turn = self._last_user() if turn is None else turn
        if turn - 1 in range(len(self._conversation.turns)) and self._conversation.turns[turn - 1].role == "user":
            turn -= 1  # it is the reply
        self._check_mine(turn)
        return turn

    @public(*SAMPLING, turn=optional(arguments.whole), started=_STARTED)
    def retry(self, turn: int | None = None, *, started: float | None = None, **sampling: Any) -> Iterator[TurnEvent]:
        """Generate a reply again: the last one, or message number `turn` (or the reply to it) and forget what followed.

        The chat goes back when the first event is asked for: until then nothing is taken back. The old reply stays in
        the session this one was forked from.

        Raises:
            PromptError: nothing has been said. ConfigError: there is no such message.
        """
        return self._again(self.question(turn), None, started, sampling)

    @public(*SAMPLING, turn=arguments.whole, text=text, started=_STARTED, whole=arguments.flag)
    def edit(
        self, turn: int, text: str, *, started: float | None = None, whole: bool = False, **sampling: Any
    ) -> Iterator[TurnEvent]:
        """Say `text` instead of message number `turn` (0 is the first), which must be the user's, and go on there.

        The chat goes back when the first event is asked for.

        Raises:
            ConfigError: there is no such message, or it is not the user's. PromptError: `text` is empty.
            MessageTooLongError: see `send`; the chat is as it was.
        """
        _check_not_empty(text)
        self._check_mine(turn)
        return self._again(turn, well_formed(text), started, sampling, whole)

    def _again(
        self, turn: int, text: str | None, started: float | None, sampling: Mapping[str, Any], whole: bool = False
    ) -> Iterator[TurnEvent]:
        """Say `text` (None: the same again) instead of message number `turn`."""
        params, begun = self._sampling(sampling), time.perf_counter() if started is None else started
        was = self._conversation.turns[turn]

        def events(cancelled: Callable[[], bool]) -> Iterator[TurnEvent]:
            if self._conversation.turns[turn : turn + 1] != (was,):
                raise ConfigError("The chat has changed since this was asked for; call `retry` or `edit` again.")
            is_unanswered = turn == len(self._conversation.turns) - 1
            asked = self._text_of(turn) if text is None else text
            before = None if is_unanswered else self._before
            if self._is_all(turn):
                before = Before(_NOTHING, self._prefix.fed)
            returned = "" if text is None and not is_unanswered else asked
            self._take_back(turn)
            yield from self._turn(asked, params, begun, cancelled, before, whole=whole, returned=returned)

        return self._gate.start(events)

    @public(turn=optional(arguments.whole))
    def fork(self, turn: int | None = None) -> Chat:
        """A second chat with the same past; cache buffers and saved rows are shared until they differ.

        Args:
            turn: a message number: the second chat ends before it if it is the user's, after it if it is a reply.

        Raises:
            ConfigError: there is no such message, or a reply is still being generated.
        """
        self._gate.check_idle()
        turns = self._conversation.turns
        if turn is not None and turn not in range(len(turns)):
            raise ConfigError(f"Message {turn!r} is not there to fork at; this chat has {len(turns)}.")
        end = len(turns) if turn is None else turn + (turns[turn].role != "user")
        twin = copy.copy(self)
        twin._gate = ReplyGate(self._owner)
        twin._conversation, twin.cache = self._conversation.fork(end), self.cache.fork()
        twin._prompt_state = twin._replay.fed() if end < len(turns) or self.read_only else self._prompt_state
        return twin

    @public(turn=arguments.whole)
    def siblings(self, turn: int) -> tuple[Sibling, ...]:
        """The versions there are of message number `turn`, in the order they were made; () while nothing is saved."""
        found = self._conversation.siblings()
        return found[turn] if turn in range(len(found)) else ()

    @public()
    def tree(self) -> tuple[Branch, ...]:
        """This chat and all it was forked from or into, each before its forks; () while nothing is saved."""
        return self._conversation.tree()

    def _last_user(self) -> int:
        if (last := self._conversation.last("user")) is None:
            raise PromptError("There is nothing to go back to: nothing has been said yet.")
        return last

    # -- sessions ----------------------------------------------------------------------------------------------------

    @property
    def turns(self) -> tuple[TurnRecord, ...]:
        """What was said with its token ids: turn i is `log[start : start + len(ids)]`."""
        return self._conversation.turns

    @property
    def log(self) -> tuple[int, ...]:
        """The ids of all that was said, as the model has been fed them."""
        return tuple(self._conversation.log)

    @property
    def session_id(self) -> str | None:
        """None while this chat is not saved."""
        return self._conversation.session_id

    @property
    def title(self) -> str:
        return self._conversation.title

    @property
    def is_behind(self) -> bool:
        """Whether the disk has refused what was said last: it is in memory alone, and saved once there is room."""
        return self._conversation.is_behind

    @property
    def read_only(self) -> str | None:
        """Which process has the session open, in one sentence: then `fork` and going back lead on. None: it is ours."""
        return self._conversation.read_only

    @public(title=optional(text))
    def save(self, title: str | None = None) -> str:
        """Make this chat a session, or commit and perhaps rename the one it is; later turns commit by themselves.

        Returns the session's id.

        Raises:
            StoreError: it cannot be saved. CacheError: it continues an imported cache, or something else has fed
            the layers of its cache. ConfigError: a reply is still being generated.
        """
        self._gate.check_idle()
        self.cache.check_log()
        return self._save(well_formed(title) if title else None)

    def _save(self, title: str | None) -> str:
        if isinstance(self.cache, ForeignCache):
            raise CacheError("A chat from an imported cache cannot be saved: the ids of its first tokens are unknown.")
        said = self._conversation
        if said.session_id is None:
            self._begin(title)
        elif title:
            said.rename(title)
        if self.cache.log:
            said.save_rows(self.cache, wait=True)
        return str(said.session_id)

    def _begin(self, title: str | None, parent: str | None = None, pinned: int = 0) -> None:
        params: dict[str, Any] = {
            "cache": asdict(self.cache.plan.resolved),
            "sampling": asdict(self._params),
            "think": self.thinking,
        }
        if pinned:
            params["pinned"] = pinned
        self._conversation.begin(title, self.system, params, parent, self._prefix.began)

    @public(record=arguments.instance(SessionRecord, advice="`Model.resume` takes an id or a title"))
    def load(self, record: SessionRecord) -> None:
        """Take over a stored session: its turns, and from disk what fits of its rows; see `read_only`."""
        self._gate.check_idle()
        was_this_models = self._conversation.resume(record)
        # Another model's ids mean nothing to this one's tokenizer: the next prompt is tokenized anew.
        self._prompt_state = self._replay.fed() if was_this_models else PromptState()
        if self.read_only:
            return
        self.restored = self._conversation.restore_rows(self.cache, self._conversation.log)
        if self.restored is not None:
            tokens = self.restored.tokens
            self.restored = replace(self.restored, evicted=self.cache.num_unattended(tokens, tokens))
        if self.restored is not None and self.restored.rng is not None:
            set_random_state(self.restored.rng)  # sampling goes on as if the process had never ended

    @public()
    def detach(self) -> None:
        """Go on without the session: nothing of what follows is saved."""
        self._gate.check_idle()
        self._autosave = False
        self._conversation.detach()

    @public()
    def close(self) -> str | None:
        """Let another process open the session, once its rows are on disk; one sentence if they could not be saved.

        A reply that is still being generated ends here, as if its caller had walked away.
        """
        self._gate.close()
        return self._conversation.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def _replay(self) -> Replay:
        said = self._conversation
        return Replay(self._backend.prompts, self._prefix, said.turns, said.log, said.model)

    def _sampling(self, chosen: Mapping[str, Any]) -> SamplingParams:
        """This chat's parameters, and those given for one turn."""
        given = {name: value for name, value in chosen.items() if value is not None}
        return SamplingParams.for_model({}, **{**asdict(self._params), **given})

    def _another(self, cache: CacheConfig) -> Self:
        return type(self)(
            self._backend,
            system=self.system,
            cache=cache,
            params=self._params,
            autosave=self._autosave,
            think=self.thinking,
            began=self._prefix.began,
        )


def _check_not_empty(text: str) -> None:
    if not text.strip():
        raise PromptError("The message is empty; write something first.")
