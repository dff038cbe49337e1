"""The search index: adds and removes the words of messages, and finds the span of a match in the original text.

FTS5 takes a run of Chinese, Japanese, Thai or Korean letters for one word. So the index holds text in compatibility
form (NFKC: half width, full width and ligatures are replaced) with each of these letters as a separate word; queries
are converted the same way, to phrases. The index keeps its own copy of that text, since a row can only be removed by
the words that were added. Inside a transaction of the caller.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator

from mlxkv.store.records import as_text
from mlxkv.text.folding import origins

_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u31ff\u3400-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts without spaces between words, and Hangul, whose words are found inside compounds too."""

_CUT = re.compile(f"[{_UNSPACED}]")
INDEX = """CREATE VIRTUAL TABLE turn_fts USING fts5(text, thinking, tokenize="unicode61 categories 'L* N* Co M*'")"""


def words(text: str) -> str:
    """`text` in its indexed form: line by line, so that a match can be traced back."""
    if text.isascii():
        return text
    return _CUT.sub(r" \g<0> ", unicodedata.normalize("NFKC", text))


def original_spans(text: str, marks: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans of `text` for ascending spans of `words(text)`. Only lines with a match are mapped by character."""
    lines = iter(text.split("\n"))
    line, at, done = next(lines), 0, 0
    length, origins = len(words(line)), None
    for start, end in marks:
        found = []
        for point in (start, end - 1):
            while point > done + length and (following := next(lines, None)) is not None:
                at, done, line = at + len(line) + 1, done + length + 1, following
                length, origins = len(words(line)), None
            origins = _origins(line) if origins is None else origins
            low, high = origins[min(point - done, len(origins) - 1)] if origins else (0, 0)
            found.append((at + low, at + high))
        yield found[0][0], found[1][1]


def _origins(line: str) -> list[tuple[int, int]]:
    """The span of `line` that each character of `words(line)` comes from."""
    return origins(line, words)


def index_turn(db: sqlite3.Connection, rowid: int, text: object, thinking: object) -> None:
    db.execute(
        "INSERT INTO turn_fts(rowid, text, thinking) VALUES(?, ?, ?)",
        (rowid, words(as_text(text)), words(as_text(thinking))),
    )


def unindex_turns(db: sqlite3.Connection, rowids: Iterable[int]) -> None:
    """Remove messages; call `forget_deleted` after the last one."""
    db.executemany("DELETE FROM turn_fts WHERE rowid = ?", ((rowid,) for rowid in rowids))


def forget_deleted(db: sqlite3.Connection) -> None:
    """Merge the index's segments: removed words stay in them until then."""
    db.execute("INSERT INTO turn_fts(turn_fts) VALUES('optimize')")


def rebuild(db: sqlite3.Connection) -> None:
    """Rebuild the index, even if it is damaged."""
    try:
        db.execute("DROP TABLE IF EXISTS turn_fts")
    except sqlite3.DatabaseError:  # too damaged for FTS5 to open it: drop its tables one by one
        db.execute("PRAGMA writable_schema=ON")
        db.execute("DELETE FROM sqlite_schema WHERE name = 'turn_fts'")
        db.execute("PRAGMA writable_schema=RESET")
        for part in ("data", "idx", "content", "docsize", "config"):
            db.execute(f"DROP TABLE IF EXISTS turn_fts_{part}")
    db.execute(INDEX)
    for row in db.execute("SELECT id, text, thinking FROM turn ORDER BY id").fetchall():
        index_turn(db, *row)


def is_intact(db: sqlite3.Connection) -> bool:
    """Whether the index is intact and holds exactly the words of every message.

    Raises:
        sqlite3.Error: it is damaged.
    """
    db.execute("INSERT INTO turn_fts(turn_fts, rank) VALUES('integrity-check', 1)")
    held = iter(db.execute("SELECT rowid, text, thinking FROM turn_fts ORDER BY rowid"))
    turns = iter(db.execute("SELECT id, text, thinking FROM turn ORDER BY id"))
    return (
        all(
            next(held, None) == (rowid, words(as_text(text)), words(as_text(thinking)))
            for rowid, text, thinking in turns
        )
        and next(held, None) is None
    )
