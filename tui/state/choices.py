"""A list to choose from, as values: rows, what they are found by, what choosing one means. Pure; UI thread.

`tui/widgets/picker.py` draws any of them; `choice_lists.py` makes those of chats, messages, branches, models and
settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from mlxkv.protocol import commands as cmd
from mlxkv.text.clean import clean
from mlxkv.text.folding import Wanted


@dataclass(frozen=True)
class PutPrompt:
    """Put a text into the prompt, for the user to finish."""

    text: str


@dataclass(frozen=True)
class SendAnyway:
    """Send a message that is too long for the window: into one of `window` tokens, or (0) without what it evicts.

    `turn`: the message of the user's that it replaces.
    """

    text: str
    turn: int | None = None
    window: int = 0


Choice = cmd.Command | PutPrompt | SendAnyway


@dataclass(frozen=True)
class Row:
    """`facts` stand at the right, the last one where there is room for one alone. Without `choice` it is a heading."""

    text: str
    choice: Choice | None = None
    facts: tuple[str, ...] = ()
    more_words: str = ""  # found by these too
    marks: tuple[tuple[int, int], ...] = ()  # spans of `text`, which is clean then, that stand out

    @property
    def words(self) -> str:
        return f"{self.text} {' '.join(self.facts)} {self.more_words}"


@dataclass(frozen=True)
class Listing:
    """`hint` says what Enter does; `at` is the row to begin with.

    With `searches_chats` words that no row has are looked for in what was said in all chats.
    """

    title: str
    rows: tuple[Row, ...]
    hint: str = "⏎ choose · esc close"
    empty: str = "Nothing found."
    at: int = 0
    searchable: bool = True
    searches_chats: bool = False

    def matching(self, typed: str) -> list[Row]:
        """The rows that have every word; headings only while nothing is typed."""
        parts = [wanted for word in typed.split() if (wanted := Wanted.of(word))]
        if not parts:
            return list(self.rows)
        return [row for row in self.rows if row.choice is not None and all(part.is_in(row.words) for part in parts)]


def row_line(row: Row, width: int) -> str:
    """Text at the left, facts at the right. Where there is no room for all, the first facts go, the text last.

    Every list is drawn by way of this, so this is where a row's text becomes harmless, whoever made it.
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
