"""Cost of a message by the length of a saved chat: `python -m bench.turns [MODEL] [--exchanges N ...]`.

CPU seconds of all threads, with the rows written and what is on disk synced, medians of nine messages; the chat
template's rendering, which grows with the chat, is counted apart. The window is small, so that the model's own part
stays the same. With `--tokenizer` the model is a tiny random one with that tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

import mlxkv
from bench.measure import header
from mlxkv.config import Folders
from mlxkv.tokenizer.chat_template import ChatTemplate

EACH = 9  # messages that are measured
QUESTION = "This is question number {}: what is the colour of the sea at noon?"


class Rendering:
    """CPU seconds spent in the chat template."""

    def __init__(self) -> None:
        self.seconds = 0.0
        render = ChatTemplate.render

        def timed(template: ChatTemplate, *args: Any, **more: Any) -> str:
            begun = time.thread_time()
            try:
                return render(template, *args, **more)
            finally:
                self.seconds += time.thread_time() - begun

        ChatTemplate.render = timed  # type: ignore[method-assign]


def tiny(folder: Path, tokenizer: Path) -> Path:
    """A random llama of two layers, in a folder with this tokenizer."""
    for file in tokenizer.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and file.name != "config.json":
            shutil.copy(file, folder)
    vocab = json.loads((tokenizer / "tokenizer.json").read_text())
    largest = max([*vocab["model"]["vocab"].values(), *(t["id"] for t in vocab["added_tokens"])])
    args = ModelArgs(
        model_type="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=largest + 1, max_position_embeddings=1 << 17,
    )  # fmt: skip
    weights = dict(tree_flatten(Model(args).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})  # type: ignore[arg-type]
    config = {name: value for name, value in asdict(args).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tutor")
    parser.add_argument("--exchanges", type=int, nargs="*", default=[100, 200, 1000])
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--window", type=int, default=512)
    args = parser.parse_args()
    header("bench.turns")
    rendering = Rendering()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        name = args.model
        if args.tokenizer is not None:
            (path := Path(folder) / "tiny").mkdir()
            name = str(tiny(path, args.tokenizer))
        model = mlxkv.load(name, folders=Folders.from_env({"MLXKV_HOME": folder}))
        config = mlxkv.CacheConfig(window=args.window)
        chat = model.chat(cache=config, autosave=True, temperature=0.0, max_tokens=4)

        def send(n: int) -> tuple[float, float]:
            rendering.seconds, begun = 0.0, time.process_time()
            for _ in chat.send(QUESTION.format(n)):
                pass
            model.store.flush(str(chat.session_id))
            return time.process_time() - begun, rendering.seconds

        print(f"{args.tokenizer.name if args.tokenizer else args.model}, window {args.window}\n")
        print("| exchanges | tokens | CPU s | rendering | beyond it | x the first |\n|---|---|---|---|---|---|")
        n, first = 0, 0.0
        for until in args.exchanges:
            while n < until - EACH:
                send(n := n + 1)
            found = [send(n := n + 1) for _ in range(EACH)]
            whole, rendered = (statistics.median(x) for x in zip(*found, strict=True))
            rest = statistics.median(a - b for a, b in found)
            first = first or rest
            row = (
                f"{n:,}",
                f"{len(chat.log):,}",
                f"{whole:.4f}",
                f"{rendered:.4f}",
                f"{rest:.4f}",
                f"{rest / first:.2f}",
            )
            print(f"| {' | '.join(row)} |", flush=True)
        chat.close()
        model.close()


if __name__ == "__main__":
    main()
