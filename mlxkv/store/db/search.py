"""Full-text search over all messages and titles: user input becomes an FTS5 query of words and phrases only.

What the index lacks (punctuation, emoji, parts of words) is searched in the texts themselves. search_index.py owns the
index, and how it holds scripts without spaces. Inside a transaction of the caller.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing

from mlxkv.protocol.status import SearchHit
from mlxkv.store.db.database import LISTED
from mlxkv.store.db.search_index import INDEX, index_turn, original_spans, words
from mlxkv.store.records import as_text
from mlxkv.text.folding import Wanted

MAX_WORDS = 32
_AROUND = 40  # characters of text on each side of a match
_TERM = re.compile(r'"([^"]*)"?|(\S+)')
_FORK = re.compile(r" \(\d+\)$")
_SPACE = re.compile(r"\s+")

Span = tuple[int, int]


def search(db: sqlite3.Connection, text: str, limit: int) -> list[SearchHit]:
    """Titles, then messages, with every word and "quoted phrase" of `text`, best first; the last word may be a prefix.
    A title that only repeats its chat's first message is found as that message.

    Literal matches, also inside words, follow; if `text` holds punctuation, they come first.
    """
    found: list[SearchHit] = []
    if terms := _terms(text):
        query = " ".join(f'"{term}"' for term in terms) + ("*" if _is_word(text.rstrip()[-1]) else "")
        found = [*_titles(db, query), *_turns(db, query, limit)]
    has_signs = any(not _is_word(c) and not c.isspace() and c != '"' for c in text)
    if has_signs or len(found) < limit:
        literal = _literal_hits(db, text, limit)
        found = [*literal, *found] if has_signs else [*found, *literal]
    unique = {(hit.session_id, hit.turn): hit for hit in reversed(found)}  # the first of each
    return [hit for hit in found if unique[hit.session_id, hit.turn] is hit][:limit]


def _terms(text: str) -> list[str]:
    """Words and phrases of letters and digits only, so that FTS5 finds no operator in them."""
    out = []
    for phrase, word in _TERM.findall(unicodedata.normalize("NFKC", text)):
        found = "".join(c if _is_word(c) else " " for c in phrase or word).split()
        out += [" ".join(found)] if phrase and found else found
    return [words(term) for term in out[:MAX_WORDS]]


def _is_word(character: str) -> bool:
    """Whether the index holds this character."""
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def _literal_hits(db: sqlite3.Connection, text: str, limit: int) -> list[SearchHit]:
    """Titles, then messages, that contain every part of `text` literally, ignoring case, width and accents; newest
    first. Reads every text."""
    parts = [phrase or word for phrase, word in _TERM.findall(text) if phrase or word] or [text]
    wanted = [found for part in parts[:MAX_WORDS] if (found := Wanted.of(part))]
    if not wanted:
        return []
    out = [
        _hit(chat, title, None, "title", title, _places(wanted, title))
        for chat, title in _chats(db)
        if all(part.is_in(title) for part in wanted) and not _repeats_message(db, chat, title)
    ]
    for session, title, i, role, *texts in db.execute(
        "SELECT s.id, s.title, t.i, t.role, t.text, t.thinking FROM session s JOIN turn t ON t.session = s.id"
        f" WHERE {LISTED} ORDER BY s.seq DESC, s.id DESC, t.i"
    ):
        if len(out) >= limit:
            break
        for message in map(as_text, texts):
            if all(part.is_in(message) for part in wanted):
                out.append(_hit(session, as_text(title), i, role, message, _places(wanted, message)))
                break
    return out


def _places(wanted: Sequence[Wanted], text: str) -> list[Span]:
    """The places of all parts, ascending; only the first of overlapping ones."""
    out: list[Span] = []
    for start, end in sorted(span for part in wanted for span in part.places(text)):
        if not out or start >= out[-1][1]:
            out.append((start, end))
    return out


def _turns(db: sqlite3.Connection, query: str, limit: int) -> list[SearchHit]:
    marks = _marks()
    rows = db.execute(
        f"""SELECT s.id, s.title, t.i, t.role, t.text, highlight(turn_fts, 0, ?1, ?2), t.thinking,
             highlight(turn_fts, 1, ?1, ?2)
           FROM turn_fts JOIN turn t ON t.id = turn_fts.rowid JOIN session s ON s.id = t.session
           WHERE turn_fts MATCH ?3 AND {LISTED} ORDER BY rank, s.seq DESC, t.id LIMIT ?4""",
        (*marks, query, limit),
    )
    out = []
    for session, title, i, role, text, marked, thinking, thought in rows:
        spans = _spans(as_text(text), marked, marks)
        shown = (text, spans) if spans else (as_text(thinking), _spans(as_text(thinking), thought, marks))
        out.append(_hit(session, title, i, role, *shown))
    return out


def _titles(db: sqlite3.Connection, query: str) -> list[SearchHit]:
    """Search titles with a temporary index: they are few, change, and should match exactly as messages do."""
    chats, marks = _chats(db), _marks()
    with closing(sqlite3.connect(":memory:")) as memory:
        memory.execute(INDEX)
        for n, (_, title) in enumerate(chats):
            index_turn(memory, n, title, "")
        rows = memory.execute(
            "SELECT rowid, highlight(turn_fts, 0, ?, ?) FROM turn_fts WHERE turn_fts MATCH ? ORDER BY rank, rowid",
            (*marks, query),
        ).fetchall()
    found = [(*chats[n], marked) for n, marked in rows]
    return [
        _hit(chat, title, None, "title", title, _spans(title, marked, marks))
        for chat, title, marked in found
        if not _repeats_message(db, chat, title)
    ]


def _marks() -> tuple[str, str]:
    """Markers around a match in FTS5's answer; random, so that no text can contain them."""
    return f"<{(nonce := secrets.token_hex(8))}", f"{nonce}>"


def _spans(text: str, marked: str, marks: tuple[str, str]) -> list[Span]:
    """The spans of `text` that FTS5 marked in its indexed form."""
    found, at, start = [], 0, 0
    for part in re.split(f"({'|'.join(marks)})", marked):
        if part == marks[0]:
            start = at
        elif part == marks[1]:
            found.append((start, at))
        else:
            at += len(part)
    return list(original_spans(text, found))


def _chats(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """Ids and titles, newest first."""
    found = db.execute(f"SELECT s.id, s.title FROM session s WHERE {LISTED} ORDER BY s.seq DESC, s.id DESC")
    return [(id, as_text(title)) for id, title in found]


def _repeats_message(db: sqlite3.Connection, session_id: str, title: str) -> bool:
    """Whether the title is the beginning of the first message, which it is unless the user renamed the chat."""
    row = db.execute("SELECT text FROM turn WHERE session = ? AND i = 0", (session_id,)).fetchone()
    return row is not None and as_text(row[0]).lstrip().startswith(_FORK.sub("", title).rstrip("…"))


def _hit(session_id: str, title: str, turn: int | None, role: str, text: str, spans: Sequence[Span]) -> SearchHit:
    """A hit with one line of the text around the first match."""
    snippet, marks = "", []
    for piece, is_match in _snippet_pieces(text, spans):
        one_line = _SPACE.sub(" ", piece)
        if is_match and one_line:
            marks.append((len(snippet), len(snippet) + len(one_line)))
        snippet += one_line
    return SearchHit(session_id, title, turn, role, snippet, tuple(marks))


def _snippet_pieces(text: str, spans: Sequence[Span]) -> Iterator[tuple[str, bool]]:
    """The text around the first match, in pieces, and whether each is a match."""
    first, last = spans[0] if spans else (0, 0)
    at, end = max(first - _AROUND, 0), min(last + _AROUND, len(text))
    if at and (space := _SPACE.search(text, at, first)):  # not half a word, if there are spaces
        at = space.end()
    yield ("…" if at else ""), False
    for start, stop in spans:
        if stop > end:
            break
        yield text[at:start], False
        yield text[start:stop], True
        at = stop
    yield text[at:end] + ("…" if end < len(text) else ""), False
