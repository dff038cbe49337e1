"""The transcript: what was said, in one scrolling widget however long the chat is. UI thread.

Owns folding, the message cursor, searching, and what the mouse does. Which blocks there are comes from the app, where
their lines are from `line_layout.py`, scrolling from `line_view.py`. Keys belong to the prompt: it takes the focus only
while the message cursor is out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from textual.binding import Binding, BindingType
from textual.events import Blur, Click, Key, MouseDown
from textual.geometry import Offset
from textual.message import Message
from textual.selection import Selection

from mlxkv.tui.markdown.block_renderer import Look, Renderer
from mlxkv.tui.state.attachments import split_attachments
from mlxkv.tui.state.blocks import NO_MESSAGE, Block, Kind
from mlxkv.tui.widgets import copying
from mlxkv.tui.widgets.line_layout import Layout
from mlxkv.tui.widgets.line_painter import Paper
from mlxkv.tui.widgets.line_view import Scroller
from mlxkv.tui.widgets.search import Finder

Wish = Literal["copy", "copy_code", "edit", "retry", "fork", "older", "newer"]


class Transcript(Scroller, can_focus=False):
    """Shows blocks; follows the end until the reader scrolls away."""

    ALLOW_SELECT: ClassVar[bool] = True
    DEFAULT_CSS = """
    Transcript {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-gutter: stable;
        scrollbar-size-vertical: 1;
        background: $background;
        scrollbar-background: $background;
        scrollbar-background-hover: $background;
        scrollbar-background-active: $background;
        scrollbar-color: $panel;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("alt+up,up,k", "cursor(-1)", "Message above", id="message.above", show=False),
        Binding("alt+down,down,j", "cursor(1)", "Message below", id="message.below", show=False),
        Binding("y", "wish('copy')", "Copy the message", id="message.copy", show=False),
        Binding("c", "wish('copy_code')", "Copy its code", id="message.code", show=False),
        Binding("e", "wish('edit')", "Edit and ask again", id="message.edit", show=False),
        Binding("r", "wish('retry')", "Reply again", id="message.retry", show=False),
        Binding("f", "wish('fork')", "Go on from here in a copy", id="message.fork", show=False),
        Binding("left_square_bracket", "wish('older')", "Other reply", id="message.older", show=False),
        Binding("right_square_bracket", "wish('newer')", "Other reply", id="message.newer", show=False),
        Binding("space", "fold", "Fold, unfold", id="message.fold", show=False),
        Binding("slash", "find", "Search in this chat", id="message.find", show=False),
        Binding("n", "match(1)", "Next match", id="message.next", show=False),
        Binding("N", "match(-1)", "Match before", id="message.previous", show=False),
        Binding("pageup", "page(-1)", "Scroll", id="message.page_up", show=False),
        Binding("pagedown", "page(1)", "Scroll", id="message.page_down", show=False),
        Binding("escape,enter,q", "leave", "Back to the prompt", id="message.leave", show=False),
    ]

    class Wanted(Message):
        """Something is to be done with message number `message`."""

        def __init__(self, wish: Wish, message: int) -> None:
            super().__init__()
            self.wish, self.message = wish, message

    class CursorMoved(Message):
        """The message cursor is at `message` now; None: it is gone, and `typed` belongs to the prompt."""

        def __init__(self, message: int | None, typed: str = "") -> None:
            super().__init__()
            self.message, self.typed = message, typed

    class FindWanted(Message):
        """`/` was pressed."""

    class LinkClicked(Message):
        """An address that the reader may want to open, after seeing it whole."""

        def __init__(self, address: str) -> None:
            super().__init__()
            self.address = address

    def __init__(self, look: Look | None = None, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._look = look or Look()
        self._count: Callable[[str], int | None] = lambda text: None
        self.lines = Layout(Renderer(self._look).strips)
        self.finder = Finder(self.lines)
        self.paper = Paper(self.lines, self.finder, self._look.accent)
        self._unfolded = False  # all reasoning, also what is still to come
        self._pressed = Offset(-1, -1)

    # -- content -----------------------------------------------------------------------------------------

    def clear(self) -> None:
        self.lines.clear()
        self.follow = True
        self.finder.cell = None
        if self.cursor is not None:
            self.leave_cursor()
        self._place(0)

    def update_blocks(self, settled: Sequence[Block], tail: Sequence[Block] = (), answer: int | None = None) -> None:
        """Append final blocks and show `tail` after them until the next call. `settled[answer]` must be seen."""
        if self._unfolded:
            settled, tail = _open(settled), _open(tail)
        changed = self.lines.tail_start
        self.lines.update(settled, tail)
        if self.size.height:
            cell = self.lines.cell(len(self.lines) - len(tail) - len(settled) + answer) if answer is not None else None
            self._show(self.scroll_offset.y, changed)
            if cell is not None:
                self.show_end(cell)

    def drop(self, message: int) -> None:
        """Take away all blocks of message number `message`, the last one."""
        if self.cursor == message:
            self.leave_cursor()
        self._again(lambda: self.lines.remove(message))

    def set_look(self, look: Look) -> None:
        self._look, self.paper.accent = look, look.accent
        self._again(lambda: self.lines.reset(self.lines.width, Renderer(look, self._count).strips))

    def count_with(self, count: Callable[[str], int | None]) -> None:
        """`count` knows the tokens of files that were sent along, or will (then: `recount`)."""
        self._count = count
        self.set_look(self._look)

    def recount(self) -> None:
        """Tokens of files are known that were not: word them anew."""

        def change() -> None:
            for index, block in enumerate(self.lines.blocks):
                if block.kind is Kind.USER and split_attachments(block.text)[1]:
                    self.lines.change(index, block)

        self._again(change)

    # -- folding -----------------------------------------------------------------------------------------

    def fold_all(self) -> bool:
        """Fold all reasoning, or unfold it; whether it is unfolded now."""
        self._unfolded = not self._unfolded

        def change() -> None:
            for index, block in enumerate(self.lines.blocks):
                if block.kind is Kind.THOUGHT and block.detail and block.folded is self._unfolded:
                    self.lines.change(index, replace(block, folded=not self._unfolded))

        self._again(change)
        return self._unfolded

    def _fold(self, index: int) -> bool:
        block = self.lines.cell(index).block
        if not (block.kind is Kind.USER or (block.kind is Kind.THOUGHT and block.detail)):
            return False
        self._again(lambda: self.lines.change(index, replace(block, folded=not block.folded)))
        return True

    def action_fold(self) -> None:
        for index in list(self.lines.of_message(self.cursor)) if self.cursor is not None else []:
            if self._fold(index):
                break

    # -- the message cursor ------------------------------------------------------------------------------

    @property
    def cursor(self) -> int | None:
        """The message it is at."""
        return self.paper.marked

    def move_cursor(self, step: int) -> None:
        """To the message above (-1) or below (1); the first step up takes the last message, below the last it ends."""
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
                self.leave_cursor()
                return
        message = numbers[max(0, at)]
        self.paper.mark(message)
        self.show_line(self._message_line(message))
        self.post_message(self.CursorMoved(message))

    def leave_cursor(self, typed: str = "") -> None:
        self.can_focus = False
        self.paper.mark(None)
        self.refresh()
        self.post_message(self.CursorMoved(None, typed))

    def _message_line(self, message: int) -> int:
        index = next(self.lines.of_message(message), 0)
        return self.lines.start(index) + (not self.lines.cell(index).block.tight)

    def place(self) -> tuple[int, int] | None:
        """What is at the top for a reader who has scrolled up: a message, and how far into it."""
        top = self.scroll_offset.y
        message = self.lines.cell(self.lines.index_at(top)).block.message if len(self.lines) else NO_MESSAGE
        return None if self.follow or message == NO_MESSAGE else (message, top - self._message_line(message))

    def go_to(self, message: int, offset: int) -> None:
        """Where `place` was; the end, if there is no such message any more."""
        if next(self.lines.of_message(message), None) is not None:
            self._set_follow(False)
            self._show(self._message_line(message) + offset)

    def blocks_of(self, message: int) -> list[Block]:
        return [self.lines.cell(index).block for index in self.lines.of_message(message)]

    def action_cursor(self, step: int) -> None:
        self.move_cursor(step)

    def action_wish(self, wish: Wish) -> None:
        if self.cursor is not None:
            self.post_message(self.Wanted(wish, self.cursor))

    def action_leave(self) -> None:
        self.leave_cursor()

    def action_find(self) -> None:
        self.post_message(self.FindWanted())

    def on_key(self, event: Key) -> None:
        """Any other letter is meant for the prompt."""
        if event.is_printable and event.character and (self.cursor is None or event.key not in self._own_keys):
            event.stop()
            event.prevent_default()
            self.leave_cursor(event.character)

    @property
    def _own_keys(self) -> set[str]:
        return {key for key, bound in self.screen.active_bindings.items() if bound.node is self}

    def on_blur(self, event: Blur) -> None:
        if self.cursor is not None:
            self.leave_cursor()

    # -- search ------------------------------------------------------------------------------------------

    def find(self, words: str) -> bool:
        """Go to the first match from here; "" ends the search."""
        self.paper.forget()
        found = self.finder.search(words, self.scroll_offset.y)
        self._show_match()
        return found

    def action_match(self, step: int) -> None:
        if self.finder.move(step):
            self._show_match()

    def _show_match(self) -> None:
        self.paper.forget()
        if (y := self.finder.line()) is not None:
            self.show_line(y)
        self.refresh()

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
        y = event.y + self.scroll_offset.y
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

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The source of what is selected, as far as whole blocks are; of the rest, what is shown."""
        start = (selection.start.y, selection.start.x) if selection.start else (0, 0)
        end = (selection.end.y, selection.end.x) if selection.end else (self.lines.height - 1, -1)
        return copying.selected(self.lines, start, end), "\n"


def _open(blocks: Sequence[Block]) -> list[Block]:
    return [replace(b, folded=False) if b.kind is Kind.THOUGHT and b.detail else b for b in blocks]
