"""The pane: the output of a command below the chat or, in a wide window, at its right. UI thread.

Owns its place and its scrolling; `tui/state/reports/report.py` has what it shows. Keys stay with the prompt: its Page
Up and Page Down scroll the pane while that has more rows than fit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget

from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.state.reports.report import Report
from mlxkv.tui.widgets.line_layout import LineLayout
from mlxkv.tui.widgets.line_painter import LinePainter
from mlxkv.tui.widgets.line_view import LineView
from mlxkv.tui.widgets.search import Finder

CHAT = 124  # columns that a reply can use
MIN_CHAT = 90  # columns that the chat keeps beside the pane
MIN_COLUMNS, MAX_COLUMNS = 60, 80
MIN_ROWS = 3


@dataclass(frozen=True)
class Place:
    """`columns` at the right of the chat; 0: below it, with at most `rows`, title included."""

    columns: int
    rows: int


def place_of(width: int, height: int) -> Place:
    """The place of the pane in `width` columns, in a window of `height` rows: the end of the chat stays in view."""
    if width >= MIN_CHAT + MIN_COLUMNS:
        return Place(max(MIN_COLUMNS, min(MAX_COLUMNS, width - CHAT)), height)
    return Place(0, max(MIN_ROWS, height // 2 - 2))


def put(widget: Widget, place: Place, rows: int) -> None:
    """Put `widget`, which would fill `rows`, into its place."""
    widget.set_class(place.columns > 0, "-side")
    widget.styles.width = place.columns or "1fr"
    widget.styles.height = "100%" if place.columns else min(rows, place.rows)


class Pane(Vertical, can_focus=False):
    """Hidden without a report."""

    DEFAULT_CSS = """
    Pane {
        display: none;
        border-top: solid $panel;
        border-title-color: $text;
        border-title-style: bold;
        background: $background;
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.report: Report | None = None
        self.lines = LineLayout(Renderer(Colours()).strips)
        self.view = LineView(self.lines, LinePainter(self.lines, Finder(self.lines), ""))
        self._wrapped: tuple[Report, int] | None = None  # and the width

    def compose(self) -> ComposeResult:
        yield self.view

    def open(self, report: Report) -> None:
        """Show a report from its first row, in place of the one before."""
        self.report = report
        self.view.clear()
        self.view.follow = False
        self.lines.update(report.blocks(), ())
        self.view.painter.forget()
        self.display = True
        self.view.show(0)

    def close(self) -> None:
        self.report, self.display = None, False

    def take_place(self, place: Place, width: int) -> None:
        """Take the place in `width` columns, and say in the title what the keys do."""
        if self.report is None:
            return
        text = (place.columns - 1 if place.columns else width) - 1  # the scroll bar
        if self._wrapped != (self.report, text):  # now, as the place depends on the rows
            self._wrapped = self.report, text
            self.view.change(lambda: self.lines.reset(max(20, text)))
            self.lines.render_view(0, sys.maxsize)
        put(self, place, rows := self.lines.height + 1)
        keys = "esc close" if rows <= place.rows else "PgUp PgDn · esc close"
        title = self.report.title if text >= 60 else self.report.title.partition(" · ")[0]
        self.border_title = Text(f"{title} · {keys}")

    def set_colours(self, colours: Colours) -> None:
        self._wrapped = None
        self.view.change(lambda: self.lines.reset(self.lines.width, Renderer(colours).strips))

    @property
    def can_scroll(self) -> bool:
        return self.report is not None and self.view.max_scroll_y > 0

    def scroll_page(self, pages: float) -> None:
        """Scroll by pages, at least by a row."""
        rows = round(pages * max(1, self.view.size.height - 1)) or (1 if pages > 0 else -1)
        self.view.scroll_relative(y=rows, animate=False, immediate=True)
