"""A scrolling widget over cached lines, however many: which are seen, and wrapping them before they are. UI thread.

Owns scrolling, following the end, and telling Textual no more than it must know. What the lines say, and what can be
done with them, is the transcript's.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from rich.style import Style
from textual.events import Resize
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from mlxkv.tui.widgets.line_layout import Cell, Layout
from mlxkv.tui.widgets.line_painter import Paper, cropped

SLICE = 0.008  # seconds of background wrapping at a time: half a frame
NEAR = 1000  # lines around the view that are wrapped ahead, so that scrolling does not jump


class Scroller(ScrollView, can_focus=False):
    """Shows the end of `lines` until the reader scrolls away; subclasses make `lines` and `paper`."""

    lines: Layout
    paper: Paper

    class Followed(Message):
        """The reader left the end, or came back to it."""

        def __init__(self, follow: bool) -> None:
            super().__init__()
            self.follow = follow

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.follow = True
        self.is_wrapping = False
        self._moving = False  # a scroll of ours, not the reader's
        self._bar_seen: tuple[int, ...] = ()

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:
        """Textual fits the scroll offset into the new size before the lines are: no scrolling of the reader's."""
        self._moving = True
        try:
            return super()._size_updated(size, virtual_size, container_size, layout)
        finally:
            self._moving = False

    def on_resize(self, event: Resize) -> None:
        width = max(20, self.scrollable_content_region.width)
        if width != self.lines.width:
            self._again(lambda: self.lines.reset(width))
        else:
            self._show(self.scroll_offset.y)

    def _again(self, change: Callable[[], None]) -> None:
        """Change any lines; the block at the top stays at the top."""
        self.paper.forget()
        top = self.lines.index_at(self.scroll_offset.y)
        offset = self.scroll_offset.y - (self.lines.start(top) if len(self.lines) else 0)
        change()
        self._show(self.lines.start(top) + offset if len(self.lines) else 0)

    # -- where we are ------------------------------------------------------------------------------------

    def _show(self, top: int, changed: int = 0) -> None:
        """Make what is visible exact, scroll to `top`, or to the end while following; repaint from `changed` on."""
        page = self.size.height
        if self.follow:
            self.lines.settle_end(page)
        else:
            self.lines.settle_view(top, page)
        self._place(self.lines.height - page if self.follow else top, changed)
        self._wrap_soon()

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
            self.set_reactive(Scroller.virtual_size, new)  # pyright: ignore[reportArgumentType]
        else:
            self.virtual_size = new

    def show_line(self, y: int, at: float = 0.3) -> None:
        """Bring line `y` into view, `at` of the page from its top, unless it is there already."""
        top, page = self.scroll_offset.y, self.size.height
        if not top <= y < top + page:
            top = max(0, min(y - round(at * page), self.lines.height - page))
        self._set_follow(top >= self.lines.height - page)
        self._show(top)

    def show_end(self, cell: Cell) -> None:
        """Bring the last line of a block into view, at the bottom, unless it is there already."""
        for _ in range(3):  # what is above it may turn out higher or lower than it was guessed
            if (index := self.lines.find(cell)) is None:
                return
            self.lines.settle(index)
            end, page = self.lines.start(index) + self.lines.cell(index).height, self.size.height
            if self.scroll_offset.y < end <= self.scroll_offset.y + page:
                return
            top = max(0, end - page)
            self._set_follow(top >= self.lines.height - page)
            self._show(top)

    def follow_end(self) -> None:
        self._set_follow(True)
        self._show(0)

    def _set_follow(self, follow: bool) -> None:
        if follow != self.follow:
            self.follow = follow
            self.post_message(self.Followed(follow))

    # -- wrapping ahead ----------------------------------------------------------------------------------

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

    # -- the reader's scrolling --------------------------------------------------------------------------

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

    def scroll_page(self, pages: float) -> None:
        """Scroll by pages; half a page for 0.5, up when negative."""
        self.scroll_relative(y=pages * max(1, self.size.height - 2), animate=False, immediate=True)

    def action_page(self, pages: int) -> None:
        self.scroll_page(pages)

    # -- lines -------------------------------------------------------------------------------------------

    def render_lines(self, crop: Region) -> list[Strip]:
        """Straight from our own cache: Textual's is dirty whenever a line moves, and draws borders we have not."""
        self.paper.begin(self.rich_style, self.size.width)  # the style walks up the tree: once per frame, not per line
        strips = [self.render_line(y) for y in crop.line_range]
        return cropped(strips, crop, self.size.width, self.get_line_filters(), self.background_colors[1])

    def render_line(self, y: int) -> Strip:
        selection = self.text_selection
        style = self.screen.get_component_rich_style("screen--selection") if selection is not None else Style()
        return self.paper.line(y + self.scroll_offset.y, selection, style)
