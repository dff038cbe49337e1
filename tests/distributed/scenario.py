"""What a test asks of a model, on one process or on several: run as a script, each rank runs this file.

`python scenario.py OUTPUT HOME FOLDER:SPLIT ...`: rank 0 writes the token ids of all models as JSON, and what it
took to resume a chat. HOME is that of rank 1; "": no chat is resumed; "short": neither forked, rewound and so on.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlxkv
from mlxkv import CacheConfig, Model

BOUNDS = CacheConfig(window=32, sinks=4, block=8, slack=16)
PROMPT = [5 + n * 7 % 50 for n in range(40)]
AGAIN = [9, 30, 12, 41, 8, 9, 30, 12, 41, 8] * 3  # repeats itself, which is drafted
QUESTIONS = ("hi there", "what now", "why not", "and then", "the end", "who is it")
SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


def replies(model: Model, *, is_short: bool = False) -> dict[str, list[int]]:
    """Greedy token ids: past the window and, unless short, in a fork, after a rewind, drafted, and in 8 bits."""
    found: dict[str, list[int]] = {}

    def reply(name: str, prompt: list[int], cache: mlxkv.PromptCache, most: int = 8) -> None:
        found[name] = list(model.generate(prompt, cache=cache, temperature=0.0, max_tokens=most).tokens)

    held = model.make_cache(BOUNDS)
    reply("past the window", PROMPT, held, 20)
    if is_short:
        return found
    fork = held.fork()
    reply("in a fork", [7, 11, 23], fork)
    with suppress(mlxkv.errors.RewindError):  # recurrent layers have no checkpoint there; nothing is changed then
        held.rewind(held.offset - 9)
    reply("after a rewind", [33, 3], held)
    reply("another prompt", [*PROMPT[:25], 4, 4, 8], held)
    reply("drafted", AGAIN, model.make_cache(), 16)
    with suppress(mlxkv.errors.ConfigError):  # not with these rows
        reply("in 8 bits", PROMPT, model.make_cache(CacheConfig(bits=8, group_size=32)))
    chat = model.chat("be brief", temperature=0.0, max_tokens=6)
    for text in ("hi there", "what now"):
        list(chat.send(text))
    chat.undo()
    found["edited"] = [ord(c) for c in chat.ask("why not").text]
    found["score"] = [round(model.score("the fox").logprob * 100)]
    return found


def begin(folder: str, split: Any) -> tuple[str, dict[str, Any]]:
    """The session of a new chat, and its first turn."""
    with mlxkv.load(folder, distributed=split) as model:
        chat = model.chat("be brief", autosave=True, **SAMPLING)
        reply = chat.ask(QUESTIONS[0])
        return str(chat.session_id), {"text": reply.text}


def resumed(folder: str, split: Any, session_id: str, question: str) -> dict[str, Any]:
    """What the next turn of a chat took that was closed and resumed."""
    with mlxkv.load(folder, distributed=split) as model:
        chat = model.resume(session_id, **SAMPLING)
        assert chat.restored is not None
        found = {"log": len(chat.log), "restored": chat.restored.tokens, "notice": chat.restored.notice}
        return found | {"text": chat.ask(question).text}


def resumed_alone(folder: str) -> list[dict[str, Any]]:
    session_id, first = begin(folder, None)
    return [first, *(resumed(folder, None, session_id, question) for question in QUESTIONS[1:])]


def resumed_together(folder: str, split: Any, home: Path) -> dict[str, Any]:
    """The same chat on two processes. `home`: that of rank 1, whose files are damaged here."""
    session_id, first = begin(folder, split)
    steps = {"new": first, "intact": resumed(folder, split, session_id, QUESTIONS[1])}
    path, a = newest_chunk(home)
    path.unlink()
    steps["deleted"] = resumed(folder, split, session_id, QUESTIONS[2]) | {"first": a}
    found: dict[str, Any] = {"steps": steps}
    if split == "pipeline":
        return found
    path, a = newest_chunk(home)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    steps["damaged"] = resumed(folder, split, session_id, QUESTIONS[3]) | {"first": a}
    steps["on one"] = resumed(folder, None, session_id, QUESTIONS[4])
    steps["split again"] = resumed(folder, split, session_id, QUESTIONS[5])
    with mlxkv.load(folder, distributed=split) as model:
        try:
            model.load_cache(__file__)
        except mlxkv.errors.CacheError as error:
            found["refusal"] = str(error)
        model.store.delete(session_id)
    with sqlite3.connect(home / "data/ranks/1/mlxkv.db") as db:
        found["left"] = db.execute("SELECT count(*) FROM session").fetchone()[0]
    return found


def newest_chunk(home: Path) -> tuple[Path, int]:
    """The chunk file of the last rows of a process of rank 1, and the position of the first of them."""
    with sqlite3.connect(home / "data/ranks/1/mlxkv.db") as db:
        digest, a = db.execute("SELECT digest, a FROM chunk WHERE grp != 'state' ORDER BY b DESC, a DESC").fetchone()
    return home / "cache/ranks/1/kv" / digest[:2] / f"{digest}.safetensors", a


if __name__ == "__main__":
    output, home, *models = sys.argv[1:]
    results = {}
    for item in models:
        folder, split = item.split(":")
        with mlxkv.load(folder, distributed=split) as loaded:  # type: ignore[arg-type]
            results[item] = {"kind": loaded.loaded.machines.split.kind, **replies(loaded, is_short=home == "short")}
        if home not in ("", "short"):
            results[item]["resumed"] = resumed_together(folder, split, Path(home))
    Path(output).write_text(json.dumps(results))
