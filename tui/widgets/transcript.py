"""The transcript: all messages of a chat in one scrolling view, however many. UI thread.

Owns folding, the message cursor, searching and the mouse. Its blocks come from the chat state, `line_layout.py` knows
where their lines are, `line_view.py` scrolls them. Keys belong to the prompt: the transcript takes the focus only while
the message cursor is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Blur, Click, Key, MouseDown
from textual.geometry import Offset
from textual.message import Message

from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.state.prompt.attachments import split_attachments
from mlxkv.tui.state.transcript.blocks import NO_MESSAGE, Block, Kind
from mlxkv.tui.state.transcript.forgetting import Rule
from mlxkv.tui.widgets.line_layout import LineLayout
from mlxkv.tui.widgets.line_painter import LinePainter
from mlxkv.tui.widgets.line_view import LineView
from mlxkv.tui.widgets.own_keys import own_action
from mlxkv.tui.widgets.search import Finder

Action = Literal["copy", "copy_code", "edit", "retry", "fork", "older", "newer", "find"]


class Transcript(Vertical, can_focus=False):
    """Shows blocks; follows the end until the reader scrolls away."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("alt+up,up,k", "move_cursor(-1)", "Message above", id="message.above", show=False),
        Binding("alt+down,down,j", "move_cursor(1)", "Message below", id="message.below", show=False),
        Binding("y", "request('copy')", "Copy the message", id="message.copy", show=False),
        Binding("c", "request('copy_code')", "Copy its code", id="message.code", show=False),
        Binding("e", "request('edit')", "Edit and ask again", id="message.edit", show=False),
        Binding("r", "request('retry')", "Reply again", id="message.retry", show=False),
        Binding("f", "request('fork')", "Continue from here in a copy", id="message.fork", show=False),
        Binding("left_square_bracket", "request('older')", "Previous version", id="message.older", show=False),
        Binding("right_square_bracket", "request('newer')", "Next version", id="message.newer", show=False),
        Binding("space", "fold", "Fold, unfold", id="message.fold", show=False),
        Binding("slash", "request('find')", "Search in this chat", id="message.find", show=False),
        Binding("n", "match(1)", "Next match", id="message.next", show=False),
        Binding("N", "match(-1)", "Previous match", id="message.previous", show=False),
        Binding("pageup", "page(-1)", "Scroll", id="message.page_up", show=False),
        Binding("pagedown", "page(1)", "Scroll", id="message.page_down", show=False),
        Binding("escape,enter,q", "leave_cursor", "Back to the prompt", id="message.leave", show=False),
    ]

    class ActionRequested(Message):
        """Do `action` with message number `message`."""

        def __init__(self, action: Action, message: int) -> None:
            super().__init__()
            self.action, self.message = action, message

    class CursorMoved(Message):
        """The message cursor is at `message` now; None: it is hidden, and `typed` belongs to the prompt."""

        def __init__(self, message: int | None, typed: str = "") -> None:
            super().__init__()
            self.message, self.typed = message, typed

    class LinkClicked(Message):
        """Show an address in full, and open it if the reader confirms."""

        def __init__(self, address: str) -> None:
            super().__init__()
            self.address = address

    def __init__(self, colours: Colours | None = None) -> None:
        super().__init__()
        self._colours = colours or Colours()
        self._count: Callable[[str], int | None] = lambda text: None
        self.lines = LineLayout(Renderer(self._colours).strips)
        self.finder = Finder(self.lines)
        self.painter = LinePainter(self.lines, self.finder, self._colours.accent)
        self.view = LineView(self.lines, self.painter)
        self._rule: Rule | None = None
        self._unruled: int | None = None  # the number of blocks when the rule's place was not there yet
        self._unfolded = False  # all reasoning, also of replies to come
        self._pressed = Offset(-1, -1)

    def compose(self) -> ComposeResult:
        yield self.view

    # -- content -----------------------------------------------------------------------------------------

    def clear(self, turned_to: int | None = None) -> None:
        """Remove everything; the cursor stays if it is at message `turned_to`, of which another version follows."""
        self.view.clear()
        self._rule = self._unruled = None
        self.finder.cell = None
        if self.cursor not in (None, turned_to):
            self.action_leave_cursor()

    def update_blocks(self, settled: Sequence[Block], tail: Sequence[Block] = (), answer: int | None = None) -> None:
        """Append final blocks, and `tail` until the next call; scroll to `settled[answer]`."""
        if self._unfolded:
            settled, tail = _unfold(settled), _unfold(tail)
        changed = self.lines.tail_start
        self.lines.update(settled, tail)
        cell = self.lines.cell(len(self.lines) - len(tail) - len(settled) + answer) if answer is not None else None
        self.view.show(self.view.top, changed)
        if cell is not None and self.view.size.height:
            self.view.show_end(cell)

    def drop(self, message: int) -> None:
        """Remove all blocks of message number `message`, the last one."""
        if self.cursor == message:
            self.action_leave_cursor()
        self.view.change(lambda: self.lines.remove(message))

    def show_rule(self, rule: Rule | None) -> None:
        """Move the rule to where what the model attends to begins, and mute what is above."""
        if rule != self._rule or self._unruled not in (None, len(self.lines)):
            self._rule, placed = rule, []
            self.view.change(lambda: placed.append(self.lines.mark(rule)))
            self._unruled = None if all(placed) else len(self.lines)

    def set_colours(self, colours: Colours) -> None:
        self._colours, self.painter.accent = colours, colours.accent
        self.view.change(lambda: self.lines.reset(self.lines.width, Renderer(colours, self._count).strips))

    def count_with(self, count: Callable[[str], int | None]) -> None:
        """`count` returns the tokens of an attached file, or None until they are counted (then: `recount`)."""
        self._count = count
        self.set_colours(self._colours)

    def recount(self) -> None:
        """Render messages with attached files again once their tokens have been counted."""
        self._change_blocks(
            lambda block: block if block.kind is Kind.USER and split_attachments(block.text)[1] else None
        )

    def _change_blocks(self, change: Callable[[Block], Block | None]) -> None:
        """Replace the blocks for which `change` returns one."""

        def change_all() -> None:
            for index, block in enumerate(self.lines.blocks):
                if (new := change(block)) is not None:
                    self.lines.change(index, new)

        self.view.change(change_all)

    # -- folding -----------------------------------------------------------------------------------------

    def fold_all(self) -> bool:
        """Fold all reasoning, or unfold it; returns whether it is unfolded now."""
        self._unfolded = unfolded = not self._unfolded
        self._change_blocks(
            lambda b: replace(b, folded=not unfolded) if _has_reasoning(b) and b.folded is unfolded else None
        )
        return unfolded

    def _fold(self, index: int) -> bool:
        block = self.lines.cell(index).block
        if not (block.kind is Kind.USER or _has_reasoning(block)):
            return False
        self.view.change(lambda: self.lines.change(index, replace(block, folded=not block.folded)))
        return True

    def action_fold(self) -> None:
        for index in list(self.lines.of_message(self.cursor)) if self.cursor is not None else []:
            if self._fold(index):
                break

    # -- the message cursor ------------------------------------------------------------------------------

    @property
    def cursor(self) -> int | None:
        """The message at the cursor."""
        return self.painter.marked

    def action_move_cursor(self, step: int) -> None:
        """Move to the message above (-1) or below (1), first to the last one; below that the cursor is hidden."""
        numbers = sorted({block.message for block in self.lines.blocks} - {NO_MESSAGE})
        if not numbers:
            return
        at = len(numbers) - 1
        if self.cursor is None:
            if step > 0:
                return
            self.can_focus = True
            self.focus(scroll_visible=False)
        elif self.cursor in numbers:
            at = numbers.index(self.cursor) + step
            if at >= len(numbers):
                self.action_leave_cursor()
                return
        message = numbers[max(0, at)]
        self.painter.mark(message)
        self.view.show_line(self._message_line(message))
        self.post_message(self.CursorMoved(message))

    def show_cursor(self) -> None:
        """Scroll to the cursor, or leave it if its message is not here."""
        if self.cursor is None:
            return
        if next(self.lines.of_message(self.cursor), None) is None:
            self.action_leave_cursor()
        else:
            self.view.show_line(self._message_line(self.cursor))

    def action_leave_cursor(self, typed: str = "") -> None:
        self.can_focus = False
        self.painter.mark(None)
        self.view.refresh()
        self.post_message(self.CursorMoved(None, typed))

    def _message_line(self, message: int) -> int:
        index = next(self.lines.of_message(message), 0)
        return self.lines.start(index) + (not self.lines.cell(index).block.tight)

    def position(self) -> tuple[int, int] | None:
        """The message at the top for a reader who has scrolled up, and how many lines into it."""
        top = self.view.top
        message = self.lines.cell(self.lines.index_at(top)).block.message if len(self.lines) else NO_MESSAGE
        return None if self.view.follow or message == NO_MESSAGE else (message, top - self._message_line(message))

    def scroll_to_position(self, message: int, offset: int) -> None:
        """Scroll to a `position`, unless its message was removed."""
        if next(self.lines.of_message(message), None) is not None:
            self.view.set_follow(False)
            self.view.show(self._message_line(message) + offset)

    def blocks_of(self, message: int) -> list[Block]:
        return [self.lines.cell(index).block for index in self.lines.of_message(message)]

    def action_request(self, action: Action) -> None:
        if self.cursor is not None:
            self.post_message(self.ActionRequested(action, self.cursor))

    def action_page(self, pages: int) -> None:
        self.view.scroll_page(pages)

    def on_key(self, event: Key) -> None:
        """Any other letter leaves the cursor and is typed into the prompt."""
        bound = None if self.cursor is None else own_action(self, event.key)
        if bound == "request('find')":  # here: letters that follow may arrive before a binding's action has run
            self.action_request("find")
            self.action_leave_cursor()  # or the next letter would be a command here
        elif event.is_printable and event.character and bound is None:
            self.action_leave_cursor(event.character)
        else:
            return
        event.stop()
        event.prevent_default()

    def on_blur(self, event: Blur) -> None:
        if self.cursor is not None:
            self.action_leave_cursor()

    # -- search ------------------------------------------------------------------------------------------

    def find(self, words: str) -> None:
        """Go to the first match from here; "" ends the search."""
        self.finder.search(words, self.view.top)
        self._show_match()

    def action_match(self, step: int) -> None:
        if self.finder.move(step):
            self._show_match()

    def _show_match(self) -> None:
        self.painter.forget()
        if (y := self.finder.line()) is not None:
            self.view.show_line(y)
        self.view.refresh()

    # -- the mouse ---------------------------------------------------------------------------------------

    def on_mouse_down(self, event: MouseDown) -> None:
        self._pressed = event.screen_offset

    def on_click(self, event: Click) -> None:
        if event.screen_offset != self._pressed or event.chain > 1:
            return  # the end of a selection
        from mlxkv.tui.markdown.renderer import LINK

        if address := event.style.meta.get(LINK):
            self.post_message(self.LinkClicked(str(address)))
            return
        y = event.y + self.view.top
        index = self.lines.index_at(y)
        if 0 <= index < len(self.lines) and y < self.lines.height:
            block, row = self.lines.cell(index).block, y - self.lines.start(index)
            on_sign = (
                row == (not block.tight)
                if block.kind is Kind.THOUGHT
                else event.x < 3 or "▸" in self.lines.line(y).text[:4]
            )
            if on_sign:
                self._fold(index)


def _has_reasoning(block: Block) -> bool:
    return block.kind is Kind.THOUGHT and bool(block.detail)


def _unfold(blocks: Sequence[Block]) -> list[Block]:
    return [replace(block, folded=False) if _has_reasoning(block) else block for block in blocks]
