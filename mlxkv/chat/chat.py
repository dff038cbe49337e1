"""Chat: messages in, events out: one turn after another on one KV cache.

Owns the cache and the settings of the next turn. History owns the messages and goes back in them, TurnEvents runs a
turn, ChatSaving begins the session. Going back never destroys: a saved chat continues in a fork. On the MLX thread,
except `cancel`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, Self, Unpack

from mlxkv import arguments
from mlxkv.arguments import optional, public, shown, text
from mlxkv.cache import row_copies
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.completion import Completion
from mlxkv.chat.conversation import Conversation, title_of
from mlxkv.chat.history import History, spans
from mlxkv.chat.prompts import clock
from mlxkv.chat.prompts.messages import added
from mlxkv.chat.prompts.prefix import ChatPrefix
from mlxkv.chat.reply import ReplyOptions, prefill_chat
from mlxkv.chat.reply_gate import ReplyGate
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.chat.saving import ChatSaving, Saved
from mlxkv.chat.tools import Tool
from mlxkv.chat.turn_events import TurnEvents
from mlxkv.errors import (
    ConfigError,
    ModelError,
    PromptError,
    StoreError,
)
from mlxkv.events import Branch, Message, Notice, PrefillProgress, Sibling, ToolCall, TurnEvent, TurnFinished
from mlxkv.inference.hooks import HOOKS
from mlxkv.inference.sampling import SAMPLING, SamplingParams
from mlxkv.inference.sampling_types import Sampling
from mlxkv.settings.setting_sources import ChatSettings
from mlxkv.stats import TurnStats, bytes_text, plural
from mlxkv.store.kv.state_saves import Occasion
from mlxkv.store.records import Kind, Restored, SessionRecord, TurnRecord, TurnState
from mlxkv.system.inspection import copies, hides, twin
from mlxkv.system.thread_owner import Owner
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import common_prefix

_STARTED, _TEXT = optional(arguments.number), optional(text)


@hides(
    "abridge", "own_settings", "add_turn", "begin_with", "load", "num_to_read", "close_with_model", "record_as_run",
    "suggest_title", "stats_of_turns",
)  # fmt: skip
@copies("make a second one with `chat.fork()`, or save it and continue it elsewhere with `model.resume(id)`.")
class Chat:
    """A conversation with a model. Made by `Model.chat` and `Model.resume`.

    While a reply is being generated, every method that would change the chat raises ConfigError, except `cancel` and
    `close`.

    Attributes:
        cache: the PromptCache that holds its tokens.
        stats: the figures of the last turn, a TurnStats.
        restored: what `Model.resume` loaded from disk, a Restored; None in a new chat.
    """

    def __init__(
        self,
        runtime: ModelRuntime,
        *,
        system: str | None = None,
        cache: CacheConfig | PromptCache | None = None,
        params: SamplingParams | None = None,
        autosave: bool = False,
        think: bool | None = None,
        began: datetime | None = None,
        tools: Sequence[Tool] = (),
    ) -> None:
        """`began`: the time that the chat template prints; None: now, or the prompt cache's."""
        self._runtime, self._params, self._saving = runtime, params or SamplingParams(), ChatSaving(autosave)
        self._owner, self._keeps_message = Owner(), False  # see `cancel`
        self._gate = ReplyGate(self._owner)
        self.thinking = think
        self.stats = TurnStats()
        self._stats_so_far: Callable[[], TurnStats] | None = None  # of the reply in progress
        self.restored: Restored | None = None  # the rows restored from disk when the chat was resumed
        self._notices: list[Notice] = []  # of messages that were added since the last reply
        system = well_formed(system) if system else None
        prompts = runtime.prompts.with_tools(tools)
        if tools and isinstance(cache, PromptCache):
            raise ConfigError("A chat from a prompt cache has no tools: they belong into its prompt; leave one out.")
        if isinstance(cache, PromptCache):
            runtime.check_cache(cache)
            prefix = ChatPrefix.of_cache(cache, system, runtime.prompts)
        else:
            prefix = ChatPrefix(system, began=began or clock.now())
        self._history = History(Conversation(runtime), prefix, prompts)
        self.cache = cache if isinstance(cache, PromptCache) else self._new_cache(cache or CacheConfig())
        runtime.chats.add(self)

    def __repr__(self) -> str:
        facts = plural(self.num_messages, "message"), plural(len(self._conversation.log), "token")
        title = f" {shown(self.title)}" if self.title else ""
        return f"<Chat{title} {', '.join([*facts, bytes_text(self.cache.nbytes)])}>"

    @property
    def system(self) -> str | None:
        """The system prompt. A new one counts from the next turn on; a saved chat with messages continues in a fork."""
        return self._history.prefix.system

    @system.setter
    def system(self, text: str | None) -> None:
        self._owner.check()
        new = _TEXT("system", text)
        new = well_formed(new) if new else None
        self._gate.check_idle()
        self._conversation.check_writable()
        if self._history.prefix.prompt_state.ids:
            raise ConfigError("The system prompt of a chat from a prompt cache cannot change; prefill another.")
        if new != self.system:
            self._change_system(new)

    def _change_system(self, system: str | None) -> None:
        old, old_cache = self._history, self.cache
        new, rows = old.with_system(system), None
        config, geometry = replace(old_cache.plan.resolved, sinks="system"), old_cache.plan.geometry
        window = geometry.window if geometry is not None else 0
        pins = [config.geometry(window, history.num_system_tokens) for history in (old, new) if window]
        if pins and geometry == pins[0] != pins[1]:  # it pins the system prompt
            rows = row_copies.export(old_cache)
            self.cache = self._runtime.new_cache(config, new.prompts, system)
        self._history = new
        try:
            if old.conversation.session_id is not None:
                self._saving.fork_from(old.conversation, self._saved)
        except BaseException:
            self._history, self.cache = old, old_cache
            raise
        del old_cache  # before there are buffers of both
        if rows is not None:
            row_copies.restore(self.cache, rows)

    @property
    def own_settings(self) -> ChatSettings:
        """What a front end's user chose for this chat alone. It is stored with the chat, and applied by `Model.resume`;
        the front ends apply it themselves."""
        return self._saving.own

    @own_settings.setter
    def own_settings(self, own: ChatSettings) -> None:
        self._owner.check()
        self._saving.own = own
        self._conversation.set_settings(own)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that the model may call."""
        return self._history.prompts.tools

    @property
    def num_system_tokens(self) -> int:
        """Number of tokens before the first message, which are the system prompt and what the template adds there."""
        return self._history.num_system_tokens

    @property
    def has_own_system_prompt(self) -> bool:
        """Whether the chat template begins with a system prompt of its own, in a chat without another one."""
        return self._history.has_own_system_prompt

    @property
    def thinking(self) -> bool | None:
        """Whether the model should reason, from the next turn on; None leaves it to the model."""
        return self._thinking

    @thinking.setter
    def thinking(self, think: bool | None) -> None:
        self._thinking = optional(arguments.flag)("thinking", think)

    @property
    def think_notice(self) -> str:
        """A sentence if the model's template has no switch for `thinking`, else ""; also a Notice of the next turn."""
        return self._history.prompts.think_notice(self.thinking)

    # -- turns -------------------------------------------------------------------------------------------------------

    @public(*SAMPLING, *HOOKS, text=_TEXT, begin=_TEXT, started=_STARTED, whole=arguments.flag)
    def ask(
        self,
        text: str | None = None,
        *,
        begin: str | None = None,
        started: float | None = None,
        whole: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """`send` the text, or `reply` without one, and return the whole reply.

        Arguments and errors are those of `send` and `reply`.
        """
        if text is None:
            events = self.reply(begin=begin, started=started, **sampling)
        else:
            events = self.send(text, begin=begin, started=started, whole=whole, **sampling)
        for event in events:
            if isinstance(event, TurnFinished):
                ids = () if event.unanswered else self.turns[-1].ids
                return Completion(event.text, ids, event.stats, event.thinking, event.tool_calls)
        raise AssertionError("a turn without an end")

    @public(*SAMPLING, *HOOKS, text=text, begin=_TEXT, started=_STARTED, whole=arguments.flag)
    def send(
        self,
        text: str,
        *,
        begin: str | None = None,
        started: float | None = None,
        whole: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Generator[TurnEvent]:
        """Send `text` and iterate the reply: PrefillProgress, TextDelta, Notice and, at the end, one TurnFinished.

        In a saved chat, the message is on disk before anything is generated. Closing the iterator early is like
        `cancel`.

        Args:
            text: the message; whatever it spells is text, never a control token.
            begin: the reply begins with this text, and has no reasoning.
            started: when the user asked, by `time.perf_counter()`, so that the time to the first token counts from
                there; None: now.
            whole: refuse a message that the window would hold only partly.
            sampling: SamplingParams fields for this turn, the chat's if left out; and `processors`, `sampler` and
                `schema`, as for `Model.generate`.

        Raises:
            PromptError: `text` is empty.
            MessageTooLongError: see `whole`; the chat is unchanged.
            ConfigError: no such sampling parameter.
            StoreError: the turn cannot be saved.
            SessionLockedError: the chat is read-only.
            CacheError: the layers of `cache` were used outside this chat.
            MismatchError: it is another model's.
        """
        text = _checked("message", text)
        self._conversation.check_writable()
        options = self._options(sampling, started, begin)
        return self._start(options, lambda turn: turn.of_message(text, whole=whole))

    @public(*SAMPLING, *HOOKS, begin=_TEXT, started=_STARTED)
    def reply(
        self, *, begin: str | None = None, started: float | None = None, **sampling: Unpack[Sampling]
    ) -> Generator[TurnEvent]:
        """Reply to the messages as they are, without a new one; events as of `send`.

        The last message must be the user's or the result of a tool.

        Args:
            begin: the reply begins with this text, and has no reasoning.
            started: as for `send`.
            sampling: SamplingParams fields for this reply.

        Raises:
            PromptError: there is nothing to reply to, or a tool call has no result; from the first event.
            SessionLockedError: the chat is read-only.
        """
        self._conversation.check_writable()
        options = self._options(sampling, started, begin)
        return self._start(options, TurnEvents.of_reply)

    @public(role=text, text=text, tool_call_id=_TEXT)
    def add(self, role: str, text: str, *, tool_call_id: str | None = None) -> None:
        """Add a message without generating a reply: of the role "user", "assistant" (as if the model had written it) or
        "tool", with the result of a tool call.

        Args:
            role: see above.
            text: the message.
            tool_call_id: which call it answers; None: the first one without a result.

        Raises:
            PromptError: another role, an empty text, or a result that no call waits for.
            ModelError: the chat template refuses such a message there.
            StoreError: it cannot be saved.
            SessionLockedError: the chat is read-only.
        """
        self._gate.check_idle()
        self._conversation.check_writable()
        self.add_turn(added(role, text, tool_call_id, self.turns))

    def add_turn(self, turn: TurnRecord) -> None:
        """`add` a checked message; see `messages.checked`."""
        undo = self._history.snapshot()
        try:
            self._runtime.check_cache(self.cache)
            self._notices += self._history.add(turn, self.cache, self.thinking, self._begin_session)
        except BaseException:
            with suppress(StoreError):  # report the first error, not this one
                self._history.return_to(undo)
            raise

    def begin_with(self, turns: Sequence[TurnRecord], first: int) -> None:
        """`add_turn` each of the messages that a new chat begins with. `first`: the number of the first, for errors."""
        autosave, self._saving.autosave = self._saving.autosave, False  # nothing is saved if one of them is refused
        for i, turn in enumerate(turns, first):
            try:
                self.add_turn(turn)
            except (PromptError, ModelError) as error:
                error.args = (f"Message {i}, of the role {turn.role}, does not fit there: {error}",)
                raise
        self._saving.autosave = autosave
        if turns and (notice := self._begin_session(title_of(turns[0].text))):
            self._notices.append(notice)

    @public(call=arguments.instance(ToolCall))
    def call_tool(self, call: ToolCall) -> str:
        """Call the function that a reply calls; its result as text, for ``add("tool", ...)``: JSON unless it is text.

        Calls of a tool that does not exist, or with arguments that do not fit it, are mistakes of the model: the result
        then says so, in a sentence that begins with "Error:". What the function itself raises is raised.

        Raises:
            ConfigError: the tool is a JSON schema without a function.
        """
        if (tool := next((tool for tool in self.tools if tool.name == call.name), None)) is not None:
            return tool.run(call.arguments)
        return f"Error: there is no tool {call.name!r}; there are {', '.join(tool.name for tool in self.tools)}."

    @public(*SAMPLING, *HOOKS, started=_STARTED)
    def continue_reply(self, *, started: float | None = None, **sampling: Unpack[Sampling]) -> Generator[TurnEvent]:
        """Continue the last reply where it was stopped or cut at `max_tokens`; events as of `send`.

        TextDelta contains only new text, TurnFinished the whole reply. Only the last token is prefilled again, for its
        logits.

        Args:
            started: as for `send`.
            sampling: SamplingParams fields for this reply.

        Raises:
            PromptError: there is no such reply, or it is complete.
            SessionLockedError: the chat is read-only.
        """
        self._gate.check_idle()
        self._conversation.check_writable()
        self._history.continuable_reply(self.cache.plan.learned)
        options = self._options(sampling, started)
        return self._start(options, TurnEvents.of_rest)

    def cancel(self, *, keep_message: bool = False) -> None:
        """Stop the reply being iterated, or else the newest, after its current token or prefill chunk; from any thread.

        The text generated so far is kept. If there is none, the message is removed from the chat
        (`TurnFinished.returned`), and a retry or an edit is undone; prefilled tokens stay in the cache. Replies that
        begin later are not stopped.

        Args:
            keep_message: keep a message without a reply too: for a process that is about to end.
        """
        self._keeps_message = keep_message
        self._gate.cancel()

    def answer_now(self) -> None:
        """End the reasoning of the reply being iterated, after its current token: the answer follows; from any thread.

        Without effect while no reasoning runs. `TurnStats.reasoning_cut_at` says after how many tokens.
        """
        self._gate.asked.set()

    @public(*SAMPLING, *HOOKS, text=text)
    def aside(self, text: str, **sampling: Unpack[Sampling]) -> Generator[TurnEvent]:
        """Ask a question that is not recorded in the chat; events as of `send`.

        The next message continues without it.

        Raises:
            PromptError: `text` is empty.
            ConfigError: no such sampling parameter.
        """
        text, options = _checked("question", text), self._options(sampling)
        return self._start(options, lambda turn: turn.of_aside(text))

    @public(text=text)
    def num_to_read(self, text: str) -> int:
        """The number of tokens that `aside` would prefill: the question, and any of the chat that the cache lacks."""
        ids = self._history.aside_prompt(text, self.thinking, self.cache.log).ids
        return len(ids) - self.cache.rewind_target(min(common_prefix(self.cache.log, ids), len(ids) - 1))

    @public()
    def read(self) -> Generator[PrefillProgress]:
        """Prefill the tokens of the chat that the cache lacks, before the next message. `cancel` stops it.

        Raises:
            OutOfMemoryError: it does not fit; the next message tries again.
        """
        return self._gate.start(lambda cancelled: prefill_chat(self._runtime, self._history, self.cache, cancelled))

    @public()
    def forget(self) -> None:
        """Free the cache's memory; the next message prefills the whole chat, or restores it from disk."""
        self._gate.check_idle()
        self.cache = self._new_cache(self.cache.plan.resolved)

    # -- going back --------------------------------------------------------------------------------------------------

    @public()
    def undo(self) -> str:
        """Remove the last turn and return the user's text.

        Raises:
            PromptError: the chat is empty.
        """
        return self.rewind(self._history.last_user())

    @public(turn=arguments.whole)
    def rewind(self, turn: int) -> str:
        """Remove message number `turn` (0 is the first), the user's, and all later ones; returns its text.

        Raises:
            ConfigError: there is no such message, or it is not the user's.
        """
        self._gate.check_idle()
        history = self._history
        history.check_user(turn)
        text, is_only = history.user_text(turn), self._saving.autosave and history.is_only_message(turn)
        history.remove_from(turn)
        if is_only:
            history.return_to(history.empty())
        return text

    def question(self, turn: int | None = None) -> int:
        """The number of the user's message that message number `turn` is, or replies to; None: the last one."""
        return self._history.question(turn)

    @public(*SAMPLING, *HOOKS, turn=optional(arguments.whole), started=_STARTED)
    def retry(
        self, turn: int | None = None, *, started: float | None = None, **sampling: Unpack[Sampling]
    ) -> Generator[TurnEvent]:
        """Generate the last reply again, or that to message number `turn`, dropping later ones; events as of `send`.

        A reply to the results of tools is generated from these; the tools are not called again. The chat changes at the
        first event. The old reply stays in the session that this one was forked from.

        Args:
            turn: a message number, that of a reply or of the user's message; None: the last one.
            started: as for `send`.
            sampling: SamplingParams fields for this reply.

        Raises:
            PromptError: the chat is empty.
            ConfigError: there is no such message.
        """
        options, last = self._options(sampling, started), len(self.turns) - 1 if turn is None else turn
        if self._history.follows_results(last):
            was = self.turns[last:]
            return self._start(options, lambda turn: turn.of_other_reply(last, was))
        return self._replace_message(self.question(turn), None, options)

    @public(*SAMPLING, *HOOKS, turn=arguments.whole, text=text, started=_STARTED, whole=arguments.flag)
    def edit(
        self, turn: int, text: str, *, started: float | None = None, whole: bool = False, **sampling: Unpack[Sampling]
    ) -> Generator[TurnEvent]:
        """Send `text` instead of message number `turn` (0 is the first), which must be the user's; events as of `send`.

        The chat changes at the first event.

        Args:
            turn: the number of the user's message.
            text: the new message.
            started: as for `send`.
            whole: as for `send`.
            sampling: SamplingParams fields for this reply.

        Raises:
            ConfigError: there is no such message, or it is not the user's.
            PromptError: as `send`.
            MessageTooLongError: as `send`.
        """
        text = _checked("message", text)
        self._history.check_user(turn)
        return self._replace_message(turn, text, self._options(sampling, started), whole)

    def _replace_message(
        self, turn: int, text: str | None, options: ReplyOptions, whole: bool = False
    ) -> Generator[TurnEvent]:
        """Send `text` (None: the same text) instead of message number `turn`."""
        was, autosaved = self.turns[turn], self._saving.autosave
        return self._start(
            options, lambda events: events.of_replacement(turn, was, text, autosaved=autosaved, whole=whole)
        )

    # -- branches ----------------------------------------------------------------------------------------------------

    @public(turn=optional(arguments.whole))
    def fork(self, turn: int | None = None) -> Chat:
        """A second chat with the same messages; cache buffers and saved rows are shared until they differ.

        Args:
            turn: a message number: the second chat ends before it if it is the user's, after it if it is a reply.

        Raises:
            ConfigError: there is no such message.
        """
        self._gate.check_idle()
        turns = self.turns
        if turn is not None and turn not in range(len(turns)):
            raise ConfigError(f"There is no message {turn!r} to fork at; this chat has {len(turns)}.")
        fork, kept = twin(self), len(turns) if turn is None else turn + (turns[turn].role != "user")
        fork._gate, fork._history, fork.cache = ReplyGate(self._owner), self._history.fork(kept), self.cache.fork()
        fork._notices, fork._saving = [], replace(self._saving)
        self._runtime.chats.add(fork)
        return fork

    @public(num_pinned=arguments.whole, title=optional(text))
    def abridge(self, turns: Sequence[TurnRecord], *, num_pinned: int = 0, title: str | None = None) -> Self:
        """A new chat with only `turns`, this one's system prompt and an empty cache (see `prefill`).

        If this chat is saved, so is the new one, as a fork of it before its first message.

        Args:
            num_pinned: this many of `turns` are never evicted, if they take no more than a quarter of the window.

        Raises:
            StoreError: it cannot be saved.
            OutOfMemoryError: its cache would not fit.
        """
        self._gate.check_idle()
        turns, state = self._history.retokenize(turns)
        config, pinned = self.cache.plan.resolved, spans(turns)[num_pinned - 1][1] if num_pinned else 0
        if config.window is None or pinned > config.window // 4:
            pinned = 0
        twin = type(self)(
            self._runtime,
            system=self.system,
            cache=replace(config, sinks=pinned) if pinned else config,
            params=self._params,
            autosave=self._saving.autosave,
            think=self.thinking,
            began=self._history.prefix.began,
            tools=self.tools,
        )
        twin._saving.own = self._saving.own
        twin._history.conversation = self._conversation.with_turns(turns)
        twin._history.prompt_state = state
        if self.session_id is not None:
            twin._saving.begin(twin._saved, title, parent=self.session_id, pinned=pinned)
        return twin

    @public(turn=arguments.whole)
    def siblings(self, turn: int) -> tuple[Sibling, ...]:
        """The versions of message number `turn`, oldest first; () while nothing is saved."""
        found = self._runtime.store.siblings(self.session_id) if self.session_id is not None else ()
        return found[turn] if turn in range(len(found)) else ()

    @public()
    def tree(self) -> tuple[Branch, ...]:
        """This chat and all it was forked from or into, each before its forks; () while nothing is saved."""
        return self._runtime.store.tree(self.session_id) if self.session_id is not None else ()

    # -- sessions ----------------------------------------------------------------------------------------------------

    @property
    def _conversation(self) -> Conversation:
        return self._history.conversation

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, without the system prompt."""
        return self._conversation.messages

    @property
    def num_messages(self) -> int:
        """Number of messages, the user's and the model's."""
        return len(self.turns)

    @property
    def turns(self) -> tuple[TurnRecord, ...]:
        """All messages with their token ids; a message's are `len(ids)` of `log`, from its `start` on."""
        return self._conversation.turns

    @property
    def stats_of_turns(self) -> list[TurnStats]:
        """The figures of all replies, and of the one in progress so far."""
        so_far, is_written = self._stats_so_far, bool(self.turns) and self.turns[-1].state == TurnState.OPEN
        messages = self.messages[:-1] if so_far is not None and is_written else self.messages
        return [m.stats for m in messages if m.stats is not None] + ([so_far()] if so_far is not None else [])

    @property
    def log(self) -> tuple[int, ...]:
        """Token ids of all messages, as the model was given them."""
        return tuple(self._conversation.log)

    @property
    def session_id(self) -> str | None:
        """None while this chat is not saved."""
        return self._conversation.session_id

    @property
    def title(self) -> str:
        """The title that the chat is listed under, or "" if it has none."""
        return self._conversation.title

    @property
    def is_behind(self) -> bool:
        """Whether the last messages are in memory alone because the disk is full; they are saved once it has space."""
        return self._conversation.unsaved.is_behind

    @property
    def read_only(self) -> str | None:
        """A sentence naming the other process that has the session open; then only forks can continue. Else None."""
        return self._conversation.read_only

    @public(title=optional(text))
    def save(self, title: str | None = None) -> str:
        """Save this chat, under a title if one is given, and every later turn; returns the session's id.

        Raises:
            StoreError: it cannot be saved.
            CacheError: it continues an imported cache, or the layers of its cache were used outside this chat.
        """
        self._gate.check_idle()
        self.cache.check_log()
        title = well_formed(title) if title else None
        session_id = self._saving.save(self._saved, None if self.session_id is not None else title)
        if title:
            self._conversation.rename(title)
        return session_id

    @public(record=arguments.instance(SessionRecord, advice="`Model.resume` takes an id or a title"))
    def load(self, record: SessionRecord) -> None:
        """Load a stored session: its turns, and as many of its rows as fit; see `read_only`."""
        self._gate.check_idle()
        self._history.load(record)
        self._saving.own, _ = ChatSettings.read(record.settings, record.preset)
        if not self.read_only:
            self.restored = self._conversation.restore_rows(self.cache)

    def suggest_title(self, title: str) -> bool:
        """Change the saved chat's title unless the user gave it one; whether that was done."""
        return self._conversation.suggest_title(title)

    def record_as_run(self, *, is_fork: bool = False) -> None:
        """Record the chat as a run of print mode, if it is a new one (`is_fork`: this fork is)."""
        self._conversation.kind = Kind.RUN
        if is_fork and self.session_id is not None:
            self._runtime.store.sessions.set_kind(self.session_id, Kind.RUN)

    @public()
    def detach(self) -> None:
        """Continue without the session: later turns are not saved."""
        self._gate.check_idle()
        self._saving.autosave = False
        self._conversation.detach()

    @public()
    def checkpoint(self) -> None:
        """Save the state of recurrent layers, if a kill of this process would cost a prefill of 256 tokens or more.

        The window does so after a minute without a command. Rows are saved after every turn anyway.
        """
        self._gate.check_idle()
        self._saving.save_states(self._saved, Occasion.PAUSE)

    @public()
    def close(self) -> str | None:
        """End the reply, save all rows and unlock the session; one sentence if something could not be saved."""
        self._gate.close()
        notice = self._saving.save_states(self._saved, Occasion.CLOSING)
        return self._conversation.close() or notice

    def close_with_model(self) -> str | None:
        """`close`, and drop the cache, unless the caller has it too."""
        try:
            return self.close()
        finally:
            self.cache = PromptCache(self.cache.plan, self._runtime.model)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------------------

    def _options(
        self, sampling: Mapping[str, Any], started: float | None = None, begin: str | None = None
    ) -> ReplyOptions:
        """This chat's sampling parameters, and those given for one turn."""
        given = {name: value for name, value in sampling.items() if value is not None}
        hooks = self._runtime.take_hooks(given)
        params = SamplingParams.for_model({}, **{**asdict(self._params), **given})
        self._runtime.check_sampling(params)
        started = time.perf_counter() if started is None else started
        return ReplyOptions(params, started, begin=well_formed(begin or ""), hooks=hooks)

    def _start(
        self, options: ReplyOptions, events: Callable[[TurnEvents], Iterator[TurnEvent]]
    ) -> Generator[TurnEvent]:
        """The `events` of a turn that begins with the first of them."""

        def begin(cancelled: Callable[[], bool]) -> Iterator[TurnEvent]:
            return events(
                TurnEvents(
                    self._runtime,
                    self._history,
                    self.cache,
                    self.thinking,
                    replace(options, cancelled=cancelled, asked=self._gate.asked),
                    self._notices,
                    self._begin_session,
                    lambda: self._keeps_message,
                    self._begin_reply,
                    self._record,
                )
            )

        return self._gate.start(begin)

    @property
    def _saved(self) -> Saved:
        return Saved(self._history, self.cache, self._params, self.thinking)

    def _begin_session(self, title: str) -> Notice | None:
        return self._saving.save_new(self._saved, title)

    def _begin_reply(self, stats: Callable[[], TurnStats]) -> None:
        self._stats_so_far = stats

    def _record(self, stats: TurnStats) -> None:
        self.stats, self._stats_so_far = stats, None

    def _new_cache(self, config: CacheConfig) -> PromptCache:
        return self._runtime.new_cache(config, self._history.prompts, self.system)


def _checked(what: str, text: str) -> str:
    if not text.strip():
        raise PromptError(f"The {what} is empty; write something first.")
    return well_formed(text)
