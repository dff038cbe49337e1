"""Decode of a split model beside mlx-lm's own: `python -m bench.split_speed [--model FOLDER] [--split tensor]`.

Both run in two processes on this machine, in turns: each start loads the model, splits it and generates the same number
of greedy tokens several times. Prints the medians and their ratio. Without a model: a random one of 28 layers. The
processes get the environment that `mlx.launch -n 2` gives, but not from it: while it waits it takes a whole core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

_PROMPT = "the fox and the dog " * 16
_SIZES = {
    "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--split", default="tensor", choices=("tensor", "pipeline"))
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--starts", type=int, default=3, help="of each")
    parser.add_argument("--replies", type=int, default=5, help="of each start")
    parser.add_argument("--tokens", type=int, default=96, help="of each reply")
    given = parser.parse_args()
    print(f"python -m bench.split_speed {' '.join(sys.argv[1:])}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.model or _random_model(Path(temporary) / "model")
        found: dict[str, list[float]] = {"mlxkv": [], "mlx-lm": []}
        for number in range(given.starts):
            for kind in sorted(found, reverse=bool(number % 2)):
                rates = _start(kind, given, folder, Path(temporary) / "rates.json")
                found[kind] += rates
                print(f"{kind}: {', '.join(f'{rate:.1f}' for rate in rates)} tok/s", flush=True)
    own, other = (statistics.median(found[kind]) for kind in ("mlxkv", "mlx-lm"))
    print(f"median: mlxkv {own:.1f} tok/s, mlx-lm {other:.1f} tok/s, ratio {own / other:.3f} ({given.split} split)")


def _random_model(folder: Path) -> Path:
    from tests.distributed.ranks import folder_of

    return folder_of("qwen2", folder, **_SIZES)


def _start(kind: str, given: argparse.Namespace, folder: Path, output: Path) -> list[float]:
    work = json.dumps([kind, str(folder), given.split, given.replies, given.tokens, str(output)])
    hosts = output.with_name("hosts.json")
    first = random.randrange(33_000, 60_000)
    hosts.write_text(json.dumps([[f"127.0.0.1:{first + rank}"] for rank in range(given.machines)]))
    environ = {**os.environ, "PYTHONPATH": os.getcwd(), "MLX_HOSTFILE": str(hosts)}
    command = [sys.executable, __file__, work]
    environs = [{**environ, "MLX_RANK": str(rank)} for rank in range(given.machines)]
    ranks = [subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL) for environ in environs]
    codes = [rank.wait() for rank in ranks]
    assert not any(codes), f"the processes ended with {codes}"
    return json.loads(output.read_text())


def _rank(kind: str, folder: str, split: str, num_replies: int, num_tokens: int, output: str) -> None:
    """What each process does; rank 0 writes the rates."""
    with ExitStack() as held:
        reply = _mlxkv(folder, split, num_tokens, held) if kind == "mlxkv" else _mlx_lm(folder, split, num_tokens)
        reply()  # the first compiles
        rates = [reply() for _ in range(num_replies)]
    if os.environ["MLX_RANK"] == "0":
        Path(output).write_text(json.dumps(rates))


def _mlxkv(folder: str, split: str, num_tokens: int, held: ExitStack) -> Callable[[], float]:
    import mlxkv

    model = held.enter_context(mlxkv.load(folder, distributed=split, draft=False))  # type: ignore[arg-type]

    def reply() -> float:
        found = model.generate(_PROMPT, temperature=0.0, max_tokens=num_tokens)
        assert len(found.tokens) == num_tokens, "the reply ended early: take another model"
        return found.stats.decode_tps

    return reply


def _mlx_lm(folder: str, split: str, num_tokens: int) -> Callable[[], float]:
    import mlx.core as mx
    from mlx_lm.generate import stream_generate
    from mlx_lm.utils import load_model, load_tokenizer

    model, _ = load_model(Path(folder), lazy=True)
    group = mx.distributed.init(strict=True)
    if split == "tensor":
        model.shard(group)  # type: ignore[operator]
    else:
        model.model.pipeline(group)  # type: ignore[operator, union-attr]
    mx.eval(model.parameters())
    tokenizer = load_tokenizer(Path(folder))

    def reply() -> float:
        *_, last = stream_generate(model, tokenizer, _PROMPT, max_tokens=num_tokens)
        assert last.generation_tokens == num_tokens, "the reply ended early: take another model"
        return last.generation_tps

    return reply


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("["):
        _rank(*json.loads(sys.argv[1]))
    else:
        main()
