"""Values of a list to choose from: rows, search words, choices. Pure; UI thread.

`tui/widgets/picker.py` draws the lists, `choice_lists.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from mlxkv.protocol import commands as cmd
from mlxkv.text.clean import clean
from mlxkv.text.folding import Wanted


@dataclass(frozen=True)
class PutPrompt:
    """Put a text into the prompt for the user to complete."""

    text: str


@dataclass(frozen=True)
class SendAnyway:
    """Send a message that exceeds the window, after enlarging it to `window` tokens (0: evict instead).

    `turn` is the user message to replace, if any.
    """

    text: str
    turn: int | None = None
    window: int = 0


@dataclass(frozen=True)
class RunSlash:
    """Run a slash command."""

    name: str
    argument: str = ""


Choice = cmd.Command | PutPrompt | SendAnyway | RunSlash


@dataclass(frozen=True)
class Row:
    """`facts` are shown at the right; if only one fits, the last. A row without `choice` is a heading.

    `detail` is shown below the row while it is selected; D takes the choice `other`.
    """

    text: str
    choice: Choice | None = None
    facts: tuple[str, ...] = ()
    more_words: str = ""  # additional search words
    marks: tuple[tuple[int, int], ...] = ()  # highlighted spans of `text`, which must be clean
    detail: str = ""
    other: Choice | None = None


@dataclass(frozen=True)
class Listing:
    """`hint` says what Enter does; `at` is the row selected first.

    `searches_chats`: if no row matches, Enter searches the messages of all chats. `beside`: the command whose output
    it is, shown in the pane, beside the chat.
    """

    title: str
    rows: tuple[Row, ...]
    hint: str = "⏎ choose · esc close"
    empty: str = "Nothing found."
    at: int = 0
    searchable: bool = True
    searches_chats: bool = False
    beside: str = ""

    def matching(self, typed: str) -> list[Row]:
        """Rows that contain every word; headings only while nothing is typed."""
        parts = [wanted for word in typed.split() if (wanted := Wanted.of(word))]
        if not parts:
            return list(self.rows)
        words = {row: f"{row.text} {' '.join(row.facts)} {row.more_words}" for row in self.rows if row.choice}
        return [row for row, text in words.items() if all(part.is_in(text) for part in parts)]


def row_line(row: Row, width: int) -> str:
    """Text at the left, facts at the right. If space is short, facts are dropped from the first, then the text is cut.

    Every list is drawn by this function, so row texts are cleaned here.
    """
    whole, facts = shown(row.text), [shown(fact) for fact in (row.facts if width >= 60 else row.facts[-1:])]
    while len(facts) > 1 and cell_len(whole) + cell_len(" · ".join(facts)) + 2 > width:
        facts.pop(0)
    right = " · ".join(facts) if len(facts) > 1 else cut("".join(facts), width // 2)
    room = width - cell_len(right) - (1 if right else 0)
    text = cut(whole, room)
    return f"{text}{' ' * (room - cell_len(text))}{' ' if right else ''}{right}"


def shown(text: str) -> str:
    return clean(text).replace("\n", " ").replace("\t", " ")


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)) + "…"
