"""What the transcript tells: the messages of the chat in front as blocks, and the reply being made. Pure; UI.

Which event leads to what is `chat_state.py`'s business; how a block looks is `tui/markdown/block_renderer.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mlxkv.protocol import events as ev
from mlxkv.stats import TurnStats
from mlxkv.text.clean import clean
from mlxkv.tui.state.blocks import NO_ANSWER, NO_MESSAGE, Block, ContextRow, Kind
from mlxkv.tui.state.labels import nearly_full_text, no_answer, restored_text, rotated_text
from mlxkv.tui.state.streaming import Turn


def title_line(title: str) -> str:
    """A title as it is kept and changed: harmless, on one line; what shows it cleans it for the terminal."""
    return " ".join(clean(title, joined=True).split())


@dataclass
class Change:
    """What the transcript must do: forget everything if `cleared`, message number `dropped`, append `settled`, show
    `tail` after it.

    `answer`: which of `settled` answers a command of the user's, and must be seen. `stays`: what was cleared comes
    again, so a reader who has scrolled up stays where they are.
    """

    cleared: bool = False
    stays: bool = False
    dropped: int | None = None
    answer: int | None = None
    settled: list[Block] = field(default_factory=list)
    tail: list[Block] = field(default_factory=list)


class Story:
    """`turn` is the reply that is being made; `messages` holds what was said, the open reply not yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.title = ""
        self.turn: Turn | None = None
        self.messages: list[ev.Message] = []
        self.versions: list[tuple[ev.Sibling, ...]] = []
        self._is_open = False  # a chat is in front
        self._is_titled_by: int | None = None  # the message that gave the chat its title
        self._change = Change()
        self._early: list[Block] = []  # said before a chat was open: must survive its opening
        self._kv_before = self._evicted_before = self._filled_before = 0
        self._last: Kind | None = None  # what the transcript ends with
        self._told: list[Block] = []  # lines of ours since the last reply

    @property
    def is_empty(self) -> bool:
        """Nothing was said in this chat."""
        return not self.messages

    def take(self) -> Change:
        """What changed since the last call."""
        change, self._change = self._change, Change()
        change.tail = self._numbered(self.turn.tail()) if self.turn else []
        return change

    # -- lines of ours -----------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A dim line of ours, which answers the user."""
        self._add(Block(Kind.META, clean(text, joined=True), tight=self._last is Kind.META))

    def note(self, text: str) -> None:
        """The same unasked: a reader who has scrolled up stays where they are.

        What was told since the last reply is not told again, such as with a message that was stopped and sent anew.
        """
        text = clean(text, joined=True)
        if not any(text in told.text for told in self._told):
            self._add(Block(Kind.META, text, tight=self._last is Kind.META), is_answer=False)

    def say_lines(self, lines: Sequence[str | ContextRow]) -> None:
        for i, line in enumerate(lines):
            text, row = (line, None) if isinstance(line, str) else (line.text, line)
            self._add(Block(Kind.META, clean(text, joined=True), tight=i > 0, context=row))

    def say_after_opening(self, text: str) -> None:
        """A line that the chat which is about to open must not wipe away."""
        self._early.append(Block(Kind.META, clean(text, joined=True)))

    def error(self, text: str, *, is_answer: bool = True) -> None:
        self._add(Block(Kind.ERROR, clean(text, joined=True)), is_answer)

    # -- a chat ------------------------------------------------------------------------------------------

    def show_chat(self, event: ev.ChatOpened, stays: bool = False, keeps_told: bool = False) -> None:
        """`keeps_told`: what we told since the last reply stands below it again."""
        told = self._told if keeps_told and self._is_open else []
        early, self._early, self._is_open = self._early, [], True
        self._told = [*early, *told]
        self._is_titled_by = None
        self.title, self.turn, self.messages = title_line(event.title), None, list(event.messages)
        self._kv_before = self._evicted_before = 0
        self._filled_before = next((m.stats.cache_tokens for m in reversed(event.messages) if m.stats), 0)
        self._change = Change(cleared=True, stays=stays, settled=early)
        for number, message in enumerate(event.messages):
            kind = Kind.USER if message.role == "user" else Kind.REPLY
            if thought := clean(message.thinking, joined=True).strip():
                tokens = f"thought · ~{len(thought) // 4:,} tok"  # how long it took is not kept
                self._settle([Block(Kind.THOUGHT, tokens, detail=thought, message=number)])
            self._settle([Block(kind, clean(message.text, joined=True), message=number)])
            if kind is Kind.REPLY:
                self._tell_no_answer(message)
            if message.stats is not None:
                self._figures(message.stats, number)
        if event.messages and event.messages[-1].role == "user":
            self._settle([Block(Kind.META, "▲ not answered: mlxkv ended before the reply · /retry asks again")])
        if event.restored_tokens:
            self._kv_before = event.restored_bytes
            text = restored_text(event.restored_tokens, event.restored_bytes, event.restore_s)
            self._settle([Block(Kind.META, text)])
        self._settle(told)

    # -- a turn ------------------------------------------------------------------------------------------

    def begin_turn(self, text: str) -> None:
        """Without a text a reply goes on."""
        if text:
            if self.messages and self.messages[-1].role == "user":  # as the chat does, so that numbers agree
                self.messages.append(ev.Message("assistant", ""))
            self._settle([Block(Kind.USER, clean(text, joined=True), message=len(self.messages))])
            if not self.title:
                self.title = title_line(text.lstrip()[:1000].strip().split("\n")[0][:60])
                self._is_titled_by = len(self.messages)
            self.messages.append(ev.Message("user", text))
        self.turn = Turn(self.clock())

    def take_back(self) -> None:
        """The last message leaves the chat: nothing answered it."""
        self.turn, number = None, len(self.messages) - 1
        del self.messages[-1]
        change = self._change
        change.settled, change.dropped = [block for block in change.settled if block.message != number], number
        if self._is_titled_by == number:
            self.title = ""

    def hear(self, event: ev.TextDelta | ev.PrefillProgress) -> None:
        """The next piece of the reply, or of the way to it."""
        turn = self.turn = self.turn or Turn(self.clock())
        if isinstance(event, ev.PrefillProgress):
            turn.prefill = event
        else:
            if event.restarts:
                number, change = len(self.messages), self._change
                change.settled, change.dropped = [b for b in change.settled if b.message != number], number
                change.answer = None
            self._settle(self._numbered(turn.delta(event, self.clock())))

    def finish_turn(self, event: ev.TurnFinished) -> None:
        said = self.turn is not None and self.turn.said_anything
        number = len(self.messages)
        self.break_off()
        if event.text and not said:
            self._settle([Block(Kind.REPLY, clean(event.text, joined=True), message=number)])
        reply = ev.Message("assistant", event.text, event.stats, event.thinking, event.can_be_quiet)
        self.messages.append(reply)
        self._told = []
        self._tell_no_answer(reply)
        self._figures(event.stats, number)
        told = rotated_text(event.stats, self._evicted_before) or nearly_full_text(event.stats, self._filled_before)
        if told:
            self.note(told)
        self._filled_before = event.stats.cache_tokens
        self._evicted_before = max(self._evicted_before, event.stats.evicted_tokens)

    def _tell_no_answer(self, reply: ev.Message) -> None:
        if text := no_answer(reply.text, reply.thinking, reply.stats, reply.can_be_quiet):
            self._settle([Block(Kind.META, text, NO_ANSWER)])

    def break_off(self) -> None:
        """The reply ends here; what there is of it stays."""
        if self.turn is not None:
            self._settle(self._numbered(self.turn.finish(self.clock())))
        self.turn = None

    # -- versions ----------------------------------------------------------------------------------------

    def version(self, message: int, step: int) -> ev.Sibling | None:
        """The version before (-1) or after (1) of a message or, where it has no others, of the question to it."""
        number, of = self._version(message)
        found = self.versions[of] if of < len(self.versions) else ()
        target = number - 1 + step
        return found[target] if 0 <= target < len(found) else None

    def _version(self, message: int) -> tuple[int, int]:
        """Which version (from 1) of which message."""
        for number in (message, message - 1):
            found = self.versions[number] if 0 <= number < len(self.versions) else ()
            if len(found) > 1:
                return next((i for i, sibling in enumerate(found, 1) if sibling.is_current), 1), number
        return 1, message

    # -- blocks ------------------------------------------------------------------------------------------

    def _numbered(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks of the reply that is being made."""
        number = len(self.messages)
        return [block if block.message != NO_MESSAGE else replace(block, message=number) for block in blocks]

    def _figures(self, stats: TurnStats, message: int) -> None:
        live = stats.cache_live_bytes
        added = live - self._kv_before if self._kv_before else 0
        number, of = self._version(message)
        version = (number, max(1, len(self.versions[of]) if of < len(self.versions) else 1))
        self._settle([Block(Kind.STATS, "", stats=stats, kv_added=max(0, added), message=message, version=version)])
        self._kv_before = live

    def _settle(self, blocks: list[Block]) -> None:
        self._change.settled += blocks
        self._last = blocks[-1].kind if blocks else self._last

    def _add(self, block: Block, is_answer: bool = True) -> None:
        """One of our own lines; in the middle of a reply it goes above the unfinished block."""
        self._settle([block])
        self._told.append(block)
        if is_answer:
            self._change.answer = len(self._change.settled) - 1
        if not self._is_open:
            self._early.append(block)
