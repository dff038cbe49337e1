"""What the recurrent state of a hybrid costs on disk, in memory and going back: `python -m bench --only hybrids`.

The model is random, of one real layer shape (hybrid_models.py). Bytes are measured with all its layers; tokens, which
do not depend on the number of layers, with a few, so that chats of 8,000 tokens are affordable on a CPU. Where only the
number of tokens to prefill counts, the reply is closed before the prefill begins. The full set also kills a chatting
process. `bench.hybrid_speed` measures speed.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

import mlxkv
from bench.hybrid_models import FAMILIES, OVERHEAD, Family, build
from bench.measure import make_part
from mlxkv.cache.config import CacheConfig
from mlxkv.chat.history import spans
from mlxkv.cli.bench.report import Goal, Part, Row, Unit
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


def row(what: str, measured: str, counted: float | None = None, most: float = 0, least: float | None = None) -> Row:
    """A row of the table; with `counted` a goal for that number: `most`, or `least` where that is given."""
    goal = Goal("counted", least, most if least is None else None) if counted is not None else None
    return Row(what, {"measured": measured, "counted": counted}, goal)


def mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.2f} MB"


def state_bytes(cache: Any) -> int:
    """Bytes of the recurrent state of all layers."""
    return sum(layer.nbytes for layer in cache.layers if type(layer).__name__ == "ArraysCache")


# -- bytes -------------------------------------------------------------------------------------------------------------


def measure_bytes(bench: Bench, num_turns: int) -> Iterator[Row]:
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
    yield row("one state", mb(state))
    totals = [w.total() for w in written]
    states, rows = (sum(w[kind] for w in written) for kind in ("states", "rows"))
    num_states = 1 + TURN * num_turns // INTERVAL
    yield row(f"written to disk by a turn of {TURN} tokens, median of {num_turns}: no states",
              f"{mb(statistics.median(totals))}: states {mb(statistics.median(w['states'] for w in written))}, "
              f"rows {mb(statistics.median(w['rows'] for w in written))}; largest {mb(max(totals))}",
              statistics.median(w["states"] for w in written))  # fmt: skip
    yield row(f"written by {num_turns} turns, in states beside rows",
              f"{mb(states + rows)}: states {mb(states)}, rows {mb(rows)}; 100 turns "
              f"{mb((states + rows) * 100 / num_turns)}", states / state, most=1.02 * num_states)  # fmt: skip
    closing_bytes: Counter[str] = Counter()
    with bench.written(closing_bytes):
        chat.close()
    yield row("written by closing the chat", f"states {mb(closing_bytes['states'])}, rows {mb(closing_bytes['rows'])}")
    yield row("on disk when the chat is closed", mb(sum(size for _, size in bench.chunks().values())))
    at = [n for n in (1, 10, 30) if n in sizes]
    estimated = mlxkv.estimate(bench.folder, CONFIG).cache_bytes
    yield row(
        f"cache in memory after turn {', '.join(map(str, at))}, of the estimate",
        ", ".join(mb(sizes[n][0]) for n in at),
        max(size for size, _ in sizes.values()) / estimated,
        1.05,
    )
    yield row(
        f"MLX's memory beyond the weights after turn {', '.join(map(str, at))}, of that after turn 10",
        ", ".join(mb(sizes[n][1]) for n in at),
        sizes[num_turns][1] / sizes[min(10, num_turns)][1],
        1.05,
    )
    yield row(
        "estimate for window 4,096, and used at the end, off by",
        f"{mb(estimated)}, {mb(used)}",
        abs(used - estimated) / used,
        0.05,
    )
    yield row("notices of the first turn", " ".join(told) or "none", len(told))


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


def measure_sharing(bench: Bench, num_system: int) -> Iterator[Row]:
    """Another chat with the same system prompt, and an edit of the first message."""
    system = bench.text(num_system)
    chat = bench.chat(system)
    for _ in range(3):
        bench.turn(chat)
    ids = chat.cache.tokens[:num_system]
    twin = chat.cache.fork()
    cached = twin.reuse([*ids, 1, 5, 6, 7]).cached
    yield row(
        f"another chat with the same system prompt of {num_system} tokens, on the same cache",
        f"{cached} reused",
        cached,
        least=num_system,
    )
    other = bench.chat(system)
    found = first_progress(other.send(bench.text(16)))
    yield row(
        "the same, from disk", f"{found.cached} of {found.cached + found.total} reused", found.cached, least=num_system
    )
    prompt, cached, told = print_mode(bench, system)
    yield row("the same, in another process (`mlxkv -p`)", f"{cached} of {prompt} reused", cached, least=num_system)
    yield row("said of layers by `mlxkv -p` on stderr", told or "nothing", told.count("layers"))
    found = first_progress(chat.edit(0, bench.text(16)))
    yield row(
        "edit of the first message",
        f"{found.cached} of {found.cached + found.total} reused",
        found.cached,
        least=num_system,
    )
    chat.close()


def again(chat: mlxkv.Chat, turns_back: int) -> tuple[int, int]:
    """The distance of an edit this many turns back, and how many tokens before it are prefilled again."""
    turn = len(chat.turns) - 2 * turns_back
    start, length = spans(chat.turns)[turn][0], len(chat.log)
    return length - start, max(start - first_progress(chat.edit(turn, "other")).cached, 0)


def measure_back(bench: Bench, turns: list[int], title: str) -> Iterator[Row]:
    """Edits some turns back in a chat of turns of these lengths, while it is open and after a resume."""
    chat = bench.chat(config=LONG)
    for num_tokens in turns:
        bench.turn(chat, num_tokens)
    back = range(1, len(turns))

    def edit(what: str, far: int, lost: int) -> Row:
        return row(what, f"{far:,} back: {lost:,} prefilled again", lost, far / 2 + 128)

    def edits(where: str, which: int, found: dict[int, tuple[int, int]]) -> Iterator[Row]:
        yield edit(f"{which} turns back {where} of {title}", *found[which])
        worst = max(found, key=lambda n: found[n][1] - found[n][0] / 2)
        yield edit(f"the worst of {len(found)} edits there, {worst} turns back", *found[worst])

    found = {}
    for n in back:
        twin = chat.fork()
        found[n] = again(twin, n)
        twin.close()
    yield from edits("in a chat", 5, found)
    chat.close()
    found = {}
    for n in back:
        resumed = bench.model.resume(str(chat.session_id), fork=True)
        found[n] = again(resumed, n)
        resumed.close()
    yield from edits("after closing and resuming a chat", 2, found)


def measure_shared_prefill(bench: Bench, num_system: int) -> Iterator[Row]:
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
    yield row(
        f"two chats and a named prompt cache with a system prompt of {num_system:,} tokens prefill",
        ", ".join(f"{n:,}" for n in prefilled),
        sum(prefilled),
        num_system + 128,
    )
    first.close()


def kill(root: Path, family: str, kills: int) -> Row:
    """Kill a chatting process this often: tests/store/kill_hybrids.py, which fails if anything is lost."""
    root.mkdir()
    command = [sys.executable, "-m", "tests.store.kill_hybrids", family, str(root), "--kills", str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lost after a kill: {done.stderr}")
    found = json.loads(done.stdout)
    return row(
        f"{family}: {kills} kills at random moments in {found['turns']} turns, {found['tokens']:,} tokens",
        f"nothing acknowledged lost; at most {found['most prefilled by the next turn']:,} tokens prefilled by the next "
        f"turn, {found['most tokens since the last state']:,} since the last state on disk",
    )


def cost(family: Family, what: str, layers: int, settings: str, rows: Callable[[Bench], Iterator[Row]]) -> Part:
    """The table of one measurement with so many layers."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o700)
        bench = Bench(Path(root) / "bench", family, layers)
        found = list(rows(bench))
        bench.close()
    model = f"random {family.name} of real shape, {layers} layers, {str(family.dtype).removeprefix('mlx.core.')}"
    columns = {"measured": Unit.TEXT, "counted": Unit.NUMBER}
    return make_part(f"{family.name}-{what}", f"Hybrids: {what} of {family.name}", model, settings, columns, found)


def bytes_part(family: Family, layers: int, turns: int = 30) -> Part:
    """Bytes on disk and in memory of a chat of short turns."""
    settings = f"turns of {TURN} tokens, window {CONFIG.window:,}"
    return cost(family, "bytes", layers, settings, lambda bench: measure_bytes(bench, turns))


def tokens_part(family: Family, layers: int, tokens: int = 8000, system: tuple[int, int] = (580, 2000)) -> Part:
    """Tokens that are prefilled again after sharing and going back."""
    each = tokens // NUM_LONG

    def rows(bench: Bench) -> Iterator[Row]:
        yield from measure_sharing(bench, system[0])
        yield from measure_shared_prefill(bench, system[1])
        yield from measure_back(bench, [TURN] * 7, f"{7 * TURN} tokens")
        yield from measure_back(bench, [each] * NUM_LONG, f"{tokens:,} tokens")

    settings = (
        f"turns of {TURN} tokens, in the long chat {NUM_LONG} of {each}; windows {CONFIG.window:,}, {LONG.window:,}"
    )
    return cost(family, "tokens", layers, settings, rows)


def parts(full: bool) -> Iterator[Part]:
    for family in FAMILIES.values() if full else [FAMILIES["qwen3_5"]]:
        yield bytes_part(family, family.num_layers, 30 if full else 10)
        yield tokens_part(family, family.few, *((8000, (580, 2000)) if full else (2000, (580, 1000))))
    if full:
        with tempfile.TemporaryDirectory() as root:
            killed = [kill(Path(root) / name, name, 30) for name in FAMILIES]
        yield make_part("hybrid-kills", "Hybrids: a chatting process killed", "random hybrids of tiny layers", "",
                        {"measured": Unit.TEXT}, killed)  # fmt: skip
