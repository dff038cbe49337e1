"""Full text over all turns and titles: what a user typed becomes an FTS5 query that can be only words and phrases.

Scripts that are written without spaces (Chinese, Japanese, Thai, ...) are one token to FTS5, so words of theirs are
looked for inside the text instead. Inside a transaction of the caller; knows no sessions beyond their titles.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing

from mlxkv.store.records import SearchHit

MAX_WORDS = 32
_AROUND = 40  # characters of text on each side of a match that FTS5 did not find
_TERM = re.compile(r'"([^"]*)"?|(\S+)')
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_FORK = re.compile(r" \(\d+\)$")
_SPACE = re.compile(r"\s+")

Piece = tuple[str, bool]
"""Text, and whether it is what was looked for."""


def search(db: sqlite3.Connection, text: str, limit: int) -> list[SearchHit]:
    """Titles, then turns, that hold every word and "quoted phrase" of `text`, best first; the last word may be a
    beginning. A title that merely repeats how its chat begins is found as that turn."""
    terms = _terms(text)
    if not terms:
        return []
    if any(_UNSPACED.search(term) for term in terms):
        titles, turns = _titles_inside(db, terms), _turns_inside(db, terms, limit)
    else:
        query = " ".join(f'"{term}"' for term in terms) + ("" if text.rstrip().endswith('"') else "*")
        titles, turns = _titles(db, query), _turns(db, query, limit)
    return [*titles, *turns][:limit]


def _terms(text: str) -> list[str]:
    """Words and phrases of letters and digits alone: nothing is left that FTS5 could take for an operator."""
    out = []
    for phrase, word in _TERM.findall(text):
        words = "".join(c if c.isalnum() else " " for c in phrase or word).split()
        out += [" ".join(words)] if phrase and words else words
    return out[:MAX_WORDS]


# -- words, by FTS5 ----------------------------------------------------------------------------------------------------


def _turns(db: sqlite3.Connection, query: str, limit: int) -> list[SearchHit]:
    marks = _marks()
    rows = db.execute(
        """SELECT s.id, s.title, t.i, t.role, snippet(turn_fts, -1, ?, ?, '…', 12)
           FROM turn_fts JOIN turn t ON t.id = turn_fts.rowid JOIN session s ON s.id = t.session
           WHERE turn_fts MATCH ? ORDER BY rank, s.updated DESC, t.id LIMIT ?""",
        (*marks, query, limit),
    )
    return [_hit(session, title, i, role, _pieces(found, marks)) for session, title, i, role, found in rows]


def _titles(db: sqlite3.Connection, query: str) -> list[SearchHit]:
    """By an index made on the spot: titles are few, change, and should match exactly as turns do."""
    chats, marks = _chats(db), _marks()
    with closing(sqlite3.connect(":memory:")) as memory:
        memory.execute("CREATE VIRTUAL TABLE title USING fts5(text)")
        memory.executemany("INSERT INTO title(rowid, text) VALUES(?, ?)", ((i, c[1]) for i, c in enumerate(chats)))
        rows = memory.execute(
            "SELECT rowid, highlight(title, 0, ?, ?) FROM title WHERE title MATCH ? ORDER BY rank, rowid",
            (*marks, query),
        ).fetchall()
    found = [(*chats[i], _pieces(marked, marks)) for i, marked in rows]
    return [_hit(chat, title, None, "title", of) for chat, title, of in found if not _is_beginning(db, chat, title)]


def _marks() -> tuple[str, str]:
    """What stands around a match in FTS5's answer: no text can hold it, since it is another one for each search."""
    return f"<{(nonce := secrets.token_hex(8))}", f"{nonce}>"


def _pieces(text: str, marks: tuple[str, str]) -> Iterator[Piece]:
    is_match = False
    for part in re.split(f"({'|'.join(marks)})", text):
        if part in marks:
            is_match = part == marks[0]
        else:
            yield part, is_match


# -- words inside words ------------------------------------------------------------------------------------------------


def _turns_inside(db: sqlite3.Connection, terms: list[str], limit: int) -> list[SearchHit]:
    """Newest first."""
    where = " AND ".join("instr(lower(t.text || ' ' || t.thinking), lower(?)) > 0" for _ in terms)
    rows = db.execute(
        f"""SELECT s.id, s.title, t.i, t.role, rtrim(t.text || ' ' || t.thinking)
            FROM turn t JOIN session s ON s.id = t.session WHERE {where} ORDER BY s.updated DESC, t.id DESC LIMIT ?""",
        (*terms, limit),
    )
    return [_hit(session, title, i, role, _around(found, terms)) for session, title, i, role, found in rows]


def _titles_inside(db: sqlite3.Connection, terms: list[str]) -> list[SearchHit]:
    patterns = [re.compile(re.escape(term), re.IGNORECASE) for term in terms]
    found = [(chat, title) for chat, title in _chats(db) if all(pattern.search(title) for pattern in patterns)]
    return [
        _hit(chat, title, None, "title", _around(title, terms))
        for chat, title in found
        if not _is_beginning(db, chat, title)
    ]


def _around(text: str, terms: list[str]) -> Iterator[Piece]:
    """The text around the first match, cut into what matches and what does not."""
    pattern = re.compile("|".join(map(re.escape, sorted(terms, key=len, reverse=True))), re.IGNORECASE)
    first = pattern.search(text)
    at, end = first.span() if first else (0, 0)
    start, end = max(at - _AROUND, 0), min(end + _AROUND, len(text))
    yield ("…" if start else ""), False
    for match in pattern.finditer(text, start, end):
        yield text[start : match.start()], False
        yield match[0], True
        start = match.end()
    yield text[start:end] + ("…" if end < len(text) else ""), False


# ----------------------------------------------------------------------------------------------------------------------


def _chats(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """Ids and titles, newest first."""
    return db.execute("SELECT id, title FROM session ORDER BY updated DESC, id DESC").fetchall()


def _is_beginning(db: sqlite3.Connection, session_id: str, title: str) -> bool:
    """Whether the title is the first words of the chat, as it is unless the user gave another."""
    row = db.execute("SELECT text FROM turn WHERE session = ? AND i = 0", (session_id,)).fetchone()
    return row is not None and row[0].lstrip().startswith(_FORK.sub("", title).rstrip("…"))


def _hit(session_id: str, title: str, turn: int | None, role: str, pieces: Iterable[Piece]) -> SearchHit:
    snippet, marks = "", []
    for text, is_match in pieces:
        one_line = _SPACE.sub(" ", text)
        if is_match and one_line:
            marks.append((len(snippet), len(snippet) + len(one_line)))
        snippet += one_line
    return SearchHit(session_id, title, turn, role, snippet, tuple(marks))
