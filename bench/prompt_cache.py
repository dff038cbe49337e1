"""From a prompt cache's file to the first token, in a new process: `python -m bench.prompt_cache MODEL [--tokens N]`.

mlxkv's file with mlxkv against mlx-lm's own with mlx-lm: the same text, the same question, both files made once. Then
fresh processes take turns. Each loads the model first; the time is that of the file, the question and one token. The
files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import header

TEXT = "The tower has {} rooms, and the lamp of each is lit by another hand. "
QUESTION = " How many rooms does the tower have?"
SIDES = ("mlxkv", "mlx-lm")
_AHEAD = 16  # both sides compute one token ahead of the one they give


def text_of(tokenizer: Any, num_tokens: int) -> list[int]:
    """The ids of a text of this many tokens."""
    ids: list[int] = []
    while len(ids) < num_tokens:
        ids += tokenizer.encode(TEXT.format(len(ids)), add_special_tokens=False)
    return ids[:num_tokens]


def make(model: str, folder: Path, num_tokens: int) -> None:
    """Make both files from one prefill."""
    from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

    import mlxkv

    ours = mlxkv.load(model)
    cache = ours.prefill(text_of(ours.tokenizer, num_tokens))
    cache.save(folder / "mlxkv.kv")
    cache.export_mlx_lm(theirs := folder / "mlx-lm.safetensors")
    read: Any = load_prompt_cache(str(theirs))
    save_prompt_cache(str(theirs), read)  # as mlx-lm writes it
    ours.close()


def run_mlxkv(model: str, folder: Path) -> None:
    import mlxkv

    loaded = mlxkv.load(model)
    with timed("mlxkv"):
        cache = loaded.load_cache(folder / "mlxkv.kv")
        for event in loaded.stream(QUESTION, cache=cache, max_tokens=_AHEAD, temperature=0.0):
            if isinstance(event, mlxkv.TextDelta):
                break


def run_mlx_lm(model: str, folder: Path) -> None:
    from mlx_lm import load, stream_generate
    from mlx_lm.models.cache import load_prompt_cache
    from mlx_lm.sample_utils import make_sampler

    loaded, tokenizer, *_ = load(model)
    with timed("mlx-lm"):
        cache = load_prompt_cache(str(folder / "mlx-lm.safetensors"))
        ids = tokenizer.encode(QUESTION, add_special_tokens=False)
        for _ in stream_generate(
            loaded, tokenizer, ids, max_tokens=_AHEAD, sampler=make_sampler(temp=0.0), prompt_cache=cache
        ):
            break


@contextmanager
def timed(side: str) -> Iterator[None]:
    """Print wall and CPU seconds of a block, and end the process without waiting for queued computations."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield
    print(json.dumps({"side": side, "wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu}), flush=True)
    os._exit(0)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compare(model: str, folder: Path, rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            command = [sys.executable, "-m", "bench.prompt_cache", model, "--side", side, "--folder", str(folder)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[side].append(json.loads(out.splitlines()[-1]))
    print("| | wall, median (s) | CPU, median (s) | wall, each |\n|---|---|---|---|")
    for side in SIDES:
        each = " ".join(f"{run['wall']:.2f}" for run in found[side])
        print(f"| {side} | {_median(found[side], 'wall'):.3f} | {_median(found[side], 'cpu'):.3f} | {each} |")
    for unit in ("wall", "cpu"):
        medians = [_median(found[side], unit) for side in SIDES]
        pairs = statistics.median(a[unit] / b[unit] for a, b in zip(*found.values(), strict=True))
        print(f"{unit}: x {medians[0] / medians[1]:.3f} of the medians, x {pairs:.3f} median of the pairs")


def _median(runs: list[dict[str, float]], unit: str) -> float:
    return statistics.median(run[unit] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the files here, and use those that are there")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {"mlxkv": run_mlxkv, "mlx-lm": run_mlx_lm}[args.side](args.model, args.folder)
    header("bench.prompt_cache")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ["MLXKV_HOME"] = str(folder)
        if not (folder / "mlx-lm.safetensors").exists():
            make(args.model, folder, args.tokens)
        compare(args.model, folder, args.rounds)


if __name__ == "__main__":
    main()
