"""What a test asks of a model, on one process or on several: run as a script, each rank runs this file.

`python scenario.py OUTPUT FOLDER:SPLIT ...`: rank 0 writes the token ids of all models as JSON.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import mlxkv
from mlxkv import CacheConfig, Model

BOUNDS = CacheConfig(window=64, sinks=4, block=16, slack=32)
PROMPT = [5 + n * 7 % 50 for n in range(40)]
AGAIN = [9, 30, 12, 41, 8, 9, 30, 12, 41, 8] * 3  # repeats itself, which is drafted


def replies(model: Model) -> dict[str, list[int]]:
    """Greedy token ids: past the window, in a fork, after a rewind, drafted, and in 8 bits."""
    found: dict[str, list[int]] = {}

    def reply(name: str, prompt: list[int], cache: mlxkv.PromptCache, most: int = 24) -> None:
        found[name] = list(model.generate(prompt, cache=cache, temperature=0.0, max_tokens=most).tokens)

    held = model.make_cache(BOUNDS)
    reply("past the window", PROMPT, held, 70)
    fork = held.fork()
    reply("in a fork", [7, 11, 23], fork)
    with suppress(mlxkv.errors.RewindError):  # recurrent layers have no checkpoint there; nothing is changed then
        held.rewind(held.offset - 9)
    reply("after a rewind", [33, 3], held)
    reply("another prompt", [*PROMPT[:25], 4, 4, 8], held)
    reply("drafted", AGAIN, model.make_cache(), 40)
    with suppress(mlxkv.errors.ConfigError):  # not with these rows
        reply("in 8 bits", PROMPT, model.make_cache(CacheConfig(bits=8, group_size=32)))
    chat = model.chat("be brief", temperature=0.0, max_tokens=12)
    for text in ("hi there", "what now"):
        list(chat.send(text))
    chat.undo()
    found["edited"] = [ord(c) for c in chat.ask("why not").text]
    found["score"] = [round(model.score("the fox").logprob * 100)]
    return found


if __name__ == "__main__":
    output, *models = sys.argv[1:]
    results = {}
    for item in models:
        folder, split = item.split(":")
        with mlxkv.load(folder, distributed=split) as loaded:  # type: ignore[arg-type]
            results[item] = {"kind": loaded.loaded.machines.split.kind, **replies(loaded)}
    Path(output).write_text(json.dumps(results))
