"""A scrolling widget over any number of cached lines; wraps those in view, then those near it. UI thread.

Owns scrolling, following the end, and the size and repaints that Textual is told of. The blocks, and what can be done
with them, are its owner's.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import ClassVar

from rich.style import Style
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from mlxkv.tui.widgets import copying
from mlxkv.tui.widgets.line_layout import Cell, LineLayout
from mlxkv.tui.widgets.line_painter import LinePainter, cropped

SLICE = 0.008  # seconds of background wrapping at a time: half a frame
NEAR = 1000  # lines around the view that are wrapped ahead, so that scrolling does not jump


class LineView(ScrollView, can_focus=False):
    """Shows the end of `lines` until the reader scrolls away. After a change of `lines`, call `show`."""

    ALLOW_SELECT: ClassVar[bool] = True
    DEFAULT_CSS = """
    LineView {
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

    class FollowChanged(Message):
        """The reader left the end, or returned to it."""

    def __init__(self, lines: LineLayout, painter: LinePainter) -> None:
        super().__init__()
        self.lines, self.painter = lines, painter
        self.follow = True
        self.is_wrapping = False
        self._fitted = Size()  # the size at the last `on_resize`
        self._is_placing = False  # scrolled by the program, not by the reader
        self._drawn_bar: tuple[int, ...] = ()

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:
        """Do not take Textual's clamping of the offset to a new size for the reader's scrolling."""
        self._is_placing = True
        try:
            return super()._size_updated(size, virtual_size, container_size, layout)
        finally:
            self._is_placing = False

    def on_resize(self) -> None:
        self._fitted = self.size
        if not self.size:
            return  # hidden: wrapped to no width, the lines would be seen so when they come back
        width = max(20, self.scrollable_content_region.width)
        if width != self.lines.width:
            self.change(lambda: self.lines.reset(width))
        else:
            self.show(self.scroll_offset.y)

    def fit(self) -> None:
        """Follow a new size that Textual did not announce: it misses one that is drawn before the layout is done."""
        if self.size != self._fitted:
            self.on_resize()

    def change(self, change: Callable[[], None]) -> None:
        """Apply `change` to the lines; the block at the top stays there."""
        self.painter.forget()
        top = self.lines.index_at(self.scroll_offset.y)
        offset = self.scroll_offset.y - (self.lines.start(top) if len(self.lines) else 0)
        cell = self.lines.cell(top) if len(self.lines) else None
        change()
        top = top if cell is None or (found := self.lines.find(cell)) is None else found
        self.show(self.lines.start(top) + offset if len(self.lines) else 0)

    def clear(self) -> None:
        """Remove all lines and follow the end."""
        self.lines.clear()
        self.follow = True
        self._place(0)

    # -- position ----------------------------------------------------------------------------------------

    @property
    def top(self) -> int:
        """The first visible line."""
        return self.scroll_offset.y

    def show(self, top: int, changed: int = 0) -> None:
        """Render the visible lines, scroll to `top`, or to the end while following; repaint from `changed` on."""
        page = self.size.height
        if not page:
            return  # not laid out yet: `on_resize` follows
        if self.follow:
            self.lines.render_end(page)
        else:
            self.lines.render_view(top, page)
        self._place(self.lines.height - page if self.follow else top, changed)
        self._wrap_soon()

    def _place(self, top: int, changed: int = 0) -> None:
        """Scroll to line `top` and repaint from line `changed` on, or everything if that moves."""
        before = self.scroll_y
        self._is_placing = True
        self._set_height()
        self.scroll_to(y=max(0, top), animate=False, immediate=True, force=True)
        self._is_placing = False
        self._set_bar()
        first = max(0, changed - self.top)
        if self.scroll_y != before or first == 0:
            self.refresh()
        elif first < self.size.height:
            self.refresh(Region(0, first, self.size.width, self.size.height - first))

    def _set_bar(self) -> None:
        """Move the scroll bar only if the change is visible: drawing it costs as much as all the text."""
        page, height = self.size.height, max(1, self.lines.height)
        drawn = (page, *(round(8 * page * part / height) for part in (self.scroll_y, page)))
        if drawn != self._drawn_bar:
            self._drawn_bar = drawn
            self.vertical_scrollbar.window_virtual_size = height
            self.vertical_scrollbar.position = self.scroll_y

    def _set_height(self) -> None:
        """Set the height, without a layout of the screen unless the scroll bar appears or disappears."""
        old, new, page = self.virtual_size, Size(self.lines.width, self.lines.height), self.size.height
        if old.width == new.width and (old.height > page) == (new.height > page):
            self.set_reactive(LineView.virtual_size, new)  # pyright: ignore[reportArgumentType]
        else:
            self.virtual_size = new

    def show_line(self, y: int, at: float = 0.3) -> None:
        """Scroll line `y` into view, `at` of the page from its top, unless it is visible already."""
        top, page = self.top, self.size.height
        if not top <= y < top + page:
            top = max(0, min(y - round(at * page), self.lines.height - page))
        self.set_follow(top >= self.lines.height - page)
        self.show(top)

    def show_end(self, cell: Cell) -> None:
        """Scroll the last line of a block into view, at the bottom, unless it is visible already."""
        for _ in range(3):  # rendering may change the heights above it
            if (index := self.lines.find(cell)) is None:
                return
            self.lines.render_block(index)
            end, page = self.lines.start(index) + self.lines.cell(index).height, self.size.height
            if self.top < end <= self.top + page:
                return
            top = max(0, end - page)
            self.set_follow(top >= self.lines.height - page)
            self.show(top)

    def follow_end(self) -> None:
        self.set_follow(True)
        self.show(0)

    def set_follow(self, follow: bool) -> None:
        if follow != self.follow:
            self.follow = follow
            self.post_message(self.FollowChanged())

    # -- wrapping ahead ----------------------------------------------------------------------------------

    def _wrap_soon(self) -> None:
        if not self.is_wrapping and self._next_near() is not None:
            self.is_wrapping = True
            self.set_timer(0.02, self._wrap_more)

    def _next_near(self, moved: int = 0) -> int | None:
        """A block near the view whose height is a guess: below it, then above."""
        top = self.top + moved
        bottom = top + self.size.height
        below = self.lines.unrendered(bottom, bottom + NEAR)
        return below if below is not None else self.lines.unrendered(max(0, top - NEAR), top)

    def _wrap_more(self) -> None:
        """Wrap a slice of the lines near the view, keeping the visible ones in place."""
        until, top, moved, has_changed = perf_counter() + SLICE, self.top, 0, False
        while True:
            index = self._next_near(moved)
            if index is None:
                self.is_wrapping = False
                break
            is_above = self.lines.start(index) < top + moved
            change = self.lines.render_block(index)
            moved += change if is_above else 0
            has_changed |= change != 0
            if perf_counter() > until:
                self.set_timer(0.02, self._wrap_more)
                break
        if moved:
            self._move_selection(moved)
        if has_changed:
            self._place(self.lines.height - self.size.height if self.follow else top + moved)

    def _move_selection(self, lines: int) -> None:
        """Move the selection down by `lines`, by which the text above has grown."""
        if (selection := self.text_selection) is not None:
            start, end = (Offset(p.x, p.y + lines) if p else None for p in (selection.start, selection.end))
            self.screen.selections = {**self.screen.selections, self: Selection(start, end)}

    # -- the reader's scrolling --------------------------------------------------------------------------

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        if self._is_placing:  # `_place` paints
            return
        super().watch_scroll_y(old_value, new_value)
        if not len(self.lines):
            return
        self.lines.render_view(round(new_value), self.size.height)
        follow = new_value >= self.lines.height - self.size.height - 0.5
        self._set_height()
        self._wrap_soon()
        self.set_follow(follow)

    def scroll_page(self, pages: float) -> None:
        """Scroll by pages; half a page for 0.5, up when negative."""
        self.scroll_relative(y=pages * max(1, self.size.height - 2), animate=False, immediate=True)

    # -- lines -------------------------------------------------------------------------------------------

    def render_lines(self, crop: Region) -> list[Strip]:
        """Use our own cache: Textual's is invalid whenever a line moves, and draws borders."""
        self.painter.begin(self.rich_style, self.size.width)  # once per frame: the style walks up the tree
        strips = [self.render_line(y) for y in crop.line_range]
        return cropped(strips, crop, self.size.width, self.get_line_filters(), self.background_colors[1])

    def render_line(self, y: int) -> Strip:
        selection = self.text_selection
        style = self.screen.get_component_rich_style("screen--selection") if selection is not None else Style()
        return self.painter.line(y + self.top, selection, style)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The source text of blocks selected whole; of others, the text shown."""
        start = (selection.start.y, selection.start.x) if selection.start else (0, 0)
        end = (selection.end.y, selection.end.x) if selection.end else (self.lines.height - 1, -1)
        return copying.selected(self.lines, start, end), "\n"
