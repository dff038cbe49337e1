"""A list to choose from, in place of the transcript. Typing searches, Enter chooses, the app handles Esc. UI thread."""

from __future__ import annotations

from rich.text import Text
from textual.events import Key
from textual.message import Message
from textual.widget import Widget
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from mlxkv.protocol import commands as cmd
from mlxkv.tui.markdown.wrap import cuts
from mlxkv.tui.state.lists.choices import Choice, Listing, Row, row_line, shown


class Picker(OptionList):
    """Mounted to choose from `listing`, removed when something is chosen."""

    DEFAULT_CSS = """
    Picker, Picker:focus {
        height: 1fr;
        max-height: 100%;
        border: none;
        border-top: solid $panel;
        border-title-color: $text;
        border-title-style: bold;
        padding: 0 1;
        background: $background;
        background-tint: $background 0%;
    }
    Picker > .option-list--option-disabled { color: $text; text-style: bold; }
    Picker:nocolor > .option-list--option-highlighted, Picker:nocolor:focus > .option-list--option-highlighted {
        text-style: bold underline;
    }
    """

    class Selected(Message):
        """`choice` None: a row that changes nothing."""

        def __init__(self, choice: Choice | None) -> None:
            super().__init__()
            self.choice = choice

    def __init__(self, listing: Listing, words: str = "") -> None:
        super().__init__()
        self.listing = listing
        self._fitted = self.size
        self._words, self._rows = words, list(listing.rows)
        self._unfolded: int | None = None  # the row whose detail is shown

    def on_mount(self) -> None:
        self.screen.set_focus(self)  # `focus` acts after the first paint: keys typed before would go to the prompt
        self._fill(self.listing.at)

    def on_resize(self) -> None:
        self._fitted = self.size
        self._fill(self.highlighted or 0)

    def fit(self) -> None:
        """Follow a new size that Textual did not announce: see `LineView.fit`."""
        if self.size != self._fitted:
            self.on_resize()

    def _fill(self, at: int = 0) -> None:
        listing = self.listing
        self._rows = listing.matching(self._words)
        width = self._row_width
        self.clear_options()
        self._unfolded = None
        self.add_options([self._option(row, width) for row in self._rows] or [Option(listing.empty, disabled=True)])
        self.highlighted = None if not self._rows else min(max(at, 0), len(self._rows) - 1)
        hint = " · type to search" if listing.searchable else ""
        title = f"{listing.title} · {self._words}▏" if self._words else f"{listing.title}{hint}"
        self.border_title = Text(shown(f"/{listing.beside} · {title}" if listing.beside else title))

    @property
    def _row_width(self) -> int:
        """Before the first layout that of the chat: a slow terminal shows what is drawn until then."""
        parent = self.parent
        before = parent.content_size.width - 2 if isinstance(parent, Widget) else 0
        return max(20, (self.content_size.width or before) - 2)

    def watch_highlighted(self, highlighted: int | None) -> None:
        """Show the detail of the selected row below it."""
        width = self._row_width
        for index in {self._unfolded, highlighted}:
            if index is not None and index < min(len(self._rows), self.option_count) and self._rows[index].detail:
                is_open = index == highlighted
                self.replace_option_prompt_at_index(index, self._line(self._rows[index], width, is_open=is_open))
        self._unfolded = highlighted
        super().watch_highlighted(highlighted)

    def _option(self, row: Row, width: int) -> Option:
        if row.choice is None and self.listing.searchable:
            return Option(Text(shown(row.text), "bold", no_wrap=True), disabled=True)
        return Option(self._line(row, width))

    def _line(self, row: Row, width: int, *, is_open: bool = False) -> Text:
        line = Text(row_line(row, width), no_wrap=True)
        for a, b in row.marks:
            if line.plain.startswith(row.text[:b]):  # the rest was cut off
                line.stylize("bold underline", a, b)
        detail = shown(row.detail)
        for begin, end, _ in cuts(detail, width - 2) if detail and is_open else ():
            line.append(f"\n  {detail[begin:end]}", "not bold")
        return line

    def on_key(self, event: Key) -> None:
        if not self.listing.searchable:
            return
        if event.character == "D" and (other := self._other) is not None:
            self.post_message(self.Selected(other))
        elif event.key == "enter" and not self._rows and self.listing.searches_chats:
            self.post_message(self.Selected(cmd.SearchChats(self._words)))
        elif event.key == "backspace":
            self._words = self._words[:-1]
        elif event.key == "ctrl+u":
            self._words = ""
        elif event.is_printable and event.character:
            self._words += event.character
        else:
            return
        event.stop()
        event.prevent_default()
        self._fill()

    @property
    def _other(self) -> Choice | None:
        at = self.highlighted
        return self._rows[at].other if at is not None and at < len(self._rows) else None

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_index < len(self._rows):
            self.post_message(self.Selected(self._rows[event.option_index].choice))
