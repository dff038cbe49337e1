"""The transcript: one scrolling widget over cached lines, however long the chat is. UI thread.

Owns scrolling, following and mouse selection. Which blocks there are comes from the app, where their lines are from
`layout.py`. It takes no focus: keys belong to the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.events import Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from mlxkv.tui.blocks import Block
from mlxkv.tui.layout import Layout
from mlxkv.tui.render import Look, Renderer

SLICE = 0.008  # seconds of background wrapping at a time: half a frame


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

    class Followed(Message):
        """The reader left the end, or came back to it."""

        def __init__(self, follow: bool) -> None:
            super().__init__()
            self.follow = follow

    def __init__(self, look: Look | None = None, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.lines = Layout(Renderer(look or Look()).strips)
        self.follow = True
        self._moving = False  # a scroll of ours, not the reader's
        self._wrapping = False
        self._base = Style()

    # -- content -----------------------------------------------------------------------------------------

    def clear(self) -> None:
        self.lines.clear()
        self.follow = True
        self._place(0)

    def update_blocks(self, settled: Sequence[Block], tail: Sequence[Block] = ()) -> None:
        """Append final blocks and show `tail` after them until the next call."""
        self.lines.update(settled, tail)
        if self.size.height:
            self._show(self.scroll_offset.y)

    def set_look(self, look: Look) -> None:
        self._again(lambda: self.lines.reset(self.lines.width, Renderer(look).strips))

    def on_resize(self, event: Resize) -> None:
        width = max(20, self.scrollable_content_region.width)
        if width != self.lines.width:
            self._again(lambda: self.lines.reset(width))
        else:
            self._show(self.scroll_offset.y)

    def _again(self, change: Callable[[], None]) -> None:
        """Change every line; the block at the top stays at the top."""
        top = self.lines.index_at(self.scroll_offset.y)
        offset = self.scroll_offset.y - (self.lines.start(top) if len(self.lines) else 0)
        change()
        self._show(self.lines.start(top) + offset if len(self.lines) else 0)

    # -- scrolling ---------------------------------------------------------------------------------------

    def _show(self, top: int) -> None:
        """Make what is visible exact, then scroll to `top`, or to the end while following."""
        page = self.size.height
        if self.follow:
            self.lines.settle_end(page)
        else:
            self.lines.settle_view(top, page)
        self._place(self.lines.height - page if self.follow else top)
        if not self._wrapping:
            self._wrapping = True
            self.set_timer(0.02, self._wrap_more)

    def _place(self, top: int) -> None:
        self._moving = True
        self.virtual_size = Size(self.lines.width, self.lines.height)
        self.scroll_to(y=max(0, top), animate=False, immediate=True, force=True)
        self._moving = False
        # Textual tells the bar only when it is shown already; the first page that overflows would leave it at the top.
        self.vertical_scrollbar.position = self.scroll_y
        self.vertical_scrollbar.window_virtual_size = self.lines.height
        self.refresh()

    def _wrap_more(self) -> None:
        """Wrap a slice of what is out of sight, keeping the visible lines where they are."""
        until, top, moved, anything = perf_counter() + SLICE, self.scroll_offset.y, 0, False
        while (index := self.lines.settle_next()) is not None:
            above = self.lines.start(index) < top + moved
            change = self.lines.settle(index)
            moved += change if above else 0
            anything |= change != 0
            if perf_counter() > until:
                self.set_timer(0.02, self._wrap_more)
                break
        else:
            self._wrapping = False
        if anything:
            self._place(self.lines.height - self.size.height if self.follow else top + moved)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._moving or not len(self.lines):
            return
        self.lines.settle_view(round(new_value), self.size.height)
        follow = new_value >= self.lines.height - self.size.height - 0.5
        self.virtual_size = Size(self.lines.width, self.lines.height)
        if follow != self.follow:
            self.follow = follow
            self.post_message(self.Followed(follow))

    def follow_end(self) -> None:
        if not self.follow:
            self.follow = True
            self.post_message(self.Followed(True))
        self._show(0)

    def scroll_page(self, pages: float) -> None:
        """Scroll by pages; half a page for 0.5, up when negative."""
        self.scroll_relative(y=pages * max(1, self.size.height - 2), animate=False, immediate=True)

    # -- lines -------------------------------------------------------------------------------------------

    def render_lines(self, crop: Region) -> list[Strip]:
        self._base = self.rich_style  # walks up the tree: once per frame, not once per line
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        y += self.scroll_offset.y
        base = self._base
        strip = self.lines.line(y)
        plain = strip.text
        strip = strip.crop_extend(0, self.size.width, base).apply_style(base)
        selection = self.text_selection
        if selection is not None and (span := selection.get_span(y)) is not None:
            strip = self._highlight(strip, plain, *span)
        return strip.apply_offsets(0, y)

    def _highlight(self, strip: Strip, plain: str, start: int, end: int) -> Strip:
        """`start` and `end` count characters, -1 the end of the line; the screen counts cells."""
        left = cell_len(plain[:start])
        right = cell_len(plain) if end == -1 else cell_len(plain[:end])
        if left >= right:
            return strip
        style = self.screen.get_component_rich_style("screen--selection")
        before, middle, after = strip.divide([left, right, strip.cell_length])
        chosen = Strip(Segment.apply_style(middle, post_style=style), middle.cell_length)
        return Strip.join([before, chosen, after])

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text as it is shown. Only the selected lines are rendered."""
        height = self.lines.height
        first = selection.start.y if selection.start else 0
        last = min(selection.end.y if selection.end else height - 1, height - 1)
        rows: list[str] = []
        for y in range(max(0, first), last + 1):
            span = selection.get_span(y)
            text = self.lines.line(y).text
            if span is not None:
                rows.append(text[span[0] : None if span[1] == -1 else span[1]].rstrip())
        return "\n".join(rows), "\n"
