"""The welcome of an empty chat: how to begin, models to load. No dialog: the prompt keeps the focus. UI thread."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text
from textual.widget import Widget

from mlxkv.models.resolve import BUILT_IN
from mlxkv.protocol.events import ModelCard
from mlxkv.stats import bytes_text
from mlxkv.text.clean import clean
from mlxkv.tui.state.labels import short_name
from mlxkv.tui.state.lists.choices import cut


class Welcome(Widget, can_focus=False):
    """Centred text in place of the transcript."""

    DEFAULT_CSS = """
    Welcome { height: 1fr; content-align: center middle; background: $background; color: $text; }
    """
    ALLOW_SELECT = False

    def __init__(self, suggestions: tuple[ModelCard, ...]) -> None:
        super().__init__()
        self._suggestions = suggestions
        self._shown: tuple[str, bool, bool, tuple[str, ...]] = ("", False, False, ())

    def show(self, model: str, ready: bool, loading: bool, titles: tuple[str, ...] = ()) -> None:
        """`titles` are those of the latest chats."""
        if (model, ready, loading, titles) != self._shown:
            self._shown = (model, ready, loading, titles)
            self.refresh()

    def render(self) -> Text:
        model, ready, loading, titles = self._shown
        width = self.content_size.width
        if ready:
            begin = how_to_begin(model, self._suggestions, width)
            lines = welcome_lines(f"{short_name(model)} is ready", begin + earlier(titles, width))
        elif loading:
            lines = welcome_lines("One moment", ["Type ahead: it is sent when the model is ready."])
        else:
            lines = model_lines(self._suggestions, width)
        return Text("\n", justify="left").join(lines)


def how_to_begin(model: str, suggestions: tuple[ModelCard, ...], width: int) -> list[str]:
    """Lines below the model's name; for the built-in one, its limits and how to get a bigger one."""
    if model != BUILT_IN[0]:
        return ["Ask anything. / for commands, ? for help."]
    lines = ["It is small: it knows mlxkv and KV caches. /model opens bigger ones."]
    for card in [card for card in suggestions if card.reason][:1]:
        told = f"{card.reason}: {clean(card.id)}, {bytes_text(card.size_bytes)}"
        lines.append(cut(told[0].upper() + told[1:], max(width - 2, 1)))
    return [*lines, "Try: What is a KV cache?"]


def earlier(titles: tuple[str, ...], width: int) -> list[str]:
    """Titles of the latest chats, which Enter lists."""
    if not titles or width < 40:
        return []
    longest = min(width - 8, 60)
    return ["", "⏎ opens an earlier chat:", *(cut(" ".join(clean(title).split()), longest) for title in titles)]


def welcome_lines(title: str, dim: list[str]) -> list[Text]:
    """Lines of equal width, because the block is centred, not its lines."""
    width = max(cell_len(line) for line in (title, *dim))
    rows = [Text().append(title.center(width), "bold"), Text("")]
    return rows + [Text().append(line.center(width), "dim") for line in dim]


def model_lines(suggestions: tuple[ModelCard, ...], width: int) -> list[Text]:
    """Name, size, reason, licence and note in columns; columns that do not fit are left out from the right."""
    how = Text().append("⏎", "bold").append(" lists them all · ", "dim")
    how.append("/model <repo id or folder>", "bold").append(" loads one", "dim")
    if not suggestions:
        return [Text("No model is loaded", "bold"), Text(""), how]
    cards = [(clean(m.id), bytes_text(m.size_bytes), m.reason, clean(m.licence), clean(m.note)) for m in suggestions]
    widths = [max(map(cell_len, column)) for column in zip(*cards, strict=True)]
    while len(widths) > 1 and sum(widths) + 3 * (len(widths) - 1) + 2 > width:
        widths.pop()
    title = "No model is loaded. These fit this computer:"
    rows: list[Text] = [Text().append(title, "bold"), Text("")]
    for model, card in zip(suggestions, cards, strict=True):
        row = Text()
        for i, (cell, width) in enumerate(zip(card, widths, strict=False)):
            pad = " " * (width - cell_len(cell))
            text = f"   {pad}{cell}" if i == 1 else f"{'   ' if i else ''}{cell}{pad}"
            row.append(text, "bold" if i == 0 and model.fits else "dim")
        rows.append(row if model.fits else row.append(" (too large)", "dim"))
    rows += [Text(""), how]
    block = max(row.cell_len for row in rows)  # one left edge for all rows, the block itself is centred
    return [row.append(" " * (block - row.cell_len)) for row in rows]
