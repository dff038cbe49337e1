"""Processes on loopback, connected as `mlx.launch` connects them, and tiny models that divide."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.cache.architectures import ARCHITECTURES
from tests.tokenizers import tiny_tokenizer

ROOT = Path(__file__).parents[2]
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
_OWN = {
    "qwen3_5": {"num_hidden_layers": 4, "full_attention_interval": 2, "num_key_value_heads": 2},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"] * 2},
}


def folder_of(name: str, folder: Path, **more: Any) -> Path:
    """A random model of mlx-lm's module `name` that two processes can share, as `mlxkv.load` reads it."""
    own = {**_HEADS, **_OWN.get(name, {}), **more}
    made = ARCHITECTURES[name]
    table = {**made.args, "text_config": {**made.args["text_config"], **own}} if "text_config" in made.args else None
    made = replace(made, args=table or {**made.args, **own})
    folder.mkdir(parents=True, exist_ok=True)
    weights: Any = dict(tree_flatten(made.build().parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(made.config()))
    tiny_tokenizer()._tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def ranks(count: int, folder: Path, *command: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start `python *command` as so many ranks; what still runs at the end is killed."""
    hostfile = folder / "hosts.json"
    with ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        hostfile.write_text(json.dumps([[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]))
    started = []
    try:
        for rank in range(count):
            environ = {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile), "PYTHONPATH": str(ROOT)}
            environ["MLXKV_HOME"] = str(folder / f"home-{rank}")
            started.append(
                subprocess.Popen(
                    [sys.executable, *command], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()
