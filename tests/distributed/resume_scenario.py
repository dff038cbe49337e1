"""A chat that is saved and resumed on a split model: run as a script, each rank runs this file.

`python resume_scenario.py OUTPUT HOME FOLDER:SPLIT ...`: rank 0 writes what it found as JSON. HOME is rank 1's, whose
chunk files are damaged here.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import mlxkv
from mlxkv.errors import CacheError

QUESTIONS = ("hi there", "what now", "why not", "and then", "the end", "who is it")
SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


def begin(folder: str, split: Any) -> tuple[str, list[str]]:
    """The session of a new chat, and its replies."""
    with mlxkv.load(folder, distributed=split) as model:
        chat = model.chat("be brief", autosave=True, **SAMPLING)
        replies = [chat.ask(text).text for text in QUESTIONS[:2]]
        return str(chat.session_id), replies


def resumed(folder: str, split: Any, session_id: str, question: str) -> dict[str, Any]:
    """What the next turn of a resumed chat took, after everything was closed."""
    with mlxkv.load(folder, distributed=split) as model:
        chat = model.resume(session_id, **SAMPLING)
        assert chat.restored is not None
        reply = chat.ask(question)
        return {
            "log": model.store.load(session_id).turns[-2].start,
            "restored": chat.restored.tokens,
            "notice": chat.restored.notice,
            "text": reply.text,
        }


def newest_chunk(home: Path) -> tuple[Path, int]:
    """The chunk file of rank 1 that its last save wrote, and the first position of its rows."""
    with sqlite3.connect(home / "data/ranks/1/mlxkv.db") as db:
        digest, a = db.execute("SELECT digest, a FROM chunk WHERE grp != 'state' ORDER BY b DESC, a DESC").fetchone()
    return home / "cache/ranks/1/kv" / digest[:2] / f"{digest}.safetensors", a


def on_two_ranks(folder: str, split: str, home: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    session_id, found["replies"] = begin(folder, split)
    found["intact"] = resumed(folder, split, session_id, QUESTIONS[2])
    path, first = newest_chunk(home)
    path.unlink()
    found["deleted"] = resumed(folder, split, session_id, QUESTIONS[3]) | {"first": first}
    path, first = newest_chunk(home)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found["damaged"] = resumed(folder, split, session_id, QUESTIONS[4]) | {"first": first}
    found["whole"] = resumed(folder, None, session_id, QUESTIONS[5])
    with mlxkv.load(folder, distributed=split) as model:  # type: ignore[arg-type]
        chat = model.resume(session_id, **SAMPLING)
        assert chat.restored is not None
        found["split again"] = chat.restored.tokens
        try:
            chat.cache.save("book.kv")
        except CacheError as error:
            found["file"] = str(error)
        chat.close()
        model.store.delete(session_id)
    with sqlite3.connect(home / "data/ranks/1/mlxkv.db") as db:
        found["left"] = db.execute("SELECT count(*) FROM session").fetchone()[0]
    return found


if __name__ == "__main__":
    output, home, *models = sys.argv[1:]
    results = {}
    for item in models:
        folder, split = item.split(":")
        results[item] = on_two_ranks(folder, split, Path(home))
    Path(output).write_text(json.dumps(results))
