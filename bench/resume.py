"""A resumed chat's time to first token, against a prefill: `python -m bench.resume [MODEL] [--tokens N ...]`.

Each chat is saved, closed and resumed; mlxkv restores its rows or prefills, whichever it measured to be faster. The
files are in the page cache, so this is the disk at its best.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

import mlxkv
from bench.measure import header
from mlxkv.config import Folders
from mlxkv.stats import bytes_text

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}


def ask(chat: mlxkv.Chat, text: str) -> mlxkv.TurnStats:
    for _ in chat.send(text):
        pass
    return chat.stats


def measure(model: Any, num_tokens: int, rounds: int) -> None:
    config = mlxkv.CacheConfig(window=num_tokens + 1024)
    unit = "All work and no play. "
    text = f"{num_tokens} " + unit * max(1, num_tokens // len(model.tokenizer.encode(unit)))
    chat = model.chat(cache=config, autosave=True, **GREEDY)
    cold = ask(chat, text)
    session = str(chat.session_id)
    chat.close()
    best, found = float("inf"), ""
    for _ in range(rounds):
        again = model.resume(session, fork=True)
        stats, back = ask(again, "And?"), again.restored
        again.close()
        model.store.delete(str(again.session_id))
        assert back is not None
        if (seconds := back.seconds + stats.ttft_s) < best:
            best, found = seconds, f"{back.tokens:,} tokens, {bytes_text(back.bytes)} restored"
    ratio = best / cold.ttft_s
    print(f"| {cold.prompt_tokens:,} | {cold.ttft_s:.3f} | {best:.3f} | {ratio:.2f} | {found} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tutor")
    parser.add_argument("--tokens", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    header("bench.resume")
    print("| tokens | first token, cold (s) | resumed (s) | x cold | from disk |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        model = mlxkv.load(args.model, folders=Folders.from_env({"MLXKV_HOME": folder}))
        ask(model.chat(cache=mlxkv.CacheConfig(window=512), **GREEDY), "Hello.")  # compile and warm up
        for num_tokens in args.tokens:
            measure(model, num_tokens, args.rounds)
        model.close()


if __name__ == "__main__":
    main()
