"""The messages of the open chat as blocks, notices between them, and the reply in progress. Pure; UI thread.

`chat_state.py` decides which event leads to which call; `tui/markdown/block_renderer.py` draws the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mlxkv.protocol import events as ev
from mlxkv.protocol.status import Unattended
from mlxkv.stats import TurnStats
from mlxkv.text.clean import clean
from mlxkv.tui.state.commands.retry import version_labels
from mlxkv.tui.state.labels import call_lines, eviction_text, nearly_full_text, no_answer, restored_text
from mlxkv.tui.state.transcript.blocks import NO_ANSWER, NO_MESSAGE, Block, Kind
from mlxkv.tui.state.transcript.forgetting import Rule, rule_of
from mlxkv.tui.state.transcript.streaming import StreamingReply


def title_line(title: str) -> str:
    """A title on one line, without control characters."""
    return " ".join(clean(title, joined=True).split())


@dataclass
class TranscriptChange:
    """Steps for a view, in this order: clear, drop the blocks of message `dropped`, append `settled`, show `tail`.

    `answer` is the index in `settled` of the line that answers a command of the user: it must be scrolled into view.
    `keeps_position`: the same chat follows, so a reader who has scrolled up stays there.
    """

    cleared: bool = False
    keeps_position: bool = False
    dropped: int | None = None
    answer: int | None = None
    settled: list[Block] = field(default_factory=list)
    tail: list[Block] = field(default_factory=list)

    def drop(self, message: int) -> None:
        self.settled, self.dropped = [block for block in self.settled if block.message != message], message
        self.answer = None


class TranscriptModel:
    """`reply` is the reply in progress, from when its question is sent; `messages` does not include it yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.title = ""
        self.reply: StreamingReply | None = None
        self.messages: list[ev.Message] = []
        self.versions: list[tuple[ev.Sibling, ...]] = []
        self.is_open = False  # a chat is open
        self.rule: Rule | None = None  # where what the model attends to begins
        self._title_message: int | None = None  # the message that gave the chat its title
        self._change = TranscriptChange()
        self._before_opening: list[Block] = []  # lines to show again once a chat opens
        self._kv_before = self._evicted_before = self._filled_before = 0
        self._last: Kind | None = None  # kind of the last block
        self._notices: list[Block] = []  # since the last reply
        self._lines: list[Block] = []  # since the last reply began, which are shown again when the chat is drawn anew
        self._num_before = 0  # of them: those above the question of the reply in progress

    @property
    def is_empty(self) -> bool:
        return not self.messages

    def take_change(self) -> TranscriptChange:
        """Return the changes since the last call."""
        change, self._change = self._change, TranscriptChange()
        change.tail = self._numbered(self.reply.tail()) if self.reply else []
        return change

    def show_unattended(self, found: Unattended | None) -> None:
        """Place the rule below what the model no longer attends to."""
        self.rule = rule_of(found, self.messages)
        if found is not None and self.reply is None:  # seen already: the next turn need not say so
            self._evicted_before = max(self._evicted_before, found.tokens)

    # -- notices -----------------------------------------------------------------------------------------

    def add_line(self, text: str) -> None:
        """Add a dim line that answers the user."""
        self._add(Block(Kind.META, clean(text, joined=True), tight=self._last is Kind.META))

    def add_notice(self, text: str) -> None:
        """Add a dim line that the user did not ask for; a reader who has scrolled up stays there.

        A notice is shown once per reply, even if a message is stopped and sent again.
        """
        text = clean(text, joined=True)
        if not any(text in notice.text for notice in self._notices):
            self._add(Block(Kind.META, text, tight=self._last is Kind.META), is_answer=False)

    def add_line_after_opening(self, text: str) -> None:
        """Add a line once the next chat has opened, which clears the transcript."""
        self._before_opening.append(Block(Kind.META, clean(text, joined=True)))

    def add_error(self, text: str, *, is_answer: bool = True) -> None:
        self._add(Block(Kind.ERROR, clean(text, joined=True)), is_answer)

    # -- a chat ------------------------------------------------------------------------------------------

    def show_chat(self, event: ev.ChatOpened, keeps_position: bool = False, keeps_notices: bool = False) -> None:
        """Replace everything by the chat that was opened. `keeps_notices`: those since the last reply began stay, below
        it."""
        lines = self._lines if keeps_notices and self.is_open else []
        early, self._before_opening, self.is_open = self._before_opening, [], True
        self._notices = self._lines = [*early, *lines]
        self._num_before = 0
        self._title_message = self.rule = None
        self.title, self.reply, self.messages = title_line(event.title), None, list(event.messages)
        self._kv_before, self._evicted_before = 0, event.evicted_tokens
        self._filled_before = next((m.stats.cache_tokens for m in reversed(event.messages) if m.stats), 0)
        self._change = TranscriptChange(cleared=True, keeps_position=keeps_position, settled=early)
        for number, message in enumerate(event.messages):
            kind = {"user": Kind.USER, "tool": Kind.META}.get(message.role, Kind.REPLY)
            if thought := clean(message.thinking, joined=True).strip():
                tokens = f"thought · ~{len(thought) // 4:,} tok"  # its duration is not saved
                self._append([Block(Kind.THOUGHT, tokens, detail=thought, message=number)])
            sign = "← " if message.role == "tool" else ""
            self._append([Block(kind, sign + clean(message.text, joined=True), message=number)])
            self._append([Block(Kind.META, line, message=number) for line in call_lines(message.tool_calls)])
            if kind is Kind.REPLY:
                self._add_no_answer(message)
            if message.stats is not None:
                self._add_stats(message.stats, number)
        if event.messages and event.messages[-1].role == "user":
            self._append([Block(Kind.META, "▲ not answered · /retry asks again")])
        if event.restored_tokens:
            self._kv_before = event.restored_bytes
            text = restored_text(event.restored_tokens, event.restored_bytes, event.restore_s, event.left_tokens)
            self._append([Block(Kind.META, text)])
        if lines:
            self._append([replace(lines[0], tight=self._last is Kind.META), *lines[1:]])

    # -- a turn ------------------------------------------------------------------------------------------

    def begin_turn(self, text: str) -> None:
        """Add the user's message; without a text the last reply is continued."""
        if text:
            if self.messages and self.messages[-1].role == "user":  # as in the engine, so that numbers agree
                self.messages.append(ev.Message("assistant", ""))
            self._append([Block(Kind.USER, clean(text, joined=True), message=len(self.messages))])
            if not self.title:
                self.title = title_line(text.lstrip()[:1000].strip().split("\n")[0][:60])
                self._title_message = len(self.messages)
            self.messages.append(ev.Message("user", text))
        self.reply, self._num_before = StreamingReply(self._clock()), len(self._lines)

    def remove_last_message(self) -> None:
        """Remove the last user message, which got no reply."""
        self.reply, number = None, len(self.messages) - 1
        del self.messages[-1]
        self._change.drop(number)
        if self._title_message == number:
            self.title = ""

    def update_reply(self, event: ev.TextDelta | ev.PrefillProgress) -> None:
        reply = self.reply = self.reply or StreamingReply(self._clock())
        if isinstance(event, ev.PrefillProgress):
            reply.prefill = event
            return
        if event.restarts:
            self._change.drop(len(self.messages))
        self._append(self._numbered(reply.add_text(event, self._clock())))

    def finish_turn(self, event: ev.TurnFinished) -> None:
        has_text = self.reply is not None and self.reply.has_text
        number = len(self.messages)
        self.end_reply()
        if event.text and not has_text:
            self._append([Block(Kind.REPLY, clean(event.text, joined=True), message=number)])
        message = ev.Message("assistant", event.text, event.stats, event.thinking, event.can_be_quiet, event.tool_calls)
        self._append([Block(Kind.META, line, message=number) for line in call_lines(message.tool_calls)])
        self.messages.append(message)
        self._notices, self._lines, self._num_before = [], self._lines[self._num_before :], 0
        self._add_no_answer(message)
        self._add_stats(event.stats, number)
        notice = eviction_text(event.stats, self._evicted_before) or nearly_full_text(event.stats, self._filled_before)
        if notice:
            self.add_notice(notice)
        self._filled_before = event.stats.cache_tokens
        self._evicted_before = max(self._evicted_before, event.stats.evicted_tokens)

    def end_reply(self) -> None:
        """End the reply in progress; the text so far stays on the screen."""
        if self.reply is not None:
            self._append(self._numbered(self.reply.finish(self._clock())))
        self.reply = None

    # -- versions ----------------------------------------------------------------------------------------

    def version(self, message: int, step: int) -> ev.Sibling | None:
        """The previous (-1) or next (1) version of a message; past the last one of a reply, that of its question."""
        for of in (message, message - 1)[: 1 + self._is_reply(message)]:
            target = self._version(of)[0] - 1 + step
            if 0 <= target < self._version(of)[1]:
                return self.versions[of][target]
        return None

    def _version(self, message: int) -> tuple[int, int]:
        """The number of the current version of a message, from 1, and their count."""
        found = self.versions[message] if 0 <= message < len(self.versions) else ()
        return next((i for i, sibling in enumerate(found, 1) if sibling.is_current), 1), max(1, len(found))

    def _is_reply(self, message: int) -> bool:
        return 0 <= message < len(self.messages) and self.messages[message].role == "assistant"

    # -- blocks ------------------------------------------------------------------------------------------

    def _numbered(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks of the reply in progress, with its message number."""
        number = len(self.messages)
        return [block if block.message != NO_MESSAGE else replace(block, message=number) for block in blocks]

    def _add_no_answer(self, reply: ev.Message) -> None:
        if text := no_answer(reply.text, reply.thinking, reply.stats, reply.can_be_quiet):
            self._append([Block(Kind.META, text, NO_ANSWER)])

    def _add_stats(self, stats: TurnStats, message: int) -> None:
        live = stats.cache_live_bytes
        added = live - self._kv_before if self._kv_before else 0
        number, count = self._version(message)
        made_with = version_labels(self.versions[message])[number - 1] if count > 1 else ""
        block = Block(Kind.STATS, "", stats=stats, kv_added=max(0, added), message=message, made_with=made_with)
        self._append([replace(block, version=(number, count), asked=self._version(message - 1))])
        self._kv_before = live

    def _append(self, blocks: list[Block]) -> None:
        self._change.settled += blocks
        self._last = blocks[-1].kind if blocks else self._last

    def _add(self, block: Block, is_answer: bool = True) -> None:
        """Add a line between the messages; during a reply it goes above the unfinished block."""
        self._append([block])
        self._notices, self._lines = [*self._notices, block], [*self._lines, block]
        if is_answer:
            self._change.answer = len(self._change.settled) - 1
        if not self.is_open:
            self._before_opening.append(block)
