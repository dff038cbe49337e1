"""Full text over all turns: what a user typed becomes an FTS5 query that cannot be anything but words and phrases.

Scripts that are written without spaces (Chinese, Japanese, Thai, ...) are one token to FTS5, so words of theirs are
looked for inside the text instead. Inside a transaction of the caller; knows no sessions beyond their titles.
"""

from __future__ import annotations

import re
import sqlite3

from mlxkv.store.records import SearchHit

MAX_WORDS = 32
_AROUND = 40  # characters of text on each side of a match that FTS5 did not find
_TERM = re.compile(r'"([^"]*)"?|(\S+)')
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def search(db: sqlite3.Connection, text: str, limit: int) -> list[SearchHit]:
    """Turns that hold every word and "quoted phrase" of `text`, best first; the last word may be a beginning."""
    terms = _terms(text)
    if not terms:
        return []
    if any(_UNSPACED.search(term) for term in terms):
        return _inside(db, terms, limit)
    quoted_end = text.rstrip().endswith('"')
    query = " ".join(f'"{term}"' for term in terms) + ("" if quoted_end else "*")
    rows = db.execute(
        """SELECT s.id, s.title, t.i, t.role, snippet(turn_fts, -1, '[', ']', '…', 12)
           FROM turn_fts JOIN turn t ON t.id = turn_fts.rowid JOIN session s ON s.id = t.session
           WHERE turn_fts MATCH ? ORDER BY rank, s.updated DESC, t.id LIMIT ?""",
        (query, limit),
    )
    return [SearchHit(*row) for row in rows]


def _terms(text: str) -> list[str]:
    """Words and phrases of letters and digits alone: nothing is left that FTS5 could take for an operator."""
    out = []
    for phrase, word in _TERM.findall(text):
        words = "".join(c if c.isalnum() else " " for c in phrase or word).split()
        out += [" ".join(words)] if phrase and words else words
    return out[:MAX_WORDS]


def _inside(db: sqlite3.Connection, terms: list[str], limit: int) -> list[SearchHit]:
    """Newest first."""
    where = " AND ".join("instr(lower(t.text || ' ' || t.thinking), lower(?)) > 0" for _ in terms)
    rows = db.execute(
        f"""SELECT s.id, s.title, t.i, t.role, t.text || ' ' || t.thinking
            FROM turn t JOIN session s ON s.id = t.session WHERE {where} ORDER BY s.updated DESC, t.id DESC LIMIT ?""",
        (*terms, limit),
    )
    return [SearchHit(session, title, i, role, _snippet(found, terms[0])) for session, title, i, role, found in rows]


def _snippet(text: str, term: str) -> str:
    at = max(text.lower().find(term.lower()), 0)
    start, end = max(at - _AROUND, 0), at + len(term) + _AROUND
    before, match, after = text[start:at], text[at : at + len(term)], text[at + len(term) : end]
    return f"{'…' if start else ''}{before}[{match}]{after}{'…' if end < len(text) else ''}"
