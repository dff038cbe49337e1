"""What the recurrent state of a hybrid costs on disk, in memory and going back: `python -m bench.hybrids`.

Prints a Markdown table: what, measured, goal, and whether it is met. The model is random, of one real layer shape
(hybrid_models.py). Bytes are measured with all its layers (`--layers`); tokens, which do not depend on the number of
layers, with `--few-layers`, so that chats of 8,000 tokens are affordable on a CPU. Where only the number of tokens to
prefill counts, the reply is closed before the prefill begins. `--kills N` kills a chatting process N times
instead. `bench.hybrid_speed` measures speed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

import mlxkv
from bench.hybrid_models import FAMILIES, OVERHEAD, Family, build
from bench.measure import header
from mlxkv.cache.config import CacheConfig
from mlxkv.chat.history import spans
from mlxkv.config import Folders
from mlxkv.events import Notice, PrefillProgress
from mlxkv.store.db.open import DATABASE

REPLY = 4  # tokens
CONFIG = CacheConfig(window=4096)
LONG = CacheConfig(window=16_384)  # holds all of the long chat
TURN = 30  # tokens of a short turn, its reply included
NUM_LONG = 20  # turns of the long chat
INTERVAL = 1024  # new tokens that are worth a state on disk


class Bench:
    """One model in a folder, with a home of its own."""

    def __init__(self, root: Path, family: Family, layers: int) -> None:
        self.family, self.layers, self.root = family, layers, root
        self.folder = build(root / "model", family, layers)
        self.home = root / "home"
        self.folders = Folders.from_env({"MLXKV_HOME": str(self.home)})
        self.model = mlxkv.load(self.folder, folders=self.folders)
        self._dice = random.Random(0)

    def text(self, num_tokens: int) -> str:
        """A text that the template makes this many tokens of."""
        return "".join(self._dice.choices("abcdefghijklmnopqrstuvwxyz", k=num_tokens - OVERHEAD))

    def chat(self, system: str | None = None, config: CacheConfig = CONFIG) -> mlxkv.Chat:
        return self.model.chat(system, config, autosave=True, temperature=0.0, max_tokens=REPLY)

    def turn(self, chat: mlxkv.Chat, num_tokens: int = TURN) -> mlxkv.TurnStats:
        """A message and a reply of this many tokens in all, with its rows on disk."""
        for _ in chat.send(self.text(num_tokens - REPLY - OVERHEAD)):
            pass
        self.model.store.flush(str(chat.session_id))
        return chat.stats

    def chunks(self) -> dict[str, tuple[str, int]]:
        """The chunk files that the database knows: group and bytes by digest."""
        with closing(sqlite3.connect(f"file:{self.folders.data / DATABASE}?mode=ro", uri=True)) as db:
            return {digest: (group, size) for digest, group, size in db.execute("SELECT digest, grp, size FROM chunk")}

    @contextmanager
    def written(self, found: Counter[str]) -> Iterator[None]:
        """Add up the bytes of chunk files that are new afterwards, of states and of rows."""
        before = self.chunks() if (self.folders.data / DATABASE).exists() else {}
        yield
        for digest, (group, size) in self.chunks().items():
            if digest not in before:
                found["states" if group == "state" else "rows"] += size

    def close(self) -> None:
        self.model.close()
        shutil.rmtree(self.root)


def first_progress(events: Iterator[Any]) -> PrefillProgress:
    """What a reply is about to prefill; nothing of it is."""
    with closing(events):  # type: ignore[type-var]
        return next(event for event in events if isinstance(event, PrefillProgress))


def row(what: str, measured: str, goal: str = "", met: bool | None = None) -> None:
    print(f"| {what} | {measured} | {goal} | {'' if met is None else 'yes' if met else '**no**'} |", flush=True)


def mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.2f} MB"


def state_bytes(cache: Any) -> int:
    """Bytes of the recurrent state of all layers."""
    return sum(layer.nbytes for layer in cache.layers if type(layer).__name__ == "ArraysCache")


# -- bytes -------------------------------------------------------------------------------------------------------------


def measure_bytes(bench: Bench, num_turns: int) -> None:
    """Disk, memory, estimate and notices of a chat of short turns."""
    loaded, chat = mx.get_active_memory(), bench.chat()
    written: list[Counter[str]] = []
    sizes: dict[int, tuple[int, int]] = {}
    told: list[str] = []
    for n in range(1, num_turns + 1):
        written.append(Counter())
        with bench.written(written[-1]):
            if n == 1:
                events = chat.send(bench.text(TURN - REPLY - OVERHEAD))
                told = [event.text for event in events if isinstance(event, Notice)]
                bench.model.store.flush(str(chat.session_id))
            else:
                bench.turn(chat)
        sizes[n] = (chat.cache.nbytes, mx.get_active_memory() - loaded)
    state, used = state_bytes(chat.cache), chat.cache.nbytes
    row("one state", mb(state))
    totals = [w.total() for w in written]
    states, rows = (sum(w[kind] for w in written) for kind in ("states", "rows"))
    num_states = 1 + TURN * num_turns // INTERVAL
    row(f"written to disk by a turn of {TURN} tokens, median of {num_turns}",
        f"{mb(statistics.median(totals))}: states {mb(statistics.median(w['states'] for w in written))}, "
        f"rows {mb(statistics.median(w['rows'] for w in written))}; largest {mb(max(totals))}",
        "its rows", statistics.median(w["states"] for w in written) == 0)  # fmt: skip
    row(f"written by {num_turns} turns, times {100 / num_turns:.1f} for 100",
        f"{mb(states + rows)}: states {mb(states)}, rows {mb(rows)}; 100 turns {mb((states + rows) * 100 / num_turns)}",
        f"rows and at most {num_states} states", states <= 1.02 * num_states * state)  # fmt: skip
    closing_bytes: Counter[str] = Counter()
    with bench.written(closing_bytes):
        chat.close()
    row("written by closing the chat", f"states {mb(closing_bytes['states'])}, rows {mb(closing_bytes['rows'])}")
    row("on disk when the chat is closed", mb(sum(size for _, size in bench.chunks().values())))
    at = [n for n in (1, 10, 30) if n in sizes]
    estimated = mlxkv.estimate(bench.folder, CONFIG).cache_bytes
    row(f"cache in memory after turn {', '.join(map(str, at))}", ", ".join(mb(sizes[n][0]) for n in at),
        "never above the estimate", max(size for size, _ in sizes.values()) <= 1.05 * estimated)  # fmt: skip
    row(f"MLX's active memory beyond the weights after turn {', '.join(map(str, at))}",
        ", ".join(mb(sizes[n][1]) for n in at), "flat from turn 10 on",
        sizes[num_turns][1] <= 1.05 * sizes[min(10, num_turns)][1])  # fmt: skip
    row("estimate for window 4,096, and used at the end", f"{mb(estimated)}, {mb(used)}", "equal within 5 %",
        abs(used - estimated) <= 0.05 * used)  # fmt: skip
    row("notices of the first turn", " ".join(told) or "none", "none", not told)


def print_mode(bench: Bench, system: str) -> tuple[int, int, str]:
    """`mlxkv -p` in a process of its own: tokens of the prompt, those cached, and what it said on stderr."""
    command = [
        sys.executable, "-m", "mlxkv", "-p", bench.text(16), "-m", str(bench.folder), "-s", system, "--window", "4096",
        "--max-tokens", str(REPLY), "--temp", "0", "-n", "-q", "--output-format", "json",
    ]  # fmt: skip
    env = {**os.environ, "MLXKV_HOME": str(bench.home)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"mlxkv -p failed: {done.stderr}")
    usage = json.loads(done.stdout)["usage"]
    return usage["prompt_tokens"], usage["cached_tokens"], done.stderr.strip()


# -- tokens ------------------------------------------------------------------------------------------------------------


def measure_sharing(bench: Bench, num_system: int) -> None:
    """Another chat with the same system prompt, and an edit of the first message."""
    system = bench.text(num_system)
    chat = bench.chat(system)
    for _ in range(3):
        bench.turn(chat)
    ids = chat.cache.tokens[:num_system]
    twin = chat.cache.fork()
    cached = twin.reuse([*ids, 1, 5, 6, 7]).cached
    row(f"another chat with the same system prompt of {num_system} tokens, on the same cache", f"{cached} reused",
        f"{num_system}", cached >= num_system)  # fmt: skip
    other = bench.chat(system)
    found = first_progress(other.send(bench.text(16)))
    row("the same, from disk", f"{found.cached} of {found.cached + found.total} reused", f"{num_system}",
        found.cached >= num_system)  # fmt: skip
    prompt, cached, told = print_mode(bench, system)
    row("the same, in another process (`mlxkv -p`)", f"{cached} of {prompt} reused", f"{num_system}",
        cached >= num_system)  # fmt: skip
    row("said by `mlxkv -p` on stderr", told or "nothing", "nothing of states", "layers" not in told)
    found = first_progress(chat.edit(0, bench.text(16)))
    row("edit of the first message", f"{found.cached} of {found.cached + found.total} reused", f"{num_system}",
        found.cached >= num_system)  # fmt: skip
    chat.close()


def again(chat: mlxkv.Chat, turns_back: int) -> tuple[int, int]:
    """The distance of an edit this many turns back, and how many tokens before it are prefilled again."""
    turn = len(chat.turns) - 2 * turns_back
    start, length = spans(chat.turns)[turn][0], len(chat.log)
    return length - start, max(start - first_progress(chat.edit(turn, "other")).cached, 0)


def measure_back(bench: Bench, turns: list[int], title: str) -> None:
    """Edits some turns back in a chat of turns of these lengths, while it is open and after a resume."""
    chat = bench.chat(config=LONG)
    for num_tokens in turns:
        bench.turn(chat, num_tokens)
    back = range(1, len(turns))

    def show(where: str, which: int, found: dict[int, tuple[int, int]]) -> None:
        far, lost = found[which]
        row(f"{which} turns back {where} of {title}", f"{far:,} back: {lost:,} prefilled again",
            f"<= {far // 2 + 128:,}", lost <= far / 2 + 128)  # fmt: skip
        worst = max(found, key=lambda n: found[n][1] - found[n][0] / 2)
        far, lost = found[worst]
        row(f"the worst of {len(found)} edits there, {worst} turns back", f"{far:,} back: {lost:,} prefilled again",
            f"<= {far // 2 + 128:,}", lost <= far / 2 + 128)  # fmt: skip

    found = {}
    for n in back:
        twin = chat.fork()
        found[n] = again(twin, n)
        twin.close()
    show("in a chat", 5, found)
    chat.close()
    found = {}
    for n in back:
        resumed = bench.model.resume(str(chat.session_id), fork=True)
        found[n] = again(resumed, n)
        resumed.close()
    show("after closing and resuming a chat", 2, found)


def measure_shared_prefill(bench: Bench, num_system: int) -> None:
    """Two chats and a named prompt cache with the same system prompt: what each prefills."""
    system = bench.text(num_system)
    first, second = bench.chat(system), bench.chat(system)
    prefilled = [bench.turn(first).prefill_tokens, first_progress(second.send(bench.text(16))).total]
    runner, fed = bench.model.runner, Counter[str]()
    prefill = runner.prefill

    def counted(cache: Any, ids: Any, *more: Any, **named: Any) -> Iterator[int]:
        fed["tokens"] += len(ids)
        return iter(())  # counted is enough

    runner.prefill = counted  # type: ignore[method-assign]
    bench.model.prefill("", CONFIG, system=system)
    runner.prefill = prefill  # type: ignore[method-assign]
    prefilled.append(fed["tokens"])
    row(f"two chats and a named prompt cache with a system prompt of {num_system:,} tokens prefill",
        ", ".join(f"{n:,}" for n in prefilled), "once", sum(prefilled) <= num_system + 128)  # fmt: skip
    first.close()


def kill(root: Path, family: str, kills: int) -> None:
    """Kill a chatting process this often: tests/store/kill_hybrids.py, which fails if anything is lost."""
    (folder := root / "kills").mkdir()
    command = [sys.executable, "-m", "tests.store.kill_hybrids", family, str(folder), "--kills", str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lost after a kill: {done.stderr}")
    found = json.loads(done.stdout)
    row(f"{kills} kills at random moments in {found['turns']} turns, {found['tokens']:,} tokens",
        f"nothing acknowledged lost; at most {found['most prefilled by the next turn']:,} tokens prefilled by the next "
        f"turn, {found['most tokens since the last state']:,} since the last state on disk",
        "those since the last state, and the message", True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="qwen3_5")
    parser.add_argument("--layers", type=int, help="of the model that bytes are measured with; all by default")
    parser.add_argument("--few-layers", type=int, help="of the model that tokens are counted with")
    parser.add_argument("--part", choices=("all", "bytes", "tokens"), default="all")
    parser.add_argument("--turns", type=int, default=30, help="short turns")
    parser.add_argument("--tokens", type=int, default=8000, help="of the long chat")
    parser.add_argument("--kills", type=int, default=0, help="only kill a chatting process (of tiny layers) this often")
    parser.add_argument("--system", type=int, nargs=2, default=(580, 2000), help="tokens of the system prompts")
    args = parser.parse_args()
    family = FAMILIES[args.family]
    layers, few = args.layers or family.num_layers, args.few_layers or family.few
    each = args.tokens // NUM_LONG
    header(f"bench.hybrids --family {family.name}")
    if not args.kills:
        print(f"random {family.name}, {family.dtype}; bytes with {layers} layers, tokens with {few};")
        print(f"turns of {TURN} tokens, in the long chat {NUM_LONG} of {each};")
        print(f"window {CONFIG.window:,}, {LONG.window:,} to go back\n")
    print("| what | measured | goal | met |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o700)
        if args.kills:
            kill(Path(root), family.name, args.kills)
            return
        if args.part != "tokens":
            bench = Bench(Path(root) / "all", family, layers)
            measure_bytes(bench, args.turns)
            bench.close()
        if args.part != "bytes":
            bench = Bench(Path(root) / "few", family, few)
            measure_sharing(bench, args.system[0])
            measure_shared_prefill(bench, args.system[1])
            measure_back(bench, [TURN] * 7, f"{7 * TURN} tokens")
            measure_back(bench, [each] * NUM_LONG, f"{args.tokens:,} tokens")
            bench.close()


if __name__ == "__main__":
    main()
