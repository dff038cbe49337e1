"""The transcript: one scrolling widget over cached lines, however long the chat is. UI thread.

Owns scrolling, following, mouse selection, the message cursor and what is highlighted. Which blocks there are comes
from the app, where their lines are from `layout.py`. Keys belong to the prompt: it takes the focus only while the
message cursor is out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import ClassVar, Literal

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Blur, Click, Key, MouseDown, Resize
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from mlxkv.tui import copying
from mlxkv.tui.attach import parts
from mlxkv.tui.blocks import NO_MESSAGE, Block, Kind
from mlxkv.tui.finding import Finder
from mlxkv.tui.layout import Layout
from mlxkv.tui.render import Look, Renderer

SLICE = 0.008  # seconds of background wrapping at a time: half a frame
NEAR = 1000  # lines around the view that are wrapped ahead, so that scrolling does not jump
FOUND, CURRENT = Style(reverse=True), Style(color="black", bgcolor="bright_yellow", bold=True)
CURSOR = "▌"

Wish = Literal["copy", "copy_code", "edit", "retry", "fork", "older", "newer"]


class Transcript(ScrollView, can_focus=False):
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

    class Followed(Message):
        """The reader left the end, or came back to it."""

        def __init__(self, follow: bool) -> None:
            super().__init__()
            self.follow = follow

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
        self.follow = True
        self.cursor: int | None = None
        self.is_wrapping = False
        self._moving = False  # a scroll of ours, not the reader's
        self._unfolded = False  # all reasoning, also what is still to come
        self._base = Style()
        self._drawn: dict[int, tuple[Strip, Strip]] = {}  # by line: what it was made from, what went to the screen
        self._pressed = Offset(-1, -1)
        self._bar_seen: tuple[int, ...] = ()

    # -- content -----------------------------------------------------------------------------------------

    def clear(self) -> None:
        self.lines.clear()
        self.follow = True
        self.finder.cell = None
        if self.cursor is not None:
            self.leave_cursor()
        self._place(0)

    def update_blocks(self, settled: Sequence[Block], tail: Sequence[Block] = ()) -> None:
        """Append final blocks and show `tail` after them until the next call."""
        if self._unfolded:
            settled, tail = _open(settled), _open(tail)
        changed = self.lines.tail_start
        self.lines.update(settled, tail)
        if self.size.height:
            self._show(self.scroll_offset.y, changed)

    def set_look(self, look: Look) -> None:
        self._look = look
        self._again(lambda: self.lines.reset(self.lines.width, Renderer(look, self._count).strips))

    def count_with(self, count: Callable[[str], int | None]) -> None:
        """`count` knows the tokens of files that were sent along, or will (then: `recount`)."""
        self._count = count
        self.set_look(self._look)

    def recount(self) -> None:
        """Tokens of files are known that were not: word them anew."""

        def change() -> None:
            for index, block in enumerate(self.lines.blocks):
                if block.kind is Kind.USER and parts(block.text)[1]:
                    self.lines.change(index, block)

        self._again(change)

    def on_resize(self, event: Resize) -> None:
        width = max(20, self.scrollable_content_region.width)
        if width != self.lines.width:
            self._again(lambda: self.lines.reset(width))
        else:
            self._show(self.scroll_offset.y)

    def _again(self, change: Callable[[], None]) -> None:
        """Change any lines; the block at the top stays at the top."""
        self._drawn.clear()
        top = self.lines.index_at(self.scroll_offset.y)
        offset = self.scroll_offset.y - (self.lines.start(top) if len(self.lines) else 0)
        change()
        self._show(self.lines.start(top) + offset if len(self.lines) else 0)

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

    # -- scrolling ---------------------------------------------------------------------------------------

    def _show(self, top: int, changed: int = 0) -> None:
        """Make what is visible exact, scroll to `top`, or to the end while following; repaint from `changed` on."""
        page = self.size.height
        if self.follow:
            self.lines.settle_end(page)
        else:
            self.lines.settle_view(top, page)
        self._place(self.lines.height - page if self.follow else top, changed)
        self._wrap_soon()

    def _wrap_soon(self) -> None:
        if not self.is_wrapping and self._near() is not None:
            self.is_wrapping = True
            self.set_timer(0.02, self._wrap_more)

    def _near(self, moved: int = 0) -> int | None:
        """A block near the view whose height is a guess: below it, then above."""
        top = self.scroll_offset.y + moved
        bottom = top + self.size.height
        below = self.lines.unsettled(bottom, bottom + NEAR)
        return below if below is not None else self.lines.unsettled(max(0, top - NEAR), top)

    def _place(self, top: int, changed: int = 0) -> None:
        """Scroll to line `top` and repaint from line `changed` on, or everything if that moves."""
        before = self.scroll_y
        self._moving = True
        self._set_height()
        self.scroll_to(y=max(0, top), animate=False, immediate=True, force=True)
        self._moving = False
        self._set_bar()
        first = max(0, changed - self.scroll_offset.y)
        if self.scroll_y != before or first == 0:
            self.refresh()
        elif first < self.size.height:
            self.refresh(Region(0, first, self.size.width, self.size.height - first))

    def _set_bar(self) -> None:
        """Move the scroll bar where one can see it: drawing it costs as much as all the text."""
        page, height = self.size.height, max(1, self.lines.height)
        seen = (page, *(round(8 * page * part / height) for part in (self.scroll_y, page)))
        if seen != self._bar_seen:
            self._bar_seen = seen
            self.vertical_scrollbar.window_virtual_size = height
            self.vertical_scrollbar.position = self.scroll_y

    def _set_height(self) -> None:
        """Tell Textual the height. It would lay out the screen, which is needed only when the bar comes or goes."""
        old, new, page = self.virtual_size, Size(self.lines.width, self.lines.height), self.size.height
        if old.width == new.width and (old.height > page) == (new.height > page):
            self.set_reactive(Transcript.virtual_size, new)  # pyright: ignore[reportArgumentType]
        else:
            self.virtual_size = new

    def _wrap_more(self) -> None:
        """Wrap a slice of what is near but out of sight, keeping the visible lines where they are."""
        until, top, moved, anything = perf_counter() + SLICE, self.scroll_offset.y, 0, False
        while True:
            index = self._near(moved)
            if index is None:
                self.is_wrapping = False
                break
            above = self.lines.start(index) < top + moved
            change = self.lines.settle(index)
            moved += change if above else 0
            anything |= change != 0
            if perf_counter() > until:
                self.set_timer(0.02, self._wrap_more)
                break
        if moved:
            self._move_selection(moved)
        if anything:
            self._place(self.lines.height - self.size.height if self.follow else top + moved)

    def _move_selection(self, lines: int) -> None:
        """What is above has grown: what was selected is further down now."""
        if (chosen := self.text_selection) is not None:
            start, end = (Offset(p.x, p.y + lines) if p else None for p in (chosen.start, chosen.end))
            self.screen.selections = {**self.screen.selections, self: Selection(start, end)}

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        if self._moving:  # `_place` paints
            return
        super().watch_scroll_y(old_value, new_value)
        if not len(self.lines):
            return
        self.lines.settle_view(round(new_value), self.size.height)
        follow = new_value >= self.lines.height - self.size.height - 0.5
        self._set_height()
        self._wrap_soon()
        self._set_follow(follow)

    def _set_follow(self, follow: bool) -> None:
        if follow != self.follow:
            self.follow = follow
            self.post_message(self.Followed(follow))

    def follow_end(self) -> None:
        self._set_follow(True)
        self._show(0)

    def scroll_page(self, pages: float) -> None:
        """Scroll by pages; half a page for 0.5, up when negative."""
        self.scroll_relative(y=pages * max(1, self.size.height - 2), animate=False, immediate=True)

    def action_page(self, pages: int) -> None:
        self.scroll_page(pages)

    def show_line(self, y: int, at: float = 0.3) -> None:
        """Bring line `y` into view, `at` of the page from its top, unless it is there already."""
        top, page = self.scroll_offset.y, self.size.height
        if not top <= y < top + page:
            top = max(0, min(y - round(at * page), self.lines.height - page))
        self._set_follow(top >= self.lines.height - page)
        self._show(top)

    # -- the message cursor ------------------------------------------------------------------------------

    def move_cursor(self, step: int) -> None:
        """To the message above (-1) or below (1); the first step up takes the last message, below the last it ends."""
        numbers = sorted({block.message for block in self.lines.blocks} - {NO_MESSAGE})
        if not numbers:
            return
        if self.cursor is None:
            if step > 0:
                return
            self.cursor = numbers[-1]
            self.can_focus = True
            self.focus(scroll_visible=False)
        else:
            at = numbers.index(self.cursor) + step if self.cursor in numbers else len(numbers) - 1
            if at >= len(numbers):
                self.leave_cursor()
                return
            self.cursor = numbers[max(0, at)]
        self._drawn.clear()
        self.show_line(self._message_line(self.cursor))
        self.post_message(self.CursorMoved(self.cursor))

    def leave_cursor(self, typed: str = "") -> None:
        self.cursor, self.can_focus = None, False
        self._drawn.clear()
        self.refresh()
        self.post_message(self.CursorMoved(None, typed))

    def _message_line(self, message: int) -> int:
        index = next(self.lines.of_message(message), 0)
        return self.lines.start(index) + (not self.lines.cell(index).block.tight)

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
        self._drawn.clear()
        found = self.finder.search(words, self.scroll_offset.y)
        self._show_match()
        return found

    def action_match(self, step: int) -> None:
        if self.finder.move(step):
            self._show_match()

    def _show_match(self) -> None:
        self._drawn.clear()
        if (y := self.finder.line()) is not None:
            self.show_line(y)
        self.refresh()

    # -- the mouse ---------------------------------------------------------------------------------------

    def on_mouse_down(self, event: MouseDown) -> None:
        self._pressed = event.screen_offset

    def on_click(self, event: Click) -> None:
        if event.screen_offset != self._pressed or event.chain > 1:
            return  # the end of a selection
        from mlxkv.tui.markdown import LINK

        if address := event.style.meta.get(LINK):
            self.post_message(self.LinkClicked(str(address)))
            return
        y = event.y + self.scroll_offset.y
        index = self.lines.index_at(y)
        if 0 <= index < len(self.lines) and y < self.lines.height:
            block, row = self.lines.cell(index).block, y - self.lines.start(index)
            on_sign = (
                row == (not block.tight) if block.kind is Kind.THOUGHT else event.x < 3 or "▸" in self._text(y)[:4]
            )
            if on_sign:
                self._fold(index)

    def _text(self, y: int) -> str:
        return self.lines.line(y).text

    # -- lines -------------------------------------------------------------------------------------------

    def render_lines(self, crop: Region) -> list[Strip]:
        """Straight from our own cache: Textual's is dirty whenever a line moves, and draws borders we have not."""
        base = self.rich_style  # walks up the tree: once per frame, not once per line
        if base != self._base or len(self._drawn) > 4 * NEAR:
            self._base = base
            self._drawn.clear()
        strips = [self.render_line(y) for y in crop.line_range]
        if filters := self.get_line_filters():
            background = self.background_colors[1]
            for line_filter in filters:
                strips = [strip.apply_filter(line_filter, background) for strip in strips]
        left, right = crop.column_span
        if (left, right) != (0, self.size.width):
            strips = [strip.crop(left, right) for strip in strips]
        return strips

    def render_line(self, y: int) -> Strip:
        y += self.scroll_offset.y
        strip = self.lines.line(y)
        selection = self.text_selection
        span = selection.get_span(y) if selection is not None else None
        known = self._drawn.get(y)
        if known is not None and known[0] is strip and span is None:
            return known[1]
        out = self._draw(strip, y, span)
        if span is None:
            self._drawn[y] = strip, out
        return out

    def _draw(self, strip: Strip, y: int, span: tuple[int, int] | None) -> Strip:
        plain = strip.text
        out = self._on_paper(strip, y)
        if self.cursor is not None or self.finder.wanted is not None:
            index = self.lines.index_at(y)
            cell = self.lines.cell(index) if 0 <= y < self.lines.height else None
            if cell and self.finder.wanted is not None:
                for first, last, is_current in self.finder.spans(cell, y - self.lines.start(index)):
                    out = _paint(out, plain, first, last, CURRENT if is_current else FOUND)
            if cell and cell.block.message == self.cursor and (plain.strip() or y > self.lines.start(index)):
                mark = Segment(CURSOR, self._base + Style.parse(self._look.accent))
                out = Strip.join([Strip([mark]), out.crop(1)])
        if span is not None:
            out = _paint(out, plain, *span, self.screen.get_component_rich_style("screen--selection"))
        return out

    def _on_paper(self, strip: Strip, y: int) -> Strip:
        """As wide as we are, in our colours, each piece with its place for the mouse. In one go: strips are dear."""
        base, width, x = self._base, self.size.width, 0
        if strip.cell_length > width:
            strip = strip.crop(0, width)
        segments: list[Segment] = []
        for text, style, _ in strip:
            place = Style.from_meta({"offset": (x, y)})
            segments.append(Segment(text, (base + style if style else base) + place))
            x += len(text)
        if strip.cell_length < width:
            segments.append(Segment(" " * (width - strip.cell_length), base + Style.from_meta({"offset": (x, y)})))
        return Strip(segments, width)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The source of what is selected, as far as whole blocks are; of the rest, what is shown."""
        start = (selection.start.y, selection.start.x) if selection.start else (0, 0)
        end = (selection.end.y, selection.end.x) if selection.end else (self.lines.height - 1, -1)
        return copying.selected(self.lines, start, end), "\n"


def _open(blocks: Sequence[Block]) -> list[Block]:
    return [replace(b, folded=False) if b.kind is Kind.THOUGHT and b.detail else b for b in blocks]


def _paint(strip: Strip, plain: str, start: int, end: int, style: Style) -> Strip:
    """`start` and `end` count characters, -1 the end of the line; the screen counts cells, and may end before."""
    left = cell_len(plain[:start])
    right = min(strip.cell_length, cell_len(plain) if end == -1 else cell_len(plain[:end]))
    if left >= right:
        return strip
    before, middle, after = strip.divide([left, right, strip.cell_length])
    return Strip.join([before, Strip(Segment.apply_style(middle, post_style=style), middle.cell_length), after])
